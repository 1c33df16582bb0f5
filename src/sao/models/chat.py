"""Models and their chat format: the one place where a message becomes token ids.

Generation, judging and training all encode through `ChatTokenizer`, so they see the same ids: the chat
template applied once, exactly one BOS where the model uses one, and the turn's end as the model itself writes
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sao.config import EngineConfig
from sao.errors import ModelError
from sao.models import vocabulary
from sao.models.locate import embedding_rows, find_model
from sao.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HERE = "SAO0TURN0TEXT"
"""Stands for the text of a turn, to find where a template puts it."""


class ChatTokenizer:
    """A tokenizer and its chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int] = (),
        name: str = "model",
        rows: int | None = None,
    ) -> None:
        """Wrap a Hugging Face tokenizer; `eos_ids` are those of the model's generation config, `rows` those
        of its embedding.

        Raises ModelError where it has no chat template, or where a user's text would not reach the model.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                f"{name}: the tokenizer has no chat template, so this is no chat model. Take the instruct "
                "version, or put "
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
        vocabulary.check_words(
            tokenizer, name, words, self._template([{"role": "user", "content": words}], True)
        )
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
            raise ModelError(
                f"{path}: the tokenizer cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        eos: Any = None
        if (path / "generation_config.json").is_file():
            eos = GenerationConfig.from_pretrained(path).eos_token_id
        return cls(
            tokenizer,
            eos if isinstance(eos, list) else [] if eos is None else [eos],
            model,
            embedding_rows(path),
        )

    def prompt_ids(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """The ids of a chat up to and including the header of the assistant's next turn, with exactly one
        BOS, and the beginning of that turn where one is given."""
        ids = self._one_bos(self._render(messages, True))
        return (
            ids + list(self.tokenizer(self.clean(prefill), add_special_tokens=False).input_ids)
            if prefill
            else ids
        )

    def user_turn_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a chat up to and including the header of the user's next turn: the model then writes as
        the user (Magpie, arXiv 2406.08464).

        Raises ModelError where the template has no place for a system message, or ends no turn of the user.
        """
        if messages and messages[0].role == "system" and not self.takes_system:
            raise ModelError(
                f"{self.name}: its chat template takes no system message, so nobody can be told whom the "
                "model speaks with. Take "
                "prompts.method instruct (with prompts.prefill true for a small model)"
            )
        opening, _ = self._around_user_text(messages)
        # A space after the header belongs to the first word.
        ids = self.tokenizer(opening.rstrip(" "), add_special_tokens=False).input_ids
        return self._one_bos(list(ids))

    @property
    def user_ends(self) -> tuple[frozenset[int], tuple[str, ...]]:
        """What ends a turn of the user: token ids (any special token does), and texts where the template ends
        it by words."""
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
        turns = [
            {"role": m.role, "content": self.clean(m.content)} for m in [*messages, Message("user", _HERE)]
        ]
        text = str(self._apply(turns, True, tokenize=False))
        if text.count(_HERE) != 1:
            raise ModelError(
                f"{self.name}: its chat template writes a user's text {text.count(_HERE)} times, so its turn "
                "cannot be left "
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
        # Some templates write an assistant's turn otherwise than they open one (an empty reasoning block,
        # say).
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.turn_end_id]

    def choice_ids(
        self, messages: Sequence[Message], choices: Sequence[str], prefill: str = ""
    ) -> tuple[list[int], tuple[int, ...]]:
        """The ids of a chat, with the beginning of the assistant's turn, and the token by which each choice
        goes on from there.

        Raises ModelError where two choices go on with the same token.
        """
        if prefill:
            # Text and choice may share a token (a space and a digit), so each whole is encoded and cut where
            # they part.
            clean = self.clean(prefill)
            wholes = [
                self.tokenizer(clean + choice, add_special_tokens=False).input_ids for choice in choices
            ]
            same = _common_length(wholes)
            prompt = [*self.prompt_ids(messages), *wholes[0][:same]]
            ids = tuple(whole[same] if len(whole) > same else -1 for whole in wholes)
        else:
            prompt = self.prompt_ids(messages)
            ids = tuple(self.reply_ids(messages, choice)[0] for choice in choices)
        if len(set(ids)) != len(ids) or -1 in ids:
            raise ModelError(
                f"the choices {list(choices)} begin with the same token for this model; give others with "
                "judging.choices"
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
        # Models that can think before they speak are asked not to: a marker or verdict must come first.
        # Templates that print the date get a fixed one, so that a run resumed tomorrow sees the same ids.
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
                with_it = self._template(
                    [{"role": "system", "content": "7"}, {"role": "user", "content": "a"}], True
                )
                without = self._template(
                    [{"role": "system", "content": "4"}, {"role": "user", "content": "a"}], True
                )
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
            raise ModelError(
                "the chat template ends no turn with a special token and the tokenizer has no EOS token"
            )
        return int(self.tokenizer.eos_token_id)


def _common_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return next((i for i, column in enumerate(zip(*rows)) if len(set(column)) > 1), min(map(len, rows)))
