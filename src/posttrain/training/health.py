"""Watching reinforcement learning while it runs.

Here: limits on the metrics of each step, judged over a window, as pure functions of the rows. A finding warns or
stops, and says what to try. *Covered*: dead groups, cut completions, entropy collapse, KL, unscored samples, and reward
parts that drift apart (format up while accuracy falls: the usual sign of a gamed reward). *Not covered*: whether the
answers are good; that is what the held-out evaluation is for. To add a watch: a field of ``HealthConfig`` and a branch
in :func:`judge`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Action: TypeAlias = Literal["warn", "stop", "off"]


class Limit(BaseModel):
    """One limit and what happens past it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    action: Action = "warn"


class HealthConfig(BaseModel):
    """Limits on the mean of the last ``window`` steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(10, ge=1)
    """Steps that a judgement is made over; nothing is judged before."""
    max_zero_variance: Limit = Limit(value=0.9)
    """Share of groups whose completions all got the same reward: they teach nothing."""
    max_clipped: Limit = Limit(value=0.5)
    """Share of completions cut at the length limit."""
    min_entropy: Limit = Limit(value=0.005)
    """Mean token entropy in nats: below it the policy has stopped exploring."""
    max_kl: Limit = Limit(value=10.0, action="stop")
    """Mean KL to the reference (only where ``beta`` is above 0)."""
    max_none: Limit = Limit(value=0.2, action="stop")
    """Share of completions that no verifier could score."""
    divergence: Limit = Limit(value=0.15, action="stop")
    """Accuracy lost against its best window while another reward part rose by as much."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One limit that was passed."""

    name: str
    action: Action
    text: str
    hint: str


def judge(
    config: HealthConfig, rows: Sequence[Mapping[str, Any]], accuracy: str = "rewards/accuracy/mean"
) -> list[Finding]:
    """Findings for the window that ends with the last row. Rows are the trainer's log rows, in order of steps."""
    if len(rows) < config.window:
        return []
    checks = (
        ("max_zero_variance", "frac_reward_zero_std", "of groups have equal rewards", True,
         "use harder or easier prompts (the pass-rate histogram shows which), or raise `temperature`"),
        ("max_clipped", "completions/clipped_ratio", "of completions are cut at the length limit", True,
         "raise `max_completion_tokens`, or add a `soft_overlong` verifier"),
        ("min_entropy", "entropy", "nats of token entropy are left", False,
         "lower `learning_rate`, raise `completions per prompt`, or set `beta` above 0"),
        ("max_kl", "kl", "nats of KL to the reference", True, "lower `learning_rate` or raise `beta`"),
        ("max_none", "rewards/none_rate", "of completions could not be scored", True,
         "look at the reasons in the samples table; raise `rewards.timeout_seconds` if they are timeouts"),
    )  # fmt: skip
    findings = []
    for name, column, what, upper, hint in checks:
        limit: Limit = getattr(config, name)
        mean = _mean(rows[-config.window :], column)
        if limit.action == "off" or mean is None:
            continue
        if (mean > limit.value) if upper else (mean < limit.value):
            side = "above" if upper else "below"
            text = f"{mean:.3g} {what} over {config.window} steps, {side} the limit {limit.value:g} ({name})"
            findings.append(Finding(name, limit.action, text, hint))
    return findings + _divergence(config, rows, accuracy)


def _divergence(config: HealthConfig, rows: Sequence[Mapping[str, Any]], accuracy: str) -> list[Finding]:
    """The accuracy part fell from its best window while another part rose by the same amount since then."""
    limit, window = config.divergence, config.window
    if limit.action == "off" or len(rows) < 2 * window:
        return []
    windows = [rows[i : i + window] for i in range(0, len(rows) - window + 1, window)]
    windows[-1] = rows[-window:]
    accuracies = [_mean(w, accuracy) for w in windows]
    known = [(value, index) for index, value in enumerate(accuracies) if value is not None]
    now = accuracies[-1]
    if now is None or not known:
        return []
    best, where = max(known)
    parts = sorted(
        {c for row in rows for c in row if c.startswith("rewards/") and c.endswith("/mean")} - {accuracy}
    )
    for part in parts:
        before, after = _mean(windows[where], part), _mean(windows[-1], part)
        if (
            before is not None
            and after is not None
            and best - now >= limit.value
            and after - before >= limit.value
        ):
            text = (
                f"accuracy fell from {best:.2f} to {now:.2f} while {part.split('/')[1]} rose from {before:.2f} to "
                f"{after:.2f}: the reward is being gamed (divergence)"
            )
            hint = f"lower the weight of {part.split('/')[1]!r}, lower `learning_rate`, or resume from an earlier model"
            return [Finding("divergence", limit.action, text, hint)]
    return []


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if isinstance(row.get(column), int | float)]
    return sum(values) / len(values) if values else None
