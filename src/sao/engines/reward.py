"""A reward model as a judge: any transformers sequence classifier with one output, which scores (prompt,
answer) pairs.

Such models are trained by Bradley and Terry's likelihood, so a difference of scores is the log-odds of being
better. It is a control: its taste comes from labels that others made (judging.method reward).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from sao.config import EngineConfig
from sao.errors import ModelError
from sao.models import vocabulary
from sao.models.folder import without_adapter
from sao.models.load import pick_device
from sao.models.locate import LOAD_ERRORS, find_model
from sao.models.template import ChatTemplate
from sao.models.weights import check_report
from sao.records import Message

BATCH = 32
"""Texts to a forward pass, of like length."""
LEFT_OVER = ("lm_head.", "model.lm_head.", "language_model.lm_head.")
"""What a reward model may still hold of the language model that it was trained from."""
NO_TOKEN = -1
"""The id of no token: what a row that is scored alone is told to be padded with."""


class RewardModel:
    """See the module's docstring and `sao.stages.judging.Scorer`."""

    def __init__(self, model: str, config: EngineConfig, revision: str | None = None) -> None:
        """Load it. Raises ModelError where it is no sequence classifier with one output, or where weights are
        missing."""
        path = find_model(model, revision)
        vocabulary.check_files(path)
        if config.threads:
            torch.set_num_threads(config.threads)
        self._tokenizer, network = _tokenizer_and_classifier(path, config)
        has_template = bool(self._tokenizer.chat_template)
        self._template = ChatTemplate(self._tokenizer, model) if has_template else None
        settings = network.config.get_text_config()
        embedding = network.get_input_embeddings()
        self._configs = (settings, network.config)
        self._vocabulary = int(embedding.weight.shape[0])
        self._pad = self._pad_of_model()
        # RoBERTa and its kin give no position to their pad token, so they cannot be padded with another.
        self._pad_is_fixed = any(
            isinstance(part, nn.Embedding) and part.padding_idx is not None and part is not embedding
            for part in network.modules()
        )
        words = vocabulary.words_of(self._tokenizer, model)
        ids = self._encode(words, words)["input_ids"]
        vocabulary.check_words(self._tokenizer, model, words, ids)
        vocabulary.check_rows(self._tokenizer, model, self._vocabulary, ids)
        self._model = network.eval()
        positions = getattr(settings, "max_position_embeddings", None) or math.inf
        # Some tokenizers know that the first positions are not used.
        self._context = min(positions, self._tokenizer.model_max_length)
        self.name = model

    def score(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """One number for each (prompt, answer); NaN for one that is longer than the model's context."""
        encoded = [self._encode(prompt, answer) for prompt, answer in texts]
        lengths = [len(text["input_ids"]) for text in encoded]
        fitting = [row for row, length in enumerate(lengths) if 0 < length <= self._context]
        order = sorted(fitting, key=lambda row: lengths[row])
        scores = [math.nan] * len(encoded)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            for row, score in zip(rows, self._scores([encoded[row] for row in rows]), strict=True):
                scores[row] = score
        return scores

    def close(self) -> None:
        """Give back the memory."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _pad_of_model(self) -> int | None:
        """The pad token by the model's configs or its tokenizer, None where none has a row."""
        named = [getattr(part, "pad_token_id", None) for part in (*self._configs, self._tokenizer)]
        return next((pad for pad in named if pad is not None and 0 <= pad < self._vocabulary), None)

    def _encode(self, prompt: str, answer: str) -> dict[str, Any]:
        """By the model's chat template, or, where it has none, as a pair of texts."""
        if self._template is None:
            return dict(self._tokenizer(prompt, answer))
        text = self._template.chat([Message("user", prompt), Message("assistant", answer)])
        return dict(self._tokenizer(text, add_special_tokens=False))

    def _scores(self, rows: list[dict[str, Any]]) -> list[float]:
        """The scores of some encoded texts, each read at its last token.

        Classifiers take for it the last token that is not the pad token of their config. Where a text ends
        with that token (it is the EOS of many models), they would read an earlier one. So the batch is padded
        with a token that no row holds.
        """
        held = {token for row in rows for token in row["input_ids"]}
        pad = self._pad
        if pad is None or pad in held:
            pad = None if self._pad_is_fixed else _unused(held, self._vocabulary)
        if pad is None and len(rows) > 1:
            return [self._scores([row])[0] for row in rows]
        for config in self._configs:
            config.pad_token_id = NO_TOKEN if pad is None else pad
        batch = self._batch(rows, 0 if pad is None else pad)
        with torch.no_grad():
            scores: list[float] = self._model(**batch).logits[:, 0].float().tolist()
        return scores

    def _batch(self, rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
        """The rows as tensors [rows, longest], padded on the right."""
        fillers = {"input_ids": pad, "attention_mask": 0, "token_type_ids": self._tokenizer.pad_token_type_id}
        longest = max(len(row["input_ids"]) for row in rows)
        full = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        return {
            key: torch.tensor([row[key] + [filler] * (longest - len(row[key])) for row in full]).to(
                self._model.device
            )
            for key, filler in fillers.items()
            if key in full[0]
        }


def check_reward_model(model: str, config: EngineConfig, revision: str | None = None) -> None:
    """Raise ModelError where a folder is no whole reward model. Reads names and shapes only: nothing is
    loaded into memory."""
    path = find_model(model, revision)
    vocabulary.check_files(path)
    try:
        _, report = _load(path, config.model_copy(update={"device": "meta"}))
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{path}: no sequence classifier ({type(error).__name__}: {error})", key="reward model"
        ) from error
    _check_weights(path, report)


def _tokenizer_and_classifier(path: Path, config: EngineConfig) -> tuple[Any, Any]:
    """The tokenizer and the classifier of a folder. Raises ModelError where it is not whole, or has more
    outputs than one."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        network, report = _load(path, config)
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        AssertionError,
        SafetensorError,
    ) as error:
        raise ModelError(
            f"{path}: no sequence classifier ({type(error).__name__}: {error})", key="reward model"
        ) from error
    _check_weights(path, report)
    if network.config.num_labels != 1:
        raise ModelError(
            f"{path}: scores {network.config.num_labels} classes; a reward model gives one number",
            key="reward model",
        )
    return tokenizer, network


def _load(path: Path, config: EngineConfig) -> tuple[Any, dict[str, Any]]:
    """The classifier on its device, and transformers' report on its weights."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    device = pick_device(config)
    dtype: Any = (
        config.dtype if config.dtype != "auto" else "auto" if device.startswith("cuda") else "float32"
    )
    settings = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    # SDPA leaves out soft-capping without a word (Gemma-2).
    soft_capped = getattr(settings.get_text_config(), "attn_logit_softcapping", None) is not None
    with without_adapter(path) as folder:
        network, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by `_check_weights`, which names them
            **({"attn_implementation": "eager"} if soft_capped else {}),
            **({"device_map": "meta"} if device == "meta" else {}),
        )
    _widen_head(network)
    return network.to(device), report


def _widen_head(network: Any) -> None:
    """Have scores of a model in half precision made in float32: in bfloat16 a score between 4 and 8 is a
    multiple of 1/32, and close answers would be ties."""
    for module in network.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features == network.config.num_labels == 1:
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _check_weights(path: Path, report: dict[str, Any]) -> None:
    """Raise ModelError where the folder's weights are not those of the classifier."""
    try:
        check_report(f"{path}, as a reward model", report, spared=LEFT_OVER)
    except ModelError as error:
        wanted = "What is asked for here is a model with a trained score head (…ForSequenceClassification)"
        raise ModelError(f"{error}. {wanted}", key="reward model") from error


def _unused(held: Collection[int], vocabulary: int) -> int | None:
    """The first token that is not `held`; None where all of them are."""
    return next((token for token in range(vocabulary) if token not in held), None)
