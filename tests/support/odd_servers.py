"""Servers with a twist, engines that ask them, and what came."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sao.config import Config, EngineConfig, make_config
from sao.engines import Completion, Engine, Failure, Request, Sample, Sampling
from sao.engines.openai import OpenAIEngine
from sao.engines.openai_requests import SEED_BITS
from sao.engines.scripted import ScriptedEngine, default_reply
from sao.records import Message
from sao.store.stage import Ids, Stage
from support.misbehaving_server import Server

Body = dict[str, Any]


@dataclass(kw_only=True)
class Odd(Server):
    """A server that notes what it is asked, and says what `twist` makes of the honest answer: another one,
    bytes, or a RefusalError. A 429 carries `retry_after`."""

    twist: Callable[[Body, Body], Any] = lambda body, answer: answer
    retry_after: str = ""
    bodies: list[Body] = field(default_factory=list, init=False)
    times: list[float] = field(default_factory=list, init=False)

    def complete(self, body: Body) -> Any:
        self.bodies.append(body)
        self.times.append(time.time())
        return self.twist(body, super().complete(body))

    async def _send(
        self, writer: Any, status: int, body: object, kind: str = "application/json", headers: str = ""
    ) -> None:
        headers += f"Retry-After: {self.retry_after}\r\n" if status == 429 and self.retry_after else ""
        await super()._send(writer, status, body, kind, headers)


@contextmanager
def opened(
    server: Server, notify: Callable[[str], None] = lambda line: None, /, **settings: Any
) -> Iterator[OpenAIEngine]:
    config: Any = {"name": "openai", "openai": {"base_url": server.url} | settings}
    engine = OpenAIEngine("scripted", EngineConfig(**config), notify=notify)
    try:
        yield engine
    finally:
        engine.close()


def asked(*texts: str, samples: int = 1, tokens: int = 64) -> list[Request]:
    return [
        Request((Message("user", t),), tuple(Sample(f"{t}#{k}", k) for k in range(samples)), Sampling(tokens))
        for t in texts
    ]


def answers(engine: Engine, requests: list[Request]) -> dict[str, Completion | Failure]:
    """What came for each id; that an id comes twice is an error here."""
    came = list(engine.generate(iter(requests)))
    assert len({c.id for c in came}) == len(came)
    return {c.id: c for c in came}


def last(body: Body) -> str:
    return str(body["messages"][-1]["content"])


def scripted(**functions: Any) -> ScriptedEngine:
    """What an honest server must come to, without any HTTP."""

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        return default_reply(messages, seed % 2**SEED_BITS, sampling)

    settings: dict[str, Any] = {"name": "openai", "reply": reply}
    return ScriptedEngine(**settings | functions)


def stage(root: Path, name: str, kind: type[Any], make: Callable[[str, Ids], Iterator[Any]]) -> bytes:
    """A stage's records.jsonl, made as the pipeline makes it; every id once, nothing dropped."""
    place = Stage(root, name, {}).open()
    with place.writer() as out:
        came: Counter[str] = Counter()
        for record in make(place.fingerprint, place.done):
            assert isinstance(record, kind)
            came[record.id] += 1
            out.write(record)
    assert set(came.values()) == {1}
    place.seal(kind)
    return (place.path / "records.jsonl").read_bytes()


def recipe(server: Server, **settings: Any) -> Config:
    return make_config(
        {
            "model": "scripted",
            "engine": {"name": "openai", "openai": {"base_url": server.url} | settings},
            "personas": {"source": "builtin:world", "n": 60, "held_out": 5},
        }
    )


FAULTY: dict[str, Any] = {"faults": 0.3, "storm": 5}
