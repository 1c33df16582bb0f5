"""Where a model lies, what it is whatever its path, and its licence."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from sao.config import ChatConfig, EngineConfig
from sao.errors import ModelError
from sao.models import gguf
from sao.models.folder import check_folder, read_settings
from sao.models.template import template_text
from sao.models.weights import digest_of
from sao.records import make_id

WORLD_MODEL = "builtin:world"


_MODEL_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.model",
    "*.jinja",
    "*.txt",
    "*.py",
    "README.md",
]


LOAD_ERRORS = Exception
"""What transformers raises for files that it cannot read: whatever the part of it, of tokenizers, safetensors
or the hub's package raises that finds them broken."""


def find_model(model: str, revision: str | None = None) -> Path:
    """The local folder of a model: builtin:world, a folder, a GGUF file (see `sao.models.gguf`), or a hub id.

    Raises ModelError where there is none, or where the folder lacks a config or weights.
    """
    if model == WORLD_MODEL:
        return Path(str(resources.files("sao.toy_world").joinpath("model")))
    path = Path(model).expanduser()
    if gguf.is_gguf(model):
        return gguf.model_folder(path)
    if not path.is_dir():
        if (
            path.exists()
            or model.startswith((".", "/", "~"))
            or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model)
        ):
            raise ModelError(
                f"no model at {model!r}: it is neither a folder nor a hub id. Give a folder with config.json "
                "and *.safetensors, a .gguf file, an id such as Qwen/Qwen3-1.7B, or builtin:world",
                key="model",
            )
        path = _fetch(model, revision)
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: {_what_else(path)}", key="config.json")
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path}: config.json but no *.safetensors: the weights are missing. Copy them there, or save "
            "again",
            key="weights",
        )
    check_folder(path)
    return path


def _what_else(path: Path) -> str:
    """What a folder without config.json is, and what to do."""
    if (path / "adapter_config.json").is_file():
        base = read_settings(path / "adapter_config.json").get("base_model_name_or_path")
        return (
            f"an adapter (LoRA) of {base}, not a model. Merge it into that (PEFT's merge_and_unload) and "
            f"give the result; or write with --model {base} --engine.name vllm --engine.vllm.lora {path}"
        )
    held = sorted(path.glob("*.gguf"))
    hint = f"It holds a GGUF file: give that ({held[0]})" if held else "Save one with save_pretrained()"
    return f"no config.json, so this is no Hugging Face model folder. {hint}"


def is_local(model: str) -> bool:
    """Whether the model's files are here: the built-in one, a folder, or a GGUF file."""
    path = Path(model).expanduser()
    return model == WORLD_MODEL or path.is_dir() or (gguf.is_gguf(model) and path.is_file())


def _fetch(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_MODEL_FILES))
    except (  # ImportError: a SOCKS proxy needs a package
        HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError, ValueError, ImportError,
    ) as error:  # fmt: skip
        raise ModelError(
            f"model {model!r} is no local folder and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Check the name, the network and, for "
            "gated models, HF_TOKEN",
            key="model",
        ) from error


def weights_identity(model: str, revision: str | None = None) -> str:
    """What a model is, whatever its path: the first 16 digits of the SHA-256 over its weights, config and
    tokenizer files.

    Raises ModelError where a weight holds NaN or infinity.
    """
    path = find_model(model, revision)
    names = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    if gguf.is_gguf(model):
        names = ["tokenizer.json"]  # the other files name the version of transformers that read it
    return digest_of(
        [*(path / n for n in [*names, "chat_template.jinja"]), *sorted(path.glob("*.safetensors"))]
    )


def identity_of(
    config: EngineConfig,
    model: str,
    revision: str | None = None,
    chat: ChatConfig | None = None,
    weights: str | None = None,
) -> str:
    """What the engine that `config` names would run, whatever its path: the weights' hash, or what a server
    is asked for; and what the recipe says of its chat template (`chat`). `weights` takes the place of the
    hash."""
    if config.name == "scripted":
        return model
    if config.name == "openai":
        # What a server holds cannot be seen. Where it serves a folder that is here, the folder stands for it.
        weights = weights_identity(model) if is_local(model) else "@".join(filter(None, (model, revision)))
        asked = _changes(config.openai.extra_body) + chat_identity(chat)
        return f"openai:{config.openai.model or ''}:{weights}{asked}"
    lora = Path(config.vllm.lora) if config.name == "vllm" and config.vllm.lora else None
    adapter = f"+{digest_of(sorted(lora.glob('adapter_*')))}" if lora else ""
    own = {"quantization": config.vllm.quantization, **config.vllm.extra} if config.name == "vllm" else {}
    return (weights or weights_identity(model, revision)) + adapter + _changes(own) + chat_identity(chat)


def chat_identity(chat: ChatConfig | None) -> str:
    """What the recipe's own chat template and what it is told add to an identity; nothing where none is
    set."""
    if chat is None:
        return ""
    return _changes(
        {
            "chat_template": template_text(chat),
            "template_args": chat.template_args or None,
            "reasoning_tokens": chat.reasoning_tokens or None,
        }
    )


def _changes(settings: dict[str, Any]) -> str:
    """What settings that change a model's words add to its identity; nothing where none is set."""
    given = {key: value for key, value in settings.items() if value is not None}
    return f"+{make_id(json.dumps(given, sort_keys=True))}" if given else ""


def model_licence(model: str, revision: str | None = None) -> str:
    """The licence that a model's own card names in its front matter."""
    if model == WORLD_MODEL:
        return "Apache-2.0"
    card = find_model(model, revision) / "README.md"
    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    front = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    named = re.search(r"^license(?:_name)?:[ \t]*(\S.*)$", front, re.MULTILINE)
    return named[1].strip() if named else "unknown: see the base model's own card"


def embedding_rows(path: Path) -> int | None:
    """The number of rows of the embedding by config.json, None where it does not say."""
    settings = read_settings(path / "config.json")
    inner = settings.get("text_config")
    rows = {**settings, **(inner if isinstance(inner, dict) else {})}.get("vocab_size")
    return rows if isinstance(rows, int) else None
