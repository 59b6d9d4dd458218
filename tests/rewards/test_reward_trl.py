"""The TRL adapter, called the way TRL 1.16 calls it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.core.errors import DataError, HealthError
from posttrain.rewards import RewardConfig, Sample, Score, TrlOptions, VerifierPool, as_trl_rewards
from posttrain.rewards.trl_adapter import completion_text

GOOD = "<think> 5 + 3 </think> <answer> 8 </answer>"
BARE = "<answer> 8 </answer>"


def pool(**settings: Any) -> VerifierPool:
    verifiers = [
        {"verifier": {"kind": "accuracy", "mode": "numeric"}, "weight": 2.0},
        {"verifier": {"kind": "think_format"}, "name": "form"},
    ]
    return VerifierPool(RewardConfig.model_validate({"verifiers": verifiers, "workers": 1, **settings}))


def call(function: Any, completions: list[Any], answers: list[Any], **more: Any) -> list[float | None]:
    arguments: dict[str, Any] = {
        "prompts": ["5 + 3?"] * len(completions),
        "completion_ids": [[1, 2, 3]] * len(completions),
        "trainer_state": None,
        "answer": answers,
    }
    return function(completions=completions, **{**arguments, **more})


def test_names_weights_and_values() -> None:
    with pool() as workers:
        rewards = as_trl_rewards(workers)
        assert [function.__name__ for function in rewards.functions] == ["accuracy", "form"]
        assert rewards.weights == [2.0, 1.0]
        completions = [GOOD, BARE, ""]
        assert call(rewards.functions[0], completions, ["8", "8", "8"]) == [1.0, 1.0, 0.0]
        assert call(rewards.functions[1], completions, ["8", "8", "8"]) == [1.0, 0.0, 0.0]


def test_one_batch_is_scored_once_and_told_once() -> None:
    told: list[tuple[list[Sample], list[Score]]] = []
    metrics: list[tuple[str, float]] = []
    extras: dict[str, list[Any]] = {}
    with pool() as workers:
        rewards = as_trl_rewards(
            workers, on_scores=lambda samples, scores: told.append((list(samples), list(scores)))
        )
        for step in range(3):
            completions = [GOOD, BARE] if step == 0 else [BARE, GOOD]
            for function in rewards.functions:
                logs = {"log_metric": lambda *metric: metrics.append(metric), "log_extra": extras.__setitem__}
                call(function, completions, ["8", "8"], **logs)
        assert workers.monitor.total == 6, "three batches of two, each scored once for both functions"
        assert len(told) == 3
        assert metrics == [("rewards/none_rate", 0.0)] * 3
        assert extras == {"reward_reason": ["form: no <think>", ""]}
        assert [score.value for score in told[0][1]] == [3.0, 2.0]


def test_the_same_list_used_again_is_a_new_batch() -> None:
    with pool() as workers:
        accuracy, form = as_trl_rewards(workers).functions
        completions = [GOOD]
        assert (call(accuracy, completions, ["8"]), call(form, completions, ["8"])) == ([1.0], [1.0])
        completions[0] = BARE.replace("8", "9")
        assert (call(accuracy, completions, ["8"]), call(form, completions, ["8"])) == ([0.0], [0.0])


def test_a_sample_without_a_reward_is_none_for_every_function() -> None:
    """TRL sums what is there: a None from accuracy alone would leave a low sum and punish the sample."""
    with pool(max_none_rate=1.0) as workers:
        rewards = as_trl_rewards(workers)
        completions = [GOOD, GOOD]
        for function in rewards.functions:
            assert call(function, completions, ["8", "four"]) == [1.0, None]


def test_too_many_of_them_stop_training() -> None:
    with pool(max_none_rate=0.0) as workers:
        function = as_trl_rewards(workers).functions[0]
        with pytest.raises(HealthError, match="could not be scored"):
            call(function, [GOOD], ["four"])


def test_a_missing_reference_column_says_which() -> None:
    with pool() as workers:
        (accuracy, _) = as_trl_rewards(workers, TrlOptions(reference_column="solution")).functions
        with pytest.raises(DataError, match="'solution'"):
            call(accuracy, [GOOD], ["8"])
        assert call(accuracy, [GOOD], ["7"], solution=[8]) == [1.0], "references need not be text"


def test_conversations() -> None:
    parsed = {"role": "assistant", "content": "<answer> 8 </answer>", "reasoning_content": "5 + 3"}
    completions = [
        [{"role": "assistant", "content": GOOD}],
        [parsed],
        [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}],
        [{"role": "assistant", "content": "", "tool_calls": []}, {"role": "tool", "content": "8"}, parsed],
        [{"role": "tool", "content": "8"}],
    ]
    prompts = [[{"role": "user", "content": "5 + 3?"}]] * 5
    with pool() as workers:
        form = as_trl_rewards(workers).functions[1]
        assert call(form, completions, ["8"] * 5, prompts=prompts) == [1.0, 1.0, 1.0, 1.0, 0.0]
        prefilled = as_trl_rewards(workers, TrlOptions(think_prefilled=True)).functions[1]
        assert call(prefilled, completions[:2], ["8"] * 2, prompts=prompts[:2]) == [0.0, 1.0]
    assert completion_text([parsed]) == ("<think>5 + 3</think><answer> 8 </answer>", False)


def test_prefilled_prompts_are_seen_and_tokens_are_passed_on() -> None:
    told: list[Sample] = []
    options = TrlOptions(stop_token_ids=(2, 0))
    with pool() as workers:
        form = as_trl_rewards(workers, options, on_scores=lambda samples, _: told.extend(samples)).functions[
            1
        ]
        completions = [" 5 + 3 </think> <answer> 8 </answer>"] * 4
        prompts = ["5 + 3? <think>\n", "5 + 3?", [{"role": "assistant", "content": "<think>"}], "<think>"]
        ids = [[5, 6, 2], [5, 6], [], [7, 0]]
        assert call(form, completions, ["8"] * 4, prompts=prompts, completion_ids=ids) == [1.0, 0.0, 1.0, 1.0]
    assert [(s.token_count, s.truncated) for s in told] == [(3, False), (2, True), (0, True), (2, False)]
    assert [s.extra["completion_ids"] for s in told] == ids


def test_decoding_from_ids_sees_what_trl_dropped() -> None:
    vocabulary = {1: "<think>", 2: " 5 + 3 ", 3: "</think>", 4: "<answer> 8 </answer>"}
    options = TrlOptions(decode=lambda ids: "".join(vocabulary[i] for i in ids))
    with pool() as workers:
        form = as_trl_rewards(workers, options).functions[1]
        assert call(form, [" 5 + 3 <answer> 8 </answer>"], ["8"], completion_ids=[[1, 2, 3, 4]]) == [1.0]


def test_trl_itself_takes_them() -> None:
    """The trainer's own reward code, on a stand-in for the rest of the trainer."""
    pytest.importorskip("trl")
    import torch
    from accelerate import PartialState
    from trl import GRPOTrainer
    from trl.trainer.utils import get_callable_name

    PartialState(cpu=True)  # TRL's own warning about an unscorable row goes through accelerate's logger
    logged: dict[str, list[Any]] = {}
    with pool(max_none_rate=1.0) as workers:
        rewards = as_trl_rewards(workers)
        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
            reward_funcs=rewards.functions,
            reward_processing_classes=[None, None],
            reward_func_names=[get_callable_name(function) for function in rewards.functions],
            state=SimpleNamespace(global_step=0),
            environments=None,
            args=SimpleNamespace(report_to=[]),
            model=SimpleNamespace(training=True),
            _log_completion_extra=logged.__setitem__,
            _log_metric=lambda name, value: logged.setdefault(name, []).append(value),
        )
        inputs = [{"prompt": "5 + 3?", "answer": answer, "id": answer} for answer in ("8", "8", "four")]
        table = GRPOTrainer._calculate_rewards.__wrapped__(
            trainer, inputs, ["5 + 3?"] * 3, [GOOD, BARE, GOOD], [[1], [1, 2], [3]]
        )
    assert trainer.reward_func_names == ["accuracy", "form"]
    assert table[:2].tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert table[2].isnan().all()
    assert logged["reward_reason"] == ["", "form: no <think>", "accuracy: reference is not a number"]
    assert logged["rewards/none_rate"] == [pytest.approx(1 / 3)]
