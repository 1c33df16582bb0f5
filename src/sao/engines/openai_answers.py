"""What an OpenAI-compatible server answers: texts, the alternatives of the first token, refusals.

An answer of another shape raises BadAnswerError, or LookupError, TypeError or ValueError, which the client
takes as the same.
"""

from __future__ import annotations

import math
import re
from typing import Any

from sao.engines.json_http import BadAnswerError
from sao.models.template import THINKING
from sao.records import FinishReason

Body = dict[str, Any]

TOO_LONG_WORDS = (
    "context length",
    "max_model_len",
    "context size",
    "maximum context",
    "context window",
    "too long",
    "too many tokens",
    "input token count",
    "reduce the length",
    "max_new_tokens",
)
"""What servers say of a prompt and an answer that do not fit into the model's context."""


FINISHES: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length"), "length"),
}
"""How servers say that an answer is at its end, or was cut off."""
REASONING = {**dict(THINKING), "<|channel|>": "<|channel|>final<|message|>"}
"""How models begin and end their reasoning."""
_SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _SHOWN} | {
    chr(256 + place): byte for place, byte in enumerate(byte for byte in range(256) if byte not in _SHOWN)
}
"""The byte that each character stands for in a byte-level vocabulary (GPT-2's: a space is Ġ)."""


def is_too_long(refusal: str) -> bool:
    """Whether a refusal says that prompt and answer do not fit into the model's context."""
    text = refusal.lower()
    return any(words in text for words in TOO_LONG_WORDS)


def finish_of(choice: Body) -> FinishReason | None:
    """Whether an answer came to its end or was cut off, None where that is not said."""
    return FINISHES.get(str(choice.get("finish_reason")).lower())


def first_text(answer: Body) -> str:
    """The text of a whole answer, or what a thinking model thought in its place. Raises BadAnswerError where
    there is none."""
    choice = answer["choices"][0]
    message, finish = choice["message"], choice.get("finish_reason")
    text = written_text(message)
    if text is None:
        text = thought_of(message) or ("" if finish_of(choice) == "length" else None)
    if finish is None or text is None:
        raise BadAnswerError("an answer without text or end")
    return text


def finished_text(message: Body, finish: str) -> str:
    """The text of a finished sample, without reasoning; "" where the model was still thinking, or thought and
    said nothing."""
    text = written_text(message)
    if text is None:
        if finish == "length" or thought_of(message):
            return ""
        raise BadAnswerError("an answer without text")
    return without_reasoning(text)


def written_text(message: Body) -> str | None:
    """What a message says, reasoning in blocks of their own left out; None where it says nothing."""
    content = message.get("content")
    if content is None:
        content = message.get("refusal")
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [_block_text(block) for block in content]
    return "".join(text for text in texts if text is not None) if any(t is not None for t in texts) else None


def thought_of(message: Body) -> str:
    """The reasoning that a server shows beside a message's text, or in blocks of its content."""
    content = message.get("content")
    blocks = [b for b in content if isinstance(b, dict)] if isinstance(content, list) else []
    thoughts = [message.get(key) for key in ("reasoning_content", "reasoning")]
    thoughts += [block.get(key) for block in blocks for key in ("thinking", "reasoning", "summary")]
    return next((str(thought) for thought in thoughts if thought), "")


def without_reasoning(text: str) -> str:
    """The answer after reasoning that stands in the text itself; "" where the reasoning does not end.

    Some templates open the reasoning in the prompt, so that only its end is in the text.
    """
    opener = reasoning_opener(text)
    _, closer, answer = text.partition(REASONING.get(opener, "</think>"))
    if closer:
        return answer.lstrip()
    return "" if opener else text


def reasoning_opener(text: str) -> str:
    """The mark by which a text begins with reasoning, "" where it does not."""
    return next((opener for opener in REASONING if text.lstrip().startswith(opener)), "")


def _block_text(block: Any) -> str | None:
    """The text of one block of a message's content; None for other kinds (thinking, a tool call)."""
    if not isinstance(block, dict):
        return block if isinstance(block, str) else None
    if block.get("type", "text") not in ("text", "output_text", "refusal"):
        return None
    text = block.get("text", block.get("refusal"))
    text = text.get("value") if isinstance(text, dict) else text
    return text if isinstance(text, str) else None


def tokens_written(answer: Body) -> int:
    """The tokens of an answer as the server counts them, else its words."""
    count = _count(answer, "completion_tokens")
    return count or len(first_text(answer).split())


def cut_prompt(answer: Body, least: float) -> str:
    """What to say where the server read fewer than `least` tokens of the prompt, "" where it read all or does
    not say."""
    read = _count(answer, "prompt_tokens")
    if not 0 < read < least:
        return ""
    return (
        f"the server read {read:,} tokens of a prompt that has at least {least:,.0f}: it cuts long prompts. "
        "What it makes of them is dropped. Start it with room for more (Ollama: OLLAMA_CONTEXT_LENGTH, "
        "llama.cpp: --ctx-size), or make prompts and answers shorter"
    )


def early_end(answer: Body, most: int | None, context: int | None) -> str:
    """What to say where an answer was cut off before `most` tokens, and the model's context was not full; ""
    where all is well or the server does not say."""
    written = _count(answer, "completion_tokens")
    is_full = context is not None and _count(answer, "prompt_tokens") + written >= context
    if most is None or not 0 < written < most or is_full:
        return ""
    return (
        f"the server cut an answer off after {written:,} tokens where max_tokens = {most:,} were asked for. "
        "It has a limit of its own (vLLM takes max_new_tokens of generation_config.json), or its context is "
        "full"
    )


def _count(answer: Body, key: str) -> int:
    usage = answer.get("usage")
    count = usage.get(key) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else 0


def top_logprobs(answer: Body) -> list[tuple[str, float]]:
    """(token, log-probability in nats) of the alternatives for the first token, of /v1/chat/completions; in
    the form of /v1/completions too, which some servers use for both."""
    logprobs = answer["choices"][0]["logprobs"]
    if not logprobs.get("content"):
        tops = completions_top_logprobs(answer)
    else:
        first = logprobs["content"][0]
        tops = [_alternative(top["token"], top["logprob"]) for top in first["top_logprobs"]]
    if any(math.isnan(logprob) or logprob > 1e-3 for _, logprob in tops):
        raise BadAnswerError("a log-probability that is none")
    return tops


def completions_top_logprobs(answer: Body) -> list[tuple[str, float]]:
    """The same, of /v1/completions."""
    first = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return [_alternative(token, logprob) for token, logprob in first.items()]


def _alternative(token: Any, logprob: Any) -> tuple[str, float]:
    """One alternative. Raises BadAnswerError where it is none: left out, its choice would look improbable."""
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise BadAnswerError(f"an alternative {token!r} with the log-probability {logprob!r}")
    return token, float(logprob)


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
        for text in token_texts(token)
        if choice.lstrip().startswith(text) and not any(other.lstrip().startswith(text) for other in others)
    ]
    return max(fitting)[1] if fitting else None


def token_texts(token: str) -> set[str]:
    """What a token may stand for, without spaces before it: its text, or, where a server writes tokens as
    they stand in the vocabulary, that read as bytes (Ġ1), by SentencePiece (▁1, <0x31>) or with an end of
    word (1</w>)."""
    readings = {token, token.replace("▁", " "), token.removesuffix("</w>")}
    if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
        readings.add(chr(int(byte[1], 16)))
    if all(char in _BYTES for char in token):
        readings.add(bytes(_BYTES[char] for char in token).decode("utf-8", "ignore"))
    return {text for reading in readings if (text := reading.lstrip())}
