"""What an OpenAI-compatible server answers: texts, the alternatives of the first token, refusals.

An answer of another shape raises BadAnswerError, or LookupError, TypeError or ValueError, which the client
takes as the same.
"""

from __future__ import annotations

import math
from typing import Any

from sao.engines.json_http import BadAnswerError

Body = dict[str, Any]

TOO_LONG_WORDS = (
    "context length",
    "max_model_len",
    "context size",
    "maximum context",
    "too long",
    "max_new_tokens",
)
"""What servers say of a prompt and an answer that do not fit into the model's context."""


def is_too_long(refusal: str) -> bool:
    """Whether a refusal says that prompt and answer do not fit into the model's context."""
    text = refusal.lower()
    return any(words in text for words in TOO_LONG_WORDS)


def first_text(answer: Body) -> str:
    """The text of a whole answer, or what a thinking model thought in its place. Raises BadAnswerError where
    there is none."""
    choice = answer["choices"][0]
    message, finish = choice["message"], choice.get("finish_reason")
    written = [message.get(key) for key in ("content", "reasoning_content", "reasoning")]
    text = next((part for part in written if isinstance(part, str)), "" if finish == "length" else None)
    if finish is None or text is None:
        raise BadAnswerError("an answer without text or end")
    return text


def finished_text(message: Body, finish: str) -> str:
    """The text of a finished sample; "" where the model was still thinking, or thought and said nothing."""
    text = message.get("content")
    if text is None:
        thought = message.get("reasoning_content") or message.get("reasoning")
        if finish == "length" or thought:
            return ""
    if not isinstance(text, str):
        raise BadAnswerError("an answer without text")
    return text


def top_logprobs(answer: Body) -> list[tuple[str, float]]:
    """(token, log-probability in nats) of the alternatives for the first token, of /v1/chat/completions."""
    first = answer["choices"][0]["logprobs"]["content"][0]
    tops = [(str(top["token"]), float(top["logprob"])) for top in first["top_logprobs"]]
    if any(math.isnan(logprob) or logprob > 1e-3 for _, logprob in tops):
        raise BadAnswerError("a log-probability that is none")
    return tops


def completions_top_logprobs(answer: Body) -> list[tuple[str, float]]:
    """The same, of /v1/completions."""
    first = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return [(str(token), float(logprob)) for token, logprob in first.items()]


def token_name(token_id: int) -> str:
    """How vLLM writes a token when it is asked to return tokens as ids."""
    return f"token_id:{token_id}"


def logprobs_by_id(tops: list[tuple[str, float]], ids: tuple[int, ...]) -> tuple[float, ...]:
    """The log-probabilities of these tokens. Raises KeyError (a bad answer) where one is missing."""
    logprobs = dict(tops)
    return tuple(logprobs[token_name(token_id)] for token_id in ids)


def logprobs_by_text(tops: list[tuple[str, float]], choices: tuple[str, ...]) -> tuple[float, ...]:
    """The log-probability of the token that begins each choice.

    A choice that is not among the alternatives gets an upper bound: the lowest of theirs, or what they leave
    of the probability. NaN for all where none is there. Raises BadAnswerError without alternatives.
    """
    if not tops:
        raise BadAnswerError("no alternatives")
    logprobs = [
        _logprob_of_beginning(tops, choice, [other for other in choices if other != choice])
        for choice in choices
    ]
    if all(logprob is None for logprob in logprobs):
        return (math.nan,) * len(choices)
    rest = max(1e-30, 1 - sum(math.exp(logprob) for _, logprob in tops))
    bound = min(math.log(rest), *(logprob for _, logprob in tops))
    return tuple(bound if logprob is None else logprob for logprob in logprobs)


def _logprob_of_beginning(tops: list[tuple[str, float]], choice: str, others: list[str]) -> float | None:
    """The log-probability of the longest token that begins `choice` and no other, with spaces before it or
    without: whichever the model would rather write."""
    fitting = [
        (len(text), logprob)
        for token, logprob in tops
        if (text := token.lstrip())
        and choice.lstrip().startswith(text)
        and not any(other.lstrip().startswith(text) for other in others)
    ]
    return max(fitting)[1] if fitting else None
