"""``python -m posttrain.serving.gateway --control PATH --worker NAME``: a worker process.

Started by control and by nobody else; everything it needs to know comes over the socket.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

from posttrain.core.errors import MissingDependencyError, PosttrainError
from posttrain.serving.gateway.compiled import use_compiled


def main() -> int:
    """Run one worker until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m posttrain.serving.gateway")
    parser.add_argument("--control", required=True, metavar="PATH", help="Unix socket of control")
    parser.add_argument("--worker", required=True, metavar="NAME", help="name of this worker")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return run(options.control, options.worker)
    except PosttrainError as error:
        sys.stderr.write(f"error: {error}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return error.exit_code


def run(control: str, worker: str) -> int:
    """The loop."""
    use_compiled()
    try:
        import uvloop

        from posttrain.serving.gateway.link import ControlLink
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("posttrain"):
            raise
        raise MissingDependencyError(
            f"the gateway needs {error.name}", hint="pip install 'posttrain[serve]'"
        ) from error

    async def serve() -> None:
        await ControlLink(control, worker).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
