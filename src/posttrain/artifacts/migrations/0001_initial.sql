-- A statement is a paragraph: blank lines separate statements. A paragraph that begins with "-- only: DIALECT" is for
-- that database alone. JSON is kept as canonical text; times are RFC 3339 in UTC. A file that was released is never
-- edited: a change is the next number.

-- The index of artifacts. Everything in the first five tables can be built again from the manifests.
CREATE TABLE artifacts (
    digest TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    manifest TEXT NOT NULL,
    producer_stage TEXT,
    producer_key TEXT,
    producer_output TEXT,
    recorded_at TEXT NOT NULL
);

CREATE INDEX artifacts_by_kind ON artifacts (kind, recorded_at);

CREATE INDEX artifacts_by_producer ON artifacts (producer_key);

-- input_digest refers to nothing on purpose: an ancestor may be gone, or live in another store.
CREATE TABLE artifact_inputs (
    digest TEXT NOT NULL REFERENCES artifacts (digest) ON DELETE CASCADE,
    name TEXT NOT NULL,
    input_digest TEXT NOT NULL,
    PRIMARY KEY (digest, name)
);

CREATE INDEX artifact_inputs_by_input ON artifact_inputs (input_digest);

CREATE TABLE stages (
    key TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    completed_at TEXT NOT NULL
);

CREATE TABLE stage_outputs (
    key TEXT NOT NULL REFERENCES stages (key) ON DELETE CASCADE,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (key, name)
);

CREATE INDEX stage_outputs_by_digest ON stage_outputs (digest);

CREATE TABLE runs (
    id TEXT NOT NULL PRIMARY KEY,
    recipe TEXT NOT NULL,
    recipe_digest TEXT NOT NULL,
    recipe_json TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('running', 'finished', 'failed', 'interrupted')),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    seed BIGINT NOT NULL,
    pid BIGINT,
    host TEXT,
    error TEXT
);

CREATE TABLE run_stages (
    run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    position BIGINT NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'running', 'reused', 'finished', 'failed')),
    key TEXT,
    inputs TEXT NOT NULL,
    outputs TEXT NOT NULL,
    summary TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT,
    seconds DOUBLE PRECISION,
    PRIMARY KEY (run_id, name)
);

CREATE TABLE refs (
    name TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL,
    updated_at TEXT NOT NULL
);

CREATE TABLE releases (
    lane TEXT NOT NULL,
    position BIGINT NOT NULL,
    digest TEXT NOT NULL,
    previous TEXT,
    published_at TEXT NOT NULL,
    PRIMARY KEY (lane, position)
);

CREATE TABLE journal (
    sequence BIGINT NOT NULL PRIMARY KEY,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    data TEXT NOT NULL,
    previous TEXT,
    digest TEXT NOT NULL UNIQUE
);

-- only: sqlite
CREATE TRIGGER journal_no_update BEFORE UPDATE ON journal
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;

-- only: sqlite
CREATE TRIGGER journal_no_delete BEFORE DELETE ON journal
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;

-- only: sqlite
-- Also stops INSERT OR REPLACE, which removes a row without asking the trigger for deletions.
CREATE TRIGGER journal_next_only BEFORE INSERT ON journal
WHEN NEW.sequence <> (SELECT COALESCE(MAX(sequence), 0) + 1 FROM journal)
    OR NEW.previous IS NOT (SELECT digest FROM journal ORDER BY sequence DESC LIMIT 1)
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;

-- only: postgresql
CREATE FUNCTION journal_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the journal is append-only';
END $$;

-- only: postgresql
CREATE FUNCTION journal_check_next() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    head journal%ROWTYPE;
BEGIN
    SELECT * INTO head FROM journal ORDER BY sequence DESC LIMIT 1;
    IF NEW.sequence <> COALESCE(head.sequence, 0) + 1 OR NEW.previous IS DISTINCT FROM head.digest THEN
        RAISE EXCEPTION 'the journal is append-only';
    END IF;
    RETURN NEW;
END $$;

-- only: postgresql
CREATE TRIGGER journal_no_change BEFORE UPDATE OR DELETE ON journal
    FOR EACH ROW EXECUTE FUNCTION journal_refuse();

-- only: postgresql
CREATE TRIGGER journal_no_truncate BEFORE TRUNCATE ON journal
    FOR EACH STATEMENT EXECUTE FUNCTION journal_refuse();

-- only: postgresql
CREATE TRIGGER journal_next_only BEFORE INSERT ON journal
    FOR EACH ROW EXECUTE FUNCTION journal_check_next();
