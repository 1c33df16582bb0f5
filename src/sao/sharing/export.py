"""Export: a run's pairs as a data set in the form of the tool that trains on it, with a card. A finished run
in, a folder out:

    train.parquet, test.parquet    (or .jsonl) the rows, as `sao.sharing.formats` makes them
    README.md                      the card, which also tells `datasets.load_dataset` and the hub what is what
    dataset_info.json, axolotl.yaml   where the tool reads such a file

A kill at any moment leaves the earlier export, the new one, or a folder that says to export again
(`sao.sharing.sinks`). No persona and no question is in both train and test (`sao.sharing.split`). Try:

    sao export RUN --format trl --view pairs --out DIR
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sao.errors import DataError
from sao.pipeline.reader import Groups, Reader
from sao.records import Persona, PreferencePair, Prompt
from sao.results.audit import Audit
from sao.results.data import Export
from sao.sharing.dataset_card import MARK, Exported, data_card
from sao.sharing.formats import COLUMNS, SUFFIX, Example, check_names, rows_of, side_files, standings, usage
from sao.sharing.sinks import OWN_FILES, Sink, arriving
from sao.sharing.split import split_of
from sao.stages.rows import pairs_each
from sao.store.manifest import read_manifest


def export(
    run: Reader,
    out: Path,
    form: str = "trl",
    view: str = "pairs",
    test_share: float = 0.05,
    audit: Audit | None = None,
) -> Export:
    """Write the run's pairs into the folder `out`, which is made where it does not exist.

    Args:
        run: A run whose pairs are made.
        out: The folder; an earlier export in it is replaced.
        form: One of `FORMS`.
        view: One of `VIEWS`.
        test_share: Share of the prompts that become test data, from 0 up to, but not, 1.
        audit: What `sao.analysis.audit.audit` found, for the card.

    Returns:
        form, view, train and test (rows), left_out (answers that view kto has no label for), paths (of the
        data), card (path).

    Raises:
        DataError: For options that do not exist, a run without pairs, or a folder that holds other files.
        StoreError: Where the run is not finished or the folder cannot be written; no half file is left.

    """
    check_names(form, view)
    if not 0 <= test_share < 1:
        raise DataError(
            f"--test-share {test_share}: give a share from 0 up to, but not, 1", key="--test-share"
        )
    _check_folder(out)
    split = split_of(paired(run), test_share)
    with arriving(out, SUFFIX[form]) as sinks:
        left_out = write_rows(joined(run), split, sinks, form, view, run.config.responses.system)
        options = f"--format {form} --view {view} --test-share {test_share:g}"
        options += f" --round {run.round.number}" if run.round.number > 1 else ""
        done = _exported(sinks, form, view, left_out, options)
        card = data_card(read_manifest(run.root), run.funnel(), done, audit, run.round.number)
        for name, text in (side_files(form, view, done.files) | {"README.md": card}).items():
            sinks[name] = Sink(out / name)
            sinks[name].write_text(text)
    return Export(
        form=form,
        view=view,
        train=sinks["train"].count,
        test=sinks["test"].count,
        left_out=left_out,
        paths=[str(out / file) for file in done.files.values()],
        card=str(out / "README.md"),
    )


def _exported(sinks: Mapping[str, Sink], form: str, view: str, left_out: int, options: str) -> Exported:
    """What was written into the data files, for the card."""
    filled = {name: sink for name, sink in sinks.items() if sink.count}
    files = {name: sink.path.name for name, sink in filled.items()}
    return Exported(
        view=view,
        files=files,
        rows={name: sink.count for name, sink in filled.items()},
        digest=hashlib.sha256("".join(sink.digest for sink in filled.values()).encode()).hexdigest(),
        left_out=left_out,
        columns={name: COLUMNS[name] for name in next(sink.columns for sink in filled.values())},
        usage=usage(form, view, files),
        options=options,
    )


def _check_folder(out: Path) -> None:
    """Raise DataError where the folder holds files that an export would replace and that no export wrote."""
    card = out / "README.md"
    if card.is_file() and MARK in card.read_text("utf-8", errors="replace"):
        return
    there = [name for name in OWN_FILES if (out / name).exists()]
    if there:
        raise DataError(
            f"{out}: holds {', '.join(there)}, and no card of `sao export` beside. Give another folder with "
            "--out, or move that away",
            key="--out",
        )


# What is read.


def paired(run: Reader) -> Iterator[Prompt]:
    """The prompts that have pairs, in order."""
    kept, possible = _pairs_of(run)
    return (prompt for prompt in run.asked(held_out=False) if kept.take(prompt, possible))


def _pairs_of(run: Reader) -> tuple[Groups[PreferencePair], int]:
    """The pairs, to be taken prompt by prompt, and how many each prompt may have."""
    possible = pairs_each(run.config.responses.n)
    return Groups(run.stage("pairs"), PreferencePair, possible), possible


def joined(run: Reader) -> Iterator[Example]:
    """Each prompt that has pairs, with its persona, pairs and verdicts; one prompt is in memory at a time."""
    kept, possible = _pairs_of(run)
    people = run.stage("personas").records(Persona) if run.stage("personas").finished else iter(())
    persona = next(people, None)
    for prompt, answers, judgments in run.judged():
        while persona is not None and persona.row < prompt.row:
            persona = next(people, None)
        by_id = {answer.id: answer for answer in answers}
        pairs = [
            (pair, by_id[pair.chosen_id], by_id[pair.rejected_id]) for pair in kept.take(prompt, possible)
        ]
        if pairs:
            text = persona.text if persona is not None and persona.id == prompt.persona_id else ""
            yield Example(prompt=prompt, persona=text, pairs=pairs, judgments=judgments)


def write_rows(
    examples: Iterable[Example],
    split: bytes,
    sinks: dict[str, Sink],
    form: str,
    view: str,
    system: str | None,
) -> int:
    """Write all rows into `sinks` ("train" and "test") and close them; how many answers have no row in view
    kto.

    Raises DataError where there are no rows, StoreError where they cannot be written.
    """
    left_out = 0
    for example in examples:
        rows = rows_of(example, form, view, system)
        left_out += len(standings(example)) - len(rows) if view == "kto" else 0
        for row in rows:
            sinks["test" if split[example.prompt.row] else "train"].write(row)
    if not any(sink.count for sink in sinks.values()):
        raise DataError(
            "no pairs: there is nothing to export. See why in the funnel of `sao run`, or lower pairs.min_p",
            key="pairs",
        )
    for sink in sinks.values():
        sink.close()
    return left_out
