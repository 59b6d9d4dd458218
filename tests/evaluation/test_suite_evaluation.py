"""A suite evaluated end to end: scripted policies over the four shipped slices, reports, replays, baselines, proofs."""

from __future__ import annotations

import ast
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import posttrain
from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageContext, StageResult
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.canonical import digest_json
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.events import Event
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, to_jsonl
from posttrain.environments.records import Answer
from posttrain.environments.suites.build import build_from_slices
from posttrain.environments.suites.files import parse_suite, read_suite
from posttrain.environments.suites.slices import SOURCES, build_slice
from posttrain.environments.suites.suite import SuiteSettings
from posttrain.evaluation.outcomes import read_outcomes
from posttrain.evaluation.suites.build import STANDARD_CASES, SuiteConfig, keep_files, run_suite
from posttrain.evaluation.suites.evaluate import EvaluateSuiteConfig, run_evaluate_suite
from posttrain.evaluation.suites.frozen_code import FROZEN_CODE, check_code, frozen_code
from posttrain.evaluation.suites.grading import SliceGrader, learned_graders
from posttrain.evaluation.suites.proof import Proof, prove, render_proof
from posttrain.evaluation.suites.report import SuiteReport, read_report
from posttrain.evaluation.suites.rows import LINES_FILE, dump_lines, load_lines
from posttrain.evaluation.suites.scripted import policy_name, read_policy
from posttrain.evaluation.suites.summary import error_kind, render_summary, summarise
from tests.evaluation.suite_world import EXACT, Clerk, by_case, play, small_files, small_suite

CASES = 6


class Bench:
    """A store, and evaluations in it as the runner would run them."""

    def __init__(self, root: Path) -> None:
        self.store = ArtifactStore(root / "home")
        self.root = root
        self.events: list[Event] = []

    def keep(self, files: dict[str, bytes]) -> Artifact:
        with self.store.writer("suite") as writer:
            return keep_files(writer, files)

    def context(self, config: Any, inputs: dict[str, Artifact]) -> StageContext:
        digests = {name: artifact.digest for name, artifact in inputs.items()}
        key = digest_json({"config": config.model_dump(mode="json"), "inputs": digests})
        workdir = self.root / "work" / key[7:]
        workdir.mkdir(parents=True, exist_ok=True)
        return StageContext(
            self.store,
            "evaluate",
            "evaluate_suite",
            key=key,
            workdir=workdir,
            input_digests=digests,
            events=self.events.append,
        )

    def evaluate(self, model: dict[str, Any], inputs: dict[str, Artifact], **config: Any) -> Artifact:
        settings = EvaluateSuiteConfig.model_validate({"model": model, **config})
        result: StageResult = run_evaluate_suite(settings, inputs, self.context(settings, inputs))
        return result.outputs["report"]

    def report(self, artifact: Artifact) -> SuiteReport:
        return read_report(self.store.view(artifact))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("suites"))


@pytest.fixture(scope="module")
def shipped(bench: Bench) -> Artifact:
    """The four slices with a few cases each."""
    settings = SuiteSettings.model_validate(
        {"name": "few", "computed_tools": {"search_api": {"kind": "search"}}, "samples": 1}
    )
    slices = [build_slice(name, cases=CASES) for name in SOURCES]
    return bench.keep(build_from_slices(settings, slices, code=frozen_code()))


def policy(text: str) -> dict[str, Any]:
    return {"kind": "policy", "policy": read_policy(text).model_dump(mode="json")}


@pytest.fixture(scope="module")
def perfect(bench: Bench, shipped: Artifact) -> Artifact:
    return bench.evaluate(policy("perfect"), {"suite": shipped})


@pytest.fixture(scope="module")
def wrong(bench: Bench, shipped: Artifact) -> Artifact:
    return bench.evaluate(policy("fluent-but-wrong"), {"suite": shipped})


# -- policies over the shipped slices --------------------------------------------------------------


def test_every_slice_is_seen_to_pass_and_to_fail(bench: Bench, perfect: Artifact, wrong: Artifact) -> None:
    good, bad = summarise(bench.report(perfect)), summarise(bench.report(wrong))
    assert [line.name for line in good.slices] == [*sorted(SOURCES), "all"]
    assert [(line.success_at_1, line.unscored) for line in good.slices] == [(1.0, 0)] * 5
    assert [(line.success_at_1, line.unscored) for line in bad.slices] == [(0.0, 0)] * 5
    assert good.slices[-1].low is not None and 0.8 < good.slices[-1].low < 0.9


def test_every_required_grader_is_seen_to_pass_and_to_fail(
    bench: Bench, perfect: Artifact, wrong: Artifact
) -> None:
    def verdicts(artifact: Artifact) -> dict[tuple[str, str], set[Any]]:
        found: dict[tuple[str, str], set[Any]] = {}
        for row in bench.report(artifact).rows:
            for name, grade in row.graded.details.items():
                found.setdefault((row.played.slice, name), set()).add(grade["passed"])
        return found

    required = {(name, grader) for name in SOURCES for grader in build_slice(name, cases=1).required}
    good, bad = verdicts(perfect), verdicts(wrong)
    assert all(good[name] == {True} for name in required)
    # Unit tests pass for the fluent but wrong answer: it runs. Something else of its slice does not.
    failed = {name for name in required if False in bad[name]}
    assert {slice_name for slice_name, _ in failed} == set(SOURCES)


def test_a_stated_rate_a_crash_and_a_pause_show_as_what_they_are(bench: Bench, shipped: Artifact) -> None:
    half = summarise(bench.report(bench.evaluate(policy("right_at_rate,rate=0.5"), {"suite": shipped})))
    assert 0 < (half.slices[-1].success_at_1 or 0) < 1
    crashing = summarise(bench.report(bench.evaluate(policy("crashing,rate=0.5"), {"suite": shipped})))
    overall = crashing.slices[-1]
    assert overall.success_at_1 == 1.0 and 0 < overall.unscored < overall.rows
    assert set(crashing.errors) == {"engine: PolicyCrash", "engine: TimeoutError"}
    assert sum(crashing.errors.values()) == overall.unscored
    slow = bench.report(bench.evaluate(policy("slow,seconds=0.02"), {"suite": shipped}))
    assert min(slow.outcomes.metrics["latency_ms"].values) >= 20


def test_policies_are_named_as_they_are_typed() -> None:
    for text in ("policy:perfect", "policy:right_at_rate,rate=0.8", "policy:crashing,rate=0.5,seed=3"):
        assert policy_name(read_policy(text)) == text
    for text, says in (("perfet", "perfect"), ("slow,second=1", "second"), ("slow,1", "KEY=VALUE")):
        with pytest.raises(DataError) as caught:
            read_policy(text)
        assert says in f"{caught.value.message} {caught.value.hint}"


# -- the report ------------------------------------------------------------------------------------


def test_the_report_holds_every_column_and_every_answer(bench: Bench, perfect: Artifact) -> None:
    folder = bench.store.view(perfect)
    outcomes = read_outcomes(folder)
    assert (outcomes.evaluated.lane, outcomes.evaluated.model) == ("live-frozen", "policy:perfect")
    assert outcomes.evaluated.sampling["samples_per_case"] == 1
    assert {"tokens", "turns", "tool_misses", "latency_ms", "api_version_match('3.2.1')"} <= set(
        outcomes.metrics
    )
    assert perfect.meta["suite"] == outcomes.evaluated.suite
    lines = (folder / LINES_FILE).read_bytes().splitlines()
    assert len(lines) == 4 * CASES
    assert b"latency" not in (folder / LINES_FILE).read_bytes()
    first = json.loads(lines[0])
    assert first["slice"] == "debug_search_api"
    assert [call["name"] for call in first["answer"]["tool_calls"]] == ["read_file", "search_api"]
    assert "success@1" in (folder / "report.txt").read_text()


def test_a_replay_is_byte_equal_and_has_no_latency(bench: Bench, shipped: Artifact, wrong: Artifact) -> None:
    again = bench.evaluate({"kind": "recorded"}, {"suite": shipped, "answers": wrong})
    source, replayed = bench.store.view(wrong), bench.store.view(again)
    assert (replayed / LINES_FILE).read_bytes() == (source / LINES_FILE).read_bytes()
    outcomes = read_outcomes(replayed)
    assert outcomes.evaluated.lane == "replay"
    assert not {"latency_ms", "cost_usd"} & set(outcomes.metrics)


def test_a_replay_on_another_suite_says_what_was_never_recorded(bench: Bench, tmp_path: Path) -> None:
    first = bench.keep(small_files(4))
    report = play_report(bench, first, tmp_path)
    other = dict(small_files(5))
    more = summarise(
        bench.report(bench.evaluate({"kind": "recorded"}, {"suite": bench.keep(other), "answers": report}))
    )
    assert more.errors == {"replay: this answer was never recorded": 2}
    path = "slices/looks/replies/lookup.jsonl"
    suite = parse_suite(small_files(4))
    looks = suite.slice("looks")
    tool = replace(
        looks.tools[0], replies={k: v.replace("v3", "v4") for k, v in looks.tools[0].replies.items()}
    )
    changed = build_from_slices(
        suite.settings,
        [suite.slice("sums"), replace(looks, tools=(tool,))],
        code=suite.code,
        prompts=suite.prompts,
    )
    assert changed[path] != small_files(4)[path]
    found = bench.report(
        bench.evaluate({"kind": "recorded"}, {"suite": bench.keep(changed), "answers": report})
    )
    error = by_case(found.rows)["look-0003"].graded.error
    assert error == 'replay: lookup({"name": "sdk-3"}) had another reply when it was recorded'


def play_report(bench: Bench, suite: Artifact, tmp_path: Path) -> Artifact:
    """A report of the clerk's answers to a small suite."""
    from posttrain.environments.suites.files import read_suite
    from posttrain.evaluation.outcomes import write_outcomes
    from posttrain.evaluation.suites.grading import grader_columns
    from posttrain.evaluation.suites.report import Subject, make_report
    from posttrain.evaluation.suites.rows import dump_lines

    world = read_suite(bench.store.view(suite))
    columns = [column for spec in world.slices for column in grader_columns(spec)]
    report = make_report(
        world, Subject("clerk", "live-frozen", 1, {}), play(world, Clerk(), tmp_path), columns
    )
    with bench.store.writer("report") as writer:
        write_outcomes(writer.directory, report.outcomes)
        writer.add_bytes(LINES_FILE, dump_lines(report.rows))
        return writer.commit()


def test_prices_give_a_cost_in_live_lanes(bench: Bench, shipped: Artifact) -> None:
    prices = {"prompt_usd_per_1k": 0.01, "completion_usd_per_1k": 0.03}
    report = bench.report(bench.evaluate(policy("perfect"), {"suite": shipped}, prices=prices))
    cost = report.outcomes.metrics["cost_usd"]
    answer = report.rows[0].played.answer
    assert answer is not None and answer.prompt_tokens is not None and answer.completion_tokens is not None
    assert cost.values[0] == pytest.approx(
        (answer.prompt_tokens * 0.01 + answer.completion_tokens * 0.03) / 1000
    )


# -- graders that fail -----------------------------------------------------------------------------


def test_without_latency_a_report_is_the_same_bytes_whenever_it_is_made(
    bench: Bench, shipped: Artifact
) -> None:
    first, second = (
        bench.evaluate(policy("perfect"), {"suite": shipped}, latency=False, attempt=attempt).files
        for attempt in (1, 2)
    )
    assert first == second
    assert any(entry.path == "outcomes.parquet" for entry in first)


def test_a_grader_that_raises_gives_no_verdict(tmp_path: Path) -> None:
    rows = by_case(play(small_suite(2, grader={**EXACT, "expects": "nothing"}), Clerk(), tmp_path))
    assert rows["sum-0001"].graded.success is None
    assert "grader: right: " in (rows["sum-0001"].graded.error or "")
    assert rows["look-0001"].graded.success is True


def test_a_grader_that_hangs_is_killed_and_costs_one_answer(tmp_path: Path) -> None:
    grader = {"kind": "regex", "name": "right", "pattern": "^(([0-9])+)+x$"}

    class Long(Clerk):
        def turn(self, request: Any) -> Any:
            found = super().turn(request)
            return replace(found, text="1" * 60) if request.case == "sum-0002" else found

    rows = by_case(play(small_suite(4, grader=grader), Long(), tmp_path, grader_timeout_seconds=5.0))
    assert rows["sum-0002"].graded.error == "grader: no result within 5 s"
    assert [case for case, row in rows.items() if row.graded.success is None] == ["sum-0002"]


def test_grading_processes_know_nothing_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    rows = play(small_suite(2), Clerk(), tmp_path)
    assert all(row.graded.success is not None for row in rows)


def test_slices_with_a_learned_grader_are_graded_in_this_process() -> None:
    judge = {"kind": "llm_judge", "name": "judge", "judge": {"kind": "model"}}
    suite = small_suite(1, grader=EXACT)
    assert [learned_graders(spec) for spec in suite.slices] == [[], []]
    spec = replace(suite.slice("sums"), graders=(EXACT, judge))
    assert [config.name for config in learned_graders(spec)] == ["judge"]


# -- baselines -------------------------------------------------------------------------------------


def test_flips_against_a_baseline_are_named(bench: Bench, perfect: Artifact, wrong: Artifact) -> None:
    summary = summarise(bench.report(perfect), bench.report(wrong))
    assert len(summary.better) == 4 * CASES and summary.worse == ()
    assert summary.slices[0].baseline == 0.0
    text = render_summary(summary)
    assert re.search(r"debug_search_api +6 +100\.0% .* \+100\.0", text)
    assert "better 24: debug_search_api-0000" in text
    assert "no case changed" in render_summary(summarise(bench.report(wrong), bench.report(wrong)))


def test_a_baseline_of_another_suite_is_refused(bench: Bench, perfect: Artifact, tmp_path: Path) -> None:
    other = bench.report(play_report(bench, bench.keep(small_files(3)), tmp_path))
    with pytest.raises(DataError, match="was measured on another suite"):
        summarise(bench.report(perfect), other)


def test_a_suite_built_with_other_code_is_refused(bench: Bench) -> None:
    files = small_files(1)
    suite = parse_suite(files)
    code = {**suite.code, "evaluation/graders/texts.py": "sha256:" + "0" * 64}
    changed = build_from_slices(suite.settings, suite.slices, code=code)
    assert parse_suite(changed).identity.root != suite.identity.root
    with pytest.raises(DataError, match=r"built with other code: evaluation/graders/texts\.py differs"):
        bench.evaluate(policy("perfect"), {"suite": bench.keep(changed)})
    check_code(suite)


def test_what_graders_import_is_part_of_the_frozen_code() -> None:
    root = Path(posttrain.__file__).parent
    # Models that grade are named by their inputs; records and the core hold no rule.
    free = (
        "core/",
        "engines/",
        "environments/records.py",
        "environments/suites/slice_records.py",
        "environments/suites/suite.py",
    )
    for path in frozen_code():
        if path == "engines/conversation.py":  # what is asked is in the suite; only the loop counts
            continue
        for node in ast.walk(ast.parse((root / path).read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("posttrain."):
                name = (node.module or "").removeprefix("posttrain.").replace(".", "/")
                file = f"{name}.py" if (root / f"{name}.py").is_file() else f"{name}/__init__.py"
                covered = any(file == place or file.startswith(f"{place}/") for place in FROZEN_CODE)
                known = file.startswith(free) or file in (
                    "evaluation/outcomes.py",
                    "evaluation/suites/rows.py",
                )
                assert covered or known, f"{path} imports {file}, which is not in FROZEN_CODE"


def test_greedy_samples_would_all_be_the_same(bench: Bench, shipped: Artifact) -> None:
    with pytest.raises(ConfigError, match="would all be the same"):
        bench.evaluate({"kind": "store"}, {"suite": shipped}, samples=2)
    report = bench.report(bench.evaluate(policy("right-at-rate,rate=0.5"), {"suite": shipped}, samples=2))
    assert report.outcomes.evaluated.sampling["samples_per_case"] == 2
    assert len(report.rows) == 8 * CASES


# -- proofs ----------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[dict[str, Any]], str]], str]]:
    """A model server that answers by a function of the body."""
    servers: list[ThreadingHTTPServer] = []

    def start(say: Callable[[dict[str, Any]], str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                message = {"role": "assistant", "content": say(body)}
                usage = {"prompt_tokens": 3, "completion_tokens": 1}
                data = json.dumps(
                    {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
                )
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data.encode())

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1"

    yield start
    for running in servers:
        running.shutdown()
        running.server_close()


def proof_of(bench: Bench, model: dict[str, Any], suite: Artifact) -> Any:
    config = EvaluateSuiteConfig.model_validate({"model": model})
    inputs = {"suite": suite}
    report = bench.report(bench.evaluate(model, inputs))
    return prove(report, config, inputs, bench.context(config, inputs))


def test_a_deterministic_model_is_proven(bench: Bench, shipped: Artifact) -> None:
    proof = proof_of(bench, policy("right_at_rate,rate=0.5"), shipped)
    assert proof.equal and proof.differing == ()
    assert proof.first.frozen_digest == proof.second.frozen_digest
    assert proof.second.order == "shuffled" and proof.second.concurrency > proof.first.concurrency
    assert "equal in every byte" in render_proof(proof)


def test_a_model_that_wavers_is_not_and_its_rows_are_named(bench: Bench, server: Any) -> None:
    asked: list[int] = []

    def say(body: dict[str, Any]) -> str:
        question = body["messages"][-1]["content"]
        if question == "1 + 1?":
            asked.append(1)
            return str(len(asked))
        return "3"

    model = {"kind": "endpoint", "endpoint": {"base_url": server(say), "model": "wavering"}}
    proof = proof_of(bench, model, bench.keep(small_files(4)))
    assert not proof.equal
    assert [(row.case, row.sample) for row in proof.differing] == [("sum-0001", 0)]
    assert {"answer", "success"} <= set(proof.differing[0].fields)
    text = render_proof(proof)
    assert "NOT EQUAL: 1 rows differ" in text and "sum-0001, sample 0" in text


def test_a_server_is_reached_and_nothing_else(bench: Bench, server: Any) -> None:
    url = server(
        lambda body: str(int(body["messages"][-1]["content"].split()[0]) + 1) if "+" in str(body) else "v0"
    )
    model = {"kind": "endpoint", "endpoint": {"base_url": url, "model": "adder", "concurrency": 4}}
    report = bench.report(bench.evaluate(model, {"suite": bench.keep(small_files(3))}))
    rows = by_case(report.rows)
    assert [rows[f"sum-000{n}"].graded.success for n in range(3)] == [True] * 3
    assert report.outcomes.evaluated.model == f"adder at {url}"
    assert (report.outcomes.metrics["latency_ms"].values > 0).all()


# -- stages ----------------------------------------------------------------------------------------


def test_the_suite_stage_builds_the_standard_suite(bench: Bench) -> None:
    config = SuiteConfig.model_validate({"settings": {"decoding.temperature": 0.7}})
    first = run_suite(config, {}, bench.context(config, {})).outputs["suite"]
    assert first.meta["slices"] == dict.fromkeys(sorted(SOURCES), STANDARD_CASES)
    assert config.outside_facts() == frozen_code()
    other = SuiteConfig()
    second = run_suite(other, {}, bench.context(other, {})).outputs["suite"]
    assert first.meta["identity"]["root"] != second.meta["identity"]["root"]
    changed = {
        k for k, v in first.meta["identity"]["parts"].items() if second.meta["identity"]["parts"][k] != v
    }
    assert changed == {"settings"}


def test_held_out_prompts_become_a_suite_of_one_slice(bench: Bench) -> None:
    rows = [
        PromptRow("a", "Alice has 3 apples and buys 2 more. How many now?", "5", tags={"steps": 1}),
        PromptRow("b", "小明有3个苹果。又买了2个。现在有几个苹果？", "5", "zh"),
        PromptRow("c", "Write a poem.", "", task="open"),
    ]
    with bench.store.writer("dataset") as writer:
        writer.add_bytes(PROMPTS_FILE, to_jsonl(rows))
        prompts = writer.commit()

    def build(config: SuiteConfig, inputs: dict[str, Artifact]) -> Artifact:
        return run_suite(config, inputs, bench.context(config, inputs)).outputs["suite"]

    config = SuiteConfig(source="prompts", settings={"decoding.temperature": 1.0})
    suite = read_suite(bench.store.view(build(config, {"prompts": prompts})))
    (spec,) = suite.slices
    assert [case.id for case in spec.cases] == ["problems-a", "problems-b"]
    assert suite.settings.decoding.temperature == 1.0
    grader = SliceGrader(spec)
    right = "<think>Start with 3. Add 3+2=5.</think><answer>5</answer>"
    english = grader.grade(spec.cases[0], Answer(right))
    chinese = grader.grade(spec.cases[1], Answer(right))
    wrong = grader.grade(spec.cases[0], Answer("<think>Easy.</think><answer>6</answer>"))
    assert (english.success, chinese.success, wrong.success) == (True, True, False)
    assert english.metrics["one_language"] is True and chinese.metrics["one_language"] is False
    with pytest.raises(ConfigError, match="`prompts` is not given"):
        build(config, {})
    with pytest.raises(ConfigError, match="`prompts` is given"):
        build(SuiteConfig(), {"prompts": prompts})
    with bench.store.writer("dataset") as writer:
        writer.add_bytes(PROMPTS_FILE, to_jsonl(rows[2:]))
        unanswered = writer.commit()
    with pytest.raises(DataError, match="no prompt has an answer"):
        build(config, {"prompts": unanswered})


def test_errors_are_grouped_by_kind() -> None:
    assert error_kind("engine: PolicyCrash: on case 3") == "engine: PolicyCrash"
    assert error_kind("engine: no answer within 1 s") == "engine: no answer within 1 s"


# -- what was written before -----------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden"


def test_lines_of_every_version_are_read() -> None:
    data = (GOLDEN / "answers_v1.jsonl").read_bytes()
    rows = load_lines(data)
    assert dump_lines(rows) == data
    assert [(row.played.case, row.graded.success) for row in rows] == [
        ("look-0000", True),
        ("look-0001", None),
        ("sum-0000", False),
    ]
    assert rows[0].played.answer is not None and rows[0].played.answer.tool_calls[0].reply == "v0"
    assert rows[0].played.misses[0].nearest == '{"name":"sdk-0"}'
    with pytest.raises(DataError, match=r"answers\.jsonl, line 2: a row of schema 2"):
        load_lines(data.splitlines(keepends=True)[0] + b'{"schema": 2}\n')
    with pytest.raises(DataError, match=r"answers\.jsonl, line 1"):
        load_lines(b"{")


def test_proofs_of_every_version_are_read() -> None:
    data = (GOLDEN / "suite_proof_v1.json").read_bytes()
    proof = Proof.from_json(data)
    assert proof.to_bytes() + b"\n" == data
    assert not proof.equal and proof.differing[0].fields == ("answer", "success")
