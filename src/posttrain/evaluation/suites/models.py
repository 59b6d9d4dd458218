"""Who can be evaluated on a suite: a model of the store, a folder, a server, a scripted policy, recorded answers.

Here: the configs, torch-free. Not here: opening one (``suite_players``). To add a kind: a config in ``SuiteModel`` and
its branch in ``suite_players.open_model``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from posttrain.engines.endpoint import EndpointConfig
from posttrain.environments.suites.policies import PolicyConfig


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LocalModel(_Model):
    """A model that runs in this process."""

    batch_size: int = Field(16, ge=1)
    """Answers decoded at once. Which ones is a function of the suite; 1 makes each independent of its neighbours."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class StoreModel(LocalModel):
    """The stage's input ``model``."""

    kind: Literal["store"] = "store"


class FolderModel(LocalModel):
    """A Hugging Face folder."""

    kind: Literal["folder"] = "folder"
    path: Path


class EndpointModel(_Model):
    """A model on any OpenAI-compatible server."""

    kind: Literal["endpoint"] = "endpoint"
    endpoint: EndpointConfig


class PolicyModel(_Model):
    """A shipped script that plays the suite's slices: to see that graders and rules pass and fail where they should."""

    kind: Literal["policy"] = "policy"
    policy: PolicyConfig


class RecordedModel(_Model):
    """The answers of an earlier report, the stage's input ``answers``: they are graded again, and nothing runs."""

    kind: Literal["recorded"] = "recorded"


_THREADS = {"policy": 2, "recorded": 1, "store": 1, "folder": 1}

SuiteModel: TypeAlias = Annotated[
    StoreModel | FolderModel | EndpointModel | PolicyModel | RecordedModel, Field(discriminator="kind")
]


def usual_concurrency(model: SuiteModel) -> int:
    """How many batches suit a model when nothing else is asked for."""
    return model.endpoint.concurrency if isinstance(model, EndpointModel) else _THREADS[model.kind]


def may_vary(model: SuiteModel) -> bool:
    """Whether that number may be changed: a model in this process draws from one generator."""
    return not isinstance(model, LocalModel)
