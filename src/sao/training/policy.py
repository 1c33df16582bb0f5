"""The model as a policy: a forward pass that returns the log-probabilities of given tokens instead of logits.

`as_policy(model)` changes the model in place so that, called with `selected` and `targets`, it never builds
the logits (see `sao.training.logps`). The work is done inside the model's own forward and its head's, so that
wrappers that gather weights around a module's forward (DDP, FSDP2, ZeRO-3, PEFT) see what they expect. Called
as usual, the model does what it did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sao.errors import ModelError
from sao.models.parts import has_experts, is_router, text_model
from sao.training.attention import PACKED
from sao.training.batches import Batch, TokenPair, pad
from sao.training.logps import token_logps


def as_policy(model: PreTrainedModel, packed: bool = False) -> None:
    """Teach `model` to return log-probabilities and, where `packed`, to read rows of many answers.

    Raises ModelError where its head is not a plain linear layer.
    """
    head, text = _checked_head(model), text_model(model)
    scale, softcap = _logit_scaling(model)
    plain_head, plain_model = head.forward, model.forward

    def head_forward(self: nn.Linear, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is None:
            return plain_head(hidden)
        return token_logps(hidden, self.weight, targets, self.bias, scale, softcap)

    def model_forward(self: PreTrainedModel, *args: Any, **inputs: Any) -> Any:
        targets = inputs.pop("targets", None)
        if targets is None:
            return plain_model(*args, **inputs)
        selected = inputs.pop("selected")
        inputs.pop("labels", None)
        inputs["use_cache"] = False
        inputs = {name: value for name, value in inputs.items() if value is not None}
        hidden = text(*args, **inputs)[0]  # [rows, T, H]
        return head(hidden.flatten(0, 1).index_select(0, selected), targets)  # [N]

    for module, forward in ((head, head_forward), (model, model_forward)):
        setattr(module, "forward", MethodType(forward, module))  # noqa: B010  # on the instance, not on the class
    if packed:
        model.set_attn_implementation(PACKED)


def _checked_head(model: PreTrainedModel) -> nn.Linear:
    """The model's head. Raises ModelError where log-probabilities are not all that its training needs."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ModelError(
            f"the head of this model is a {type(head).__name__}, not a plain linear layer; adapters on the "
            "head and quantised heads cannot be trained. Take the head out of train.lora.targets",
            key="train.lora.targets",
        )
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        raise ModelError(
            "the model's config asks for its router's own loss (output_router_logits), which this training "
            "does not add. Set it to false in config.json",
            key="config.json",
        )
    return head


def _logit_scaling(model: PreTrainedModel) -> tuple[float, float | None]:
    """The factor of the logits, and the bound of their soft-capping; see `token_logps`."""
    settings = model.config.get_text_config()
    factor = 1 / float(getattr(settings, "logits_scaling", None) or 1.0)
    for name in _FACTORS:
        factor *= float(getattr(settings, name, None) or 1.0)
    return factor, getattr(settings, "final_logit_softcapping", None)


def freeze(model: PreTrainedModel, with_routers: bool) -> None:
    """Keep as they are: all weights that text does not pass (towers for pictures and sound) and, where asked
    for, the routers of mixtures of experts, which a few thousand pairs would unbalance."""
    text, head = text_model(model), model.get_output_embeddings()
    read = {id(weight) for part in (text, head) for weight in part.parameters()}
    routed = with_routers and has_experts(model)
    for module in model.modules() if routed else ():
        for name in _JITTER:  # noise by which pretraining has routers explore
            if hasattr(module, name):
                setattr(module, name, 0.0)
    for name, weight in model.named_parameters():
        if id(weight) not in read or (routed and is_router(name)):
            weight.requires_grad_(False)


_JITTER = ("router_jitter_noise", "input_jitter_noise", "jitter_noise")
_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""What configs call a factor of the logits (Cohere, Falcon-H1, MuseGlimmer)."""


@contextlib.contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model with another attention for a while: to generate, or to be compared with itself."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def part_sums(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Sums of the log-probabilities of the batch's parts, nats: chosen [B], rejected [B] and, where it has
    them, prompts [B]."""
    logps = model(**batch.model_inputs)  # [N]
    # A sum for each part: index_add would add in an order of its own on a GPU.
    sums = torch.stack([part.sum() for part in torch.split(logps, batch.lengths)])
    return torch.split(sums, len(batch.rows))


def check_policy(
    model: PreTrainedModel, plain: str, pairs: list[TokenPair], batch: Batch, exact: bool
) -> None:
    """Compare the policy's log-probabilities on `pairs` with those of the model's own logits under attention
    `plain`.

    `exact` says that all is computed in float32: then no token may differ by more than 0.01 nats; else the
    mean by more than 0.05, since rounding to three digits adds up over the layers. Raises ModelError where
    they do: the model then has something in its layers or its head that packing or the tiled head does not
    know, and its training would be silently wrong.
    """
    padded = pad(pairs, 0).to(model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), attention_of(model, plain):
        rows = {"input_ids": padded.input_ids, "attention_mask": padded.attention_mask, "use_cache": False}
        logits = model(**rows).logits.flatten(0, 1)
        expected = logits[padded.selected].float().log_softmax(-1).gather(1, padded.targets[:, None])[:, 0]
        by_head = model(**padded.model_inputs)
    by_batch = _by_batch(model, batch)
    model.train(was_training)
    if not expected.isfinite().all():
        raise ModelError(_not_finite(model), key="weights")
    tolerance = 0.01 if exact else 0.05

    def difference(logps: Tensor) -> float:
        differences = (logps - expected).abs()
        return float(differences.max() if exact else differences.mean())

    if not (head_off := difference(by_head)) <= tolerance:
        raise ModelError(
            "this model's head does more than a linear layer, scaling and soft-capping: its "
            f"log-probabilities are off by {head_off:.3g} nats. It cannot be trained here; please report the "
            "model",
            key="architecture",
        )
    if not (packed_off := difference(by_batch)) <= tolerance:
        raise ModelError(
            "this model's layers look beyond their own answer in a packed row (off by "
            f"{packed_off:.3g} nats). Train it with --train.batches padded",
            key="train.batches",
        )


@torch.no_grad()
def _by_batch(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The policy's log-probabilities of a batch. Raises ModelError where the model cannot read a packed
    row."""
    batch = batch.to(model.device)
    try:
        logps: Tensor = model(**batch.model_inputs)
    except (ModelError, torch.OutOfMemoryError):
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if batch.segments is None:
            raise
        raise ModelError(
            f"this model's layers cannot read a packed row ({type(error).__name__}: {error}). Train it with "
            "--train.batches padded",
            key="train.batches",
        ) from error
    if batch.segments is not None and not batch.segments.attended:
        raise ModelError(
            "this model does not attend by the interface of transformers, which packed rows need. Train it "
            "with --train.batches padded",
            key="train.batches",
        )
    return logps


def _not_finite(model: PreTrainedModel) -> str:
    text = "the model's log-probabilities are not finite"
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if not broken:
        return text
    return f"{text}; NaN or infinite weights in {', '.join(broken[:5])}. Load it from a sound checkpoint"
