"""A preference data set that others made, as a run: `sao import FILE|HUB --out RUN`.

Its prompts, answers and labels become the sealed stages of a run folder (labels as verdicts of the judge
`given`, in one order), so that `sao train`, `audit`, `label`, `stats`, `export` and `eval` treat it like a
run that was made here. RUN/recipe.yaml is the recipe with which they continue. `held_out` questions are not
trained on; the evaluation asks them.
"""

from __future__ import annotations

import contextlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import yaml

from sao.config import Config, PairsConfig, make_config
from sao.data.preferences import TextPair, read_pairs
from sao.data.readers import content_identity
from sao.data.similarity import normalise
from sao.errors import DataError
from sao.execution.runner import Runner
from sao.execution.session import Session
from sao.pipeline.folder import reader
from sao.pipeline.reader import Reader
from sao.records import Drop, Judgment, Persona, Prompt, Record, Response, make_id
from sao.results.data import Import
from sao.stages.rows import answer_row, first_free_row, index_of_answer, pair_row, persona_row
from sao.store import manifest
from sao.store.files import dumps, write_atomic
from sao.store.stage import Stage

JUDGE = "given"
PERSONAS, PROMPTS, RESPONSES, JUDGMENTS = range(4)
"""The numbers of the stages that are filled."""


def import_pairs(config: Config, out: Path, held_out: int = 0) -> Import:
    """Turn the data set `config.pairs.source` into the run folder `out`, its pairs included.

    Two passes over the data set. `held_out` questions, drawn by their hash, are left to the evaluation: no
    pair of theirs is trained on, and each is asked once.

    Returns:
        pairs, held_out, dropped and reasons (counts), licence, recipe and run (paths).

    Raises:
        DataError: For a data set that cannot be read or has too few pairs.
        StoreError: Where `out` is another run's.

    """
    given = config.pairs
    survey = _survey(given, held_out)
    config = _recipe(config, survey)
    run = reader(config, out)
    licence = given.licence or "unknown: set pairs.licence to its licence"
    _open(run, licence)
    stages = [
        run.stage("personas"),
        run.stage("prompts"),
        run.stage("responses"),
        run.round.stages("judgments")[0],
    ]
    if not all(stage.finished for stage in stages):
        _fill(stages, given, survey)
    runner = Runner(out, Session(), config.max_drop_share, writes_status=False)
    runner.run(run.round.table["pairs"], run.round)
    recipe = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomic(out / "recipe.yaml", recipe)
    counts = run.stage("prompts").counts
    return Import(
        pairs=survey.n,
        held_out=len(survey.held_out),
        dropped=counts.dropped,
        reasons=counts.reasons,
        licence=licence,
        recipe=str(out / "recipe.yaml"),
        run=str(out),
    )


def _open(run: Reader, licence: str) -> None:
    """Write the run's manifest. Raises StoreError where the folder is another run's."""
    licences = {"model": "none (no model was asked)", "pairs": licence}
    round_, imported = run.round, str(run.config.pairs.imported)
    manifest.open_manifest(
        run.root, run.config, "imported", imported, licences, round_.outside.found, round_.sizes
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """What the first pass found: `n` pairs to train on, `held` others, whose questions have the hashes
    `held_out` (sorted), and the system message where all pairs have the same one."""

    n: int
    held: int
    held_out: array[int]
    system: str | None


def _read(given: PairsConfig) -> Iterator[TextPair | Drop]:
    return read_pairs(str(given.source), given.revision, given.subset, given.split)


def _survey(given: PairsConfig, held_out: int) -> _Survey:
    """The first pass; 8 bytes a row. Raises DataError where no pair is left to train on."""
    import numpy as np

    if given.source is None:
        raise DataError("nothing to import: name a file or a hub data set", key="pairs.source")
    systems: set[str | None] = set()
    hashes = array("Q")
    for pair in _read(given):
        if isinstance(pair, TextPair):
            hashes.append(_question_hash(pair))
            if len(systems) < 2:
                systems.add(pair.messages[0].content if pair.messages[0].role == "system" else None)
    all_hashes = np.frombuffer(hashes, np.uint64) if hashes else np.zeros(0, np.uint64)
    smallest = np.unique(all_hashes)[:held_out]
    held = int(np.isin(all_hashes, smallest).sum())
    if held == len(all_hashes):
        raise DataError(
            f"{given.source}: holds {held} pairs; {held_out} questions held out would leave none. Lower "
            "--held-out",
            key="--held-out",
        )
    return _Survey(
        n=len(all_hashes) - held,
        held=held,
        held_out=array("Q", smallest.tobytes()),
        system=systems.pop() if len(systems) == 1 else None,
    )


def _question_hash(pair: TextPair) -> int:
    texts = (message.content for message in pair.messages if message.role != "system")
    return int(make_id("question", *(normalise(text) for text in texts)), 16)


def _recipe(config: Config, survey: _Survey) -> Config:
    """The recipe with which the run continues: the verdicts as given; no stage writes or judges anything."""
    data = config.model_dump(mode="json")
    pairs = data["pairs"]
    source, revision = pairs["source"], pairs["revision"]
    origin = [content_identity(source), revision, pairs["subset"], pairs["split"], survey.system]
    name = Path(source).name if Path(source).exists() else source
    pairs |= {
        "imported": make_id(dumps(origin)),
        "imported_from": "@".join(filter(None, (name, revision))),
        "source": None,
        "revision": None,
        "subset": None,
        "split": "train",
        "keep": "all",
    }
    data["personas"] |= {"source": "none", "n": survey.n, "held_out": len(survey.held_out)}
    data["responses"] |= {"n": 2, "system": survey.system}
    data["judging"] |= {"method": "given", "orders": "one", "engine": None, "panel": []}
    return make_config(data, "the imported run's recipe")


def _fill(stages: list[Stage], given: PairsConfig, survey: _Survey) -> None:
    """Write and seal the stages personas to judgments."""
    kinds: tuple[type[Record], ...] = (Persona, Prompt, Response, Judgment)
    done = [stage.open().done for stage in stages]
    with contextlib.ExitStack() as stack:
        writers = [None if stage.finished else stack.enter_context(stage.writer()) for stage in stages]
        for number, record in _all_records(given, survey):
            writer = writers[number]
            record_id = record.record_id if isinstance(record, Drop) else record.id
            if writer and record_id not in done[number]:
                writer.write(record)
    for stage, kind in zip(stages, kinds, strict=True):
        if not stage.finished:
            stage.seal(kind)


def _all_records(given: PairsConfig, survey: _Survey) -> Iterator[tuple[int, Record | Drop]]:
    """The records and drops of all rows, each with the number of its stage (0: personas … 3: judgments).

    Drops have the rows behind all prompts.
    """
    index, drop_row = 0, first_free_row(survey.n, len(survey.held_out))
    seen = bytearray(len(survey.held_out))
    for number, pair in enumerate(_read(given)):
        reason = pair.reason if isinstance(pair, Drop) else "repeats a held-out question"
        if isinstance(pair, TextPair):
            place = _place_of(_question_hash(pair), survey.held_out)
            if place is None:
                yield from _records(pair, persona_row(index, held_out=False), survey.system)
                index += 1
                continue
            if not seen[place]:
                seen[place] = 1
                records = _records(pair, persona_row(place, held_out=True), survey.system)
                yield from islice(records, 2)  # its persona and prompt only
                continue
        drop_id = make_id("row", number)
        yield PROMPTS, Drop(row=drop_row, stage="prompts", record_id=drop_id, reason=reason)
        drop_row += 1


def _place_of(wanted: int, hashes: array[int]) -> int | None:
    """The place of a hash among sorted ones, None where it is not among them."""
    place = bisect_left(hashes, wanted)
    return place if place < len(hashes) and hashes[place] == wanted else None


def _records(pair: TextPair, row: int, system: str | None) -> Iterator[tuple[int, Record]]:
    """One pair as records, each with the number of its stage: persona, prompt, two answers, label."""
    turns = [message.content for message in pair.messages]
    if pair.messages[0].role == "system":
        instruction = turns.pop(0)
        if system is None:
            turns[0] = f"{instruction}\n\n{turns[0]}"  # as for models that know no system role
    *earlier, text = turns
    key = make_id("imported", row, pair.id)
    persona = Persona(id=make_id("persona", row), row=row, text="")
    prompt = Prompt(
        id=make_id(key, "prompt"), row=row, persona_id=persona.id, text=text, earlier=tuple(earlier)
    )
    chosen, rejected = (
        Response(
            id=make_id(key, index),
            row=answer_row(prompt, 2, index),
            prompt_id=prompt.id,
            index=index,
            text=answer,
            token_ids=None,
            finish_reason="stop",
        )
        for index, answer in enumerate((pair.chosen, pair.rejected))
    )
    yield PERSONAS, persona
    yield PROMPTS, prompt
    yield RESPONSES, chosen
    yield RESPONSES, rejected
    yield JUDGMENTS, _label(pair, chosen, rejected, key)


def _label(pair: TextPair, chosen: Response, rejected: Response, key: str) -> Judgment:
    """The given label as a verdict. Which answer is first is drawn, so that the label does not depend on the
    position."""
    chosen_is_first = int(key, 16) % 2 == 1
    first, second = (chosen, rejected) if chosen_is_first else (rejected, chosen)
    # A probability that contradicts the label is left out.
    p_chosen = pair.p_chosen if pair.p_chosen is not None and pair.p_chosen > 0.5 else None
    p_first = p_chosen if p_chosen is None or chosen_is_first else 1 - p_chosen
    return Judgment(
        id=make_id(key, "label"),
        row=pair_row(index_of_answer(chosen.row, 2), 2, 0),
        prompt_id=chosen.prompt_id,
        first_id=first.id,
        second_id=second.id,
        judge=JUDGE,
        verdict="first" if chosen_is_first else "second",
        p_first=p_first,
    )
