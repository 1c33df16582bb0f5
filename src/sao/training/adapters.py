"""Adapters (LoRA, arXiv 2106.09685; on 4-bit weights QLoRA, arXiv 2305.14314), by the library PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sao.config import TrainConfig
from sao.errors import ConfigError, TrainingError
from sao.models.folder import without_adapter
from sao.models.parts import linear_layers
from sao.training.optimizer import rounded


def add_adapter(model: PreTrainedModel, config: TrainConfig, seed: int) -> Any:
    """The model with a fresh adapter, which changes nothing yet; only the adapter is trained, in float32.

    Raises ConfigError where PEFT is missing, TrainingError where the layers do not exist, are the head or
    share its weights.
    """
    try:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    except ImportError as error:
        raise ConfigError(
            "train.method lora needs the package peft: pip install 'sao[lora]'", key="peft"
        ) from error
    if config.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    targets = config.lora.targets
    if targets == "all-linear":
        targets = linear_layers(model)
    settings = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by r, whole or not
        lora_dropout=config.lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT looks for experts in one tensor by itself; they get no adapter.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        torch.manual_seed(seed % 2**63)
        try:
            adapted = get_peft_model(model, settings)
        except ValueError as error:
            raise TrainingError(
                f"train.lora.targets {targets!r}: {error}", key="train.lora.targets"
            ) from error
    _check_head(model, adapted, targets)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _check_head(model: PreTrainedModel, adapted: Any, targets: str | list[str]) -> None:
    """Raise TrainingError where a layer that got an adapter shares its weights with the head."""
    head = model.get_output_embeddings()
    for name, module in adapted.named_modules():
        base = getattr(module, "base_layer", None)
        shared = getattr(base, "weight", None)
        if shared is not None and head is not None and base is not head and shared is head.weight:
            raise TrainingError(
                f"train.lora.targets {targets!r}: {name.rpartition('.')[2]} shares its weights with the "
                "head, so an adapter on it could not be merged without changing the head too. Leave it out",
                key="train.lora.targets",
            )


def merged(adapted: Any, adapter: Path, dtype: torch.dtype, noise: torch.Generator) -> PreTrainedModel:
    """The model with its adapter added to its weights.

    The sums are made in float32. Where the weights are bfloat16 they are rounded stochastically: most changes
    are smaller than half of a weight's last digit, and rounding to the nearest would undo them. Onto weights
    of 4 bits nothing can be added without loss: then the model is loaded again as `dtype`, on the CPU, and
    takes the adapter from its folder.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    model = adapted.get_base_model()
    if getattr(model, "quantization_method", None) is not None:
        with without_adapter(Path(model.name_or_path)) as folder:
            base = type(model).from_pretrained(folder, dtype=dtype)
        base.generation_config = model.generation_config
        adapted = PeftModel.from_pretrained(base, adapter)
    with torch.no_grad():
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                layer: Any = module
                weight = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
                exact = weight.float() + layer.get_delta_weight(layer.active_adapters[0]).float()
                weight.copy_(rounded(exact, weight.dtype, noise))
    whole: PreTrainedModel = adapted.unload()
    return whole


def quantisation(config: TrainConfig) -> Any:
    """How QLoRA holds the frozen weights: 4-bit NormalFloat, doubly quantised; products in bfloat16, on a CPU
    in float32."""
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise ConfigError(
            "train.method qlora needs the package bitsandbytes: pip install 'sao[qlora]'", key="bitsandbytes"
        ) from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )
