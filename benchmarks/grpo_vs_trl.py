"""The ``grpo`` stage beside a bare TRL script: what checkpoints, health, killable verifiers and lineage cost.

Here: a tiny base model is made once; then both sides train it in turn, each in a fresh process. ``_ours`` is the
stage as a recipe runs it. ``_bare`` is the script that a user would write instead: GRPOTrainer, settings by hand,
regular expressions for rewards, nothing of posttrain imported. Same data, seed, checkpoint cadence and completion log;
the same loss curve and final weights are required, else the figures are void. That is asked of the stage with
``share_prompts: false``, which draws as TRL does; the stage as it ships (``shared``) draws otherwise and is timed
beside the same script. Not here: GPUs, vLLM.

Training time is taken around ``trainer.train()`` on both sides. The stage's preflight (one prompt, one completion: the
least it accepts) and what it writes afterwards (tables, figures, an artifact each) are in the whole-process rows only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import (
    ROOT,
    THREADS,
    Outcome,
    Pairs,
    Row,
    Size,
    Values,
    descendants_cpu_seconds,
    measure,
    pair,
    quiet_environment,
    reaped_cpu_seconds,
)

CURVE = (
    "loss",
    "grad_norm",
    "reward",
    "rewards/accuracy/mean",
    "rewards/format/mean",
    "completions/mean_length",
    "entropy",
)
"""Columns of the trainer's log that must be equal, bit for bit, at every step."""
_TARGET = 1.03


@dataclass(frozen=True, slots=True)
class Shape:
    """How much work a run is. The default is the recipe ``r1-zero-tiny`` with fewer steps."""

    steps: int = 10
    prompts_per_step: int = 16
    completions: int = 16
    max_completion_tokens: int = 56
    save_every: int = 10
    prompts: int = 512
    chain: int = 3
    """Longest chain of operations in a problem."""
    max_value: int = 20
    base_steps: int = 200
    hidden_size: int = 128
    layers: int = 4


_SHAPES = {
    "default": Shape(),
    "smallest": Shape(
        steps=4,
        prompts_per_step=4,
        completions=8,
        max_completion_tokens=40,
        save_every=2,
        prompts=64,
        chain=1,
        max_value=10,
        base_steps=120,
        hidden_size=64,
        layers=2,
    ),
}


def run(size: Size, rounds: int) -> Outcome:
    """One training on each side a round."""
    shape = _SHAPES[size]
    environment = quiet_environment()
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as name:
        folder = Path(name)
        base = _child("base", {"shape": asdict(shape), "home": str(folder / "base")}, environment, folder)
        results: dict[str, list[dict[str, Any]]] = {"ours": [], "shared": [], "bare": []}

        def side(kind: str) -> Callable[[int], Values]:
            def train(number: int) -> Values:
                job = {
                    **base["result"],
                    "shape": asdict(shape),
                    "folder": str(folder / f"{kind}-{len(results[kind])}"),
                    "share_prompts": kind == "shared",
                }
                child = _child(kind, job, environment, folder)
                results[kind].append(child["result"])
                values: Values = child["values"]
                return values

            return train

        pairs = pair(rounds, side("ours"), side("bare"))
        faster = pair(rounds, side("shared"), side("bare"))
    faults = differences(results["ours"], results["bare"])
    return Outcome(
        rows=[*_rows(pairs), *_rows(faster, "prompts shared, ")],
        notes=_notes(shape, pairs, equal=not faults),
        facts={name: found[0] for name, found in results.items()},
        faults=faults,
    )


def differences(ours: Sequence[Mapping[str, Any]], bare: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a curve or the final weights of any run differ from those of the first bare run; empty where nowhere."""
    expected, found = bare[0], []
    for name, result in [("the stage", r) for r in ours] + [("the bare script", r) for r in bare[1:]]:
        for step, (row, wanted) in enumerate(zip(result["curve"], expected["curve"], strict=True), start=1):
            off = [column for column in CURVE if row[column] != wanted[column]]
            if off:
                values = ", ".join(f"{column} {row[column]!r} for {wanted[column]!r}" for column in off)
                found.append(f"step {step} of {name} differs: {values}")
                break
        if result["weights"] != expected["weights"]:
            found.append(f"the final weights of {name} differ")
    return found


def _rows(pairs: Pairs, prefix: str = "") -> list[Row]:
    peer = "bare TRL script"

    def steps(what: str, start: str) -> Row:
        names = sorted(name for name in pairs.ours[0] if name.startswith(start))
        ours, theirs = ([run[name] for run in side for name in names] for side in (pairs.ours, pairs.theirs))
        return Row(f"{prefix}{what}", peer, ours, theirs, target=_TARGET)

    return [
        steps("one step, wall", "step_wall_"),
        steps("one step, processor", "step_cpu_"),
        pairs.row(f"{prefix}train(), wall", "train_wall", peer, target=_TARGET),
        pairs.row(f"{prefix}train(), processor", "train_cpu", peer, target=_TARGET),
        pairs.row(f"{prefix}process, wall", "process_wall", peer),
        pairs.row(f"{prefix}process, processor", "process_cpu", peer),
    ]


def _notes(shape: Shape, pairs: Pairs, *, equal: bool) -> list[str]:
    def middle(sides: Sequence[Values], name: str) -> str:
        return f"{median(values[name] for values in sides):.1f} s"

    return [
        f"{shape.steps} steps of {shape.prompts_per_step} x {shape.completions} completions, a checkpoint every "
        f"{shape.save_every}, every completion logged, on both sides; loss curve, rewards, gradient norms and final "
        f"weights {'are equal bit for bit' if equal else 'DIFFER'}",
        "process: with imports, loading, the stage's preflight (1 prompt, 1 completion) and the artifacts it writes; "
        f"wall before train() {middle(pairs.ours, 'before_wall')} against {middle(pairs.theirs, 'before_wall')}, after "
        f"it {middle(pairs.ours, 'after_wall')} against {middle(pairs.theirs, 'after_wall')}",
        "processor: the whole process tree, verifier workers included; one step: the same step of the two runs of a "
        "pair, logging and saving included, the median over all of them",
    ]


def _child(kind: str, job: Mapping[str, Any], environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own; what it found and what it cost."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    started, cpu = time.perf_counter(), reaped_cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.grpo_vs_trl", kind, json.dumps({**job, "answer": str(answer)})],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wall, cpu = time.perf_counter() - started, reaped_cpu_seconds() - cpu
    if done.returncode != 0:
        raise RuntimeError(f"the {kind} side ended with {done.returncode}:\n{done.stderr[-4000:]}")
    result = json.loads(answer.read_text(encoding="utf-8"))
    values = result.pop("values", {})
    if values:
        values |= {"process_wall": wall, "process_cpu": cpu}
        values["after_wall"] = wall - values["before_wall"] - values["train_wall"]
    return {"result": result, "values": values}


# -- inside the child processes ----------------------------------------------------------------------


def _base(job: Mapping[str, Any]) -> dict[str, Any]:
    """Make the prompts and the base model, once for all runs; load what both sides import, so that it is cached."""
    import trl.trainer.grpo_trainer  # noqa: F401 - its byte code is warm from here on

    from posttrain.artifacts.store import ArtifactStore
    from posttrain.data.base_text import BaseTextConfig
    from posttrain.data.prompt_sources import PromptsConfig, WordProblemSource, run_prompts
    from posttrain.training.stages.pretrain_tiny import PretrainTinyConfig, run_pretrain_tiny

    shape, home = Shape(**job["shape"]), Path(job["home"])
    problems = WordProblemSource(max_steps=shape.chain, max_value=shape.max_value)
    questions = PromptsConfig(source=problems, train=shape.prompts, heldout=1)
    drawn = run_prompts(questions, {}, _context(home, "prompts", {}))
    config = PretrainTinyConfig(
        problems=problems,
        text=BaseTextConfig(open_share=0.0, judged_share=0.0),
        steps=shape.base_steps,
        hidden_size=shape.hidden_size,
        intermediate_size=3 * shape.hidden_size,
        layers=shape.layers,
        heads=shape.hidden_size // 32,
    )
    made = run_pretrain_tiny(config, {}, _context(home, "pretrain_tiny", {}))
    store, outputs = ArtifactStore(home), {"prompts": drawn.outputs["train"], "model": made.outputs["model"]}
    for artifact in outputs.values():
        store.view(artifact)
    return {"home": str(home), **{name: artifact.digest for name, artifact in outputs.items()}}


def _ours(job: Mapping[str, Any]) -> dict[str, Any]:
    """The stage, on a copy of the store, with a timer around TRL's ``train``."""
    import shutil

    import pyarrow.parquet
    import trl

    from posttrain.training.health import HealthConfig, Limit
    from posttrain.training.metrics import METRICS_FILE
    from posttrain.training.preflight import PreflightConfig
    from posttrain.training.stages.grpo import GrpoConfig, run_grpo

    shape, home = Shape(**job["shape"]), Path(job["folder"])
    shutil.copytree(job["home"], home)
    values: dict[str, float] = {}
    original = trl.GRPOTrainer.train

    def train(self: Any, *arguments: Any, **options: Any) -> Any:
        return _timed_training(values, self, lambda: original(self, *arguments, **options))

    trl.GRPOTrainer.train = train
    config = GrpoConfig(
        steps=shape.steps,
        prompts_per_step=shape.prompts_per_step,
        completions=shape.completions,
        max_completion_tokens=shape.max_completion_tokens,
        save_every=shape.save_every,
        device="cpu",
        share_prompts=job["share_prompts"],
        preflight=PreflightConfig(prompts=1, samples=1, gold=1, max_dead_share=1),
        # Watched all the same, but a short run of a bad model must not be stopped for it.
        health=HealthConfig(divergence=Limit(value=0.15), max_none=Limit(value=0.2)),
    )
    digests = {"model": job["model"], "prompts": job["prompts"]}
    context = _context(home, "grpo", digests)
    result = run_grpo(config, {name: context.store.get(digest) for name, digest in digests.items()}, context)
    table = pyarrow.parquet.read_table(context.store.file(result.outputs["metrics"], METRICS_FILE))
    weights = context.store.file(result.outputs["model"], "model.safetensors")
    return {"curve": _curve(table.to_pylist()), "weights": _digest(weights), "values": values}


def _bare(job: Mapping[str, Any]) -> dict[str, Any]:
    """Plain TRL, as a user would write it; nothing of posttrain is imported."""
    import re

    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(THREADS)
    shape, model = Shape(**job["shape"]), _laid_out(job, "model")
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    think_then_answer = re.compile(
        r"\s*<think>.*?\S.*?</think>\s*<answer>[^<]*[^<\s][^<]*</answer>\s*", re.DOTALL
    )

    # The text as written: for a tokenizer with a response template, what TRL hands over as `content` is a parsed part.
    def texts(completion_ids: Any) -> list[str]:
        return list(tokenizer.batch_decode(completion_ids, skip_special_tokens=True))

    def accuracy(completion_ids: Any, answer: Sequence[str], **_: Any) -> list[float]:
        scores = []
        for text, gold in zip(texts(completion_ids), answer, strict=True):
            outside = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
            given = {found.strip() for found in re.findall(r"<answer>([^<]*)</answer>", outside)}
            scores.append(1.0 if given == {gold} else 0.0)
        return scores

    def format(completion_ids: Any, **_: Any) -> list[float]:  # noqa: A001 - the name that TRL logs
        return [
            float(
                len(re.findall(r"</?(?:think|answer)>", text)) == 4
                and bool(think_then_answer.fullmatch(text))
            )
            for text in texts(completion_ids)
        ]

    data = load_dataset("json", data_files=str(_laid_out(job, "prompts") / "prompts.jsonl"), split="train")
    data = data.map(
        lambda row: {"prompt": [{"role": "user", "content": row["question"]}]},
        remove_columns=[name for name in data.column_names if name != "answer"],
    )
    total = shape.prompts_per_step * shape.completions
    trainer = GRPOTrainer(
        model=str(model),
        processing_class=tokenizer,
        reward_funcs=[accuracy, format],
        train_dataset=data,
        args=GRPOConfig(
            output_dir=str(Path(job["folder"]) / "trainer"),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=total,
            num_generations=shape.completions,
            max_completion_length=shape.max_completion_tokens,
            temperature=1.0,
            top_k=0,
            learning_rate=3e-4,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=3,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            beta=0.0,
            loss_type="dapo",
            reward_weights=[1.0, 0.1],
            max_steps=shape.steps,
            logging_steps=1,
            log_completions=True,
            num_completions_to_print=0,
            save_steps=shape.save_every,
            save_total_limit=2,
            seed=0,
            report_to=[],
            disable_tqdm=True,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        ),
    )
    values: dict[str, float] = {}
    _timed_training(values, trainer, trainer.train)
    trainer.save_model(job["folder"])
    rows = [row for row in trainer.state.log_history if "reward" in row]
    return {
        "curve": _curve(rows),
        "weights": _digest(Path(job["folder"]) / "model.safetensors"),
        "values": values,
    }


def _timed_training(values: dict[str, float], trainer: Any, train: Callable[[], Any]) -> Any:
    """Call ``train``; note what it cost as a whole and step by step, and what came before it in this process."""
    import psutil
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):  # type: ignore[misc]
        """From the end of one step to the end of the next, with the logging and saving between them."""

        def now(self) -> tuple[float, float]:
            return time.perf_counter(), time.process_time() + descendants_cpu_seconds()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.last = self.now()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = self.now()
            values[f"step_wall_{state.global_step:05d}"] = now[0] - self.last[0]
            values[f"step_cpu_{state.global_step:05d}"] = now[1] - self.last[1]
            self.last = now

    trainer.add_callback(StepClock())
    values["before_wall"] = time.time() - psutil.Process().create_time()
    returned: list[Any] = []
    values |= {
        f"train_{name}": seconds for name, seconds in measure(lambda: returned.append(train())).items()
    }
    return returned[0]


def _context(home: Path, kind: str, digests: Mapping[str, str]) -> Any:
    from posttrain.artifacts.stage import StageContext
    from posttrain.artifacts.store import ArtifactStore
    from posttrain.core.canonical import digest_json

    workdir = home / "work" / kind
    workdir.mkdir(parents=True)
    return StageContext(
        store=ArtifactStore(home),
        stage=kind,
        kind=kind,
        key=digest_json(kind),
        workdir=workdir,
        input_digests=digests,
        threads=THREADS,
    )


def _laid_out(job: Mapping[str, Any], name: str) -> Path:
    """The folder of an artifact that the base process has laid out for the bare script."""
    return Path(job["home"]) / "views" / str(job[name]).removeprefix("sha256:")


def _curve(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{column: row[column] for column in CURVE} for row in rows]


def _digest(weights: Path) -> str:
    """A digest of the tensors in a file, by name; whatever else the file says is left out."""
    import hashlib

    from safetensors.numpy import load_file

    hasher = hashlib.sha256()
    for name, tensor in sorted(load_file(weights).items()):
        hasher.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return hasher.hexdigest()


def _main(kind: str, job: Mapping[str, Any]) -> None:
    answer = {"base": _base, "ours": _ours, "shared": _ours, "bare": _bare}[kind](job)
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
