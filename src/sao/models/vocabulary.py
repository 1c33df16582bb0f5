"""Whether a tokenizer belongs to its model: its files are there, it knows words, and every token has a row in
the embedding.

A tokenizer without its vocabulary still loads: it makes empty prompts, and nobody is told. All checks raise
ModelError.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sao.errors import ModelError

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "*.model",
)
"""The files that can hold a vocabulary, the one that is read first."""
_READERS = {
    "tekken.json": ("mistral_common", "mistral-common"),
    "tokenizer.model": ("sentencepiece", "sentencepiece"),
    "spiece.model": ("sentencepiece", "sentencepiece"),
    "sentencepiece.bpe.model": ("sentencepiece", "sentencepiece"),
    "*.tiktoken": ("tiktoken", "tiktoken"),
}
"""Module and package that read a file where no tokenizer.json is beside it."""


def check_files(path: Path) -> None:
    """Raise ModelError where no file of a model folder holds the vocabulary, or the package that reads it is
    missing."""
    found = next((name for name in _FILES if any(path.glob(name))), None)
    settings = path / "tokenizer_config.json"
    if found is None and not (
        settings.is_file() and "auto_map" in settings.read_text("utf-8", errors="replace")
    ):
        raise ModelError(
            f"{path}: no tokenizer.json (nor tokenizer.model, vocab.json or another vocabulary). Copy the "
            "tokenizer's files from the model's source",
            key="tokenizer.json",
        )
    if not settings.is_file():
        raise ModelError(
            f"{path}: no tokenizer_config.json, which says what kind of tokenizer this is; guessed, it might "
            "cut texts into other tokens. Copy it from the model's source",
            key="tokenizer_config.json",
        )
    if found == "vocab.json" and not (path / "merges.txt").is_file():
        raise ModelError(
            f"{path}: vocab.json, but no merges.txt beside it. Copy it, or tokenizer.json, from the model's "
            "source",
            key="merges.txt",
        )
    module, package = _READERS.get(found or "", ("", ""))
    if module and find_spec(module) is None:
        raise ModelError(
            f"{path}: its tokenizer is in {found} only, which needs the package {package}: pip install "
            f"{package}. Or copy tokenizer.json from the model's source",
            key="tokenizer",
        )


def words_of(tokenizer: Any, name: str) -> str:
    """A few words (or letters) of the tokenizer's own vocabulary, which any text may be made of."""
    size = tokenizer.vocab_size or len(tokenizer)
    words: list[str] = []
    letters: list[str] = []
    for token in (*range(size // 4, size), *range(size // 4)):
        if token in tokenizer.added_tokens_decoder:
            continue
        word = str(tokenizer.decode([token])).strip()
        if word.isalpha() and "\ufffd" not in word:
            (words if len(word) > 1 else letters).append(word)
        if len(words) == 3:
            break
    if not words and not letters:
        raise ModelError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens and none of them is a word, so its "
            "vocabulary is missing. Copy tokenizer.json (or tokenizer.model) into the folder",
            key="vocabulary",
        )
    return " ".join(words or letters[:3])


def check_words(tokenizer: Any, name: str, words: str, ids: Sequence[int]) -> None:
    """Raise ModelError where `words` are not in the text of `ids`, which were made of them by template and
    tokenizer."""
    shown = str(tokenizer.decode(list(ids)))
    if _letters(words) not in _letters(shown):
        raise ModelError(
            f"{name}: what the user says is lost between chat template and tokenizer ({words!r} became "
            f"{shown[-200:]!r}). Copy the tokenizer's files and chat_template.jinja from the model's source",
            key="user text",
        )


def check_rows(tokenizer: Any, name: str, rows: int, shown: Collection[int]) -> None:
    """Raise ModelError where a token that may come up has none of the embedding's `rows`.

    Special tokens that are not among those `shown` by the template may lie outside (Gemma-3's image token
    does): no text can hold one.
    """
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    outside = [
        (i, token)
        for token, i in tokenizer.get_vocab().items()
        if i >= rows and (i not in special or i in shown)
    ]
    if outside:
        token_id, token = min(outside)
        raise ModelError(
            f"{name}: the tokenizer knows {token!r} as number {token_id}, but the embedding has {rows} rows "
            f"({len(outside)} such tokens). Resize it (model.resize_token_embeddings) and train those rows, "
            "or take the tokenizer that belongs to the weights",
            key="embedding",
        )


def _letters(text: str) -> str:
    """A text without spaces and case."""
    return "".join(text.split()).casefold()
