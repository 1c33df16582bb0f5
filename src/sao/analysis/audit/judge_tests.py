"""The self-tests of a run's judge."""

from __future__ import annotations

from sao.engines import Engine, open_engine
from sao.evaluation.judge_tests import try_judge
from sao.pipeline.folder import RunFolder
from sao.results.audit import SelfTest


def self_tests(run: RunFolder, n: int, engine: Engine | None = None, seed: int = 0) -> dict[str, SelfTest]:
    """The first judge on made-up pairs of one answer each of `n` prompts; see
    `sao.evaluation.judge_tests.try_judge`."""
    config = run.jury[0].config
    opened: list[Engine] = []

    def open_judge() -> Engine:
        opened.append(engine or open_engine(config.engine or run.config.engine, *run.judge_model(config)))
        return opened[0]

    try:
        return try_judge(run.answered(), n, open_judge, config, seed)
    finally:
        if engine is None and opened:
            opened[0].close()
