"""Requests as the JSON bodies of /v1/chat/completions and /v1/completions, and the server's own token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sao.config import OpenAIConfig
from sao.engines import Request, Sampling
from sao.engines.client import Client
from sao.errors import EngineError
from sao.records import Message

if TYPE_CHECKING:
    from sao.models.chat import ChatTokenizer

CHAT, COMPLETIONS = "/chat/completions", "/completions"
SEED_BITS = 31
"""Some servers hold seeds in 32 bits, with a sign."""

LONG_CHAT = 100
"""Tokens of a chat from which it is looked at whether the server read all of it."""

Body = dict[str, Any]


LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens")
"""Names of the most tokens of an answer, the usual one first."""
DEFAULTS: Body = {"top_p": 1.0, "temperature": 1.0, "stream": False}
"""Settings that may be left out where they have these values."""


_CONTROL = re.compile(
    r"<\|[A-Za-z_]+\|>|<｜[^<>｜\s]{1,40}｜>|</?s>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>|\[/?INST\]"
)
"""How families write the tokens by which their templates mark turns."""


def without_control_text(text: str) -> str:
    """`text` without what opens or ends a turn in the usual families: a server whose tokenizer is not here
    may read it as such."""
    before = None
    while before != text:  # taking one out may join the halves of another
        before, text = text, _CONTROL.sub("", text)
    return text


@dataclass(slots=True)
class RequestWriter:
    """Writes requests for `model`. `chat` is the model's own tokenizer, where it is here; `neutral` are
    settings that switch off what the server applies of itself; `template_args` are what the server is to tell
    its chat template."""

    model: str
    config: OpenAIConfig
    chat: ChatTokenizer | None
    neutral: Body = field(default_factory=dict)
    limit: str = LIMITS[0]
    """What the server calls the most tokens of an answer."""
    left_out: list[str] = field(default_factory=list)
    """Settings that the server refuses; not sent where they change nothing (a seed: never)."""
    template_args: Mapping[str, Any] = field(default_factory=dict)

    def body(self, messages: tuple[Message, ...], sampling: Sampling, seed: int, **more: Any) -> Body:
        """A chat to continue, for POST /v1/chat/completions."""
        clean = self.chat.clean if self.chat else without_control_text
        body: Body = {
            "model": self.model,
            "messages": [{"role": m.role, "content": clean(m.content)} for m in messages],
            self.limit: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**SEED_BITS,
            "stream": False,  # some proxies stream unless they are told
            **self.neutral,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        for name in self.left_out:
            if body.get(name) == DEFAULTS.get(name, body.get(name)):
                body.pop(name, None)
        return body | told(self.template_args) | more | self.config.extra_body

    def leave_out(self, refusal: str) -> str:
        """Leave out the setting that a refusal names; what was left out, "" where it names none that can
        be."""
        words = re.findall(r"\w+", refusal)
        sent = [name for name in (*self.neutral, "seed", *DEFAULTS) if name not in self.left_out]
        named = next((name for name in sent if name in words), "")
        if named:
            self.left_out.append(named)
        return named

    def open_turn_body(self, body: Body, request: Request) -> Body:
        """`body` for a turn that has begun, for POST /v1/completions: by token ids, since only so nothing is
        added to them. Needs the model's own tokenizer."""
        assert self.chat is not None
        if request.as_user:
            ids = self.chat.user_turn_ids(request.messages)
        else:
            ids = self.chat.prompt_ids(request.messages, request.prefill)
        end_ids, end_texts = self.turn_ends(request)
        open_body = self.by_token_ids(body, ids)
        if stops := [*body.get("stop", ()), *end_texts]:
            open_body["stop"] = stops
        if end_ids:
            # vLLM's and SGLang's; other servers end at their model's own end tokens.
            open_body["stop_token_ids"] = sorted(end_ids)
        return open_body

    def by_token_ids(self, body: Body, ids: list[int]) -> Body:
        """The same request with a prompt of token ids, for POST /v1/completions, which has max_tokens."""
        kept = {name: value for name, value in body.items() if name not in ("messages", "stop", self.limit)}
        return kept | {"prompt": ids, LIMITS[0]: body[self.limit]}

    def turn_ends(self, request: Request) -> tuple[frozenset[int], tuple[str, ...]]:
        """What ends the turn that is written: tokens and texts. Needs the model's own tokenizer."""
        assert self.chat is not None
        return self.chat.user_ends if request.as_user else (self.chat.end_ids, ())


def told(template_args: Mapping[str, Any]) -> Body:
    """What a server is sent for its chat template (vLLM's, SGLang's and llama.cpp's key)."""
    return {"chat_template_kwargs": dict(template_args)} if template_args else {}


def is_open_turn(request: Request) -> bool:
    """Whether the model goes on from a turn that has begun: a reply's, or the user's."""
    return bool(request.prefill or request.as_user)


def logprobs_of_ids(ids: tuple[int, ...]) -> Body:
    """The settings of vLLM for the log-probabilities of these tokens, whatever their rank."""
    return {
        "logprobs": True,
        "top_logprobs": 0,
        "logprob_token_ids": list(ids),
        "return_tokens_as_token_ids": True,
    }


def least_tokens(messages: tuple[Message, ...], chat: ChatTokenizer | None) -> float:
    """Fewer tokens than any tokenizer makes of a chat: 3/4 of its words, and a quarter of its Chinese,
    Japanese and Korean signs, which stand without spaces. With the model's own tokenizer here, 9/10 of the
    tokens of its texts."""
    text = " ".join(m.content for m in messages)
    least = 0.75 * len(text.split()) + 0.25 * len(
        re.findall(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]", text)
    )
    if least < LONG_CHAT:
        return 0.0
    return 0.9 * len(chat.tokenizer(text, add_special_tokens=False).input_ids) if chat else least


def estimated_tokens(messages: tuple[Message, ...]) -> int:
    """About how many tokens a chat has, for tokens_per_minute: corrected once the server has counted."""
    return sum(len(m.content) // 4 + 4 for m in messages)


class ServerTokenizer:
    """The server's own tokenizer, asked by POST /tokenize (vLLM)."""

    def __init__(self, client: Client, model: str, template_args: Mapping[str, Any] | None = None) -> None:
        self._client, self._model = client, model
        self._told = told(template_args or {})
        self._url = client.url.removesuffix("/v1") + "/tokenize"
        self._first_tokens: dict[tuple[str, ...], tuple[int, ...]] = {}

    def first_tokens(self, choices: tuple[str, ...]) -> tuple[int, ...]:
        """The first token of each choice as the assistant would write it; () where the server does not say.

        Raises EngineError where two are the same.
        """
        if choices not in self._first_tokens:
            tokens = [self._first_token(choice) for choice in choices]
            ids = tuple(token for token in tokens if token is not None)
            if len(ids) < len(choices):
                ids = ()
            if len(set(ids)) < len(ids):
                raise EngineError(
                    f"the choices {list(choices)} begin with the same token; give others with "
                    "judging.choices",
                    key="judging.choices",
                )
            self._first_tokens[choices] = ids
        return self._first_tokens[choices]

    def _first_token(self, text: str) -> int | None:
        question = {"role": "user", "content": "a"}
        reply = {"role": "assistant", "content": text}
        prompt = self._ids([question], add_generation_prompt=True)
        whole = self._ids([question, reply], add_generation_prompt=False, continue_final_message=True)
        if prompt is None or whole is None:
            return None
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            return None
        return int(whole[len(prompt)])

    def _ids(self, messages: list[dict[str, str]], **settings: bool) -> list[Any] | None:
        body: Body = {"model": self._model, "messages": messages, **settings, **self._told}
        ids = (self._client.post(self._url, body) or {}).get("tokens")
        return ids if isinstance(ids, list) else None
