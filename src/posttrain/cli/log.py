"""``posttrain log``: the traffic log, asked, checked, kept short, and emptied of a user."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli._options import json_option, print_json, print_table, settings_of, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from posttrain.traffic.index import TrafficIndex

_BY = ("lane", "arm", "model", "rollout", "release", "target", "worker", "finish", "tenant")
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_POLL_SECONDS = 0.2


class _Time(click.ParamType[int]):
    """``2026-11-25``, ``2026-11-25T10:00:00Z``, or ``90m`` for that long ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value)):
            return time.time_ns() // 1_000_000 - int(float(match[1]) * _UNITS_MS[match[2]])
        try:
            when = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(
                f"{value!r} is no time; write 2026-11-25T10:00:00Z, or 90m for that long ago", param, ctx
            )
        return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PATH",
    help="The traffic folder.  [default: serving/default/traffic in the home folder]",
)
index_option = click.option(
    "--index",
    "url",
    metavar="URL",
    help="Database of the index, where it is not in the folder: traffic.sink of the gateway.",
)
since_option = click.option(
    "--since", type=_Time(), metavar="TIME", help="From this time on, or 90m for that long ago."
)
until_option = click.option("--until", type=_Time(), metavar="TIME", help="Before this time.")


@click.group(short_help="Ask, check, shorten or erase the traffic log.")
def log() -> None:
    """The traffic log of a gateway: what was asked and answered, and what was said of it.

    The commands work beside a running gateway. What it wrote in the last moments is indexed first, by its own indexer
    or by the command.
    """


@log.command("tail", short_help="Show the newest rows, or rows as they arrive.")
@click.option("--follow", "-f", is_flag=True, help="Go on with rows as they arrive, until Ctrl-C.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), default=10, show_default=True, help="How many old ones."
)
@json_option
@folder_option
@index_option
def tail(*, follow: bool, lines: int, as_json: bool, folder: Path | None, url: str | None) -> None:
    """Show the newest requests; with --follow, rows of every kind as the workers write them."""
    from posttrain.traffic.follow import Follower
    from posttrain.traffic.query import Where, requests

    where = _folder(folder)
    follower = Follower.from_now(where) if follow else None
    if lines:
        found = list(requests(_index(where, url), Where(limit=lines, newest_first=True)))
        for row in reversed(found):
            _print_row(dataclasses.asdict(row), as_json=as_json)
    while follower is not None:
        rows = follower.poll()
        for value in rows:
            _print_row(value, as_json=as_json)
        if not rows:
            time.sleep(_POLL_SECONDS)


@log.command("show", short_help="Show a request with everything that belongs to it.")
@click.argument("request_id", metavar="ID")
@json_option
@folder_option
@index_option
def show(request_id: str, *, as_json: bool, folder: Path | None, url: str | None) -> None:
    """Show a request or shadow by its id (x-request-id): the row, feedback, shadow answers, verdicts."""
    from posttrain.core.errors import UnknownReferenceError
    from posttrain.traffic.query import feedback_of, request, shadows_of, verdicts_of

    index = _index(_folder(folder), url)
    found = request(index, request_id)
    if found is None:
        raise UnknownReferenceError(
            f"no request {request_id!r} is in the log", hint="`posttrain log tail` shows ids"
        )
    parts: dict[str, list[Any]] = {
        "request": [found],
        "feedback": feedback_of(index, request_id),
        "shadows": shadows_of(index, request_id),
        "verdicts": verdicts_of(index, request_id),
    }
    shown = {name: list(map(dataclasses.asdict, rows)) for name, rows in parts.items()}
    if as_json:
        print_json({**shown, "request": shown["request"][0]})
        return
    for name, rows in shown.items():
        for row in rows:
            click.echo(name if name == "request" else f"\n{name}")
            said = {key: value for key, value in row.items() if value not in (None, "", (), {})}
            print_table([[key, _text(value)] for key, value in said.items()], indent="  ")


@log.command("stats", short_help="Count requests, errors, tokens, cost and latency.")
@click.option("--by", type=click.Choice(_BY), multiple=True, help="Count each value by itself; repeatable.")
@since_option
@until_option
@json_option
@folder_option
@index_option
def stats(
    *,
    by: tuple[Any, ...],
    since: int | None,
    until: int | None,
    as_json: bool,
    folder: Path | None,
    url: str | None,
) -> None:
    """Count requests and shadows, by lane if nothing else is said."""
    from posttrain.traffic.query import Where, counts

    by = by or ("lane",)
    found = counts(_index(_folder(folder), url), by, Where(since_ms=since, until_ms=until))
    if as_json:
        print_json(
            [{**dataclasses.asdict(item), "key": dict(zip(by, item.key, strict=True))} for item in found]
        )
        return
    rows = [
        [
            *(name.upper() for name in by),
            "REQUESTS",
            "ERRORS",
            "ENDED",
            "TOKENS",
            "USD",
            "P50 MS",
            "P95",
            "P99",
        ]
    ]
    for item in found:
        latency = ["-"] * 3 if item.latency_ms is None else [f"{value:.0f}" for value in item.latency_ms]
        ended = ", ".join(f"{name} {count}" for name, count in sorted(item.finishes.items()))
        tokens = f"{item.prompt_tokens}+{item.completion_tokens}"
        key = ["-" if value in (None, "") else str(value) for value in item.key]
        rows.append(
            [*key, str(item.requests), str(item.errors), ended, tokens, f"{item.cost_usd:.4f}", *latency]
        )
    print_table(rows)


@log.command("verify", short_help="Check segments, history and index against each other.")
@json_option
@folder_option
@index_option
def verify(*, as_json: bool, folder: Path | None, url: str | None) -> int:
    """Check every checksum and seal, the history's digests, and that every accepted request is in the index.

    Exit code 0 where nothing is wrong, 1 where something is. A tail that a crash tore is not wrong: nobody was told
    that it was kept.
    """
    from posttrain.traffic.audit import verify_log

    where = _folder(folder)
    found = verify_log(where, _index(where, url))
    if as_json:
        print_json({"ok": found.ok, **dataclasses.asdict(found)})
        return 0 if found.ok else 1
    for state in found.segments:
        if state.problem:
            click.echo(f"{state.name}: {state.problem}")
        elif state.torn_bytes and state.final:
            click.echo(f"{state.name}: {state.torn_bytes} bytes at the end were torn by a crash")
    for problem in found.history:
        click.echo(problem)
    for owner in found.owners:
        click.echo(
            f"{owner.owner}: {owner.accepted} accepted, {owner.indexed} in the index, {owner.ended} ended, "
            f"{owner.lost} lost"
        )
        for name in ("missing", "unended", "extra"):
            if ids := getattr(owner, name):
                click.echo(f"  {name}: {', '.join(ids)}")
    click.echo("ok" if found.ok else "the log and its index do not agree, or bytes are damaged")
    return 0 if found.ok else 1


@log.command("forget", short_help="Erase everything of a user.")
@click.argument("user")
@click.option("--hashed", is_flag=True, help="USER is already the hash that the log shows.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@folder_option
@index_option
def forget_user(
    *, user: str, hashed: bool, yes: bool, as_json: bool, folder: Path | None, url: str | None
) -> None:
    """Erase every row of USER, and what names those rows, from segments, history and index; there is no way back.

    USER is the name as clients send it. A request that is being answered meanwhile leaves a row in its segment: run it
    again afterwards.
    """
    from posttrain.traffic.erasure import forget
    from posttrain.traffic.pseudonym import load_or_make_secret, pseudonym
    from posttrain.traffic.query import Where, requests

    where = _folder(folder)
    index = _index(where, url)
    name = user if hashed else pseudonym(load_or_make_secret(where), "user", user)
    if not yes:
        known = sum(1 for _ in requests(index, Where(user=name)))
        click.confirm(f"Erase {known} requests of {user!r} and all that belongs to them?", abort=True)
    removal = forget(where, index, user=name)
    if as_json:
        print_json(dataclasses.asdict(removal))
        return
    click.echo(f"removed of user {name}, for good:")
    print_table([[key.replace("_", " "), str(value)] for key, value in removal.counts.items()], indent="  ")


@log.command("retain", short_help="Remove what is past its time.")
@click.option("--days", type=click.FloatRange(min=0), required=True, help="Keep what is younger than this.")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@json_option
@folder_option
@index_option
def retain_days(*, days: float, dry_run: bool, as_json: bool, folder: Path | None, url: str | None) -> None:
    """Remove rows, segments and history that are older than so many days."""
    from posttrain.traffic.retention import retain

    where = _folder(folder)
    done = retain(where, _index(where, url), days=days, dry_run=dry_run)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    rows = ", ".join(f"{count} {name}" for name, count in done.rows.items())
    click.echo(
        f"{'would remove' if dry_run else 'removed'} {rows}; {len(done.segments)} segments and {len(done.parts)} "
        f"files of the history ({size_text(done.freed_bytes)})"
    )


@log.command("export", short_help="Write requests to a file.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE"
)
@since_option
@until_option
@json_option
@folder_option
@index_option
def export(
    *, output: Path, since: int | None, until: int | None, as_json: bool, folder: Path | None, url: str | None
) -> None:
    """Write requests and shadows, with their feedback and verdicts, to FILE.jsonl or FILE.parquet."""
    from posttrain.traffic.export import export_requests
    from posttrain.traffic.query import Where

    count = export_requests(_index(_folder(folder), url), Where(since_ms=since, until_ms=until), output)
    if as_json:
        print_json({"file": str(output), "requests": count})
    else:
        click.echo(f"{count} requests in {output}")


def _folder(folder: Path | None) -> Path:
    from posttrain.core.errors import UnknownReferenceError

    found = folder or settings_of(None).home / "serving" / "default" / "traffic"
    if not found.is_dir():
        raise UnknownReferenceError(
            f"there is no traffic log at {found}", hint="`posttrain serve` makes it; --folder names another"
        )
    return found


def _index(folder: Path, url: str | None) -> TrafficIndex:
    """The index, with everything that the segments have by now."""
    from posttrain.core.errors import UsageError
    from posttrain.traffic.index import TrafficIndex, known_sink
    from posttrain.traffic.indexer import index_once

    if url is None and (sink := known_sink(folder)) is not None:
        # Another index beside it would be asked, and erased from, in its place.
        raise UsageError(f"the index of {folder} is {sink}", hint="give it with --index URL")
    index = TrafficIndex.open(folder, url)
    index_once(folder, index)
    return index


def _print_row(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(row, ensure_ascii=False))
        return
    click.echo(" ".join(_columns(row)))


def _columns(row: dict[str, Any]) -> Iterator[str]:
    at_ms = row.get("at_ms")
    if isinstance(at_ms, int):
        yield datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    yield str(row.get("id"))
    for key in ("kind", "of", "model", "lane", "arm", "type", "outcome", "status", "finish", "error"):
        if row.get(key):
            yield f"{key}={_text(row[key])}"
    if row.get("latency_ms") is not None:
        yield f"{float(row['latency_ms']):.0f}ms"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
