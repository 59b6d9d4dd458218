"""``posttrain example``."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.cli._options import home_of, home_option, json_option, print_json


@click.group(short_help="Whole stories to watch: what the parts do together.")
def example() -> None:
    """Whole stories to watch, on this machine, with the models that the recipes made."""


@example.command(
    "canary", short_help="A better candidate goes to production, a bad one is rolled back by itself."
)
@click.option("--run", metavar="RUN", help="Which run of r1-tiny.  [default: the latest finished one]")
@click.option(
    "--workers", type=click.IntRange(1, 16), default=2, show_default=True, help="Processes of the gateway."
)
@click.option(
    "--at-once", type=click.IntRange(1, 256), default=8, show_default=True, help="Users who ask at once."
)
@json_option
@home_option
def canary(*, run: str | None, workers: int, at_once: int, as_json: bool, home: Path | None) -> None:
    """R1-tiny beside R1-Zero-tiny before simulated users: shadow, canary, production. Then a candidate with a sampling
    setting that nobody evaluated, which is rolled back by its triggers. About two minutes; needs a finished r1-tiny.
    """
    import asyncio
    import dataclasses
    import signal
    import time

    from posttrain.examples.canary import Story, find_models, tell

    opened, begun = home_of(home), time.monotonic()

    def say(line: str) -> None:
        click.echo(f"[{time.monotonic() - begun:6.1f} s] {line}", err=as_json)

    async def play() -> Story:
        task = asyncio.current_task()
        assert task is not None, "this runs in one"
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, task.cancel
        )  # as Ctrl-C: everything is stopped
        return await tell(opened, find_models(opened, run), say, workers=workers, at_once=at_once)

    story = asyncio.run(play())
    if as_json:
        print_json(dataclasses.asdict(story))
        return
    visits, times = story.visits, story.rollback.get("milliseconds", {})
    click.echo(
        f"\n{visits['asked']} questions, {visits['answered']} answers, {visits['failed']} without one; "
        f"{visits['right']} right, {visits['left']} users left; latency p50 {visits['latency_p50_ms']} ms, "
        f"p95 {visits['latency_p95_ms']} ms"
    )
    pairs = story.rollouts[0]["pairs"]
    click.echo(
        f"in shadow R1 was judged better {pairs['shadow']} times, worse {pairs['production']} times, "
        f"equal {pairs['tie']} times"
    )
    click.echo(f"the rollback: {story.rollouts[-1]['label']}")
    click.echo(f"  every worker on the old release {times.get('moved', 0):.0f} ms after the trigger")
    log = story.log
    click.echo(f"the log: {log['accepted']} requests accepted, {log['indexed']} rows, {log['lost']} lost")
