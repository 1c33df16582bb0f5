"""The trained models of rounds: which are deleted when a run has ended (rounds.keep), and how one is made
again that a later step needs. Records, metrics, cards and adapters always stay."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sao.execution.runner import Runner
from sao.execution.session import Notify
from sao.models.weights import is_whole
from sao.pipeline.rounds import Round
from sao.store.files import write_atomic

REMOVED = "removed.json"
"""In the folder of a model whose weights were deleted."""
STAYS = ("README.md", "sao_manifest.json", REMOVED)


def is_done(folder: Path) -> bool:
    """Whether a trained model is whole, or was and is not kept."""
    return is_whole(folder) or (folder / REMOVED).is_file()


def keep_only(rounds: Sequence[Round], kept: Collection[int], notify: Notify) -> None:
    """Delete the models of all rounds but those of these numbers."""
    for round_ in rounds:
        folder = round_.model_dir
        if round_.number in kept or not is_done(folder):
            continue
        if is_whole(folder):
            notify(f"the model of round {round_.number} is deleted (rounds.keep)")
        write_atomic(folder / REMOVED, '{"because": "rounds.keep"}\n')
        for path in folder.iterdir():  # the rest of an earlier call's, too
            if path.name not in STAYS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def restore_earlier(round_: Round, runner: Runner, names: Sequence[str]) -> None:
    """Train the deleted models of earlier rounds again that the unfinished ones of these steps may open."""
    if any(not _is_finished(round_, name) for name in names):
        for earlier in _opened_by(round_):
            train_again(earlier, runner)


def restore_own(round_: Round, runner: Runner, name: str) -> None:
    """Train a round's own deleted model again if this step is about to open it."""
    if name == "heldout_tuned" and not _is_finished(round_, name):
        train_again(round_, runner)


def _is_finished(round_: Round, name: str) -> bool:
    return all(stage.finished for stage in round_.stages(name))


def _opened_by(round_: Round) -> Iterator[Round]:
    """The earlier rounds whose models somebody in this round uses, the first one first."""
    roles, before = round_.roles, round_.before
    judges = (*roles.judges, *(before.roles.judges if before is not None else ()))
    used = {roles.policy.model, roles.initial.model, roles.reference.model}
    used |= {judge.role.model for judge in judges}
    return (earlier for earlier in round_.earlier if str(earlier.model_dir) in used)


def train_again(round_: Round, runner: Runner) -> None:
    """Make a round's model from its pairs, if it was deleted."""
    stage = round_.stage("train")
    if round_.is_trained or not stage.finished or not (round_.model_dir / REMOVED).is_file():
        return
    starts = {round_.roles.initial.model, round_.roles.reference.model}
    for earlier in round_.earlier:
        if str(earlier.model_dir) in starts:
            train_again(earlier, runner)
    runner.notify(f"round {round_.number}'s model was deleted (rounds.keep): it is trained again")
    # The model that it starts from may have been made again itself, on a GPU with other last digits.
    for name in ("training.json", "reference.jsonl"):
        (stage.path / name).unlink(missing_ok=True)
    (round_.model_dir / REMOVED).unlink()
    runner.run(round_.table["train"], round_)
