"""The sizes of any model. Those that are not laid out like Llama (mixtures of experts, hybrids, wrappers) are
counted on the model that transformers makes of their config.json, with its weights on no device."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sao.errors import ModelError
from sao.models.shapes import DENSE, KEYS, KNOWN, Shape, shape_of

_OTHER_MIXERS = ("linear_attn", "mamba", "conv", "delta", "lightning", "ssm", "indexer", "compressor")
"""Parts of the names of modules that mix tokens without keeping keys and values of each."""


_FUSED = ("qkv_proj", "query_key_value", "Wqkv", "c_attn")
"""What layers of attention call the product that makes queries, keys and values together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedShape(Shape):
    """A shape whose weights were counted one by one."""

    weights: int
    linear_weights: int
    """Of all linear maps and experts, without the head."""
    used_weights: int
    """Those of them that one token passes."""
    cached: int
    """Numbers that the caches keep of one more token in all layers."""
    adapted: dict[str, int]
    """Inputs plus outputs of the linear layers of each name, summed over the layers."""

    @property
    def linear(self) -> int:
        """See `linear_weights`."""
        return self.linear_weights

    @property
    def used(self) -> int:
        """See `used_weights`."""
        return self.used_weights

    @property
    def parameters(self) -> int:
        """All weights, those of towers for pictures and sound too; tied ones count once."""
        return self.weights

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in all layers that keep them, in 16 bits."""
        return 2 * self.cached

    def adapter_width(self, names: list[str] | None) -> int:
        """Inputs plus outputs of all layers that get an adapter; None: of all linear layers."""
        return sum(width for name, width in self.adapted.items() if names is None or name in names)


def read_shape(model: str, revision: str | None = None) -> Shape:
    """The shape of a model: from its folder, the table of known ones, or config.json fetched from the hub.

    Raises ModelError where there is none or where nobody knows how to count it.
    """
    from sao.models.gguf import is_gguf
    from sao.models.locate import WORLD_MODEL, find_model

    folder = find_model(model) if model == WORLD_MODEL or is_gguf(model) else Path(model).expanduser()
    if not folder.is_dir() and model in KNOWN:
        return shape_of(dict(zip(KEYS, KNOWN[model], strict=True)), model)
    path = folder / "config.json" if folder.is_dir() else _fetch_config(model, revision)
    try:
        found = json.loads(path.read_text("utf-8"))
        if found.get("model_type") in DENSE:
            return shape_of(found, str(path))
        return count(path, str(path))
    except (OSError, ValueError, AttributeError, LookupError, TypeError, ArithmeticError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{path}: cannot be read ({error}). A model folder has a config.json", key="config.json"
        ) from error


def _fetch_config(model: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(model, "config.json", revision=revision))
    except (HfHubHTTPError, OSError, ValueError, ImportError) as error:  # a SOCKS proxy needs a package
        reason = f"{type(error).__name__}: {[*str(error).splitlines(), ''][0]}"
        raise ModelError(
            f"model {model!r}: it is no local folder, and its config.json could not be fetched "
            f"({reason}). Give a folder, check the network and HF_TOKEN, or plan with one that "
            f"is known: {', '.join(KNOWN)}",
            key="model",
        ) from error


def count(path: Path, where: str) -> CountedShape:
    """The shape of the model with the config.json `path`. Raises ModelError where transformers does not know
    it."""
    from sao.models.parts import text_model

    model = _without_weights(path, where)
    text: Any = text_model(model)
    head, words = model.get_output_embeddings(), text.get_input_embeddings().weight
    own: Any = model.config.get_text_config()
    heads = _number(own, "num_attention_heads") or 1  # state spaces have none
    share, linear, used = _share_of_experts(own), 0, 0
    tables = {id(head.weight), *(id(part.weight) for part in text.modules() if _is_table(part))}
    for name, weight in text.named_parameters():
        if id(weight) in tables or weight.ndim < 2:
            continue
        is_routed = "experts" in name.split(".") and "shared" not in name
        linear += weight.numel()
        used += round(weight.numel() * (share if is_routed else 1))
    return CountedShape(
        vocabulary=words.shape[0],
        hidden=words.shape[1],
        inner=_inner(own),
        layers=own.num_hidden_layers,
        heads=heads,
        kv_heads=_number(own, "num_key_value_heads") or heads,
        head_dim=_number(own, "head_dim") or words.shape[1] // heads,
        tied=head.weight is words,
        softcap=bool(_number(own, "final_logit_softcapping")),
        weights=sum(weight.numel() for weight in model.parameters()),
        linear_weights=linear,
        used_weights=used,
        cached=_cached(text, own),
        adapted=_adapted(model),
    )


def _without_weights(path: Path, where: str) -> Any:
    """The model of a config.json, on no device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sao.models.load import model_class
    from sao.models.locate import LOAD_ERRORS

    try:
        settings = AutoConfig.from_pretrained(path.parent)
        kind = model_class(settings)
        with torch.device("meta"):
            return kind.from_config(settings) if kind is AutoModelForCausalLM else kind(settings)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{where}: transformers cannot make a model of it ({type(error).__name__}: {error}), so the plan "
            "cannot count it. Look at its texts and their speed with `sao preview`",
            key="config.json",
        ) from error


def _is_table(module: Any) -> bool:
    """Whether a module is an embedding, of which a token reads one row."""
    from torch import nn

    return isinstance(module, nn.Embedding)


def _number(settings: Any, name: str) -> int:
    """A number in a config; the first one where it differs by layer, 0 where there is none."""
    from sao.models.parts import layer_settings

    value = getattr(layer_settings(settings)[0], name, None)
    return int(value[0] if isinstance(value, list) else value or 0)


def _share_of_experts(settings: Any) -> float:
    """The share of a mixture's experts that a token goes to; 1 where there are none."""
    names = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "num_experts_per_token")
    used = next((n for name in names if (n := _number(settings, name))), 1)
    all_names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return min(1.0, used / next((n for name in all_names if (n := _number(settings, name))), 1))


def _inner(settings: Any) -> int:
    """The width of what a token passes in a layer's MLP: of its experts, in a mixture."""
    dense = _number(settings, "intermediate_size")
    expert = _number(settings, "moe_intermediate_size")
    chosen = _number(settings, "num_experts_per_tok") or 1
    other = _number(settings, "ffn_dim") or _number(settings, "n_inner") or 4 * settings.hidden_size
    return max(dense, expert * (chosen + _number(settings, "n_shared_experts"))) or other


def _cached(text: Any, settings: Any) -> int:
    """Numbers that a token adds to the caches of all layers."""
    layers = [module for name, module in text.named_modules() if _attends(name, module)]
    kinds = getattr(settings, "layer_types", None) or []
    if kinds and len(kinds) == len(layers):  # all layers look alike, but not all of them attend
        layers = [layer for layer, kind in zip(layers, kinds, strict=True) if "linear" not in kind]
    layers = [layer for layer in layers if not getattr(layer, "is_kv_shared_layer", False)]
    heads = _number(settings, "num_attention_heads")
    total = 0
    for layer in layers:
        if hasattr(layer, "kv_b_proj") or hasattr(layer, "kv_a_proj_with_mqa"):  # latent attention
            total += _number(settings, "kv_lora_rank") + _number(settings, "qk_rope_head_dim")
        elif hasattr(layer, "k_proj"):
            values = getattr(layer, "v_proj", None)  # Gemma-4 may make both of one product
            both = values is not None or getattr(settings, "attention_k_eq_v", False)
            total += layer.k_proj.weight.shape[0] * (2 if both else 1)
        elif hasattr(layer, "kv_proj"):
            total += layer.kv_proj.weight.shape[0]
        else:  # queries, keys and values by one product; GPT-2 has its weights the other way round
            fused = next(getattr(layer, name) for name in _FUSED if hasattr(layer, name))
            size = _number(settings, "head_dim") or settings.hidden_size // heads
            total += max(fused.weight.shape) - heads * size
    return total


def _attends(name: str, module: Any) -> bool:
    """Whether a module is a layer of attention with keys and values of each token."""
    if any(part in name.rpartition(".")[2] for part in _OTHER_MIXERS):
        return False
    return any(
        hasattr(module, part) for part in ("k_proj", "kv_proj", "kv_a_proj_with_mqa", "kv_b_proj", *_FUSED)
    )


def _adapted(model: Any) -> dict[str, int]:
    """Inputs plus outputs of the layers that an adapter on all linear layers goes to, by their last name."""
    from sao.models.parts import linear_layers

    found: dict[str, int] = {}
    for name in linear_layers(model):
        layer, last = model.get_submodule(name), name.rpartition(".")[2]
        found[last] = found.get(last, 0) + sum(layer.weight.shape)
    return found
