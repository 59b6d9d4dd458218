"""The ``posttrain`` command: its list of sub-commands and what every one of them shares.

Here: lazy loading, exit codes, how errors print. Not here: any command. To add a command: one module with
one click command in it, and one line in ``COMMANDS``. This module and the command modules import click and
the standard library only, so that ``--help`` answers at once; the rest is imported inside the functions that
run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import click

import posttrain
from posttrain.cli._errors import drop_stdout, print_bug, print_error
from posttrain.core.errors import PosttrainError

if TYPE_CHECKING:
    from posttrain.artifacts.stage import StageSpec

COMMANDS = {
    "run": "posttrain.cli.run:run",
    "stage": "posttrain.cli.stage:stage",
    "runs": "posttrain.cli.runs:runs",
    "compare": "posttrain.cli.compare:compare",
    "suite": "posttrain.cli.suite:suite",
    "evaluate": "posttrain.cli.evaluate:evaluate",
    "gate": "posttrain.cli.gate:gate",
    "serve": "posttrain.cli.serve:serve",
    "rollback": "posttrain.cli.rollback:rollback",
    "rollout": "posttrain.cli.rollout:rollout",
    "release": "posttrain.cli.release:release",
    "example": "posttrain.cli.example:example",
    "key": "posttrain.cli.key:key",
    "log": "posttrain.cli.log:log",
    "router": "posttrain.cli.router:router",
    "compile": "posttrain.cli.compile:compile_gateway",
    "show": "posttrain.cli.show:show",
    "recipes": "posttrain.cli.recipes:recipes",
    "doctor": "posttrain.cli.doctor:doctor",
    "verify": "posttrain.cli.verify:verify",
    "gc": "posttrain.cli.gc:gc",
}
"""Sub-command to ``module:attribute``, in the order of ``--help``."""

EXIT_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """A group that imports a sub-command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from posttrain.core.suggest import did_you_mean  # only for a mistyped command

            raise click.UsageError(
                f"no command {args[0]!r}; {did_you_mean(args[0], COMMANDS)}", ctx
            ) from error


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(posttrain.__version__, prog_name="posttrain")
def app() -> None:
    """Train, judge, gate, serve, watch, roll back and relearn a post-trained language model.

    Start with `posttrain recipes`, then `posttrain run r1-zero-tiny`. Everything that a run makes is kept in
    the home folder (.posttrain, or POSTTRAIN_HOME), named by its content, so no work is done twice.
    """


def main(arguments: Sequence[str] | None = None, *, stages: Mapping[str, StageSpec] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 stopped by the user.

    ``stages`` replaces the table of stage kinds, for a program with stages of its own.
    """
    try:
        result = app.main(args=arguments, prog_name="posttrain", standalone_mode=False, obj=stages)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.message, err=True)
        return 2
    except click.UsageError as error:
        program = error.ctx.command_path if error.ctx else "posttrain"
        print_error(error.format_message(), f"`{program} --help` shows how it is used")
        return 2
    except click.ClickException as error:
        print_error(error.format_message(), None)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except PosttrainError as error:
        print_error(error.message, error.hint)
        return error.exit_code
    except BrokenPipeError:
        drop_stdout()
        return 1
    except Exception as error:  # a boundary: whatever else comes up here is a bug, and is shown as one
        print_bug(error)
        return 1
    return result if isinstance(result, int) else 0
