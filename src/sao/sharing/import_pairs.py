"""A preference data set that others made, as a run: `sao import FILE|HUB --out RUN`.

Its prompts, answers and labels become the sealed stages of a run folder (labels as verdicts of the judge
`given`, in one order), so that `sao train`, `audit`, `label`, `stats`, `export` and `eval` serve it as if it
had been made here. The recipe with which they go on lies in RUN/recipe.yaml. `held_out` questions are not
trained on; the evaluation asks them.
"""

from __future__ import annotations

import contextlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sao.config import Config, PairsConfig, make_config
from sao.data.preferences import TextPair, read_pairs
from sao.data.readers import content_identity
from sao.data.similarity import normalise
from sao.errors import DataError
from sao.pipeline.folder import reader
from sao.records import Drop, Judgment, Persona, PreferencePair, Prompt, Record, Response, make_id
from sao.store import manifest
from sao.store.files import dumps, write_atomic
from sao.store.stage import Stage

JUDGE = "given"


def import_pairs(config: Config, out: Path, held_out: int = 0) -> dict[str, Any]:
    """Turn the data set `config.pairs.source` into the run folder `out`, its pairs included; where its recipe
    lies, and what was read.

    Two passes over the data set. `held_out` questions, drawn by their hash, are left to the evaluation: no
    pair of theirs is trained on, and each is asked once.

    Raises DataError for a data set that cannot be read or has too few pairs, StoreError where `out` is
    another run's.
    """
    given = config.pairs
    if given.source is None:
        raise DataError("nothing to import: name a file or a hub data set")
    survey = _survey(given, held_out)
    if survey.n < 1:
        raise DataError(
            f"{given.source}: holds {survey.n + survey.held} pairs; {held_out} questions held out would "
            "leave none. Lower "
            "--held-out"
        )
    config = _recipe(config, survey)
    run = reader(config, out)
    licence = given.licence or "unknown: set pairs.licence to its licence"
    licences = {"model": "none (no model was asked)", "pairs": licence}
    manifest.open_manifest(
        out, config, "imported", str(config.pairs.imported), licences, run.round.outside.found
    )
    recipe = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomic(out / "recipe.yaml", recipe)
    stages = [
        run.stage("personas"),
        run.stage("prompts"),
        run.stage("responses"),
        run.round.stages("judgments")[0],
    ]
    if not all(stage.finished for stage in stages):
        _fill(stages, given, survey)
    if not run.stage("pairs").open().finished:
        run.stage("pairs").fill(PreferencePair, run.chosen)
    counts = run.stage("prompts").counts
    return {
        "pairs": survey.n,
        "held_out": len(survey.chosen),
        "dropped": counts["dropped"],
        "reasons": counts["reasons"],
        "licence": licence,
        "recipe": str(out / "recipe.yaml"),
        "run": str(out),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """What a first pass found: `n` pairs to train on, `held` others, whose questions have the hashes `chosen`
    (sorted), and the system message where all have the same one."""

    n: int
    held: int
    chosen: array[int]
    system: str | None


def _read(given: PairsConfig) -> Iterator[TextPair | Drop]:
    return read_pairs(str(given.source), given.revision, given.subset, given.split)


def _survey(given: PairsConfig, held_out: int) -> _Survey:
    """The first pass; 8 bytes a row."""
    import numpy as np

    systems: set[str | None] = set()
    hashes = array("Q")
    for pair in _read(given):
        if isinstance(pair, TextPair):
            hashes.append(_question_hash(pair))
            if len(systems) < 2:
                systems.add(pair.messages[0].content if pair.messages[0].role == "system" else None)
    every = np.frombuffer(hashes, np.uint64) if hashes else np.zeros(0, np.uint64)
    chosen = np.unique(every)[:held_out]
    held = int(np.isin(every, chosen).sum())
    system = systems.pop() if len(systems) == 1 else None
    return _Survey(n=len(every) - held, held=held, chosen=array("Q", chosen.tobytes()), system=system)


def _question_hash(pair: TextPair) -> int:
    said = (message.content for message in pair.messages if message.role != "system")
    return int(make_id("question", *(normalise(text) for text in said)), 16)


def _recipe(config: Config, survey: _Survey) -> Config:
    """The recipe with which the run goes on: all verdicts as they were given, and nothing written anew."""
    data = config.model_dump(mode="json")
    given = data["pairs"]
    whence = [
        content_identity(given["source"]),
        given["revision"],
        given["subset"],
        given["split"],
        survey.system,
    ]
    name = Path(given["source"]).name if Path(given["source"]).exists() else given["source"]
    given |= {
        "imported": make_id(dumps(whence)),
        "imported_from": "@".join(filter(None, (name, given["revision"]))),
    }
    given |= {"source": None, "revision": None, "subset": None, "split": "train", "keep": "all"}
    data["personas"] |= {"source": "none", "n": survey.n, "held_out": len(survey.chosen)}
    data["responses"] |= {"n": 2, "system": survey.system}
    data["judging"] |= {"method": "given", "orders": "one", "engine": None, "panel": []}
    return make_config(data, "the imported run's recipe")


def _fill(stages: list[Stage], given: PairsConfig, survey: _Survey) -> None:
    """Write and seal the stages personas to judgments. Rows: pairs to train on, held-out questions, drops."""
    kinds: tuple[type[Record], ...] = (Persona, Prompt, Response, Judgment)
    done = [stage.open().done for stage in stages]
    seen = bytearray(len(survey.chosen))
    with contextlib.ExitStack() as stack:
        writers = [None if s.finished else stack.enter_context(s.writer()) for s in stages]
        row, dropped = 0, survey.n + len(survey.chosen)
        for number, pair in enumerate(_read(given)):
            written: list[tuple[int, Record | Drop]] = []
            place = -1 if isinstance(pair, Drop) else _place(survey.chosen, _question_hash(pair))
            if isinstance(pair, TextPair) and place < 0:
                written += _records(pair, row, survey.system)
                row += 1
            elif isinstance(pair, TextPair) and not seen[place]:
                seen[place] = 1
                written += list(_records(pair, survey.n + place, survey.system))[
                    :2
                ]  # its persona and prompt only
            else:
                reason = pair.reason if isinstance(pair, Drop) else "repeats a held-out question"
                drop = Drop(row=dropped, stage="prompts", record_id=make_id("row", number), reason=reason)
                written, dropped = [(1, drop)], dropped + 1
            for at, record in written:
                writer = writers[at]
                if writer and (record.record_id if isinstance(record, Drop) else record.id) not in done[at]:
                    writer.write(record)
    for stage, kind in zip(stages, kinds, strict=True):
        if not stage.finished:
            stage.seal(kind)


def _place(chosen: array[int], wanted: int) -> int:
    """Where a hash stands among those chosen, -1 where it does not."""
    place = bisect_left(chosen, wanted)
    return place if place < len(chosen) and chosen[place] == wanted else -1


def _records(pair: TextPair, row: int, system: str | None) -> Iterator[tuple[int, Record]]:
    """One pair as records, each with the place of its stage: persona, prompt, two answers, label."""
    turns = [message.content for message in pair.messages]
    if pair.messages[0].role == "system":
        instruction = turns.pop(0)
        if system is None:
            turns[0] = f"{instruction}\n\n{turns[0]}"  # as for models that know no system role
    key = make_id("imported", row, pair.id)
    persona = Persona(id=make_id("persona", row), row=row, text="")
    prompt = Prompt(
        id=make_id(key, "prompt"), row=row, persona_id=persona.id, text=turns[-1], earlier=tuple(turns[:-1])
    )
    yield 0, persona
    yield 1, prompt
    answers = [
        Response(id=make_id(key, i), row=2 * row + i, prompt_id=prompt.id, index=i, text=text, token_ids=None,
                 finish_reason="stop")
        for i, text in enumerate((pair.chosen, pair.rejected))
    ]  # fmt: skip
    # Which of the two stands first is drawn, so that the label does not follow from the place.
    first, second = answers if int(key, 16) % 2 else answers[::-1]
    # else it contradicts the label
    p_chosen = pair.p_chosen if pair.p_chosen is None or pair.p_chosen > 0.5 else None
    yield from ((2, answer) for answer in answers)
    yield (
        3,
        Judgment(
            id=make_id(key, "label"),
            row=row,
            prompt_id=prompt.id,
            first_id=first.id,
            second_id=second.id,
            judge=JUDGE,
            verdict="first" if first is answers[0] else "second",
            p_first=None if p_chosen is None else p_chosen if first is answers[0] else 1 - p_chosen,
        ),
    )
