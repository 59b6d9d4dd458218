"""Reading recipes: the YAML subset, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError, UnknownReferenceError
from posttrain.core.yaml_text import parse_document, parse_value
from posttrain.pipelines.overrides import apply_overrides
from posttrain.pipelines.recipe import RecipeSource, find_recipe, read_recipe, shipped_recipes
from posttrain.pipelines.resolve import ResolvedRecipe, resolve_recipe
from tests.pipelines.toy_stages import TOY_RECIPE, TOY_STAGES


def toy_source(text: str = TOY_RECIPE) -> RecipeSource:
    document = parse_document(text, "toy.yaml")
    return RecipeSource(document.value, "toy.yaml", document.lines)


def toy(*settings: str, text: str = TOY_RECIPE) -> ResolvedRecipe:
    return resolve_recipe(apply_overrides(toy_source(text), settings, TOY_STAGES), stages=TOY_STAGES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5.e3", 5000.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("0x1F", 31),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2026-11-23", "2026-11-23"),
        ("null", None),
        ("", None),
        ("~", None),
        ("'1'", "1"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
        ("run:rl.model", "run:rl.model"),
        ("a: b", "a: b"),
        ("# not a comment", "# not a comment"),
        ("nan", "nan"),
        ("9" * 500, "9" * 500),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_block_text_and_lines() -> None:
    document = parse_document("a: |\n  1\n  2\nb:\n  - x: 0o17\n  -\n    y: !x\n".replace(" !x", ""), "f")
    assert document.value == {"a": "1\n2\n", "b": [{"x": 15}, {"y": None}]}
    assert document.lines[("b",)] == 4
    assert document.lines[("b", 0, "x")] == 5
    assert document.lines[("b", 1, "y")] == 7


@given(
    st.recursive(
        st.integers() | st.text("abc 1:#-?[]{}'\"\n") | st.booleans() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab<"), inner, max_size=3),
    )
)
def test_what_yaml_writes_is_read_back(value: Any) -> None:
    if isinstance(value, dict | list):
        assert parse_document(yaml.safe_dump(value), "f").value == value


BAD_TEXT = {
    "duplicate": (TOY_RECIPE.replace("seed: 3", "seed: 3\nseed: 4"), "toy.yaml:5: duplicate key 'seed'"),
    "not yaml": (TOY_RECIPE.replace("{count: 5}", "{count: 5"), "toy.yaml:9: not valid YAML"),
    "tabs": ("schema: 1\n\tname: x\n", "toy.yaml:2: not valid YAML"),
    "anchor": ("a: &x 1\nb: *x\n", "toy.yaml:1: anchors and aliases"),
    "merge": ("a:\n  <<: {b: 1}\n", "toy.yaml:2: a key must be plain text"),
    "tag": ("a: !!python/object:os.system x\n", "toy.yaml:1: the tag"),
    "list key": ("? [a]\n: 1\n", "toy.yaml:1: a key must be plain text"),
    "two documents": ("a: 1\n---\nb: 1\n", "not valid YAML"),
    "control character": ("a: \x01\n", "not valid YAML"),
    "deep": ("[" * 500 + "]" * 500, "nested too deeply"),
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_text_that_is_no_recipe(name: str) -> None:
    text, message = BAD_TEXT[name]
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "toy.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Changed text of the toy recipe, what the message must hold, what the hint must hold.
BAD_RECIPE = {
    "no schema": (("schema: 1\n", ""), "schema: this key is required", ""),
    "later schema": (("schema: 1", "schema: 2"), "toy.yaml:1: schema: expected 1, given 2", ""),
    "unknown key": (("title: A toy", "tilte: A toy"), "toy.yaml:3: tilte: unknown key", "'title'"),
    "unknown stage key": (
        ("    uses: toy_report", "    uses: toy_report\n    input: {}"),
        "toy.yaml:19: report.input: unknown key",
        "'inputs'",
    ),
    "bad name": (("name: first", "name: 1st"), "1st.name: expected text that matches", ""),
    "no stages": (
        (TOY_RECIPE[TOY_RECIPE.index("stages:") :], "stages: []\n"),
        "at least 1 entries, given []",
        "",
    ),
    "twice": (("name: second", "name: first"), "there are two stages called 'first'", "rename"),
    "unknown kind": (
        ("uses: toy_numbers", "uses: toy_number"),
        "toy.yaml:7: numbers.uses: unknown stage kind 'toy_number'",
        "'toy_numbers'",
    ),
    "unknown with": (("{count: 5}", "{cuont: 5}"), "toy.yaml:8: numbers.cuont: unknown key", "'count'"),
    "wrong type": (
        ("{count: 5}", "{count: many}"),
        'toy.yaml:8: numbers.count: expected a whole number, given "many"',
        "",
    ),
    "out of range": (
        ("{count: 5}", "{count: 0}"),
        "numbers.count: expected a number of at least 1, given 0",
        "",
    ),
    "across fields": (
        ("steps: 6", "steps: 6\n      fail_at: 9"),
        "second: fail_at is 9, after the last of 6 steps",
        "",
    ),
    "forward": (
        ("{a: first.model, b: second.model}", "{a: report.report}"),
        "comes from a stage that runs later",
        "up",
    ),
    "no such stage": (
        ("{data: numbers.rows}", "{data: nmubers.rows}"),
        "toy.yaml:11: first.inputs.data: there is no stage",
        "'numbers.rows'",
    ),
    "no such output": (
        ("b: second.model", "b: second.modle"),
        "stage 'second' has no output 'modle'",
        "'model'",
    ),
    "wrong kind": (
        ("b: second.model", "b: second.metrics"),
        "expected an artifact of kind 'model', given second.metrics",
        "",
    ),
    "missing input": (
        ("{data: numbers.rows}", "{}"),
        "first.inputs: the input 'data' is missing",
        "data: numbers.rows",
    ),
    "unknown input": (
        ("model: first.model}", "modell: first.model}"),
        "toy_train has no input 'modell'",
        "'model'",
    ),
    "one for many": (
        ("{a: first.model, b: second.model}", "first.model"),
        "expected a mapping of name to stage.output",
        "",
    ),
    "many for one": (("{data: numbers.rows}", "{data: {a: numbers.rows}}"), "expected one stage.output", ""),
    "output": (
        ("report: report.report", "report: report.reprot"),
        "outputs.report: stage 'report' has no output",
        "'report'",
    ),
    "output is a ref": (
        ("report: report.report", "report: best"),
        "outputs.report: expected stage.output, given 'best'",
        "",
    ),
    "infinite": (("steps: 6", "pause_seconds: .inf"), "second.pause_seconds: expected a number", ""),
}


@pytest.mark.parametrize("name", BAD_RECIPE)
def test_recipe_that_cannot_be_meant(name: str) -> None:
    (old, new), message, hint = BAD_RECIPE[name]
    assert old in TOY_RECIPE
    with pytest.raises(ConfigError) as caught:
        toy(text=TOY_RECIPE.replace(old, new, 1))
    assert message in str(caught.value)
    assert hint in (caught.value.hint or str(caught.value))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_problem_is_named_at_once() -> None:
    text = TOY_RECIPE.replace("{count: 5}", "{cuont: 5}").replace("b: second.model", "b: second.metrics")
    with pytest.raises(ConfigError) as caught:
        toy("first.mode=fsat", text=text)
    message = str(caught.value)
    assert message.startswith(
        "3 problems in toy.yaml: (1) toy.yaml:8: numbers.cuont: unknown key [did you mean"
    )
    assert "--set first.mode=fsat: first.mode: expected 'slow' or 'fast', given \"fsat\"" in message
    assert "(3) toy.yaml:20: report.inputs.runs.b" in message


def test_set_changes_keys() -> None:
    resolved = toy("seed=7", "second.steps=9", "first.pause_seconds=1e-3", "first.mode=slow")
    first, second = resolved.stages[1].config_json, resolved.stages[2].config_json
    assert (resolved.recipe.seed, first["seed"], second["steps"]) == (7, 7, 9)
    assert (first["pause_seconds"], first["mode"]) == (0.001, "slow")


def test_set_of_one_nested_key_keeps_the_others() -> None:
    guard = (
        toy("first.guard.timeout_seconds=5", "first.guard.rules.1.exponent=7").stages[1].config_json["guard"]
    )
    assert guard == {
        "timeout_seconds": 5.0,
        "rules": [{"kind": "linear", "slope": 1.0}, {"kind": "power", "exponent": 7}],
    }
    whole = toy("first.guard={timeout_seconds: 2}").stages[1].config_json["guard"]
    assert whole["timeout_seconds"] == 2.0
    assert len(whole["rules"]) == 2


def test_set_leaves_the_source_alone() -> None:
    source = toy_source()
    apply_overrides(source, ["second.steps=9"], TOY_STAGES)
    assert source.data == toy_source().data


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("first.stpes=3", "--set first.stpes=3: first.stpes: unknown key", "'steps'"),
        ("first.steps=ten", '--set first.steps=ten: first.steps: expected a whole number, given "ten"', ""),
        ("frst.steps=1", "'frst' is neither a stage", "'first.steps'"),
        ("sed=1", "'sed' is neither a stage", "'seed'"),
        ("first.steps", "expected key=value", "rl.steps=10"),
        ("=1", "expected key=value", ""),
        ("first..x=1", "expected key=value", ""),
        ("first.guard.rules.5.exponent=7", "'5' is not a position in a list of 2", "0 to 1"),
        ("first.guard.rules.1.exponnt=7", "first.guard.rules.1.exponnt: unknown key", "'exponent'"),
        (
            "first.guard.rules.0.kind=powr",
            "first.guard.rules.0.kind=powr: first.guard.rules.0: expected one of",
            "'power'",
        ),
        ("second.steps.x=1", "'x' leads into a value that has no keys", ""),
        ("first.gaurd.timeout_seconds=1", "first.gaurd: unknown key", "'guard'"),
        ("stages=[]", "'stages' is neither", ""),
    ],
)
def test_set_of_what_is_not_there(setting: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy(setting)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_resolved_recipe_is_itself_a_recipe() -> None:
    resolved = toy("second.steps=9")
    again = resolve_recipe(RecipeSource.from_mapping(resolved.document), stages=TOY_STAGES)
    assert again.document == resolved.document
    assert again.digest == resolved.digest
    assert toy("second.steps=10").digest != resolved.digest


def test_spelling_out_a_default_changes_nothing() -> None:
    assert toy("first.steps=4", "first.seed=3", "first.pause_seconds=0").digest == toy().digest


def test_seed_goes_to_stages_that_do_not_set_it() -> None:
    resolved = toy("second.seed=5")
    assert [stage.config_json.get("seed") for stage in resolved.stages] == [3, 3, 5, None]


def test_inputs_as_the_stage_sees_them() -> None:
    wires = {name: str(wire) for name, wire in toy().stages[3].inputs.items()}
    assert wires == {"runs.a": "first.model", "runs.b": "second.model"}


def test_reference_outside_the_recipe_stays_as_written_without_a_lookup() -> None:
    text = TOY_RECIPE.replace("model: first.model}", "model: 20261123-150405-ab12:rl.model}")
    assert str(toy(text=text).stages[2].inputs["model"]) == "20261123-150405-ab12:rl.model"


def test_numbers_that_json_cannot_carry(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="canonical JSON"):
        toy("first.seed=9007199254740993")


def test_recipe_files_that_cannot_be_used(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    huge = tmp_path / "huge.yaml"
    huge.write_text("a: " + "x" * (1 << 20))
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    for path, message in (
        (binary, "not UTF-8"),
        (huge, "larger than 1 MiB"),
        (empty, "starts with `schema: 1`"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_recipe(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path)
    with pytest.raises(UnknownReferenceError, match="no recipe file"):
        read_recipe(tmp_path / "absent.yaml")
    with pytest.raises(UnknownReferenceError, match="there is no recipe 'r1-zero-tinny'"):
        find_recipe("r1-zero-tinny")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_resolves(name: str) -> None:
    resolved = resolve_recipe(read_recipe(name))
    assert resolved.name == name
    assert resolved.recipe.title
