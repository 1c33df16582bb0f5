"""A model into memory, every weight of it from its files; and the checks before that, by names and shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao.config import ChatConfig, EngineConfig
from sao.errors import ModelError
from sao.models.chat import ChatTokenizer
from sao.models.folder import check_quantisation, read_settings, without_adapter
from sao.models.locate import LOAD_ERRORS, find_model, weights_identity
from sao.models.weights import check_adapter, check_report
from sao.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_NEEDS_EAGER = ("attn_logit_softcapping",)


_NOT_CHAT = re.compile(r"For(Sequence|Token)Classification$|ForMaskedLM$|ForQuestionAnswering$|RewardModel$")


def has_quick_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16 (AVX512-BF16 or AMX). False where torch
    cannot say (before 2.10)."""
    import torch

    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def pick_device(config: EngineConfig) -> str:
    """The torch device that `config` asks for."""
    import torch

    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    model: str, config: EngineConfig, revision: str | None = None, quantisation: object | None = None
) -> PreTrainedModel:
    """The model in eval mode on its device; `quantisation` is transformers' description of how its weights
    are held.

    Raises ModelError where it cannot be loaded.
    """
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    path, device = find_model(model, revision), pick_device(config)
    settings = read_config(path, config)
    soft_capped = any(getattr(settings.get_text_config(), name, None) is not None for name in _NEEDS_EAGER)
    by_family = "eager" if soft_capped or not _takes_sdpa(settings) else "sdpa"
    loaded = _from_pretrained(
        path,
        config,
        device,
        dtype={"auto": "float32" if device == "cpu" else "auto"}.get(config.dtype, config.dtype),
        # SDPA has no soft-capping and no sinks: such models raise under it or are silently wrong.
        attn_implementation=by_family if config.attention == "auto" else config.attention,
        **({"quantization_config": quantisation, "device_map": {"": device}} if quantisation else {}),
    )
    try:
        loaded = loaded.eval() if quantisation else loaded.eval().to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{path}: the model does not fit into the memory of {device} ({error}). Look at `sao plan`; take "
            "a smaller number format (engine.dtype) or another device (engine.device)",
            key="engine.device",
        ) from error
    generation = loaded.generation_config
    if generation is not None and not generation.do_sample:
        # Some published folders set a temperature without do_sample: of no effect, but refused when the model
        # is saved.
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            setattr(generation, name, None)
    return loaded  # type: ignore[no-any-return]


def _takes_sdpa(settings: Any) -> bool:
    """Whether transformers lets the model attend by torch's own kernels."""
    return bool(getattr(model_class(settings), "_supports_sdpa", True))


def read_config(path: Path, config: EngineConfig) -> Any:
    """The settings of the model in a folder. Raises ModelError where they are unreadable, or those of no chat
    model."""
    from transformers import AutoConfig

    try:
        settings: Any = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{path}/config.json: cannot be read: {type(error).__name__}: {error}", key="config.json"
        ) from error
    _refuse_classifier(path, settings.architectures)
    return settings


def model_class(settings: Any) -> Any:
    """The class that holds the model: the one that its makers saved it by, so that nothing is left out (a
    vision tower, say) and all is saved under its own names; else transformers' causal language model."""
    import transformers

    for name in settings.architectures or []:
        kind = getattr(transformers, str(name), None)
        if isinstance(kind, type) and issubclass(kind, transformers.GenerationMixin):
            return kind
    return transformers.AutoModelForCausalLM


def _refuse_classifier(path: Path, architectures: Any) -> None:
    other = next((str(name) for name in architectures or [] if _NOT_CHAT.search(str(name))), None)
    if other is not None:
        raise ModelError(
            f"{path}: a {other}, which classifies and writes no text. Give a chat model (…ForCausalLM); a "
            "reward model judges by judging.method reward",
            key="model class",
        )


def check_model(
    model: str,
    config: EngineConfig,
    revision: str | None = None,
    as_user: Sequence[Message] | None = None,
    chat: ChatConfig | None = None,
) -> None:
    """Raise ModelError where a local model cannot be used: weights missing, left over, of another shape or
    not finite, or a tokenizer that does not fit; and, where `as_user` messages are given, where the user's
    turn after them cannot be left open. Reads names and shapes only (and hashes the files): nothing is loaded
    into memory."""
    path = find_model(model, revision)
    written = read_settings(path / "config.json")
    _refuse_classifier(path, written.get("architectures"))
    check_quantisation(path, written, by_vllm=config.name == "vllm")
    if config.name != "vllm":  # which knows more kinds of models than transformers
        read_config(path, config)
    if _is_known(path, config):
        _from_pretrained(path, config, "meta", device_map="meta")
    weights_identity(model, revision)
    tokenizer = ChatTokenizer.load(model, config, revision, chat)
    if as_user is not None:
        tokenizer.user_turn_ids(as_user)
    if config.name == "vllm" and config.vllm.lora is not None:
        check_adapter(Path(config.vllm.lora), path)


def check_trainable(model: str, revision: str | None = None) -> None:
    """Raise ModelError where a model's weights are held in a way in which they cannot be trained."""
    path = find_model(model, revision)
    check_quantisation(path, read_settings(path / "config.json"), trains=True)


def _is_known(path: Path, config: EngineConfig) -> bool:
    """Whether transformers can tell what the folder's weights should be called: not of quantised ones, nor
    where it does not know the model as a causal language model by the name that its makers gave it."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except LOAD_ERRORS:
        return False
    named = model_class(settings).__name__ in (settings.architectures or [])
    return named and getattr(settings, "quantization_config", None) is None


def _from_pretrained(path: Path, config: EngineConfig, device: str, **options: Any) -> Any:
    """The causal language model in a folder, every weight of it from the folder's files."""
    from transformers import AutoModelForCausalLM

    written = read_settings(path / "config.json")
    check_quantisation(path, written)
    remote = config.trust_remote_code and "auto_map" in written
    kind = AutoModelForCausalLM if remote else model_class(read_config(path, config))
    try:
        with without_adapter(path) as folder:
            found: Any = kind.from_pretrained(
                folder,
                **({"trust_remote_code": True} if remote else {}),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **options,
            )
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{path}: the model cannot be loaded on {device}: {type(error).__name__}: {error}",
            key="model folder",
        ) from error
    loaded, report = found
    check_report(str(path), report)
    loaded.name_or_path = loaded.config.name_or_path = str(path)
    return loaded
