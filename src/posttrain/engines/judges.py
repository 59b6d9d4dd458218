"""Judges: a model of the store, an OpenAI-compatible server, or a reward model.

Here: asking, and reading the answer strictly. Not here: what is done with a judgement. *Covered*: an answer that cannot
be read is asked for once more and then has no value; a position-biased judge contradicts itself in the two orders and
counts as undecided. *Not covered*: a judge that prefers length, its own style or confident nonsense.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from posttrain.core.errors import ModelError
from posttrain.engines.endpoint import EndpointEngine, EndpointFailure
from posttrain.engines.judging import (
    EndpointJudgeConfig,
    Judge,
    JudgeConfig,
    Judgement,
    JudgeRequest,
    ModelJudgeConfig,
    PairJudgement,
    PairRequest,
)
from posttrain.engines.records import Conversation, Sampling
from posttrain.engines.reward_scorer import RewardScorer

UNREADABLE = "unreadable verdict"
_RATING = re.compile(r"^\W*rating\W*(\d+)\b", re.IGNORECASE)


def build_judge(config: JudgeConfig, load: Callable[[], tuple[Any, Any]]) -> Judge:
    """The judge of a config; ``load`` gives model and tokenizer where it is a model of the store."""
    if isinstance(config, EndpointJudgeConfig):
        return _TextJudge(config, _EndpointWriter(EndpointEngine(config.endpoint)))
    model, tokenizer = load()
    return _ModelJudge(config, model, tokenizer)


class _Writer(Protocol):
    """Answers of a language model; a str for each chat, or why there is none."""

    def write(self, chats: Sequence[Conversation], sampling: Sampling) -> list[str | EndpointFailure]: ...


class _EndpointWriter:
    def __init__(self, engine: EndpointEngine) -> None:
        self._engine = engine

    def write(self, chats: Sequence[Conversation], sampling: Sampling) -> list[str | EndpointFailure]:
        answers = self._engine.complete_each(chats, sampling)
        return [answer if isinstance(answer, EndpointFailure) else answer[0].text for answer in answers]


class _ModelWriter:
    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        from posttrain.engines.transformers_engine import TransformersEngine

        self._engine = TransformersEngine(model, tokenizer, batch_size=batch_size)

    def write(self, chats: Sequence[Conversation], sampling: Sampling) -> list[str | EndpointFailure]:
        return [group[0].text for group in self._engine.generate(chats, sampling)]


class _TextJudge:
    """A judge whose answers are read as text."""

    def __init__(self, config: JudgeConfig, writer: _Writer) -> None:
        self._config = config
        self._writer = writer

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        prompts = [
            _filled(self._config.asked, {"question": request.question, "response": request.response})
            for request in requests
        ]
        pointwise = self._config.style == "pointwise"
        answers = self._ask(prompts, self._word if pointwise else rating, 8 if pointwise else None)
        return [Judgement(value, reason) for value, reason in answers]

    def compare(self, requests: Sequence[PairRequest]) -> list[PairJudgement]:
        prompts = [
            _filled(self._config.pair_prompt, {"question": r.question, "first": one, "second": two})
            for r in requests
            for one, two in ((r.first, r.second), (r.second, r.first))
        ]
        answers = self._ask(prompts, letter, 8)
        return [
            agreed(straight, swapped) for straight, swapped in zip(answers[::2], answers[1::2], strict=True)
        ]

    def _word(self, text: str) -> float | None:
        """1 for the yes-word, 0 for the no-word, at the beginning of the answer."""
        begun = text.strip().strip("*`\"' ").casefold()
        for word, value in ((self._config.yes, 1.0), (self._config.no, 0.0)):
            if re.match(rf"{re.escape(word.casefold())}\b", begun):
                return value
        return None

    def _ask(
        self, prompts: Sequence[str], read: Callable[[str], float | None], limit: int | None
    ) -> list[tuple[float | None, str]]:
        """Value and reason of each prompt; what cannot be read is asked for once more."""
        found: list[tuple[float | None, str]] = [(None, UNREADABLE)] * len(prompts)
        places = list(range(len(prompts)))
        sampling = Sampling(limit or self._config.max_new_tokens, temperature=0)
        for _ in range(2):
            chats = [[{"role": "user", "content": prompts[place]}] for place in places]
            for place, answer in zip(places, self._writer.write(chats, sampling), strict=True):
                if isinstance(answer, EndpointFailure):
                    found[place] = (None, f"judge failed: {answer.reason}")
                else:
                    value = read(answer)
                    found[place] = (value, UNREADABLE if value is None else "" if limit else answer.strip())
            places = [place for place in places if found[place] == (None, UNREADABLE)]
            if not places:
                break
            sampling = replace(sampling, seed=sampling.seed + 1, temperature=0.3)
        return found


class _ModelJudge(_TextJudge):
    """A model of the store; pointwise by the probability of its first token."""

    def __init__(self, config: ModelJudgeConfig, model: Any, tokenizer: Any) -> None:
        super().__init__(config, _ModelWriter(model, tokenizer, config.batch_size))
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = config.batch_size

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        if self._config.style == "generative":
            return super().judge(requests)
        prompts = [
            _filled(self._config.asked, {"question": request.question, "response": request.response})
            for request in requests
        ]
        return [Judgement(value) for value in self._first_word(prompts, self._config.yes, self._config.no)]

    def compare(self, requests: Sequence[PairRequest]) -> list[PairJudgement]:
        if self._config.style == "generative":
            return super().compare(requests)
        prompts = [
            _filled(self._config.pair_prompt, {"question": r.question, "first": one, "second": two})
            for r in requests
            for one, two in ((r.first, r.second), (r.second, r.first))
        ]
        values = [(float(p > 0.5), "") for p in self._first_word(prompts, "A", "B")]
        return [
            agreed(straight, swapped) for straight, swapped in zip(values[::2], values[1::2], strict=True)
        ]

    def _first_word(self, prompts: Sequence[str], yes: str, no: str) -> list[float]:
        """``P(yes) / (P(yes) + P(no))`` of the first token of the answer, prompt by prompt."""
        import torch

        first = [self._tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (yes, no)]
        if first[0] == first[1]:
            raise ModelError(
                f"the judge's words {yes!r} and {no!r} begin with the same token",
                hint="set `judge.yes` and `judge.no` to words that differ in their first token",
            )
        rows = [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
            )
            for prompt in prompts
        ]
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
        values = [0.0] * len(rows)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            width = max(len(rows[index]) for index in batch)
            ids = torch.full((len(batch), width), self._tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for place, index in enumerate(batch):
                ids[place, width - len(rows[index]) :] = torch.tensor(rows[index])
                mask[place, width - len(rows[index]) :] = 1
            device = self._model.device
            with torch.inference_mode():
                logits = self._model(
                    input_ids=ids.to(device), attention_mask=mask.to(device), logits_to_keep=1
                ).logits[:, -1, first]
            for index, value in zip(batch, logits.float().softmax(-1)[:, 0].tolist(), strict=True):
                values[index] = value
        return values


class RewardModelJudge:
    """A reward model by its standardised scores; a reply that is too long for it has no value."""

    def __init__(self, scorer: RewardScorer) -> None:
        self._scorer = scorer

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """One judgement a request, in order."""
        fits = [self._scorer.fits(request.messages, request.response) for request in requests]
        fitting = [request for request, does in zip(requests, fits, strict=True) if does]
        scores = iter(self._scorer.score([r.messages for r in fitting], [r.response for r in fitting]))
        return [_scored(next(scores) if does else None) for does in fits]


def _scored(score: float | None) -> Judgement:
    if score is None:
        return Judgement(None, "judge failed: the reply is longer than the reward model's positions")
    if not math.isfinite(score):
        return Judgement(None, f"judge failed: the score is {score}")
    return Judgement(score)


def rating(text: str) -> float | None:
    """The number of the last ``Rating: N`` line, 1 to 10, as 0 to 1; None where there is none."""
    found = [match for line in text.splitlines() if (match := _RATING.match(line))]
    number = int(found[-1][1]) if found else 0
    return (number - 1) / 9 if 1 <= number <= 10 else None


def letter(text: str) -> float | None:
    """1 for an answer that begins with A, 0 for B."""
    begun = re.match(r"\W*(?:reply\s+)?([AB])\b", text.strip(), re.IGNORECASE)
    return None if begun is None else float(begun[1].upper() == "A")


def agreed(straight: tuple[float | None, str], swapped: tuple[float | None, str]) -> PairJudgement:
    """The verdict of both orders; each says whether the reply that stood first won."""
    if straight[0] is None or swapped[0] is None:
        return PairJudgement(None, False, straight[1] if straight[0] is None else swapped[1])
    consistent = straight[0] == 1 - swapped[0]
    return PairJudgement(straight[0] if consistent else 0.5, consistent)


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its places filled at once: braces inside a reply stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), template)
