"""A whole gateway under load: swaps, rollouts, rollbacks, kills. Its upstreams are small real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.home import open_home
from posttrain.core.errors import ServingError
from posttrain.core.settings import Settings
from posttrain.releases.signing import sign_release
from posttrain.rollouts.events import Aborted
from posttrain.serving.access.keys import KeyFile
from posttrain.serving.control.control import TICK_SECONDS, Control
from tests.serving.control_gateway_world import (
    CONTRACT,
    STAGES,
    Place,
    gateway,
    make_decision,
    make_release,
    running,
    serve_config,
    upstreams,
)
from tests.serving.gateway_world import Client, chat, run
from tests.serving.test_gateway_limits import file_size_limit

pytestmark = pytest.mark.xdist_group("control")


def agreed(control: Control) -> tuple[int, int, int]:
    """Accepted, indexed and lost requests, once everything has stopped; nothing may differ."""
    counts = control.reconcile()
    assert all(count.agrees for count in counts), counts
    return (
        sum(count.accepted for count in counts),
        sum(count.indexed for count in counts),
        sum(count.lost for count in counts),
    )


async def roll_out(place: Place, name: str, model: Any, **more: Any) -> dict[str, Any]:
    asked = {
        "release": name,
        "contract": CONTRACT,
        "decision": make_decision(place.home, model),
        "stages": STAGES,
        "auto_advance": True,
        "by": "test",
        **more,
    }
    found: dict[str, Any] = await place.call("POST", "/v1/rollouts", asked)
    return found


async def finished(place: Place, rollout: dict[str, Any]) -> dict[str, Any]:
    async def over() -> dict[str, Any] | None:
        found: dict[str, Any] = await place.call("GET", f"/v1/rollouts/{rollout['id']}")
        done = found["phase"] in ("ROLLED_BACK", "ABORTED") or found["label"] == "COMPLETED"
        return found if done else None

    found: dict[str, Any] = await place.until(over)
    return found


def test_a_good_candidate_goes_all_the_way_under_load_and_no_request_fails(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            name, model = make_release(place.home, "v2")
            async with place.load() as load:
                done = await finished(place, await roll_out(place, name, model))
                assert done["label"] == "COMPLETED"
                await place.until(lambda: load.by_text["new says new"] > 200)
            assert set(load.statuses) == {200}
            assert load.broken == 0
            status = await place.call("GET", "/v1/status")
            assert status["routes"][0]["production"]["name"] == "v2"
            assert place.home.registry.current_release("production").digest == done_release(status)
            stages = [event["to"] for event in done["events"] if event["kind"] == "advanced"]
            assert stages == [1, 2, 3, 4]
        # Everybody got the candidate or what was production, by his bucket, and the log says which.
        rows = place.rows("end")
        assert {row["lane"] for row in rows} == {"production", "canary"}
        assert {row["target"] for row in place.rows("shadow")} == {"v2"}
        epochs = {row["epoch"] for row in rows}
        assert epochs <= set(range(1, status["epoch"] + 1))
        accepted, indexed, lost = agreed(place.control)
        assert accepted == indexed == len(load.ids) + load.broken
        assert lost == 0

    run(test, 120)


def done_release(status: dict[str, Any]) -> str:
    return str(status["routes"][0]["production"]["release"])


def test_a_bad_candidate_is_rolled_back_by_itself_and_stays_out_until_somebody_looks(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            name, model = make_release(place.home, "v2")
            # It is well until it meets users at 50 %; then half of its answers fail.
            async with place.load() as load:
                rollout = await roll_out(place, name, model, auto_advance=False)
                for stage in (1, 2, 3):
                    await place.until(lambda: advanced(place, rollout["id"]))
                    assert (await place.call("GET", f"/v1/rollouts/{rollout['id']}"))["stage"] == stage
                place.new.always = {"status": 500}
                done = await finished(place, rollout)
                assert done["phase"] == "ROLLED_BACK"
                seen = load.by_text["old says old"]
                await place.until(lambda: load.by_text["old says old"] > seen + 100)
                failed = load.statuses[500] + load.statuses[502] + load.statuses[503]
                assert failed, "the candidate's failures reach its own users only"
                before = dict(load.statuses)
                await place.until(lambda: load.statuses[200] > before[200] + 100)
                assert {s for s, count in load.statuses.items() if count != before.get(s, 0)} == {200}
            assert "error rate" in done["label"]
            assert "registered under contract sha256:" in done["label"]
            journal = [entry for entry in place.home.registry.journal() if entry.action == "rollback"]
            assert len(journal) == 1
            report = journal[0].data
            assert report["actor"] == "control"
            assert report["late"] == []
            assert {"ready", "swap", "moved"} <= set(report["milliseconds"])
            # Latched: no other candidate meets traffic until a person has looked.
            with pytest.raises(ServingError, match="was rolled back") as refused:
                await roll_out(place, name, model)
            assert "--clear" in str(refused.value.hint)
            await place.call("POST", "/v1/rollback/clear", {"route": "m", "by": "ann", "reason": "seen"})
            place.new.always = {}
            again = await roll_out(place, name, model)
            assert again["phase"] == "GATED"
        agreed(place.control)

    run(test, 120)


async def advanced(place: Place, name: str) -> bool:
    try:
        await place.call("POST", f"/v1/rollouts/{name}/advance", {"by": "test"})
    except ServingError as error:
        assert "requests" in str(error) or "hours" in str(error), error
        return False
    return True


def test_a_candidate_needs_a_decision_about_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            name, model = make_release(place.home, "v2")
            _, other = make_release(place.home, "v3", b"other weights")
            for decision in (make_decision(place.home, other), make_decision(place.home, model, "NO-GO")):
                with pytest.raises(ServingError, match="cannot start now"):
                    await roll_out(place, name, model, decision=decision)
                # What was refused does not stand in the way of the next one.
                assert (await place.call("GET", "/v1/rollouts"))[-1]["phase"] == "ABORTED"
            assert (await roll_out(place, name, model))["phase"] == "GATED"

    run(test)


def test_a_release_with_a_changed_byte_never_meets_traffic(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            name, model = make_release(place.home, "v2")
            weights = place.home.store.file(model, "model.safetensors")
            weights.chmod(0o644)
            weights.write_bytes(b"weighty")
            with pytest.raises(ServingError, match=r"v2 is refused: base.*model\.safetensors"):
                await roll_out(place, name, model)
            assert await place.call("GET", "/v1/rollouts") == []
            assert (await place.call("GET", "/v1/status"))["epoch"] == 1

    run(test)


def test_a_rollback_that_two_write_down_is_in_the_journal_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            rollback, journal = place.control.rollback, place.home.registry.journal
            write = rollback._journal

            def slowly(*line: Any) -> None:
                time.sleep(0.05)
                write(*line)

            rollback._journal = slowly
            drill = asyncio.create_task(rollback.run("m", reason="a drill", actor="ann", drill=True))
            while not drill.done():  # what looks after all rollouts does this again and again
                await rollback.settle()
                await asyncio.sleep(0.002)
            await drill
            assert [entry.action for entry in journal() if "rollback" in entry.action] == ["rollback.drill"]

    run(test)


def test_rolling_back_by_hand_and_drills(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            with pytest.raises(ServingError, match="nothing earlier"):
                await place.call("POST", "/v1/rollback", {})
            name, model = make_release(place.home, "v2")
            async with place.load() as load:
                await finished(place, await roll_out(place, name, model))
                drill = await place.call("POST", "/v1/rollback", {"drill": True, "by": "ann"})
                assert drill["drill"]
                status = await place.call("GET", "/v1/status")
                assert status["routes"][0]["production"]["name"] == "v2"
                assert status["latched"] == {}
                back = await place.call("POST", "/v1/rollback", {"by": "ann", "reason": "a hunch"})
                assert (back["before"], back["after"]) == ("v2", "old/old")
                new, old = load.by_text["new says new"], load.by_text["old says old"]
                await place.until(lambda: load.by_text["old says old"] > old + 100)
                assert load.by_text["new says new"] == new
                forward = await place.call("POST", "/v1/rollback", {"to": "v2", "by": "ann"})
                assert forward["after"] == "v2"
            assert set(load.statuses) == {200}
            assert load.broken == 0
            actions = [(e.action, e.actor) for e in place.home.registry.journal() if "rollback" in e.action]
            assert actions == [("rollback.drill", "ann"), ("rollback", "ann"), ("rollback", "ann")]
        agreed(place.control)

    run(test, 120)


def test_a_killed_worker_is_started_again_and_its_requests_are_rows(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            async with place.load(clients=8) as load:
                for _ in range(4):
                    worker = place.control.links.by_name["w0"]
                    os.kill(worker.pid, signal.SIGKILL)
                    await place.until(
                        lambda pid=worker.pid: (
                            (link := place.control.links.by_name.get("w0")) is not None
                            and link.pid != pid
                            and link.epoch
                        )
                    )
                    await asyncio.sleep(0.2)
            assert place.control.pool.restarts == {"w0": 4, "w1": 0}
            assert set(load.statuses) == {200}
        accepted, indexed, lost = agreed(place.control)
        assert accepted == indexed
        # What a client has whole is a row; what was cut off is one, too, unless nothing of it was accepted.
        ends = {row["id"] for row in place.rows("end")}
        assert ends.issuperset(load.ids)
        assert lost <= load.broken

    run(test, 120)


def test_a_killed_control_leaves_the_workers_serving_and_the_next_one_takes_them_over(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            before = {name: link.pid for name, link in place.control.links.by_name.items()}
            async with place.load() as load:
                # What a kill does to control: its sockets close, its tasks end, nobody is told to stop.
                for task in place.control._tasks:
                    task.cancel()
                if place.control.pool._task is not None:
                    place.control.pool._task.cancel()
                await place.control.links.stop()
                asked = sum(load.statuses.values())
                await place.until(lambda: sum(load.statuses.values()) > asked + 100)
                assert place.control._admin is not None
                await asyncio.to_thread(place.control._admin.stop)
                second = Control(serve_config(place.old, place.new), place.home)
                await second._start()
                try:
                    assert {name: link.pid for name, link in second.links.by_name.items()} == before
                    report = await second.swapper.swap(lambda snapshot: snapshot, "hello")
                    assert report.late == ()
                    assert report.workers == 2
                finally:
                    await second._stop()
            assert set(load.statuses) == {200}

    run(test, 120)


def test_after_a_restart_a_rollout_goes_on_where_it_was(tmp_path: Path) -> None:
    async def test() -> None:
        async with upstreams() as (old, new):
            async with running(tmp_path, old, new) as place:
                name, model = make_release(place.home, "v2")
                rollout = await roll_out(place, name, model, auto_advance=False)
                async with place.load():
                    await place.until(lambda: advanced(place, rollout["id"]))
                    await place.until(lambda: advanced(place, rollout["id"]))
                    before = await place.until(lambda: at_least(place, rollout["id"], "1000", 5))
            async with running(tmp_path, old, new) as place:
                status = await place.call("GET", "/v1/status")
                assert status["routes"][0]["canary"]["share"] == 1000
                found = await place.call("GET", f"/v1/rollouts/{rollout['id']}")
                assert found["label"] == before["label"] == "canary 10 %"
                # What was seen before the restart still counts.
                again = await place.until(lambda: at_least(place, rollout["id"], "", 5, seconds=10))
                assert int(again["progress"].split()[0]) >= int(before["progress"].split()[0])
                async with place.load() as load:
                    await place.until(lambda: advanced(place, rollout["id"]))
                    await place.until(lambda: load.by_text["new says new"] > 20)
                assert set(load.statuses) == {200}
            agreed(place.control)

    run(test, 120)


async def at_least(place: Place, name: str, label: str, requests: int, **_: Any) -> dict[str, Any] | None:
    found: dict[str, Any] = await place.call("GET", f"/v1/rollouts/{name}")
    return found if int(found["progress"].split()[0] or 0) >= requests else None


def test_a_candidate_that_cannot_be_loaded_after_a_restart_leaves_and_production_serves(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with upstreams() as (old, new):
            async with running(tmp_path, old, new) as place:
                name, model = make_release(place.home, "v2")
                rollout = await roll_out(place, name, model, auto_advance=False)
                async with place.load():
                    await place.until(lambda: advanced(place, rollout["id"]))
                    await place.until(lambda: advanced(place, rollout["id"]))
            weights = place.home.store.file(model, "model.safetensors")
            weights.chmod(0o644)
            weights.write_bytes(b"weighty")
            async with running(tmp_path, old, new) as place:
                async with place.load() as load:
                    await place.until(lambda: load.statuses[200] > 50)
                    done = await finished(place, rollout)
                assert set(load.by_text) == {"old says old"}
                assert done["phase"] == "ROLLED_BACK"
                assert "model.safetensors" in done["label"]
                status = await place.call("GET", "/v1/status")
                assert status["routes"][0]["canary"] is None
                assert "model.safetensors" in status["latched"]["m"]

    run(test, 120)


def test_a_gateway_that_is_rolled_forward_stays_so_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with upstreams() as (old, new):
            async with running(tmp_path, old, new) as place:
                name, model = make_release(place.home, "v2")
                async with place.load():
                    await finished(place, await roll_out(place, name, model))
            async with running(tmp_path, old, new) as place:
                async with place.load() as load:
                    await place.until(lambda: load.statuses[200] > 20)
                assert set(load.by_text) == {"new says new"}
                back = await place.call("POST", "/v1/rollback", {"by": "ann"})
                assert back["after"] == "old/old"

    run(test, 120)


def test_a_worker_that_the_last_control_could_not_note_is_taken_over_and_one_too_many_is_told_to_stop(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            first = place.control
            before = {name: link.pid for name, link in first.links.by_name.items()}
            for task in first._tasks:
                task.cancel()
            assert first.pool._task is not None and first._admin is not None
            first.pool._task.cancel()
            await first.links.stop()
            await asyncio.to_thread(first._admin.stop)
            # A kill between the start of w1 and the note of it.
            noted = first.folder / "workers" / "workers.json"
            noted.write_text(json.dumps({"w0": json.loads(noted.read_bytes())["w0"]}))
            second = Control(serve_config(place.old, place.new), place.home)
            await second._start()
            try:
                assert {name: link.pid for name, link in second.links.by_name.items()} == before
                command = [sys.executable, "-m", "posttrain.serving.gateway", "--worker", "w1"]
                other = await asyncio.create_subprocess_exec(*command, "--control", str(second.links.path))
                assert await other.wait() == 0
                assert {name: link.pid for name, link in second.links.by_name.items()} == before
                assert second.pool.restarts == {"w0": 0, "w1": 0}
            finally:
                await second._stop()

    run(test, 120)


def test_metrics_are_of_all_workers_whichever_is_asked(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            # So many that the kernel gives each worker some: of four, one run in eight gave one worker none.
            async with place.load(clients=24) as load:
                await place.until(lambda: load.statuses[200] > 100)
            asked = sum(load.statuses.values())

            async def counted() -> bool:
                client = Client(*await asyncio.open_connection("127.0.0.1", place.control.port))
                page = (await client.ask(None, "/metrics", method="GET")).body.decode()
                client.close()
                found = re.findall(r'requests_total\{worker="(w\d)",.*status="200"\} (\d+)', page)
                return {name for name, _ in found} == {"w0", "w1"} and sum(int(n) for _, n in found) == asked

            await place.until(counted)

    run(test, 60)


def test_a_rollback_by_hand_ends_the_rollout_once_and_a_cleared_latch_stays_cleared(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            name, model = make_release(place.home, "v2")
            async with place.load():
                rollout = await roll_out(place, name, model, auto_advance=False)
                await place.until(lambda: advanced(place, rollout["id"]))
                await place.until(lambda: advanced(place, rollout["id"]))
                back = await place.call("POST", "/v1/rollback", {"by": "ann", "reason": "a hunch"})
                assert back["candidate"] == "v2"
                await place.call("POST", "/v1/rollback/clear", {"by": "ann"})
                for _ in range(3):  # several looks at the traffic
                    await asyncio.sleep(2 * TICK_SECONDS)
                    assert (await place.call("GET", "/v1/status"))["epoch"] == back["epoch"]
            status = await place.call("GET", "/v1/status")
            assert status["latched"] == {}
            assert status["failure"] is None
            assert (await place.call("GET", f"/v1/rollouts/{rollout['id']}"))["phase"] == "ROLLED_BACK"
            # The same by the rollout's own action.
            second = await roll_out(place, name, model, auto_advance=False)
            async with place.load():
                await place.until(lambda: advanced(place, second["id"]))
                await place.until(lambda: advanced(place, second["id"]))
                await place.call("POST", f"/v1/rollouts/{second['id']}/rollback", {"by": "ann"})
                epoch = (await place.call("GET", "/v1/status"))["epoch"]
                await asyncio.sleep(4 * TICK_SECONDS)
                status = await place.call("GET", "/v1/status")
                assert (status["epoch"], status["routes"][0]["canary"]) == (epoch, None)
            await place.call("POST", "/v1/rollouts/-/clear", {"by": "ann"})
            assert (await place.call("GET", "/v1/status"))["latched"] == {}

    run(test, 120)


def test_a_kill_between_an_abort_and_its_snapshot_is_mended_at_the_next_look(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            name, model = make_release(place.home, "v2")
            async with place.load():
                rollout = await roll_out(place, name, model, auto_advance=False)
                await place.until(lambda: advanced(place, rollout["id"]))
                await place.until(lambda: advanced(place, rollout["id"]))
            running_one = place.control.rollouts.find(rollout["id"])
            running_one.append(Aborted(reason="killed here", epoch=99), "aborted")

            async def mended() -> bool:
                route = (await place.call("GET", "/v1/status"))["routes"][0]
                return route["canary"] is None and route["rollout"] is None

            await place.until(mended)
            assert (await roll_out(place, name, model))["phase"] == "GATED"

    run(test, 120)


def test_workers_that_were_told_something_else_are_not_taken_over(tmp_path: Path) -> None:
    async def test() -> None:
        async with upstreams() as (old, new):
            home = open_home(Settings(home=tmp_path / "home"))
            first = Control(serve_config(old, new), home)
            await first._start()
            before = {name: link.pid for name, link in first.links.by_name.items()}
            await left_alone(first)
            (first.folder / "keys.json").unlink(missing_ok=True)
            KeyFile(first.keys).create_key("acme")
            second = Control(serve_config(old, new), home)
            await second._start()
            try:
                after = {name: link.pid for name, link in second.links.by_name.items()}
                assert not set(before.values()) & set(after.values())
                assert second.port == first.port
                client = Client(*await asyncio.open_connection("127.0.0.1", second.port))
                assert (await client.ask(chat(user="u"))).status == 401
                client.close()
            finally:
                await second._stop()

    run(test, 120)


async def left_alone(control: Control) -> None:
    """What a kill does to control: its sockets close, its tasks end, nobody is told to stop."""
    for task in control._tasks:
        task.cancel()
    assert control.pool._task is not None and control._admin is not None
    control.pool._task.cancel()
    await control.links.stop()
    await asyncio.to_thread(control._admin.stop)
    assert control._reserved is not None
    control._reserved.close()


def test_control_outlives_a_full_disk_and_rolls_back_as_soon_as_it_can(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            name, model = make_release(place.home, "v2")
            async with place.load():
                rollout = await roll_out(place, name, model, auto_advance=False)
                for _ in range(3):
                    await place.until(lambda: advanced(place, rollout["id"]))
                control = place.control
                # The limits are this process's, which is control's. With the first, nothing can be written.
                with file_size_limit(100):
                    place.new.always = {"status": 500}
                    await place.until(lambda: control.failure)
                    await asyncio.sleep(0.5)
                    assert not any(task.done() for task in control._tasks)
                    assert (await place.call("GET", "/v1/status"))["failure"]
                    assert control.swapper.current.routes[0].canary is not None
                # With the second, the registry's journal cannot: the traffic moves all the same.
                with file_size_limit(20_000):
                    await place.until(lambda: control.swapper.current.routes[0].canary is None)
                    await place.until(lambda: "registry" in (control.failure or ""))
                done = await finished(place, rollout)
                await place.until(lambda: control.failure is None)
            assert done["phase"] == "ROLLED_BACK"
            assert [entry.action for entry in place.home.registry.journal()].count("rollback") == 1
        agreed(place.control)

    run(test, 120)


def test_where_signatures_are_wanted_an_unsigned_release_never_meets_traffic(tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )

    async def test() -> None:
        async with gateway(tmp_path, signatures={"public_key": str(public)}) as place:
            name, model = make_release(place.home, "v2")
            with pytest.raises(ServingError, match=r"v2 is refused: signature"):
                await roll_out(place, name, model)
            sign_release(place.home, name, private)
            assert (await roll_out(place, name, model))["phase"] == "GATED"

    run(test, 60)
