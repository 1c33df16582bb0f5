"""The engine for a server that speaks POST /v1/chat/completions: vLLM, SGLang, llama.cpp, Ollama, TGI, a
hosted one.

Servers differ in what they do and some ignore in silence what they cannot: at the start a few short requests
find out (`sao.engines.openai_skills`), and every answer is checked before it counts. Each sample is a request
of its own with its own seed, so it does not depend on what else is asked; only where a server knows no seeds,
but n, are the samples of a prompt one request. Where the model's tokenizer is here and the server shows its
token ids (vLLM), the samples' ids are kept for training.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sao.config import ChatConfig, EngineConfig
from sao.engines import (
    ChoiceRequest,
    Choices,
    Completion,
    Failure,
    Request,
    Sample,
    Sampling,
    Usage,
    completed,
    require_prefill,
)
from sao.engines.client import Call, Client
from sao.engines.json_http import BadAnswerError, RefusedError
from sao.engines.openai_answers import (
    completions_top_logprobs,
    cut_prompt,
    early_end,
    finish_of,
    finished_text,
    is_too_long,
    logprobs_by_id,
    logprobs_by_text,
    thought_of,
    token_name,
    top_logprobs,
    written_text,
)
from sao.engines.openai_models import find_served
from sao.engines.openai_requests import (
    CHAT,
    COMPLETIONS,
    LIMITS,
    Body,
    RequestWriter,
    ServerTokenizer,
    estimated_tokens,
    is_open_turn,
    least_tokens,
    logprobs_of_ids,
)
from sao.engines.openai_skills import TOP, SkillProbe, continues_token_ids
from sao.errors import EngineError
from sao.models.locate import identity_of, is_local
from sao.records import FinishReason, Message

if TYPE_CHECKING:
    from sao.models.chat import ChatTokenizer

CUT = "prompt cut off by the server"
"""Why a sample fails whose prompt the server did not read whole."""


@dataclass(frozen=True, slots=True)
class _Missing:
    """A sample that was not among the n that came: asked for again."""

    request: Request
    sample: Sample


Results = list[Completion | Failure | _Missing]


class OpenAIEngine:
    """See the module's docstring and `sao.engines.Engine`."""

    name = "openai"

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        revision: str | None = None,
        notify: Callable[[str], None] = lambda line: None,
        chat: ChatConfig | None = None,
    ) -> None:
        """Reach the server and find out what it can do. Raises EngineError where it is not there, lacks the
        model, or wants a key; or where `chat` holds a template, since the server applies its own."""
        chat = chat or ChatConfig()
        if chat.template is not None:
            raise EngineError(
                "chat.template: a server writes chats by its own template. Start it with that file (vLLM: "
                "--chat-template FILE) and take the key out",
                key="chat.template",
            )
        self.identity = identity_of(config, model, revision, chat)
        self.config, self._notify = config.openai, notify
        self._told: set[str] = set()
        """What the user was told once already."""
        self._chat: ChatTokenizer | None = None
        self._client = Client(self.config, os.environ.get(self.config.api_key_env) or None, notify)
        self.usage: Usage | None = self._client.usage
        try:
            self._open(model, config, revision, chat)
        except BaseException:
            self.close()
            raise

    def _open(self, model: str, config: EngineConfig, revision: str | None, chat: ChatConfig) -> None:
        """Find the model and what the server can do, and tell the user."""
        client, wanted = self._client, self.config.model
        listed = client.get(f"{client.url}/models")
        served = find_served(listed, wanted or model, wanted is not None, client.url)
        self.model, self._context = served.name, served.context
        if is_local(model):
            from sao.models.chat import ChatTokenizer

            self._chat = ChatTokenizer.load(model, config, revision, chat)
        self._writer = RequestWriter(
            self.model, self.config, self._chat, served.neutral or {}, template_args=chat.template_args
        )
        self._server_tokenizer = ServerTokenizer(client, self.model, chat.template_args)
        probe = SkillProbe(client, self._writer, self._server_tokenizer)
        self.skills = probe.skills()
        self._notify(f"{client.where} serves {self.model}; it can do: {self.skills}")
        if served.neutral is None:
            probe.notes.append(
                "it cannot be seen whether this server limits sampling by settings of its own (top_k, min_p, "
                "repetition_penalty); engine.openai.extra_body sets them"
            )
        for note in probe.notes:
            self._notify(note)
        self.has_logprobs = self.skills.top_logprobs > 0 or self.skills.logprob_token_ids
        if not self.has_logprobs:
            self._notify(
                "this server gives no log-probabilities: verdicts are read from text (judging.method text)"
            )

    @cached_property
    def has_prefill(self) -> bool:
        """Whether the server goes on from a turn that has begun (see `continues_token_ids`)."""
        return continues_token_ids(self._client, self._writer)

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

        def pull() -> Call[Results] | None:
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
            if request is None:
                return None
            return self._open_turn_choice_call(request) if request.prefill else self._choice_call(request)

        yield from self._client.stream(pull)

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    # Completions

    def _completion_call(self, request: Request, samples: tuple[Sample, ...]) -> Call[Results]:
        call: Call[Results] = Call(
            body=self._completion_body(request, samples),
            tokens=estimated_tokens(request.messages) + len(samples) * request.sampling.max_tokens,
            read=lambda answer: self._completions(request, samples, answer, call.body),
            refused=lambda error: self._refused_completions(request, samples, call, error),
            given_up=lambda fault: [self._given_up(sample.id, fault) for sample in samples],
            path=COMPLETIONS if is_open_turn(request) else CHAT,
        )
        return call

    def _completion_body(self, request: Request, samples: tuple[Sample, ...]) -> Body:
        more: Body = {"n": len(samples)} if len(samples) > 1 else {}
        if request.sampling.one_of and self.skills.structured_choice:
            more["structured_outputs"] = {"choice": list(request.sampling.one_of)}
        if self.skills.token_ids:
            more["return_token_ids"] = True
        body = self._writer.body(request.messages, request.sampling, samples[0].seed, **more)
        if not is_open_turn(request):
            return body
        require_prefill(self, self._client.url)
        return self._writer.open_turn_body(body, request)

    def _completions(
        self, request: Request, samples: tuple[Sample, ...], answer: Body, asked: Body
    ) -> Results:
        """What an answer holds for each of `samples`."""
        choices = answer["choices"]
        if not choices:
            raise BadAnswerError("an answer without choices")
        if self._is_cut(request.messages, answer, asked):
            return [Failure(sample.id, CUT) for sample in samples]
        single = len(samples) == 1
        if single and finish_of(choices[0]) == "length":
            most = asked.get(LIMITS[0] if is_open_turn(request) else self._writer.limit)
            if note := early_end(answer, most, self._context):
                self._tell_once("early end", note)
        by_index = {0 if single else int(choice["index"]): choice for choice in reversed(choices)}
        return [
            self._completion(request, sample.id, by_index[index])
            if index in by_index
            else _Missing(request, sample)
            for index, sample in enumerate(samples)
        ]

    def _completion(self, request: Request, sample_id: str, choice: Body) -> Completion | Failure:
        """A finished sample; text that is no text, or an unknown end, is a bad answer."""
        message = {"content": choice["text"]} if is_open_turn(request) else choice["message"]
        if choice.get("finish_reason") == "content_filter":
            return Failure(sample_id, "held back by the server's content filter")
        finish = finish_of(choice)
        if finish is None:
            raise BadAnswerError(f"finish_reason {choice.get('finish_reason')!r}")
        text = finished_text(message, finish)
        # Ids with reasoning among them are not those of the text.
        ids = None if thought_of(message) or text != written_text(message) else choice.get("token_ids")
        if self._chat is not None and self.skills.token_ids and isinstance(ids, list) and ids:
            return self._completion_of_ids(self._chat, request, sample_id, ids, finish)
        # some tokenizers begin every text with a space
        return Completion(sample_id, text.lstrip(" "), None, finish, thought_of(message))

    def _completion_of_ids(
        self, chat: ChatTokenizer, request: Request, sample_id: str, ids: list[int], finish: FinishReason
    ) -> Completion:
        """A finished sample whose text is decoded here, as the built-in engine decodes it."""
        _, end_texts = self._writer.turn_ends(request)
        stops = (*request.sampling.stop, *(end_texts if is_open_turn(request) else ()))
        return completed(chat, sample_id, ids, request.as_user, stops, stopped=finish == "stop")

    def _refused_completions(
        self, request: Request, samples: tuple[Sample, ...], call: Call[Results], error: RefusedError
    ) -> Results | Call[Results]:
        """What becomes of refused samples: too long a prompt gives empty completions, else a Failure each."""
        if not is_too_long(error.message):
            return [self._refusal(sample.id, error) for sample in samples]
        limit = LIMITS[0] if is_open_turn(request) else self._writer.limit
        if self._context and limit in call.body and request.sampling.max_tokens > 1:
            # Sent again without max_tokens, the server takes what room there is, less than was asked for.
            call.body = {name: value for name, value in call.body.items() if name != limit}
            return call
        return [Completion(sample.id, "", None, "length") for sample in samples]

    def _is_cut(self, messages: tuple[Message, ...], answer: Body, asked: Body) -> bool:
        """Whether the server read less than the whole prompt; told once."""
        ids = asked.get("prompt")
        note = cut_prompt(answer, 0.9 * len(ids) if ids else least_tokens(messages, self._chat))
        if note:
            self._tell_once(CUT, note)
        return bool(note)

    # Choices

    def _choice_call(self, request: ChoiceRequest) -> Call[Choices | Failure]:
        by_id = self.skills.logprob_token_ids
        ids = self._server_tokenizer.first_tokens(request.choices) if by_id else ()
        top_settings: Body = {"logprobs": True, "top_logprobs": self.skills.top_logprobs}

        def read(answer: Body) -> Choices | Failure:
            if self._is_cut(request.messages, answer, body):
                return Failure(request.id, CUT)
            tops = top_logprobs(answer)
            if ids:
                return Choices(request.id, logprobs_by_id(tops, ids))
            return self._choices_by_text(request.id, tops, request.choices)

        body = self._one_token_body(request.messages, logprobs_of_ids(ids) if ids else top_settings)
        return self._one_token_call(request, body, estimated_tokens(request.messages), read, CHAT)

    def _open_turn_choice_call(self, request: ChoiceRequest) -> Call[Choices | Failure]:
        """The log-probabilities of the tokens that go on from a reply that has begun."""
        require_prefill(self, self._client.url)
        assert self._chat is not None
        ids, choice_ids = self._chat.choice_ids(request.messages, request.choices, request.prefill)
        choice_texts = tuple(self._chat.tokenizer.decode([token]) for token in choice_ids)
        names = [token_name(token) for token in choice_ids]
        text_of_name = dict(zip(names, choice_texts, strict=True))

        def read(answer: Body) -> Choices | Failure:
            if self._is_cut((), answer, body):
                return Failure(request.id, CUT)
            tops = completions_top_logprobs(answer)
            logprobs = dict(tops)
            if all(name in logprobs for name in names):
                return Choices(request.id, tuple(logprobs[name] for name in names))
            by_text = [(text_of_name.get(token, token), logprob) for token, logprob in tops]
            return self._choices_by_text(request.id, by_text, choice_texts)

        body = self._writer.by_token_ids(self._one_token_body((), {}), ids)
        body |= {"logprobs": self.skills.top_logprobs or TOP[-1], "return_tokens_as_token_ids": True}
        return self._one_token_call(request, body, len(ids), read, COMPLETIONS)

    def _choices_by_text(
        self, request_id: str, tops: list[tuple[str, float]], choices: tuple[str, ...]
    ) -> Choices:
        """The choices' log-probabilities; told once what came instead where none of them is there."""
        logprobs = logprobs_by_text(tops, choices)
        if all(map(math.isnan, logprobs)):
            likeliest = [repr(token) for token, _ in sorted(tops, key=lambda top: -top[1])[:5]]
            self._tell_once(
                "no choice",
                f"an answer begins with none of the choices {', '.join(map(repr, choices))}: the likeliest "
                f"tokens are {', '.join(likeliest)}. Such verdicts are unparseable; judging.method text "
                "reads whole answers",
            )
        return Choices(request_id, logprobs)

    def _one_token_body(self, messages: tuple[Message, ...], settings: Body) -> Body:
        """A request for one token. At temperature 1 the log-probabilities are the model's own, whether or not
        a server scales them; without a seed, since which token is drawn plays no part."""
        body = self._writer.body(messages, Sampling(1), 0, **settings)
        body.pop("seed", None)
        return body

    def _one_token_call(
        self,
        request: ChoiceRequest,
        body: Body,
        prompt_tokens: int,
        read: Callable[[Body], Choices | Failure],
        path: str,
    ) -> Call[Choices | Failure]:
        """The call for one token; a chat that does not fit gives NaN."""

        def refused(error: RefusedError) -> Choices | Failure:
            if is_too_long(error.message):
                return Choices(request.id, (math.nan,) * len(request.choices))
            return self._refusal(request.id, error)

        return Call(
            body, prompt_tokens + 1, read, refused, lambda fault: self._given_up(request.id, fault), path=path
        )

    # Failures

    def _refusal(self, item_id: str, error: RefusedError) -> Failure:
        return self._failure(item_id, f"refused by the server (HTTP {error.status})", error.message)

    def _given_up(self, item_id: str, fault: str) -> Failure:
        kind, _, words = fault.partition(": ")
        return self._failure(item_id, f"no usable answer ({kind})", words)

    def _failure(self, item_id: str, reason: str, words: str) -> Failure:
        """A Failure whose reason is the same for all alike; the server's own words are told once."""
        self._tell_once(reason, f"{reason}: {words}" if words else reason)
        return Failure(item_id, reason)

    def _tell_once(self, topic: str, line: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            self._notify(line)
