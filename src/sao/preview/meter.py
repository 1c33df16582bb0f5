"""How fast the model is here: a session whose engines are counted and timed, and a notebook in the folder
that remembers it, so that a preview that goes on asks for as much as it began with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from sao.engines import ChoiceRequest, Choices, Completion, Engine, Failure, Request, Usage
from sao.execution.session import Notify, Role, Session
from sao.store.files import write_atomic

TOKENS_A_WORD = 1.4
"""Where an engine gives no token ids (assumed)."""
CHARACTERS_A_TOKEN = 4.0
"""The same for what is read (assumed)."""


@dataclass(slots=True)
class Counts:
    """What engines did so far."""

    items: int = 0
    """Texts and verdicts that came."""
    tokens: int = 0
    """Tokens written."""
    characters: int = 0
    """Characters written."""
    read: int = 0
    """Characters of the chats about which a verdict was asked."""
    loading: float = 0.0
    """Seconds in which models were loaded."""


class CountedEngine:
    """An engine, with its work counted."""

    def __init__(self, engine: Engine, counts: Counts) -> None:
        self._engine, self._counts = engine, counts
        self.name, self.identity, self.has_logprobs = engine.name, engine.identity, engine.has_logprobs
        self.usage: Usage | None = engine.usage
        self.keeps_prefixes: bool = getattr(engine, "keeps_prefixes", False)

    @property
    def has_prefill(self) -> bool:
        """See `sao.engines.Engine`."""
        return self._engine.has_prefill

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Failure]:
        """See `sao.engines.Engine.generate`."""
        for completion in self._engine.generate(requests):
            self._counts.items += 1
            if isinstance(completion, Completion):
                self._counts.tokens += _tokens(completion)
                self._counts.characters += len(completion.text)
            yield completion

    def choice_logprobs(self, requests: Iterable[ChoiceRequest]) -> Iterator[Choices | Failure]:
        """See `sao.engines.Engine.choice_logprobs`."""
        for choices in self._engine.choice_logprobs(self._read(requests)):
            self._counts.items += 1
            yield choices

    def _read(self, requests: Iterable[ChoiceRequest]) -> Iterator[ChoiceRequest]:
        for request in requests:
            self._counts.read += sum(len(message.content) for message in request.messages)
            yield request

    def close(self) -> None:
        """See `sao.engines.Engine.close`."""
        self._engine.close()


def _tokens(completion: Completion) -> int:
    ids = completion.token_ids
    return len(ids) if ids is not None else round(TOKENS_A_WORD * len(completion.text.split()))


class CountedSession(Session):
    """A session whose engines are counted."""

    def __init__(self, notify: Notify = lambda line: None, given: dict[str, Engine] | None = None) -> None:
        super().__init__(notify, given)
        self.counts = Counts()

    def engine(self, role: Role) -> Engine:
        """See `Session.engine`."""
        began = time.monotonic()
        engine = super().engine(role)
        self.counts.loading += time.monotonic() - began
        return CountedEngine(engine, self.counts)


class Booked(TypedDict):
    """What one step took."""

    items: int
    tokens: int
    characters: int
    read: int
    seconds: float


class Notebook:
    """How much is asked for in each step and what each took, in preview.json of the folder."""

    def __init__(self, root: Path, session: CountedSession, limits: dict[str, float] | None = None) -> None:
        """`limits`: the minutes and the recipe's limits that sizes are decided by; others decide anew."""
        self.path, self.session, self.limits = root / "preview.json", session, limits or {}
        self.asked: dict[str, int] = {}
        self.steps: dict[str, Booked] = {}
        try:
            found = json.loads(self.path.read_text("utf-8"))
            self.steps = dict(found["steps"])
            self.asked = dict(found["asked"]) if found.get("limits") == self.limits else {}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a new folder; what cannot be read is measured again

    def decide(self, what: str, how_many: Callable[[], int]) -> int:
        """How many (or how long) a step asks for: what an earlier call said, else by the speed so far."""
        if what not in self.asked:
            self.asked[what] = how_many()
            self._write()
        return self.asked[what]

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Book what the engines do for a step; nothing where its records were there already."""
        counts, began = self.session.counts, time.monotonic()
        before = Counts(counts.items, counts.tokens, counts.characters, counts.read, counts.loading)
        try:
            yield
        finally:
            if counts.items > before.items:
                self._book(step, before, time.monotonic() - began)

    def _book(self, step: str, before: Counts, seconds: float) -> None:
        now = self.session.counts
        own = self.steps.setdefault(step, Booked(items=0, tokens=0, characters=0, read=0, seconds=0.0))
        own["items"] += now.items - before.items
        own["tokens"] += now.tokens - before.tokens
        own["characters"] += now.characters - before.characters
        own["read"] += now.read - before.read
        own["seconds"] += seconds - (now.loading - before.loading)
        self._write()

    def _write(self) -> None:
        text = json.dumps({"limits": self.limits, "asked": self.asked, "steps": self.steps}, indent=1)
        write_atomic(self.path, text + "\n")

    # What the steps so far say of the speed.

    def tokens_per_second(self) -> float | None:
        """Tokens written in a second, in the fastest step; None where nothing was written."""
        rates = [s["tokens"] / s["seconds"] for s in self.steps.values() if s["tokens"] and s["seconds"] > 0]
        return max(rates, default=None)

    def seconds(self, step: str) -> float:
        """Seconds of a step so far."""
        return self.steps[step]["seconds"] if step in self.steps else 0.0

    def seconds_each(self, step: str) -> float | None:
        """Seconds for one text or verdict of a step, None where it was not run."""
        booked = self.steps.get(step)
        return booked["seconds"] / booked["items"] if booked and booked["items"] else None

    def tokens_each(self, step: str) -> float | None:
        """Tokens written for one text of a step."""
        booked = self.steps.get(step)
        return booked["tokens"] / booked["items"] if booked and booked["items"] else None

    def read_per_second(self, step: str) -> float | None:
        """Tokens read in a second while verdicts were asked for (by the characters of a token)."""
        booked = self.steps.get(step)
        if not booked or not booked["read"] or booked["seconds"] <= 0:
            return None
        written = sum(s["tokens"] for s in self.steps.values())
        characters = sum(s["characters"] for s in self.steps.values())
        each = characters / written if written and characters else CHARACTERS_A_TOKEN
        return booked["read"] / each / booked["seconds"]
