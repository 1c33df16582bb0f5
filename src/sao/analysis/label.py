"""A person labels a blind sample of a run's pairs in the terminal: `sao label RUN --n 100`.

Two different answers to a prompt are shown in an order drawn by their ids, without the judge's word. Each
label is a line of RUN/labels.jsonl, on disk before the next pair is shown; the same command goes on. `sao
audit` reads the file.
"""

from __future__ import annotations

import os
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import combinations
from pathlib import Path

from sao.errors import DataError
from sao.pipeline.reader import Reader
from sao.records import Prompt, Response, make_id
from sao.store.files import dumps, read_jsonl, store_error

KEYS = {"1": "first", "2": "second", "t": "tie"}
HELP = "1 or 2: the better answer; t: a tie; s: skip; u: take the last label back; q: stop (the same command goes on)"  # noqa: E501


@dataclass(frozen=True, slots=True)
class Shown:
    """Two answers as they are shown."""

    prompt: Prompt
    first: Response
    second: Response


def sample(run: Reader, n: int, seed: int = 0) -> list[Shown]:
    """`n` pairs of different answers, at most one a prompt, drawn by a hash: the same ones for the same run
    and seed."""

    def candidates() -> Iterator[tuple[str, Shown]]:
        for prompt, answers in run.answered():
            pairs = [(a, b) for a, b in combinations(answers, 2) if a.text != b.text]
            if pairs:
                a, b = min(pairs, key=lambda pair: make_id("label", seed, pair[0].id, pair[1].id))
                rank = make_id("label", seed, prompt.id)
                swap = int(make_id("order", seed, prompt.id), 16) % 2 == 1
                yield rank, Shown(prompt, *((b, a) if swap else (a, b)))

    return [shown for _, shown in nsmallest(n, candidates(), key=lambda item: item[0])]


def label(
    run: Reader,
    n: int,
    by: str,
    seed: int = 0,
    ask: Callable[[str], str] | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Ask for labels until `n` pairs have one, or the person stops; how many the file holds of these.

    Raises StoreError where a label cannot be written, DataError where there are no two different answers, or
    where a line of the file is no label.
    """
    ask = ask or input
    path = run.root / "labels.jsonl"
    pairs = sample(run, n, seed)
    if not pairs:
        raise DataError(f"{run.root}: no prompt has two different answers, so there is nothing to compare")
    say(HELP)
    skipped: set[str] = set()
    while True:
        done = _labelled(path, by)
        left = [shown for shown in pairs if shown.prompt.id not in done and shown.prompt.id not in skipped]
        if not left:
            break
        number = len(pairs) - len(left) + 1
        say(_show(left[0], f"{number} of {len(pairs)}"))
        try:
            word = ask("better answer [1/2/t/s/u/q]: ").strip().lower()
        except EOFError:
            break
        if word == "q":
            break
        if word == "s":
            skipped.add(left[0].prompt.id)
        elif word == "u" and done:
            _append(path, {"prompt_id": list(done)[-1], "verdict": None, "by": by})
        elif word in KEYS:
            shown = left[0]
            ids = {"prompt_id": shown.prompt.id, "first_id": shown.first.id, "second_id": shown.second.id}
            _append(
                path,
                {
                    **ids,
                    "verdict": KEYS[word],
                    "by": by,
                    "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                },
            )
        else:
            say(HELP)
    count = len({shown.prompt.id for shown in pairs} & set(_labelled(path, by)))
    say(f"{count} of {len(pairs)} labelled, in {path}. `sao audit {run.root}` compares them with the judge")
    return count


def _labelled(path: Path, by: str) -> dict[str, str]:
    """The last word of this person on each prompt, by the prompt's id, in the order of labelling."""
    found: dict[str, str] = {}
    for number, row in enumerate(read_jsonl(path) if path.is_file() else (), 1):
        if not isinstance(row, dict) or row.get("verdict", "") not in (None, *KEYS.values()):
            raise DataError(
                f"{path}, line {number}: not a label (its verdict must be first, second, tie or null). Mend "
                "or delete the line"
            )
        prompt = row.get("prompt_id")
        if row.get("by") == by and isinstance(prompt, str):
            found.pop(prompt, None)
            if row["verdict"] is not None:
                found[prompt] = row["verdict"]
    return found


def _append(path: Path, row: dict[str, str | None]) -> None:
    """One line, on disk before this returns; a line torn by a kill before it is cut off."""
    try:
        with path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write((dumps(row) + "\n").encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise store_error(error, path) from error


def _show(shown: Shown, place: str) -> str:
    """The pair, as wide as the terminal, without characters that could steer it."""
    width = min(100, shutil.get_terminal_size().columns)

    def block(text: str) -> str:
        text = text.expandtabs(4)
        plain = (
            "".join(c for c in text if c.isprintable() or c == "\n")
            .encode("utf-8", "replace")
            .decode("utf-8")
        )
        return "\n".join(
            textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  ")
            for line in plain.splitlines()
        )

    parts = [
        f"── {place} " + "─" * max(0, width - len(place) - 4),
        block(shown.prompt.conversation),
        "",
        "1:",
        block(shown.first.text),
    ]
    return "\n".join([*parts, "", "2:", block(shown.second.text), ""])
