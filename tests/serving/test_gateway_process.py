"""The worker as a process under a control socket: start, swap, stats, drain; and control that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from posttrain.serving.gateway.config import WorkerConfig
from tests.serving.gateway_world import Client, chat, make_snapshot, read_rows, run, target
from tests.serving.upstreams import Upstream


class Control:
    """The other end of the socket, as control would be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[dict[str, Any]] = []
        self._writer: asyncio.StreamWriter | None = None

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def leave(self) -> None:
        self._server.close()
        assert self._writer is not None
        self._writer.transport.abort()
        self.path.unlink(missing_ok=True)

    async def say(self, op: str, **fields: Any) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        await self._writer.drain()

    async def hear(self, op: str, **fields: Any) -> dict[str, Any]:
        while True:
            for message in self.heard:
                if message["op"] == op and all(message.get(name) == value for name, value in fields.items()):
                    self.heard.remove(message)
                    return message
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        while line := await reader.readline():
            self.heard.append(json.loads(line))


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[tuple[Control, asyncio.subprocess.Process]]:
    control = Control(folder / "control.sock")
    await control.listen()
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "posttrain.serving.gateway",
        "--control",
        str(control.path),
        "--worker",
        "w1",
        env=dict(os.environ),
    )
    try:
        yield control, worker
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()


def test_a_process_serves_swaps_and_drains(tmp_path: Path) -> None:
    async def test() -> None:
        up = await Upstream("a").start()
        config = WorkerConfig(name="w1", port=0, traffic_folder=str(tmp_path / "log"))
        async with process(tmp_path) as (control, worker):
            hello = await control.hear("hello")
            assert (hello["worker"], hello["pid"], hello["epoch"], hello["port"]) == ("w1", worker.pid, 0, 0)
            snapshot = make_snapshot({"a": up}, 1)
            await control.say("start", config=config.to_json(), snapshot=snapshot.to_json())
            port = (await control.hear("ready"))["port"]
            await control.hear("epoch", epoch=1)
            client = Client(*await asyncio.open_connection("127.0.0.1", port))
            assert (await client.ask(chat())).json()["model"] == "v1@1"

            slow = asyncio.create_task(client.ask(chat(mock={"delay": 0.3})))
            await asyncio.sleep(0.1)
            swapped = make_snapshot({"a": up}, 2, production=target("v2"))
            await control.say("snapshot", snapshot=swapped.to_json())
            await control.hear("epoch", epoch=2)
            assert not any(message["op"] == "drained" for message in control.heard)
            assert (await slow).json()["model"] == "v1@1"
            await control.hear("drained", epoch=2)
            assert (await client.ask(chat())).json()["model"] == "v2@1"
            await control.say("snapshot", snapshot=make_snapshot({"a": up}, 1).to_json())
            assert "epoch 1" in (await control.hear("failed"))["error"]
            while True:
                stats = await control.hear("stats")
                requests = {item["target"]: item["requests"] for item in stats["targets"]}
                if requests == {"v1": 2, "v2": 1}:
                    break
            assert stats["in_flight"] == 0 and stats["shadow"]["dropped"] == 0

            await control.say("stop", grace_seconds=5)
            assert await worker.wait() == 0
            client.close()
        await up.stop()
        ends = [row for row in read_rows(tmp_path / "log") if row["kind"] == "end"]
        assert [row["epoch"] for row in ends] == [1, 1, 2]

    run(test)


def test_a_worker_goes_on_without_control_and_finds_it_again(tmp_path: Path) -> None:
    async def test() -> None:
        up = await Upstream("a").start()
        config = WorkerConfig(name="w1", port=0, traffic_folder=str(tmp_path / "log"))
        async with process(tmp_path) as (control, worker):
            await control.hear("hello")
            await control.say(
                "start", config=config.to_json(), snapshot=make_snapshot({"a": up}, 7).to_json()
            )
            port = (await control.hear("ready"))["port"]
            await control.leave()
            client = Client(*await asyncio.open_connection("127.0.0.1", port))
            assert (await client.ask(chat())).status == 200
            again = Control(control.path)
            await again.listen()
            hello = await again.hear("hello")
            assert (hello["epoch"], hello["port"], hello["pid"]) == (7, port, worker.pid)
            await again.say("snapshot", snapshot=make_snapshot({"a": up}, 8).to_json())
            await again.hear("epoch", epoch=8)
            client.close()
            worker.send_signal(signal.SIGTERM)
            assert await worker.wait() == 0
        await up.stop()

    run(test)


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def test() -> None:
        up = await Upstream("a").start()
        async with process(tmp_path) as (control, _):
            await control.hear("hello")
            config = WorkerConfig(name="w1", port=up.port, traffic_folder=str(tmp_path / "log")).to_json()
            await control.say("start", config=config, snapshot=make_snapshot({"a": up}, 1).to_json())
            assert f"cannot listen on 127.0.0.1:{up.port}" in (await control.hear("failed"))["error"]
            config["port"] = 0
            await control.say("start", config=config, snapshot=make_snapshot({"a": up}, 1).to_json())
            assert (await control.hear("ready"))["port"] > 0
            await control.say("nonsense")
            await control.hear("failed")
        await up.stop()

    run(test)


def test_a_killed_worker_has_lost_no_answer_that_a_client_has_whole(tmp_path: Path) -> None:
    async def test() -> None:
        up = await Upstream("a").start()
        folder = tmp_path / "log"
        config = WorkerConfig(name="w1", port=0, traffic_folder=str(folder))
        whole: set[str] = set()
        sent: set[str] = set()
        for number in range(4):
            async with process(tmp_path) as (control, worker):
                await control.hear("hello")
                snapshot = make_snapshot({"a": up}, 1)
                await control.say("start", config=config.to_json(), snapshot=snapshot.to_json())
                port = (await control.hear("ready"))["port"]

                async def ask(client: Client, name: str, whole: set[str] = whole) -> None:
                    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                        for turn in range(100_000):
                            request = f"{name}-{turn:06d}"
                            sent.add(request)
                            body = chat(stream=turn % 2 == 1, mock={"chunks": 3, "delay": 0.001 * (turn % 3)})
                            reply = await client.ask(body, headers={"x-request-id": request})
                            if reply.whole:
                                whole.add(reply.id)

                clients = [Client(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(8)]
                tasks = [asyncio.create_task(ask(c, f"run{number}-{n}")) for n, c in enumerate(clients)]
                await asyncio.sleep(0.2 + 0.05 * number)
                worker.kill()
                await worker.wait()
                await asyncio.gather(*tasks)
                await control.leave()
        await up.stop()
        rows = read_rows(folder)
        ends = [row["id"] for row in rows if row["kind"] == "end"]
        begins = {row["id"] for row in rows if row["kind"] == "begin"}
        assert len(whole) > 50 and whole <= set(ends)
        assert len(ends) == len(set(ends)) and set(ends) <= begins <= sent
        # What each of the clients had asked and not got is all that can be missing an end.
        assert len(begins - set(ends)) <= 4 * 8

    run(test)


def test_a_worker_that_nobody_told_anything_does_not_wait_for_ever(tmp_path: Path) -> None:
    """Control may be killed between starting a worker and hearing of it, and be gone for good."""
    command = [sys.executable, "-m", "posttrain.serving.gateway", "--worker", "w0"]
    done = subprocess.run([*command, "--control", str(tmp_path / "nobody.sock")], timeout=60, check=False)
    assert done.returncode == 0
