"""A model's chat template: what it writes around the turns of a chat.

Templates differ: some take no system message, some end a turn with a special token and some with words, some
write a past reply in another way than they open a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sao.errors import ModelError
from sao.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "SAO0TURN0TEXT"
"""Stands for the text of a turn, to find where a template puts it."""

Turns = list[dict[str, str]]


class ChatTemplate:
    """The chat template of a Hugging Face tokenizer. Raises ModelError where it has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"{name}: the tokenizer has no chat template, so this is no chat model. Take the instruct "
                "version, or put the template into chat_template.jinja in the model's folder",
                key="chat template",
            )
        self.name = name
        self._tokenizer: Any = tokenizer
        added_tokens = self._tokenizer.added_tokens_decoder
        self.special_ids = {token_id for token_id, token in added_tokens.items() if token.special}
        texts = {token.content for token in added_tokens.values() if token.special}
        self._special_texts = sorted(texts, key=len, reverse=True)

    def clean(self, text: str) -> str:
        """`text` without the model's special tokens, so that no text can end a turn or open another."""
        before = None
        while before != text:  # taking one out may join the halves of another
            before = text
            for token in self._special_texts:
                text = text.replace(token, "")
        return text

    def ids(self, turns: Turns, open_reply: bool) -> list[int]:
        """The ids of `turns` just as they are, and of the header of the assistant's next turn where
        `open_reply`."""
        return list(self._apply(turns, open_reply, tokenize=True))

    def chat_ids(self, messages: Sequence[Message], open_reply: bool) -> list[int]:
        """The same for messages: cleaned, and the system message in the user's turn where the template takes
        none."""
        turns = self._turns(messages)
        if turns and turns[0]["role"] == "system" and not self.takes_system:
            system, user, *rest = turns
            turns = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return self.ids(turns, open_reply)

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system message (Gemma's raises an error, some leave it out)."""
        from jinja2.exceptions import TemplateError

        user = {"role": "user", "content": "a"}
        try:
            seven = self.ids([{"role": "system", "content": "7"}, user], True)
            four = self.ids([{"role": "system", "content": "4"}, user], True)
        except TemplateError:
            return False
        return seven != four

    def around_user_text(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What the template writes before and after the text of a user's turn that follows `messages`."""
        turns = self._turns([*messages, Message("user", PLACEHOLDER)])
        text = str(self._apply(turns, True, tokenize=False))
        if text.count(PLACEHOLDER) != 1:
            raise ModelError(
                f"{self.name}: its chat template writes a user's text {text.count(PLACEHOLDER)} times, so "
                "its turn cannot be left open. Take prompts.method instruct",
                key="prompts.method",
            )
        opening, closing = text.split(PLACEHOLDER)
        return opening, closing

    def turn_end_id(self, eos_ids: set[int]) -> int:
        """The token with which the template ends an assistant's turn."""
        question, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        prompt = self.ids([question], True)
        whole = self.ids([question, reply], False)
        tail = whole[len(prompt) :] if whole[: len(prompt)] == prompt else whole[-2:]
        for token in tail:
            if token in eos_ids or token in self.special_ids:
                return token
        if self._tokenizer.eos_token_id is None:
            raise ModelError(
                "the chat template ends no turn with a special token and the tokenizer has no EOS token",
                key="chat template",
            )
        return int(self._tokenizer.eos_token_id)

    def _turns(self, messages: Sequence[Message]) -> Turns:
        return [{"role": message.role, "content": self.clean(message.content)} for message in messages]

    def _apply(self, turns: Turns, open_reply: bool, tokenize: bool) -> Any:
        # Models that can think before they speak are asked not to: a marker or verdict must come first.
        # Templates that print the date get a fixed one, so that a run resumed tomorrow sees the same ids.
        return self._tokenizer.apply_chat_template(
            turns,
            add_generation_prompt=open_reply,
            tokenize=tokenize,
            return_dict=False,
            enable_thinking=False,
            date_string="26 Jul 2024",
        )
