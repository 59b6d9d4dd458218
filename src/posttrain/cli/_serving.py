"""What the commands of the gateway share: which gateway, its folder, its admin surface."""

from __future__ import annotations

import functools
import getpass
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli._options import home_option, settings_of

if TYPE_CHECKING:
    from posttrain.serving.control.admin import AdminClient


def gateway_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--gateway`` and ``--home``, which the command gets as one ``folder``: that of the gateway."""

    @functools.wraps(command)
    def with_folder(*arguments: Any, gateway: str, home: Path | None, **options: Any) -> Any:
        return command(*arguments, folder=settings_of(home).home / "serving" / gateway, **options)

    named = click.option(
        "--gateway",
        default="default",
        show_default=True,
        metavar="NAME",
        help="Which gateway: the `name` of its configuration.",
    )
    return named(home_option(with_folder))


def admin_of(folder: Path) -> AdminClient:
    """The admin surface of a running gateway. Raises ServingError where none runs."""
    from posttrain.serving.control.admin import AdminClient

    return AdminClient(folder)


def who() -> str:
    """Who types, for the journal."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
