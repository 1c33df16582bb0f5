"""A model's chat template: what it writes around the turns of a chat.

Templates differ: some take no system message, some want a turn's text in parts, some end a turn with a
special token and some with words, some write more before a reply's text than they open it with (a channel, a
closed block of reasoning). All of that is found out here by writing a chat of placeholders.

Reasoning has one rule. Unless the recipe asks for it (`chat.template_args`), a reply begins where the
template puts its text: a block of reasoning that the template opens is closed at once. What was thought in an
earlier turn is left out, and so is reasoning in a text to be learnt; where the recipe asks for it, the latter
is learnt, in one block.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao.config import ChatConfig
from sao.config.chat import SWITCHES
from sao.errors import ConfigError, ModelError
from sao.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "SAO0TURN0TEXT"
"""Stands for the text of a user's turn, to find where a template puts it."""
REPLY = "SAO0REPLY0TEXT"
"""The same for a reply."""
TODAY = datetime(2024, 7, 26)
"""The date that every template prints, so that a run resumed tomorrow sees the same ids."""
THINKING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("◁think▷", "◁/think▷"),
)
"""What opens and closes a block of reasoning, by family."""
_MARKER = re.compile(r"<{1,2}[^<>\s]{1,40}>{1,2}|\[/?[A-Z_]{2,20}\]")
"""What a template writes as control text, whether or not the tokenizer has a token for it."""
_SHOWN_AS_CODE = re.compile(rf"""text['"]: *['"]{PLACEHOLDER}""")
"""A part that a template writes as it stands in code, not its text."""

_CHANNEL_TEXT = re.compile(r"<\|message\|>(.*?)(?=<\||$)", re.DOTALL)
"""What a channel of gpt-oss holds."""

TurnDicts = list[dict[str, Any]]


def template_text(chat: ChatConfig) -> str | None:
    """The text of the recipe's own chat template, None where it has none. Raises ConfigError where the file
    cannot be read."""
    if chat.template is None:
        return None
    try:
        text = Path(chat.template).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat.template: {chat.template} cannot be read ({error}). Give a file with a chat template, "
            "such as a chat_template.jinja",
            key="chat.template",
        ) from error
    if not text.strip():
        raise ConfigError(f"chat.template: {chat.template} is empty", key="chat.template")
    return text


class ChatTemplate:
    """The chat template of a Hugging Face tokenizer. Raises ModelError where it has none, where it cannot be
    read, or where it does not write what user and assistant say."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, chat: ChatConfig | None = None) -> None:
        chat = chat or ChatConfig()
        self.name, self.thinks = name, chat.thinks
        self._tokenizer: Any = tokenizer
        source = template_text(chat)
        if source is not None:
            self._tokenizer.chat_template = source
        if not tokenizer.chat_template:
            raise ModelError(
                f"{name}: the tokenizer has no chat template, so this is no chat model. Take the instruct "
                "version, or give a template: --chat.template FILE",
                key="chat template",
            )
        self._where = f"{name}: its chat template" if source is None else f"chat.template: {chat.template}"
        self._files = " (chat_template.jinja or tokenizer_config.json)" if source is None else ""
        # Models that can think before they speak are asked not to: a marker or verdict must come first.
        self._args = {
            "enable_thinking": chat.thinks,
            "date_string": "26 Jul 2024",
            "strftime_now": TODAY.strftime,
            **chat.template_args,
        }
        self._check_args(chat)
        self._in_parts = self._takes_parts()
        added_tokens = self._tokenizer.added_tokens_decoder
        self.special_ids = {token_id for token_id, token in added_tokens.items() if token.special}
        self._special_texts = [token.content for token in added_tokens.values() if token.special]

    def _check_args(self, chat: ChatConfig) -> None:
        """Raise ConfigError for a name that the template does not read: a typing error would change
        nothing."""
        source = self._tokenizer.get_chat_template()
        for name in chat.template_args:
            if name not in SWITCHES and not re.search(rf"\b{name}\b", source):
                raise ConfigError(
                    f"chat.template_args: the chat template of {self.name} does not read {name}. Take it "
                    "out, or look into the template for the name",
                    key="chat.template_args",
                )

    # What the template writes.

    def render(self, turns: TurnDicts, open_reply: bool, **more: Any) -> str:
        """The text of `turns` just as they are, and of the header of the assistant's next turn where
        `open_reply`. Raises ModelError where the template refuses them."""
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        if self._in_parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=open_reply, tokenize=False, **self._args, **more
            )
        except TemplateSyntaxError as error:
            raise ModelError(
                f"{self._where}{self._files} has a syntax error in line {error.lineno}: {error.message}",
                key="chat_template.jinja",
            ) from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ModelError(
                f"{self._where} refuses a chat of {roles}: {error}", key="chat_template.jinja"
            ) from error
        return str(text)

    def _takes_parts(self) -> bool:
        """Whether a turn's content is a list of parts, as families with images have it."""
        from jinja2.exceptions import TemplateSyntaxError

        texts = {PLACEHOLDER: "the user", REPLY: "the assistant"}
        chat = [{"role": "user", "content": PLACEHOLDER}, {"role": "assistant", "content": REPLY}]
        faults = []
        for in_parts in (False, True):
            self._in_parts = in_parts
            try:
                text = self.render(chat, False)
            except ModelError as error:
                if isinstance(error.__cause__, TemplateSyntaxError):
                    raise
                faults.append(str(error))
                continue
            lost = [who for said, who in texts.items() if said not in text]
            if not lost and not _SHOWN_AS_CODE.search(text):
                return in_parts
            faults.append(f"{self._where} leaves out what {' and '.join(lost or texts.values())} said")
        raise ModelError(
            f"{faults[0]}. Copy chat_template.jinja from the model's source, or give another with "
            "--chat.template FILE",
            key="chat_template.jinja",
        )

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system message (Gemma's raises an error, some leave it out)."""
        turns = [{"role": "system", "content": REPLY}, {"role": "user", "content": PLACEHOLDER}]
        try:
            return REPLY in self.render(turns, True)
        except ModelError:
            return False

    # Where a reply begins and ends.

    @cached_property
    def _frame(self) -> tuple[str, str, str]:
        """What the template writes before the text of a reply, after it, and after it where another turn of
        the user follows."""
        user, reply = {"role": "user", "content": PLACEHOLDER}, {"role": "assistant", "content": REPLY}
        before, after = self.render([user, reply], False).rsplit(REPLY, 1)
        try:
            inner = self.render([user, reply, user], True).rsplit(REPLY, 1)[-1]
        except ModelError:
            inner = after
        return before, after, inner.split(PLACEHOLDER)[0]

    @cached_property
    def _bridge(self) -> tuple[str, str]:
        """What lies between the header of a reply and its text: the text that belongs to the prompt, and
        spaces that belong to the reply's first word."""
        before, _, _ = self._frame
        opened = self.render([{"role": "user", "content": PLACEHOLDER}], True)
        between = before[len(opened) :] if before.startswith(opened) else ""
        bridge = between.rstrip(" ")
        header = (opened + bridge).split(PLACEHOLDER)[-1]
        for opener, closer in THINKING:
            if header.rfind(opener) > header.rfind(closer):  # what it opens would be the reply
                bridge += f"\n{closer}\n\n" if header.endswith("\n") else closer
        return bridge, between[len(between.rstrip(" ")) :]

    @cached_property
    def opens_block(self) -> str:
        """What opens the block of reasoning in which a sampled reply begins; "" where it begins in none."""
        opened = self.prompt([Message("user", PLACEHOLDER)])
        header = opened.split(PLACEHOLDER)[-1]
        opener, closer = self._thinking or THINKING[0]
        return opener if header.rfind(opener) > header.rfind(closer) else ""

    @property
    def gap(self) -> str:
        """The spaces between what a prompt ends with and a reply's text."""
        return self._bridge[1]

    def prompt(self, messages: Sequence[Message], direct: bool = False) -> str:
        """The text of a chat up to where the assistant's next text begins. Where the recipe asks for
        reasoning, up to its header, unless `direct`."""
        opened = self.render(self._turns(messages), True)
        return opened if self.thinks and not direct else opened + self._bridge[0]

    def chat(self, messages: Sequence[Message]) -> str:
        """The text of a whole chat, the end of its last turn included."""
        return self.render(self._turns(messages), False)

    def with_reply(self, messages: Sequence[Message], text: str, direct: bool = False) -> str:
        """The text of a chat and a reply, without its end; it begins with the prompt of this chat."""
        prompt, (_, after, _) = self.prompt(messages, direct), self._frame
        reasoning, answer = self.split(text)
        answer = self.clean(answer)
        if reasoning and self._thinking and self.thinks and not direct:
            opener, closer = self._thinking
            is_open = prompt.rfind(opener) > prompt.rfind(closer)
            block = f"{'' if is_open else opener + chr(10)}{self.clean(reasoning)}\n{closer}\n\n"
            return prompt + block + answer
        reply = {"role": "assistant", "content": answer}
        whole = self.render([*self._turns(messages), reply], False)
        if whole.startswith(prompt) and whole.endswith(after):
            return whole.removesuffix(after)
        # Some templates write a reply in another way than they open one (without reasoning, say).
        return self.prompt(messages, True) + self.gap + answer

    def turn_end_id(self, eos_ids: set[int]) -> int:
        """The token with which the template ends an assistant's turn: the first control token after the
        text, or the last of several in a row that stand there in the middle of a chat, too."""
        _, after, inner = self._frame
        ids, inner_ids = self._ids(after), self._ids(inner)
        ends = eos_ids | set(self._tokenizer.added_tokens_decoder) - self._thinking_ids
        place = next((i for i, token in enumerate(ids) if token in ends), None)
        if place is not None:
            row = takewhile(lambda pair: pair[0] == pair[1], zip(ids, inner_ids))
            shared = [token for token, _ in row][place + 1 :]
            return [ids[place], *takewhile(ends.__contains__, shared)][-1]
        # Some end a turn with the header of the next one (GLM); the model's own list of ends says so.
        if inner_ids and inner_ids[0] in eos_ids:
            return inner_ids[0]
        if self._tokenizer.eos_token_id is None:
            raise ModelError(
                "the chat template ends no turn with a special token and the tokenizer has no EOS token",
                key="chat_template.jinja",
            )
        return int(self._tokenizer.eos_token_id)

    def closing(self, turn_end_id: int) -> str:
        """What the template writes after a reply's text up to its end token; "" where that is not written
        there."""
        token = self._tokenizer.added_tokens_decoder.get(turn_end_id)
        text, found, _ = self._frame[1].partition(token.content) if token else ("", "", "")
        return text + found if found else ""

    def around_user_text(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What the template writes before and after the text of a user's turn that follows `messages`."""
        text = self.render(self._turns([*messages, Message("user", PLACEHOLDER)], merged=False), True)
        if text.count(PLACEHOLDER) != 1:
            raise ModelError(
                f"{self.name}: its chat template writes a user's text {text.count(PLACEHOLDER)} times, so "
                "its turn cannot be left open. Take prompts.method instruct",
                key="prompts.method",
            )
        opening, closing = text.split(PLACEHOLDER)
        return opening, closing

    # Texts: control text taken out, reasoning split off.

    @cached_property
    def control_texts(self) -> list[str]:
        """What no text may hold, the longest first: special tokens, and all else by which the template marks
        turns, whether the tokenizer calls it special or not."""
        before, after, inner = self._frame
        frame = f"{before} {after} {inner}".replace(PLACEHOLDER, " ")
        reasoning = {part for pair in THINKING for part in pair}
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        marks = {*_MARKER.findall(frame), *(text for text in added if text.strip() and text in frame)}
        return sorted({*self._special_texts, *(marks - reasoning)}, key=lambda text: (-len(text), text))

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The tokens of these texts."""
        texts, added = set(self.control_texts), self._tokenizer.added_tokens_decoder.items()
        return frozenset(token_id for token_id, token in added if token.content in texts)

    def clean(self, text: str) -> str:
        """`text` without the model's control text, so that no text can end a turn or open another."""
        before = None
        while before != text:  # taking one out may join the halves of another
            before = text
            for token in self.control_texts:
                text = text.replace(token, "")
        return text

    def split(self, text: str) -> tuple[str, str]:
        """The reasoning in a reply, and the answer after it; none where the template knows no reasoning. What
        was opened and not closed is all reasoning; what is closed and was not opened, too."""
        if self._thinking is None:
            channel = self._bridge[0].strip()  # what the last one holds is the answer
            before, _, answer = text.rpartition(channel) if channel else ("", "", text)
            return "\n".join(_CHANNEL_TEXT.findall(before)), answer
        opener, closer = self._thinking
        reasoning, closed, answer = text.rpartition(closer)
        if not closed and text.lstrip().startswith(opener):
            reasoning, answer = text, ""
        if not reasoning and not closed:
            return "", text
        return reasoning.replace(opener, "").replace(closer, "").strip(), answer.lstrip("\n")

    def joined(self, reasoning: str, text: str) -> str:
        """A reply with its reasoning in a block before it; without, where the family has no such block."""
        if not reasoning or self._thinking is None:
            return text
        opener, closer = self._thinking
        return f"{opener.strip()}\n{reasoning}\n{closer}\n\n{text}"

    def answer(self, sampled: str) -> str:
        """The answer in a sampled reply, control text and all: what follows its reasoning, "" where that has
        no end."""
        _, answer = self.split(self.opens_block + sampled)
        marks = _MARKER.findall(self._bridge[0]) if self._thinking is None and self.thinks else []
        is_whole = answer != sampled or not any(mark in sampled for mark in marks)
        return answer if is_whole else ""

    @cached_property
    def _thinking(self) -> tuple[str, str] | None:
        """What opens and closes reasoning in this family, None where its template says nothing of it."""
        source = self._tokenizer.get_chat_template()
        return next((pair for pair in THINKING if pair[1] in source), None)

    @cached_property
    def _thinking_ids(self) -> set[int]:
        parts = {part.strip() for part in self._thinking or ()}
        return {i for i, t in self._tokenizer.added_tokens_decoder.items() if t.content in parts}

    def _turns(self, messages: Sequence[Message], merged: bool = True) -> TurnDicts:
        """Messages as turns: cleaned, replies without reasoning, and, where `merged`, the system message in
        the user's turn where the template takes none."""
        turns: TurnDicts = []
        for message in messages:
            text = self.split(message.content)[1] if message.role == "assistant" else message.content
            turns.append({"role": message.role, "content": self.clean(text)})
        if merged and len(turns) > 1 and turns[0]["role"] == "system" and not self.takes_system:
            system, user, *rest = turns
            turns = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return turns

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)
