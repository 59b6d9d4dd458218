"""Learning from preferences without a reward model: what is learned, resume, adapters, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow.parquet
import pytest

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageResult
from posttrain.core.errors import DataError, Interrupted
from posttrain.data.preference_sources import PreferencesConfig, run_preferences
from posttrain.data.preferences import PREFERENCES_FILE, preferences_to_jsonl, read_preferences
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, to_jsonl
from posttrain.engines.model_folder import load_model, load_tokenizer
from posttrain.training.rendering import render
from posttrain.training.stages.import_model import ImportModelConfig, run_import_model
from posttrain.training.stages.preference import (
    DpoConfig,
    KtoConfig,
    Pair,
    PreferenceTrainingConfig,
    labelled_rows,
    run_dpo,
    run_kto,
)
from tests.training.conftest import Bench

SMALL: dict[str, Any] = {
    "aspects": ("harmless",),
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 5e-4,
    "warmup_steps": 1,
    "save_every": 4,
}
Stage = Callable[..., StageResult]
BOTH = pytest.mark.parametrize(("stage", "kind"), [(run_dpo, DpoConfig), (run_kto, KtoConfig)])


@pytest.fixture(scope="module")
def pairs(shared_bench: Bench) -> Mapping[str, Artifact]:
    config = PreferencesConfig.model_validate(
        {"source": {"kind": "procedural", "aspect": "harmless"}, "train": 40, "heldout": 12, "ties": 4}
    )
    return shared_bench.run(run_preferences, config).outputs


def wired(base: Mapping[str, Artifact], pairs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    return {"model": base["model"], "preferences": pairs["train"], "heldout": pairs["heldout"]}


class Likelihood(NamedTuple):
    """Mean log-probability of replies, end of turn included, by rows that no stage has rendered."""

    chosen: float
    rejected: float


def likelihood(bench: Bench, model: Artifact, pairs: Artifact, rows: int = 40) -> Likelihood:
    import torch

    folder = bench.store.view(model)
    tokenizer, network = load_tokenizer(folder), load_model(folder)
    sums = [0.0, 0.0]
    taken = read_preferences(bench.store.view(pairs) / PREFERENCES_FILE)[:rows]
    for row in taken:
        prompt = tokenizer.apply_chat_template(
            list(row.messages), add_generation_prompt=True, return_dict=False
        )
        for side, text in enumerate((row.chosen, row.rejected)):
            reply = tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*prompt, *reply]])
            with torch.inference_mode():
                scores = network(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            sums[side] += scores.gather(1, ids[0, len(prompt) :, None]).sum().item()
    return Likelihood(*(value / len(taken) for value in sums))


@BOTH
def test_preferred_replies_become_likelier_and_a_stopped_run_ends_the_same(
    shared_bench: Bench,
    tiny_base: Mapping[str, Artifact],
    pairs: Mapping[str, Artifact],
    stage: Stage,
    kind: type[PreferenceTrainingConfig],
) -> None:
    config, inputs = kind.model_validate({**SMALL, "micro_batch": 4}), wired(tiny_base, pairs)
    whole = shared_bench.run(stage, config, inputs, work=f"{stage.__name__}-whole")
    table = pyarrow.parquet.read_table(
        shared_bench.store.file(whole.outputs["metrics"], "metrics.parquet")
    ).to_pylist()
    assert [row["step"] for row in table] == list(range(1, 11))
    assert table[-1]["loss"] < table[0]["loss"]
    assert table[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)  # the reference is the starting model
    assert "num_tokens" not in table[0]
    before = likelihood(shared_bench, tiny_base["model"], pairs["train"])
    after = likelihood(shared_bench, whole.outputs["model"], pairs["train"])
    assert after.chosen - after.rejected > before.chosen - before.rejected + 1

    context = shared_bench.context(stage.__name__, config, inputs, work=f"{stage.__name__}-stopped")
    steps: list[int] = []

    def stop_late(event: Any) -> None:
        if event.kind == "progress":
            steps.append(event.data["step"])
            context.stop.requested = event.data["step"] >= 6

    with pytest.raises(Interrupted):
        stage(config, inputs, replace(context, events=stop_late))
    assert steps == [1, 2, 3, 4, 5, 6]
    resumed = shared_bench.run(stage, config, inputs, work=f"{stage.__name__}-stopped").outputs
    assert {n: a.digest for n, a in resumed.items()} == {n: a.digest for n, a in whole.outputs.items()}


@BOTH
def test_adapters_are_merged_and_resume_exactly(
    shared_bench: Bench,
    tiny_base: Mapping[str, Artifact],
    pairs: Mapping[str, Artifact],
    stage: Stage,
    kind: type[PreferenceTrainingConfig],
) -> None:
    changes = {"epochs": 1, "save_every": 2, "learning_rate": 5e-3, "lora": {"rank": 4, "dropout": 0.1}}
    config, inputs = kind.model_validate({**SMALL, **changes}), wired(tiny_base, pairs)
    whole = shared_bench.run(stage, config, inputs, work=f"{stage.__name__}-lora")
    assert whole.summary["merge_gap"] < 1e-4
    assert not list(shared_bench.store.view(whole.outputs["model"]).glob("adapter*"))
    context = shared_bench.context(stage.__name__, config, inputs, work=f"{stage.__name__}-lora-stopped")

    def stop_late(event: Any) -> None:
        context.stop.requested |= event.kind == "progress" and event.data["step"] >= 3

    with pytest.raises(Interrupted):
        stage(config, inputs, replace(context, events=stop_late))
    resumed = shared_bench.run(stage, config, inputs, work=f"{stage.__name__}-lora-stopped").outputs
    assert resumed["model"].digest == whole.outputs["model"].digest
    dry = kind.model_validate({**SMALL, **changes, "lora": {"rank": 4}})
    assert shared_bench.run(stage, dry, inputs).outputs["model"].files != whole.outputs["model"].files


@pytest.mark.parametrize(
    "config",
    [
        DpoConfig.model_validate({**SMALL, "epochs": 1, "loss": "robust", "label_smoothing": 0.1}),
        DpoConfig.model_validate({**SMALL, "epochs": 1, "sft_weight": 0.5}),
        KtoConfig.model_validate({**SMALL, "epochs": 1, "loss": "apo_zero_unpaired"}),
    ],
)
def test_other_losses(
    shared_bench: Bench,
    tiny_base: Mapping[str, Artifact],
    pairs: Mapping[str, Artifact],
    config: DpoConfig | KtoConfig,
) -> None:
    stage = run_dpo if isinstance(config, DpoConfig) else run_kto
    done = shared_bench.run(stage, config, wired(tiny_base, pairs))
    assert done.summary["steps"] == 5
    before = likelihood(shared_bench, tiny_base["model"], pairs["train"])
    after = likelihood(shared_bench, done.outputs["model"], pairs["train"])
    assert after.chosen - after.rejected > before.chosen - before.rejected


@BOTH
def test_the_replies_and_their_ends_are_learned_and_nothing_else(
    shared_bench: Bench,
    tiny_base: Mapping[str, Artifact],
    pairs: Mapping[str, Artifact],
    stage: Stage,
    kind: type[PreferenceTrainingConfig],
) -> None:
    config = kind.model_validate({**SMALL, "epochs": 1, "batch_size": 40})
    outputs = shared_bench.run(stage, config, wired(tiny_base, pairs)).outputs
    read = pyarrow.parquet.read_table
    samples = read(shared_bench.store.file(outputs["samples"], "samples.parquet")).to_pylist()
    rows = read_preferences(shared_bench.store.view(pairs["train"]) / PREFERENCES_FILE)
    end = load_tokenizer(shared_bench.store.view(tiny_base["model"])).eos_token
    assert [(s["chosen"], s["rejected"]) for s in samples] == [
        (f"{row.chosen}{end}", f"{row.rejected}{end}") for row in rows
    ]
    assert all(row.messages[-1]["content"] in s["prompt"] for s, row in zip(samples, rows, strict=True))
    # One step over all pairs: what the trainer summed is the likelihood of exactly these replies.
    (step,) = read(shared_bench.store.file(outputs["metrics"], "metrics.parquet")).to_pylist()
    seen = likelihood(shared_bench, tiny_base["model"], pairs["train"])
    assert step["logps/chosen"] == pytest.approx(seen.chosen, rel=1e-4)
    assert step["logps/rejected"] == pytest.approx(seen.rejected, rel=1e-4)
    assert step["loss"] == pytest.approx(0.6931 if kind is DpoConfig else 0.5, abs=1e-3)


def test_where_the_template_opens_the_think_block(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], pairs: Mapping[str, Artifact]
) -> None:
    folder = str(shared_bench.store.view(tiny_base["model"]))
    prefilling = ImportModelConfig.model_validate(
        {"source": {"kind": "folder", "path": folder}, "think_prefill": True}
    )
    model = shared_bench.run(run_import_model, prefilling).outputs["model"]
    rows = read_preferences(shared_bench.store.view(pairs["train"]) / PREFERENCES_FILE)[:4]
    rows[0] = replace(rows[0], chosen="<think>Hm.</think>Yes.", rejected="No.")
    with shared_bench.store.writer("dataset") as writer:
        writer.add_bytes(PREFERENCES_FILE, preferences_to_jsonl(rows))
        mixed = writer.commit()
    config = DpoConfig.model_validate({**SMALL, "epochs": 1})
    outputs = shared_bench.run(run_dpo, config, {"model": model, "preferences": mixed}).outputs
    first = pyarrow.parquet.read_table(
        shared_bench.store.file(outputs["samples"], "samples.parquet")
    ).to_pylist()[0]
    end = load_tokenizer(shared_bench.store.view(model)).eos_token
    assert first["prompt"].endswith("<think>")
    assert (first["chosen"], first["rejected"]) == (f"Hm.</think>Yes.{end}", f"</think>No.{end}")


def numbered(count: int) -> list[Pair]:
    return [Pair([n], [100 + n], [200 + n]) for n in range(count)]


@pytest.mark.parametrize(("count", "micro_batch"), [(2, 1), (2, 2), (3, 2), (7, 3), (7, 5), (8, 8), (40, 21)])
def test_kto_rows_are_balanced_and_their_kl_replies_belong_to_other_prompts(
    count: int, micro_batch: int
) -> None:
    rows = labelled_rows(numbered(count), micro_batch=micro_batch, seed=1, kl=True)
    assert sorted(row["completion_ids"][0] for row in rows) == [
        side + n for side in (100, 200) for n in range(count)
    ]
    for row in rows:
        prompt = row["prompt_ids"][0]
        assert row["completion_ids"][0] == prompt + (100 if row["label"] else 200)
        assert row["KL_completion_ids"][0] % 100 != prompt
    for start in range(0, len(rows), 2 * micro_batch):
        batch = rows[start : start + 2 * micro_batch]
        assert sum(row["label"] for row in batch) * 2 == len(batch)
        # The same replies as those the rewards are taken of, each beside another prompt.
        assert sorted(r["KL_completion_ids"] for r in batch) == sorted(r["completion_ids"] for r in batch)
    assert rows == labelled_rows(numbered(count), micro_batch=micro_batch, seed=1, kl=True)
    again = [Pair([0], [1], [2]), Pair([0], [3], [4]), *numbered(6)[2:]]
    assert all(
        row["prompt_ids"] != [0] or row["KL_completion_ids"][0] > 100
        for row in labelled_rows(again, micro_batch=6, seed=1, kl=True)
    )
    assert "KL_completion_ids" not in labelled_rows(numbered(2), micro_batch=1, seed=1, kl=False)[0]


@BOTH
def test_what_is_refused(
    shared_bench: Bench,
    tiny_base: Mapping[str, Artifact],
    pairs: Mapping[str, Artifact],
    stage: Stage,
    kind: type[PreferenceTrainingConfig],
) -> None:
    inputs = wired(tiny_base, pairs)
    small = kind.model_validate(SMALL)
    with pytest.raises(DataError, match="12 training pairs ask a held-out question"):
        shared_bench.run(stage, small, {**inputs, "preferences": pairs["heldout"]})
    rows = read_preferences(shared_bench.store.view(pairs["train"]) / PREFERENCES_FILE)
    asked = [PromptRow("p", rows[0].messages[-1]["content"], "", task="open")]
    with shared_bench.store.writer("dataset") as writer:
        writer.add_bytes(PROMPTS_FILE, to_jsonl(asked))
        prompts = writer.commit()
    with pytest.raises(DataError, match="training pairs ask a held-out question"):
        shared_bench.run(stage, small, {**inputs, "heldout": prompts})
    with pytest.raises(DataError, match="of 40 rows are longer than 16 tokens") as failure:
        shared_bench.run(stage, kind.model_validate({**SMALL, "max_tokens": 16}), inputs)
    assert "max_tokens" in str(failure.value.hint)
    with pytest.raises(DataError, match="the training preferences are empty"):
        shared_bench.run(stage, kind.model_validate({**SMALL, "aspects": ("helpful",)}), inputs)


def test_long_pairs_are_dropped_whole_and_counted(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], pairs: Mapping[str, Artifact]
) -> None:
    rows = read_preferences(shared_bench.store.view(pairs["train"]) / PREFERENCES_FILE)[:16]
    tokenizer = load_tokenizer(shared_bench.store.view(tiny_base["model"]))
    limit = max(
        render(tokenizer, row.messages, text).tokens for row in rows for text in (row.chosen, row.rejected)
    )
    rows[3] = replace(rows[3], rejected=f"{rows[3].rejected} " * limit)
    with shared_bench.store.writer("dataset") as writer:
        writer.add_bytes(PREFERENCES_FILE, preferences_to_jsonl(rows))
        long = writer.commit()
    inputs = {"model": tiny_base["model"], "preferences": long}
    config = DpoConfig.model_validate({**SMALL, "epochs": 1, "max_tokens": limit, "too_long": "drop"})
    done = shared_bench.run(run_dpo, config, inputs)
    assert (done.summary["pairs"], done.summary["too_long"]) == (15, 1)
    assert done.summary["longest_tokens"] == limit


def test_one_pair_is_too_few_for_kto(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], pairs: Mapping[str, Artifact]
) -> None:
    rows = read_preferences(shared_bench.store.view(pairs["train"]) / PREFERENCES_FILE)[:1]
    with shared_bench.store.writer("dataset") as writer:
        writer.add_bytes(PREFERENCES_FILE, preferences_to_jsonl(rows))
        one = writer.commit()
    with pytest.raises(DataError, match="one pair is too few"):
        shared_bench.run(
            run_kto, KtoConfig.model_validate(SMALL), {"model": tiny_base["model"], "preferences": one}
        )


@pytest.mark.parametrize(
    ("kind", "changes", "key"),
    [
        (DpoConfig, {"micro_batch": 3}, "micro_batch"),
        (KtoConfig, {"micro_batch": 3}, "micro_batch"),
        (DpoConfig, {"loss": "robust"}, "label_smoothing"),
        (DpoConfig, {"label_smoothing": 0.1}, "label_smoothing"),
        (DpoConfig, {"aspects": ()}, "aspects"),
    ],
)
def test_settings_that_cannot_be_meant(
    kind: type[PreferenceTrainingConfig], changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(ValueError, match=key):
        kind.model_validate({**SMALL, **changes})
