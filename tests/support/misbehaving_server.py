"""An OpenAI-compatible chat server that can misbehave on purpose, below HTTP too. Raw HTTP/1.1 over asyncio
streams.

    with Server(faults=0.3, seed=1) as server: ...server.url...       in a thread of this process
    python tests/support/misbehaving_server.py --port 0 --faults 0.3 --seed 1
                                             a process; the first line it prints is its URL

Honest answers depend on the chat and the seed alone, by the rules of `sao.engines.scripted`: what a client
has in the end must be the same with faults and without. A fault hits a share of the chat requests, drawn by
the server's own generator.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import re
import signal
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Self

from sao.engines import Sampling
from sao.engines.scripted import default_choice, default_reply
from sao.records import Message

STATUS_FAULTS = ("429", "429_storm", "500", "503")
WIRE_FAULTS = ("hang", "drip", "cut", "reset", "truncated_json", "html")
ANSWER_FAULTS = ("empty_choices", "wrong_n", "null_content", "no_finish", "error_body")
LOGPROB_FAULTS = ("missing_logprobs", "nan_logprobs", "positive_logprobs")
FAULTS = STATUS_FAULTS + WIRE_FAULTS + ANSWER_FAULTS + LOGPROB_FAULTS
KNOWS = ("n", "seed", "logprobs", "top_logprobs", "structured")
FILLERS = (
    "Answer",
    "The",
    "I",
    "Both",
    "A",
    "B",
    "It",
    "This",
    "Response",
    "**",
    "Neither",
    "Sure",
    "First",
    "Second",
)
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
MOST_TOP_LOGPROBS = 20
DRIP_PAUSE = 0.05
JSON = "application/json"


class RefusalError(Exception):
    """A request that an honest server refuses."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def token_id(word: str) -> int:
    """The id of a word in this server's vocabulary."""
    return zlib.crc32(word.encode("utf-8", "replace")) & 0x3FFFFFFF


def error_body(message: str, code: int) -> dict[str, Any]:
    """An error as OpenAI words it."""
    return {
        "error": {
            "message": message,
            "type": "server_error" if code >= 500 else "invalid_request_error",
            "code": code,
        }
    }


def in_blocks(text: str) -> list[dict[str, Any]]:
    """A text as Mistral writes a reasoning model's answer."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm, let me see"}]}
    half = len(text) // 2
    return [thought, {"type": "text", "text": text[:half]}, {"type": "text", "text": text[half:]}]


def read_messages(body: dict[str, Any]) -> tuple[Message, ...]:
    """The chat of a request. Raises RefusalError where there is none."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusalError(400, "messages: a list of at least one message is needed")
    chat = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str) or message.get("role") not in ("system", "user", "assistant"):
            raise RefusalError(400, f"messages: not a message: {str(message)[:100]}")
        chat.append(Message(message["role"], content))
    return tuple(chat)


@dataclass(kw_only=True)
class Server:
    """The server; fields may be changed while it runs. `url` ends in /v1."""

    faults: float = 0.0
    """Share of the chat requests that meet a fault."""
    kinds: Sequence[str] = FAULTS
    """The faults to draw from; those about log-probs only hit requests that ask for some."""
    seed: int = 0
    storm: int = 20
    """Requests that a 429_storm refuses."""
    drip_seconds: float = 3.0
    """What a dripping body takes altogether."""
    delay: float | Callable[[int], float] = 0.0
    """Seconds before an answer, or a function of the number of the request (from 0, in order of arrival)."""
    slow_delay: float = 0.0
    slow_every: int = 0
    """Where given, chats whose first number (in the last message) is a multiple of it take `slow_delay`
    instead."""
    slots: int | None = None
    """Answers that are made at once; further requests queue. None: no limit."""
    knows: Collection[str] = KNOWS
    """The abilities of this server; the parameters of others are ignored with HTTP 200."""
    tokenizes: bool = False
    """Whether it has /tokenize and logprob_token_ids, as vLLM does."""
    completes: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """What it answers to /v1/completions; None: it has none."""
    choices: tuple[str, ...] = ("1", "2")
    """The tokens that a verdict prefers."""
    mass: float = 1.0
    """Probability of all of `choices` together; the rest is that of other words."""
    key: str | None = None
    context: int | None = None
    """Most words in a chat."""
    model: str = "scripted"
    models: object = None
    """What it answers to /v1/models: JSON, bytes, or a status (int); None: an honest list."""
    owner: str = "tests"
    """Who owns the model, by the list."""
    limits: Sequence[str] = ("max_tokens", "max_completion_tokens")
    """Names of the most tokens of an answer that it keeps to; others are ignored."""
    refuses: Collection[str] = ()
    """Keys of a request that it refuses with HTTP 400."""
    streams: bool = False
    """Whether it streams unless it is told not to."""
    blocks: bool = False
    """Whether the content of an answer is a list: a thinking block, then the text in two."""
    vocabulary: Callable[[str], str] = str
    """How it writes a token in log-probabilities."""
    reasons: str = ""
    """A text, such as "<think>", by which every answer begins, its first token."""
    cuts: int | None = None
    """Most words that it reads of a chat, the last ones; it says nothing where there are more."""
    most_written: int | None = None
    """Most words that it writes, whatever is asked for."""
    fills: Collection[str] = ()
    """Keys without which every answer is the likeliest, as with a top_k of 1 in generation_config.json."""
    reply: Callable[[tuple[Message, ...], int, Sampling], str] = default_reply
    choose: Callable[[tuple[Message, ...], tuple[str, ...]], tuple[float, ...]] = default_choice
    port: int = 0

    counts: Counter[str] = field(default_factory=Counter, init=False)
    """What was sent to chat requests: ok, a fault's kind, or the status of a refusal."""
    requests: int = field(default=0, init=False)
    """Chat requests that arrived."""
    in_flight: int = field(default=0, init=False)
    peak_in_flight: int = field(default=0, init=False)
    connections: int = field(default=0, init=False)
    """Connections that were opened."""
    died: threading.Event = field(default_factory=threading.Event, init=False)
    """Set while it is down."""

    def __post_init__(self) -> None:
        if unknown := {*self.kinds} - {*FAULTS} | {*self.knows} - {*KNOWS}:
            raise ValueError(f"unknown: {sorted(unknown)}")
        self._rng = random.Random(self.seed)
        self._storm_left, self._answers_left = 0, -1
        self._first = self._last = self._busy = 0.0
        self._thread: threading.Thread | None = None

    # Life and death.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *rest: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen in a thread; after `stop`, on the same port again."""
        self.stop()
        self._answers_left = -1  # as many as are asked for
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self.run(ready.set)), name="server", daemon=True
        )
        self._thread.start()
        if not ready.wait(10):
            raise RuntimeError("the server did not start")
        return self

    def stop(self) -> None:
        """Die at once: the port is closed, and so are all connections, in the midst of whatever they did."""
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):  # it died by itself
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)
            self._thread = None

    def kill_after(self, n: int) -> None:
        """Die when exactly `n` more honest answers are sent; `died` is set then, `start` brings it back."""
        if n < 1:
            raise ValueError("n must be 1 or more")
        self._answers_left = n

    def stats(self) -> dict[str, Any]:
        """What GET /stats says: times from the first chat request's arrival to the end of the last answer."""
        span = self._last - self._first
        return {
            "requests": self.requests,
            "counts": dict(self.counts),
            "connections": self.connections,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "mean_in_flight": round(self._busy / span, 3) if span else 0.0,
            "span_s": round(span, 4),
        }

    def reset(self) -> None:
        """Begin the stats anew."""
        self.counts.clear()
        self.requests = self.connections = 0
        self.peak_in_flight = self.in_flight
        self._first = self._last = self._busy = 0.0

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until it is stopped."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._slots = asyncio.Semaphore(self.slots) if self.slots else None
        self._handlers: set[asyncio.Task[Any]] = set()
        listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=4096)
        self.port = listener.sockets[0].getsockname()[1]
        self.died.clear()
        ready()
        await self._stopping.wait()
        listener.close()
        for _ in range(5):  # connections accepted just now get their handlers first, which then close them
            await asyncio.sleep(0)
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await listener.wait_closed()
        await asyncio.sleep(0)  # transports close in the loop's next round
        self.died.set()

    # HTTP.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: request after request until somebody closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        try:
            while await self._request(reader, writer):
                pass
        except (
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ConnectionError,
            asyncio.CancelledError,
        ):
            writer.transport.abort()
        finally:
            self._handlers.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read and answer one request; whether the connection stays open."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        data = await reader.readexactly(int(headers.get("content-length", "0")))
        path, _, query = re.sub("^http://[^/]+", "", target).partition("?")  # whole addresses: as a proxy
        try:
            if (
                self.key is not None
                and headers.get("authorization") != f"Bearer {self.key}"
                and path != "/stats"
            ):
                raise RefusalError(401, "Incorrect API key provided")
            match method, path:
                case "POST", "/v1/chat/completions":
                    if not await self._chat(data, reader, writer):
                        return False
                case "POST", "/tokenize" if self.tokenizes:
                    await self._send(writer, 200, self._tokenize(_parse(data)))
                case "POST", "/v1/completions" if self.completes is not None:
                    await self._send(writer, 200, self.completes(_parse(data)))
                case "GET", "/v1/models":
                    await self._send(writer, 200, self._listed())
                case "GET", "/stats":
                    await self._send(writer, 200, self.stats())
                    if "reset" in query:
                        self.reset()
                case _:
                    raise RefusalError(404, f"{method} {path}: no such address")
        except RefusalError as refusal:
            self.counts[str(refusal.status)] += path == "/v1/chat/completions"
            await self._send(writer, refusal.status, error_body(refusal.message, refusal.status))
        return headers.get("connection", "").lower() != "close"

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, body: object, kind: str = JSON, headers: str = ""
    ) -> None:
        """A whole, well-formed response."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(_head(status, len(data), kind, headers) + data)
        await writer.drain()

    async def _chat(self, data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one chat request, honestly or not; whether the connection stays open."""
        begun = time.perf_counter()
        index = self.requests
        self.requests += 1
        self._first = self._first or begun
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            body = _parse(data)
            answer = self.complete(body)
            fault = self._draw(body)
            if fault in STATUS_FAULTS or fault in ("hang", "reset"):
                return await self._fail(fault, reader, writer)
            async with self._slots or contextlib.nullcontext():
                if seconds := self._seconds(index, body):
                    await asyncio.sleep(seconds)
                if fault:
                    return await self._spoil(fault, answer, writer)
                if not self._answers_left:
                    return False  # it died while this one waited
                self._answers_left -= 1
                self.counts["ok"] += 1
                if self.streams and body.get("stream") is not False:
                    events = f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n".encode()
                    await self._send(writer, 200, events, "text/event-stream")
                else:
                    await self._send(writer, 200, answer)
                if not self._answers_left:
                    self._stopping.set()
            return True
        finally:
            self.in_flight -= 1
            self._last = time.perf_counter()
            self._busy += self._last - begun

    # Honest answers.

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The honest answer to a chat request. Raises RefusalError for one that a server refuses."""
        messages = read_messages(body)
        self._check(body, messages)
        if self.cuts is not None:
            messages = tuple(Message(m.role, " ".join(m.content.split()[-self.cuts :])) for m in messages)
        stop = body.get("stop") or ()
        tokens = next((body[name] for name in self.limits if body.get(name)), None)
        if self.most_written is not None:
            tokens = min(tokens or 10**9, self.most_written)
        sampling = Sampling(
            max_tokens=tokens or 10**9,
            temperature=1.0 if body.get("temperature") is None else body["temperature"],
            top_p=body.get("top_p") or 1.0,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
        seed = body.get("seed")
        if "seed" not in self.knows or (seed is None and sampling.temperature):
            seed = self._rng.getrandbits(48)
        step = 1
        if any(body.get(name) is None for name in self.fills):
            seed = step = 0
        n = body.get("n") or 1 if "n" in self.knows else 1
        choices = [self._choice(body, messages, (seed or 0) + step * i, i, sampling) for i in range(n)]
        prompt = sum(len(message.content.split()) for message in messages)
        completion = sum(max(1, len(choice["message"]["content"].split())) for choice in choices)
        if self.blocks:
            for choice in choices:
                choice["message"]["content"] = in_blocks(choice["message"]["content"])
        return {
            "id": f"chatcmpl-{self.requests}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model,
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }

    def _listed(self) -> object:
        """What is said at /v1/models."""
        if isinstance(self.models, int):
            raise RefusalError(self.models, "no list for you")
        if self.models is not None:
            return self.models
        facts: dict[str, Any] = {"object": "model", "owned_by": self.owner}
        if self.owner in ("tests", "vllm", "sglang"):
            facts["max_model_len"] = self.context or 4096
        return {"object": "list", "data": [{"id": self.model, **facts}]}

    def _check(self, body: dict[str, Any], messages: tuple[Message, ...]) -> None:
        """Raise RefusalError where vLLM would refuse."""
        if body.get("model") != self.model:
            raise RefusalError(404, f"The model `{body.get('model')}` does not exist.")
        if body.get("stream"):
            raise RefusalError(400, "stream: not supported")
        if refused := next((name for name in self.refuses if name in body), ""):
            instead = f" Use '{self.limits[0]}' instead." if refused == "max_tokens" and self.limits else ""
            raise RefusalError(400, f"Unsupported parameter: '{refused}' is not supported.{instead}")
        for name, least in (
            ("n", 1),
            ("max_tokens", 1),
            ("max_completion_tokens", 1),
            ("temperature", 0),
            ("top_p", 0),
        ):
            if not isinstance(value := body.get(name, least), int | float | None) or (
                value is not None and value < least
            ):
                raise RefusalError(400, f"{name} must be at least {least}, got {value!r}")
        if not isinstance(seed := body.get("seed"), int | None) or not -(2**63) <= (seed or 0) < 2**63:
            raise RefusalError(400, "seed must be a 64-bit integer")
        top = body.get("top_logprobs") or 0
        if top > MOST_TOP_LOGPROBS and {"logprobs", "top_logprobs"} <= {*self.knows}:
            raise RefusalError(
                400, f"Requested sample logprobs of {top}, which is greater than max allowed: 20"
            )
        if top and not body.get("logprobs") and "logprobs" in self.knows:
            raise RefusalError(400, "when using `top_logprobs`, `logprobs` must be set to true.")
        self._check_length(messages)

    def _check_length(self, messages: tuple[Message, ...]) -> None:
        """Raise RefusalError for a chat that does not fit into the context."""
        words = sum(len(message.content.split()) for message in messages)
        if self.context is not None and words > self.context:
            limit = f"This model's maximum context length is {self.context} tokens."
            raise RefusalError(400, f"{limit} However, your messages resulted in {words} tokens.")

    def _choice(
        self, body: dict[str, Any], messages: tuple[Message, ...], seed: int, index: int, sampling: Sampling
    ) -> dict[str, Any]:
        """One of the n choices."""
        wanted = (body.get("structured_outputs") or {}).get("choice") if "structured" in self.knows else None
        with_logprobs = bool(body.get("logprobs")) and "logprobs" in self.knows
        logprobs = None
        if with_logprobs and sampling.max_tokens == 1:
            logprobs = self._verdict(body, messages, wanted)
            text, finish = logprobs["content"][0]["token"], "length"
            if text.startswith("token_id:"):
                text = next(
                    word
                    for word in (*(wanted or self.choices), *FILLERS, self.reasons)
                    if text == f"token_id:{token_id(word)}"
                )
        elif wanted:
            worth = dict(zip(wanted, self.choose(messages, tuple(wanted))))
            text, finish = max(worth, key=worth.__getitem__), "stop"
        else:
            opener = f"{self.reasons} " if self.reasons else ""
            text, finish = opener + self.reply(messages, seed, sampling), "stop"
            text = text[: min((text.find(stop) for stop in sampling.stop if stop in text), default=len(text))]
            if len(words := text.split()) > sampling.max_tokens:
                text, finish = " ".join(words[: sampling.max_tokens]), "length"
        if with_logprobs and logprobs is None:
            logprobs = {"content": [self._entry(word, -0.1, [(word, -0.1)], body) for word in text.split()]}
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def _verdict(
        self, body: dict[str, Any], messages: tuple[Message, ...], wanted: list[str] | None
    ) -> dict[str, Any]:
        """The log-probs of a first token: those of the choices, then those of other words. Among the choices
        of structured_outputs they are renormalised, as vLLM does it."""
        names = tuple(wanted or self.choices)
        mass = math.log(self.mass) if not wanted else 0.0
        table = {name: value + mass for name, value in zip(names, self.choose(messages, names))}
        rest = max(1 - self.mass, 1e-9) if not wanted else 1e-30
        for i in range(MOST_TOP_LOGPROBS):
            word = FILLERS[i] if i < len(FILLERS) else f"other{i}"
            table.setdefault(word, math.log(rest) - (i + 1) * math.log(2))
        if self.reasons:
            table = {self.reasons: -0.01} | {word: value - 9 for word, value in table.items()}
        ranked = sorted(table.items(), key=lambda item: -item[1])
        top = ranked[: body.get("top_logprobs") or 0]
        if self.tokenizes and (ids := body.get("logprob_token_ids")):
            by_id = {token_id(word): (word, value) for word, value in ranked}
            asked = [by_id.get(i, (f"word{i}", -40.0)) for i in ids]
            top = sorted({ranked[0], *asked}, key=lambda item: -item[1])
        return {"content": [self._entry(*ranked[0], top, body)]}

    def _entry(
        self, word: str, value: float, top: list[tuple[str, float]], body: dict[str, Any]
    ) -> dict[str, Any]:
        """One token's log-probs as OpenAI shows them."""
        as_ids = self.tokenizes and body.get("return_tokens_as_token_ids")

        def shown(word: str, value: float) -> dict[str, Any]:
            token = f"token_id:{token_id(word)}" if as_ids else self.vocabulary(word)
            return {"token": token, "logprob": value, "bytes": list(word.encode("utf-8", "replace"))}

        known = "top_logprobs" in self.knows
        return {**shown(word, value), "top_logprobs": [shown(*item) for item in top] if known else []}

    def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """The ids of a chat's words with marks around each turn; an open last turn has no end mark."""
        if "prompt" in body:
            words = str(body["prompt"]).split()
        else:
            words = [w for m in read_messages(body) for w in (f"<{m.role}>", *m.content.split(), "<end>")]
            if body.get("continue_final_message"):
                words.pop()
            elif body.get("add_generation_prompt", True):
                words.append("<assistant>")
        ids = [token_id(word) for word in words]
        return {"tokens": ids, "count": len(ids), "max_model_len": self.context or 4096}

    def _seconds(self, index: int, body: dict[str, Any]) -> float:
        """How long this answer takes."""
        found = re.search(r"\d+", read_messages(body)[-1].content) if self.slow_every else None
        if found and int(found[0]) % self.slow_every == 0:
            return self.slow_delay
        return self.delay(index) if callable(self.delay) else self.delay

    # Faults.

    def _draw(self, body: dict[str, Any]) -> str | None:
        """The fault that this request meets, None for none."""
        if self._storm_left:
            self._storm_left -= 1
            return "429_storm"
        if not self.faults or self._rng.random() >= self.faults:
            return None
        scored = body.get("logprobs") and "logprobs" in self.knows
        kinds = [kind for kind in self.kinds if scored or kind not in LOGPROB_FAULTS]
        fault = self._rng.choice(kinds) if kinds else None
        if fault == "429_storm":
            self._storm_left = self.storm - 1
        return fault

    async def _fail(self, fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send no answer at all; whether the connection stays open."""
        self.counts[fault] += 1
        match fault:
            case "hang":
                while await reader.read(65536):
                    pass  # until the client gives up
                return False
            case "reset":
                if self._rng.random() < 0.5:  # RST instead of FIN
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return False
            case "429" | "429_storm":
                date = formatdate(time.time() + 1, usegmt=True)
                wait = self._rng.choice(("Retry-After: 0.05\r\n", f"Retry-After: {date}\r\n", ""))
                await self._send(writer, 429, error_body("Rate limit reached", 429), headers=wait)
            case "500":
                await self._send(writer, 500, error_body("Internal server error", 500))
            case _:
                await self._send(writer, 503, b"upstream connect error", "text/plain")
        return True

    async def _spoil(self, fault: str, answer: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Send an answer that is not what was asked for; whether the connection stays open."""
        self.counts[fault] += 1
        data = json.dumps(answer).encode()
        match fault:
            case "drip":
                writer.write(_head(200, len(data)))
                step = max(1, math.ceil(len(data) * DRIP_PAUSE / self.drip_seconds))
                for start in range(0, len(data), step):
                    await asyncio.sleep(DRIP_PAUSE)
                    writer.write(data[start : start + step])
                    await writer.drain()
            case "cut":
                writer.write(_head(200, len(data)) + data[: len(data) // 2])
                await writer.drain()
                return False
            case "truncated_json":
                await self._send(writer, 200, data[: len(data) // 2])
            case "html":
                await self._send(
                    writer, 200, b"<!DOCTYPE html><html><body>Please log in</body></html>", "text/html"
                )
            case _:
                await self._send(writer, 200, self._damage(fault, answer))
        return True

    def _damage(self, fault: str, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer with one thing wrong in it."""
        choices = answer["choices"]
        match fault:
            case "error_body":
                return error_body("The upstream provider failed", 502)
            case "empty_choices":
                choices.clear()
            case "wrong_n":
                if self._rng.random() < 0.5:
                    choices.pop()
                else:
                    choices.append({**choices[-1], "index": len(choices)})
            case "null_content":
                choices[0]["message"]["content"], choices[0]["finish_reason"] = None, "stop"
            case "no_finish":
                choices[0]["finish_reason"] = None
            case "missing_logprobs":
                choices[0]["logprobs"] = None
            case "nan_logprobs" | "positive_logprobs":
                entry = choices[0]["logprobs"]["content"][0]
                for item in (entry, *entry["top_logprobs"][:1]):
                    item["logprob"] = math.nan if fault == "nan_logprobs" else 3.2
        return answer


def _head(status: int, length: int, kind: str = JSON, headers: str = "") -> bytes:
    reason = REASONS.get(status, "Error")
    lines = [f"HTTP/1.1 {status} {reason}", f"Content-Type: {kind}", f"Content-Length: {length}", headers]
    return "\r\n".join([*lines, ""]).encode()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise RefusalError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RefusalError(400, "the body is not a JSON object")
    return body


async def _serve_forever(server: Server) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: server._stopping.set())
    await server.run(lambda: print(server.url, flush=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--kinds", nargs="+", default=FAULTS, choices=FAULTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storm", type=int, default=20)
    parser.add_argument("--drip-seconds", type=float, default=3.0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--slow-delay", type=float, default=0.0)
    parser.add_argument("--slow-every", type=int, default=0)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--knows", nargs="*", default=KNOWS, choices=KNOWS)
    parser.add_argument("--tokenizes", action="store_true")
    parser.add_argument("--choices", nargs="+", default=("1", "2"))
    parser.add_argument("--mass", type=float, default=1.0)
    parser.add_argument("--key")
    parser.add_argument("--context", type=int)
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--kill-after", type=int)
    options = vars(parser.parse_args())
    answers = options.pop("kill_after")
    server = Server(**{**options, "choices": tuple(options["choices"])})
    if answers is not None:
        server.kill_after(answers)
    asyncio.run(_serve_forever(server))


if __name__ == "__main__":
    main()
