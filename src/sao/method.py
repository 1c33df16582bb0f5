"""The method from start to end: rounds of steps in a run folder, and the summary of what came of them.

`run(config, out)` does all of it, or goes on where an earlier call stopped; `until` ends after a step. What
exists in the folder is never computed again: a changed setting makes its step, and those after it, again
beside the old ones, and everything before is reused. The steps themselves: `sao.pipeline.steps`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from sao.analysis.summary import summarise, worth_of_judge
from sao.config import Config
from sao.data.readers import content_identity
from sao.engines import Engine
from sao.engines.auto import settle
from sao.errors import ConfigError, NoPairsError
from sao.execution.runner import Progress, Runner, watched
from sao.execution.session import Notify, Session
from sao.execution.step import Step
from sao.pipeline import preflight
from sao.pipeline.reader import Reader
from sao.pipeline.rounds import Round, rounds_of
from sao.pipeline.settings import asking, own_pairs
from sao.pipeline.steps import STEPS
from sao.pipeline.train_step import is_first, is_worker
from sao.results.summary import Summary
from sao.store import manifest
from sao.store.files import write_atomic

COMMANDS = {
    "prompts": "checkable", "respond": "filtered_responses", "judge": "judgments", "pairs": "pairs",
    "train": "train",
    "eval": "comparisons",
}  # fmt: skip
"""The last step of each command of the command line."""
GIVEN_FOR = ("policy", "judge", "initial", "base")
"""The roles that a given engine plays: all but the trained model."""


def run(
    config: Config,
    out: str | Path,
    *,
    until: str = "eval",
    steps: Sequence[Step[Round]] = STEPS,
    engine: Engine | None = None,
    progress: Progress = lambda stage, done, total: None,
    notify: Notify = lambda line: None,
) -> Summary:
    """Run the method in folder `out` up to the command or step `until`; the summary that `sao run --json`
    prints.

    `steps` takes the place of the method's own table (see `sao.execution.step`). `engine` takes the place of
    the configured one (tests, planted judges). Raises SAOError's children; whatever was finished before stays
    finished.
    """
    began, root = time.monotonic(), Path(out)
    if engine is None:
        config = settle(config)[0]
    config = asking(config)
    session = Session(given=dict.fromkeys(GIVEN_FOR, engine) if engine is not None else None)
    runner = Runner(root, session, config.max_drop_share, progress, notify, is_first())
    session.notify = runner.notify
    sizes = manifest.grown(root, config)
    with watched(runner):
        runner.status.check()
        for round_ in rounds_of(config, root, steps, given=engine, sizes=sizes):
            names = wanted(round_, until)
            open_run(round_, runner, names)
            run_round(round_, runner, names, until)
        summary = summarise(Reader(round_), names, runner.worked)
    summary = summary.model_copy(update={"seconds": round(time.monotonic() - began, 1)})
    if until == "eval":
        keep_summary(root / "summary.json", summary)
    return summary


def keep_summary(path: Path, summary: Summary) -> None:
    """Write the summary, unless nothing new came of this call: then the seconds of the work stay."""
    before = read_summary(path)
    same = {"worked": summary.worked, "seconds": summary.seconds}
    if summary.worked or before is None or before.model_copy(update=same) != summary:
        write_atomic(path, summary.model_dump_json(indent=1) + "\n")


def read_summary(path: Path) -> Summary | None:
    """The summary of an earlier call, None where there is none that can be read."""
    try:
        return Summary.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def run_round(round_: Round, runner: Runner, names: Sequence[str], until: str) -> None:
    """The steps of one round, one after the other."""
    if is_worker():
        only_training(round_, until)
        names = ["train"]
    for name in names:
        try:
            runner.run(round_.table[name], round_)
        except NoPairsError as error:
            worth = worth_of_judge(Reader(round_))
            raise NoPairsError(f"{error}. What the judge is worth: {worth}", key=error.key) from None


def wanted(round_: Round, until: str) -> list[str]:
    """The steps that `until` needs, in the table's order: all of the recipe's for "eval", else the step
    itself and what it reads, directly or not. Raises ConfigError for an unknown name."""
    active = [step.name for step in round_.steps if round_.has(step.name)]
    if until == "eval":
        return active
    goal = COMMANDS.get(until, until)
    if goal not in round_.table:
        goal = until  # a shorter table may have the step alone, without what else the command does
    if goal not in round_.table:
        raise ConfigError(f"until {until!r}: no such step; there are {', '.join(round_.table)}", key="until")
    reached = round_.in_place_of(goal)
    if reached is None:
        raise ConfigError(
            f"until {until!r}: this recipe has no step {goal}; it has {', '.join(active)}. Where "
            "pairs.source names a data set, nothing is answered or judged; where personas.held_out is 0, "
            "nothing is compared",
            key="until",
        )
    needed = {reached}
    for name in reversed(list(round_.table)):
        if name in needed:
            needed |= set(round_.inputs(name))
    return [name for name in active if name in needed]


def open_run(round_: Round, runner: Runner, names: Sequence[str]) -> None:
    """Check recipe, models, templates and folder before any work starts, and write the manifest."""
    preflight.check(round_, runner.session, trains="train" in names)
    if not is_first():
        return
    source = content_identity(preflight.first_source(round_.config))
    licences = preflight.licences_of(round_)
    preflight.announce(round_, licences, runner.notify)
    look_outside(round_, names)
    outside = round_.outside.found
    identity = round_.model_identity
    for line in manifest.open_manifest(
        round_.root, round_.config, identity, source, licences, outside, round_.sizes
    ):
        runner.notify(f"changed since the last run here: {line}")
    runner.status.start()


def look_outside(round_: Round, names: Sequence[str]) -> None:
    """Find all that these steps depend on outside the folder, so that the manifest has it."""
    for name in names:
        round_.stages(name)
    Reader(round_).funnel()


def only_training(round_: Round, until: str) -> None:
    """Raise ConfigError where torchrun's processes would do anything but train."""
    if until != "train" or (own_pairs(round_.config) and not round_.stage("pairs").open().finished):
        raise ConfigError(
            "under torchrun there is only training: first `sao pairs` with the same recipe and --out, then "
            "torchrun with `-m sao train`. On one machine plain `sao run` with --train.processes does it all",
            key="torchrun",
        )
