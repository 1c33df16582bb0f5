"""Where a measurement runs, the random models and pairs that it takes, and how it is guarded and timed."""

from __future__ import annotations

import gc
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedModel

from sao.training.batches import TokenPair

SIZE_NAMES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "num_hidden_layers",
)  # fmt: skip
SIZES = {
    "llama-3-8b": (4096, 14336, 32, 8, 128, 128256, 32),
    "llama-1b": (2048, 8192, 32, 8, 64, 128256, 16),
    "gemma-2-9b": (3584, 14336, 16, 8, 256, 256000, 42),
}
SMALL_SIZES = {
    "llama-3-8b": (64, 160, 4, 2, 16, 2048, 4),
    "llama-1b": (64, 160, 4, 2, 16, 512, 2),
    "gemma-2-9b": (64, 160, 4, 2, 16, 2048, 4),
}
PEAKS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "4090": 165}
"""Dense bfloat16 TFLOP/s by a part of the GPU's name."""
ROOMY_GIB = 100
"""GPU memory from which training keeps all activations; below, gradient checkpointing recomputes them."""
NO_ROOM = "does not fit into memory"
SEED = 0


@dataclass(frozen=True)
class Setting:
    """Where it runs, how large, and until when."""

    device: torch.device
    small: bool
    end: float
    """`time.monotonic()` at which the time is up."""

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    @property
    def gpu(self) -> str | None:
        """The GPU's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None

    @property
    def peak_flops(self) -> float | None:
        """Dense bfloat16 FLOP/s of the GPU, where it is known."""
        known = [peak for part, peak in PEAKS.items() if part in (self.gpu or "")]
        return known[0] * 1e12 if known else None

    @property
    def checkpointing(self) -> bool:
        """Whether training recomputes activations."""
        if self.device.type != "cuda":
            return False
        return torch.cuda.get_device_properties(self.device).total_memory < ROOMY_GIB * 2**30

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def report(found: dict[str, Any]) -> None:
    """Print all that is known so far."""
    print(json.dumps(rounded(found)), flush=True)


def rounded(value: Any) -> Any:
    """Numbers to four digits, and None for those that JSON does not know."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return [rounded(item) for item in value] if isinstance(value, list) else value


def clear() -> None:
    """Give memory back; models that were made policies hold themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` finds, or {"error": why not}."""
    try:
        return work()
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:300]}"
        return {"error": NO_ROOM if is_full(error) else why}
    finally:
        clear()


def is_full(error: Exception) -> bool:
    """Whether memory does not suffice; cuBLAS says so in its own way."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def timed(setting: Setting, work: Callable[[], Any], repeats: int) -> tuple[float, float | None]:
    """Seconds of one call, and the peak of GPU memory in GiB; None on a CPU."""
    on_gpu = setting.device.type == "cuda"
    setting.wait()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(setting.device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    setting.wait()
    seconds = (time.perf_counter() - start) / repeats
    return seconds, torch.cuda.max_memory_allocated(setting.device) / 2**30 if on_gpu else None


def build(name: str, layers: int | None, dtype: torch.dtype, setting: Setting) -> PreTrainedModel:
    """A random model of that shape, made on the device; `layers` None: all of its layers."""
    sizes = dict(zip(SIZE_NAMES, (SMALL_SIZES if setting.small else SIZES)[name], strict=True))
    sizes |= {"num_hidden_layers": layers or sizes["num_hidden_layers"]}
    common: dict[str, Any] = sizes | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name.startswith("gemma"):
        config: Any = Gemma2Config(**common, query_pre_attn_scalar=sizes["head_dim"], sliding_window=4096)
    else:
        config = LlamaConfig(**common, tie_word_embeddings=name == "llama-1b", max_position_embeddings=8192)
    plain = "eager" if name.startswith("gemma") else "sdpa"
    torch.manual_seed(SEED)
    with setting.device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=plain)


def some_pairs(n: int, vocabulary: int, small: bool) -> list[TokenPair]:
    """Pairs of random tokens: prompts of 30 to 90, answers of about 250 and at most 1,024; small: of 20."""
    rng, usual = random.Random(SEED), 20 if small else 250

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(length))

    def answer() -> tuple[int, ...]:
        return (*tokens(max(2, min(1024, round(rng.lognormvariate(math.log(usual), 0.6))))), 2)

    return [
        TokenPair(
            id=str(i), prompt_ids=tokens(rng.randint(30, 90)), chosen_ids=answer(), rejected_ids=answer()
        )
        for i in range(n)
    ]
