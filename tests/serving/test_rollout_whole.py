"""Whole rollouts in simulated time: journal, observation, triggers, steps and snapshots together, killed between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from posttrain.rollouts.events import (
    Advanced,
    Completed,
    Created,
    Event,
    Held,
    Resumed,
    RolledBack,
    Started,
    Tripped,
)
from posttrain.rollouts.fold import RolloutState, fold
from posttrain.rollouts.journal import RolloutJournal
from posttrain.rollouts.observe import Observer, observe
from posttrain.rollouts.records import RolloutSpec
from posttrain.rollouts.snapshots import snapshot_for
from posttrain.rollouts.steps import Step, facts_at, next_step
from posttrain.routing.assignment import assign
from posttrain.routing.records import Snapshot
from tests.rollouts.rollout_world import (
    CANDIDATE,
    go,
    make_feedback,
    make_row,
    make_snapshot,
    make_spec,
)

GOOD = {"error": 0.005, "slow": 0.02, "abandon": 0.02}
AT = "2026-11-25T12:00:00Z"
TICK_MS = 5_000
PER_TICK = 40


class World:
    """One rollout: its journal on disk, its log of rows, the snapshot that workers serve, and a clock."""

    def __init__(self, folder: Path, spec: RolloutSpec, bad: dict[str, float], seed: int) -> None:
        self.spec, self.path, self.seed = spec, folder / "events.jsonl", seed
        self.chance = GOOD | bad
        self.log: list[dict] = []
        self.snapshot = make_snapshot()
        self.now_ms = 0
        self.sent = 0
        self.restart()

    def restart(self) -> None:
        """All that control has in memory is gone, and made again from disk."""
        self.journal = RolloutJournal(self.path)
        self.observer = Observer(self.spec, self.state.entered)
        self.observer.add(
            self.log
        )  # when these came in nobody knows now: the rows say when they were accepted
        self.fed = len(self.log)

    @property
    def state(self) -> RolloutState:
        return fold(self.spec, self.journal.entries)

    def write(self, event: Event, name: str) -> None:
        self.journal.append(event, id=name, at_ms=self.now_ms)

    def swap(self) -> None:
        """What control does after it wrote an event: the snapshot that the state asks for, to every worker."""
        wanted = snapshot_for(self.snapshot, self.spec, self.state, at=AT)
        if wanted.routes != self.snapshot.routes:
            self.snapshot = wanted

    def start(self) -> None:
        self.write(Created(spec=self.spec.digest), "created")
        self.write(go(self.spec), "go")
        self.write(Started(epoch=self.snapshot.epoch + 1), "started")
        self.swap()
        self.restart()

    def traffic(self) -> None:
        """One tick of users, answered by whatever the workers serve."""
        generator = np.random.default_rng([self.seed, self.now_ms])
        route = self.snapshot.route("chat")
        for _ in range(PER_TICK):
            self.sent += 1
            user, name = f"u{self.sent}", f"q{self.sent}"
            given = assign(route, user)
            self._answer(generator, name, user, given.lane, given.arm, given.target)
            if given.shadow is not None:
                self._answer(generator, f"{name}s", user, "shadow", "", given.shadow, of=name)

    def _answer(self, generator, name, user, lane, arm, target, **fields) -> None:
        chance = self.chance if target == CANDIDATE else GOOD
        row = make_row(
            name, user, epoch=self.snapshot.epoch, lane=lane, arm=arm, release=target.release, at_ms=self.now_ms
        )  # fmt: skip
        if lane == "shadow":
            row["kind"] = "shadow"
        if generator.random() < chance["error"]:
            row |= {"finish": "error", "status": 502}
        elif generator.random() < chance["slow"]:
            row["latency_ms"] = 1500.0
        self.log.append(row | fields)
        if lane != "shadow" and generator.random() < chance["abandon"]:
            # Users complain when they do, which is not when the row is read.
            self.log.insert(
                int(generator.integers(self.fed, len(self.log) + 1)), make_feedback(name, "abandon")
            )

    def tick(self) -> Step | None:
        """What control does every few hundred milliseconds."""
        self.observer.add(self.log[self.fed :], received_ms=self.now_ms)
        self.fed = len(self.log)
        state, observation = self.state, self.observer.observation()
        facts = facts_at(self.spec, state, observation, self.now_ms)
        step = next_step(self.spec, state, facts)
        if step is not None:
            # The id says which step this is, so that it is done once, however often it is begun.
            self.write(self._event(step, state), f"{step.action}-after-{state.seq}")
        return step

    def _event(self, step: Step, state: RolloutState) -> Event:
        epoch = self.snapshot.epoch + 1
        match step.action:
            case "trip":
                return Tripped(trigger=step.trigger, line=step.reason, epoch=epoch)
            case "advance":
                return Advanced(to=state.stage + 1, epoch=epoch)
            case "complete":
                return Completed()
            case "resume":
                return Resumed(reason=step.reason)
            case _:
                return Held(reason=step.reason, trigger=step.trigger, invalid=step.action == "invalid")

    def confirm(self) -> None:
        if self.state.end == "rolled_back" and not self.state.confirmed:
            self.write(RolledBack(reason="workers said so", epoch=self.snapshot.epoch), "confirmed")

    def enter(self) -> None:
        for entered in self.state.entered:
            self.observer.enter(entered.epoch, entered.stage)

    def run(self, ticks: int, *, kill_at: frozenset[int] = frozenset()) -> RolloutState:
        """``kill_at``: numbers of moments at which control dies and comes back; there are four in a tick."""
        moment = 0
        for _ in range(ticks):
            self.now_ms += TICK_MS
            self.traffic()
            for action in (self.tick, self.enter, self.swap, self.confirm):
                action()
                moment += 1
                if moment in kill_at:
                    self.restart()
            if self.state.end is not None and (self.state.end != "rolled_back" or self.state.confirmed):
                break
        return self.state


def run(folder, bad, *, seed=1, ticks=150, kill_at=frozenset(), **fields) -> World:
    folder.mkdir(exist_ok=True)
    world = World(folder, make_spec(auto_advance=True, **fields), bad, seed)
    world.start()
    world.run(ticks, kill_at=kill_at)
    return world


def serves(snapshot: Snapshot):
    route = snapshot.route("chat")
    return route.production, route.canary, route.shadow, route.rollout


def test_a_good_candidate_becomes_production(tmp_path):
    world = run(tmp_path, {})
    assert world.state.label(world.spec) == "COMPLETED" and world.state.ignored == ()
    assert serves(world.snapshot) == (CANDIDATE, None, None, None)
    seen = world.observer.observation()
    assert seen == observe(world.spec, world.state.entered, world.log), "the pieces are the whole"
    assert seen.misplaced == 0
    for index, stage in enumerate(world.spec.stages[1:-1], start=1):
        assert seen.tally((index,), "candidate").requests >= stage.minimum_requests


@pytest.mark.parametrize(
    ("bad", "trigger"),
    [({"error": 0.4}, "error_rate"), ({"slow": 0.5}, "latency_p95_ms"), ({"abandon": 0.5}, "abandon_rate")],
)
def test_a_bad_candidate_is_rolled_back_by_itself(tmp_path, bad, trigger):
    world = run(tmp_path, bad)
    state = world.state
    assert state.phase(world.spec) == "ROLLED_BACK" and state.tripped == trigger and state.latched
    assert state.confirmed and world.snapshot.routes == make_snapshot().routes
    in_shadow = [found.stage for found in state.entered] == [0, 1, None]
    assert in_shadow == (trigger != "abandon_rate"), "what no user needs to see, none saw"


@pytest.mark.parametrize("bad", [{}, {"error": 0.1}])
@pytest.mark.parametrize("apart", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_the_same(tmp_path, bad, apart):
    """Control dies at one moment of the run after another, and at all of them: the journal is the same."""
    expected = run(tmp_path / "whole", bad)
    moments = 4 * (expected.now_ms // TICK_MS)
    plans = [frozenset({moment}) for moment in range(1, moments, apart)] + [frozenset(range(moments + 1))]
    for number, kill_at in enumerate(plans):
        world = run(tmp_path / str(number), bad, kill_at=kill_at)
        assert world.journal.entries == expected.journal.entries
        assert world.snapshot == expected.snapshot
        assert world.log == expected.log
        assert world.observer.observation() == expected.observer.observation()


def test_silence_holds_and_lets_go(tmp_path):
    from posttrain.rollouts.records import NoDataTrigger

    spec = make_spec()
    triggers = tuple(
        t if t.kind != "no_data" else NoDataTrigger(name="no-data", seconds=60) for t in spec.triggers
    )
    world = run(tmp_path, {}, ticks=8, triggers=triggers)
    assert world.state.active and world.state.hold is None
    for _ in range(30):  # the tap is closed
        world.now_ms += TICK_MS
        world.tick()
    held = world.state
    assert held.phase(world.spec) == "HOLD" and held.hold.trigger == "no-data"
    world.run(100)
    assert world.state.label(world.spec) == "COMPLETED" and world.state.ignored == ()


@pytest.mark.slow
def test_whole_rollouts_of_candidates_at_their_limits_are_seldom_rolled_back(tmp_path):
    """All triggers together, candidates exactly at every limit, 120 rollouts: within alpha_rollback."""
    limits = {"error": 0.02, "slow": 0.05, "abandon": 0.05}
    rolled = 0
    for seed in range(120):
        (tmp_path / str(seed)).mkdir()
        world = run(tmp_path / str(seed), limits, seed=seed, ticks=120)
        rolled += world.state.end == "rolled_back"
    assert stats.binomtest(rolled, 120, 0.05, alternative="greater").pvalue > 1e-3
