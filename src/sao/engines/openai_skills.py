"""What a server can do, found out by a few short requests.

Servers differ in what they do, and some silently ignore what they cannot: each skill is asked for until an
answer shows it, or `TRIES` good answers do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from sao.engines import Sampling
from sao.engines.client import Call, Client
from sao.engines.json_http import BadAnswerError, RefusedError
from sao.engines.openai_answers import first_text, logprobs_by_id, top_logprobs
from sao.engines.openai_requests import (
    COMPLETIONS,
    Body,
    RequestWriter,
    ServerTokenizer,
    by_token_ids,
    logprobs_of_ids,
)
from sao.errors import EngineError
from sao.records import Message

TRIES = 3
"""Good answers without a skill after which the server lacks it."""
PROBE_RETRIES = 3
"""Further tries of a request for a skill: some servers fail (HTTP 500) where they should refuse."""
PROBE_TOKENS = 32
"""About as many as a probe takes, for tokens_per_minute."""
TOP = (20, 5)
"""Numbers of top_logprobs that servers allow: most 20, some 5."""
QUESTION = (Message("user", "Write down a random word and a random number."),)


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
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        present = [name if value is True else f"{name} {value}" for name, value in values.items() if value]
        missing = [name for name, value in values.items() if not value]
        return ", ".join(present or ["nothing but text"]) + (
            f" (not: {', '.join(missing)})" if missing else ""
        )


class SkillProbe:
    """Asks a server for each skill."""

    def __init__(self, client: Client, writer: RequestWriter, tokenizer: ServerTokenizer) -> None:
        self._client, self._writer, self._tokenizer = client, writer, tokenizer
        self._last_refusal = ""

    def skills(self) -> Skills:
        """What the server can do. Raises EngineError where it refuses a plain chat request."""
        return Skills(
            seed=self._seed(),
            n=self._n(),
            logprobs=self._logprobs(),
            top_logprobs=self._top_logprobs(),
            logprob_token_ids=self._logprob_token_ids(),
            structured_choice=self._structured_choice(),
            token_ids=self._token_ids(),
        )

    def _seed(self) -> bool:
        bodies = [self._body(max_tokens=8, seed=seed) for seed in (1, 1, 2)]
        texts = list(self._ask(bodies, first_text))
        if None in texts:
            raise EngineError(
                f"{self._client.url} refuses a plain chat request: {self._last_refusal}", key="server"
            )
        return bool(texts[0] == texts[1] != texts[2])

    def _n(self) -> bool:
        def has_two(answer: Body) -> bool:
            return len({choice["index"] for choice in answer["choices"]}) == 2

        return self._shows(self._body(max_tokens=8, n=2), has_two)

    def _logprobs(self) -> bool:
        def has_logprob(answer: Body) -> bool:
            return math.isfinite(answer["choices"][0]["logprobs"]["content"][0]["logprob"])

        return self._shows(self._body(max_tokens=1, logprobs=True), has_logprob)

    def _top_logprobs(self) -> int:
        def has_alternatives(answer: Body) -> bool:
            return len(top_logprobs(answer)) > 1

        for top in TOP:
            if self._shows(self._body(max_tokens=1, logprobs=True, top_logprobs=top), has_alternatives):
                return top
        return 0

    def _logprob_token_ids(self) -> bool:
        ids = self._tokenizer.first_tokens(("1", "2"))
        if not ids:
            return False

        def has_both(answer: Body) -> bool:
            return len(logprobs_by_id(top_logprobs(answer), ids)) == 2

        return self._shows(self._body(max_tokens=1, **logprobs_of_ids(ids)), has_both)

    def _structured_choice(self) -> bool:
        allowed = ["1 > 2", "2 > 1"]

        def is_allowed(answer: Body) -> bool:
            return answer["choices"][0]["message"]["content"].strip() in allowed

        return self._shows(self._body(max_tokens=8, structured_outputs={"choice": allowed}), is_allowed)

    def _token_ids(self) -> bool:
        if self._writer.chat is None:
            return False
        prompt_ids = self._writer.chat.prompt_ids(QUESTION)

        def has_same_prompt(answer: Body) -> bool:
            return answer["prompt_token_ids"] == prompt_ids and bool(answer["choices"][0]["token_ids"])

        return self._shows(self._body(max_tokens=8, return_token_ids=True), has_same_prompt)

    def _body(self, max_tokens: int, seed: int = 1, **more: Any) -> Body:
        return self._writer.body(QUESTION, Sampling(max_tokens), seed, **more)

    def _shows(self, body: Body, test: Callable[[Body], bool]) -> bool:
        """Whether an answer passes the test; tried some times, since a server may fail for the moment."""

        def passes(answer: Body) -> bool:
            first_text(answer)  # raises where this answer says nothing about what the server can do
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
            calls = iter([Call(body, PROBE_TOKENS, read, self._refused, lambda reason: None, retries)])
            yield from self._client.stream(lambda: next(calls, None))  # noqa: B023 (used up before the next round)

    def _refused(self, error: RefusedError) -> None:
        self._last_refusal = str(error)


def continues_token_ids(client: Client, writer: RequestWriter) -> bool:
    """Whether the server goes on from token ids, just as they are: with the model's own tokenizer here, a
    turn that has begun can be written out."""
    if writer.chat is None:
        return False
    ids = writer.chat.prompt_ids(QUESTION, "The")
    body = {"model": writer.model, "max_tokens": 4, "temperature": 1.0, "seed": 1}
    answer = client.post(client.url + COMPLETIONS, by_token_ids(body, ids) | writer.config.extra_body)
    try:
        text, prompt_tokens = answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]  # type: ignore[index]
        return isinstance(text, str) and prompt_tokens == len(ids)
    except (LookupError, TypeError):
        return False
