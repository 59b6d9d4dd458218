"""Opening what is to be evaluated as a player of cases.

Here: loading, and what the runner must know of each kind. Not here: the configs (``suite_models``), the engines
(``engines.chat_engines``), playing (``suite_runner``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageContext
from posttrain.core.canonical import digest_file, digest_json
from posttrain.core.errors import ConfigError
from posttrain.engines.conversation import ChatPlayer, Player
from posttrain.engines.judging import EndpointJudgeConfig
from posttrain.environments.suites.freeze import Endpoint, endpoint_of
from posttrain.environments.suites.suite import Suite
from posttrain.evaluation.graders import GradingResources
from posttrain.evaluation.graders.config import LlmJudgeConfig
from posttrain.evaluation.outcomes import Lane
from posttrain.evaluation.suites.grading import learned_graders
from posttrain.evaluation.suites.models import (
    EndpointModel,
    FolderModel,
    LocalModel,
    PolicyModel,
    RecordedModel,
    StoreModel,
    SuiteModel,
)


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that is ready to be asked."""

    player: Player
    name: str
    """What the report says was evaluated."""
    lane: Lane
    endpoints: tuple[Endpoint, ...] = ()
    """Places that must be reached to ask it."""


@contextlib.contextmanager
def open_model(
    config: SuiteModel, suite: Suite, inputs: Mapping[str, Artifact], context: StageContext
) -> Iterator[OpenModel]:
    """The model of a config. Raises ConfigError for an input that is missing, ModelError for one that is unusable."""
    match config:
        case StoreModel():
            artifact = _input(inputs, "model", config.kind)
            folder = context.store.view(artifact)
            yield OpenModel(_local(config, folder, suite, context), artifact.digest, "live-frozen")
        case FolderModel():
            name = folder_digest(config.path)
            yield OpenModel(_local(config, config.path, suite, context), name, "live-frozen")
        case EndpointModel():
            from posttrain.engines.chat_engines import EndpointChat

            with contextlib.closing(EndpointChat(config.endpoint)) as engine:
                name = f"{config.endpoint.model} at {config.endpoint.base_url}"
                reached = endpoint_of(config.endpoint.base_url)
                yield OpenModel(ChatPlayer(suite, engine), name, "live-frozen", (reached,))
        case PolicyModel():
            from posttrain.evaluation.suites.scripted import PolicyPlayer, policy_name

            yield OpenModel(PolicyPlayer(suite, config.policy), policy_name(config.policy), "live-frozen")
        case RecordedModel():
            from posttrain.evaluation.suites.recorded import RecordedPlayer

            answers = _input(inputs, "answers", config.kind)
            recorded = RecordedPlayer.read(context.store.view(answers), suite)
            yield OpenModel(recorded, recorded.model, "replay")


def grading_resources(inputs: Mapping[str, Artifact], context: StageContext) -> GradingResources:
    """The models of graders that ask one, loaded when the first answer is graded: the inputs of these names."""
    from posttrain.engines.model_folder import load_model, load_tokenizer
    from posttrain.engines.reward_scorer import RewardScorer

    def judge(artifact: Artifact) -> tuple[Any, Any]:
        folder = context.store.view(artifact)
        return load_model(folder), load_tokenizer(folder)

    reward, judging = inputs.get("reward_model"), inputs.get("judge_model")
    return GradingResources(
        reward_model=None if reward is None else lambda: RewardScorer.load(context.store.view(reward)),
        judge_model=None if judging is None else lambda: judge(judging),
    )


def judge_endpoints(suite: Suite) -> list[Endpoint]:
    """Servers that judges of the suite are on."""
    found = [config for spec in suite.slices for config in learned_graders(spec)]
    judges = [config.judge for config in found if isinstance(config, LlmJudgeConfig)]
    return [endpoint_of(j.endpoint.base_url) for j in judges if isinstance(j, EndpointJudgeConfig)]


def folder_digest(folder: Path) -> str:
    """The digest of a folder's files and their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ConfigError(
            f"{folder} is not a model folder", hint="name a folder with config.json and weights"
        )
    return digest_json({path.relative_to(folder).as_posix(): digest_file(path) for path in files})


def _local(config: LocalModel, folder: Path, suite: Suite, context: StageContext) -> Player:
    import torch

    from posttrain.engines.chat_engines import TransformersChat
    from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device

    torch.set_num_threads(context.threads)
    tokenizer = load_tokenizer(folder)
    if suite.chat_template is not None:
        tokenizer.chat_template = suite.chat_template
    model = load_model(folder, dtype=config.dtype, device=pick_device(config.device))
    return ChatPlayer(suite, TransformersChat(model, tokenizer, batch_size=config.batch_size))


def _input(inputs: Mapping[str, Artifact], name: str, kind: str) -> Artifact:
    if name not in inputs:
        raise ConfigError(
            f"a model of kind {kind!r} needs the input {name!r}", hint=f"add `{name}` to `inputs`"
        )
    return inputs[name]
