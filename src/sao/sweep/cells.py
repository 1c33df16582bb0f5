"""The lines of a sweep: cells.jsonl, one `Cell` a line, and the scores of each cell's prompts beside it.

A cell's scores are written first, whole; its line is appended last and forced to disk. So a line means that
the cell is finished, and a kill at any moment leaves at most a torn last line, which is cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from sao.errors import StoreError
from sao.results.sweep import Cell, PromptScores
from sao.store.files import cut_torn_line, read_jsonl, store_error, write_atomic

MEND = "Delete this line and run the same command again: its cell is measured again from the run folder"


class Cells:
    """The cells of a sweep's folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / "cells.jsonl"

    def read(self) -> dict[str, Cell]:
        """The cells by fingerprint; of a cell that was tried again, the last line."""
        if not self.path.is_file():
            return {}
        found: dict[str, Cell] = {}
        for number, row in enumerate(read_jsonl(self.path, MEND), 1):
            try:
                cell = Cell.model_validate(row)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in first["loc"])
                raise StoreError(
                    f"{self.path}, line {number}: no cell of this version of SAO ({where}: {first['msg']}). "
                    f"{MEND}",
                    key=self.path.name,
                ) from error
            found[cell.fingerprint] = cell
        return found

    def must_exist(self) -> None:
        """Raise StoreError where no sweep has worked."""
        if not self.path.is_file():
            raise StoreError(
                f"{self.root}: no {self.path.name}, so no sweep has finished a cell here. Start it without "
                "--table, or name its folder with --out",
                key=self.path.name,
            )

    def open(self) -> None:
        """Make the folder, and cut off a line that a kill has torn."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if self.path.is_file():
                cut_torn_line(self.path)
        except OSError as error:
            raise store_error(error, self.path) from error

    def append(self, cell: Cell, scores: Iterable[PromptScores] = ()) -> None:
        """Keep a cell, and the scores of its prompts if it is finished."""
        if cell.error is None:
            lines = "".join(f"{score.model_dump_json()}\n" for score in scores)
            write_atomic(self._scores(cell.fingerprint), lines)
        try:
            with self.path.open("ab") as file:
                file.write(f"{cell.model_dump_json()}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise store_error(error, self.path) from error

    def scores(self, cell: Cell) -> list[PromptScores]:
        """The scores of a finished cell's prompts. Raises StoreError where they are gone."""
        path = self._scores(cell.fingerprint)
        try:
            return [PromptScores.model_validate(row) for row in read_jsonl(path, MEND)]
        except (FileNotFoundError, ValidationError) as error:
            raise StoreError(
                f"{path}: the scores of cell {cell.fingerprint} are missing or broken. Delete its line from "
                f"{self.path} and run the same command again: they are measured again from the run folder",
                key=path.name,
            ) from error

    def _scores(self, fingerprint: str) -> Path:
        return self.root / "scores" / f"{fingerprint}.jsonl"
