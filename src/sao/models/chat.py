"""Models and their chat format: the one place where a message becomes token ids.

Generation, judging and training all encode through `ChatTokenizer`, so they see the same ids: the chat template applied
once, exactly one BOS where the model uses one, and the turn's end as the model itself writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao.config import EngineConfig
from sao.engines import Message
from sao.errors import ModelError
from sao.models import gguf, vocabulary
from sao.models.weights import check_adapter, check_report, digest_of
from sao.records import make_id

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
_NOT_CHAT = re.compile(r"For(Sequence|Token)Classification$|ForMaskedLM$|ForQuestionAnswering$|RewardModel$")
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, AssertionError, AttributeError, TypeError)
"""What transformers raises for files that it cannot read (SafetensorError too, whose package is imported late)."""
_HERE = "SAO0TURN0TEXT"
"""Stands for the text of a turn, to find where a template puts it."""


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
        if path.exists() or model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            raise ModelError(
                f"no model at {model!r}: it is neither a folder nor a hub id. Give a folder with config.json and "
                "*.safetensors, a .gguf file, an id such as Qwen/Qwen3-1.7B, or builtin:world"
            )
        path = _fetch(model, revision)
    if not (path / "config.json").is_file():
        held = sorted(path.glob("*.gguf"))
        raise ModelError(
            f"{path}: no config.json, so this is no Hugging Face model folder. "
            + (f"It holds a GGUF file: give that ({held[0]})" if held else "Save one with save_pretrained()")
        )
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path}: config.json but no *.safetensors: the weights are missing. Copy them there, or save again"
        )
    return path


def is_local(model: str) -> bool:
    """Whether the model's files are here: the built-in one, a folder, or a GGUF file."""
    path = Path(model).expanduser()
    return model == WORLD_MODEL or path.is_dir() or (gguf.is_gguf(model) and path.is_file())


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
    """What a model is, whatever its path: the first 16 digits of the SHA-256 over its weights, config and tokenizer files.

    Raises ModelError where a weight holds NaN or infinity.
    """
    path = find_model(model, revision)
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    if gguf.is_gguf(model):
        names = ["tokenizer.json"]  # the other files name the version of transformers that read it
    return digest_of([*(path / n for n in [*names, "chat_template.jinja"]), *sorted(path.glob("*.safetensors"))])


def identity_of(config: EngineConfig, model: str, revision: str | None = None) -> str:
    """What the engine that `config` names would run, whatever its path: the weights' hash, or what a server is asked for."""
    if config.name == "scripted":
        return model
    if config.name == "openai":
        # What a server holds cannot be seen. Where it serves a folder that is here, the folder stands for it.
        weights = weights_identity(model) if is_local(model) else "@".join(filter(None, (model, revision)))
        return f"openai:{config.openai.model or ''}:{weights}{_changes(config.openai.extra_body)}"
    lora = Path(config.vllm.lora) if config.name == "vllm" and config.vllm.lora else None
    adapter = f"+{digest_of(sorted(lora.glob('adapter_*')))}" if lora else ""
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

    if config.threads:
        torch.set_num_threads(config.threads)
    path, device = find_model(model, revision), pick_device(config)
    settings = read_config(path, config)
    soft_capped = any(getattr(settings.get_text_config(), name, None) is not None for name in _NEEDS_EAGER)
    loaded = _from_pretrained(
        path,
        config,
        device,
        dtype={"auto": "float32" if device == "cpu" else "auto"}.get(config.dtype, config.dtype),
        # SDPA has no soft-capping: such models (Gemma-2) raise under it or are silently wrong.
        attn_implementation="eager" if soft_capped else "sdpa",
        **({"quantization_config": quantisation, "device_map": {"": device}} if quantisation else {}),
    )
    loaded = loaded.eval() if quantisation else loaded.eval().to(device)
    generation = loaded.generation_config
    if generation is not None and not generation.do_sample:
        # Some published folders set a temperature without do_sample: of no effect, but refused when the model is saved.
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            setattr(generation, name, None)
    return loaded  # type: ignore[no-any-return]


def read_config(path: Path, config: EngineConfig) -> Any:
    """The settings of the model in a folder. Raises ModelError where they are unreadable, or those of no chat model."""
    from transformers import AutoConfig

    try:
        settings: Any = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except LOAD_ERRORS as error:
        raise ModelError(f"{path}/config.json: cannot be read: {type(error).__name__}: {error}") from error
    _refuse_classifier(path, settings.architectures)
    return settings


def _refuse_classifier(path: Path, architectures: Any) -> None:
    other = next((str(name) for name in architectures or [] if _NOT_CHAT.search(str(name))), None)
    if other is not None:
        raise ModelError(
            f"{path}: a {other}, which classifies and writes no text. Give a chat model (…ForCausalLM); a reward model judges "
            "by judging.method reward"
        )


def check_model(
    model: str, config: EngineConfig, revision: str | None = None, as_user: Sequence[Message] | None = None
) -> None:
    """Raise ModelError where a local model cannot be used: weights missing, left over, of another shape or not finite, or a
    tokenizer that does not fit; and, where `as_user` messages are given, where the user's turn after them cannot be left open.
    Reads names and shapes only (and hashes the files): nothing is loaded into memory."""
    path = find_model(model, revision)
    _refuse_classifier(path, config_json(path).get("architectures"))
    if config.name != "vllm":  # which knows more kinds of models than transformers
        read_config(path, config)
    if _is_known(path, config):
        _from_pretrained(path, config, "meta", device_map="meta")
    weights_identity(model, revision)
    chat = ChatTokenizer.load(model, config, revision)
    if as_user is not None:
        chat.user_turn_ids(as_user)
    if config.name == "vllm" and config.vllm.lora is not None:
        check_adapter(Path(config.vllm.lora), path)


def _is_known(path: Path, config: EngineConfig) -> bool:
    """Whether transformers can tell what the folder's weights should be called: not of quantised ones, nor where it does not know
    the model as a causal language model by the name that its makers gave it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        settings = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        kind: Any = AutoModelForCausalLM._model_mapping[type(settings)]
    except LOAD_ERRORS:
        return False
    return kind.__name__ in (settings.architectures or []) and getattr(settings, "quantization_config", None) is None


def config_json(path: Path) -> dict[str, Any]:
    """What stands in a folder's config.json. Raises ModelError where that is no JSON object."""
    try:
        found = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}/config.json: cannot be read ({error}). Copy it from the model's source") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}/config.json: no JSON object. Copy it from the model's source")
    return found


def _rows(path: Path) -> int | None:
    """The number of rows of the embedding by config.json, None where it does not say."""
    settings = config_json(path)
    inner = settings.get("text_config")
    rows = {**settings, **(inner if isinstance(inner, dict) else {})}.get("vocab_size")
    return rows if isinstance(rows, int) else None


def _from_pretrained(path: Path, config: EngineConfig, device: str, **options: Any) -> Any:
    """The causal language model in a folder, every weight of it from the folder's files."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            path,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
    except (*LOAD_ERRORS, SafetensorError) as error:
        raise ModelError(f"{path}: the model cannot be loaded on {device}: {type(error).__name__}: {error}") from error
    loaded, report = found
    check_report(str(path), report)
    return loaded


class ChatTokenizer:
    """A tokenizer and its chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int] = (),
        name: str = "model",
        rows: int | None = None,
    ) -> None:
        """Wrap a Hugging Face tokenizer; `eos_ids` are those of the model's generation config, `rows` those of its embedding.

        Raises ModelError where it has no chat template, or where a user's text would not reach the model.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                f"{name}: the tokenizer has no chat template, so this is no chat model. Take the instruct version, or put "
                "the template into chat_template.jinja in the model's folder"
            )
        self.tokenizer: Any = tokenizer
        self.name = name
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self._adds_bos = self.bos_id is not None and self.tokenizer("a").input_ids[:1] == [self.bos_id]
        added = self.tokenizer.added_tokens_decoder
        self._special = sorted({t.content for t in added.values() if t.special}, key=len, reverse=True)
        self._special_ids = {i for i, t in added.items() if t.special}
        eos = {i for i in [*eos_ids, self.tokenizer.eos_token_id] if i is not None}
        words = vocabulary.words_of(tokenizer, name)
        vocabulary.check_words(tokenizer, name, words, self._template([{"role": "user", "content": words}], True))
        self.turn_end_id = self._find_turn_end(eos)
        self.end_ids = frozenset(eos | {self.turn_end_id})
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.turn_end_id if pad is None else pad
        if rows is not None:
            said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            vocabulary.check_rows(tokenizer, name, rows, {*self._template(said, True), *self.end_ids})

    @classmethod
    def load(cls, model: str, config: EngineConfig, revision: str | None = None) -> ChatTokenizer:
        """The chat tokenizer of a model (see `find_model`)."""
        from transformers import AutoTokenizer, GenerationConfig

        path = find_model(model, revision)
        vocabulary.check_files(path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"{path}: the tokenizer cannot be loaded: {type(error).__name__}: {error}") from error
        eos: Any = None
        if (path / "generation_config.json").is_file():
            eos = GenerationConfig.from_pretrained(path).eos_token_id
        return cls(tokenizer, eos if isinstance(eos, list) else [] if eos is None else [eos], model, _rows(path))

    def prompt_ids(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """The ids of a chat up to and including the header of the assistant's next turn, with exactly one BOS, and the beginning
        of that turn where one is given."""
        ids = self._one_bos(self._render(messages, True))
        return ids + list(self.tokenizer(self.clean(prefill), add_special_tokens=False).input_ids) if prefill else ids

    def user_turn_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a chat up to and including the header of the user's next turn: the model then writes as the user (Magpie,
        arXiv 2406.08464).

        Raises ModelError where the template has no place for a system message, or ends no turn of the user.
        """
        if messages and messages[0].role == "system" and not self.takes_system:
            raise ModelError(
                f"{self.name}: its chat template takes no system message, so nobody can be told whom the model speaks with. Take "
                "prompts.method instruct (with prompts.prefill true for a small model)"
            )
        opening, _ = self._around_user_text(messages)
        # A space after the header belongs to the first word.
        ids = self.tokenizer(opening.rstrip(" "), add_special_tokens=False).input_ids
        return self._one_bos(list(ids))

    @property
    def user_ends(self) -> tuple[frozenset[int], tuple[str, ...]]:
        """What ends a turn of the user: token ids (any special token does), and texts where the template ends it by words."""
        if not hasattr(self, "_user_ends"):
            try:
                _, closing = self._around_user_text([Message("system", "a")] if self.takes_system else [])
            except ModelError:
                closing = ""  # user_turn_ids says so where it is asked
            first = self.tokenizer(closing.strip(), add_special_tokens=False).input_ids[:1]
            if first and first[0] in self.tokenizer.added_tokens_decoder:
                ends, line = {*self.end_ids, *self._special_ids, *first}, ""
            else:
                ends, line = {*self.end_ids, *self._special_ids}, closing.strip().split("\n")[0]
            self._user_ends = frozenset(ends), (line,) if line else ()
        return self._user_ends

    def _around_user_text(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What the template writes before and after the text of a user's turn that follows `messages`."""
        turns = [{"role": m.role, "content": self.clean(m.content)} for m in [*messages, Message("user", _HERE)]]
        text = str(self._apply(turns, True, tokenize=False))
        if text.count(_HERE) != 1:
            raise ModelError(
                f"{self.name}: its chat template writes a user's text {text.count(_HERE)} times, so its turn cannot be left "
                "open. Take prompts.method instruct"
            )
        opening, closing = text.split(_HERE)
        return opening, closing

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

    def choice_ids(
        self, messages: Sequence[Message], choices: Sequence[str], prefill: str = ""
    ) -> tuple[list[int], tuple[int, ...]]:
        """The ids of a chat, with the beginning of the assistant's turn, and the token by which each choice goes on from there.

        Raises ModelError where two choices go on with the same token.
        """
        if prefill:
            # Text and choice may share a token (a space and a digit), so each whole is encoded and cut where they part.
            clean = self.clean(prefill)
            wholes = [self.tokenizer(clean + choice, add_special_tokens=False).input_ids for choice in choices]
            same = _common_length(wholes)
            prompt = [*self.prompt_ids(messages), *wholes[0][:same]]
            ids = tuple(whole[same] if len(whole) > same else -1 for whole in wholes)
        else:
            prompt = self.prompt_ids(messages)
            ids = tuple(self.reply_ids(messages, choice)[0] for choice in choices)
        if len(set(ids)) != len(ids) or -1 in ids:
            raise ModelError(
                f"the choices {list(choices)} begin with the same token for this model; give others with judging.choices"
            )
        return prompt, ids

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
        return list(self._apply(turns, generate, tokenize=True))

    def _apply(self, turns: list[dict[str, str]], generate: bool, tokenize: bool) -> Any:
        # Models that can think before they speak are asked not to: a marker or verdict must come first. Templates that
        # print the date get a fixed one, so that a run resumed tomorrow sees the same ids.
        return self.tokenizer.apply_chat_template(
            turns,
            add_generation_prompt=generate,
            tokenize=tokenize,
            return_dict=False,
            enable_thinking=False,
            date_string="26 Jul 2024",
        )

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
        special = self._special_ids
        tail = whole[len(prompt) :] if whole[: len(prompt)] == prompt else whole[-2:]
        for token in tail:
            if token in eos or token in special:
                return token
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the chat template ends no turn with a special token and the tokenizer has no EOS token")
        return int(self.tokenizer.eos_token_id)


def _common_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return next((i for i, column in enumerate(zip(*rows)) if len(set(column)) > 1), min(map(len, rows)))
