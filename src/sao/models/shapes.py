"""The sizes that a plan needs: models laid out like Llama, from their config.json, and GPUs, from their data
sheets. Neither weights nor torch; other models are counted in `sao.models.counting`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sao.errors import ConfigError, ModelError


@dataclass(frozen=True, slots=True)
class GPU:
    """A card: memory as its driver shows it (GiB), dense bfloat16 rate with float32 sums (TFLOP/s), bandwidth
    (GB/s)."""

    name: str
    memory: float
    tflops: float
    bandwidth: float


# The makers' data sheets. The T4 has no bfloat16 units: its rate is that of float32.
GPUS = [
    GPU("H200", 140.4, 989, 4800), GPU("H100-80", 79.6, 989, 3350), GPU("A100-80", 80.0, 312, 2039),
    GPU("A100-40", 40.0, 312, 1555), GPU("L40S", 45.0, 362, 864), GPU("RTX-4090", 24.0, 165, 1008),
    GPU("RTX-3090", 24.0, 71, 936), GPU("A10G", 22.5, 70, 600), GPU("L4", 22.5, 121, 300),
    GPU("RTX-4080", 16.0, 97, 717), GPU("T4", 15.0, 8, 320), GPU("RTX-3060", 12.0, 25, 360),
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What counts of a dense decoder with gated MLPs: its sizes, as its config.json has them."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    norms: int = 2
    """Norms of hidden size in a layer: 2, or 4 in Gemma-2 and Gemma-3."""
    qk_norm: bool = False
    """Whether queries and keys have norms of their own (Qwen-3, Gemma-3)."""
    biases: int = 0
    """Biases of one layer."""
    softcap: bool = False
    """Whether the logits are capped (Gemma-2)."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps."""
        h, i, q, kv = self.hidden, self.inner, self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}

    @property
    def linear(self) -> int:
        """Weights of the linear maps of all layers, without the head."""
        return self.layers * sum(a * b for a, b in self.linears.values())

    @property
    def used(self) -> int:
        """Weights of the linear maps that one token passes: all of them."""
        return self.linear

    def adapter_width(self, names: list[str] | None) -> int:
        """Inputs plus outputs of all layers that get an adapter; None: of all linear layers."""
        maps = self.linears
        return self.layers * sum(sum(maps[name]) for name in (names or maps) if name in maps)

    @property
    def head(self) -> int:
        """Weights of the head, and of the embedding."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights; tied ones count once."""
        small = self.norms * self.hidden + 2 * self.head_dim * self.qk_norm + self.biases
        return self.linear + self.layers * small + self.hidden + self.head * (1 if self.tied else 2)

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in all layers, in 16 bits."""
        return 4 * self.kv_heads * self.head_dim * self.layers


# model_type, vocabulary, hidden, inner, layers, heads, key-value heads, head size, tied: published
# config.json files.
KNOWN = {
    "google/gemma-2-2b-it": ("gemma2", 256000, 2304, 9216, 26, 8, 4, 256, True),
    "google/gemma-2-9b-it": ("gemma2", 256000, 3584, 14336, 42, 16, 8, 256, True),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen/Qwen3-8B": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
}
KEYS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads", "head_dim", "tie_word_embeddings",
)  # fmt: skip
DENSE = ("gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose weights `shape_of` counts exactly; others are counted on the model itself."""


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """The shape in a config.json; `where` opens the error messages."""
    c = {**config, **(config.get("text_config") or {})}
    kind = str(c.get("model_type", ""))
    missing = [key for key in KEYS[1:6] if not isinstance(c.get(key), int)]
    if missing:
        raise ModelError(
            f"{where}: no {', '.join(missing)}: not laid out like Llama, so the plan cannot count it",
            key="config.json",
        )
    heads, h, i = c["num_attention_heads"], c["hidden_size"], c["intermediate_size"]
    kv_heads, size = c.get("num_key_value_heads") or heads, c.get("head_dim") or h // heads
    tied = c.get("tie_word_embeddings")
    qkv = (heads + 2 * kv_heads) * size
    return Shape(
        vocabulary=c["vocab_size"], hidden=h, inner=i, layers=c["num_hidden_layers"], heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        tied=kind.startswith("gemma") if tied is None else bool(tied),  # Gemma's files leave it out
        norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
        qk_norm=kind.startswith(("qwen3", "gemma3")),
        biases=(qkv if kind == "qwen2" else (qkv + h) * bool(c.get("attention_bias")))
        + (2 * i + h) * bool(c.get("mlp_bias")),
        softcap=bool(c.get("final_logit_softcapping") or kind == "gemma2"),
    )  # fmt: skip


def find_gpu(name: str) -> GPU:
    """The card of that name, however it is spelled. Raises ConfigError naming the nearest ones."""
    plain = {g.name.replace("-", "").lower(): g for g in GPUS}
    wanted = "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum()).removesuffix("gb")
    if wanted in plain:
        return plain[wanted]
    near = [key for key in plain if wanted and key.startswith(wanted)] or difflib.get_close_matches(
        wanted, plain, 3
    )
    hint = f" Did you mean {' or '.join(plain[key].name for key in near)}?" if near else ""
    raise ConfigError(
        f"--gpu {name}: not in the table.{hint} It holds {', '.join(g.name for g in GPUS)}", key="--gpu"
    )
