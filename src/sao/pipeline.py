"""The method in order: personas → prompts → responses → judgments → pairs → training → evaluation.

`run(config, out)` does all of it in a run folder, or goes on where an earlier call stopped; `until` ends after a stage.
What stands in the folder is never computed again: a changed setting makes its stage, and those after it, anew beside the old
ones, and everything before is reused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sao import judging, manifest, pairs, personas, prompts, responses
from sao.config import Config
from sao.engines import Engine, open_engine
from sao.errors import ConfigError, DropError, TrainingError
from sao.evaluation import compare
from sao.folder import RunFolder
from sao.report import summarise
from sao.store import Stage, write_atomic
from sao.templates import load_template
from sao.types import Comparison, Drop, Judgment, Persona, PreferencePair, Prompt, Record, Response

STAGES = ("prompts", "respond", "judge", "pairs", "train", "eval")
Progress = Callable[[str, int, int], None]
"""(stage, items done, items in all), called for every item."""
Notify = Callable[[str], None]
DROPS_CHECKED_FROM = 500


def run(
    config: Config,
    out: str | Path,
    *,
    until: str = "eval",
    engine: Engine | None = None,
    progress: Progress = lambda stage, done, total: None,
    notify: Notify = lambda line: None,
) -> dict[str, Any]:
    """Run the method in folder `out` up to the stage `until` (one of STAGES); the summary that `sao run --json` prints.

    `engine` takes the place of the configured one (tests, planted judges). Raises SAOError's children; whatever was finished
    before stays finished.
    """
    started = time.monotonic()
    job = Run(config, Path(out), engine, progress=progress, notify=notify)
    try:
        job.open()
        for name in STAGES[: STAGES.index(until) + 1]:
            getattr(job, name)()
        summary = summarise(job, STAGES.index(until) + 1, job.worked)
    finally:
        job.close()
    summary["seconds"] = round(time.monotonic() - started, 1)
    if until == STAGES[-1] and (job.worked or not (job.root / "summary.json").is_file()):
        write_atomic(job.root / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


@dataclass
class Run(RunFolder):
    """The work of each stage, in the folder's places."""

    progress: Progress = lambda stage, done, total: None
    notify: Notify = lambda line: None
    worked: bool = field(default=False, init=False)
    _engine: Engine | None = field(default=None, init=False)

    def open(self) -> None:
        """Check model, templates and folder before any work starts."""
        self.check()
        source, licence = self.personas_stage.settings["source"], personas.licence_of(self.config.personas)
        for line in manifest.open_manifest(self.root, self.config, self.model_identity, source, licence):
            self.notify(f"changed since the last run here: {line}")

    def check(self) -> None:
        """Raise ConfigError for what would only show itself hours later."""
        for name, fields in self.templates.items():
            load_template(name, fields)
        if self.config.judging.method == "oracle" and self.oracle is None:
            raise ConfigError("judging.method oracle exists in the proving ground only (personas.source builtin:world)")
        if self.config.judging.method in ("logprob", "text") and self.given_engine is None:
            self._engine_check()

    def _engine_check(self) -> None:
        if self.config.engine.name == "scripted":
            return
        from sao.chat import find_model

        find_model(self.config.model, self.config.revision)

    @property
    def engine(self) -> Engine:
        """The engine with the untrained model, loaded when first needed."""
        if self.given_engine is not None:
            return self.given_engine
        if self._engine is None:
            self.notify(f"loading {self.config.model}")
            self._engine = open_engine(self.config, self.config.model, self.config.revision)
        return self._engine

    def close(self) -> None:
        """Give back the engine's memory."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    # The work of each stage.

    def _fill(
        self, stage: Stage, kind: type[Record], total: int, make: Callable[[str, set[str]], Iterable[Record | Drop]],
        limit_drops: bool = True,
    ) -> None:  # fmt: skip
        """Run a stage to its end: write what `make(key, done)` yields, watch the drops, seal."""
        stage.open()
        if stage.finished:
            if limit_drops:
                self._check_drops(stage)
            return
        self.worked = True
        done = dropped = 0
        reasons: dict[str, int] = {}
        before = len(stage.done)
        self.progress(stage.name, before, total)
        with stage.writer() as out:
            for record in make(stage.fingerprint, stage.done):
                out.write(record)
                done += 1
                if isinstance(record, Drop):
                    dropped += 1
                    reasons[record.reason] = reasons.get(record.reason, 0) + 1
                self.progress(stage.name, before + done, total)
                if limit_drops and done >= DROPS_CHECKED_FROM:
                    self._check_drops(stage, dropped, done, reasons)
        stage.seal(kind)
        self.progress(stage.name, total, total)  # identical answers are not judged, so fewer may have come
        if limit_drops:
            self._check_drops(stage)

    def _check_drops(self, stage: Stage, dropped: int = 0, of: int = 0, reasons: dict[str, int] | None = None) -> None:
        """Raise DropError where too many of the items so far, or of a finished stage, were dropped."""
        if reasons is None:
            counts = stage.counts
            dropped, of, reasons = counts["dropped"], counts["dropped"] + counts["records"], counts["reasons"]
        if of and dropped / of > self.config.max_drop_share:
            common = ", ".join(f"{reason} ({n})" for reason, n in sorted(reasons.items(), key=lambda r: -r[1])[:3])
            raise DropError(
                f"{stage.name}: {dropped} of {of} items were dropped, more than max_drop_share = "
                f"{self.config.max_drop_share:g}. Commonest reasons: {common}. Look at {stage.path}, then change the "
                "stage's settings or allow more with --max_drop_share"
            )

    def prompts(self) -> None:
        """Personas and what they ask (the held-out ones too)."""
        c = self.config
        total = c.personas.n + c.personas.held_out
        self._fill(
            self.personas_stage,
            Persona,
            total,
            lambda key, done: (p for p in personas.read_personas(c.personas, c.seed) if p.id not in done),
        )
        who = self.personas_stage.records(Persona)
        self._fill(
            self.prompts_stage,
            Prompt,
            total,
            lambda key, done: prompts.write_prompts(who, self.engine, c.prompts, key, done),
        )

    def respond(self) -> None:
        """N answers to each training prompt."""
        c = self.config.responses
        total = self.config.personas.n * c.n
        self._fill(
            self.responses_stage,
            Response,
            total,
            lambda key, done: responses.answer_prompts(self.asked(False), self.engine, c, key, done),
        )

    def judge(self) -> None:
        """Verdicts on every two answers to a prompt."""
        c, n = self.config.judging, self.config.responses.n
        orders = 2 if c.orders == "both" else 1
        needs_engine = c.method in ("logprob", "text")

        def make(key: str, done: set[str]) -> Iterator[Judgment]:
            groups = ((prompt.id, prompt.text, answers) for prompt, answers in self.answered())
            duels = judging.duels(groups, orders, key, n)
            return judging.judge(duels, self.engine if needs_engine else None, c, done, self.oracle)

        total = self.config.personas.n * n * (n - 1) // 2 * orders
        self._fill(self.judgments_stage, Judgment, total, make)

    def pairs(self) -> None:
        """The verdicts that are learnt from."""
        n = self.config.responses.n
        self._fill(
            self.pairs_stage,
            PreferencePair,
            self.config.personas.n * n * (n - 1) // 2,
            lambda key, done: (
                pair
                for pair in pairs.build_pairs(self.judged(), self.config.pairs, key, n)
                if (pair.record_id if isinstance(pair, Drop) else pair.id) not in done
            ),
            limit_drops=False,
        )

    def train(self) -> None:
        """Preference optimisation on the pairs."""
        stage = self.train_stage.open()
        if stage.finished and self.model_dir.is_dir():
            return
        if self.pairs_stage.counts["records"] == 0:
            reasons = self.pairs_stage.counts["reasons"]
            raise TrainingError(
                f"no pairs to train on: all were dropped ({reasons}). Lower --pairs.min_margin, or start again with more "
                "personas in another --out"
            )
        if self.config.engine.name == "scripted" and self.given_engine is None:
            raise ConfigError("the scripted engine has no model to train; stop before with `sao pairs`")
        self.close()
        self.worked = True
        from sao.training import job

        counts = job.train_run(self.config, self.labelled(), stage.path, self.progress)
        write_atomic(self.model_dir / "README.md", self._card())
        stage.finish(counts)

    def _card(self) -> str:
        from sao.card import model_card

        made = json.loads((self.root / "manifest.json").read_text("utf-8"))
        return model_card(made, self.funnel())

    def eval(self) -> None:
        """Held-out prompts answered by base and tuned model, compared in both orders by the untrained model."""
        if self.config.personas.held_out == 0:
            return
        total = self.config.personas.held_out

        def answers(engine: Engine) -> Callable[[str, set[str]], Iterable[Record | Drop]]:
            return lambda key, done: responses.answer_prompts(self.asked(True), engine, self.one_answer, key, done)

        if not self.base_answers_stage.open().finished:
            self._fill(self.base_answers_stage, Response, total, answers(self.engine))
        self._check_drops(self.base_answers_stage)
        if not self.tuned_answers_stage.open().finished:
            self.close()
            tuned = open_engine(self.config, str(self.model_dir))
            try:
                self._fill(self.tuned_answers_stage, Response, total, answers(tuned))
            finally:
                tuned.close()
        self._check_drops(self.tuned_answers_stage)
        if not self.comparisons_stage.open().finished:
            self._fill(self.comparisons_stage, Comparison, 2 * total, self._compare)

    def _compare(self, key: str, done: set[str]) -> Iterator[Comparison]:
        bases = {base.id for _, base, _ in self.held_out()}

        def duels() -> Iterator[judging.Duel]:
            for prompt, base, tuned in self.held_out():
                answers = [replace(base, row=2 * prompt.row), replace(tuned, row=2 * prompt.row + 1, index=1)]
                group = [(prompt.id, prompt.text, answers)]
                yield from judging.duels(group, 2, key, 2)

        for verdict in judging.judge(duels(), self.engine, self.eval_judging, done, self.oracle):
            yield compare.comparison_of(verdict, verdict.first_id if verdict.first_id in bases else verdict.second_id)
