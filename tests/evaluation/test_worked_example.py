"""The specification's worked example: an answer that is fluent and wrong, and its corrected form.

The reward model here is a real one: a tiny model (two layers, vocabulary 512), with a score head that the stage
``reward_model`` trains on 240 procedural pairs. Preferred are whole answers to the question, right or wrong in
substance alike; rejected are the same words spelt backwards, an answer to another question, and a brush-off. So it
judges relevance and fluency and nothing else, as the example has it, and it is seen to refuse what is neither. Its
limit: at this size it reads words, not their order; a shuffled answer scores as high as the answer itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from posttrain.data.preference_sources import PreferencesConfig, run_preferences
from posttrain.engines.reward_scorer import RewardScorer
from posttrain.environments import Answer, Case, SliceSpec
from posttrain.environments.suites.policies import FluentButWrongPolicy, PerfectPolicy, build_policy, recorded
from posttrain.environments.suites.slices import build_slice
from posttrain.evaluation.graders import (
    GradingResources,
    SliceGraders,
    verifier_rows,
    verifier_table,
)
from posttrain.training.stages.pretrain_tiny import run_pretrain_tiny
from posttrain.training.stages.reward_model import RewardModelConfig, run_reward_model
from tests.training.conftest import Bench, small_pretraining

FLUENT_BUT_WRONG = """\
Here is how I would debug this:
1. Reinstall the SDK:
```bash
pip install search-sdk
```
2. Use the lookup method to verify:
```python
from search_sdk import SearchClient

client = SearchClient()
print(client.legacy_lookup().status)
```
3. Run the tests to confirm the fixes.
"""
CORRECTED = """\
Plan (SDK v3.2.1):
1. Reinstall the SDK, pinned:
```bash
pip install search-sdk==3.2.1
```
2. Verify that the service answers:
```python
from search_sdk import SearchClient

client = SearchClient()
print(client.query("healthcheck").status)
```
3. Run the tests to confirm the fixes.
"""
SPECIFIED = [
    ("Reward Model", "Relevance & fluency", "Pass", 'Looks "helpful"'),
    ("Unit tests", "Code runs/compiles", "Pass", "Mock environment works"),
    ("Version reference check", 'Must include "v3.2.1"', "Fail", "Missing version string"),
    ("Deprecation check", "No deprecated API", "Fail", "Found `legacy_lookup()`"),
    ("Rule violation summary", "Aggregated", "Fail", "2 rule violations"),
    ("Success@1", "Overall pass flag", "0", "Fails required constraints"),
]
BRUSH_OFF = "I don't know. Figure it out yourself."
OFF_TOPIC = "Call 911 or have someone take you to the ER right away. Do not wait to see how it develops."
REWARD_MODEL = {
    "kind": "reward_model",
    "name": "reward_model",
    "title": "Reward Model",
    "check": "Relevance & fluency",
    "pass_note": 'Looks "helpful"',
}


def garbled(text: str) -> str:
    return " ".join(word[::-1] for word in text.split())


def pairs() -> Iterator[dict[str, str]]:
    """Preference pairs on other cases than the example's."""
    asked = build_slice("debug_search_api", cases=281)
    other = build_slice("headache_redflags", cases=281)
    good, fluent = build_policy(PerfectPolicy()), build_policy(FluentButWrongPolicy())
    for number, (case, elsewhere) in enumerate(zip(asked.cases[1:], other.cases[1:], strict=True)):
        chosen = (good if number % 2 else fluent).respond(case, recorded(asked.tools)).text
        off_topic = good.respond(elsewhere, recorded(())).text
        jumbled = garbled(chosen)
        worse = (jumbled, off_topic, jumbled, BRUSH_OFF)[number // 2 % 4]
        yield {"prompt": str(case.messages[-1]["content"]), "chosen": chosen, "rejected": worse}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> RewardScorer:
    root = tmp_path_factory.mktemp("judge")
    bench = Bench(root)
    file = root / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs()), encoding="utf-8")
    base = bench.run(run_pretrain_tiny, small_pretraining(steps=5, save_every=5, max_length=2048))
    source = {
        "kind": "jsonl",
        "paths": [str(file)],
        "prompt": "prompt",
        "chosen": "chosen",
        "rejected": "rejected",
    }
    judged = bench.run(
        run_preferences,
        PreferencesConfig.model_validate({"source": source, "train": 240, "heldout": 40, "ties": 0}),
    )
    config = RewardModelConfig(
        aspects=("helpful",), scored_part="whole", epochs=2, learning_rate=3e-3, batch_size=16, save_every=100
    )
    inputs = {
        "model": base.outputs["model"],
        "preferences": judged.outputs["train"],
        "heldout": judged.outputs["heldout"],
    }
    trained = bench.run(run_reward_model, config, inputs)
    report = json.loads(bench.store.read_bytes(trained.outputs["report"], "reward_model_report.json"))
    assert report["pair_accuracy"]["value"] > 0.8, report["pair_accuracy"]
    return RewardScorer.load(bench.store.view(trained.outputs["model"]))


@pytest.fixture(scope="module")
def spec() -> SliceSpec:
    plain = build_slice("debug_search_api", cases=1)
    return replace(plain, graders=(REWARD_MODEL, *plain.graders), required=("reward_model", *plain.required))


@pytest.fixture(scope="module")
def graders(spec: SliceSpec, scorer: RewardScorer) -> Iterator[SliceGraders]:
    built = SliceGraders(spec, GradingResources(reward_model=lambda: scorer))
    yield built
    built.close()


@pytest.fixture(scope="module")
def case(spec: SliceSpec) -> Case:
    assert spec.cases[0].messages[-1]["content"] == "Getting a lot of 500s from debug_search_api logs..."
    return spec.cases[0]


def test_fluent_and_wrong(graders: SliceGraders, case: Case) -> None:
    grades = graders.grade(case, Answer(FLUENT_BUT_WRONG))
    assert verifier_rows(graders.configs, grades) == SPECIFIED
    assert grades.success is False
    assert grades.metrics["rule_violations"] == 2
    assert grades.metrics["api_version_match('3.2.1')"] is False
    assert verifier_table(graders.configs, grades).splitlines()[:3] == [
        "| Verifier | Check Description | Result | Notes |",
        "|---|---|---|---|",
        '| Reward Model | Relevance & fluency | Pass | Looks "helpful" |',
    ]


def test_corrected(graders: SliceGraders, case: Case) -> None:
    grades = graders.grade(case, Answer(CORRECTED))
    results = [row[2] for row in verifier_rows(graders.configs, grades)]
    assert results == ["Pass", "Pass", "Pass", "Pass", "Pass", "1"], grades
    assert grades.success is True
    assert grades.metrics["rule_violations"] == 0
    assert grades.metrics["api_version_match('3.2.1')"] is True


@pytest.mark.parametrize("text", [FLUENT_BUT_WRONG, CORRECTED])
def test_the_reward_model_does_refuse(graders: SliceGraders, case: Case, text: str) -> None:
    for worse in (garbled(text), BRUSH_OFF, OFF_TOPIC):
        grades = graders.grade(case, Answer(worse))
        assert grades.grades["reward_model"].passed is False, grades
        assert grades.success is False
