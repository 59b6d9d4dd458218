"""The runner: what is reused, what is run again, what is recorded, and how each kind of failure ends."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from posttrain import pipelines
from posttrain.artifacts.gc import collect_garbage
from posttrain.artifacts.home import Home, open_home, resolve
from posttrain.artifacts.records import RunRecord
from posttrain.artifacts.stage import StageSpec, StopRequest
from posttrain.core.errors import (
    ConfigError,
    CorruptArtifactError,
    HealthError,
    Interrupted,
    MissingDependencyError,
    StageError,
    StorageFullError,
    UnknownReferenceError,
    UsageError,
)
from posttrain.core.events import Event
from posttrain.core.settings import Settings
from posttrain.pipelines.eventlog import EventLog, read_log
from posttrain.pipelines.plan import external_files, lookup_in, plan_recipe
from posttrain.pipelines.recipe import RecipeSource
from posttrain.pipelines.records import RunOutcome
from posttrain.pipelines.resolve import ResolvedRecipe, resolve_recipe
from posttrain.pipelines.runner import resume_run, run_recipe
from posttrain.pipelines.runs import (
    find_run,
    latest_unfinished,
    read_events,
    remove_run,
    resume_command,
    run_status,
)
from posttrain.pipelines.show import describe, list_runs
from tests.pipelines.test_recipe_text import toy, toy_source
from tests.pipelines.toy_stages import TOY_RECIPE, TOY_STAGES


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(Settings(home=tmp_path / "home"))


def digests(outcome: RunOutcome) -> dict[str, str]:
    return {f"{s.name}.{name}": a.digest for s in outcome.stages for name, a in s.outputs.items()}


def statuses(outcome: RunOutcome) -> list[str]:
    return [stage.status for stage in outcome.stages]


def latest(home: Home) -> RunRecord:
    return home.registry.runs()[-1]


def test_run_records_everything(home: Home) -> None:
    seen: list[Event] = []
    outcome = run_recipe(home, toy(), events=seen.append)
    assert statuses(outcome) == ["finished"] * 4
    assert set(outcome.outputs) == {"report", "model"}
    kinds = [event.kind for event in seen]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_finished"
    assert [event.stage for event in seen if event.kind == "stage_finished"] == [
        "numbers",
        "first",
        "second",
        "report",
    ]
    run = home.registry.run(outcome.run_id)
    assert (run.status, run.seed, run.recipe) == ("finished", 3, "toy")
    stages = home.registry.run_stages(run.id)
    assert [stage.status for stage in stages] == ["finished"] * 4
    assert stages[1].summary == {
        "sum": json.loads(home.store.read_bytes(outcome.stages[1].outputs["metrics"], "metrics.json"))["sum"]
    }
    assert resolve(home, f"{run.id}:second.model").digest == outcome.outputs["model"].digest
    assert [line["event"] for line in read_events(home, run.id)] == kinds
    assert outcome.reports["report"].read_bytes().startswith(b"<pre>toy")
    assert list((home.settings.home / "work").iterdir()) == []


def test_lineage_is_in_the_artifacts(home: Home) -> None:
    outcome = run_recipe(home, toy())
    model = outcome.outputs["model"]
    assert model.inputs == {
        "data": digests(outcome)["numbers.rows"],
        "model": digests(outcome)["first.model"],
    }
    (made_by,) = model.producers
    assert (made_by.stage, made_by.key, made_by.output) == ("toy_train", outcome.stages[2].key, "model")
    assert home.registry.ancestors(outcome.outputs["report"].digest) == sorted(
        digests(outcome)[name] for name in ("numbers.rows", "first.model", "second.model")
    )


def test_equal_content_stops_the_work_downstream(home: Home) -> None:
    """Another key with the same bytes: what follows is not run again."""
    first = run_recipe(home, toy())
    # A setting that enters the key and decides no byte of the output.
    changed = run_recipe(home, toy("first.pause_seconds=0.001"))
    assert statuses(changed) == ["reused", "finished", "reused", "reused"]
    assert digests(changed) == digests(first)
    assert len(changed.outputs["model"].provenance) == 1
    assert len(home.store.get(digests(changed)["first.model"]).provenance) == 2


def test_what_is_done_is_reused(home: Home) -> None:
    first = run_recipe(home, toy())
    again = run_recipe(home, toy())
    assert statuses(again) == ["reused"] * 4
    assert digests(again) == digests(first)
    changed = run_recipe(home, toy("second.steps=7"))
    assert statuses(changed) == ["reused", "reused", "finished", "finished"]
    assert [stage.status for stage in home.registry.run_stages(changed.run_id)] == statuses(changed)


def test_same_work_in_another_home_has_the_same_digests(home: Home, tmp_path: Path) -> None:
    other = open_home(Settings(home=tmp_path / "elsewhere", threads=1))
    assert digests(run_recipe(home, toy())) == digests(run_recipe(other, toy()))


def test_plan_says_what_a_run_does(home: Home) -> None:
    assert [stage.status for stage in plan_recipe(toy(), None)] == [
        "will run",
        "unknown",
        "unknown",
        "unknown",
    ]
    outcome = run_recipe(home, toy())
    planned = plan_recipe(toy("second.steps=7"), home)
    assert [stage.status for stage in planned] == ["cached", "cached", "will run", "unknown"]
    assert [stage.key for stage in plan_recipe(toy(), home)] == [stage.key for stage in outcome.stages]
    with pytest.raises(HealthError):
        run_recipe(home, toy("second.fail_at=3"))
    assert [stage.status for stage in plan_recipe(toy("second.fail_at=3"), home)][2] == "will resume"


def test_a_file_outside_the_store_counts_by_its_content(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "data.txt"
    source.write_text("one")
    first = run_recipe(home, toy(f"numbers.source={source}"))
    assert statuses(run_recipe(home, toy(f"numbers.source={source}")))[0] == "reused"
    source.write_text("two")
    assert statuses(run_recipe(home, toy(f"numbers.source={source}")))[0] == "finished"
    source.write_text("one")
    assert digests(run_recipe(home, toy(f"numbers.source={source}"))) == digests(first)
    runs_before = len(home.registry.runs())
    source.unlink()
    with pytest.raises(ConfigError, match=r"numbers\.source: .* cannot be read"):
        run_recipe(home, toy(f"numbers.source={source}"))
    assert len(home.registry.runs()) == runs_before


def test_a_folder_outside_the_store_counts_with_everything_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text("one")

    def digest() -> dict[str, str]:
        return external_files(toy(f"numbers.source={folder}").stages[0])

    first = digest()
    assert digest() == first
    (folder / "sub" / "b.txt").write_text("")
    assert digest() != first
    (folder / "sub" / "b.txt").rename(folder / "sub" / "c.txt")
    second = digest()
    (folder / "sub" / "c.txt").unlink()
    assert (digest() == first, second == first) == (True, False)


def test_both_registries(tmp_path: Path, registry_url: str) -> None:
    home = open_home(Settings(home=tmp_path / "home", registry_url=registry_url))
    watcher = _StopAt("second", 3)
    with pytest.raises(Interrupted):
        run_recipe(home, toy(), events=watcher, stop=watcher.stop)
    first = resume_run(home, stages=TOY_STAGES)
    assert digests(run_recipe(home, toy())) == digests(first)
    other = open_home(Settings(home=tmp_path / "other"))
    assert digests(run_recipe(other, toy())) == digests(first)


def test_a_disk_that_fills(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "large.txt"
    source.write_text("x" * 4_000_000)
    resolved = toy(f"numbers.source={source}")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
            run_recipe(home, resolved)
        except StorageFullError as error:
            code = 0 if "no space left" in str(error) else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run = latest(home)
    assert run.status == "failed"
    assert "no space left" in (run.error or "")
    assert list(home.store.digests()) == []
    resume_run(home, stages=TOY_STAGES)
    assert home.store.verify() == []


def test_references_that_were_not_looked_up(home: Home) -> None:
    text = TOY_RECIPE.replace("model: first.model}", "model: best}")
    with pytest.raises(UsageError, match="best was not looked up"):
        run_recipe(home, toy(text=text))
    assert home.registry.runs() == []


def test_damaged_outputs_are_made_again(home: Home) -> None:
    outcome = run_recipe(home, toy())
    victim = home.store.object_path(outcome.stages[1].outputs["model"].files[0].digest)
    victim.chmod(0o644)
    victim.write_bytes(b"rot")
    again = run_recipe(home, toy())
    assert statuses(again) == ["reused", "finished", "reused", "reused"]
    assert digests(again) == digests(outcome)
    assert home.store.verify() == []


def test_lost_index_is_no_lost_result(home: Home) -> None:
    outcome = run_recipe(home, toy())
    for path in home.settings.home.glob("registry.sqlite*"):
        path.unlink()
    again = run_recipe(open_home(home.settings), toy())
    assert digests(again) == digests(outcome)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("kind", "output 'model' is of kind 'dataset', declared 'model'"),
        ("missing", "returned the outputs ['model'], declared ['metrics', 'model']"),
        ("extra", "returned the outputs ['metrics', 'model', 'surprise']"),
    ],
)
def test_a_stage_that_breaks_its_word(home: Home, how: str, message: str) -> None:
    with pytest.raises(StageError) as caught:
        run_recipe(home, toy(f"first.wrong_output={how}"))
    assert message in str(caught.value)
    assert home.registry.stage_outputs(home.registry.run_stages(latest(home).id)[1].key or "") is None


def test_failure_is_recorded_and_goes_on_from_its_checkpoint(home: Home) -> None:
    seen: list[Event] = []
    with pytest.raises(HealthError):
        run_recipe(home, toy("second.fail_at=4"), events=seen.append)
    run = latest(home)
    assert (run.status, run.error) == ("failed", "the sum went up while the mean fell")
    assert [s.status for s in home.registry.run_stages(run.id)] == [
        "finished",
        "finished",
        "failed",
        "pending",
    ]
    failed = next(event for event in seen if event.kind == "stage_failed")
    assert failed.data["hint"] == "lower rl.steps"
    assert seen[-1].data["status"] == "failed"
    seen.clear()
    with pytest.raises(HealthError):
        resume_run(home, stages=TOY_STAGES, events=seen.append)
    assert [event.data["from_step"] for event in seen if event.kind == "stage_resumed"] == [3]
    assert len(home.registry.runs()) == 1


def test_checkpoints_can_be_thrown_away(home: Home) -> None:
    with pytest.raises(HealthError):
        run_recipe(home, toy("second.fail_at=4"))
    seen: list[Event] = []
    with pytest.raises(HealthError):
        run_recipe(home, toy("second.fail_at=4"), events=seen.append, resume=False)
    assert not [event for event in seen if event.kind == "stage_resumed"]


def test_a_bug_in_a_stage_keeps_its_traceback(home: Home) -> None:
    with pytest.raises(ZeroDivisionError):
        run_recipe(home, toy("second.crash_at=2"))
    run = latest(home)
    assert run.error == "ZeroDivisionError: a bug in the stage"
    assert "run_train" in (home.run_folder(run.id) / "traceback.txt").read_text()


def test_an_engine_that_is_not_installed(home: Home) -> None:
    spec = replace(TOY_STAGES["toy_numbers"], run="tests.pipelines.needs_engine:run_needs")
    recipe = resolve_recipe(toy_source(), stages={**TOY_STAGES, "toy_numbers": spec})
    with pytest.raises(MissingDependencyError) as caught:
        run_recipe(home, recipe)
    assert caught.value.hint == "pip install 'posttrain[train]'"


class _StopAt:
    """Requests a stop when a stage reaches a step."""

    def __init__(self, stage: str, step: int) -> None:
        self.where = (stage, step)
        self.stop = StopRequest()

    def __call__(self, event: Event) -> None:
        if (event.stage, event.data.get("step")) == self.where:
            self.stop.requested = True


def test_stop_keeps_what_is_done_and_says_how_to_go_on(home: Home, tmp_path: Path) -> None:
    whole = run_recipe(open_home(Settings(home=tmp_path / "whole")), toy())
    watcher = _StopAt("second", 3)
    with pytest.raises(Interrupted) as caught:
        run_recipe(home, toy(), events=watcher, stop=watcher.stop)
    run = latest(home)
    assert caught.value.hint == f"go on with: posttrain run --resume {run.id} --home {home.settings.home}"
    assert run.status == "interrupted"
    assert describe(home.settings, run.id)["stages"][2]["status"] == "interrupted"
    assert describe(home.settings, run.id)["resume"] == resume_command(home, run.id)
    seen: list[Event] = []
    outcome = resume_run(home, stages=TOY_STAGES, events=seen.append)
    assert outcome.run_id == run.id
    assert digests(outcome) == digests(whole)
    assert [event.data["from_step"] for event in seen if event.kind == "stage_resumed"] == [3]
    # What this run finished before it was stopped stays its own work in the record.
    assert [s.status for s in home.registry.run_stages(run.id)] == ["finished"] * 4
    assert run_status(home, home.registry.run(run.id)) == "finished"


def test_stop_between_stages(home: Home) -> None:
    stop = StopRequest()

    def watch(event: Event) -> None:
        stop.requested = stop.requested or event.kind == "stage_finished"

    with pytest.raises(Interrupted):
        run_recipe(home, toy(), events=watch, stop=stop)
    assert [s.status for s in home.registry.run_stages(latest(home).id)] == ["finished"] + ["pending"] * 3


def test_resume_picks_the_youngest_unfinished_run(home: Home) -> None:
    with pytest.raises(UsageError, match="no unfinished run"):
        resume_run(home, stages=TOY_STAGES)
    ids = []
    for step in (2, 3):
        watcher = _StopAt("first", step)
        with pytest.raises(Interrupted):
            run_recipe(home, toy(f"seed={step}"), events=watcher, stop=watcher.stop)
        ids.append(latest(home).id)
    found = latest_unfinished(home)
    assert found is not None
    assert found.id == ids[1]
    assert resume_run(home, ids[0], stages=TOY_STAGES).run_id == ids[0]
    with pytest.raises(UsageError, match="has finished"):
        resume_run(home, ids[0], stages=TOY_STAGES)
    with pytest.raises(UnknownReferenceError, match="there is no run"):
        resume_run(home, "nope", stages=TOY_STAGES)


def test_a_running_run_is_left_alone(home: Home) -> None:
    blocked, go = threading.Event(), threading.Event()

    def watch(event: Event) -> None:
        if event.kind == "progress":
            blocked.set()
            assert go.wait(20)

    thread = threading.Thread(target=run_recipe, args=(home, toy()), kwargs={"events": watch})
    thread.start()
    try:
        assert blocked.wait(20)
        run = latest(home)
        assert run_status(home, run) == "running"
        with pytest.raises(UsageError, match="is running"):
            resume_run(home, run.id, stages=TOY_STAGES)
        with pytest.raises(UsageError, match="is running"):
            remove_run(home, run)
        assert latest_unfinished(home) is None
    finally:
        go.set()
        thread.join(20)
    assert run_status(home, latest(home)) == "finished"


def test_the_second_of_two_waits_and_reuses(home: Home) -> None:
    key = plan_recipe(toy(), None)[0].key
    assert key is not None
    (home.settings.home / "locks").mkdir()
    notes = threading.Event()
    seen: list[Event] = []

    def watch(event: Event) -> None:
        seen.append(event)
        if event.kind == "note":
            notes.set()

    thread = threading.Thread(target=run_recipe, args=(home, toy()), kwargs={"events": watch})
    with FileLock(home.settings.home / "locks" / key.removeprefix("sha256:")):
        thread.start()
        assert notes.wait(20)
    thread.join(20)
    assert [event.data["text"] for event in seen if event.kind == "note"] == [
        "another process is making this; waiting for it"
    ]
    assert seen[-1].data["status"] == "finished"


def test_artifacts_from_outside_the_recipe(home: Home) -> None:
    first = run_recipe(home, toy())
    text = TOY_RECIPE.replace("model: first.model}", f"model: {first.run_id}:second.model}}")

    def resolved(reference: str | None = None) -> ResolvedRecipe:
        changed = (
            text if reference is None else TOY_RECIPE.replace("model: first.model}", f"model: {reference}}}")
        )
        return resolve_recipe(toy_source(changed), stages=TOY_STAGES, lookup=lookup_in(home.settings))

    pinned = resolved()
    assert str(pinned.stages[2].inputs["model"]) == first.outputs["model"].digest
    outcome = run_recipe(home, pinned)
    assert first.outputs["model"].digest in outcome.outputs["model"].parents
    home.registry.set_ref("models.best", first.outputs["model"].digest)
    assert resolved("models.best").digest == pinned.digest
    assert resolved(first.outputs["model"].digest[7:17]).digest == pinned.digest
    with pytest.raises(ConfigError, match=r"second.inputs.model: expected an artifact of kind 'model'"):
        resolved(first.outputs["report"].digest)
    with pytest.raises(ConfigError, match=r"second.inputs.model: .*'bset' names nothing"):
        resolved("bset")
    with pytest.raises(ConfigError, match="there is no home"):
        resolve_recipe(
            toy_source(text), stages=TOY_STAGES, lookup=lookup_in(Settings(home=home.settings.home / "no"))
        )


def test_a_damaged_outside_input_stops_before_anything_starts(home: Home) -> None:
    first = run_recipe(home, toy())
    text = TOY_RECIPE.replace("model: first.model}", f"model: {first.outputs['model'].digest}}}")
    resolved = resolve_recipe(toy_source(text), stages=TOY_STAGES, lookup=lookup_in(home.settings))
    victim = home.store.object_path(first.outputs["model"].files[0].digest)
    victim.chmod(0o644)
    victim.write_bytes(b"rot")
    with pytest.raises(CorruptArtifactError, match=r"part-0\.json"):
        run_recipe(home, resolved)
    assert len(home.registry.runs()) == 1


def test_garbage_of_a_removed_run_is_collected_and_made_again(home: Home) -> None:
    kept = run_recipe(home, toy())
    dropped = run_recipe(home, toy("second.steps=7"))
    remove_run(home, find_run(home, dropped.run_id))
    assert not (home.settings.home / "runs" / dropped.run_id).exists()
    report = collect_garbage(home, min_age_seconds=-1)
    assert set(report.removed) == set(digests(dropped).values()) - set(digests(kept).values())
    again = run_recipe(home, toy("second.steps=7"))
    assert statuses(again) == ["reused", "reused", "finished", "finished"]
    assert digests(again) == digests(dropped)


def test_a_run_of_a_process_that_is_gone_is_interrupted(home: Home) -> None:
    outcome = run_recipe(home, toy())
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    home.registry.update_run(outcome.run_id, status="running", pid=child)
    assert list_runs(home)[0]["status"] == "interrupted"
    home.registry.update_run(outcome.run_id, pid=os.getpid())
    assert (
        list_runs(home)[0]["status"] == "interrupted"
    )  # the pid lives again, but nobody holds the run's lock
    home.registry.update_run(outcome.run_id, host="elsewhere", pid=1)
    shutil.rmtree(home.run_folder(outcome.run_id))
    assert list_runs(home)[0]["status"] == "running"  # another machine's: its record is all there is


def test_resuming_after_the_code_changed_runs_the_stage_again(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = _StopAt("second", 3)
    with pytest.raises(Interrupted):
        run_recipe(home, toy(), events=watcher, stop=watcher.stop)
    module = tmp_path / "changed_stage.py"
    module.write_text("from tests.pipelines.toy_stages import TrainConfig, run_train\nVERSION = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = replace(TOY_STAGES["toy_train"], config="changed_stage:TrainConfig", run="changed_stage:run_train")
    outcome = resume_run(home, stages={**TOY_STAGES, "toy_train": spec})
    assert statuses(outcome) == ["reused", "finished", "finished", "finished"]


def test_torn_and_odd_events_are_readable(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write(
        Event(
            "progress",
            "rl",
            {"step": 1, "total": 2, "reward": float("nan"), "path": tmp_path, "list": (1.5,)},
        )
    )
    log.close()
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write('{"event": "prog')
    log = EventLog(tmp_path)
    log.write(Event("note", None, {"text": "后"}))
    log.close()
    events = list(read_log(tmp_path))
    assert [event["event"] for event in events] == ["progress", "note"]
    assert events[0]["reward"] is None
    assert events[0]["list"] == [1.5]
    assert events[1]["text"] == "后"


def test_stage_keys_are_shown(home: Home) -> None:
    outcome = run_recipe(home, toy())
    key = outcome.stages[2].key
    for reference in (key, key[7:], key[7:15]):
        shown = describe(home.settings, reference)
        assert (shown["type"], shown["key"], shown["runs"]) == ("stage", key, [f"{outcome.run_id}:second"])
    assert describe(home.settings, outcome.outputs["model"].digest)["type"] == "artifact"
    with pytest.raises(UnknownReferenceError):
        describe(home.settings, "ffffffffff")


def test_a_recipe_made_in_python(home: Home) -> None:
    recipe: dict[str, Any] = {
        "schema": 1,
        "name": "sweep",
        "stages": [{"name": "numbers", "uses": "toy_numbers", "with": {"count": 3}}],
    }
    outcomes = []
    for seed in range(3):
        source = RecipeSource.from_mapping({**recipe, "seed": seed})
        outcomes.append(run_recipe(home, resolve_recipe(source, stages=TOY_STAGES)))
    assert len({outcome.stages[0].outputs["rows"].digest for outcome in outcomes}) == 3


def test_spec_with_another_run_module_is_other_work() -> None:
    spec: StageSpec = replace(TOY_STAGES["toy_numbers"], run="tests.pipelines.needs_engine:run_needs")
    other = resolve_recipe(toy_source(), stages={**TOY_STAGES, "toy_numbers": spec})
    assert plan_recipe(other, None)[0].key != plan_recipe(toy(), None)[0].key


def test_every_public_name_is_there() -> None:
    assert [name for name in pipelines.__all__ if getattr(pipelines, name) is None] == []
    with pytest.raises(AttributeError):
        pipelines.nothing  # noqa: B018 - asking is the test
