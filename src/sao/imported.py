"""A preference data set that others made, as a run: `sao import FILE|HUB --out RUN`.

Its prompts, answers and labels become the sealed stages of a run folder (labels as verdicts of the judge `given`, in one order),
so that `sao train`, `audit`, `label`, `stats`, `export` and `eval` serve it as if it had been made here. The recipe with which
they go on lies in RUN/recipe.yaml. The last `held_out` prompts are not trained on; the evaluation asks them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sao import manifest
from sao.config import Config, PairsConfig, make_config
from sao.errors import DataError
from sao.folder import RunFolder
from sao.rows import content_identity
from sao.store import Stage, dumps, write_atomic
from sao.training.data import TextPair, read_pairs
from sao.types import Drop, Judgment, Persona, Prompt, Record, Response, make_id

JUDGE = "given"


def import_pairs(config: Config, out: Path, held_out: int = 0) -> dict[str, Any]:
    """Turn the data set `config.pairs.source` into the run folder `out`; where its recipe lies, and what was read.

    Two passes over the data set. `held_out` prompts, the last ones, are left to the evaluation.

    Raises DataError for a data set that cannot be read or has too few pairs, StoreError where `out` is another run's.
    """
    given = config.pairs
    if given.source is None:
        raise DataError("nothing to import: name a file or a hub data set")
    kept, system = _survey(given)
    if kept <= held_out:
        raise DataError(f"{given.source}: holds {kept} pairs; {held_out} held out would leave none. Lower --held-out")
    config = _recipe(config, kept - held_out, held_out, system)
    run = RunFolder(config, out)
    licences = {
        "model": "none (no model was asked)",
        "pairs": given.licence or "unknown: set pairs.licence to its licence",
    }
    manifest.open_manifest(out, config, "imported", str(config.pairs.imported), licences)
    write_atomic(
        out / "recipe.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    )
    stages = [run.personas_stage, run.prompts_stage, run.responses_stage, run.judgments_stages[0]]
    if not all(stage.finished for stage in stages):
        _fill(stages, given, system, held_out, kept)
    return {"pairs": kept - held_out, "held_out": held_out, "dropped": run.prompts_stage.counts["dropped"],
            "reasons": run.prompts_stage.counts["reasons"], "recipe": str(out / "recipe.yaml"), "run": str(out)}  # fmt: skip


def _read(given: PairsConfig) -> Iterator[TextPair | Drop]:
    return read_pairs(str(given.source), given.revision, given.subset, given.split)


def _survey(given: PairsConfig) -> tuple[int, str | None]:
    """The number of pairs, and the system message where all have the same one."""
    kept = 0
    systems: set[str | None] = set()
    for pair in _read(given):
        if isinstance(pair, TextPair):
            kept += 1
            if len(systems) < 2:
                systems.add(pair.messages[0].content if pair.messages[0].role == "system" else None)
    return kept, systems.pop() if len(systems) == 1 else None


def _recipe(config: Config, n: int, held_out: int, system: str | None) -> Config:
    """The recipe with which the run goes on: all verdicts as they were given, and nothing written anew."""
    data = config.model_dump(mode="json")
    given = data["pairs"]
    identity = dumps([content_identity(given["source"]), given["revision"], given["subset"], given["split"]])
    given |= {
        "source": None,
        "revision": None,
        "subset": None,
        "split": "train",
        "imported": make_id(identity),
        "keep": "all",
    }
    data["personas"] |= {"source": "none", "n": n, "held_out": held_out}
    data["responses"] |= {"n": 2, "system": system}
    data["judging"] |= {"method": "given", "orders": "one", "engine": None, "panel": []}
    return make_config(data, "the imported run's recipe")


def _fill(stages: list[Stage], given: PairsConfig, system: str | None, held_out: int, kept: int) -> None:
    """Write and seal the stages personas, prompts, responses and judgments. Dropped rows stand behind the prompts."""
    kinds: tuple[type[Record], ...] = (Persona, Prompt, Response, Judgment)
    done = [stage.open().done for stage in stages]
    with contextlib.ExitStack() as stack:
        writers = [None if s.finished else stack.enter_context(s.writer()) for s in stages]
        row = dropped = 0
        for pair in _read(given):
            if isinstance(pair, Drop):
                written: list[tuple[int, Record | Drop]] = [
                    (1, replace(pair, stage="prompts", record_id=make_id(pair.record_id), row=kept + dropped))
                ]
                dropped += 1
            else:
                written = list(_records(pair, row, system, row < kept - held_out))
                row += 1
            for place, record in written:
                writer = writers[place]
                if writer and (record.record_id if isinstance(record, Drop) else record.id) not in done[place]:
                    writer.write(record)
    for stage, kind in zip(stages, kinds, strict=True):
        if not stage.finished:
            stage.seal(kind)


def _records(pair: TextPair, row: int, system: str | None, trains: bool) -> Iterator[tuple[int, Record]]:
    """One pair as records, each with the place of its stage. A held-out one leaves its prompt only."""
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
    if not trains:
        return
    answers = [
        Response(id=make_id(key, i), row=2 * row + i, prompt_id=prompt.id, index=i, text=text, token_ids=None,
                 finish_reason="stop")
        for i, text in enumerate((pair.chosen, pair.rejected))
    ]  # fmt: skip
    # Which of the two stands first is drawn, so that the label does not follow from the place.
    first, second = answers if int(key, 16) % 2 else answers[::-1]
    p_chosen = pair.p_chosen if pair.p_chosen is None or pair.p_chosen > 0.5 else None  # else it contradicts the label
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
