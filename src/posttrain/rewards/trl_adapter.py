"""Verifiers as TRL reward functions.

Here: the calling convention of ``trl.GRPOTrainer`` (1.16): ``f(prompts, completions, completion_ids,
trainer_state, log_extra, log_metric, **columns) -> list[float | None]``. Not here: any rule, and no import of
TRL or torch.

The columns ``language`` and ``task`` (``reasoning`` or anything else: open-ended) are read where the data set has them.

TRL calls one function after another with the same ``completions`` list; the pool is asked once for all of
them. Where a sample has no reward as a whole (a required verifier without a value), *every* function returns
None for it: TRL sums over what is there, so a None from accuracy alone would leave a low sum and punish the
policy for a verification that hung.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from posttrain.core.errors import DataError
from posttrain.rewards.parsing import opens_think
from posttrain.rewards.pool import VerifierPool
from posttrain.rewards.records import Sample, Score

RewardFunction: TypeAlias = Callable[..., list[float | None]]
Message: TypeAlias = Mapping[str, Any]
Text: TypeAlias = str | Sequence[Message]
"""Plain text, or a conversation."""

_NEEDS_REFERENCE = frozenset({"accuracy"})


@dataclass(frozen=True, slots=True)
class TrlOptions:
    """How a batch of TRL's becomes Samples."""

    reference_column: str = "answer"
    """Dataset column of the reference."""
    think_prefilled: bool | Literal["from_prompt"] = "from_prompt"
    """Whether the rendered prompt ends in ``<think>``. ``from_prompt`` looks at the prompt as TRL hands it
    over: plain text, or the last message; what a chat template adds is not in it, so say True or False where
    a template is used."""
    stop_token_ids: Collection[int] = ()
    """End and padding tokens: a completion whose last token is none of them was truncated. Empty: nothing
    counts as truncated."""
    decode: Callable[[Sequence[int]], str] | None = None
    """Token ids to text, tags kept and stop tokens removed. Without it the text is TRL's own decoding, in
    which a tag that is a *special* token has vanished, and a parsed message has lost what stood between its
    fields."""


@dataclass(frozen=True, slots=True)
class TrlRewards:
    """What ``GRPOTrainer`` takes."""

    functions: list[RewardFunction]
    """``reward_funcs``; each one's ``__name__`` is its verifier's name."""
    weights: list[float]
    """``GRPOConfig(reward_weights=...)``, in the same order."""


def as_trl_rewards(
    pool: VerifierPool,
    options: TrlOptions | None = None,
    *,
    on_scores: Callable[[Sequence[Sample], Sequence[Score]], None] | None = None,
) -> TrlRewards:
    """One TRL reward function for each verifier of ``pool``, scored together.

    ``on_scores`` is told about every batch, once, before its limit on unscored samples is checked. The
    functions raise HealthError where that limit is passed, and DataError where the reference column is
    missing.
    """
    shared = _SharedBatch(pool, options or TrlOptions(), on_scores)
    parts = pool.reward.parts
    functions: list[RewardFunction] = [_PartReward(part.verifier.name, shared) for part in parts]
    return TrlRewards(functions, [part.weight for part in parts])


class _PartReward:
    """One verifier's column of a shared batch."""

    def __init__(self, name: str, shared: _SharedBatch) -> None:
        self.__name__ = name
        self._shared = shared

    def __call__(
        self,
        *,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Any],
        **columns: Any,
    ) -> list[float | None]:
        name = self.__name__
        scores = self._shared.scores(name, _TrlBatch(prompts, completions, completion_ids, columns))
        return [None if score.value is None else score.parts[name] for score in scores]


@dataclass(frozen=True, slots=True)
class _TrlBatch:
    """What TRL hands to a reward function."""

    prompts: Sequence[Text]
    completions: Sequence[Text]
    completion_ids: Sequence[Any]
    columns: Mapping[str, Any]
    """Dataset columns by name, with ``trainer_state``, ``log_extra`` and ``log_metric`` among them."""


class _SharedBatch:
    """The scores of the latest batch, known by the identity of its ``completions``."""

    def __init__(
        self,
        pool: VerifierPool,
        options: TrlOptions,
        on_scores: Callable[[Sequence[Sample], Sequence[Score]], None] | None,
    ) -> None:
        self._pool = pool
        self._options = options
        self._on_scores = on_scores
        self._completions: Sequence[Text] | None = None
        self._scores: list[Score] = []
        self._served: set[str] = set()

    def scores(self, asking: str, batch: _TrlBatch) -> list[Score]:
        # A function that asks a second time means a new batch, even in a list object used again.
        if batch.completions is not self._completions or asking in self._served:
            self._completions, self._served = None, set()
            self._scores = self._score(batch)
            self._completions = batch.completions
        self._served.add(asking)
        return self._scores

    def _score(self, batch: _TrlBatch) -> list[Score]:
        samples = self._samples(batch)
        scores = self._pool.score_many(samples)
        log_metric, log_extra = batch.columns.get("log_metric"), batch.columns.get("log_extra")
        if log_metric is not None and scores:
            log_metric("rewards/none_rate", sum(score.value is None for score in scores) / len(scores))
        if log_extra is not None:
            log_extra("reward_reason", [score.reason for score in scores])
        if self._on_scores is not None:
            self._on_scores(samples, scores)
        self._pool.monitor.check()
        return scores

    def _samples(self, batch: _TrlBatch) -> list[Sample]:
        column = self._options.reference_column
        references = batch.columns.get(column)
        if references is None:
            if any(item.verifier.kind in _NEEDS_REFERENCE for item in self._pool.config.verifiers):
                raise DataError(
                    f"the prompts have no column {column!r} to compare answers with",
                    hint="add that column, or name another one: TrlOptions(reference_column=...)",
                )
            references = [None] * len(batch.prompts)
        nothing = [None] * len(batch.prompts)
        languages, tasks = (batch.columns.get(name, nothing) for name in ("language", "task"))
        rows = zip(batch.prompts, batch.completions, batch.completion_ids, references, strict=True)
        return [
            replace(self._sample(*row), language=language, open_ended=task not in (None, "reasoning"))
            for row, language, task in zip(rows, languages, tasks, strict=True)
        ]

    def _sample(self, prompt: Text, completion: Text, ids: Any, reference: Any) -> Sample:
        options = self._options
        tokens = [int(token) for token in ids]
        prefilled = options.think_prefilled
        if prefilled == "from_prompt":
            prefilled = opens_think(
                prompt if isinstance(prompt, str) else _content(prompt[-1]) if prompt else ""
            )
        if options.decode is not None:
            text = options.decode(tokens)
        else:
            text, keeps_form = completion_text(completion)
            prefilled = prefilled and keeps_form
        return Sample(
            text,
            None if reference is None else str(reference),
            prompt_text(prompt),
            think_prefilled=prefilled,
            token_count=len(tokens),
            truncated=bool(options.stop_token_ids)
            and (not tokens or tokens[-1] not in options.stop_token_ids),
            extra={"completion_ids": tokens},
        )


def completion_text(completion: Text) -> tuple[str, bool]:
    """The text of a completion, and whether it is as the model wrote it.

    A conversation's text is its last assistant message. Where a response template has split that into
    ``reasoning_content`` and ``content``, the think block is put back together, complete (so the second value
    is False).
    """
    if isinstance(completion, str):
        return completion, True
    said = [message for message in completion if message.get("role", "assistant") == "assistant"]
    if not said:
        return "", True
    reasoning = said[-1].get("reasoning_content")
    if reasoning is None:
        return _content(said[-1]), True
    return f"<think>{reasoning}</think>{_content(said[-1])}", False


def prompt_text(prompt: Text) -> str:
    """The prompt as one text for reports: itself, or the contents of its messages, one a line."""
    return prompt if isinstance(prompt, str) else "\n".join(_content(message) for message in prompt)


def _content(message: Message) -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block.get("text", "") for block in content)
