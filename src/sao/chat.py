"""Models and their chat format: the one place where a message becomes token ids.

Generation, judging and training all encode through `ChatTokenizer`, so they see the same ids: the chat template applied
once, exactly one BOS where the model uses one, and the turn's end as the model itself writes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao.config import EngineConfig
from sao.engines import Message
from sao.errors import ModelError
from sao.types import make_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
_NEEDS_EAGER = ("attn_logit_softcapping",)
_ids_cache: dict[tuple[str, int, int], str] = {}


def find_model(model: str, revision: str | None = None) -> Path:
    """The local folder of a model: builtin:world, a folder, or a hub id (fetched into the hub's cache).

    Raises ModelError where there is none, or where the folder lacks a config or weights.
    """
    if model == WORLD_MODEL:
        return Path(str(resources.files("sao.world").joinpath("model")))
    path = Path(model).expanduser()
    if not path.is_dir():
        if path.exists() or model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            raise ModelError(
                f"no model at {model!r}: it is neither a folder nor a hub id. Give a folder with config.json and "
                "*.safetensors, an id such as Qwen/Qwen3-1.7B, or builtin:world"
            )
        path = _fetch(model, revision)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path}: no config.json, so this is no Hugging Face model folder. Save one with save_pretrained()"
        )
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path}: config.json but no *.safetensors: the weights are missing. Copy them there, or save again"
        )
    return path


def is_local(model: str) -> bool:
    """Whether the model's files are here: the built-in one, or a folder."""
    return model == WORLD_MODEL or Path(model).expanduser().is_dir()


def _fetch(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_MODEL_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"model {model!r} is no local folder and could not be fetched from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the name, the network and, for gated models, HF_TOKEN"
        ) from error


def weights_identity(model: str, revision: str | None = None) -> str:
    """What a model is, whatever its path: the first 16 digits of the SHA-256 over its weights, config and tokenizer files."""
    path = find_model(model, revision)
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    return _digest([*(path / n for n in [*names, "chat_template.jinja"]), *sorted(path.glob("*.safetensors"))])


def _digest(files: list[Path]) -> str:
    """The first 16 digits of the SHA-256 over names and contents of those files that exist; contents are read once a process."""
    digest = hashlib.sha256()
    for file in (f for f in files if f.is_file()):
        stat = file.stat()
        key = (str(file.resolve()), stat.st_size, stat.st_mtime_ns)
        if key not in _ids_cache:
            with file.open("rb") as stream:
                _ids_cache[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}:{_ids_cache[key]}\n".encode())
    return digest.hexdigest()[:16]


def identity_of(config: EngineConfig, model: str, revision: str | None = None) -> str:
    """What the engine that `config` names would run, whatever its path: the weights' hash, or what a server is asked for."""
    if config.name == "scripted":
        return model
    if config.name == "openai":
        # What a server holds cannot be seen. Where it serves a folder that is here, the folder stands for it.
        weights = weights_identity(model) if is_local(model) else "@".join(filter(None, (model, revision)))
        return f"openai:{config.openai.model or ''}:{weights}{_changes(config.openai.extra_body)}"
    lora = Path(config.vllm.lora) if config.name == "vllm" and config.vllm.lora else None
    adapter = f"+{_digest(sorted(lora.glob('adapter_*')))}" if lora else ""
    own = {"quantization": config.vllm.quantization, **config.vllm.extra} if config.name == "vllm" else {}
    return weights_identity(model, revision) + adapter + _changes(own)


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


def pick_device(config: EngineConfig) -> str:
    """The torch device that `config` asks for."""
    import torch

    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    model: str, config: EngineConfig, revision: str | None = None, quantisation: object | None = None
) -> PreTrainedModel:
    """The model in eval mode on its device; `quantisation` is transformers' description of how its weights are held.

    Raises ModelError where it cannot be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    if config.threads:
        torch.set_num_threads(config.threads)
    path, device = find_model(model, revision), pick_device(config)
    dtype = {"auto": "float32" if device == "cpu" else "auto"}.get(config.dtype, config.dtype)
    try:
        settings = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        text_settings = settings.get_text_config()
        soft_capped = any(getattr(text_settings, name, None) is not None for name in _NEEDS_EAGER)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            # SDPA has no soft-capping: such models (Gemma-2) raise under it or are silently wrong.
            attn_implementation="eager" if soft_capped else "sdpa",
            trust_remote_code=config.trust_remote_code,
            **({"quantization_config": quantisation, "device_map": {"": device}} if quantisation else {}),
        )
        loaded = loaded.eval() if quantisation else loaded.eval().to(device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AssertionError, SafetensorError) as error:
        raise ModelError(f"{path}: the model cannot be loaded on {device}: {type(error).__name__}: {error}") from error
    generation = loaded.generation_config
    if generation is not None and not generation.do_sample:
        # Some published folders set a temperature without do_sample: of no effect, but refused when the model is saved.
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            setattr(generation, name, None)
    return loaded  # type: ignore[no-any-return]


class ChatTokenizer:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int] = (), name: str = "model") -> None:
        """Wrap a Hugging Face tokenizer; `eos_ids` are those of the model's generation config.

        Raises ModelError where it has no chat template.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                f"{name}: the tokenizer has no chat template, so this is no chat model. Take the instruct version, or put "
                "the template into chat_template.jinja in the model's folder"
            )
        self.tokenizer: Any = tokenizer
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self._adds_bos = self.bos_id is not None and self.tokenizer("a").input_ids[:1] == [self.bos_id]
        self._special = sorted(
            {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special}, key=len, reverse=True
        )
        eos = {i for i in [*eos_ids, self.tokenizer.eos_token_id] if i is not None}
        self.turn_end_id = self._find_turn_end(eos)
        self.end_ids = frozenset(eos | {self.turn_end_id})
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.turn_end_id if pad is None else pad

    @classmethod
    def load(cls, model: str, config: EngineConfig, revision: str | None = None) -> ChatTokenizer:
        """The chat tokenizer of a model (see `find_model`)."""
        from transformers import AutoTokenizer, GenerationConfig

        path = find_model(model, revision)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"{path}: the tokenizer cannot be loaded: {type(error).__name__}: {error}") from error
        eos: Any = None
        if (path / "generation_config.json").is_file():
            eos = GenerationConfig.from_pretrained(path).eos_token_id
        return cls(tokenizer, eos if isinstance(eos, list) else [] if eos is None else [eos], model)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a chat up to and including the header of the assistant's next turn, with exactly one BOS."""
        return self._one_bos(self._render(messages, True))

    def reply_ids(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of an assistant's turn `text` after `messages`, its end included."""
        text = self.clean(text)
        prompt = self.prompt_ids(messages)
        whole = self._one_bos(self._render([*messages, Message("assistant", text)], False))
        if whole[: len(prompt)] == prompt:
            reply = whole[len(prompt) :]
            for i, token in enumerate(reply):
                if token in self.end_ids:
                    return reply[: i + 1]
        # Some templates write an assistant's turn otherwise than they open one (an empty reasoning block, say).
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.turn_end_id]

    def choice_ids(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[int, ...]:
        """The first token of each choice as the assistant would write it. Raises ModelError where two are the same."""
        ids = tuple(self.reply_ids(messages, choice)[0] for choice in choices)
        if len(set(ids)) != len(ids):
            raise ModelError(
                f"the choices {list(choices)} begin with the same token for this model; give others with judging.choices"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def clean(self, text: str) -> str:
        """`text` without the model's special tokens, so that no text can end a turn or open another."""
        before = None
        while before != text:  # taking one out may join the halves of another
            before = text
            for token in self._special:
                text = text.replace(token, "")
        return text

    def _render(self, messages: Sequence[Message], generate: bool) -> list[int]:
        turns = [{"role": m.role, "content": self.clean(m.content)} for m in messages]
        if turns and turns[0]["role"] == "system" and not self.takes_system:
            system, user, *rest = turns
            turns = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return self._template(turns, generate)

    def _template(self, turns: list[dict[str, str]], generate: bool) -> list[int]:
        # Models that can think before they speak are asked not to: a marker or verdict must come first. Templates that
        # print the date get a fixed one, so that a run resumed tomorrow sees the same ids.
        ids = self.tokenizer.apply_chat_template(
            turns,
            add_generation_prompt=generate,
            tokenize=True,
            return_dict=False,
            enable_thinking=False,
            date_string="26 Jul 2024",
        )
        return list(ids)

    @property
    def takes_system(self) -> bool:
        """Whether the template writes a system message (Gemma's raises an error, some leave it out)."""
        if not hasattr(self, "_system"):
            from jinja2.exceptions import TemplateError

            try:
                with_it = self._template([{"role": "system", "content": "7"}, {"role": "user", "content": "a"}], True)
                without = self._template([{"role": "system", "content": "4"}, {"role": "user", "content": "a"}], True)
                self._system = with_it != without
            except TemplateError:
                self._system = False
        return self._system

    def _one_bos(self, ids: list[int]) -> list[int]:
        if self.bos_id is None:
            return ids
        if ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids] if self._adds_bos else ids
        while ids[1:2] == [self.bos_id]:
            ids = ids[1:]
        return ids

    def _find_turn_end(self, eos: set[int]) -> int:
        """The token with which the template ends an assistant's turn."""
        turns = [{"role": "user", "content": "a"}]
        prompt = self._template(turns, True)
        whole = self._template([*turns, {"role": "assistant", "content": "b"}], False)
        special = {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        tail = whole[len(prompt) :] if whole[: len(prompt)] == prompt else whole[-2:]
        for token in tail:
            if token in eos or token in special:
                return token
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the chat template ends no turn with a special token and the tokenizer has no EOS token")
        return int(self.tokenizer.eos_token_id)
