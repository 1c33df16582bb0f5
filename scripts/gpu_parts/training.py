"""Training by SAO's loss path against padded rows and whole logits, on the same pairs and weights.

Letters in shapes: B pairs, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gpu_parts.setting import (
    NO_ROOM,
    SEED,
    SIZES,
    SMALL_SIZES,
    Setting,
    build,
    guarded,
    report,
    some_pairs,
    timed,
)
from sao.analysis.plan.memory import GIB, training_memory
from sao.config import TrainConfig
from sao.models.shapes import shape_of
from sao.training.adapters import add_adapter
from sao.training.arguments import half_precision
from sao.training.batches import Batch, TokenPair, pack, pad
from sao.training.losses import simpo_loss
from sao.training.optimizer import AdamWStochastic
from sao.training.policy import as_policy, attention_of, part_sums

BETA, GAMMA = 10.0, 3.0


def sao_loss(model: nn.Module, pairs: list[TokenPair], device: torch.device) -> Tensor:
    """The mean SimPO loss as SAO's trainer computes it: one packed row, no logits, []."""
    batch = pack(pairs).to(device)
    chosen, rejected = part_sums(model, batch)
    return mean_loss(chosen, rejected, batch)


def padded_loss(model: nn.Module, pairs: list[TokenPair], device: torch.device) -> Tensor:
    """The same by padded rows and a softmax over all of their logits, []."""
    batch = pad(pairs, 0).to(device)
    ids = batch.input_ids  # [2B, T]
    logits = model(input_ids=ids, attention_mask=batch.attention_mask, use_cache=False).logits  # [2B, T, V]
    logps = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]  # [2B, T - 1]
    counted = torch.zeros(ids.numel(), device=device).index_fill(0, batch.selected, 1.0)
    chosen, rejected = (logps * counted.view_as(ids)[:, :-1]).sum(1).chunk(2)
    return mean_loss(chosen, rejected, batch)


def mean_loss(chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
    """The mean loss [] of pairs whose answers have these sums of log-probabilities, [B] each."""
    lengths = torch.tensor(batch.lengths, device=chosen.device)
    chosen_tokens, rejected_tokens = lengths.chunk(2)
    return simpo_loss(chosen / chosen_tokens, rejected / rejected_tokens, BETA, GAMMA).mean()


class Training:
    """A model in training, its optimiser, and the pairs of one forward pass."""

    def __init__(self, name: str, method: str, layers: int | None, setting: Setting) -> None:
        optimizer = "adamw_sr" if method == "full" else "adamw"
        self.config = TrainConfig(method=method, weights="bfloat16", optimizer=optimizer)
        self.setting, self.method = setting, method
        base = build(name, layers, torch.bfloat16, setting)
        self.plain = base.config._attn_implementation
        self.flops = self._flops(base)
        self.pairs = some_pairs(4, base.config.vocab_size, setting.small)
        planned = self.config.model_copy(update={"gradient_checkpointing": setting.checkpointing})
        tokens = sum(map(len, self.pairs))
        memory = training_memory(shape_of(base.config.to_dict(), name), planned, tokens)
        self.planned_gib = memory.total / GIB
        self.base = base
        if setting.checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        self.model: Any = base if method == "full" else add_adapter(base, self.config, SEED)
        as_policy(base, packed=True)
        self.model.train()
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        # A rate of 0: all of a step's work, and both sides see the same weights.
        if method == "full":
            self.optimizer: torch.optim.Optimizer = AdamWStochastic(self.trained, lr=0.0)
        else:
            fused = setting.device.type == "cuda"
            self.optimizer = torch.optim.AdamW(self.trained, lr=0.0, weight_decay=0.0, fused=fused)

    def _flops(self, base: PreTrainedModel) -> int:
        """Operations for a token by the formula of docs/recipes.md, without those of attention."""
        head: Any = base.get_output_embeddings()
        linear = [module for module in base.modules() if isinstance(module, nn.Linear) and module is not head]
        layers = sum(module.weight.numel() for module in linear)
        recomputed = 2 * layers if self.setting.checkpointing else 0
        if self.method == "full":
            return 6 * layers + 8 * head.weight.numel() + recomputed
        return 4 * layers + 4 * head.weight.numel() + recomputed

    def backward(self, loss_of: Callable[..., Tensor]) -> float:
        """Forward and backward pass; the loss."""
        device = self.setting.device
        half = half_precision(self.config, device)
        plain = attention_of(self.base, self.plain) if loss_of is padded_loss else contextlib.nullcontext()
        with plain:  # around the backward pass too, which may compute layers again
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = loss_of(self.model, self.pairs, device)
            loss.backward()
        return float(loss.detach())

    def step(self) -> None:
        """What the trainer does after the backward passes of a batch."""
        nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        self.optimizer.step()

    def figures(self, loss_of: Callable[..., Tensor]) -> dict[str, Any]:
        """Loss, time and memory of one side."""
        loss = self.backward(loss_of)
        if loss_of is sao_loss:
            self.step()  # the optimiser's state comes to be
        seconds, peak = timed(self.setting, lambda: self.backward(loss_of), 1 if self.setting.small else 3)
        rate, known = sum(map(len, self.pairs)) / seconds, self.setting.peak_flops
        return {  # tokens are those of the pairs, each prompt once; padding is none
            "loss": loss,
            "seconds": seconds,
            "tokens_per_s": rate,
            "peak_gib": peak,
            **({"planned_gib": self.planned_gib} if loss_of is sao_loss else {}),
            "share_of_peak": None if known is None else self.flops * rate / known,
        }


def train_sides(name: str, method: str, layers: int | None, setting: Setting) -> dict[str, Any]:
    """Both sides on one model of so many layers; the padded one is left out where ours does not fit."""
    training = Training(name, method, layers, setting)
    found: dict[str, Any] = {"layers": training.base.config.num_hidden_layers}
    found |= {"tokens": sum(map(len, training.pairs)), "sao": guarded(lambda: training.figures(sao_loss))}
    if "error" in found["sao"]:
        return found
    found["optimizer_s"] = timed(setting, training.step, 1)[0]
    found["padded"] = guarded(lambda: training.figures(padded_loss))
    if "error" not in found["padded"]:
        ours, theirs = found["sao"], found["padded"]
        found["time_ratio"] = ours["seconds"] / theirs["seconds"]
        if ours["peak_gib"] is not None:
            found["memory_ratio"] = ours["peak_gib"] / theirs["peak_gib"]
    return found


def train_until_both_fit(name: str, method: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """Both sides with all layers, then with half of them as long as one does not fit: what is known after
    each try. The ratios are those of the last."""
    layers = (SMALL_SIZES if setting.small else SIZES)[name][-1]
    tries: list[dict[str, Any]] = []
    while True:
        tries.append({"layers": layers} | guarded(lambda n=layers: train_sides(name, method, n, setting)))
        last = tries[-1]
        ratios = {key: last[key] for key in ("time_ratio", "memory_ratio") if key in last}
        yield {**ratios, **({"ratio_layers": layers} if ratios else {}), "tries": tries}
        full = NO_ROOM in [one.get("error") for one in (last, last.get("sao", {}), last.get("padded", {}))]
        if not full or layers == 1:
            return
        layers //= 2
        if setting.left < 15:
            yield {"tries": [*tries, {"layers": layers, "skipped": f"{setting.left:.0f} s are left"}]}
            return


def training_part(setting: Setting, name: str = "llama-3-8b", methods: str = "full lora") -> None:
    """Full training in bfloat16 with stochastic rounding, and LoRA."""
    found: dict[str, Any] = {"shape": name, "gpu": setting.gpu, "checkpointing": setting.checkpointing}
    for method in methods.split():
        if setting.left < (5 if setting.small else 20):
            found[method] = {"skipped": f"{setting.left:.0f} s are left"}
            report(found)
            continue
        for known in train_until_both_fit(name, method, setting):
            found[method] = known
            report(found)
    errors = [f"{method}: {why}" for method in methods.split() if (why := failure(found[method]))]
    if errors:
        report(found | {"error": "; ".join(errors)})


def failure(found: dict[str, Any]) -> str | None:
    """Why a method has no ratios, or None where it has, or where its time was up before it began."""
    if "time_ratio" in found or "tries" not in found:
        return None
    last = found["tries"][-1]
    sides = [last, last.get("sao", {}), last.get("padded", {})]
    return next(side[key] for side in sides for key in ("error", "skipped") if key in side)


def gemma_part(setting: Setting) -> None:
    """One full training step at Gemma-2's shape: its soft-capping, its vocabulary."""
    training_part(setting, "gemma-2-9b", "full")
