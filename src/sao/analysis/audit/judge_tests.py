"""The self-tests of a run's judge."""

from __future__ import annotations

from sao.engines import Engine
from sao.evaluation.judge_tests import try_judge
from sao.execution.session import Session
from sao.pipeline.reader import Reader
from sao.results.audit import SelfTest


def self_tests(run: Reader, n: int, engine: Engine | None = None, seed: int = 0) -> dict[str, SelfTest]:
    """The first judge on made-up pairs of one answer each of `n` prompts; see
    `sao.evaluation.judge_tests.try_judge`."""
    judge = run.judges[0]
    session = Session(given={} if engine is None else {judge.role.name: engine})
    try:
        return try_judge(run.answered(), n, lambda: session.engine(judge.role), judge.config, seed)
    finally:
        session.close()
