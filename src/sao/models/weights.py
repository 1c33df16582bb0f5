"""The files of a model's weights: what they are (a hash), and whether they can be used at all.

Nothing may be made up in silence: a weight that is missing would be drawn at random, one that is misnamed
would be left out, and one NaN turns every answer into garbage. All three are refused before anything is
written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sao.errors import ModelError
from sao.store.files import write_atomic

CHUNK = 16 << 20
REMEMBERED = 64 << 20
"""Bytes from which on a file's hash is kept for later processes."""
_digests: dict[tuple[str, int, int], str] = {}
# For each number format of safetensors that can hold NaN or infinity: bytes of a number, bits of its exponent
# (all set: not finite). F8_E4M3 has no infinity; there only all bits but the sign are NaN.
_EXPONENTS = {
    "F64": (8, 0x7FF0_0000_0000_0000), "F32": (4, 0x7F80_0000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80),
    "F8_E5M2": (1, 0x7C),
    "F8_E4M3": (1, 0x7F),
}  # fmt: skip


def cache_folder() -> Path:
    """Where converted models and the hashes of large files lie: $SAO_CACHE, else $XDG_CACHE_HOME/sao, else
    ~/.cache/sao."""
    given = os.environ.get("SAO_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "sao"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Weights in safetensors are looked through in the same pass over the
    file.

    A file is read once a process; one of more than REMEMBERED bytes once altogether, as long as its path,
    size and times (of content and of entry) stay the same.

    Raises ModelError where a weight holds NaN or infinity, or where a safetensors file is broken.
    """
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests and stat.st_size > REMEMBERED:
        name = hashlib.sha256(f"{key} {stat.st_ctime_ns} {stat.st_ino}".encode()).hexdigest()
        note = cache_folder() / "digests" / name
        if note.is_file() and re.fullmatch(r"[0-9a-f]{64}", text := note.read_text("utf-8")):
            _digests[key] = text
        else:
            _digests[key] = _read_digest(path, stat.st_size)
            with contextlib.suppress(
                OSError
            ):  # a place that cannot be written costs the next process time, nothing else
                write_atomic(note, _digests[key])
    elif key not in _digests:
        _digests[key] = _read_digest(path, stat.st_size)
    return _digests[key]


def _read_digest(path: Path, size: int) -> str:
    with path.open("rb") as stream:
        if path.suffix == ".safetensors":
            return _scan(path, stream, size)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a saved model: its config, and every file of weights that belongs to it."""
    index = folder / "model.safetensors.index.json"
    try:
        shards = (
            set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else set()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    weights = [folder / str(name) for name in shards] or list(folder.glob("*.safetensors"))
    return bool(weights) and all(file.is_file() for file in [folder / "config.json", *weights])


def digest_of(files: Iterable[Path]) -> str:
    """The first 16 digits of the SHA-256 over names and contents of those files that exist."""
    digest = hashlib.sha256()
    for file in (f for f in files if f.is_file()):
        digest.update(f"{file.name}:{file_digest(file)}\n".encode())
    return digest.hexdigest()[:16]


def _scan(path: Path, stream: BinaryIO, size: int) -> str:
    """Hash a safetensors file and look through its numbers, in one pass over its bytes.

    The format: 8 bytes with the header's length, the header in JSON, then the tensors behind each other
    (https://huggingface.co/docs/safetensors).
    """
    digest = hashlib.sha256()
    start = stream.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ModelError(f"{path}: not a whole safetensors file. Copy or download it again", key="weights")
    header = stream.read(length)
    digest.update(start + header)
    try:
        tensors = sorted(
            ((*entry["data_offsets"], entry["dtype"], name)
             for name, entry in json.loads(header).items() if name != "__metadata__")
        )  # fmt: skip
        whole = all(a <= b for a, b, _, _ in tensors) and (not tensors or tensors[-1][1] == size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path}: its header cannot be read. Copy or download it again", key="weights"
        ) from error
    if not whole:
        raise ModelError(
            f"{path}: shorter or longer than its header says. Copy or download it again", key="weights"
        )
    at = 0
    for begin, end, dtype, name in tensors:
        if begin > at:
            digest.update(stream.read(begin - at))
        for data in _chunks(stream, end - max(begin, at)):
            digest.update(data)
            if not _all_finite(data, dtype):
                raise ModelError(
                    f"{path}: the weight {name} holds NaN or infinity, so every answer would be garbage. "
                    "Copy or download the file again, or take an earlier checkpoint",
                    key="weights",
                )
        at = max(at, end)
    return digest.hexdigest()


def _chunks(stream: BinaryIO, length: int) -> Iterator[bytes]:
    """The next `length` bytes, in pieces that hold whole numbers."""
    while length > 0:
        data = stream.read(min(CHUNK, length))
        if not data:
            return
        yield data
        length -= len(data)


def _all_finite(data: bytes, dtype: str) -> bool:
    """Whether no number of a piece of a tensor is NaN or infinity."""
    import numpy as np

    if dtype not in _EXPONENTS:
        return True
    width, exponent = _EXPONENTS[dtype]
    numbers = np.frombuffer(data[: len(data) // width * width], f"<u{width}")
    mask = numbers.dtype.type(exponent)
    return not bool(((numbers & mask) == mask).any())


_COMPUTED = (".masked_bias", ".inv_freq", ".position_ids")
"""Ends of names that old checkpoints hold and that are no weights: the model computes them."""


def check_report(where: str, report: Mapping[str, Any], spared: tuple[str, ...] = ()) -> None:
    """Raise ModelError where transformers' loading report says that weights were missing, left over or of
    another shape.

    Args:
        where: The model, for the message.
        report: What `from_pretrained(…, output_loading_info=True)` returns beside the model. Tied weights are
            not in it.
        spared: Beginnings of left-over names that do no harm.

    """
    left_over = {
        name
        for name in report["unexpected_keys"]
        if not name.startswith(spared or ("\0",)) and not name.endswith(_COMPUTED)
    }
    shapes = {entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]}
    problems = []
    for names, what in (
        (set(report["missing_keys"]) - shapes, "is missing from the files and would be drawn at random"),
        (left_over, "has no place in this model and would be left out"),
        (shapes, "has another shape than config.json says"),
    ):
        if names:
            more = f" ({len(names)} such weights)" if len(names) > 1 else ""
            problems.append(f"the weight {min(names)} {what}{more}")
    if problems:
        raise ModelError(
            f"{where}: {'; '.join(problems)}. Take the whole folder as its makers saved it, and a chat model "
            "(…ForCausalLM) where one is asked for",
            key="weights",
        )


def check_adapter(folder: Path, base: Path) -> None:
    """Raise ModelError where a LoRA adapter is torn, or changes layers that the base model does not have.

    Args:
        folder: The adapter's: adapter_config.json and adapter_model.safetensors (PEFT's names).
        base: The folder of the model that it is put on.

    """
    file = folder / "adapter_model.safetensors"
    if not file.is_file() or not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: no LoRA adapter, which has adapter_config.json and adapter_model.safetensors",
            key="adapter",
        )
    names = tensor_names(file)
    known = {
        _layer(name.rpartition(".")[0]) for path in base.glob("*.safetensors") for name in tensor_names(path)
    }
    for name in sorted(names):
        for one, other in (("lora_A", "lora_B"), ("lora_B", "lora_A")):
            if f".{one}." in name and name.replace(f".{one}.", f".{other}.") not in names:
                raise ModelError(
                    f"{folder}: {name} has no {other} beside it. Copy or save the adapter again",
                    key="adapter",
                )
        layer = _layer(name.partition(".lora_")[0])
        if ".lora_" in name and layer and layer not in known:
            raise ModelError(
                f"{folder}: changes layer {layer}, which {base} does not have: it belongs to another model",
                key="adapter",
            )


def tensor_names(path: Path) -> set[str]:
    """The names in a safetensors file. Raises ModelError where its header cannot be read."""
    try:
        with path.open("rb") as stream:
            return set(json.loads(stream.read(int.from_bytes(stream.read(8), "little")))) - {"__metadata__"}
    except (ValueError, OSError, TypeError, MemoryError, OverflowError) as error:
        raise ModelError(
            f"{path}: its header cannot be read. Copy or download it again", key="weights"
        ) from error


def _layer(name: str) -> str:
    """A module's name from the number of its layer on ("7.mlp.up_proj"), "" outside the layers: adapters and
    multimodal models put different words before it."""
    found = re.search(r"(?:^|\.)(\d+\..+)", name)
    return found[1] if found else ""
