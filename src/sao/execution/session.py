"""Who needs a model gets its engine here, and only here: engines are opened when first asked for and closed
in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from sao.config import ChatConfig, EngineConfig, RayConfig
from sao.engines import Engine, ReplicatedEngine, Usage, open_engine
from sao.results.status import ReplicaStatus

if TYPE_CHECKING:
    from sao.engines.reward import RewardModel

Notify = Callable[[str], None]
"""Takes a line that the user should see."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """Who does something: a model, what runs it, and how chats with it are written. `name` is what it does:
    policy, judge, base, tuned, reference."""

    name: str
    engine: EngineConfig
    model: str
    revision: str | None = None
    chat: ChatConfig = field(default_factory=ChatConfig)
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What an engine was asked: HTTP requests, those sent again, tokens in and out, and what that costs."""

    model: str
    requests: int
    retries: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


class Session:
    """The engines of a run. One is open at a time, so that each has all the memory.

    `given` engines, by the name of a role, take the place of the configured ones (tests, planted judges).
    """

    def __init__(self, notify: Notify = lambda line: None, given: Mapping[str, Engine] | None = None) -> None:
        self.given = dict(given or {})
        self.notify = notify
        self._role: Role | None = None
        self._engine: Engine | None = None
        self._booked = Usage()
        self._unbooked: list[Spent] = []

    def engine(self, role: Role) -> Engine:
        """The engine with the role's model, opened when first needed."""
        if role.name in self.given:
            return self.given[role.name]
        if self._engine is None or self._role is None or not served_by_one(self._role, role):
            self.close()
            server = role.engine.openai.base_url
            self.notify(f"asking {server}" if role.engine.name == "openai" else f"loading {role.model}")
            self._engine = open_engine(
                role.engine, role.model, role.revision, self.notify, role.chat, role.ray
            )
            self._role = role
        return self._engine

    @contextmanager
    def reward_model(self, role: Role) -> Iterator[RewardModel]:
        """A reward model, alone in memory and gone afterwards."""
        from sao.engines.reward import RewardModel

        self.close()
        self.notify(f"loading {role.model}")
        scorer = RewardModel(role.model, role.engine, role.revision)
        try:
            yield scorer
        finally:
            scorer.close()

    def replicas(self) -> list[ReplicaStatus]:
        """What each replica of the open engine does; empty where there is one engine."""
        if self._role is None or not isinstance(self._engine, ReplicatedEngine):
            return []
        return [
            ReplicaStatus(role=self._role.name, **asdict(state) | {"rate": round(state.rate, 2)})
            for state in self._engine.replicas()
        ]

    def spent(self) -> list[Spent]:
        """What engines were asked since the last call, where they count that; closed ones too."""
        found = [*self._unbooked, *self._newly_spent()]
        self._unbooked = []
        return found

    def _newly_spent(self) -> list[Spent]:
        usage = self._engine.usage if self._engine is not None else None
        if usage is None or self._role is None or usage == self._booked:
            return []
        before, self._booked = asdict(self._booked), replace(usage)
        new = {name: now - before[name] for name, now in asdict(usage).items()}
        price = self._role.engine.openai
        cost = new["prompt_tokens"] * price.price_prompt + new["completion_tokens"] * price.price_completion
        return [Spent(model=self._role.model, **new, cost=cost / 1e6)]

    def close(self) -> None:
        """Give back the open engine's memory."""
        if self._engine is not None:
            self._unbooked += self._newly_spent()
            self._engine.close()
            self._engine, self._booked = None, Usage()


def served_by_one(one: Role, other: Role) -> bool:
    """Whether one engine serves both: the same settings, whichever section they come from."""
    engines = [role.engine.model_dump(exclude={"model", "revision"}) for role in (one, other)]
    models = [(role.model, role.revision, role.chat) for role in (one, other)]
    return engines[0] == engines[1] and models[0] == models[1]
