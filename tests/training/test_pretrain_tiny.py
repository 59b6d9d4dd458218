"""The base model: learns, is the same for the same seed, resumes exactly, and its text keeps off the held-out side."""

from __future__ import annotations

import itertools
import random

import pytest

from posttrain.artifacts.stage import StageContext
from posttrain.core.errors import Interrupted
from posttrain.core.events import Event
from posttrain.data.base_text import BaseTextConfig, write_answer
from posttrain.data.word_problems import problems, split_of
from posttrain.training.stages import pretrain_tiny
from tests.training.conftest import Bench, small_pretraining


def test_loss_falls_and_the_outputs_are_complete(shared_bench: Bench, tiny_base: dict[str, object]) -> None:
    rows = [e.data for e in shared_bench.events if e.kind == "progress" and "loss" in e.data]
    # Other stages may have run on the shared bench meanwhile: the base's rows are those before steps begin again.
    end = next((i for i in range(1, len(rows)) if rows[i]["step"] <= rows[i - 1]["step"]), len(rows))
    assert rows[end - 1]["loss"] < 0.5 * rows[0]["loss"]
    names = {entry.path for entry in tiny_base["model"].files}  # type: ignore[attr-defined]
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


@pytest.mark.parametrize("stop_after", [10, 25])
def test_a_stopped_run_resumes_to_the_same_bytes(bench: Bench, stop_after: int) -> None:
    config = small_pretraining(steps=30, batch_tokens=512, save_every=10)
    whole = bench.run(pretrain_tiny.run_pretrain_tiny, config, work="whole")

    stopped = bench.context("run_pretrain_tiny", config, {}, work="stopped")

    def stop_late(event: Event) -> None:
        if event.kind == "progress" and event.data["step"] >= stop_after // 10 * 10:
            stopped.stop.requested = True

    interrupted = StageContext(
        **{f: getattr(stopped, f) for f in ("store", "stage", "kind", "key", "workdir", "stop")},
        events=stop_late,
    )
    with pytest.raises(Interrupted):
        pretrain_tiny.run_pretrain_tiny(config, {}, interrupted)
    stopped.stop.requested = False
    resumed = pretrain_tiny.run_pretrain_tiny(config, {}, stopped)
    assert {n: a.files for n, a in resumed.outputs.items()} == {n: a.files for n, a in whole.outputs.items()}
    assert any(event.kind == "stage_resumed" for event in bench.events)


def test_another_seed_gives_another_model(bench: Bench) -> None:
    few = small_pretraining(steps=3)
    first = bench.run(pretrain_tiny.run_pretrain_tiny, few).outputs["model"]
    second = bench.run(pretrain_tiny.run_pretrain_tiny, small_pretraining(steps=3, seed=1)).outputs["model"]
    assert first.digest != second.digest


def test_no_equation_of_the_heldout_side_is_in_the_text() -> None:
    config = small_pretraining(problems={"max_steps": 3, "max_value": 20})
    heldout = problems(0, "heldout", max_steps=3, max_value=20, heldout_share=0.1)
    chains = {problem.chain for problem in itertools.islice(heldout, 500)}
    train = problems(5, "train", max_steps=3, max_value=20, heldout_share=0.1)
    assert not chains & {problem.chain for problem in itertools.islice(train, 5000)}
    assert config.problems.heldout_share == 0.1
    assert all(split_of(chain, 0.1) == "heldout" for chain in chains)


def test_the_text_is_uneven_in_several_ways() -> None:
    """The base is a fair one: it sees good answers, and errors of several kinds."""
    rng, config = random.Random(0), BaseTextConfig()
    stream = problems(1, "train", max_steps=3, max_value=20, heldout_share=0.1)
    good = wrong = formless = mixed = 0
    for problem in itertools.islice(stream, 2000):
        text = write_answer(rng, problem, config)
        in_form = (
            text.startswith("<think>") and text.count("</think><answer>") == 1 and text.endswith("</answer>")
        )
        in_form = in_form and text.count("<answer>") == 1
        right = f"<answer>{problem.answer}</answer>" in text
        good += in_form and right
        wrong += in_form and not right
        formless += not in_form
        mixed += problem.language == "en" and any("一" <= letter <= "鿿" for letter in text)
    assert good > 600
    assert wrong > 400
    assert formless > 300
    assert mixed > 80
