"""Recipes: YAML files and dotted overrides in, one validated, frozen `Config` out.

A recipe names only what differs from the defaults written here. `load_recipe("demo", {"train.beta": "2.0"})`
reads `sao/recipes/demo.yaml` or a file by path. Keys and tokens never stand in a recipe: they come from the
environment.
"""

from __future__ import annotations

from sao.config.chat import ChatConfig
from sao.config.engine import EngineConfig, JudgeConfig, OpenAIConfig, VllmConfig
from sao.config.evaluation import EvaluationConfig
from sao.config.filters import FiltersConfig
from sao.config.judging import JudgingConfig, PanelJudge
from sao.config.pairs import PairsConfig
from sao.config.personas import PersonasConfig, WritingConfig
from sao.config.prompts import PromptsConfig
from sao.config.ray import RayConfig
from sao.config.recipe import (
    Config,
    is_text,
    load_recipe,
    make_config,
    nearest,
    overridden,
    recipe_names,
    uses_ray,
)
from sao.config.responses import ResponsesConfig
from sao.config.rounds import RoundsConfig
from sao.config.section import Section, affects_records, field_names, section_of
from sao.config.training import DEFAULT_BETA, LoraConfig, Loss, TrainConfig

__all__ = [
    "DEFAULT_BETA",
    "ChatConfig",
    "Config",
    "EngineConfig",
    "EvaluationConfig",
    "FiltersConfig",
    "JudgeConfig",
    "JudgingConfig",
    "LoraConfig",
    "Loss",
    "OpenAIConfig",
    "PairsConfig",
    "PanelJudge",
    "PersonasConfig",
    "PromptsConfig",
    "RayConfig",
    "ResponsesConfig",
    "RoundsConfig",
    "Section",
    "TrainConfig",
    "VllmConfig",
    "WritingConfig",
    "affects_records",
    "field_names",
    "is_text",
    "load_recipe",
    "make_config",
    "nearest",
    "overridden",
    "recipe_names",
    "section_of",
    "uses_ray",
]
