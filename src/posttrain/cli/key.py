"""``posttrain key create``, ``list``, ``revoke`` and ``rotate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli._options import json_option, print_json
from posttrain.cli._serving import gateway_option

if TYPE_CHECKING:
    from posttrain.serving.access.keys import KeyFile, NewKey
    from posttrain.serving.access.records import KeyRecord


@click.group(short_help="Make, list, revoke and rotate the API keys of a gateway.")
def key() -> None:
    """API keys of a gateway: who may ask for what, and how much of it.

    The file is HOME/serving/NAME/keys.json. It holds no key, only what recognises one, so a key is shown once, when
    it is made. A gateway that runs takes up a change at once.
    """


def _file(folder: Path) -> KeyFile:
    from posttrain.serving.access.keys import KeyFile

    return KeyFile(folder / "keys.json")


def _tell_gateway(folder: Path) -> None:
    """A gateway that runs takes up the change at once."""
    from posttrain.core.errors import ServingError
    from posttrain.serving.control.admin import AdminClient

    try:
        told = AdminClient(folder, seconds=5.0).call("POST", "/v1/access", {})
    except ServingError:
        return  # none runs: it reads the file when it starts
    if not told["keys"]:
        click.echo("the gateway that runs asks for no keys yet: start it again", err=True)


def _public(record: KeyRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude={"secret", "previous"})


def _show_new(new: NewKey, as_json: bool) -> None:
    if as_json:
        print_json({**_public(new.record), "key": new.token})
        return
    click.echo(new.token)
    click.echo("This is the only time that it is shown.", err=True)


@key.command("create", short_help="Make a key and show it, once.")
@click.option("--tenant", required=True, help="Whose key it is.")
@click.option("--name", default="", help="What it is for, for people.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["chat", "completions", "feedback", "models", "metrics"]),
    help="What it may be used for; several times.  [default: all but metrics]",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="What it may ask for; several times.  [default: all]",
)
@click.option("--expires-days", type=click.FloatRange(min=0, min_open=True), help="When it stops being good.")
@click.option("--requests-per-minute", type=click.IntRange(min=1))
@click.option("--tokens-per-minute", type=click.IntRange(min=1))
@click.option("--tokens-per-day", type=click.IntRange(min=1))
@gateway_option
@json_option
def create(folder: Path, as_json: bool, **options: Any) -> None:
    """Make a key and print it. Only the key goes to standard output."""
    import time

    from posttrain.serving.access.records import Budgets

    days = options["expires_days"]
    new = _file(folder).create_key(
        options["tenant"],
        name=options["name"],
        scopes=options["scopes"],
        models=options["models"],
        budgets=Budgets.model_validate({name: options[name] for name in Budgets.model_fields}),
        expires_at=None if days is None else time.time() + days * 86_400,
    )
    _show_new(new, as_json)
    _tell_gateway(folder)


@key.command("list", short_help="Every key there ever was.")
@gateway_option
@json_option
def list_keys(folder: Path, as_json: bool) -> None:
    """Every key there ever was, oldest first; none can be read from here."""
    import time

    records = _file(folder).read()
    if as_json:
        print_json([_public(record) for record in records])
        return
    for record in records:
        expired = record.expires_at is not None and record.expires_at <= time.time()
        state = "revoked" if record.disabled else "expired" if expired else "good"
        limits = [f"{name}={value}" for name, value in record.budgets if value is not None]
        models = "all models" if record.models is None else ",".join(record.models)
        click.echo(
            "  ".join(
                [
                    record.id,
                    f"{state:8}",
                    record.tenant,
                    record.name or "-",
                    ",".join(record.scopes),
                    models,
                    *limits,
                ]
            )
        )


@key.command("revoke", short_help="Make a key worthless.")
@click.argument("identifier", metavar="ID")
@gateway_option
def revoke(identifier: str, folder: Path) -> None:
    """Make a key worthless, for ever, in a gateway that runs, too."""
    revoked = _file(folder).revoke(identifier)
    _tell_gateway(folder)
    click.echo(f"revoked {revoked.id}")


@key.command("rotate", short_help="Give a key a new secret.")
@click.argument("identifier", metavar="ID")
@click.option(
    "--keep-seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How long the old secret stays good beside the new one.",
)
@gateway_option
@json_option
def rotate(identifier: str, keep_seconds: float, *, folder: Path, as_json: bool) -> None:
    """Give a key a new secret and print the key. Budgets and counters go on."""
    new = _file(folder).rotate(identifier, keep_seconds=keep_seconds)
    _show_new(new, as_json)
    _tell_gateway(folder)
