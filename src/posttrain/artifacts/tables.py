"""The registry's tables as SQLAlchemy Core sees them; ``migrations/`` makes them, a test compares the two."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, MetaData, Table, Text

metadata = MetaData()

schema_migrations = Table(
    "schema_migrations",
    metadata,
    Column("number", BigInteger, primary_key=True),
    Column("name", Text, nullable=False),
    Column("applied_at", Text, nullable=False),
)
artifacts = Table(
    "artifacts",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("recorded_at", Text, nullable=False),
)
provenance = Table(
    "provenance",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("record", Text, primary_key=True),
    Column("document", Text, nullable=False),
)
provenance_inputs = Table(
    "provenance_inputs",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("record", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("input_digest", Text, nullable=False),
)
stages = Table(
    "stages",
    metadata,
    Column("key", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("completed_at", Text, nullable=False),
)
stage_outputs = Table(
    "stage_outputs",
    metadata,
    Column("key", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("digest", Text, nullable=False),
)
runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("recipe", Text, nullable=False),
    Column("recipe_digest", Text, nullable=False),
    Column("recipe_json", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("pid", BigInteger),
    Column("host", Text),
    Column("error", Text),
)
run_stages = Table(
    "run_stages",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("key", Text),
    Column("inputs", Text, nullable=False),
    Column("outputs", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("started_at", Text),
    Column("finished_at", Text),
    Column("seconds", Double),
)
refs = Table(
    "refs",
    metadata,
    Column("name", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
)
releases = Table(
    "releases",
    metadata,
    Column("lane", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("previous", Text),
    Column("published_at", Text, nullable=False),
)
journal = Table(
    "journal",
    metadata,
    Column("sequence", BigInteger, primary_key=True),
    Column("at", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("previous", Text),
    Column("digest", Text, nullable=False),
)

INDEX = (artifacts, provenance, provenance_inputs, stages, stage_outputs)
"""What can be built again from the manifests."""
