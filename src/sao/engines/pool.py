"""An engine that is many engines: replicas of one, each in a process and on GPUs of its own, run by Ray.

The pool keeps at most twice as many requests at each replica as it works on at once, and hands on what ends.
What a dead replica had not answered is asked again, with the same ids and seeds, so every answer comes once.
A replica that dies is started again; Ray starts it wherever there is room, on machines that joined later too.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sao.config import ChatConfig, EngineConfig, RayConfig
from sao.engines import (
    ChoiceRequest,
    Choices,
    Completion,
    ContinuationRequest,
    Continuations,
    Engine,
    Failure,
    Phase,
    ReplicaState,
    Request,
    Usage,
    cluster,
    no_continuations,
    open_engine,
)
from sao.engines.auto import settled
from sao.engines.replica import VERSION, About, Answer, AnyRequest, Broken, Ended, Kind, Place, Replica
from sao.errors import EngineError
from sao.models.locate import identity_of

MOST_DEATHS = 4
"""Starts of a replica, one after the other, that end without an answer, after which it is given up."""
MOST_TOGETHER = 4
"""The run ends after this many deaths for each replica (and for two at least), unless as many answers as one
has slots came in between."""
KILLS = 2
"""Deaths of replicas after which a request that was there each time is suspected, and asked apart."""
KILLS_ALONE = 3
"""Deaths of replicas of which nothing else was asked, after which a request gets no answer. Whatever else
ends replicas (a machine taken away) may hit one request more than once, the last ones of a step above all."""
STAGGER = 0.5
"""Seconds between the starts of two replicas: compile caches and ports are not taken at the same time."""
SECONDS_TO_END = 120
"""Seconds for which replicas are waited for when the pool closes: their memory is then free. One that still
loads ends when it has."""
PATIENCE = 120.0
"""Seconds for which a run waits for room in the cluster where no replica has any."""
LOOK_EVERY = 10.0
"""Seconds after which the cluster is looked at again."""
ALONE = f"it ended {KILLS_ALONE} replicas that worked on nothing else"

Opener = Callable[[Callable[[str], None]], Engine]
"""Opens one engine, given what takes a line for its user."""


@dataclass(eq=False, slots=True)
class _Asked:
    """A request, the ids of its answers that have not come, and how many replicas died while it was there,
    and while nothing else was."""

    request: AnyRequest
    open: set[str]
    deaths: int = 0
    deaths_alone: int = 0

    @classmethod
    def of(cls, request: AnyRequest) -> _Asked:
        ids = {one.id for one in request.samples} if isinstance(request, Request) else {request.id}
        return cls(request, ids)

    def rest(self) -> AnyRequest:
        """What is to be asked: without the samples that have come."""
        if not isinstance(self.request, Request) or len(self.open) == len(self.request.samples):
            return self.request
        samples = tuple(one for one in self.request.samples if one.id in self.open)
        return replace(self.request, samples=samples)


@dataclass(eq=False, slots=True)
class _Worker:
    """A replica as the pool sees it: `call` is what it was asked and has not answered."""

    number: int
    actor: Any = None
    call: Any = None
    phase: Phase = "waiting"
    place: Place | None = None
    asked: dict[str, _Asked] = field(default_factory=dict)
    """By the ids of the answers that it owes."""
    suspects: list[_Asked] = field(default_factory=list)
    """The group of suspects that it was given; nothing else is then."""
    done: int = 0
    since: float = 0.0
    starts: int = 0
    """Starts in a row that ended before it had given as many answers as it has slots."""

    @property
    def is_idle(self) -> bool:
        return self.phase == "working" and self.call is None


@dataclass(slots=True)
class _Work:
    """The requests of one call: what is still to be taken, and what is to be asked again."""

    kind: Kind
    source: Iterator[AnyRequest]
    again: deque[_Asked] = field(default_factory=deque)
    suspects: deque[list[_Asked]] = field(default_factory=deque)
    """Groups of requests that were there when replicas died; each is asked with nothing beside it."""
    has_more: bool = True

    def next(self) -> _Asked | None:
        """The next request, those that came back first; None where there is none."""
        if self.again:
            return self.again.popleft()
        request = next(self.source, None) if self.has_more else None
        self.has_more = request is not None
        return None if request is None else _Asked.of(request)

    def return_(self, owed: list[_Asked], split: bool) -> _Asked | None:
        """Take back what a dead replica owed. What was there at several deaths is suspected of being the
        reason, and asked apart; a group of suspects that ended a replica is `split` into eight. Returned is
        the request that is given up."""
        for asked in owed:
            asked.deaths += 1
            asked.deaths_alone += split and len(owed) == 1
        if split and owed[0].deaths_alone >= KILLS_ALONE:
            return owed[0]
        if split:
            each = -(-len(owed) // 8)
            self.suspects.extend(owed[start : start + each] for start in range(0, len(owed), each))
            return None
        self.again.extend(asked for asked in owed if asked.deaths < KILLS)
        if suspected := [asked for asked in owed if asked.deaths >= KILLS]:
            self.suspects.append(suspected)
        return None


class PoolEngine:
    """See the module's docstring and `sao.engines.Engine`."""

    usage: Usage | None = None

    def __init__(
        self,
        open_one: Opener,
        config: EngineConfig,
        identity: str | None,
        notify: Callable[[str], None] = lambda line: None,
        ray: RayConfig | None = None,
    ) -> None:
        """Start the replicas; `identity` is what each must be (None: whatever they are). Returns when the
        first has loaded its model. Raises EngineError where Ray is missing, the cluster has no room, or the
        first replica cannot load."""
        self._open_one, self._config, self._notify = open_one, config, notify
        self._ray = cluster.connect(ray)
        self._round, self._looked, self._started = 0, 0.0, 0.0
        self._alone_since = time.monotonic()
        self._workers: list[_Worker] = []
        self._wanted, self._given_up = 0, 0
        self._deaths, self._answers = 0, 0  # answers since the last death
        self._about: About | None = None
        self._slots = slots_of(config)
        try:
            with cluster.errors(self._ray):
                about = self._first_loaded()
        except BaseException:
            self.close()
            raise
        if identity is not None and about.identity != identity:
            raise self._ended(
                f"the replicas have another model than this machine ({about.identity}, not {identity}). Put "
                "the same files on all machines, best on a shared disk"
            )
        self.name: str = about.name
        self.identity: str = about.identity
        self.has_logprobs: bool = about.has_logprobs
        self.has_prefill: bool = about.has_prefill
        self._has_continuations = about.has_continuations
        for line in about.said:
            notify(line)

    def _first_loaded(self) -> About:
        """Start the replicas, and wait until the first has loaded its model."""
        self._wanted = self._places()
        self._check_size()
        while self._about is None:
            for _ in self._events(_Work("generate", iter(()))):
                pass
        return self._about

    # What an engine does

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Failure]:
        """See `sao.engines.Engine.generate`."""
        return self._ask("generate", requests)

    def choice_logprobs(self, requests: Iterable[ChoiceRequest]) -> Iterator[Choices | Failure]:
        """See `sao.engines.Engine.choice_logprobs`."""
        return self._ask("choices", requests)

    def continuation_logprobs(
        self, requests: Iterable[ContinuationRequest]
    ) -> Iterator[Continuations | Failure]:
        """See `sao.engines.ContinuationEngine`. Raises EngineError where the replicas cannot."""
        if not self._has_continuations:
            raise no_continuations(self.name)
        return self._ask("continuations", requests)

    def close(self) -> None:
        """End the replicas in order."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            started = [worker for worker in self._workers if worker.actor and worker.phase != "waiting"]
            calls = [worker.actor.close.remote() for worker in started]
            if calls:
                self._ray.wait(calls, num_returns=len(calls), timeout=SECONDS_TO_END)
        for worker in self._workers:
            self._kill(worker)
        self._workers, self._deaths = [], 0

    def replicas(self) -> list[ReplicaState]:
        """What each replica does."""
        now = time.monotonic()
        return [
            ReplicaState(
                worker.number, worker.phase,
                worker.place.address if worker.place else None,
                worker.place.pid if worker.place else None,
                worker.done,
                worker.done / (now - worker.since) if worker.since and now > worker.since else 0.0,
            )
            for worker in self._workers
        ]  # fmt: skip

    # Requests

    def _ask(self, kind: Kind, requests: Iterable[Any]) -> Iterator[Any]:
        """The answers to the requests, in order of ending."""
        self._round += 1
        work = _Work(kind, iter(requests))
        for worker in self._workers:
            worker.asked.clear()
            worker.suspects = []
        while True:
            self._hand_out(work)
            if not (work.has_more or work.again or work.suspects or self._are_busy):
                return
            with cluster.errors(self._ray):
                events = list(self._events(work))
            yield from events

    @property
    def _are_busy(self) -> bool:
        return any(worker.asked for worker in self._workers)

    def _hand_out(self, work: _Work) -> None:
        """Give every replica that waits for a message what it has room for."""
        idle = [worker for worker in self._workers if worker.is_idle]
        new: dict[int, list[AnyRequest]] = {worker.number: [] for worker in idle}
        for worker in idle:
            if not worker.asked:
                worker.suspects = work.suspects.popleft() if work.suspects else []
                self._give(worker, worker.suspects, new)
        self._fill([worker for worker in idle if not worker.suspects], work, new)
        for worker in idle:
            if worker.asked:
                worker.call = worker.actor.exchange.remote(self._round, work.kind, new[worker.number])

    def _fill(self, open_to: list[_Worker], work: _Work, new: dict[int, list[AnyRequest]]) -> None:
        """Share the next requests out, always to the emptiest replica, until all are full."""
        full, portion = 2 * self._slots, max(1, self._slots // 4)
        while open_to:
            worker = min(open_to, key=lambda other: len(other.asked))
            until = min(full, len(worker.asked) + portion)
            if len(worker.asked) >= full:
                return
            while len(worker.asked) < until:
                asked = work.next()
                if asked is None:
                    return
                self._give(worker, [asked], new)

    def _give(self, worker: _Worker, requests: list[_Asked], new: dict[int, list[AnyRequest]]) -> None:
        for asked in requests:
            worker.asked |= dict.fromkeys(asked.open, asked)
            new[worker.number].append(asked.rest())

    # Replicas

    def _events(self, work: _Work) -> Iterator[Answer]:
        """What has ended, after a moment at most; replicas that died are started again."""
        self._grow()
        calls = {worker.call: worker for worker in self._workers if worker.call is not None}
        if not calls:
            time.sleep(0.05)
            return
        ready, _ = self._ray.wait(list(calls), num_returns=1, timeout=1.0)
        if ready:
            ready, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in ready:
            yield from self._hear(calls[call], work)

    def _hear(self, worker: _Worker, work: _Work) -> Iterator[Answer]:
        """Take what a replica answered."""
        call, worker.call = worker.call, None
        try:
            said = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            yield from self._lost(worker, Broken(" ".join(str(error).split())[:500], "ray", False), work)
            return
        if isinstance(said, Place):
            worker.place, worker.phase = said, "loading"
            worker.call = worker.actor.load.remote()
        elif isinstance(said, About):
            self._loaded(worker, said)
        elif isinstance(said, Ended):
            if said.round == self._round:
                yield from self._taken(worker, said.answers)
            if said.broken is not None:
                yield from self._lost(worker, said.broken, work)
        else:
            yield from self._lost(worker, said, work)

    def _taken(self, worker: _Worker, answers: list[Answer]) -> Iterator[Answer]:
        for answer in answers:
            asked = worker.asked.pop(answer.id)
            asked.open.discard(answer.id)
            worker.done += 1
            if worker.done >= self._slots:
                worker.starts = 0
            self._answers += 1
            if self._answers >= self._slots:
                self._deaths = 0
            yield answer

    def _loaded(self, worker: _Worker, about: About) -> None:
        """A replica is ready to work."""
        if about.version != VERSION:
            raise self._ended(
                f"SAO {about.version} is installed on {_where(worker)}, and {VERSION} here. Install the "
                "same version on all machines"
            )
        if self._about is not None and about.identity != self._about.identity:
            raise self._ended(
                f"the model on {_where(worker)} is another one ({about.identity}, not "
                f"{self._about.identity}). Put the same files on all machines, best on a shared disk"
            )
        self._about = self._about or about
        worker.phase, worker.since, worker.done = "working", time.monotonic(), 0
        self._notify(f"replica {worker.number} of {self._wanted} works on {_where(worker)}")

    def _lost(self, worker: _Worker, why: Broken, work: _Work) -> Iterator[Failure]:
        """A replica died: what it owes is asked again, or is given up where it was the reason."""
        self._kill(worker)
        self._deaths, self._answers = self._deaths + 1, 0
        self._notify(f"replica {worker.number} on {_where(worker)} ended: {why.reason[:300]}")
        owed = list({id(asked): asked for asked in worker.asked.values()}.values())
        suspects, worker.suspects = worker.suspects, []
        worker.asked.clear()
        given_up = work.return_(owed, split=bool(suspects and owed))
        if given_up is not None:
            worker.starts = 0  # not its fault
            yield from (Failure(one, f"{ALONE} ({why.reason[:200]})") for one in sorted(given_up.open))
        self._check_deaths(worker, why)

    def _check_deaths(self, worker: _Worker, why: Broken) -> None:
        """Give up a replica that died too often in a row. Raises EngineError where the first one cannot load,
        and where all end one after the other."""
        is_first = self._about is None
        if worker.starts >= MOST_DEATHS:
            self._workers.remove(worker)
            self._given_up += 1
            self._wanted -= 1
            self._notify(f"replica {worker.number} is given up: it ended {MOST_DEATHS} times in a row")
        too_often = not self._wanted or self._deaths >= MOST_TOGETHER * max(2, self._wanted)
        if is_first and (why.is_ours or worker.starts >= MOST_DEATHS):
            raise self._ended(why.reason, why.key)
        if too_often:
            raise self._ended(
                f"the engine's replicas end one after the other without an answer; the last one said: "
                f"{why.reason}. All that was finished is kept: the same command goes on",
                why.key,
            )

    def _places(self) -> int:
        """Replicas that there should be."""
        if isinstance(self._config.replicas, int):
            return self._config.replicas
        return cluster.places(cluster.nodes(self._ray), self._config)

    def _grow(self) -> None:
        """Start the next replica when its time has come: the others once the first has loaded, those that
        died again, and with `auto` further ones where machines have joined."""
        now = time.monotonic()
        if self._config.replicas == "auto" and now - self._looked > LOOK_EVERY:
            self._looked = now
            self._wanted = max(self._wanted, self._places() - self._given_up)
        for worker in self._workers:
            if worker.actor is None and now - self._started >= STAGGER * worker.starts:
                self._start(worker)
        may_start = not self._workers or (self._about is not None and now - self._started >= STAGGER)
        if may_start and len(self._workers) < max(1, self._wanted):
            number = 1 + max((worker.number for worker in self._workers), default=0)
            self._workers.append(_Worker(number))
            self._start(self._workers[-1])
        self._check_room(now)

    def _start(self, worker: _Worker) -> None:
        found = cluster.nodes(self._ray)
        needs = cluster.share(found, self._config, max(1, self._wanted))
        # An actor that is lost is started by this class, which knows what it owes.
        made = self._ray.remote(**needs, max_restarts=0, scheduling_strategy="SPREAD")(Replica)
        worker.actor = made.remote(self._open_one, self._slots, str(Path.cwd()))
        worker.call, worker.phase, worker.place = worker.actor.place.remote(), "waiting", None
        worker.starts += 1
        self._started = time.monotonic()

    def _check_size(self) -> None:
        """Raise EngineError where a replica needs more GPUs than any machine has."""
        found, each = cluster.nodes(self._ray), cluster.gpus_each(self._config)
        most = max((int(node.gpus) for node in found), default=0)
        if most < each and cluster.uses_gpus(found, self._config):
            raise self._ended(
                f"engine.vllm.tensor_parallel_size {each}: no machine of the cluster has so many GPUs (the "
                f"largest has {most}), and a model is never shared by several machines. Give at most {most}",
                "engine.vllm.tensor_parallel_size",
            )

    def _check_room(self, now: float) -> None:
        """Raise EngineError where nothing has had any room for long."""
        if any(worker.phase != "waiting" for worker in self._workers):
            self._alone_since = now
            return
        if now - self._alone_since < PATIENCE:
            return
        found = cluster.nodes(self._ray)
        needs = cluster.share(found, self._config, max(1, self._wanted))
        wants = " and ".join(f"{int(much)} {what[4:].upper()}" for what, much in needs.items() if much)
        has = ", ".join(f"{one.address}: {one.cpus:g} CPUs, {one.gpus:g} GPUs" for one in found)
        raise self._ended(
            f"no machine of the cluster has had {wants} free for {PATIENCE:.0f} s, which each replica needs "
            f"(a replica never spans two machines). The cluster: {has}. See what else runs there (`ray "
            "status`), or give a smaller --engine.vllm.tensor_parallel_size or --engine.threads"
        )

    def _kill(self, worker: _Worker) -> None:
        if worker.actor is not None:
            with contextlib.suppress(Exception):
                self._ray.kill(worker.actor)
        worker.actor, worker.call, worker.phase = None, None, "waiting"

    def _ended(self, message: str, key: str = "engine.replicas") -> EngineError:
        """The error to raise; the replicas end."""
        self.close()
        return EngineError(message, key=key)


def _where(worker: _Worker) -> str:
    return worker.place.address if worker.place else "no machine yet"


def slots_of(config: EngineConfig) -> int:
    """Samples that one replica works on at once."""
    return config.vllm.max_num_seqs if config.name == "vllm" else config.slots


def pool_of(
    config: EngineConfig,
    model: str,
    revision: str | None,
    notify: Callable[[str], None],
    chat: ChatConfig | None,
    ray: RayConfig | None,
) -> PoolEngine:
    """Replicas of the engine that `config` names, with `model` loaded."""
    if config.name == "auto":
        config = settled(config, model, revision)
    one = config.model_copy(update={"replicas": None})
    # Replicas begin in a folder of their own.
    path = str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model
    open_one = partial(open_engine, one, path, revision, chat=chat)
    return PoolEngine(open_one, config, identity_of(config, model, revision, chat), notify, ray)
