-- A statement is a paragraph: blank lines separate statements. A file that was released is never edited: a change is
-- the next number. JSON is kept as text; times are milliseconds since 1970, UTC. Everything here can be made again from
-- the segments and the history.

-- One request: its begin row and its end row in one, or a shadow. "rank" says which row's word counts (columns.py).
CREATE TABLE requests (
    id TEXT NOT NULL PRIMARY KEY,
    "rank" BIGINT NOT NULL,
    writer TEXT NOT NULL,
    at_ms BIGINT,
    worker TEXT,
    epoch BIGINT,
    model TEXT,
    lane TEXT,
    arm TEXT,
    endpoint TEXT,
    "of" TEXT,
    rollout TEXT,
    target TEXT,
    upstream TEXT,
    tries BIGINT,
    release TEXT,
    adapter TEXT,
    template TEXT,
    sampling TEXT,
    tenant TEXT,
    "user" TEXT,
    conversation TEXT,
    unit TEXT,
    stream BIGINT,
    status BIGINT,
    finish TEXT,
    error TEXT,
    prompt_tokens BIGINT,
    completion_tokens BIGINT,
    cached_tokens BIGINT,
    cost_usd DOUBLE PRECISION,
    queue_ms DOUBLE PRECISION,
    first_ms DOUBLE PRECISION,
    latency_ms DOUBLE PRECISION,
    gateway_ms DOUBLE PRECISION,
    slices TEXT,
    guardrails TEXT,
    content TEXT,
    request TEXT,
    response TEXT
);

CREATE INDEX requests_by_time ON requests (at_ms);

CREATE INDEX requests_by_user ON requests ("user") WHERE "user" IS NOT NULL;

CREATE INDEX requests_by_of ON requests ("of") WHERE "of" IS NOT NULL;

CREATE INDEX requests_by_rollout ON requests (rollout, at_ms) WHERE rollout IS NOT NULL;

-- Those without an end: few, and looked for by writer when one is dead.
CREATE INDEX requests_open ON requests (writer) WHERE "rank" < 4294967296 AND finish IS NULL;

CREATE TABLE feedback (
    id TEXT NOT NULL PRIMARY KEY,
    "rank" BIGINT NOT NULL,
    writer TEXT NOT NULL,
    "of" TEXT,
    at_ms BIGINT,
    "type" TEXT,
    "value" DOUBLE PRECISION,
    "text" TEXT,
    name TEXT,
    tenant TEXT,
    data TEXT
);

CREATE INDEX feedback_by_of ON feedback ("of");

CREATE INDEX feedback_by_time ON feedback (at_ms);

CREATE TABLE verdicts (
    id TEXT NOT NULL PRIMARY KEY,
    "rank" BIGINT NOT NULL,
    writer TEXT NOT NULL,
    "of" TEXT,
    shadow TEXT,
    at_ms BIGINT,
    judge TEXT,
    outcome TEXT,
    flipped BIGINT,
    detail TEXT
);

CREATE INDEX verdicts_by_of ON verdicts ("of");

CREATE INDEX verdicts_by_time ON verdicts (at_ms);

-- How far each segment was read, in the same transaction as its rows.
CREATE TABLE cursors (
    segment TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    writer TEXT NOT NULL,
    "offset" BIGINT NOT NULL,
    finished BIGINT NOT NULL,
    accepted BIGINT NOT NULL,
    "rows" BIGINT NOT NULL,
    bad_rows BIGINT NOT NULL,
    corrupt_bytes BIGINT NOT NULL,
    torn_bytes BIGINT NOT NULL,
    first_ms BIGINT,
    last_ms BIGINT,
    archived BIGINT NOT NULL
);

-- Parquet files of the history.
CREATE TABLE parts (
    path TEXT NOT NULL PRIMARY KEY,
    "day" TEXT NOT NULL,
    "rows" BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    first_ms BIGINT NOT NULL,
    last_ms BIGINT NOT NULL,
    made_at_ms BIGINT NOT NULL
);

-- "log": which traffic folder this is the index of.
CREATE TABLE about (
    "key" TEXT NOT NULL PRIMARY KEY,
    "value" TEXT NOT NULL
);
