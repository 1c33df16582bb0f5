"""What a step is: a name, the records it makes, the steps it reads, the settings that count, and the function
that makes its records.

    def make(work):                       # a generator of records and Drops
        for answer in work.read("filtered_responses", Response):
            yield replace(answer, id=make_id(work.key, answer.id), text=answer.text.upper())

    LOUD = Step(name="loud", record=Response, reads=("filtered_responses",), make=make)
    run(config, out, steps=(*STEPS, LOUD))

A table of steps is a pipeline (`sao.pipeline.steps.STEPS`). The runner (`sao.execution.runner`) knows no step
by name.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sao.config import Config
from sao.records import Drop, Record
from sao.store.stage import Stage

if TYPE_CHECKING:
    from sao.engines import Engine
    from sao.execution.runner import Runner
    from sao.execution.session import Role

R = TypeVar("R", bound=Record)


class Run(Protocol):
    """What steps belong to: a round of a run, or an evaluation of two models."""

    @property
    def config(self) -> Config: ...

    def stage(self, step: str, variant: Any = None) -> Stage:
        """Where the records of a step lie."""
        ...


S = TypeVar("S", bound=Run)


@dataclass(frozen=True)
class Work(Generic[S]):
    """What a step's function is given."""

    run: S
    stage: Stage
    runner: Runner
    variant: Any = None
    """Which of the step's stages is made (a judge of the panel, say), for steps that have several."""

    @property
    def config(self) -> Config:
        """The recipe."""
        return self.run.config

    @property
    def key(self) -> str:
        """What the ids of the step's records derive from: make_id(work.key, id of the input, …)."""
        return self.stage.key

    @property
    def done(self) -> Container[str]:
        """The ids of the records and Drops that exist already. They may be skipped; the runner passes them
        over if they come again."""
        return self.stage.done

    def engine(self, role: Role) -> Engine:
        """The engine that runs this role's model."""
        return self.runner.session.engine(role)

    def read(self, step: str, kind: type[R]) -> Iterator[R]:
        """The records of a finished step, in the order of their rows. A step with several stages is read by
        `run.stage(step, variant)`."""
        return self.run.stage(step).records(kind)


@dataclass(frozen=True)
class Step(Generic[S]):
    """One step of a pipeline. What is given for `run` is the round (or evaluation) it belongs to."""

    name: str
    """Names the folder of its stage and its row in the funnel."""
    record: type[Record]
    """What it makes."""
    make: Callable[[Work[S]], Iterable[Record | Drop]]
    """Makes the records and Drops that are not done, in any order; each has a row of its own."""
    revision: int = 1
    """Raised when the same settings make other records (a changed parser): then they are made again."""
    reads: tuple[str, ...] = ()
    """The steps that it hangs on: it may read their records, and those of the steps that these hang on. Where
    one of them is not part of the recipe and has the same kind of records as what it reads itself (a filter),
    its input takes its place."""
    settings: Callable[[S, Any], Mapping[str, Any]] = lambda run, variant: {}
    """All that its records depend on beside those steps: JSON values, hashed into its fingerprint."""
    ids: Callable[[S, Any], Mapping[str, Any]] | None = None
    """Those of the settings that the ids of its records derive from, where not all do."""
    when: Callable[[Config], bool] = lambda config: True
    """Whether the recipe has this step."""
    variants: Callable[[S], Sequence[Any]] = lambda run: (None,)
    """What it is done for, each in a stage of its own (the judges)."""
    rows: Callable[[Work[S]], Iterable[int]] = lambda work: ()
    """The rows it asks for, in order: the first of them decide whether it is hopeless."""
    total: Callable[[Work[S]], int] = lambda work: 0
    """How many rows there will be, for the progress; 0: not known."""
    after: Callable[[Work[S]], None] = lambda work: None
    """A check of what came out, when it is finished; raises."""
    limited: bool = True
    """Whether too large a share of Drops (max_drop_share) is an error."""
    in_funnel: bool = True
    """Whether the funnel shows it."""
    build: Callable[[Work[S]], None] | None = field(default=None)
    """For a step that makes something else than records (a model): makes it in the stage's folder, or goes
    on, and marks the stage as finished."""
    product: str = ""
    """The file or folder that `build` leaves in the stage's folder; where it is missing, it is built
    again."""
