"""A person labels a blind sample of a run's pairs in the terminal: `sao label RUN --n 100`.

Two different answers to a prompt are shown in an order drawn by their ids, without the judge's verdict. Each
label is a line of RUN/labels.jsonl, on disk before the next pair is shown; the same command goes on. `sao
audit` reads the file.
"""

from __future__ import annotations

import os
import shutil
import textwrap
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import combinations
from pathlib import Path

from sao.errors import DataError
from sao.pipeline.reader import Reader
from sao.records import Prompt, Response, make_id
from sao.store.files import dumps, read_jsonl, store_error

KEYS = {"1": "first", "2": "second", "t": "tie"}
HELP = (
    "1 or 2: the better answer; t: a tie; s: skip; u: take the last label back; "
    "q: stop (the same command goes on)"
)


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
    pairs = sample(run, n, seed)
    if not pairs:
        raise DataError(
            f"{run.root}: no prompt has two different answers, so there is nothing to compare",
            key="different answers",
        )
    labels = _Labels(run.root / "labels.jsonl", by)
    say(HELP)
    skipped: set[str] = set()
    while left := labels.unlabelled(pairs, skipped):
        shown = left[0]
        say(_show(shown, f"{len(pairs) - len(left) + 1} of {len(pairs)}"))
        command = _read(ask or input)
        if command == "q":
            break
        if command == "s":
            skipped.add(shown.prompt.id)
        elif command == "u" and labels.last():
            labels.take_back()
        elif command in KEYS:
            labels.add(shown, KEYS[command])
        else:
            say(HELP)
    count = len(pairs) - len(labels.unlabelled(pairs))
    done = f"{count} of {len(pairs)} labelled, in {labels.path}"
    say(f"{done}. `sao audit {run.root}` compares them with the judge")
    return count


def _read(ask: Callable[[str], str]) -> str:
    """What the person types; q at the end of the input."""
    try:
        return ask("better answer [1/2/t/s/u/q]: ").strip().lower()
    except EOFError:
        return "q"


@dataclass(frozen=True, slots=True)
class _Labels:
    """The file of labels, for one person."""

    path: Path
    by: str

    def unlabelled(self, pairs: list[Shown], skipped: Collection[str] = ()) -> list[Shown]:
        """Those of the pairs whose prompts have no label and are not skipped."""
        done = {*self.last(), *skipped}
        return [shown for shown in pairs if shown.prompt.id not in done]

    def last(self) -> dict[str, str]:
        """The person's last word on each prompt, by the prompt's id, in the order of labelling."""
        words: dict[str, str] = {}
        for number, row in enumerate(
            read_jsonl(self.path, "Mend or delete the line") if self.path.is_file() else (), 1
        ):
            if not isinstance(row, dict) or row.get("verdict", "") not in (None, *KEYS.values()):
                raise DataError(
                    f"{self.path}, line {number}: not a label (its verdict must be first, second, tie or "
                    "null). Mend or delete the line",
                    key="labels",
                )
            prompt = row.get("prompt_id")
            if row.get("by") == self.by and isinstance(prompt, str):
                words.pop(prompt, None)
                if row["verdict"] is not None:
                    words[prompt] = row["verdict"]
        return words

    def add(self, shown: Shown, verdict: str) -> None:
        """A label of two answers."""
        _append(
            self.path,
            {
                "prompt_id": shown.prompt.id,
                "first_id": shown.first.id,
                "second_id": shown.second.id,
                "verdict": verdict,
                "by": self.by,
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        )

    def take_back(self) -> None:
        """Take back the last label."""
        _append(self.path, {"prompt_id": list(self.last())[-1], "verdict": None, "by": self.by})


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


def _show(shown: Shown, heading: str) -> str:
    """The pair, as wide as the terminal, without characters that could steer it."""
    width = min(100, shutil.get_terminal_size().columns)

    def block(text: str) -> str:
        text = text.expandtabs(4)
        printable = "".join(c for c in text if c.isprintable() or c == "\n")
        plain = printable.encode("utf-8", "replace").decode("utf-8")
        return "\n".join(
            textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  ")
            for line in plain.splitlines()
        )

    parts = [
        f"── {heading} " + "─" * max(0, width - len(heading) - 4),
        block(shown.prompt.conversation),
        "",
        "1:",
        block(shown.first.text),
    ]
    return "\n".join([*parts, "", "2:", block(shown.second.text), ""])
