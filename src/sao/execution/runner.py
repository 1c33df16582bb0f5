"""Runs ONE step: opens its stage, skips what is done, streams what comes into it, counts and watches the
drops, shows progress, books what engines were asked, seals. It knows no step by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from sao.errors import SAOError
from sao.execution.drops import DropWatch, check_finished
from sao.execution.session import Notify, Session
from sao.execution.status import StatusFile
from sao.execution.step import Run, Step, Work
from sao.records import Drop, Record
from sao.store.manifest import append_usage
from sao.store.stage import Stage

S = TypeVar("S", bound=Run)
Progress = Callable[[str, int, int], None]
"""(what, rows done, rows in all), called for every row."""
BOOKED_EVERY = 1000
"""Rows after which what an engine was asked is noted."""


class Runner:
    """Runs steps, one after the other, in the folder `root`."""

    def __init__(
        self,
        root: Path,
        session: Session,
        limit: float,
        progress: Progress = lambda what, done, total: None,
        notify: Notify = lambda line: None,
        writes_status: bool = True,
    ) -> None:
        """`limit` is max_drop_share; `writes_status`: see StatusFile."""
        self.root, self.session, self.limit = root, session, limit
        self.status = StatusFile(root, writes_status, replicas=session.replicas)
        self.worked = False
        """Whether there was anything to do."""
        self.label = ""
        """What stands before the name of a step where progress is shown."""
        self._progress, self._notify = progress, notify

    def notify(self, line: str) -> None:
        """Tell the user something."""
        self.status.say(line)
        self._notify(line)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` rows exist."""
        self.status.see(done, total)
        self._progress(self.label + what, done, total)

    def computing(self, what: str, total: int) -> Callable[[int], None]:
        """Show work of the program itself, of `total` parts, as a step of its own. The function that is
        returned is called with how many parts are done."""
        self.status.begin(what, 0, total)
        self._progress(what, 0, total)
        return lambda done: self.progress(what, done, total)

    def run(self, step: Step[S], run: S) -> None:
        """Finish a step, whatever it has done already."""
        for variant in step.variants(run):
            self.run_variant(step, run, variant)

    def run_variant(self, step: Step[S], run: S, variant: Any, title: str | None = None) -> Stage:
        """Finish one stage of a step. `title` is what the progress shows (default: the step's name)."""
        work = Work(run, run.stage(step.name, variant), self, variant)
        stage = work.stage.open()
        if step.build is not None:
            if not (stage.finished and step.is_whole(stage.path / step.product)):
                self._begin(self.label + step.name, 0, 0)
                step.build(work)
            return stage
        limit = self.limit if step.limited else 1.0
        if not stage.finished:
            self.fill(stage, step.record, step.make(work), step.total(work), limit, step.rows(work), title)
        self.check(stage, limit)
        step.after(work)
        return stage

    def check(self, stage: Stage, limit: float | None = None) -> None:
        """Raise DropError where a finished stage has lost more than `limit` (default: max_drop_share)."""
        check_finished(stage, self.limit if limit is None else limit)

    def fill(
        self,
        stage: Stage,
        kind: type[Record],
        records: Iterable[Record | Drop],
        total: int,
        limit: float,
        rows: Iterable[int] = (),
        title: str | None = None,
    ) -> None:
        """Write `records`, as they come, into an open, unfinished stage, and seal it. `total` rows will come
        at most (0: not known); `rows` are those that are asked for, in order."""
        what, done = self.label + (title or stage.name), len(stage.done)
        self._begin(what, done, total)
        self._progress(what, done, total)
        watch = DropWatch(stage, limit, rows)
        try:
            with stage.writer() as out:
                for record in records:
                    if _id(record) in stage.done:
                        continue
                    if isinstance(record, Drop) and record.stage != stage.name:
                        record = replace(record, stage=stage.name)
                    out.write(record)
                    done += 1
                    if self.status.step != what:  # a step that it is made from was run in between
                        self._begin(what, done, total)
                    self.status.see(done, total, watch.reasons)
                    self._progress(what, done, total)
                    if done % BOOKED_EVERY == 0:
                        self._book(stage.name)
                    watch.see(record)
            stage.seal(kind)
        finally:
            self._book(stage.name)
        self._progress(what, total, total)  # identical answers are not judged, so fewer may have come

    def _begin(self, what: str, done: int, total: int) -> None:
        self.worked = True
        self.status.begin(what, done, total)

    def _book(self, stage: str) -> None:
        """Note in usage.jsonl what the engine was asked since the last note."""
        for spent in self.session.spent():
            append_usage(self.root, {"stage": stage, **asdict(spent)})


def _id(record: Record | Drop) -> str:
    return record.record_id if isinstance(record, Drop) else record.id


@contextmanager
def watched(runner: Runner) -> Iterator[None]:
    """Engines are closed and the status file is true, however it ends."""
    try:
        yield
    except SAOError as error:
        runner.status.end("failed", f"{type(error).__name__}: {error}")
        raise
    except KeyboardInterrupt:
        runner.status.end("stopped")
        raise
    except BaseException as error:
        runner.status.end("failed", repr(error))
        raise
    else:
        runner.status.end("finished")
    finally:
        runner.session.close()
