"""What training leaves on disk so that a kill at any moment costs no more than the steps since the last
checkpoint.

A checkpoint folder counts only once its marker stands, which is written after everything else is durable. The
marker holds the size of metrics.jsonl at that step, to which the file is cut back when training goes on from
there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import OutOfMemoryError

from sao.errors import SAOError, StoreError, TrainingError
from sao.store.files import dumps, store_error, write_atomic

KEPT = 2
"""How many checkpoints stay: the newest ones."""
_MARKER = "complete.json"


def resume_point(out: Path) -> Path | None:
    """Clear away what a kill left half-written; the newest complete checkpoint, None where there is none."""
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    complete = _complete(checkpoints)
    for folder in checkpoints.iterdir():
        if folder not in complete:
            remove(folder)
    remove(out / "model.partial")
    newest = complete[-1] if complete else None
    size = 0 if newest is None else int(json.loads((newest / _MARKER).read_text("utf-8"))["metrics_bytes"])
    with (out / "metrics.jsonl").open("ab") as file:
        if file.tell() > size:
            file.truncate(size)
    return newest


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Note in out/training.json what is trained there. Raises TrainingError where something else is half-way
    there already."""
    path = out / "training.json"
    if path.is_file():
        old = json.loads(path.read_text("utf-8"))
        differing = [key for key in settings if old.get(key) != settings[key]]
        if differing:
            raise TrainingError(
                f"{out} holds a training with other {', '.join(differing)}. Take another folder, or delete "
                "this one to start again",
                key="training",
            )
    else:
        write_atomic(path, dumps(settings) + "\n")


def _complete(checkpoints: Path) -> list[Path]:
    """The checkpoints that count, oldest first."""
    complete = [marker.parent for marker in checkpoints.glob(f"checkpoint-*/{_MARKER}")]
    return sorted(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))


def remove(folder: Path) -> None:
    """Delete a folder, its marker first: a half-deleted checkpoint must not count."""
    (folder / _MARKER).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint."""
    return int(json.loads((checkpoint / _MARKER).read_text("utf-8"))["processes"])


def seal(folder: Path, metrics: Path, processes: int) -> None:
    """Let a checkpoint count, now that all of it is written; then drop all but the newest ones."""
    with writing(folder):
        fsync(folder, metrics)
        write_atomic(
            folder / _MARKER, dumps({"metrics_bytes": metrics.stat().st_size, "processes": processes})
        )
    with writing(folder.parent):
        for old in _complete(folder.parent)[:-KEPT]:
            remove(old)


def fsync(*paths: Path) -> None:
    """Make files, and folders with the files in them, durable."""
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else ()
        for file in [*inside, path]:
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write to `path` into a StoreError; a folder that is half-written makes room again."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if path.name.startswith("checkpoint-") or path.name == "model.partial":
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, (SAOError, OutOfMemoryError)):
            raise
        if isinstance(error, OSError):
            raise store_error(error, path) from error
        # torch.save and safetensors report a full disk in exceptions of their own.
        raise StoreError(
            f"{path}: cannot be written ({error}). Earlier checkpoints are kept: free some space and run the "
            "same command again",
            key="checkpoint",
        ) from error
