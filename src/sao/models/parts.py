"""The parts of a chat model that training and adapters must tell apart: the text model inside a wrapper, the
routers of mixtures of experts, and the linear layers that take adapters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate|expert_bias|e_score_correction_bias)(\.|$)")
# What mixes tokens other than by attention: in such layers PEFT refuses the projection that comes out.
_MIXERS = ("conv1d", "A_log")


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a chat model that turns token ids into hidden states; inside a wrapper for pictures or
    sound that is its language model."""
    from transformers import PreTrainedModel

    kind = type(model.config.get_text_config())
    words = model.get_input_embeddings()
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]  # from the outside in
    return [part for part in parts if type(part.config) is kind and part.get_input_embeddings() is words][-1]


def layer_settings(settings: Any) -> list[Any]:
    """The settings of each layer of a text model (of Gemma-4 they differ), where transformers has them (5.15
    and later); else those of the model."""
    view = getattr(settings, "per_layer_config", None)
    return [settings] if view is None else [view[i] for i in range(settings.num_hidden_layers)]


def is_router(name: str) -> bool:
    """Whether a weight or a module of this name decides which expert a token goes to."""
    return _ROUTER.search(name) is not None


def has_experts(model: PreTrainedModel) -> bool:
    """Whether layers of the text model are mixtures of experts."""
    return any("experts" in name.split(".") for name, _ in text_model(model).named_modules())


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the plain linear layers of the text model, without head and routers: what an adapter on all
    linear layers goes to. Experts whose weights lie in one tensor are not among them."""
    text, head = text_model(model), model.get_output_embeddings()
    prefix = next(name for name, module in model.named_modules() if module is text)
    found = []
    for name, module in text.named_modules():
        above, _, last = name.rpartition(".")
        mixes = any(hasattr(text.get_submodule(above), part) for part in _MIXERS)
        if (
            _is_plain(module)
            and module is not head
            and not is_router(name)
            and not (mixes and last == "out_proj")
        ):
            found.append(f"{prefix}.{name}" if prefix else name)
    return found


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear layer to which `x @ a @ b` can be added; GPT-2's Conv1D is one too.
    Routers and grouped products are written as subclasses of Linear with a forward pass of their own."""
    kind = type(module)
    if not isinstance(module, nn.Linear) or "router" in kind.__name__.lower():
        return kind.__name__ == "Conv1D"
    if not kind.__module__.startswith("transformers."):
        return True
    try:
        with torch.no_grad():
            out = module(module.weight.new_zeros(1, 1, module.in_features))
    except RuntimeError:
        return False  # it wants another shape
    return tuple(out.shape) == (1, 1, module.out_features)
