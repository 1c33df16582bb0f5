"""Models and their chat format: the one place where a message becomes token ids.

Generation, judging and training all encode through `ChatTokenizer`, so they see the same ids: the chat
template applied once, exactly one BOS where the model uses one, and the turn's end as the model itself writes
it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao.config import ChatConfig, EngineConfig
from sao.errors import ModelError, SAOError
from sao.models import vocabulary
from sao.models.locate import LOAD_ERRORS, embedding_rows, find_model
from sao.models.template import ChatTemplate
from sao.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote. `start` tokens of it are `reasoning`, the others are the answer `text`; `kept` says
    whether the ids may stand in a reply to be learnt: not where they hold reasoning that nobody asked for."""

    text: str
    reasoning: str
    start: int
    kept: bool


class ChatTokenizer:
    """A tokenizer and its chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int] = (),
        name: str = "model",
        rows: int | None = None,
        template: ChatConfig | None = None,
    ) -> None:
        """Wrap a Hugging Face tokenizer; `eos_ids` are those of the model's generation config, `rows` those
        of its embedding, `template` the recipe's section `chat`.

        Raises ModelError where it has no chat template, or where a user's text would not reach the model.
        """
        self._template = ChatTemplate(tokenizer, name, template)
        self.tokenizer: Any = tokenizer
        self.name = name
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self._adds_bos = self.bos_id is not None and self.tokenizer("a").input_ids[:1] == [self.bos_id]
        self._check_words()
        eos = {token for token in [*eos_ids, self.tokenizer.eos_token_id] if token is not None}
        self.turn_end_id = self._template.turn_end_id(eos)
        self.end_ids = frozenset(eos | {self.turn_end_id})
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.turn_end_id if pad is None else pad
        if rows is not None:
            messages = [Message("user", "a")]
            written = {*self.prompt_ids(messages), *self.reply_ids(messages, "b"), *self.end_ids}
            vocabulary.check_rows(tokenizer, name, rows, written)

    @classmethod
    def load(
        cls,
        model: str,
        config: EngineConfig,
        revision: str | None = None,
        template: ChatConfig | None = None,
    ) -> ChatTokenizer:
        """The chat tokenizer of a model (see `find_model`); `template` is the recipe's section `chat`, for
        the recipe's own model."""
        from transformers import AutoTokenizer

        path = find_model(model, revision)
        vocabulary.check_files(path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
            return cls(tokenizer, _generation_eos_ids(path), model, embedding_rows(path), template)
        except SAOError:
            raise
        except LOAD_ERRORS as error:
            raise ModelError(
                f"{path}: the tokenizer cannot be used: {type(error).__name__}: {error}. Look at "
                "tokenizer_config.json, or copy the tokenizer's files from the model's source",
                key="tokenizer",
            ) from error

    @property
    def takes_system(self) -> bool:
        """Whether the template writes a system message (Gemma's raises an error, some leave it out)."""
        return self._template.takes_system

    def prompt_ids(self, messages: Sequence[Message], prefill: str = "", direct: bool = False) -> list[int]:
        """The ids of a chat up to where the assistant's next text begins, with exactly one BOS, and the
        beginning of that text where one is given. Where the recipe asks for reasoning a text that has not
        begun may begin with it, unless it is to be `direct`."""
        text = self._template.prompt(messages, direct=direct or bool(prefill))
        ids = self._one_bos(self._text_ids(text))
        return [*ids, *self._following(text, ids, self.clean(prefill))] if prefill else ids

    def text(self, messages: Sequence[Message], begun: bool = False) -> str:
        """The text of a chat up to where the assistant's next text begins, or, where its last message is the
        assistant's and has only `begun`, up to the end of that."""
        if not begun:
            return self._template.prompt(messages)
        return self._template.with_reply(messages[:-1], messages[-1].content)

    def user_turn_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a chat up to and including the header of the user's next turn: the model then writes as
        the user (Magpie, arXiv 2406.08464).

        Raises ModelError where the template has no place for a system message, or ends no turn of the user.
        """
        if messages and messages[0].role == "system" and not self.takes_system:
            raise ModelError(
                f"{self.name}: its chat template takes no system message, so nobody can be told whom the "
                "model speaks with. Take prompts.method instruct (with prompts.prefill true for a small "
                "model)",
                key="prompts.method",
            )
        opening, _ = self._template.around_user_text(messages)
        # A space after the header belongs to the first word.
        return self._one_bos(self._text_ids(opening.rstrip(" ")))

    @cached_property
    def user_ends(self) -> tuple[frozenset[int], tuple[str, ...]]:
        """What ends a turn of the user: token ids (any special token does), and texts where the template ends
        it by words."""
        system = [Message("system", "a")] if self.takes_system else []
        try:
            _, closing = self._template.around_user_text(system)
        except ModelError:
            closing = ""  # user_turn_ids says so where it is asked
        closing = closing.strip()
        ends = {*self.end_ids, *self._template.control_ids}
        first = self._text_ids(closing)[:1]
        if first and first[0] in self.tokenizer.added_tokens_decoder:
            return frozenset({*ends, *first}), ()
        line = closing.split("\n")[0]
        return frozenset(ends), (line,) if line else ()

    def ends(self, as_user: bool) -> frozenset[int]:
        """The tokens that end a turn of the assistant, or of the user."""
        return self.user_ends[0] if as_user else self.end_ids

    def reply_ids(self, messages: Sequence[Message], text: str, direct: bool = False) -> list[int]:
        """The ids of an assistant's turn `text` after `messages`, its end included; after a prompt without
        reasoning where `direct`. Reasoning in it is left out, or is one block where the recipe asks for
        it."""
        opened = self._template.prompt(messages, direct)
        closing = self._template.closing(self.turn_end_id)
        whole = self._template.with_reply(messages, text, direct) + closing
        prompt, ids = (self._one_bos(self._text_ids(part)) for part in (opened, whole))
        fits = ids[: len(prompt)] == prompt  # else the header and the text share a token
        reply = ids[len(prompt) :] if fits else self._text_ids(whole[len(opened) :])
        return reply if closing else [*reply, self.turn_end_id]

    def choice_ids(
        self, messages: Sequence[Message], choices: Sequence[str], prefill: str = ""
    ) -> tuple[list[int], tuple[int, ...]]:
        """The ids of a chat, with the beginning of the assistant's turn, and the token by which each choice
        goes on from there.

        Raises ModelError where two choices go on with the same token.
        """
        opened = self._template.prompt(messages, direct=True)
        prompt = self._one_bos(self._text_ids(opened))
        if prefill:
            # Text and choice may share a token (a space and a digit), so each whole is encoded and cut where
            # they part.
            begun = self.clean(prefill)
            wholes = [self._following(opened, prompt, begun + choice) for choice in choices]
        else:
            wholes = [self.reply_ids(messages, choice, direct=True) for choice in choices]
        common = _common_length(wholes)
        if not prefill and self.decode(wholes[0][:common]).strip():
            common = 0  # the choices share more than the space before a reply
        prompt += wholes[0][:common]
        ids = tuple(whole[common] if len(whole) > common else -1 for whole in wholes)
        if len(set(ids)) != len(ids) or -1 in ids:
            raise ModelError(
                f"the choices {list(choices)} begin with the same token for this model; give others with "
                "judging.choices",
                key="judging.choices",
            )
        return prompt, ids

    def continuation_ids(
        self, context: str | Sequence[Message], continuations: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """The ids of a plain text outside any chat (with the BOS that the tokenizer puts before a text), and
        those of each text that may follow it; or those of a chat, and of each whole reply.

        Context and continuation are encoded together and cut where the context's own ids end, as lm-eval
        does, so that a token across the border is part of the continuation. An empty context is a BOS, or an
        end of turn where there is none.
        """
        if not isinstance(context, str):
            return self.prompt_ids(context), [self.reply_ids(context, text) for text in continuations]
        opening = self._plain_ids(context)
        start = opening or [self.turn_end_id if self.bos_id is None else self.bos_id]
        return start, [self._plain_ids(context + text)[len(opening) :] for text in continuations]

    def _plain_ids(self, text: str) -> list[int]:
        ids = self._text_ids(self.clean(text))
        return self._one_bos(ids) if self._adds_bos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @property
    def thinks(self) -> bool:
        """Whether the recipe asks the model to think before it answers."""
        return self._template.thinks

    def split(self, text: str) -> tuple[str, str]:
        """The reasoning in a reply, and the answer, without control text; no reasoning in a family that has
        none."""
        reasoning, answer = self._template.split(text)
        return self.clean(reasoning), self.clean(answer)

    def with_reasoning(self, reasoning: str, text: str) -> str:
        """A reply as this family writes it, its reasoning first; `split` takes it apart again."""
        return self._template.joined(reasoning, text)

    def read(self, ids: Sequence[int], as_user: bool = False) -> Reply:
        """Sampled `ids`, their end taken off: the text, apart from the reasoning of a reply."""
        shown = str(self.tokenizer.decode(list(ids)))
        answer = shown if as_user else self._template.answer(shown)
        if answer == shown:
            return Reply(self.clean(self.decode(ids)), "", 0, True)
        before = len(shown) - len(answer)
        start = bisect_left(range(len(ids)), before, key=lambda n: len(self.tokenizer.decode(list(ids[:n]))))
        reasoning, _ = self._template.split(self._template.opens_block + shown)
        return Reply(self.clean(answer), self.clean(reasoning), start, self.thinks)

    def clean(self, text: str) -> str:
        """`text` without the model's control text, so that no text can end a turn or open another."""
        return self._template.clean(text)

    def _following(self, opened: str, ids: list[int], text: str) -> list[int]:
        """The ids of a reply's beginning `text` after a prompt, given as text and as `ids`."""
        whole = self._one_bos(self._text_ids(opened + self._template.gap + text))
        return whole[len(ids) :] if whole[: len(ids)] == ids else self._text_ids(text)

    def _text_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _one_bos(self, ids: list[int]) -> list[int]:
        if self.bos_id is None:
            return ids
        if ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids] if self._adds_bos else ids
        while ids[1:2] == [self.bos_id]:
            ids = ids[1:]
        return ids

    def _check_words(self) -> None:
        """Raise ModelError where a user's words would not reach the model."""
        words = vocabulary.words_of(self.tokenizer, self.name)
        ids = self.prompt_ids([Message("user", words)])
        vocabulary.check_words(self.tokenizer, self.name, words, ids)


def _generation_eos_ids(path: Path) -> list[int]:
    """The end tokens by the generation config of a model's folder."""
    from transformers import GenerationConfig

    if not (path / "generation_config.json").is_file():
        return []
    eos: Any = GenerationConfig.from_pretrained(path).eos_token_id
    return eos if isinstance(eos, list) else [] if eos is None else [eos]


def _common_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return next((i for i, column in enumerate(zip(*rows)) if len(set(column)) > 1), min(map(len, rows)))
