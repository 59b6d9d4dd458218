"""One answer on its way out, scanned as it comes.

Here: streams. Not here: what is looked for (``finders``), requests (``plan``). A scan gives out exactly what a scan of
the whole text would, whatever the chunks: text is held until every finder is settled about it. A block at a place
sends what stands before it and nothing after it.

The audit never says more than was done: how many characters came, how many were scanned, how many left before they
were, and which rules could only be applied after the answer had left.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.guardrails.config import JsonSchemaRule, LengthRule, StreamMode
from posttrain.guardrails.finders import ALLOWED, CONTEXT
from posttrain.guardrails.fold import fold_with_origins
from posttrain.guardrails.records import Action, Finding, ScanEnd, strongest

if TYPE_CHECKING:
    from posttrain.guardrails.plan import Side

MAX_FINDINGS = 100
"""Listed in an audit; further ones are counted."""
_KEEP = CONTEXT + 16
_TRIM = 1024


class Scan:
    """One text of one answer: its content, its reasoning, or the arguments of one tool call."""

    def __init__(
        self,
        side: Side,
        mode: StreamMode,
        response_format: Mapping[str, Any] | None = None,
        channel: str = "content",
    ) -> None:
        self.blocked = False
        """Whether nothing more goes out."""
        self._side = side
        self._mode = mode
        self._format = response_format
        self._channel = channel
        self._whole: list[str] | None = (
            [] if mode == "buffer" or side.needs_whole(response_format, channel) else None
        )
        # Raw text from `_raw_start`; folded text whose first character is `_folded_start`-th; where each came from.
        self._raw, self._raw_start = "", 0
        self._folded = ""
        self._origins: list[int] | None = None
        self._positions = [0] * len(side.finders)
        self._pending: list[tuple[int, int, int, str]] = []  # raw start, rule, raw end, kind: sorted
        self._findings: list[Finding] = []
        self._last: list[int | None] = [None] * len(side.rules)  # the last finding of each rule
        self._received = self._settled = self._left = self._skip = 0
        self._limits = list(side.limits)
        self._passed_over = False

    def feed(self, text: str) -> str:
        """Take the next piece; returns what may go out now."""
        if not text:
            return ""
        self._received += len(text)
        if self.blocked:
            return ""
        if self._whole is not None:
            self._whole.append(text)
        if self._mode == "buffer":
            return ""
        out = self._take(text, last=False)
        if self._mode == "audit":
            self._left = self._received
            return text
        return out

    def finish(self, tokens: int | None = None) -> ScanEnd:
        """The end of the answer, or of what came of it; ``tokens`` by the server's count, where it is known."""
        sent, buffered = self._left, self._mode == "buffer"
        tail = "" if self.blocked else self._take("".join(self._whole or ()) if buffered else "", last=True)
        if self._mode == "audit":
            tail, self._left = "", sent
        stopped = self.blocked
        late = self._judge_whole(tokens, sent)
        if self.blocked and (buffered or not stopped):
            tail, self._left = "", sent
        findings = tuple(self._findings)
        return ScanEnd(tail, strongest(findings), findings, self._audit(late))

    # --- places in the text -----------------------------------------------------------------------------------------

    def _take(self, text: str, *, last: bool) -> str:
        if text:
            self._append(text)
        folded = self._folded
        size = len(folded)
        settled = size
        positions = self._positions
        # Comparisons written out: this loop is most of what a chunk costs.
        for number, (finder, rule) in enumerate(self._side.finders):
            limit = size if last else finder.settled(folded)
            position = positions[number]
            if limit > position:
                while (hit := finder.search(folded, position, limit)) is not None:
                    position = hit.end
                    if hit.kind != ALLOWED:
                        self._add(rule, hit.start, hit.end, hit.kind)
                if position < limit:  # noqa: PLR1730
                    position = limit
                positions[number] = position
            if position < settled:  # noqa: PLR1730
                settled = position
        total = self._raw_start + len(self._raw)
        raw_settled = total if settled >= size else self._place(settled)
        while self._limits and self._received > self._limits[0][0]:
            most, rule = self._limits.pop(0)
            insort(self._pending, (most, rule, most + 1, "length"))
        out = self._release(min(raw_settled, total))
        if len(self._raw) > _TRIM:
            self._trim()
        return out

    def _append(self, text: str) -> None:
        if text.isascii() and self._origins is None:
            self._folded += text.lower()
            self._raw += text
            return
        total = self._raw_start + len(self._raw)
        if self._origins is None:
            self._origins = list(range(self._raw_start, total))
        folded, origins = fold_with_origins(text, total)
        self._folded += folded
        self._origins += origins
        self._raw += text

    def _place(self, folded: int) -> int:
        """Where a folded character came from."""
        return self._raw_start + folded if self._origins is None else self._origins[folded]

    def _add(self, rule: int, start: int, end: int, kind: str) -> None:
        first = self._place(start)
        beyond = self._place(end) if end < len(self._folded) else self._raw_start + len(self._raw)
        insort(self._pending, (first, rule, max(beyond, self._place(end - 1) + 1), kind))

    def _release(self, until: int) -> str:
        """Apply what was found before ``until`` and give out what stands there."""
        if not self._pending:
            return self._give(until)
        ready = bisect_left(self._pending, (until,))
        found, self._pending = self._pending[:ready], self._pending[ready:]
        parts: list[str] = []
        for start, rule, end, kind in found:
            label, action, mark = self._side.rules[rule]
            done: Action = "report" if self._mode == "audit" else action
            last = self._last[rule]
            if last is None or start >= self._findings[last].end:
                self._last[rule] = len(self._findings)
                self._findings.append(Finding(label, kind, start, end, done))
            elif end > self._findings[last].end:
                # One rule names a place once, by what begins first: a card number is not also a telephone number.
                self._findings[last] = self._findings[last]._replace(end=end)
            if done == "report":
                continue
            parts.append(self._give(start))
            if done == "block":
                self.blocked = True
                return "".join(parts)
            if start >= self._skip:
                parts.append(mark or f"[{kind.upper()}]")
            self._skip = max(self._skip, end)
        parts.append(self._give(until))
        return "".join(parts)

    def _give(self, until: int) -> str:
        start, self._settled = max(self._settled, self._skip), max(self._settled, until)
        if until <= start:
            return ""
        self._left += until - start
        return self._raw[start - self._raw_start : until - self._raw_start]

    def _trim(self) -> None:
        """Forget what is settled, but for what finders may look back at."""
        cut = min(min(self._positions, default=len(self._folded)), len(self._folded)) - _KEEP
        if cut <= 0:
            return
        raw_cut = min(self._place(cut), self._settled)
        if self._origins is None:
            cut = raw_cut - self._raw_start
        else:
            cut = bisect_left(self._origins, raw_cut)
            self._origins = self._origins[cut:]
        self._raw, self._raw_start = self._raw[raw_cut - self._raw_start :], raw_cut
        self._folded = self._folded[cut:]
        self._positions = [position - cut for position in self._positions]

    # --- the text as a whole ----------------------------------------------------------------------------------------

    def _judge_whole(self, tokens: int | None, sent: int) -> list[str]:
        """Apply the rules that need the whole answer; returns those that came after text had left."""
        late: list[str] = []
        for label, rule in self._side.whole:
            if self.blocked:
                break
            kind = self._whole_kind(rule, tokens)
            if kind is None:
                continue
            if sent:
                late.append(label)
            if kind:
                blocks = rule.action == "block" and self._mode != "audit"
                self.blocked = self.blocked or blocks
                self._findings.append(Finding(label, kind, 0, 0, "block" if blocks else "report"))
        return late

    def _whole_kind(self, rule: LengthRule | JsonSchemaRule, tokens: int | None) -> str | None:
        """What is wrong; empty: nothing; None: the rule does not apply."""
        if isinstance(rule, LengthRule):
            if self._channel != "content" or (
                rule.min_characters is None and (rule.max_tokens is None or tokens is None)
            ):
                return None
            if self._received < (rule.min_characters or 0):
                return "length"
            return "length" if rule.max_tokens is not None and (tokens or 0) > rule.max_tokens else ""
        if not self._side.wants_json(rule, self._format, self._channel):
            return None
        checks = self._side.schemas
        assert checks is not None
        outcome = checks.is_valid("".join(self._whole or ()), self._format, rule.json_schema)
        self._passed_over = self._passed_over or outcome.passed_over
        return outcome.kind

    def _audit(self, late: list[str]) -> dict[str, Any]:
        early = self._left if self._mode == "audit" else 0
        audit: dict[str, Any] = {
            "channel": self._channel,
            "mode": self._mode,
            "received_characters": self._received,
            "scanned_characters": self._settled,
            "sent_characters": self._left,
            "left_before_scan": bool(early or late),
            "rules": list(self._side.labels),
            "findings": [finding.to_json() for finding in self._findings[:MAX_FINDINGS]],
            "blocked": self.blocked,
        }
        if self._passed_over:
            audit["schema_keywords_not_checked"] = True
        if late:
            audit["late_rules"] = late
        if len(self._findings) > MAX_FINDINGS:
            audit["findings_not_listed"] = len(self._findings) - MAX_FINDINGS
        return audit
