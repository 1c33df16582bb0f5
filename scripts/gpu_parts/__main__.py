"""Measure one part, for scripts/gpu_check.py.

    PYTHONPATH=src:tests:scripts python -m gpu_parts training --seconds 200

After each measurement it prints all that is known so far as a JSON line; gpu_check.py takes the last one.
Weights and tokens are random.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from gpu_parts.attention import attention_part
from gpu_parts.engine import engine_part
from gpu_parts.setting import Setting
from gpu_parts.training import gemma_part, training_part

PARTS = {
    "training": training_part,
    "attention": attention_part,
    "engine": engine_part,
    "gemma": gemma_part,
}


def main() -> int:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    small = options.small or not torch.cuda.is_available()
    device = torch.device("cpu" if small else "cuda")
    PARTS[options.part](Setting(device, small, time.monotonic() + options.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
