"""cli: the command line, one thin module a command. Holds no logic; everything is a call into a room
below."""

from posttrain.cli._app import main

__all__ = ["main"]
