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
from sao.engines.openai_answers import (
    first_text,
    logprobs_by_id,
    reasoning_opener,
    thought_of,
    token_texts,
    tokens_written,
    top_logprobs,
    written_text,
)
from sao.engines.openai_requests import (
    COMPLETIONS,
    LIMITS,
    Body,
    RequestWriter,
    ServerTokenizer,
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
PLAIN_TOKENS = 8
"""Most tokens of a plain answer."""
QUESTION = (Message("user", "Write down a random word and a random number. Then count from 1 to 50."),)
"""Its answers differ from the first words on, and are far longer than `PLAIN_TOKENS` where nothing ends
them."""


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
    """Asks a server for each skill, and tells the writer what it refuses. `notes` is what the user should
    know."""

    def __init__(self, client: Client, writer: RequestWriter, tokenizer: ServerTokenizer) -> None:
        self._client, self._writer, self._tokenizer = client, writer, tokenizer
        self._last_refusal = ""
        self._reasoning = ""
        """How the model begins to reason, "" where it was not seen to."""
        self.notes: list[str] = []

    def skills(self) -> Skills:
        """What the server can do. Raises EngineError where it refuses a plain chat request."""
        first_answer = self._settle_limit()
        skills = Skills(
            seed=self._seed(first_answer),
            n=self._n(),
            logprobs=self._logprobs(),
            top_logprobs=self._top_logprobs(),
            logprob_token_ids=self._logprob_token_ids(),
            structured_choice=self._structured_choice(),
            token_ids=self._token_ids(),
        )
        if self._reasoning:
            skills.top_logprobs, skills.logprob_token_ids = 0, False
            self.notes.append(
                f"the model begins its answers with reasoning ({self._reasoning!r}), so their first token is "
                "no verdict. Limits of tokens (judging.max_tokens, responses.max_tokens) hold the reasoning "
                "too. With vLLM and SGLang many models do without it by --engine.openai.extra_body "
                "'{chat_template_kwargs: {enable_thinking: false}}'"
            )
        return skills

    def _settle_limit(self) -> str:
        """Find the name by which the server takes the most tokens of an answer and keeps to it, and leave out
        what it refuses; the answer that it gave. Raises EngineError where it refuses a plain chat request
        whatever is left out."""
        names, refusal, too_long = [*LIMITS], "", ("", 0)
        while names:
            self._writer.limit = names.pop(0)
            (answer,) = self._ask([self._body(PLAIN_TOKENS)], lambda a: (self._text(a), tokens_written(a)))
            if answer is None:
                refusal = refusal or self._last_refusal
                if self._writer.limit in self._last_refusal:
                    names.sort(key=lambda name: name not in self._last_refusal)  # the one that it names first
                elif left_out := self._writer.leave_out(self._last_refusal):
                    self.notes.append(f"the server refuses {left_out}: it is left out where it can be")
                    names.insert(0, self._writer.limit)
                else:
                    break
            elif answer[1] <= 2 * PLAIN_TOKENS:
                if self._writer.limit != LIMITS[0]:
                    self.notes.append(f"the server takes {self._writer.limit} in place of max_tokens")
                return str(answer[0])
            else:
                too_long = too_long if too_long[1] else answer
        if not too_long[1]:
            raise EngineError(
                f"{self._client.where} refuses a plain chat request: {refusal}",
                key="server",
            )
        self._writer.limit = LIMITS[0]
        self.notes.append(
            f"the server does not keep to max_tokens: it wrote {too_long[1]} tokens where {PLAIN_TOKENS} "
            "were asked for"
        )
        return too_long[0]

    def _seed(self, first: str) -> bool:
        """Whether another answer to the same request as `first` is the same, and one with another seed is
        not."""
        same, other = self._ask([self._body(PLAIN_TOKENS, seed=seed) for seed in (1, 2)], self._text)
        if first and first == same == other:
            self.notes.append(
                f"answers at temperature 1 with two seeds begin alike ({first!r}): the server may take "
                "top_k, repetition_penalty or a temperature from its own settings or from the model's "
                "generation_config.json. engine.openai.extra_body sets them"
            )
        return first == same and other not in (None, first)

    def _text(self, answer: Body) -> str:
        """The text of a plain answer; whether the model reasons before it is noted."""
        text, message = first_text(answer), answer["choices"][0]["message"]
        self._note_reasoning("" if written_text(message) else thought_of(message), text)
        return text

    def _note_reasoning(self, thought: str, text: str) -> None:
        """Remember it where a model reasons before it answers: beside its text, or in it."""
        self._reasoning = self._reasoning or thought[:40] or reasoning_opener(text)

    def _n(self) -> bool:
        def has_two(answer: Body) -> bool:
            return len({choice["index"] for choice in answer["choices"]}) == 2

        return self._shows(self._body(PLAIN_TOKENS, n=2), has_two)

    def _logprobs(self) -> bool:
        def has_logprob(answer: Body) -> bool:
            return math.isfinite(answer["choices"][0]["logprobs"]["content"][0]["logprob"])

        return self._shows(self._body(max_tokens=1, logprobs=True), has_logprob)

    def _top_logprobs(self) -> int:
        def has_alternatives(answer: Body) -> bool:
            tops = top_logprobs(answer)
            likeliest = max(tops, key=lambda top: top[1])[0]
            self._note_reasoning("", next(filter(reasoning_opener, token_texts(likeliest)), ""))
            return len(tops) > 1

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
            return (written_text(answer["choices"][0]["message"]) or "").strip() in allowed

        return self._shows(self._body(PLAIN_TOKENS, structured_outputs={"choice": allowed}), is_allowed)

    def _token_ids(self) -> bool:
        if self._writer.chat is None:
            return False
        prompt_ids = self._writer.chat.prompt_ids(QUESTION)

        def has_same_prompt(answer: Body) -> bool:
            return answer["prompt_token_ids"] == prompt_ids and bool(answer["choices"][0]["token_ids"])

        return self._shows(self._body(PLAIN_TOKENS, return_token_ids=True), has_same_prompt)

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
    body = writer.by_token_ids(writer.body(QUESTION, Sampling(4), seed=1), ids)
    answer = client.post(client.url + COMPLETIONS, body)
    try:
        text, prompt_tokens = answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]  # type: ignore[index]
        return isinstance(text, str) and prompt_tokens == len(ids)
    except (LookupError, TypeError):
        return False
