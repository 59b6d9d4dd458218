"""Budgets over several workers: limits hold, windows slide, counts survive."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import ServingError
from posttrain.serving.access import Access, Budgets, KeyFile, Principal, Refusal, SharedBudgets
from posttrain.serving.access.budgets import MAX_KEYS


class _Time:
    def __init__(self) -> None:
        self.now = 100_000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def _workers(count: int, clock: _Time) -> Iterator[list[SharedBudgets]]:
    with TemporaryDirectory() as folder:
        made = [SharedBudgets(Path(folder) / "b", worker=n, workers=count, clock=clock) for n in range(count)]
        yield made
        for worker in made:
            worker.close()


_STEPS = st.lists(st.tuples(st.floats(0, 20), st.integers(0, 2), st.integers(0, 3)), max_size=80)


@settings(max_examples=60, deadline=None)
@given(_STEPS, st.integers(1, 8))
def test_no_minute_has_more_requests_than_the_limit(steps: list[tuple[float, int, int]], limit: int) -> None:
    clock, budgets = _Time(), Budgets(requests_per_minute=limit)
    with _workers(3, clock) as workers:
        admitted: list[float] = []
        for wait, worker, slot in steps:
            clock.now += wait
            if slot:  # others' requests are not counted
                workers[worker].admit(slot, budgets)
                continue
            again = workers[worker].admit(0, budgets)
            if again == 0.0:
                admitted.append(clock.now)
            else:  # it does not refuse what is clearly free, and waiting as told is enough
                assert sum(clock.now - at <= 65 for at in admitted) >= limit
                assert again <= 65
                clock.now += again
                assert workers[worker].admit(0, budgets) == 0.0
                admitted.append(clock.now)
        for at in admitted:
            assert sum(at <= other < at + 60 for other in admitted) <= limit


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9_000), st.integers(0, 1), st.integers(0, 500)), max_size=60))
def test_tokens_of_a_day_and_a_minute(steps: list[tuple[float, int, int]]) -> None:
    clock, budgets = _Time(), Budgets(tokens_per_minute=400, tokens_per_day=2_000)
    charged: list[tuple[float, int]] = []
    with _workers(2, clock) as workers:
        for wait, worker, tokens in steps:
            clock.now += wait
            day = sum(count for at, count in charged if clock.now - at < 24 * 3600)
            minute = sum(count for at, count in charged if clock.now - at < 60)
            used = workers[1 - worker].used(7)
            assert used["tokens_per_day"] >= day
            assert used["tokens_per_minute"] >= minute
            assert used["tokens_per_day"] <= sum(
                count for at, count in charged if clock.now - at <= 25 * 3600
            )
            if workers[worker].admit(7, budgets) == 0.0:
                assert day < 2_000
                assert minute < 400
                workers[worker].charge(7, tokens)
                charged.append((clock.now, tokens))


def test_counts_go_on_after_a_worker_and_are_new_for_another_number_of_workers(tmp_path: Path) -> None:
    clock, budgets = _Time(), Budgets(requests_per_minute=3)
    path = tmp_path / "budgets"
    for _ in range(3):
        worker = SharedBudgets(path, worker=1, workers=2, clock=clock)
        assert worker.admit(MAX_KEYS - 1, budgets) == 0.0
        worker.close()
    worker = SharedBudgets(path, worker=0, workers=2, clock=clock)
    assert 55 <= worker.admit(MAX_KEYS - 1, budgets) <= 65
    assert worker.used(MAX_KEYS - 2)["requests_per_minute"] == 0
    worker.close()
    other = SharedBudgets(path, worker=0, workers=3, clock=clock)
    assert other.admit(MAX_KEYS - 1, budgets) == 0.0
    other.close()


def test_a_torn_or_foreign_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "budgets"
    path.write_bytes(b"\xff" * 100)
    worker = SharedBudgets(path, worker=0, workers=1)
    assert worker.admit(0, Budgets(requests_per_minute=1)) == 0.0
    worker.close()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".part")] == []


_HAMMER = """
import sys, time
from pathlib import Path
from posttrain.serving.access import Access, Principal, SharedBudgets
path, worker, workers, token = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
access = Access(path / "keys.json", SharedBudgets(path / "budgets", worker=worker, workers=workers))
sys.stdin.readline()
admitted = 0
for _ in range(600):
    who = access.check(b"Bearer " + token.encode(), "chat", None)
    admitted += isinstance(who, Principal)
print(admitted)
"""


@pytest.mark.parametrize("limit", [1, 700])
def test_processes_together_stay_within_the_limit(tmp_path: Path, limit: int) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    token = keys.create_key("acme", budgets=Budgets(requests_per_minute=limit)).token
    workers = 4
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _HAMMER, str(tmp_path), str(n), str(workers), token],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(workers)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    admitted = sum(int(process.communicate(timeout=60)[0]) for process in running)
    assert limit <= admitted <= limit + workers - 1


def test_two_processes_cannot_be_the_same_worker(tmp_path: Path) -> None:
    first = SharedBudgets(tmp_path / "budgets", worker=0, workers=2)
    code = (
        "import sys; from pathlib import Path; from posttrain.serving.access import SharedBudgets\n"
        "SharedBudgets(Path(sys.argv[1]), worker=int(sys.argv[2]), workers=2)"
    )
    for number, works in (("0", False), ("1", True)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "budgets"), number],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is works
        assert works or ServingError.__name__ in done.stderr
    first.close()


def test_a_refusal_says_how_long(tmp_path: Path) -> None:
    clock = _Time()
    keys = KeyFile(tmp_path / "keys.json")
    limited = keys.create_key("acme", budgets=Budgets(requests_per_minute=2, tokens_per_minute=100)).token
    free = keys.create_key("acme").token
    counters = SharedBudgets(tmp_path / "budgets", worker=0, workers=1, clock=clock)
    access = Access(keys.path, counters)
    header = f"Bearer {limited}".encode()
    who = access.check(header, "chat", None)
    assert isinstance(who, Principal)
    access.charge(who, 100)
    refused = access.check(header, "chat", None)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert refused.retry_after is not None
    clock.now += refused.retry_after
    assert isinstance(access.check(header, "chat", None), Principal)
    assert all(
        isinstance(access.check(f"Bearer {free}".encode(), "chat", None), Principal) for _ in range(50)
    )
    access.charge(Principal("open", "", -1), 5)  # open mode counts nothing
    counters.close()


def test_its_space_is_taken_when_it_is_made(tmp_path: Path) -> None:
    worker = SharedBudgets(tmp_path / "budgets", worker=0, workers=2)
    state = (tmp_path / "budgets").stat()
    assert state.st_blocks * 512 >= state.st_size > 2 * MAX_KEYS * 512
    assert state.st_mode & 0o777 == 0o600
    worker.close()
