"""The world of the release tests: lesson L05's two experiments as real files, and what can be done to them."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.artifacts.home import Home, open_home
from posttrain.artifacts.records import Artifact, RunRecord, RunStageRecord
from posttrain.core.canonical import canonical_json, digest_bytes
from posttrain.core.settings import Settings
from posttrain.releases.policies import Limit, RollbackPolicy, SloPolicy, Trigger
from posttrain.releases.records import (
    Adapter,
    ArtifactPiece,
    Code,
    ExternalPiece,
    FilesPiece,
    GateDecision,
    ReleaseManifest,
    Result,
)

L08_EXAMPLE = """{
  "llm_sha": "LLM@abc123",
  "adapters": ["lora_med_safety_v2@e91f", "lora_math_v1@bb07"],
  "input_sha": "INPUT@p1e3",
  "tokenizer_sha": "TOK@t99",
  "sampling": {"temperature": 0.2, "top_p": 0.9},
  "reward_model_sha": "RM_EVAL@9af2",
  "verifiers": {"json_schema": "v4.3", "span": "v2.1", "unit_tests": "v2.0"},
  "tools": {"search_api": "3.2.1", "fixtures": "search_v3.json", "repo_sha": "GIT_SHA_CODEBASE_V3"}
}"""
"""As the lesson has it, to the character."""

CONTRACT = "accuracy >= 0.90\n"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Experiment(NamedTuple):
    """One of L05's experiments, its pieces in a home and its spec file beside its files."""

    folder: Path
    spec: Path
    model: Artifact
    dataset: Artifact


def release_home(folder: Path, registry_url: str | None = None, mirror_url: str | None = None) -> Home:
    return open_home(Settings(home=folder, registry_url=registry_url, mirror_url=mirror_url))


def safetensors(values: list[float]) -> bytes:
    """A safetensors file with one tensor."""
    data = struct.pack(f"<{len(values)}f", *values)
    tensor = {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(data)]}
    header = json.dumps({"weight": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + data


def keep(
    home: Home,
    kind: str,
    files: Mapping[str, bytes],
    *,
    inputs: Mapping[str, str] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Artifact:
    """An artifact in the store and in the index."""
    with home.store.writer(kind, inputs=inputs, meta=meta) as writer:
        for name, data in files.items():
            writer.add_bytes(name, data)
        artifact = writer.commit()
    home.registry.record(artifact)
    return artifact


def keep_model(home: Home, seed: float, inputs: Mapping[str, str] | None = None) -> Artifact:
    files = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": safetensors([seed, seed + 1, seed + 2]),
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b'{"eos_token": "</s>"}',
        "chat_template.jinja": TEMPLATE.encode(),
    }
    return keep(home, "model", files, inputs=inputs)


def experiment(
    home: Home, folder: Path, version: str, accuracy: float, parent: str | None = None
) -> Experiment:
    """``user_feedback_v1.2.jsonl``, ``hyperparams_v1.2.yaml``, a checkpoint, ``accuracy_92.5%.json``: frozen."""
    here = folder / f"experiment_{version}"
    here.mkdir(parents=True)
    name, percent = f"v{version}", f"{accuracy * 100:.1f}%"
    rows = [{"prompt": f"{version}: question {n}", "completion": str(n)} for n in range(5)]
    feedback = "".join(json.dumps(row) + "\n" for row in rows).encode()
    dataset = keep(home, "dataset", {f"user_feedback_{name}.jsonl": feedback})
    model = keep_model(home, float(version), {"examples": dataset.digest})
    (here / f"hyperparams_{name}.yaml").write_text(f"learning_rate: {accuracy / 1000}\nepochs: 2\n")
    (here / f"accuracy_{percent}.json").write_text(json.dumps({"accuracy": accuracy, "cases": 200}))
    (here / "promote.rules").write_text(CONTRACT)
    spec = here / "release.yaml"
    spec.write_text(
        f"name: {name}\n"
        f"model: {model.digest}\n"
        "sampling: {temperature: 0.2, top_p: 0.9}\n"
        "verifiers: {json_schema: v4.3}\n"
        "tools: {search_api: '3.2.1'}\n"
        f"configuration: {{hyperparams: {{file: hyperparams_{name}.yaml}}}}\n"
        "code: {commit: a4b7c1da34brh4}\n"
        f"results: {{held_out: {{file: 'accuracy_{percent}.json'}}}}\n"
        "contract: {file: promote.rules}\n"
        "rollback:\n"
        "  limits: [{metric: accuracy, at_least: 0.9}]\n"
        "  triggers: [{name: outage, kind: hard_trip, metric: error_rate, above: 0.05}]\n"
        + (f"parent: {parent}\n" if parent else "")
    )
    return Experiment(here, spec, model, dataset)


def every_byte(home: Home, digest: str) -> dict[str, bytes]:
    """The bytes of a release and of everything in its lineage, by artifact and path, read past the store."""
    found: dict[str, bytes] = {}
    waiting = [digest]
    while waiting:
        name = waiting.pop()
        found[f"{name}/manifest"] = home.store.manifest_path(name).read_bytes()
        artifact = home.store.read_manifest(name)
        for entry in artifact.files:
            found[f"{name}/{entry.path}"] = home.store.object_path(entry.digest).read_bytes()
        waiting += artifact.inputs.values()
    return found


def flip(path: Path, position: int = -1) -> None:
    """Change one bit of a read-only file, its times left as they were."""
    import os

    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    path.chmod(0o444)


def keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A private and a public key, as the documentation says to make them."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
    subprocess.run(make, check=True, capture_output=True)
    subprocess.run(
        ["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True
    )
    return private, public


def decide(home: Home, model: Artifact, *, outcome: str = "GO", contract: str = CONTRACT) -> Artifact:
    """A decision over a report of ``model``, with the fields that a release reads."""
    report = keep(home, "report", {"report.json": b"{}"}, inputs={"model": model.digest}, meta={"cases": 200})
    record = json.dumps({"outcome": outcome, "contract": contract}).encode()
    inputs = {"candidate": report.digest}
    return keep(home, "decision", {"decision.json": record}, inputs=inputs, meta={"outcome": outcome})


def keep_run(home: Home, run_id: str, stages: list[RunStageRecord], recipe: Mapping[str, Any]) -> None:
    raw = canonical_json(dict(recipe))
    at = "2026-11-25T00:00:00Z"
    record = RunRecord(run_id, "toy", digest_bytes(raw), json.dumps(recipe), at, at, status="finished")
    home.registry.create_run(record, stages)


def full_manifest() -> ReleaseManifest:
    """A manifest with every field set: the golden file."""

    def digest(text: str) -> str:
        return digest_bytes(text.encode())

    return ReleaseManifest(
        name="v1.3",
        base=ArtifactPiece(digest=digest("base"), kind="model"),
        adapters=(
            Adapter(name="lora_med_safety_v2", piece=ArtifactPiece(digest=digest("med"), kind="adapter")),
            Adapter(name="lora_math_v1", piece=ExternalPiece(system="label", reference="lora_math_v1@bb07")),
        ),
        tokenizer=FilesPiece(
            artifact=digest("base"),
            files={"tokenizer.json": digest("t"), "tokenizer_config.json": digest("tc")},
        ),
        chat_template=FilesPiece(artifact=digest("base"), files={"chat_template.jinja": digest("j")}),
        input_processing=FilesPiece(files={"pieces/input_processing/system.txt": digest("s")}),
        sampling={"temperature": 0.2, "top_p": 0.9, "max_tokens": 512, "stop": ["</answer>"]},
        reward_models={"helpful": ArtifactPiece(digest=digest("rm"), kind="model")},
        verifiers={"json_schema": ExternalPiece(system="version", reference="v4.3")},
        tools={
            "search_api": ExternalPiece(system="api", reference="search@3.2.1"),
            "fixtures": FilesPiece(files={"pieces/tools.fixtures/search_v3.json": digest("f")}),
        },
        data={"user_feedback": ArtifactPiece(digest=digest("d"), kind="dataset")},
        configuration={"recipe": FilesPiece(files={"pieces/configuration.recipe/recipe.json": digest("r")})},
        code=Code(commit="a4b7c1da34", dirty=False, posttrain="0.1.0"),
        results={
            "held_out": Result(
                report=ArtifactPiece(digest=digest("rep"), kind="report"),
                headline={"accuracy": 0.925, "cases": 200},
            )
        },
        contract=FilesPiece(files={"pieces/contract/promote.rules": digest("c")}),
        decision=GateDecision(piece=ArtifactPiece(digest=digest("dec"), kind="decision"), outcome="GO"),
        slo=SloPolicy(objectives=(Limit(metric="p99_latency_ms", slice="math", at_most=1500),)),
        rollback=RollbackPolicy(
            limits=(Limit(metric="json_valid_rate", at_least=0.97),),
            triggers=(
                Trigger(name="outage", kind="hard_trip", metric="error_rate", above=0.05, min_requests=50),
            ),
        ),
        drift_profile=ArtifactPiece(digest=digest("drift"), kind="profile"),
        parent=digest("v1.2"),
    )
