"""A tiny random chat model of any model type that transformers knows, made from its own config class.

`build("qwen3_5", folder)` saves model, tokenizer and chat template. What a config class calls its sizes is
found by name (SIZES); what a family needs beyond that stands in FAMILIES.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from support.tiny_models import LLAMA_TEMPLATE, byte_tokenizer, save, token_ids

SPECIAL = ["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "intermediate_size_mlp": 64, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.2,
    "sliding_window": 16, "attention_chunk_size": 16, "block_size": 16,
    # Mixtures of experts.
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_topk": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    # Latent attention, with an index of keys (of which transformers 5.19 picks some that come later, once a
    # text is longer than index_topk: see sao.engines.network.context_length).
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "index_topk": 512, "index_head_dim": 16, "index_n_heads": 2, "o_groups": 2, "o_lora_rank": 8,
    # Linear attention and state spaces.
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_head_dim": 8, "linear_num_heads": 4, "mamba_n_heads": 4,
    "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_chunk_size": 16,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16,
    # Older names.
    "n_embd": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "n_layers": 2, "n_heads": 4, "num_layers": 2,
    "attention_heads": 4, "num_heads": 4, "ffn_dim": 64, "rotary_dim": 4, "kv_channels": 8,
    # Vectors for each layer.
    "hidden_size_per_layer_input": 8,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "depth": 2, "num_heads": 2, "out_hidden_size": 32,
    "image_size": 28, "patch_size": 14, "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
    "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
    "projection_intermediate_size": 32, "position_embedding_size": 16, "pos_emb_height": 4,
    "pos_emb_width": 4,
}  # fmt: skip
FULL, LINEAR, SLIDING = "full_attention", "linear_attention", "sliding_attention"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {},
    "qwen3_next": {"layer_types": [LINEAR, LINEAR, LINEAR, FULL]},
    "qwen3_5": {"text": {"layer_types": [LINEAR, LINEAR, LINEAR, FULL]}},
    "qwen3_5_text": {"layer_types": [LINEAR, LINEAR, LINEAR, FULL]},
    "qwen3_5_moe": {"text": {"layer_types": [LINEAR, LINEAR, LINEAR, FULL]}},
    "gemma2": {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
    "gemma3_text": {"query_pre_attn_scalar": 8, "layer_types": [SLIDING, SLIDING, SLIDING, FULL]},
    "gemma3": {
        "text": {"query_pre_attn_scalar": 8, "layer_types": [SLIDING, SLIDING, SLIDING, FULL]},
        "mm_tokens_per_image": 4,
    },
    "gemma4_text": {"layer_types": [SLIDING, SLIDING, SLIDING, FULL], "vocab_size_per_layer_input": 300},
    "gemma4": {
        "text": {"layer_types": [SLIDING, SLIDING, SLIDING, FULL], "vocab_size_per_layer_input": 300},
        "audio_config": None,
    },
    "gpt_oss": {},
    "mistral": {},
    "mistral3": {},
    "ministral3": {},
    "mixtral": {},
    "olmo2": {},
    "olmo3": {},
    "smollm3": {},
    "phi3": {},
    "phimoe": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "cohere2": {},
    "granite": {"embedding_multiplier": 2.0, "logits_scaling": 4.0, "residual_multiplier": 0.5},
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "mamba", "attention"], "logits_scaling": 4.0},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "falcon_h1": {"lm_head_multiplier": 0.5, "embedding_multiplier": 2.0},
    "lfm2": {"layer_types": ["conv", "conv", "conv", FULL]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "conv", FULL], "num_dense_layers": 1},
    "deepseek_v3": {"num_key_value_heads": 4},
    "minimax": {"layer_types": [LINEAR, FULL, LINEAR, FULL]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "seed_oss": {"attention_dropout": 0.0, "residual_dropout": 0.0},  # else no two passes are alike
    "llama4_text": {},
    "llama4": {"text": {}},
    "bamba": {"attn_layer_indices": [3]},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 3, "use_mamba_kernels": False},
    "apertus": {},
    "olmo_hybrid": {"layer_types": [LINEAR, LINEAR, LINEAR, FULL], "num_key_value_heads": 4},
    "muse_glimmer": {"text": {}, "out_hidden_size": 32, "projector_hidden_size": 32},
    "qwen3_vl": {"text": {}},
    "exaone_moe": {},
    "laguna": {},
    "kimi_linear": {
        "num_key_value_heads": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": [LINEAR, LINEAR, LINEAR, FULL],
    },
    "minimax_m2": {},
    "hy_v3": {},
    "hy_v4": {},
    "glm_moe_dsa": {"num_key_value_heads": 4},
    "glm5_next": {"text": {"num_key_value_heads": 4, "qk_rope_head_dim": 0, "head_dim": 0}},
    "deepseek_v32": {"num_key_value_heads": 4},
    "deepseek_v4": {"num_key_value_heads": 1},
    "starcoder2": {},
}
"""What each model type needs beside SIZES; `text` is for the text model inside a wrapper."""


def build(model_type: str, folder: Path, **settings: Any) -> str:
    """Save a tiny model of this type with a tokenizer and a chat template; the folder."""
    tokenizer = byte_tokenizer(SPECIAL, bos="<s>")
    tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token = "<pad>", "<s>", "<|end|>"
    config = tiny_config(model_type, token_ids(tokenizer), **settings)
    return save(model_class(config), config, tokenizer, LLAMA_TEMPLATE, [2], folder)


def tiny_config(model_type: str, ids: dict[str, Any], **settings: Any) -> Any:
    """A config of this type with small sizes; `ids` are those of the tokenizer."""
    kind: Any = CONFIG_MAPPING[model_type]
    own = {**FAMILIES.get(model_type, {}), **settings}
    text = own.pop("text", None)
    parts: dict[str, Any] = getattr(kind, "sub_configs", {})
    if "text_config" not in parts:
        return kind(**{**_sizes(kind(), SIZES), **ids, **own})
    plain = kind()
    inner = plain.text_config or parts["text_config"]()
    given: dict[str, Any] = {
        "text_config": {"model_type": inner.model_type, **_sizes(inner, SIZES), **ids, **(text or {})}
    }
    if "vision_config" in parts:
        vision = plain.vision_config or parts["vision_config"]()
        given["vision_config"] = {"model_type": vision.model_type, **_sizes(vision, VISION)}
    # Tokens of pictures and the like: letters that no text here has.
    tokens = {
        name: 200 + i
        for i, name in enumerate(sorted(vars(plain)))
        if name.endswith(("token_id", "token_index")) and name not in ids
    }
    return kind(**given, **tokens, **own)


def model_class(config: Any) -> type[PreTrainedModel]:
    """The class that writes text by such a config."""
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        known: Any = auto._model_mapping
        if type(config) in known:
            found: type[PreTrainedModel] = known[type(config)]
            return found
    raise LookupError(f"{config.model_type}: no class of transformers {transformers.__version__}")


def _sizes(plain: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Those of the wanted sizes that such a config has."""
    known = plain.to_dict()
    return {name: value for name, value in wanted.items() if known.get(name) is not None}


def parameters(model: torch.nn.Module) -> int:
    """Number of weights, each once."""
    return sum(weight.numel() for weight in model.parameters())
