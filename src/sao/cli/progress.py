"""Progress on stderr: a bar for each stage, and lines between."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Never

if TYPE_CHECKING:
    from tqdm import tqdm


class Progress:
    """Progress bars on stderr: one for each stage, with rate and time left; lines every 10 s where stderr is
    no terminal."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self._bar: tqdm[Never] | None = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` items of `stage` are finished."""
        if not self.shown:
            return
        bar = self._bar
        # The next stage may have the same name.
        if bar is None or stage != self._stage or total != bar.total or done < bar.n:
            self.close()
            self._bar = bar = _bar(stage, done, total)
            self._stage = stage
        bar.update(done - bar.n)

    def say(self, line: str) -> None:
        """Print a line above the bar, which goes on with its time and rate unless it is full."""
        if not self.shown:
            return
        text = f"{time.strftime('%H:%M:%S')} {line}"
        if self._bar is None or self._bar.n >= (self._bar.total or 0):
            self.close()
            print(text, file=sys.stderr)
        elif sys.stderr.isatty():
            self._bar.write(text, file=sys.stderr)
        else:
            print(f"\n{text}", file=sys.stderr)

    def close(self) -> None:
        """End the present bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""


def _bar(stage: str, done: int, total: int) -> tqdm[Never]:
    from tqdm import tqdm

    slow = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=done,
        desc=f"{stage:13}",
        mininterval=slow,
        file=sys.stderr,
        dynamic_ncols=True,
    )
