"""The small files of a model's folder: whether they can be read at all, and what is said of them.

transformers meets a broken file with whatever its reader raises, deep inside; here each is named.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sao.errors import ModelError

_SETTINGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "model.safetensors.index.json", "adapter_config.json", "vocab.json",
)  # fmt: skip
_TEXTS = ("chat_template.jinja", "merges.txt", "vocab.txt")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def check_folder(folder: Path) -> None:
    """Raise ModelError naming the first small file that is broken."""
    for name in _SETTINGS:
        if (folder / name).is_file():
            read_settings(folder / name)
    for name in _TEXTS:
        _check_text(folder / name)
    _check_architectures(folder / "config.json")
    _check_tokenizer(folder / "tokenizer.json")
    _check_ends(folder / "generation_config.json")


def read_settings(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelError where there is none."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{file}: cannot be read ({error}). Copy it from the model's source", key=file.name
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{file}: no JSON object. Copy it from the model's source", key=file.name)
    return found


def _check_text(file: Path) -> None:
    """Raise ModelError where a file is there and no text."""
    try:
        if file.is_file():
            file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{file}: cannot be read ({error}). Copy it from the model's source", key=file.name
        ) from error


def _check_tokenizer(file: Path) -> None:
    """Raise ModelError where tokenizer.json cannot be read by the package tokenizers."""
    if not file.is_file():
        return
    stat = file.stat()
    if problem := _tokenizer_problem(str(file), stat.st_size, stat.st_mtime_ns):
        raise ModelError(
            f"{file}: the package tokenizers cannot read it ({problem}). Copy it from the model's source, or "
            "try a newer tokenizers",
            key=file.name,
        )


@functools.cache
def _tokenizer_problem(file: str, size: int, changed: int) -> str | None:
    """Why the file cannot be read, once for each state that it was in."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(file)
    except Exception as error:  # the package raises no other kind
        return str(error)
    return None


def _check_architectures(file: Path) -> None:
    """Raise ModelError where the names of the model's class are no names."""
    names = read_settings(file).get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"{file}: architectures is {names!r}, not a list of names. Copy the file from the model's source",
            key=file.name,
        )


def _check_ends(file: Path) -> None:
    """Raise ModelError where the tokens that end a text are no numbers."""
    ends = read_settings(file).get("eos_token_id") if file.is_file() else None
    each = ends if isinstance(ends, list) else [ends]
    if not all(end is None or (isinstance(end, int) and not isinstance(end, bool)) for end in each):
        raise ModelError(
            f"{file}: eos_token_id is {ends!r}, not the number of a token or a list of them. Copy the file "
            "from the model's source",
            key=file.name,
        )


def notices(folder: Path) -> list[str]:
    """What a user should know of the folder."""
    if (folder / "config.json").is_file() and (folder / ADAPTER[0]).is_file():
        return [
            f"{folder}: an adapter lies beside the model's own weights. It is ignored: merge it "
            "(PEFT's merge_and_unload), or move the one or the other to a folder of its own"
        ]
    return []


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """The folder, or, where an adapter lies beside the weights, one that holds all else: transformers would
    put the adapter on the model."""
    if not notices(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        for file in folder.iterdir():
            if file.name not in ADAPTER:
                (Path(name) / file.name).symlink_to(file.resolve())
        yield Path(name)


def check_quantisation(
    folder: Path, settings: Mapping[str, Any], trains: bool = False, by_vllm: bool = False
) -> None:
    """Raise ModelError where weights are held in a way that transformers does not know, or that cannot be
    trained as asked.

    Args:
        folder: The model's, for the message.
        settings: Its config.json.
        trains: Whether the model is to be trained.
        by_vllm: Whether vLLM reads the weights, which has ways of its own.

    """
    inner = settings.get("text_config")
    held = {**settings, **(inner if isinstance(inner, Mapping) else {})}.get("quantization_config")
    if held is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    method = held.get("quant_method") if isinstance(held, Mapping) else None
    known = sorted(AUTO_QUANTIZATION_CONFIG_MAPPING)
    if not by_vllm and not any(method in (name, name.partition("_")[0]) for name in known):
        raise ModelError(
            f"{folder}/config.json: quantization_config has the quant_method {method!r}, which transformers "
            "does not know, so the weights would be read wrongly. Take a model that is not quantised, or one "
            f"of {', '.join(known)}",
            key="quantization_config",
        )
    if trains:
        raise ModelError(
            f"{folder}: its weights are quantised ({method}), and a quantised model is not trained here. "
            "Train the model that it was made from; train.method qlora holds that one in 4 bits by itself",
            key="quantization_config",
        )
