BEGIN TRANSACTION;
CREATE TABLE artifact_inputs (
    digest TEXT NOT NULL REFERENCES artifacts (digest) ON DELETE CASCADE,
    name TEXT NOT NULL,
    input_digest TEXT NOT NULL,
    PRIMARY KEY (digest, name)
);
INSERT INTO "artifact_inputs" VALUES('sha256:fae7a48c8a17a26e78265adb7bd7aabfe61dce9f3a3970292cb7fe4b26918d54','prompts','sha256:164f324c67ffb3c8a4e9b87db882595e2bf6035ce245f4b497458c96ba9e312a');
INSERT INTO "artifact_inputs" VALUES('sha256:ae0ba3f2831b97105cf2982e22b4d2ced6eda92eb00bc7400fb6eb1eacddb20b','model','sha256:fae7a48c8a17a26e78265adb7bd7aabfe61dce9f3a3970292cb7fe4b26918d54');
INSERT INTO "artifact_inputs" VALUES('sha256:ae0ba3f2831b97105cf2982e22b4d2ced6eda92eb00bc7400fb6eb1eacddb20b','prompts','sha256:164f324c67ffb3c8a4e9b87db882595e2bf6035ce245f4b497458c96ba9e312a');
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
INSERT INTO "artifacts" VALUES('sha256:164f324c67ffb3c8a4e9b87db882595e2bf6035ce245f4b497458c96ba9e312a','dataset',8,'{"files":[{"digest":"sha256:86e5cd13e81936b90b708be96bcead57b0867da9db754ddb08ed9c1ced2acfc0","path":"text.txt","size_bytes":8}],"inputs":{},"kind":"dataset","meta":{"rows":1},"producer":{"key":"sha256:eb7526362ee7678cb5650f67d90cfdb84485363ca148ff3993ded032560941fb","output":"prompts","stage":"prompts"},"schema":1}','prompts','sha256:eb7526362ee7678cb5650f67d90cfdb84485363ca148ff3993ded032560941fb','prompts','2026-12-01T00:00:15.937349Z');
INSERT INTO "artifacts" VALUES('sha256:fae7a48c8a17a26e78265adb7bd7aabfe61dce9f3a3970292cb7fe4b26918d54','model',6,'{"files":[{"digest":"sha256:98ad61a25e3683b6adf2474b01bbe1c27de6aad2ce3a80ff4140fe473c14e691","path":"text.txt","size_bytes":6}],"inputs":{"prompts":"sha256:164f324c67ffb3c8a4e9b87db882595e2bf6035ce245f4b497458c96ba9e312a"},"kind":"model","meta":{"rows":1},"producer":{"key":"sha256:34aef458a17fddb8f7ca1bb43eb5f6c8a550994ffd039ff102a3c1d5e7fcf094","output":"model","stage":"sft"},"schema":1}','sft','sha256:34aef458a17fddb8f7ca1bb43eb5f6c8a550994ffd039ff102a3c1d5e7fcf094','model','2026-12-01T00:00:15.943463Z');
INSERT INTO "artifacts" VALUES('sha256:ae0ba3f2831b97105cf2982e22b4d2ced6eda92eb00bc7400fb6eb1eacddb20b','report',7,'{"files":[{"digest":"sha256:331d26d6d8f862e46ba900811be8a7a1e4dbaa229b14c99becfd5e5151490d95","path":"text.txt","size_bytes":7}],"inputs":{"model":"sha256:fae7a48c8a17a26e78265adb7bd7aabfe61dce9f3a3970292cb7fe4b26918d54","prompts":"sha256:164f324c67ffb3c8a4e9b87db882595e2bf6035ce245f4b497458c96ba9e312a"},"kind":"report","meta":{"rows":1},"producer":{"key":"sha256:10aca1d8b724381a8cbeb66e3dba3007ed1e40b0c2d9cca3448a22689311b936","output":"report","stage":"evaluate"},"schema":1}','evaluate','sha256:10aca1d8b724381a8cbeb66e3dba3007ed1e40b0c2d9cca3448a22689311b936','report','2026-12-01T00:00:15.948406Z');
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
INSERT INTO "journal" VALUES(1,'2026-12-01T00:00:15.966382Z','golden','release.published','dev','{"position":1,"previous":null,"release":"sha256:ae0ba3f2831b97105cf2982e22b4d2ced6eda92eb00bc7400fb6eb1eacddb20b"}',NULL,'sha256:445622dddd18aa81e3005621073205f6b6632eb1dd04c5c7de37bb4c6568bd17');
CREATE TABLE refs (
    name TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
INSERT INTO "refs" VALUES('best','sha256:fae7a48c8a17a26e78265adb7bd7aabfe61dce9f3a3970292cb7fe4b26918d54','2026-12-01T00:00:15.962454Z');
CREATE TABLE releases (
    lane TEXT NOT NULL,
    position BIGINT NOT NULL,
    digest TEXT NOT NULL,
    previous TEXT,
    published_at TEXT NOT NULL,
    PRIMARY KEY (lane, position)
);
INSERT INTO "releases" VALUES('dev',1,'sha256:ae0ba3f2831b97105cf2982e22b4d2ced6eda92eb00bc7400fb6eb1eacddb20b',NULL,'2026-12-01T00:00:15.965387Z');
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
INSERT INTO "run_stages" VALUES('20261130-210000-ab12','evaluate',0,'evaluate','finished','sha256:10aca1d8b724381a8cbeb66e3dba3007ed1e40b0c2d9cca3448a22689311b936','{"model":"sha256:fae7a48c8a17a26e78265adb7bd7aabfe61dce9f3a3970292cb7fe4b26918d54","prompts":"sha256:164f324c67ffb3c8a4e9b87db882595e2bf6035ce245f4b497458c96ba9e312a"}','{"report":"sha256:ae0ba3f2831b97105cf2982e22b4d2ced6eda92eb00bc7400fb6eb1eacddb20b"}','{}',NULL,NULL,NULL);
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
INSERT INTO "runs" VALUES('20261130-210000-ab12','small','sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a','{}','finished','2026-11-30T21:00:00Z','2026-11-30T21:05:00Z',7,NULL,NULL,NULL);
CREATE TABLE schema_migrations (
	number BIGINT NOT NULL, 
	name TEXT NOT NULL, 
	applied_at TEXT NOT NULL, 
	PRIMARY KEY (number)
);
INSERT INTO "schema_migrations" VALUES(1,'initial','2026-12-01T00:00:15.930753Z');
CREATE TABLE stage_outputs (
    key TEXT NOT NULL REFERENCES stages (key) ON DELETE CASCADE,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (key, name)
);
INSERT INTO "stage_outputs" VALUES('sha256:eb7526362ee7678cb5650f67d90cfdb84485363ca148ff3993ded032560941fb','prompts','sha256:164f324c67ffb3c8a4e9b87db882595e2bf6035ce245f4b497458c96ba9e312a');
INSERT INTO "stage_outputs" VALUES('sha256:34aef458a17fddb8f7ca1bb43eb5f6c8a550994ffd039ff102a3c1d5e7fcf094','model','sha256:fae7a48c8a17a26e78265adb7bd7aabfe61dce9f3a3970292cb7fe4b26918d54');
INSERT INTO "stage_outputs" VALUES('sha256:10aca1d8b724381a8cbeb66e3dba3007ed1e40b0c2d9cca3448a22689311b936','report','sha256:ae0ba3f2831b97105cf2982e22b4d2ced6eda92eb00bc7400fb6eb1eacddb20b');
CREATE TABLE stages (
    key TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    completed_at TEXT NOT NULL
);
INSERT INTO "stages" VALUES('sha256:eb7526362ee7678cb5650f67d90cfdb84485363ca148ff3993ded032560941fb','prompts','2026-12-01T00:00:15.951209Z');
INSERT INTO "stages" VALUES('sha256:34aef458a17fddb8f7ca1bb43eb5f6c8a550994ffd039ff102a3c1d5e7fcf094','sft','2026-12-01T00:00:15.953721Z');
INSERT INTO "stages" VALUES('sha256:10aca1d8b724381a8cbeb66e3dba3007ed1e40b0c2d9cca3448a22689311b936','evaluate','2026-12-01T00:00:15.955765Z');
CREATE INDEX artifacts_by_kind ON artifacts (kind, recorded_at);
CREATE INDEX artifacts_by_producer ON artifacts (producer_key);
CREATE INDEX artifact_inputs_by_input ON artifact_inputs (input_digest);
CREATE INDEX stage_outputs_by_digest ON stage_outputs (digest);
CREATE TRIGGER journal_no_update BEFORE UPDATE ON journal
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;
CREATE TRIGGER journal_no_delete BEFORE DELETE ON journal
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;
CREATE TRIGGER journal_next_only BEFORE INSERT ON journal
WHEN NEW.sequence <> (SELECT COALESCE(MAX(sequence), 0) + 1 FROM journal)
    OR NEW.previous IS NOT (SELECT digest FROM journal ORDER BY sequence DESC LIMIT 1)
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;
COMMIT;
