"""A reward model as a judge: any transformers sequence classifier with one output, which scores (prompt, answer) pairs.

Such models are trained by Bradley and Terry's likelihood, so a difference of scores is the log-odds of being better. It is a
control: its taste comes from labels that others made (judging.method reward).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from sao.chat import find_model
from sao.config import EngineConfig
from sao.errors import ModelError

BATCH = 32
"""Texts to a forward pass, of like length."""


class RewardModel:
    """See the module's docstring and `sao.judging.Scorer`."""

    def __init__(self, model: str, config: EngineConfig, revision: str | None = None) -> None:
        """Load it. Raises ModelError where it is no sequence classifier with one output."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        path = find_model(model, revision)
        if config.threads:
            torch.set_num_threads(config.threads)
        device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        dtype: Any = config.dtype if config.dtype != "auto" else "auto" if device.startswith("cuda") else "float32"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
            network, report = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=dtype, trust_remote_code=config.trust_remote_code, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"{path}: no sequence classifier ({type(error).__name__}: {error})") from error
        if report["missing_keys"]:
            raise ModelError(
                f"{path}: no reward model: its weights lack {sorted(report['missing_keys'])[0]}. Give a model with a trained "
                "score head"
            )
        if network.config.num_labels != 1:
            raise ModelError(f"{path}: scores {network.config.num_labels} classes; a reward model gives one number")
        if network.config.pad_token_id is None:  # by it the model finds where a text ends
            pad = self._tokenizer.pad_token_id
            network.config.pad_token_id = self._tokenizer.eos_token_id if pad is None else pad
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token_id = network.config.pad_token_id
        self._tokenizer.padding_side = "right"
        self._model = network.to(device).eval()
        places = getattr(network.config, "max_position_embeddings", None) or math.inf
        self._room = min(places, self._tokenizer.model_max_length)  # some count their first positions from 2
        self.name = model

    def score(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """One number for each (prompt, answer); NaN for one that is longer than the model's context."""
        encoded = [self._encode(prompt, answer) for prompt, answer in texts]
        found = [math.nan] * len(encoded)
        order = sorted((i for i in range(len(encoded)) if len(encoded[i]["input_ids"]) <= self._room),
                       key=lambda i: len(encoded[i]["input_ids"]))  # fmt: skip
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = self._tokenizer.pad([encoded[i] for i in rows], return_tensors="pt").to(self._model.device)
            with torch.no_grad():
                scores = self._model(**batch).logits[:, 0].float().tolist()
            for row, value in zip(rows, scores, strict=True):
                found[row] = value
        return found

    def close(self) -> None:
        """Give back the memory."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _encode(self, prompt: str, answer: str) -> dict[str, Any]:
        """By the model's chat template, or, where it has none, as a pair of texts."""
        if not self._tokenizer.chat_template:
            return dict(self._tokenizer(prompt, answer))
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return dict(self._tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True))
