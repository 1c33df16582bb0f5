"""What each of two processes does for tests/support/family_checks.py: a short training of every folder.

torchrun --nproc-per-node 2 -m support.family_worker FOLDER …
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.family_checks import train_briefly


def main() -> None:
    """Train each folder's model; out/metrics.jsonl, or out/error.txt, lies beside it."""
    for name in sys.argv[1:]:
        folder = Path(name)
        out = folder.parent / "two"
        try:
            train_briefly(str(folder), out)
        except Exception as error:  # the other folders go on
            out.mkdir(exist_ok=True)
            (out / "error.txt").write_text(json.dumps(f"{type(error).__name__}: {error}"), "utf-8")


if __name__ == "__main__":
    main()
