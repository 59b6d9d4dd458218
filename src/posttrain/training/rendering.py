"""Examples and preferences as tokens: the prompt as generation sees it, then the reply up to its end of turn.

Here: rendering through the model's chat template with the checks that make training see what generation will see. Not
here: any trainer. *Covered*: templates that change the prompt once a reply follows, that drop the end-of-turn token, or
that open the think block themselves; rows that are too long. *Not covered*: templates that rewrite earlier turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from posttrain.core.errors import DataError, ModelError
from posttrain.rewards.parsing import opens_think

TooLong: TypeAlias = Literal["fail", "drop"]
"""What to do with a row that is longer than the limit; nothing is ever cut."""


class Rendered(NamedTuple):
    """One conversation with its reply as tokens."""

    prompt: list[int]
    """As the model is given it when it generates."""
    reply: list[int]
    """What is learned, the end-of-turn token included."""

    @property
    def tokens(self) -> int:
        """Length of the whole row."""
        return len(self.prompt) + len(self.reply)


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]], response: str) -> Rendered:
    """Token ids of one row. Raises ModelError for a template that training and generation would see differently.

    Where the template opens the think block for the model, a response without one gets an empty block: it answers
    at once.
    """
    prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    content = response
    if opens_think(prompt) and not response.lstrip().startswith("<think>"):
        content = f"<think></think>{response}"
    reply = {"role": "assistant", "content": content}
    whole = tokenizer.apply_chat_template([*messages, reply], tokenize=False)
    if not whole.startswith(prompt):
        raise ModelError(
            "the chat template changes the prompt once a reply follows it: training would see another prompt than "
            "generation does",
            hint="use a prefix-preserving chat template",
        )
    rest = whole[len(prompt) :]
    end = rest.rfind(tokenizer.eos_token)
    if end < 0:
        raise ModelError(
            f"the end token {tokenizer.eos_token!r} does not close the assistant's turn in the chat template: the stop "
            "would never be trained",
            hint="set `eos_token` to the template's end-of-turn token",
        )
    rest = rest[: end + len(tokenizer.eos_token)]
    ids = tokenizer([prompt, rest], add_special_tokens=False)["input_ids"]
    return Rendered(*ids)


class Fitting(NamedTuple):
    """Which rows fit, and the limit that was used."""

    kept: list[int]
    """Indexes of the rows that fit."""
    limit: int
    """Tokens of the longest row that is allowed."""


def fit(
    lengths: Sequence[int], *, max_tokens: int | None, positions: int | None, too_long: TooLong
) -> Fitting:
    """The rows of ``lengths`` tokens that fit: into ``max_tokens``, or, without it, into the model's positions.

    Raises DataError for a row that does not fit, unless ``too_long`` is ``drop``, and where nothing is left.
    """
    limits = [limit for limit in (max_tokens, positions) if limit is not None]
    limit = min(limits) if limits else max(lengths)
    kept = [index for index, length in enumerate(lengths) if length <= limit]
    dropped = len(lengths) - len(kept)
    if dropped and too_long == "fail":
        raise DataError(
            f"{dropped} of {len(lengths)} rows are longer than {limit} tokens, the longest {max(lengths)}: a cut "
            "reply would teach a model not to end",
            hint="raise `max_tokens` where the model has the positions, or set `too_long: drop`",
        )
    if not kept:
        raise DataError(f"no row fits into {limit} tokens", hint="raise `max_tokens`")
    return Fitting(kept, limit)
