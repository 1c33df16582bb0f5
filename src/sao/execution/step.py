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

import difflib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sao.config import Config
from sao.errors import ConfigError
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

    @property
    def table(self) -> Mapping[str, Step[Any]]:
        """Its steps by name."""
        ...

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
        `run.stage(step, variant)`.

        Raises ConfigError for a step that this one does not hang on: its records would not count.
        """
        allowed = hangs_on(self.run.table, self.stage.name)
        if step not in allowed:
            raise ConfigError(
                f"step {self.stage.name}: it reads {step}, but neither names it nor hangs on it by way of "
                f"another.{_hint(step, allowed)} Name it in reads=(…)",
                key="reads",
            )
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
    once: bool = False
    """Whether its records are those of the first round in every round."""
    later: bool = False
    """Whether the first round is without it."""
    held_out: bool = False
    """Whether it is about the held-out prompts, which are those of the first round."""
    in_funnel: bool = True
    """Whether the funnel shows it."""
    build: Callable[[Work[S]], None] | None = field(default=None)
    """For a step that makes something else than records (a model): makes it in the stage's folder, or goes
    on, and marks the stage as finished."""
    product: str = ""
    """The file or folder that `build` leaves in the stage's folder."""
    is_whole: Callable[[Path], bool] = Path.exists
    """Whether that product, of which the path is given, is all there; where it is not, it is built again."""


def check_table(steps: Sequence[Step[Any]]) -> dict[str, Step[Any]]:
    """The steps by name. Raises ConfigError where two have one name, or where one reads a step that is not
    there or comes later."""
    table: dict[str, Step[Any]] = {}
    names = [step.name for step in steps]
    for step in steps:
        if step.name in table:
            raise ConfigError(f"steps: two are called {step.name}; give each a name of its own", key="steps")
        for read in step.reads:
            if read in table:
                continue
            why = "which comes later in the table" if read in names else "which is not in the table"
            raise ConfigError(
                f"step {step.name}: it reads {read}, {why}.{_hint(read, table)} A table goes from what is "
                "read to what reads it",
                key="reads",
            )
        table[step.name] = step
    return table


def known_step(table: Mapping[str, Step[S]], name: str) -> Step[S]:
    """A step by its name. Raises ConfigError, with the nearest name, where there is none."""
    if name not in table:
        raise ConfigError(
            f"no step {name} in this table; there are {', '.join(table)}.{_hint(name, table)}", key="steps"
        )
    return table[name]


def hangs_on(table: Mapping[str, Step[Any]], name: str) -> set[str]:
    """The steps that a step reads, and those that these hang on."""
    reads = table[name].reads
    return {*reads, *(further for read in reads for further in hangs_on(table, read))}


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {near[0]}?" if near else ""
