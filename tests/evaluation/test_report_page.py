"""The page: one file that loads nothing, says what happened, and shows any completion as plain text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from posttrain.evaluation.heldout.measures import compare, measure_rows
from posttrain.evaluation.heldout.report import (
    ModelRow,
    ReportData,
    pick_examples,
    render_report,
    render_text,
    segments,
)
from posttrain.evaluation.heldout.summary import Preferred, headline, summary_table, visible
from posttrain.evaluation.heldout.win_rate import win_rate

VOID = {"meta", "link", "br", "hr", "img", "input", "base", "wbr"}
NASTY = "<think> 3 < 4 & 小明有5个 </think>\n<answer> 7 </answer><script>alert('x')</script>\x1b[31m\u202e"
LOG = [
    {"step": step, "reward": step / 10, "completions/mean_length": 30 + step, "entropy": 1.0}
    for step in range(1, 20)
]


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def data(rows, row, digests):
    nasty = {"question": "小明有3个苹果 <b>,又买了4个。", "reference": "7", "language": "zh"}
    before, after = rows(20, fmt=50), rows(90, fmt=98)
    for index in range(4):
        sample = {"mode": "sampled", "sample_index": index, **nasty}
        before.append(row(900, completion=NASTY, correct=False, **sample))
        after.append(row(900, correct=None, **sample))
    reports = [
        measure_rows(r, model=digest, suite=digests[2], sampling={"temperature": 1.0, "seed": 0})
        for r, digest in ((before, digests[0]), (after, digests[1]))
    ]
    return ReportData(
        title="R1-Zero <on> real problems",
        recipe="r1-zero-tiny",
        rows=[ModelRow("base", reports[0]), ModelRow("R1-Zero", reports[1])],
        comparison=compare(before, after, before_label="base", after_label="R1-Zero"),
        training={"R1-Zero": LOG},
        examples=pick_examples({"base": before, "R1-Zero": after}, count=42),
        facts={"Parameters": "3.2 million", "Seed": "0"},
        digests={"Recipe": "sha256:" + "d" * 64},
        reproduce=["make demo", "posttrain run r1-zero-tiny --set seed=0"],
        notes=["Accuracy & format diverged."],
    )


@pytest.fixture(scope="module")
def html(data):
    return render_report(data)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_is_one_well_formed_document(html, page):
    assert html.startswith("<!doctype html>")
    assert {"html", "head", "body", "main", "h1", "table", "svg"} <= {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing_and_runs_nothing(html, page):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
                assert (value or "").startswith("#")
    assert not re.search(r"https?:|//[a-z]", html, re.IGNORECASE)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'")


def test_completions_are_escaped_and_shown_as_they_are(html, page):
    assert "<think>" not in html and "&lt;think&gt;" in html
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "小明有5个" in html, "Chinese text stands as itself, not as character references"
    assert "<think> 3 < 4 & 小明有5个 </think>\n<answer> 7 </answer><script>alert('x')</script>" in page.text
    assert "小明有3个苹果 <b>,又买了4个。" in page.text
    assert "R1-Zero <on> real problems" in page.text and "<on>" not in html


def test_what_could_steer_the_reader_is_written_out(html, page):
    assert "\x1b" not in html and "\u202e" not in html
    assert "␛[31m[U+202E]" in page.text


def test_chinese_text_is_marked_as_chinese(page):
    assert any(tag == "p" and attributes.get("lang") == "zh" for tag, attributes in page.tags)
    assert any(tag == "pre" and attributes.get("lang") == "zh" for tag, attributes in page.tags)


def test_the_page_says_what_happened(data, page):
    change = data.comparison.difference("sampled.success@1")
    before, after = f"{100 * change.before:.1f}%", f"{100 * change.after:.1f}%"
    text = page.text.replace("\u2060", "")
    assert f"R1-Zero solves {after} of the held-out problems, up from {before}." in text
    assert "Not only format" in text
    for expected in (
        "Success@1",
        "Pass@4",
        "Languages mixed",
        "make demo",
        "3.2 million",
        "sha256:" + "d" * 64,
    ):
        assert expected in text
    assert "Accuracy & format diverged." in text
    assert "95% interval" in text and "Korn-Graubard" in text and "Tango" in text


def test_the_page_works_on_a_phone_and_at_night(html, page):
    viewport = next(a["content"] for t, a in page.tags if a.get("name") == "viewport")
    assert viewport == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in html
    assert html.count('class="scroll"') == sum(tag == "table" for tag, _ in page.tags), "wide tables scroll"


def test_the_same_data_give_the_same_page(data, html):
    assert render_report(data) == html


def test_the_page_of_six_models_has_six_columns(data):
    rows = [ModelRow(f"model {i}", data.rows[i % 2].report) for i in range(6)]
    comparison = data.comparison.model_copy(update={"before_label": "model 0", "after_label": "model 5"})
    page = Page(
        render_report(
            ReportData(
                title="Six",
                recipe="all",
                rows=rows,
                comparison=comparison,
                more_comparisons=[data.comparison],
            )
        )
    )
    for i in range(6):
        assert f"model {i}" in page.text
    assert "model 5 solves" in page.text.replace("\u2060", "")
    assert "R1-Zero against base" in page.text


def test_a_report_of_one_model_needs_nothing_else(data):
    alone = ReportData(title="One", recipe="r", rows=data.rows[:1])
    text = Page(render_report(alone)).text.replace("\u2060", "")
    assert "base solves" in text and "change" not in text
    assert "How training went" not in text
    assert headline(alone).lines[0].startswith("95% interval: ")


def test_a_report_needs_models_with_different_labels(data):
    with pytest.raises(ValueError, match="at least one"):
        ReportData(title="x", recipe="y", rows=[])
    with pytest.raises(ValueError, match="differ"):
        ReportData(title="x", recipe="y", rows=[data.rows[0], data.rows[0]])


def words(rows, digests, before, after):
    reports = [measure_rows(r, model=digests[0], suite=digests[2]) for r in (before, after)]
    comparison = compare(before, after, before_label="base", after_label="new")
    return headline(
        ReportData(
            "t", "r", [ModelRow("base", reports[0]), ModelRow("new", reports[1])], comparison=comparison
        )
    )


def test_the_headline_tells_a_gain_from_a_loss_and_from_neither(rows, digests):
    assert "up from" in words(rows, digests, rows(20), rows(80)).sentence
    assert "down from" in words(rows, digests, rows(80), rows(20)).sentence
    assert "no clear change" in words(rows, digests, rows(50), rows(53)).sentence


def test_the_headline_admits_a_gain_that_may_be_format_alone(rows, digests):
    found = words(rows, digests, rows(60, fmt=20), rows(60, fmt=100))
    assert any("may be format alone" in line for line in found.lines)
    found = words(rows, digests, rows(10, fmt=20), rows(90, fmt=100))
    assert any(line.startswith("Not only format") for line in found.lines)


def test_the_headline_warns_of_what_could_not_be_scored(rows, row, digests):
    broken = [r.model_copy(update={"correct": None}) if r.case_id == "case-001" else r for r in rows(60)]
    found = words(rows, digests, rows(20), broken)
    assert any("of the sampled completions of new could not be scored" in line for line in found.lines)
    lost = [row(c, correct=None, correct_anywhere=None) for c in range(3)]
    report = measure_rows(lost, model=digests[0], suite=digests[2])
    only = headline(ReportData("t", "r", [ModelRow("base", report)]))
    assert only.sentence == "No completion of base could be scored."


def test_the_table_tones_a_change_by_whether_it_is_wanted(rows, digests):
    before = [r.model_copy(update={"mixed_language": True}) for r in rows(20)]
    after = rows(80)
    reports = [measure_rows(r, model=digests[0], suite=digests[2]) for r in (before, after)]
    data = ReportData(
        "t", "r", [ModelRow("a", reports[0]), ModelRow("b", reports[1])], comparison=compare(before, after)
    )
    lines = {line.name: line for group in summary_table(data) for line in group.lines}
    assert lines["sampled.success@1"].change.tone == "good"
    assert lines["sampled.language_mixing"].change.tone == "good"
    assert lines["sampled.language_mixing"].change.value == "−100.0"
    assert lines["sampled.reasoning_tokens"].change.tone == ""
    assert lines["sampled.none_rate"].change.tone == ""
    assert [group.name for group in summary_table(data)] == ["sampled", "greedy"]


def test_examples_are_chosen_by_hash_and_show_every_language(rows):
    before, after = rows(10), rows(90)
    picked = pick_examples({"base": before, "new": after}, count=4)
    assert [example.language for example in picked] == ["en", "zh", "en", "zh"]
    assert [[c.label for c in example.completions] for example in picked] == [["base", "new"]] * 4
    # The choice does not look at results: worse models, the same problems.
    assert [e.case_id for e in pick_examples({"base": rows(0), "new": rows(1)}, count=4)] == [
        e.case_id for e in picked
    ]
    assert len(pick_examples({"base": before}, count=1000)) == 40
    assert pick_examples({}, count=5) == () == pick_examples({"base": before, "new": []}, count=5)
    greedy = [r for r in before if r.mode == "greedy"]
    assert len(pick_examples({"base": greedy}, mode="greedy")) == 5


def test_segments_join_to_the_text_and_know_their_place():
    text = "a <think> b <b </think> c <answer> 7 </answer> d"
    pieces = segments(text)
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.kind for piece in pieces] == [
        "text",
        "tag",
        "think",
        "tag",
        "text",
        "tag",
        "answer",
        "tag",
        "text",
    ]
    assert segments("b </think> c")[0].kind == "think"
    assert [piece.kind for piece in segments("<|im_end|>x")] == ["tag", "text"]
    assert segments("") == []


def test_a_very_long_completion_is_cut_and_says_so():
    assert visible("x" * 7000).endswith("… (1000 more characters)")
    assert visible("小明\n\tok") == "小明\n\tok"


def test_the_terminal_shows_the_same_numbers_without_control_codes(data):
    text = render_text(data)
    assert "\x1b" not in text and "␛[31m" in text
    assert headline(data).sentence in text
    for group in summary_table(data):
        for line in group.lines:
            shown = next(
                t
                for t in text.split(f"\n{group.name.capitalize()}\n")[1].splitlines()
                if t.strip().startswith(line.title)
            )
            for cell in (*line.cells, line.change):
                assert cell.value in shown and cell.interval in shown
    assert "<think> 3 < 4 & 小明有5个 </think>" in text
    assert "▁" in text and "█" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "小明有3个苹果" not in render_text(data, examples=False)


def test_the_terminal_shows_six_models_in_a_hundred_columns(data):
    rows = [ModelRow(f"model {i}", data.rows[i % 2].report) for i in range(6)]
    text = render_text(ReportData(title="Six", recipe="all", rows=rows))
    assert max(map(len, text.splitlines())) <= 100
    assert "intervals are in the page" in text


def test_rich_markup_in_a_completion_has_no_effect(row, digests):
    rows = [row(0, mode="sampled", completion="[bold red]x[/bold red] [/] :smile:")]
    report = measure_rows(rows, model=digests[0], suite=digests[2])
    text = render_text(
        ReportData("t", "r", [ModelRow("base", report)], examples=pick_examples({"base": rows}))
    )
    assert "[bold red]x[/bold red] [/] :smile:" in text


def test_win_rates_are_a_line_of_the_table(data):
    rate = win_rate("r1_zero", [1.0] * 30 + [0.0] * 10)
    label = data.rows[-1].label
    shown = replace(data, preferred=Preferred(data.rows[0].label, "reward_model", 40, {label: rate}))
    assert "40 open prompts, judge: reward model" in render_report(shown)
    text = render_text(shown)
    line = next(line for line in text.splitlines() if f"Preferred to {data.rows[0].label}" in line)
    assert "75.0%" in line
    assert "–" in line


def test_several_training_runs_and_reward_models_each_have_their_place(data):
    report = {
        "pair_accuracy": {"value": 0.817, "low": 0.768, "high": 0.859, "n": 300},
        "calibration": {"expected_error": 0.0312, "brier": 0.14},
        "length_bias": {"value": None, "low": None, "high": None, "n": 0},
    }
    both = replace(data, training={"R1-Zero": LOG, "R1": LOG, "empty": []}, reward_models={"helpful": report})
    page = Page(render_report(both))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    assert page.text.count("Response length") == 2
    assert "empty" not in page.text
    for text in ("ranked as people did", "81.7%", "76.8 to 85.9", "0.031"):
        assert text in page.text
    assert "R1-Zero" in render_text(both)
