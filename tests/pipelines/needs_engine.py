"""A stage whose engine is not installed: it fails as ``import torch`` does where torch is absent."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult


def run_needs(config: StageConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    raise ModuleNotFoundError("No module named 'torch'", name="torch")
