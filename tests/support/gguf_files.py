"""GGUF files made from tiny models: what a model hub offers of them, with known weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.layers.": "blk.",
}  # fmt: skip


def write_gguf(
    model: str,
    file: Path,
    kind: str = "F32",
    leave_out: str = "",
    licence: str | None = "apache-2.0",
    rule: str = "qwen2",
    **facts: Any,
) -> Path:
    """A Qwen-3-like folder (see tiny_models.qwen3) as a GGUF file whose matrices are of `kind` (F32, F16,
    Q8_0, Q4_0).

    `leave_out`: a GGUF name of a weight that is not written; `rule`: by which the tokenizer splits text;
    `facts`: further metadata, by "key" with __ for dots.
    """
    folder = Path(model)
    writer = gguf.GGUFWriter(file, "qwen3")
    writer.add_name("Tiny")
    if licence:
        writer.add_license(licence)
    _add_shape(writer, json.loads((folder / "config.json").read_text()))
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()), rule)
    if (folder / "chat_template.jinja").is_file():
        writer.add_chat_template((folder / "chat_template.jinja").read_text())
    for key, value in facts.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name, weight in load_file(folder / "model.safetensors").items():
        if _gguf_name(name) != leave_out:
            _add_weight(writer, _gguf_name(name), weight.astype(np.float32), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], rule: str) -> None:
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if number in special else 1 for _, number in vocabulary])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def _gguf_name(name: str) -> str:
    """The name of a weight in GGUF."""
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _add_weight(writer: gguf.GGUFWriter, name: str, data: Any, kind: str) -> None:
    """A matrix is quantised as `kind`."""
    if data.ndim == 2 and kind != "F32":
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(data, number), raw_dtype=number)
    else:
        writer.add_tensor(name, data)
