-- An artifact may have come about in several ways: what it was made from stands by provenance. Inputs that stand in the
-- manifest itself have the record "manifest". A document is canonical JSON.

CREATE TABLE provenance (
    digest TEXT NOT NULL REFERENCES artifacts (digest) ON DELETE CASCADE,
    record TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (digest, record)
);

-- input_digest refers to nothing on purpose: an ancestor may be gone, or live in another store.
CREATE TABLE provenance_inputs (
    digest TEXT NOT NULL REFERENCES artifacts (digest) ON DELETE CASCADE,
    record TEXT NOT NULL,
    name TEXT NOT NULL,
    input_digest TEXT NOT NULL,
    PRIMARY KEY (digest, record, name)
);

CREATE INDEX provenance_inputs_by_input ON provenance_inputs (input_digest);

INSERT INTO provenance_inputs (digest, record, name, input_digest)
    SELECT digest, 'manifest', name, input_digest FROM artifact_inputs;

DROP TABLE artifact_inputs;

DROP INDEX artifacts_by_producer;

ALTER TABLE artifacts DROP COLUMN producer_stage;

ALTER TABLE artifacts DROP COLUMN producer_key;

ALTER TABLE artifacts DROP COLUMN producer_output;
