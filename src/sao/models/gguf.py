"""A GGUF file as a model: read and dequantised once, saved as a normal model folder in the cache, used from
there.

In: a .gguf file (llama.cpp's format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Out: a
folder with safetensors, tokenizer, chat template, end tokens and a card with the licence. Everything else
(engines, judges, training, evaluation) sees that folder only, so the base of every comparison is the same
rounded model that training starts from.

The folder lies in the cache (`sao.models.weights.cache_folder`) under the file's SHA-256: a changed file is
read again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao.errors import ModelError, SAOError, StoreError
from sao.models.weights import cache_folder, check_report, file_digest
from sao.store.files import write_atomic

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FACTS = "sao_gguf.json"
"""What is said of the file, in its folder."""
REVISION = 1
"""Counts up when the same file would be read otherwise."""
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Tensor types that hold plain numbers, and the number format that a folder keeps them in."""
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
# Rules by which a file's tokenizer cuts text into pieces that transformers reads rightly without knowing
# their name: GPT-2's own, and those whose further rule (each digit by itself) shows in the vocabulary.
_SAME_AS_GPT2 = ("gpt-2", "smollm", "starcoder", "refact", "default")


def is_gguf(model: str) -> bool:
    """Whether `model` names a GGUF file (which may be missing)."""
    return model.lower().endswith(".gguf")


def model_folder(file: Path) -> Path:
    """The folder of a GGUF file's model in the cache; made on the first call.

    Raises ModelError where the file cannot be read as a model, StoreError where the cache cannot be written.
    """
    if not file.is_file():
        raise ModelError(f"{file}: no such file", key="GGUF file")
    folder = cache_folder() / "gguf" / f"{file_digest(file)[:16]}-{REVISION}"
    if not folder.is_dir():
        _convert(file, folder)
    return folder


def notice(file: Path) -> str:
    """What a user of this file should know, in one line or two. Its folder is there, or is made."""
    facts = json.loads((model_folder(file) / FACTS).read_text("utf-8"))
    kind, rule = facts["stored_as"], facts["unknown_splitting"]
    said = f"{file.name}: weights in {kind}, read as they are"
    if kind not in PLAIN:
        said = (
            f"{file.name}: weights rounded to {kind}. Training starts from these rounded weights, and the "
            "base in every comparison is the same rounded model"
        )
    if rule:
        said += (
            f". WARNING: transformers does not know the rule {rule!r} by which this file's tokenizer splits "
            "text, and takes GPT-2's: tokens may be others than the model was trained on"
        )
    return said


def _convert(file: Path, folder: Path) -> None:
    """Make the folder; it appears when it is whole. Two processes may do so at once: the first one's
    stays."""
    from safetensors import SafetensorError

    _check(file)
    unfinished = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(folder)
        unfinished.mkdir()
        _save(file, unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except (OSError, SafetensorError) as error:
        if isinstance(error, SAOError):
            raise
        why = getattr(error, "strerror", None) or error
        raise StoreError(
            f"{folder}: {file.name} cannot be saved there as a model folder ({why}). Free some space (about "
            "four times the file), or name another place by the environment variable SAO_CACHE",
            key="SAO_CACHE",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove_left_over(folder: Path) -> None:
    """Delete what killed processes of this machine left unfinished."""
    for old in folder.parent.glob(f"{folder.name}.{socket.gethostname()}.*.partial"):
        pid = int(old.name.rsplit(".", 2)[1])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            shutil.rmtree(old, ignore_errors=True)
        except PermissionError:
            pass  # another user's process, which lives


def _check(file: Path) -> None:
    """Raise ModelError for a file that holds no whole model."""
    if find_spec("gguf") is None:
        raise ModelError(
            f"{file}: reading GGUF files needs the package gguf: pip install 'sao[gguf]'", key="gguf"
        )
    if _SPLIT.search(file.stem):
        raise ModelError(
            f"{file}: one part of a model in several files. Join them first: llama-gguf-split --merge "
            f"{file.name} whole.gguf",
            key="GGUF file",
        )
    _reader(file)


def _reader(file: Path) -> Any:
    """The gguf package's view of the file; its tensors are mapped, not read."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelError(
            f"{file}: not a whole GGUF file ({error}). Copy or download it again", key="GGUF file"
        ) from error
    if not reader.tensors:
        raise ModelError(f"{file}: a GGUF file without weights", key="GGUF file")
    return reader


def _save(file: Path, folder: Path) -> None:
    """Read the model and write it as a normal folder."""
    import torch
    from transformers import AutoTokenizer

    model = _read(file)
    kinds = {tensor.tensor_type.name for tensor in _reader(file).tensors}
    # One kind of half precision beside the norms in float32 is kept; rounded weights go to bfloat16, as
    # models are published.
    plain = kinds - {"F32"} or {"F32"}
    name = PLAIN[plain.pop()] if len(plain) == 1 and plain <= PLAIN.keys() else "bfloat16"
    model = _plain(file, model, getattr(torch, name))
    model.save_pretrained(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, IndexError) as error:
        raise ModelError(
            f"{file}: its tokenizer cannot be read ({type(error).__name__}: {error})", key="tokenizer"
        ) from error
    tokenizer.save_pretrained(folder)
    facts = {name: field.contents() for name, field in _reader(file).fields.items() if _is_short(field)}
    _write_end_tokens(folder, facts)
    write_atomic(folder / "README.md", _card(file, facts))
    said = {"stored_as": _stored_as(file), "unknown_splitting": _unknown_splitting(facts)}
    write_atomic(folder / FACTS, json.dumps(said) + "\n")


def _is_short(field: Any) -> bool:
    """Whether a field is a value, not the vocabulary."""
    return len(field.data) < 64


def _read(file: Path) -> PreTrainedModel:
    """The dequantised model in float32. Raises ModelError where transformers cannot read it, or a weight is
    missing."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        AttributeError,
        TypeError,
        IndexError,
    ) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{file}: transformers cannot read this model ({type(error).__name__}: {first})", key="GGUF file"
        ) from error
    model, report = loaded
    check_report(str(file), report)
    for name, weight in model.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"{file}: the weight {name} holds NaN or infinity. Copy or download the file again",
                key="weights",
            )
    return model  # type: ignore[no-any-return]


def _plain(file: Path, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model without the marks of its origin, which cannot be saved.

    Raises ModelError where a weight does not have the shape that the settings ask for: transformers does not
    look.
    """
    import torch

    weights = {name: weight.to(dtype) for name, weight in model.state_dict().items()}
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    with torch.device("meta"):
        fresh = type(model)(config)
    for name, wanted in fresh.state_dict().items():
        if weights[name].shape != wanted.shape:
            raise ModelError(
                f"{file}: the weight {name} has the shape {list(weights[name].shape)}, but by the settings, "
                f"as transformers reads them, it is {list(wanted.shape)}. Take the model's own folder "
                "instead",
                key="weights",
            )
    fresh.load_state_dict(weights, assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh


def _write_end_tokens(folder: Path, facts: dict[str, Any]) -> None:
    """All tokens that end a turn, into generation_config.json."""
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    known = settings.get("eos_token_id")
    ends = known if isinstance(known, list) else [] if known is None else [known]
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        token = facts.get(f"tokenizer.ggml.{key}")
        if isinstance(token, int) and token not in ends:
            ends.append(token)
    if ends:
        write_atomic(
            path,
            json.dumps({**settings, "eos_token_id": ends if len(ends) > 1 else ends[0]}, indent=2) + "\n",
        )


def _card(file: Path, facts: dict[str, Any]) -> str:
    """The folder's card: where it comes from and under which licence."""
    licence = facts.get("general.license.name") or facts.get("general.license")
    front = f"---\nlicense: {licence}\n---\n" if licence else ""
    return f"{front}# {facts.get('general.name', file.stem)}\n\nRead from `{file.name}` (GGUF).\n"


def _stored_as(file: Path) -> str:
    """How most of the file's weights are held, such as Q4_1 or BF16."""
    counts: dict[str, int] = {}
    for tensor in _reader(file).tensors:
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    return max(counts, key=lambda name: counts[name])


def _unknown_splitting(facts: dict[str, Any]) -> str | None:
    """The file's rule for splitting text, where transformers does not know it and falls back to GPT-2's; None
    elsewhere."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping as known

    rule, kind = facts.get("tokenizer.ggml.pre"), facts.get("tokenizer.ggml.model")
    if kind != "gpt2" or rule is None or rule in _SAME_AS_GPT2 or rule in known.GGUF_PRE_TOKENIZER_SPLITS:
        return None
    return str(rule)
