"""The method from start to end: rounds of steps in a run folder, and the summary of what came of them.

`run(config, out)` does all of it, or goes on where an earlier call stopped; `until` ends after a step. What
exists in the folder is never computed again: a changed setting makes its step, and those after it, again
beside the old ones, and everything before is reused. The steps themselves: `sao.pipeline.steps`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sao.analysis.rounds import NEEDED, best_of, judged_by_rules, measure
from sao.analysis.summary import summarise, worth_of_judge
from sao.config import Config
from sao.data.readers import content_identity
from sao.engines import Engine
from sao.engines.auto import settle
from sao.errors import ConfigError, DropError, ModelError, NoPairsError, SAOError, TrainingError
from sao.execution.runner import Progress, Runner, watched
from sao.execution.session import Notify, Session
from sao.execution.step import Step
from sao.pipeline import preflight
from sao.pipeline.kept_models import is_done, keep_only, restore_earlier, restore_own, train_again
from sao.pipeline.ray_training import RAY_WORKER
from sao.pipeline.reader import Reader
from sao.pipeline.rounds import Round, rounds_of
from sao.pipeline.settings import asking, own_pairs
from sao.pipeline.steps import STEPS
from sao.pipeline.train_step import is_first, is_launched, is_worker, push
from sao.results.rounds import RoundResult
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
COLLAPSED = ("pairs", "loss", "alarm", "train.max_length")
"""What a TrainingError is about where the model, not the recipe or the machine, is the reason."""
BROKEN = ("weights",)
"""The same of a ModelError: weights that are NaN or infinite."""


def run(
    config: Config,
    out: str | Path,
    *,
    until: str = "eval",
    number: int | None = None,
    steps: Sequence[Step[Round]] = STEPS,
    engine: Engine | None = None,
    progress: Progress = lambda stage, done, total: None,
    notify: Notify = lambda line: None,
) -> Summary:
    """Run the method in folder `out` up to the command or step `until` of round `number`; the summary that
    `sao run --json` prints.

    `steps` takes the place of the method's own table (see `sao.execution.step`). `engine` takes the place of
    the configured one (tests, planted judges). Raises SAOError's children; whatever was finished before stays
    finished.
    """
    began, root = time.monotonic(), Path(out)
    check_rounds(config, number, steps)
    if engine is None:
        config = settle(config)[0]
    config = asking(config)
    session = Session(given=dict.fromkeys(GIVEN_FOR, engine) if engine is not None else None)
    writes_status = is_first() and RAY_WORKER not in os.environ  # there the process that asked Ray writes it
    runner = Runner(root, session, config.max_drop_share, progress, notify, writes_status)
    session.notify = runner.notify
    sizes = manifest.grown(root, config)
    with watched(runner):
        runner.status.check()
        rounds = rounds_of(config, root, steps, given=engine, sizes=sizes)
        outcome = run_rounds(rounds, runner, until, number)
        shown = outcome.shown
        summary = summarise(Reader(shown), wanted(shown, until), runner.worked)
        if outcome.results:
            summary = with_rounds(summary, outcome)
            end_rounds(outcome, runner)
        check_reached(outcome, number)
    summary = summary.model_copy(update={"seconds": round(time.monotonic() - began, 1)})
    if until == "eval":
        keep_summary(root / "summary.json", summary, number)
    upload(outcome, until, runner.notify)
    return summary


def check_rounds(config: Config, number: int | None, steps: Sequence[Step[Round]]) -> None:
    """Raise ConfigError for a round that the recipe does not have, and for a table of steps without those
    that rounds are measured by."""
    missing = [name for name in NEEDED if name not in {step.name for step in steps}]
    if config.rounds.n > 1 and missing:
        raise ConfigError(
            f"rounds.n {config.rounds.n}: the table of steps has no {', '.join(missing)}", key="rounds.n"
        )
    if number is not None and number > config.rounds.n:
        raise ConfigError(
            f"--round {number}: the recipe has rounds.n {config.rounds.n}. Give --rounds.n {number} with it",
            key="--round",
        )


@dataclass
class Outcome:
    """The rounds that were run, and what came of those that are finished where there are several."""

    rounds: list[Round] = field(default_factory=list)
    results: list[RoundResult] = field(default_factory=list)
    ended_by: str | None = None
    """Why the round after these could not be finished; None where it could."""

    @property
    def best(self) -> Round:
        """The round whose model is given back."""
        return self.rounds[best_of(self.results).round - 1]

    @property
    def is_over(self) -> bool:
        """Whether no round is to come: the last one is finished, or a rule or a round ended the run."""
        if not self.results or len(self.results) < len(self.rounds):
            return False
        is_last = self.rounds[-1].number == self.rounds[-1].recipe.rounds.n
        return is_last or bool(self.results[-1].stopped_by) or self.ended_by is not None

    @property
    def shown(self) -> Round:
        """The round that the summary is about: the best, once the rounds are over, else the last."""
        return self.best if self.is_over else self.rounds[-1]


def with_rounds(summary: Summary, outcome: Outcome) -> Summary:
    """The summary with what it says of the rounds."""
    best = outcome.best.number if outcome.is_over else None
    ended = [] if outcome.ended_by is None else [outcome.ended_by]
    stopped_by = [*outcome.results[-1].stopped_by, *ended]
    return summary.model_copy(update={"rounds": outcome.results, "best": best, "stopped_by": stopped_by})


def run_rounds(rounds: Iterable[Round], runner: Runner, until: str, number: int | None) -> Outcome:
    """The rounds one after the other, until one is stopped by a rule; the last one up to `until`. That is
    round `number`; without one the recipe's last for "eval", else the first."""
    outcome = Outcome()
    for round_ in rounds:
        n = round_.recipe.rounds.n
        last = number or (n if until == "eval" else 1)
        goal = until if round_.number == last else "eval"
        if is_worker() and not is_workers(round_, number):
            continue
        runner.label = f"round {round_.number} of {n}: " if n > 1 else ""
        names = wanted(round_, goal)
        if not is_worker():
            restore_earlier(round_, runner, names)
        open_run(round_, runner, names)
        try:
            run_round(round_, runner, names, until if is_worker() else goal)
        except (DropError, TrainingError, ModelError) as error:
            if not outcome.results or not is_models_fault(error):
                raise
            outcome.ended_by = f"round {round_.number} could not be finished: {error}"
            runner.notify(outcome.ended_by)
            break
        outcome.rounds.append(round_)
        if n > 1 and goal == "eval" and not is_worker():
            add_result(outcome, round_, runner)
        if round_.number == last or is_worker() or (outcome.results and outcome.results[-1].stopped_by):
            break
    return outcome


def is_models_fault(error: SAOError) -> bool:
    """Whether a round could not be finished because of what the rounds before made of the model."""
    if isinstance(error, TrainingError):
        return error.key in COLLAPSED
    return error.key in BROKEN if isinstance(error, ModelError) else isinstance(error, DropError)


def is_workers(round_: Round, number: int | None) -> bool:
    """Whether torchrun's processes train this round: the one they are told, else the first without a
    model."""
    if number is not None:
        return round_.number == number
    return round_.number == round_.recipe.rounds.n or not is_done(round_.model_dir)


def check_reached(outcome: Outcome, number: int | None) -> None:
    """Raise ConfigError where the run ended before the round that was asked for."""
    if number is None or outcome.rounds[-1].number >= number or is_worker():
        return
    why = outcome.ended_by or "; ".join(outcome.results[-1].stopped_by)
    raise ConfigError(
        f"--round {number}: the run ended after round {outcome.rounds[-1].number}: {why}. For all rounds: "
        "--rounds.stop '[]'",
        key="--round",
    )


def add_result(outcome: Outcome, round_: Round, runner: Runner) -> None:
    """Measure a finished round, ask the rules, and write round.json into its folder."""
    rounds = [*outcome.results, measure(round_)]
    result = judged_by_rules(rounds, round_.recipe.rounds.stop)
    outcome.results.append(result)
    path, text = round_.place / "round.json", result.model_dump_json(indent=1) + "\n"
    if not path.is_file() or path.read_text("utf-8") != text:
        write_atomic(path, text)
    for sentence in result.stopped_by:
        runner.notify(f"stopped after round {round_.number}: {sentence}")


def end_rounds(outcome: Outcome, runner: Runner) -> None:
    """When the rounds are over: make the best model again where it was deleted (another round was the best
    then), and delete those that rounds.keep does not keep. A round that could not be finished may be tried
    again, so nothing goes then."""
    if not outcome.is_over:
        return
    train_again(outcome.best, runner)
    last = outcome.rounds[-1]
    rounds = last.recipe.rounds
    if outcome.ended_by is None and rounds.keep != "all":
        kept = {outcome.best.number} | ({last.number} if rounds.keep == "last" else set())
        keep_only(outcome.rounds, kept, runner.notify)


def upload(outcome: Outcome, until: str, notify: Notify) -> None:
    """Upload the model where the recipe says so: the only one, or the best round's once the rounds are over.
    What a rule stopped is not uploaded."""
    if until not in ("train", "eval") or not is_first() or is_launched():
        return
    if outcome.rounds[-1].recipe.rounds.n == 1:
        push(outcome.rounds[-1], notify)
    elif outcome.is_over and not is_worker():
        if outcome.results[outcome.best.number - 1].stopped_by and outcome.best.config.train.push_to_hub:
            notify("train.push_to_hub: nothing is uploaded, since a rule stopped every round")
        else:
            push(outcome.best, notify)


def keep_summary(path: Path, summary: Summary, number: int | None = None) -> None:
    """Write the summary, unless nothing new came of this call: then the seconds of the work stay. Where a
    round was asked for (`number`) and is as it was, what stands there of all rounds stays."""
    before = read_summary(path)
    is_part = number is not None and summary.best is None and before is not None and before.best is not None
    if before is not None and is_part and before.rounds[: len(summary.rounds)] == summary.rounds:
        return
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
            restore_own(round_, runner, name)
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
    if round_.before is None:
        preflight.announce(round_, licences, runner.notify)
    look_outside(round_, names)
    outside = round_.outside.found
    identity = round_.model_identity
    for line in manifest.open_manifest(
        round_.root, round_.recipe, identity, source, licences, outside, round_.first.sizes
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
