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
    cut_at,
    require_prefill,
)
from sao.engines.client import Call, Client
from sao.engines.json_http import BadAnswerError, RefusedError
from sao.engines.openai_answers import (
    completions_top_logprobs,
    finished_text,
    is_too_long,
    logprobs_by_id,
    logprobs_by_text,
    token_name,
    top_logprobs,
)
from sao.engines.openai_requests import (
    CHAT,
    COMPLETIONS,
    Body,
    RequestWriter,
    ServerTokenizer,
    by_token_ids,
    estimated_tokens,
    is_open_turn,
    logprobs_of_ids,
)
from sao.engines.openai_skills import TOP, SkillProbe, continues_token_ids
from sao.errors import EngineError
from sao.models.locate import identity_of, is_local
from sao.records import FinishReason, Message

if TYPE_CHECKING:
    from sao.models.chat import ChatTokenizer


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
        self._reasons_told: set[str] = set()
        self._chat: ChatTokenizer | None = None
        self._client = Client(self.config, os.environ.get(self.config.api_key_env) or None, notify)
        self.usage: Usage | None = self._client.usage
        try:
            self.model, self._context = self._find_model(model)
            if is_local(model):
                from sao.models.chat import ChatTokenizer

                self._chat = ChatTokenizer.load(model, config, revision, chat)
            self._writer = RequestWriter(self.model, self.config, self._chat, chat.template_args)
            self._server_tokenizer = ServerTokenizer(self._client, self.model, chat.template_args)
            self.skills = SkillProbe(self._client, self._writer, self._server_tokenizer).skills()
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

    def _find_model(self, model: str) -> tuple[str, int | None]:
        """The model's name on the server, and its context in tokens where the server says so."""
        listed = (self._client.get(f"{self._client.url}/models") or {}).get("data")
        entries = listed if isinstance(listed, list) else []
        served = {str(entry["id"]): entry for entry in entries if isinstance(entry, dict) and "id" in entry}
        wanted = self.config.model or model
        if wanted not in served and served:
            if self.config.model is not None or len(served) > 1:
                names = ", ".join(sorted(served)[:10])
                raise EngineError(
                    f"{self._client.url} serves no {wanted!r}. Set engine.openai.model to one of what it "
                    f"serves: {names}",
                    key="engine.openai.model",
                )
            (wanted,) = served
        context = served.get(wanted, {}).get("max_model_len")
        return wanted, context if isinstance(context, int) else None

    # Completions

    def _completion_call(self, request: Request, samples: tuple[Sample, ...]) -> Call[Results]:
        call: Call[Results] = Call(
            body=self._completion_body(request, samples),
            tokens=estimated_tokens(request.messages) + len(samples) * request.sampling.max_tokens,
            read=lambda answer: self._completions(request, samples, answer),
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

    def _completions(self, request: Request, samples: tuple[Sample, ...], answer: Body) -> Results:
        """What an answer holds for each of `samples`."""
        choices = answer["choices"]
        if not choices:
            raise BadAnswerError("an answer without choices")
        single = len(samples) == 1
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
        finish = choice.get("finish_reason")
        if finish == "content_filter":
            return Failure(sample_id, "held back by the server's content filter")
        if finish not in ("stop", "length"):
            raise BadAnswerError(f"finish_reason {finish!r}")
        text = finished_text(message, finish)
        ids = choice.get("token_ids")
        if self._chat is not None and self.skills.token_ids and isinstance(ids, list) and ids:
            return self._completion_of_ids(self._chat, request, sample_id, ids, finish)
        # some tokenizers begin every text with a space
        return Completion(sample_id, text.lstrip(" "), None, finish)

    def _completion_of_ids(
        self, chat: ChatTokenizer, request: Request, sample_id: str, ids: list[int], finish: FinishReason
    ) -> Completion:
        """A finished sample whose text is decoded here, as the built-in engine decodes it."""
        end_ids, end_texts = self._writer.turn_ends(request)
        has_end = ids[-1] in end_ids and finish == "stop"
        text, kept = chat.read(ids[:-1] if has_end else ids, request.as_user)
        stops = (*request.sampling.stop, *(end_texts if is_open_turn(request) else ()))
        return Completion(sample_id, text[: cut_at(text, stops)], tuple(ids) if kept else None, finish)

    def _refused_completions(
        self, request: Request, samples: tuple[Sample, ...], call: Call[Results], error: RefusedError
    ) -> Results | Call[Results]:
        """What becomes of refused samples: too long a prompt gives empty completions, else a Failure each."""
        if not is_too_long(error.message):
            return [self._refusal(sample.id, error) for sample in samples]
        if self._context and "max_tokens" in call.body and request.sampling.max_tokens > 1:
            # Sent again without max_tokens, the server takes what room there is, less than was asked for.
            call.body = {name: value for name, value in call.body.items() if name != "max_tokens"}
            return call
        return [Completion(sample.id, "", None, "length") for sample in samples]

    # Choices

    def _choice_call(self, request: ChoiceRequest) -> Call[Choices | Failure]:
        by_id = self.skills.logprob_token_ids
        ids = self._server_tokenizer.first_tokens(request.choices) if by_id else ()
        top_settings: Body = {"logprobs": True, "top_logprobs": self.skills.top_logprobs}

        def read(answer: Body) -> Choices | Failure:
            tops = top_logprobs(answer)
            logprobs = logprobs_by_id(tops, ids) if ids else logprobs_by_text(tops, request.choices)
            return Choices(request.id, logprobs)

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
            tops = completions_top_logprobs(answer)
            logprobs = dict(tops)
            if all(name in logprobs for name in names):
                return Choices(request.id, tuple(logprobs[name] for name in names))
            by_text = [(text_of_name.get(token, token), logprob) for token, logprob in tops]
            return Choices(request.id, logprobs_by_text(by_text, choice_texts))

        body = by_token_ids(self._one_token_body((), {}), ids)
        body |= {"logprobs": self.skills.top_logprobs or TOP[-1], "return_tokens_as_token_ids": True}
        return self._one_token_call(request, body, len(ids), read, COMPLETIONS)

    def _one_token_body(self, messages: tuple[Message, ...], settings: Body) -> Body:
        """A request for one token. At temperature 1 the log-probabilities are the model's own, whether or not
        a server scales them; without a seed, since which token is drawn plays no part."""
        body = self._writer.body(messages, Sampling(1), 0, **settings)
        del body["seed"]
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
        if reason not in self._reasons_told:
            self._reasons_told.add(reason)
            self._notify(f"{reason}: {words}" if words else reason)
        return Failure(item_id, reason)
