"""Where judged pairs come from, and the ``preferences`` stage that freezes them.

Here: one config a source and one reader in ``_READERS`` that yields rows of one side of the split. The stage draws a
training and a held-out set that share no question. Pairs that people called equal go to the held-out set only, tagged
``tie: yes``: they measure whether a reward model prefers the longer reply. To add a source: its config, its reader.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.canonical import digest_bytes
from posttrain.core.errors import DataError
from posttrain.data import open_tasks
from posttrain.data._prompt_readers import read_records, value_at
from posttrain.data.preferences import (
    PREFERENCES_FILE,
    Aspect,
    PreferenceRow,
    check_preferences,
    is_tie,
    preference_set_facts,
    preferences_to_jsonl,
)
from posttrain.data.prompts import normal_question
from posttrain.data.word_problems import Language


class ProceduralSource(StageConfig):
    """Made here: two replies to an open task, judged by the planted rule; one training verdict in twenty is wrong."""

    kind: Literal["procedural"] = "procedural"
    aspect: Aspect = "helpful"
    languages: tuple[Language, ...] = Field(("en", "zh"), min_length=1)


class PairsSource(StageConfig):
    """A JSONL file (plain or gzip) of prompts with a chosen and a rejected reply."""

    kind: Literal["jsonl"] = "jsonl"
    paths: tuple[str, ...] = Field(min_length=1)
    prompt: str = "prompt"
    """Key of the prompt; a dot reaches into lists and objects."""
    chosen: str = "chosen"
    rejected: str = "rejected"
    aspect: Aspect = "helpful"
    language: str = "en"


class PandaLmSource(StageConfig):
    """The human-judged test set of PandaLM (Wang et al. 2023, arXiv:2306.05087): the majority of three people."""

    kind: Literal["pandalm"] = "pandalm"
    path: str
    """Its JSON file, plain or gzip."""


class HubPairsSource(StageConfig):
    """Pairs of a data set of the Hugging Face hub; the recipe must say ``allow_hub: true``."""

    kind: Literal["hub"] = "hub"
    path: str
    """Data set id, for example ``HuggingFaceH4/ultrafeedback_binarized``."""
    name: str | None = None
    """Configuration of the data set."""
    revision: str = "main"
    split: str = "train"
    prompt: str = "prompt"
    """Key of the prompt; a dot reaches into lists and objects (``chosen.1.content``), here and in the next two."""
    chosen: str = "chosen"
    rejected: str = "rejected"
    aspect: Aspect = "helpful"
    language: str = "en"


PreferenceSource: TypeAlias = Annotated[
    ProceduralSource | PairsSource | PandaLmSource | HubPairsSource, Field(discriminator="kind")
]


class PreferencesConfig(StageConfig):
    """Config of the ``preferences`` stage."""

    source: PreferenceSource = ProceduralSource()
    train: int = Field(1600, ge=1)
    """Training pairs; fewer where a file has no more."""
    heldout: int = Field(300, ge=1)
    """Held-out pairs, drawn first; no training pair asks one of their questions."""
    ties: int = Field(100, ge=0)
    """Pairs judged equal that are kept beside the held-out ones, at most."""
    seed: int = 0

    def external_files(self) -> Mapping[str, Path]:
        """The files of a source that reads some."""
        if isinstance(self.source, PandaLmSource):
            return {"source.path": Path(self.source.path)}
        if isinstance(self.source, PairsSource):
            return {f"source.paths.{i}": Path(path) for i, path in enumerate(self.source.paths)}
        return {}


def run_preferences(
    config: PreferencesConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Draw, check and freeze. Inputs: none. Outputs: ``train`` and ``heldout`` (dataset artifacts)."""
    read = _READERS[config.source.kind]
    pairs = (row for row in read(config.source, "heldout", config.seed) if not is_tie(row))
    heldout = list(itertools.islice(pairs, config.heldout))
    ties = [row for row in _ties(config.source, config.seed, config.ties) if is_tie(row)]
    taken = {_question(row) for row in (*heldout, *ties)}
    fresh = (
        row
        for row in read(config.source, "train", config.seed)
        if not is_tie(row) and _question(row) not in taken
    )
    train = list(itertools.islice(fresh, config.train))
    outputs = {}
    for name, rows in (("train", train), ("heldout", [*heldout, *ties])):
        check_preferences(rows, name)
        facts = {**preference_set_facts(rows), "ties": sum(map(is_tie, rows))}
        with context.writer("dataset", name, meta={"format": "preferences", **facts}) as writer:
            writer.add_bytes(PREFERENCES_FILE, preferences_to_jsonl(rows))
            writer.add_bytes("README.md", _card(name, config, facts).encode())
            outputs[name] = writer.commit()
    context.emit("note", text=f"{len(train)} training and {len(heldout)} held-out pairs, {len(ties)} ties")
    return StageResult(outputs, {"train": len(train), "heldout": len(heldout), "ties": len(ties)})


def _question(row: PreferenceRow) -> str:
    return normal_question(row.messages[-1]["content"])


def _ties(source: PreferenceSource, seed: int, count: int) -> Iterator[PreferenceRow]:
    if isinstance(source, ProceduralSource):
        tied = open_tasks.tied_pairs(seed, source.aspect)
        return itertools.islice((row for row in tied if row.language in source.languages), count)
    rows = _READERS[source.kind](source, "heldout", seed)
    return itertools.islice(filter(is_tie, rows), count)


def _read_procedural(source: ProceduralSource, split: str, seed: int) -> Iterator[PreferenceRow]:
    side: Literal["train", "heldout"] = "heldout" if split == "heldout" else "train"
    pairs = open_tasks.preference_pairs(0 if side == "heldout" else seed, side, source.aspect)
    return (row for row in pairs if row.language in source.languages)


def _read_pairs(source: PairsSource, split: str, seed: int) -> Iterator[PreferenceRow]:
    rows = [
        _pair(record.data, source, name=f"{Path(record.file).stem}-{record.line}", where=record.where)
        for record in read_records(source.paths)
    ]
    yield from _in_order(rows, split, seed)


def _read_hub(source: HubPairsSource, split: str, seed: int) -> Iterator[PreferenceRow]:
    import datasets

    loaded = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    rows = [
        _pair(record, source, name=str(place), where=f"{source.path} row {place}")
        for place, record in enumerate(loaded)
    ]
    usable = [
        row for row in rows if row.chosen.strip() and row.rejected.strip() and row.chosen != row.rejected
    ]
    yield from _in_order(usable, split, seed)


def _pair(
    record: Mapping[str, Any], source: PairsSource | HubPairsSource, *, name: str, where: str
) -> PreferenceRow:
    texts = {}
    for key in ("prompt", "chosen", "rejected"):
        value = value_at(record, getattr(source, key))
        if not isinstance(value, str):
            raise DataError(
                f"{where} has no text under {getattr(source, key)!r}",
                hint=f"set `source.{key}` to the right key",
            )
        texts[key] = value
    return PreferenceRow(
        id=name,
        messages=({"role": "user", "content": texts["prompt"]},),
        chosen=texts["chosen"],
        rejected=texts["rejected"],
        aspect=source.aspect,
        language=source.language,
    )


def _read_pandalm(source: PandaLmSource, split: str, seed: int) -> Iterator[PreferenceRow]:
    path = Path(source.path)
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as stream:
            records = json.load(stream)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path.name}: {error}", hint="check `source.path`") from error
    # Some pairs stand in the file more than once.
    judged = {row.id: row for record in records if (row := _judged(record))}
    yield from _in_order(list(judged.values()), split, seed)


def _judged(record: Mapping[str, Any]) -> PreferenceRow | None:
    """One PandaLM record; None where two replies are equal, one is empty, or three people say three things."""
    votes = Counter(int(value) for key, value in record.items() if key.startswith("annotator"))
    verdict, count = votes.most_common(1)[0]
    first, second = str(record["response1"]).strip(), str(record["response2"]).strip()
    if count < 2 or not first or not second or first == second:
        return None
    asked = "\n\n".join(
        str(record[key]).strip() for key in ("instruction", "input") if str(record[key]).strip()
    )
    chosen, rejected = (second, first) if verdict == 2 else (first, second)
    return PreferenceRow(
        id=digest_bytes(f"{asked}\0{first}\0{second}".encode())[7:23],
        messages=({"role": "user", "content": asked},),
        chosen=chosen,
        rejected=rejected,
        tags={"tie": "yes"} if verdict == 0 else {},
    )


def _in_order(rows: list[PreferenceRow], split: str, seed: int) -> Iterator[PreferenceRow]:
    """Question by question, in one fixed order for the held-out side, whatever the seed; training is shuffled again."""
    by_question: dict[str, list[PreferenceRow]] = {}
    for row in rows:
        by_question.setdefault(_question(row), []).append(row)
    groups = list(by_question.values())
    random.Random("preference-order").shuffle(groups)
    ordered = [row for group in groups for row in group]
    if split == "train":
        random.Random(f"preference-train/{seed}").shuffle(ordered)
    return iter(ordered)


_READERS: Mapping[str, Callable[..., Iterator[PreferenceRow]]] = {
    "procedural": _read_procedural,
    "jsonl": _read_pairs,
    "pandalm": _read_pandalm,
    "hub": _read_hub,
}


def _card(name: str, config: PreferencesConfig, facts: Mapping[str, Any]) -> str:
    source = config.source.model_dump(mode="json")
    for key in ("path", "paths"):
        if key in source:
            found = source[key]
            source[key] = Path(found).name if isinstance(found, str) else [Path(p).name for p in found]
    return "\n".join(
        [
            f"# Preferences: {name}",
            "",
            f"{facts['rows']} judged pairs, one JSON object a line in `{PREFERENCES_FILE}`; {facts['ties']} are ties.",
            "",
            f"- source: `{json.dumps(source, ensure_ascii=False)}`",
            f"- aspects: {json.dumps(facts['aspects'])}",
            f"- the longer reply was preferred in {facts['longer_chosen']} of the pairs of unlike length",
            "- the training and held-out sets share no question",
            "",
        ]
    )
