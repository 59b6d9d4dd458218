"""``posttrain serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli._options import home_option, json_option, print_json, settings_of

if TYPE_CHECKING:
    from posttrain.serving.config import ServeConfig


@click.command(short_help="One OpenAI-compatible door in front of your models.")
@click.argument("config", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--upstream", metavar="URL", help="Without CONFIG: a server to stand in front of, http://host:port/v1."
)
@click.option("--release", metavar="REF", help="Without CONFIG: a release to run and serve.")
@click.option(
    "--model", metavar="NAME", help="Without CONFIG: the model's public name, and the upstream's own."
)
@click.option(
    "--listen",
    default=None,
    metavar="HOST:PORT",
    help="Where to listen.  [default: the file's, else 127.0.0.1:8080]",
)
@json_option
@home_option
def serve(
    config: Path | None,
    *,
    upstream: str | None,
    release: str | None,
    model: str | None,
    listen: str | None,
    as_json: bool,
    home: Path | None,
) -> None:
    """Serve what CONFIG, a YAML file, says, until Ctrl-C. Requests in flight are finished first.

    After a restart the last snapshot counts: what was promoted or rolled back since stays so.
    """
    import asyncio

    from posttrain.artifacts.home import open_home
    from posttrain.serving.control.control import Control

    if config is not None and (upstream or release or model):
        raise click.UsageError("give CONFIG, or --upstream or --release with --model")
    wanted = _read(config) if config is not None else _quick(upstream, release, model)
    if listen is not None:
        wanted = type(wanted).model_validate({**dict(wanted), "listen": listen})

    async def run() -> None:
        async with Control(wanted, open_home(settings_of(home))).running() as control:
            _say(control.where(), as_json=as_json)
            await control.wait()

    asyncio.run(run())


def _say(where: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(where)
        return
    compiled = f" ({where['compiled']} compiled)" if where["compiled"] else ""
    click.echo(
        f"serving {', '.join(where['models'])} at {where['url']} with {where['workers']} workers{compiled}"
    )
    click.echo(f"  log    {where['traffic']}  (`posttrain log tail`)")
    click.echo(f"  admin  {where['admin']}  (`posttrain rollout status`, `posttrain rollback`)")
    if where["keys"]:
        click.echo("  every request needs a key: `posttrain key create --tenant NAME`")


def _read(path: Path) -> ServeConfig:
    from posttrain.core.explain import read_model
    from posttrain.serving.config import ServeConfig

    found = read_model(path, ServeConfig)
    # Files are named from the configuration's own folder, wherever the command runs.
    return found.with_paths_from(path.parent.absolute())


def _quick(upstream: str | None, release: str | None, model: str | None) -> ServeConfig:
    from posttrain.core.explain import Written, check_model
    from posttrain.serving.config import ServeConfig

    if (upstream is None) == (release is None):
        raise click.UsageError("name a configuration, or one of --upstream and --release")
    if upstream is not None and model is None:
        raise click.UsageError("--model: what does the upstream call its model?")
    production = {"release": release} if release is not None else {"upstream": "upstream"}
    data = {
        "upstreams": [] if upstream is None else [{"name": "upstream", "url": upstream}],
        "routes": [{"model": model or "default", "production": production}],
    }
    return check_model(Written(data, "the command line"), ServeConfig)
