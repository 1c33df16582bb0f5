"""The suites whose answers a program checks, by name: ifeval, hellaswag, gsm8k, refusals.

sao eval --base BASE --tuned TUNED --suite ifeval hellaswag gsm8k refusals --data-dir DIR
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sao.evaluation import gsm8k, hellaswag, ifeval, refusals
from sao.evaluation.known_items import Items, KnownSuite, find_file

KNOWN = {
    suite.name: suite
    for suite in (
        KnownSuite(
            name="ifeval",
            title="IFEval",
            measures=ifeval.MEASURES,
            read=ifeval.read_ifeval,
            files=(
                "ifeval.jsonl",
                "ifeval_input_data.jsonl",
                "input_data.jsonl",
                "ifeval*.jsonl",
                "ifeval/*.jsonl",
            ),
        ),
        KnownSuite(
            name="hellaswag",
            title="HellaSwag",
            measures=hellaswag.MEASURES,
            read=hellaswag.read_hellaswag,
            files=("hellaswag_val.jsonl", "hellaswag.jsonl", "hellaswag_val*.jsonl", "hellaswag/val*.jsonl"),
        ),
        KnownSuite(
            name="gsm8k",
            title="GSM8K",
            measures=gsm8k.MEASURES,
            read=gsm8k.read_gsm8k,
            files=("gsm8k_test.jsonl", "gsm8k.jsonl", "gsm8k_test*.jsonl", "gsm8k/test*.jsonl"),
        ),
        KnownSuite(
            name="refusals",
            title="refusals",
            measures=refusals.MEASURES,
            read=refusals.read_refusals,
            shipped=refusals.SHIPPED,
            max_tokens=refusals.MAX_TOKENS,
        ),
    )
}
"""The suites by name."""


def read_items(suite: KnownSuite, folder: Path | None, given: str | None, limit: int | None) -> Items:
    """The first `limit` items of a suite (None: all), each once. Raises ConfigError or DataError where they
    cannot be had."""
    items = suite.read(find_file(suite, folder, given))
    return list({item.question.prompt.id: item for item in items}.values())[:limit]


def find_known(names: Iterable[str]) -> list[KnownSuite]:
    """The suites of this kind among these names, each once."""
    return [KNOWN[name] for name in dict.fromkeys(names) if name in KNOWN]
