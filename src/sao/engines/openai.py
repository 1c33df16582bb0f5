"""The engine for a server that speaks POST /v1/chat/completions: vLLM, SGLang, llama.cpp, Ollama, TGI, a
hosted one.

Servers differ in what they do and some ignore in silence what they cannot: at the start a few short requests
find out (see `Skills`), and every answer is checked before it counts. Each sample is a request of its own
with its own seed, so it does not depend on what else is asked; only where a server knows no seeds, but n, are
the samples of a prompt one request. Where the model's tokenizer is here and the server shows its token ids
(vLLM), the samples' ids are kept for training.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sao.config import EngineConfig
from sao.engines import (
    ChoiceRequest,
    Choices,
    Completion,
    Failure,
    Request,
    Sample,
    Sampling,
    Usage,
    cut_at,
    require_prefill,
)
from sao.engines.client import BadAnswerError, Call, Client, RefusedError
from sao.errors import EngineError
from sao.models.locate import identity_of, is_local
from sao.records import Message

if TYPE_CHECKING:
    from sao.models.chat import ChatTokenizer

TRIES = 3
"""Good answers without a skill after which the server lacks it."""
PROBE_RETRIES = 3
"""Further tries of a request for a skill: some servers fail (HTTP 500) where they should refuse."""
TOP = (20, 5)
"""Numbers of top_logprobs that servers allow: most 20, some 5."""
SEED_BITS = 31
"""Some servers hold seeds in 32 bits, with a sign."""
_QUESTION = (Message("user", "Write down a random word and a random number."),)

CHAT, COMPLETIONS = "/chat/completions", "/completions"

Body = dict[str, Any]


@dataclass(slots=True)
class Skills:
    """What a server was seen to do."""

    n: bool = False
    """Several samples to a request."""
    seed: bool = False
    """The same text for the same seed, and another for another."""
    logprobs: bool = False
    """The log-probability of each token written."""
    top_logprobs: int = 0
    """… and of that many of the most probable ones in its place."""
    logprob_token_ids: bool = False
    """… and of tokens given by id (vLLM), whose ids it also tells (/tokenize)."""
    structured_choice: bool = False
    """Answers held to a list of texts (vLLM's structured_outputs)."""
    token_ids: bool = False
    """The ids of the tokens written, of a prompt encoded as the model's own tokenizer here encodes it
    (vLLM)."""

    def __str__(self) -> str:
        found = [
            f.name if value is True else f"{f.name} {value}"
            for f in fields(self)
            if (value := getattr(self, f.name))
        ]
        missing = [f.name for f in fields(self) if not getattr(self, f.name)]
        return ", ".join(found or ["nothing but text"]) + (f" (not: {', '.join(missing)})" if missing else "")


class OpenAIEngine:
    """See the module's docstring and `sao.engines.Engine`."""

    name = "openai"

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        revision: str | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Reach the server and find out what it can do. Raises EngineError where it is not there, lacks the
        model, or wants a key."""
        self.identity = identity_of(config, model, revision)
        self.config, self._notify = config.openai, notify
        self._told: set[str] = set()
        self._refused = ""
        self._choice_ids: dict[tuple[str, ...], tuple[int, ...]] = {}
        self._chat: ChatTokenizer | None = None
        self._client = Client(self.config, os.environ.get(self.config.api_key_env) or None, notify)
        self.usage: Usage | None = self._client.usage
        try:
            self.model, self._room = self._find_model(model)
            if is_local(model):
                from sao.models.chat import ChatTokenizer

                self._chat = ChatTokenizer.load(model, config)
            self.skills = self._probe()
        except BaseException:
            self.close()
            raise
        notify(f"{self._client.url} serves {self.model}; it can do: {self.skills}")
        self.has_logprobs = self.skills.top_logprobs > 0 or self.skills.logprob_token_ids
        if not self.has_logprobs:
            notify(
                "this server gives no log-probabilities: verdicts are read from text (judging.method text)"
            )

    @cached_property
    def has_prefill(self) -> bool:
        """Whether the server goes on from token ids, just as they are: with the model's own tokenizer here, a
        turn that has begun can be written out."""
        if self._chat is None:
            return False
        ids = self._chat.prompt_ids(_QUESTION, "The")
        body: Body = {"model": self.model, "prompt": ids, "max_tokens": 4, "temperature": 1.0, "seed": 1}
        answer = self._client.post(self._client.url + COMPLETIONS, body | self.config.extra_body)
        try:
            text, used = answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]  # type: ignore[index]
            return isinstance(text, str) and used == len(ids)
        except (LookupError, TypeError):
            return False

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Failure]:
        """Completions in order of finishing. What the server refuses, or fails to answer again and again, is
        a Failure.

        A prompt that leaves no room in the model's context gives an empty completion that finished by length.
        """
        together = self.skills.n and not self.skills.seed
        parts = (
            (request, samples)
            for request in requests
            for samples in ([request.samples] if together else [(sample,) for sample in request.samples])
        )
        again: deque[tuple[Request, tuple[Sample, ...]]] = deque()

        def pull() -> Call[list[Completion | Failure]] | None:
            part = again.popleft() if again else next(parts, None)
            return None if part is None else self._completion_call(*part)

        for results in self._client.stream(pull):
            for result in results:
                if isinstance(result, _Missing):
                    again.append((result.request, (result.sample,)))
                else:
                    yield result

    def choice_logprobs(self, requests: Iterable[ChoiceRequest]) -> Iterator[Choices | Failure]:
        """One token for each request; its alternatives' log-probabilities hold those of the choices.

        A choice that is not among them is given the most that is possible; where none is, all are NaN.
        """
        wanted = iter(requests)

        def pull() -> Call[Choices | Failure] | None:
            request = next(wanted, None)
            return None if request is None else self._choice_call(request)

        yield from self._client.stream(pull)

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    # Requests and how their answers are read.

    def _body(self, messages: tuple[Message, ...], sampling: Sampling, seed: int, **more: Any) -> Body:
        clean = self._chat.clean if self._chat else str
        body: Body = {
            "model": self.model,
            "messages": [{"role": m.role, "content": clean(m.content)} for m in messages],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**SEED_BITS,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body | more | self.config.extra_body

    def _completion_call(
        self, request: Request, samples: tuple[Sample, ...]
    ) -> Call[list[Completion | Failure]]:
        more: Body = {"n": len(samples)} if len(samples) > 1 else {}
        if request.sampling.one_of and self.skills.structured_choice:
            more["structured_outputs"] = {"choice": list(request.sampling.one_of)}
        if self.skills.token_ids:
            more["return_token_ids"] = True
        body = self._body(request.messages, request.sampling, samples[0].seed, **more)
        if raw := bool(request.prefill or request.as_user):
            body = self._raw_body(body, self._begun(request), self._ends_of(request))

        def read(answer: Body) -> list[Completion | Failure]:
            choices = answer["choices"]
            if not choices:
                raise BadAnswerError("an answer without choices")
            single = len(samples) == 1
            by_index = {0 if single else int(choice["index"]): choice for choice in reversed(choices)}
            found: list[Any] = []
            for index, sample in enumerate(samples):
                choice = by_index.get(index)
                found.append(
                    _Missing(request, sample)
                    if choice is None
                    else self._read_choice(request, sample.id, choice)
                )
            return found

        def refused(error: RefusedError) -> list[Completion | Failure] | Call[list[Completion | Failure]]:
            if (
                self._room
                and "max_tokens" in call.body
                and request.sampling.max_tokens > 1
                and _too_long(error.message)
            ):
                # The server itself then takes what room there is, which is less than was asked for.
                call.body = {k: v for k, v in call.body.items() if k != "max_tokens"}
                return call
            if _too_long(error.message):
                return [Completion(sample.id, "", None, "length") for sample in samples]
            return [self._refusal(sample.id, error) for sample in samples]

        call: Call[list[Completion | Failure]] = Call(
            body,
            _estimate(request.messages) + len(samples) * request.sampling.max_tokens,
            read,
            refused,
            lambda fault: [self._lost(sample.id, fault) for sample in samples],
            path=COMPLETIONS if raw else CHAT,
        )
        return call

    def _begun(self, request: Request) -> list[int]:
        """The ids of a turn that has begun."""
        require_prefill(self, self._client.url)
        assert self._chat is not None
        if request.as_user:
            return self._chat.user_turn_ids(request.messages)
        return self._chat.prompt_ids(request.messages, request.prefill)

    def _ends_of(self, request: Request) -> tuple[frozenset[int], tuple[str, ...]]:
        """What ends the turn that is written: tokens and texts."""
        assert self._chat is not None
        return self._chat.user_ends if request.as_user else (self._chat.end_ids, ())

    @staticmethod
    def _raw_body(
        body: Body, ids: list[int], ends: tuple[frozenset[int], tuple[str, ...]] = (frozenset(), ())
    ) -> Body:
        """The same request by token ids, for POST /v1/completions. `stop_token_ids` is vLLM's and SGLang's;
        other servers end at their model's own end tokens."""
        raw = {name: value for name, value in body.items() if name not in ("messages", "stop")} | {
            "prompt": ids
        }
        stops = [*body.get("stop", ()), *ends[1]]
        return (
            raw
            | ({"stop": stops} if stops else {})
            | ({"stop_token_ids": sorted(ends[0])} if ends[0] else {})
        )

    def _read_choice(self, request: Request, sample_id: str, choice: Body) -> Completion | Failure:
        """A finished sample; text that is no text, or an unknown end, is a bad answer."""
        raw = request.prefill or request.as_user
        finish, message = (
            choice.get("finish_reason"),
            {"content": choice["text"]} if raw else choice["message"],
        )
        if finish not in ("stop", "length"):
            if finish == "content_filter":
                return Failure(sample_id, "held back by the server's content filter")
            raise BadAnswerError(f"finish_reason {finish!r}")
        text = message.get("content")
        if text is None and (
            finish == "length" or message.get("reasoning_content") or message.get("reasoning")
        ):
            text = ""  # it was still thinking, or thought and said nothing
        if not isinstance(text, str):
            raise BadAnswerError("an answer without text")
        ids = choice.get("token_ids")
        if self._chat is not None and self.skills.token_ids and isinstance(ids, list) and ids:
            end = ids[-1] in self._ends_of(request)[0] and finish == "stop"
            text = self._chat.decode(ids[:-1] if end else ids)
            stops = (*request.sampling.stop, *(self._ends_of(request)[1] if raw else ()))
            return Completion(sample_id, text[: cut_at(text, stops)], tuple(ids), finish)
        # some tokenizers begin every text with a space
        return Completion(sample_id, text.lstrip(" "), None, finish)

    def _choice_call(self, request: ChoiceRequest) -> Call[Choices | Failure]:
        if request.prefill:
            return self._raw_choice_call(request)
        ids = self._ids_of(request.choices) if self.skills.logprob_token_ids else ()
        more: Body = (
            {
                "logprobs": True,
                "top_logprobs": 0,
                "logprob_token_ids": list(ids),
                "return_tokens_as_token_ids": True,
            }
            if ids
            else {"logprobs": True, "top_logprobs": self.skills.top_logprobs}
        )

        def read(answer: Body) -> Choices | Failure:
            tops = _top_logprobs(answer)
            values = _by_id(tops, ids) if ids else _by_text(tops, request.choices)
            return Choices(request.id, values)

        # At temperature 1 the log-probabilities are the model's own, whether or not a server scales them.
        body = self._body(request.messages, Sampling(1), 0, **more)
        del body["seed"]  # which token is drawn plays no part
        return self._choices_of(request, body, _estimate(request.messages) + 1, read, CHAT)

    def _choices_of(
        self,
        request: ChoiceRequest,
        body: Body,
        tokens: int,
        read: Callable[[Body], Choices | Failure],
        path: str,
    ) -> Call[Choices | Failure]:
        """The call for one token; a chat that does not fit gives NaN."""

        def refused(error: RefusedError) -> Choices | Failure:
            if _too_long(error.message):
                return Choices(request.id, (math.nan,) * len(request.choices))
            return self._refusal(request.id, error)

        return Call(body, tokens, read, refused, lambda fault: self._lost(request.id, fault), path=path)

    def _raw_choice_call(self, request: ChoiceRequest) -> Call[Choices | Failure]:
        """The log-probabilities of the tokens that go on from a reply that has begun."""
        require_prefill(self, self._client.url)
        assert self._chat is not None
        ids, wanted = self._chat.choice_ids(request.messages, request.choices, request.prefill)
        words = tuple(self._chat.tokenizer.decode([token]) for token in wanted)

        def read(answer: Body) -> Choices | Failure:
            tops = {
                str(token): float(value)
                for token, value in answer["choices"][0]["logprobs"]["top_logprobs"][0].items()
            }
            if all(f"token_id:{token}" in tops for token in wanted):
                return Choices(request.id, tuple(tops[f"token_id:{token}"] for token in wanted))
            by_id = {f"token_id:{token}": word for token, word in zip(wanted, words, strict=True)}
            return Choices(
                request.id,
                _by_text([(by_id.get(token, token), value) for token, value in tops.items()], words),
            )

        body = self._raw_body(self._body((), Sampling(1), 0), ids)
        del body["seed"]
        body |= {"logprobs": self.skills.top_logprobs or TOP[-1], "return_tokens_as_token_ids": True}
        return self._choices_of(request, body, len(ids) + 1, read, COMPLETIONS)

    def _refusal(self, item_id: str, error: RefusedError) -> Failure:
        return self._failure(item_id, f"refused by the server (HTTP {error.status})", error.message)

    def _lost(self, item_id: str, fault: str) -> Failure:
        kind, _, words = fault.partition(": ")
        return self._failure(item_id, f"no usable answer ({kind})", words)

    def _failure(self, item_id: str, reason: str, words: str) -> Failure:
        """A Failure whose reason is the same for all alike; the server's own words are told once."""
        if reason not in self._told:
            self._told.add(reason)
            self._notify(f"{reason}: {words}" if words else reason)
        return Failure(item_id, reason)

    def _ids_of(self, choices: tuple[str, ...]) -> tuple[int, ...]:
        """The first token of each choice as the assistant would write it, by the server's tokenizer; () where
        it does not say.

        Raises EngineError where two are the same.
        """
        if choices not in self._choice_ids:
            found = tuple(id_ for choice in choices if (id_ := self._first_token(choice)) is not None)
            if len(found) == len(choices) and len(set(found)) < len(found):
                raise EngineError(
                    f"the choices {list(choices)} begin with the same token; give others with judging.choices"
                )
            self._choice_ids[choices] = found if len(found) == len(choices) else ()
        return self._choice_ids[choices]

    def _first_token(self, text: str) -> int | None:
        turns = [{"role": "user", "content": "a"}]
        base: Body = {"model": self.model}
        url = self._client.url.removesuffix("/v1") + "/tokenize"
        prompt = self._client.post(url, base | {"messages": turns, "add_generation_prompt": True})
        whole = self._client.post(
            url,
            base
            | {
                "messages": [*turns, {"role": "assistant", "content": text}],
                "add_generation_prompt": False,
                "continue_final_message": True,
            },
        )
        a, b = ((answer or {}).get("tokens") for answer in (prompt, whole))
        if not isinstance(a, list) or not isinstance(b, list) or b[: len(a)] != a or len(b) == len(a):
            return None
        return int(b[len(a)])

    # What the server can do.

    def _find_model(self, model: str) -> tuple[str, int | None]:
        """The model's name on the server, and its context in tokens where the server says so."""
        listed = (self._client.get(f"{self._client.url}/models") or {}).get("data")
        served = (
            {str(m["id"]): m for m in listed if isinstance(m, dict) and "id" in m}
            if isinstance(listed, list)
            else {}
        )
        wanted = self.config.model or model
        if wanted not in served and served:
            if self.config.model is not None or len(served) > 1:
                names = ", ".join(sorted(served)[:10])
                raise EngineError(
                    f"{self._client.url} serves no {wanted!r}. Set engine.openai.model to one of what it "
                    f"serves: {names}"
                )
            (wanted,) = served
        room = served.get(wanted, {}).get("max_model_len")
        return wanted, room if isinstance(room, int) else None

    def _probe(self) -> Skills:
        """Ask for each skill until it is seen or was missing in `TRIES` answers."""
        skills = Skills()
        sampling = Sampling(8)
        texts = self._texts([self._body(_QUESTION, sampling, seed) for seed in (1, 1, 2)])
        if None in texts:
            raise EngineError(f"{self._client.url} refuses a plain chat request: {self._refused}")
        skills.seed = texts[0] == texts[1] != texts[2]
        skills.n = self._shows(
            self._body(_QUESTION, sampling, 1, n=2),
            lambda answer: len({choice["index"] for choice in answer["choices"]}) == 2,
        )
        skills.logprobs = self._shows(
            self._body(_QUESTION, Sampling(1), 1, logprobs=True),
            lambda answer: math.isfinite(answer["choices"][0]["logprobs"]["content"][0]["logprob"]),
        )
        for top in TOP:
            if self._shows(
                self._body(_QUESTION, Sampling(1), 1, logprobs=True, top_logprobs=top),
                lambda answer: len(_top_logprobs(answer)) > 1,
            ):
                skills.top_logprobs = top
                break
        if ids := self._ids_of(("1", "2")):
            more = {
                "logprobs": True,
                "top_logprobs": 0,
                "logprob_token_ids": list(ids),
                "return_tokens_as_token_ids": True,
            }
            skills.logprob_token_ids = self._shows(
                self._body(_QUESTION, Sampling(1), 1, **more),
                lambda answer: len(_by_id(_top_logprobs(answer), ids)) == 2,
            )
        wish = ["1 > 2", "2 > 1"]
        skills.structured_choice = self._shows(
            self._body(_QUESTION, sampling, 1, structured_outputs={"choice": wish}),
            lambda answer: answer["choices"][0]["message"]["content"].strip() in wish,
        )
        if self._chat is not None:
            same = self._chat.prompt_ids(_QUESTION)
            skills.token_ids = self._shows(
                self._body(_QUESTION, sampling, 1, return_token_ids=True),
                lambda answer: answer["prompt_token_ids"] == same and bool(answer["choices"][0]["token_ids"]),
            )
        return skills

    def _texts(self, bodies: list[Body]) -> list[str | None]:
        """The text that each gives, None where the server refuses."""
        return list(self._ask(bodies, _first_text))

    def _shows(self, body: Body, test: Callable[[Body], bool]) -> bool:
        """Whether an answer passes the test; tried some times, since a server may fail for the moment."""

        def passes(answer: Body) -> bool:
            _first_text(answer)  # raises where this answer says nothing about what the server can do
            try:
                return test(answer)
            except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, BadAnswerError):
                return False

        return any(self._ask([body] * TRIES, passes, PROBE_RETRIES))

    def _ask(
        self, bodies: list[Body], read: Callable[[Body], Any], retries: int | None = None
    ) -> Iterator[Any]:
        """Results of a few requests one after the other; None for one that is refused or never answered."""
        for body in bodies:
            calls = iter([Call(body, 32, read, self._no, lambda reason: None, retries)])
            yield from self._client.stream(lambda: next(calls, None))  # noqa: B023 (used up before the next round)

    def _no(self, error: RefusedError) -> None:
        self._refused = str(error)


@dataclass(frozen=True, slots=True)
class _Missing:
    """A sample that was not among the n that came: asked for again."""

    request: Request
    sample: Sample


def _first_text(answer: Body) -> str:
    """The text of a whole answer, or what a thinking model thought in its place. Raises BadAnswerError where
    it is none."""
    choice = answer["choices"][0]
    message = choice["message"]
    said = [message.get(key) for key in ("content", "reasoning_content", "reasoning")]
    text = next(
        (part for part in said if isinstance(part, str)),
        "" if choice.get("finish_reason") == "length" else None,
    )
    if choice.get("finish_reason") is None or text is None:
        raise BadAnswerError("an answer without text or end")
    return text


def _estimate(messages: tuple[Message, ...]) -> int:
    """About how many tokens a chat has, for tokens_per_minute: corrected once the server has counted."""
    return sum(len(m.content) // 4 + 4 for m in messages)


def _too_long(message: str) -> bool:
    """Whether a refusal says that prompt and answer do not fit into the model's context."""
    text = message.lower()
    return any(
        words in text
        for words in (
            "context length",
            "max_model_len",
            "context size",
            "maximum context",
            "too long",
            "max_new_tokens",
        )
    )


def _top_logprobs(answer: Body) -> list[tuple[str, float]]:
    """(token, log-probability in nats) of the alternatives for the first token. Raises BadAnswerError for
    what is none."""
    first = answer["choices"][0]["logprobs"]["content"][0]
    tops = [(str(top["token"]), float(top["logprob"])) for top in first["top_logprobs"]]
    if any(math.isnan(value) or value > 1e-3 for _, value in tops):
        raise BadAnswerError("a log-probability that is none")
    return tops


def _by_id(tops: list[tuple[str, float]], ids: tuple[int, ...]) -> tuple[float, ...]:
    """The log-probabilities of these tokens. Raises KeyError (a bad answer) where one is missing."""
    values = dict(tops)
    return tuple(values[f"token_id:{id_}"] for id_ in ids)


def _by_text(tops: list[tuple[str, float]], choices: tuple[str, ...]) -> tuple[float, ...]:
    """The log-probability of the token that begins each choice. One that is not among the alternatives gets
    the most that it can
    have: the least of theirs, or what they leave over. NaN for all where none is there.

    Raises BadAnswerError where there are no alternatives.
    """
    if not tops:
        raise BadAnswerError("no alternatives")
    found = [_first_of(tops, choice, [other for other in choices if other != choice]) for choice in choices]
    if all(value is None for value in found):
        return (math.nan,) * len(choices)
    rest = max(1e-30, 1 - sum(math.exp(value) for _, value in tops))
    bound = min(math.log(rest), *(value for _, value in tops))
    return tuple(bound if value is None else value for value in found)


def _first_of(tops: list[tuple[str, float]], choice: str, others: list[str]) -> float | None:
    """The log-probability of the longest token that begins `choice` and no other, with spaces before it or
    without: whichever the model would rather write."""
    fitting = [
        (len(text), value)
        for token, value in tops
        if (text := token.lstrip())
        and choice.lstrip().startswith(text)
        and not any(other.lstrip().startswith(text) for other in others)
    ]
    return max(fitting)[1] if fitting else None
