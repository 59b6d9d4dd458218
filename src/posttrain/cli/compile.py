"""``posttrain compile``."""

from __future__ import annotations

import click

from posttrain.cli._options import json_option, print_json


@click.command("compile", short_help="Compile the gateway's hot path for this environment.")
@click.option("--again", is_flag=True, help="Compile even what is compiled already.")
@click.option("--remove", is_flag=True, help="Remove what was compiled; workers run interpreted again.")
@json_option
def compile_gateway(*, again: bool, remove: bool, as_json: bool) -> None:
    """Compile the modules that run for every request of a gateway, from the sources that are installed.

    Workers that start afterwards use them: the same behaviour for about a third less processor time. The result is
    kept in this environment and belongs to these very sources: after an update or a change of any of them the gateway
    runs interpreted until this is run again. Needs `pip install 'posttrain[compile]'`, a C compiler and
    Python's headers, for this command only. The variable POSTTRAIN_INTERPRETED makes workers leave it alone;
    POSTTRAIN_COMPILED names another folder to keep it in (an absolute path), for this command and for workers.
    """
    import time

    from posttrain.serving.gateway.compiled import MODULES, compiled_folder
    from posttrain.serving.gateway.compiling import compile_hot_path, forget_compiled

    if again and remove:
        raise click.UsageError("--again or --remove, not both")
    if remove:
        removed = forget_compiled()
        if as_json:
            print_json({"removed": removed})
        else:
            click.echo(f"removed {removed}" if removed else "nothing was compiled")
        return
    begun = time.monotonic()
    known = compiled_folder() if not again else None
    if known is None and not as_json:
        click.echo(f"compiling {len(MODULES)} modules, about a minute", err=True)
    folder = compile_hot_path(again=again)
    seconds = round(time.monotonic() - begun, 1)
    if as_json:
        print_json(
            {"folder": str(folder), "modules": list(MODULES), "new": known is None, "seconds": seconds}
        )
    elif known is not None:
        click.echo(f"compiled already: {folder}")
    else:
        click.echo(f"compiled in {seconds:.0f} s: {folder}")
        click.echo("gateway workers that start from now on use it")
