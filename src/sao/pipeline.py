"""The method in order: personas → prompts → responses → judgments → pairs → training → evaluation.

`run(config, out)` does all of it in a run folder, or goes on where an earlier call stopped; `until` ends after a stage.
What stands in the folder is never computed again: a changed setting makes its stage, and those after it, anew beside the old
ones, and everything before is reused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from sao import evaluation, judging, manifest, pairs, personas, prompts, responses
from sao.config import Config, ResponsesConfig
from sao.engines import Engine, open_engine
from sao.errors import ConfigError, DropError, TrainingError
from sao.evaluation import compare
from sao.store import Stage, dumps, write_atomic
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
    job = Run(config, Path(out), engine, progress, notify)
    try:
        job.open()
        for name in STAGES[: STAGES.index(until) + 1]:
            getattr(job, name)()
        summary = job.summary(until)
    finally:
        job.close()
    summary["seconds"] = round(time.monotonic() - started, 1)
    if until == STAGES[-1]:
        write_atomic(job.root / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


@dataclass
class Run:
    """One run folder with one recipe: each stage a property (its place and fingerprint) and a method (its work)."""

    config: Config
    root: Path
    given_engine: Engine | None
    progress: Progress
    notify: Notify
    round: int = 1
    worked: bool = field(default=False, init=False)
    _engine: Engine | None = field(default=None, init=False)

    def open(self) -> None:
        """Check model, templates and folder before any work starts."""
        self.check()
        licence = personas.licence_of(self.config.personas)
        for line in manifest.open_manifest(self.root, self.config, self.model_identity, licence):
            self.notify(f"changed since the last run here: {line}")

    def check(self) -> None:
        """Raise ConfigError for what would only show itself hours later."""
        for name, fields in self._templates.items():
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

    @cached_property
    def _templates(self) -> dict[str, tuple[str, ...]]:
        c = self.config
        nobody = c.personas.source == "none"
        found: dict[str, tuple[str, ...]] = {c.judging.template: ("prompt", "first", "second")}
        return found | ({c.prompts.template_without_persona: ()} if nobody else {c.prompts.template: ("persona",)})

    @cached_property
    def model_identity(self) -> str:
        """What the model is, whatever its path."""
        if self.given_engine is not None:
            return self.given_engine.identity
        if self.config.engine.name == "scripted":
            return self.config.model
        from sao.chat import weights_identity

        return weights_identity(self.config.model, self.config.revision)

    @cached_property
    def oracle(self) -> compare.Oracle | None:
        """The proving ground's oracle, None elsewhere."""
        if self.config.personas.source != "builtin:world":
            return None
        from sao.world.oracle import score

        return score

    @property
    def engine(self) -> Engine:
        """The engine with the untrained model, loaded when first needed."""
        if self.given_engine is not None:
            return self.given_engine
        if self._engine is None:
            self.notify(f"loading {self.config.model}")
            self._engine = open_engine(self.config, self.config.model)
        return self._engine

    def close(self) -> None:
        """Give back the engine's memory."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    # Where each stage lies. Its settings hold all that its records depend on, the stage before it included.

    def _stage(self, name: str, before: Stage | None, **settings: Any) -> Stage:
        upstream = before.fingerprint if before else None
        return Stage(self.root / f"round-{self.round}", name, {**settings, "upstream": upstream})

    def _template_text(self, name: str) -> str:
        return load_template(name, ())

    @cached_property
    def personas_stage(self) -> Stage:
        return self._stage("personas", None, **personas.source_identity(self.config.personas, self.config.seed))

    @cached_property
    def prompts_stage(self) -> Stage:
        c = self.config.prompts
        name = c.template_without_persona if self.config.personas.source == "none" else c.template
        settings = c.model_dump(mode="json") | {"text": self._template_text(name)}
        return self._stage("prompts", self.personas_stage, **settings, model=self.model_identity, seed=self.config.seed)

    @cached_property
    def responses_stage(self) -> Stage:
        return self._stage("responses", self.prompts_stage, **self.config.responses.model_dump(mode="json"))

    def _judging_settings(self) -> dict[str, Any]:
        c = self.config.judging
        used = {
            "logprob": {"choices", "min_mass", "template"},
            "text": {"choices", "temperature", "max_tokens", "template"},
        }.get(c.method, set())
        settings = c.model_dump(mode="json", include={"method", "orders", *used})
        return settings | ({"text": self._template_text(c.template)} if used else {})

    @cached_property
    def judgments_stage(self) -> Stage:
        return self._stage("judgments", self.responses_stage, **self._judging_settings())

    @cached_property
    def pairs_stage(self) -> Stage:
        return self._stage("pairs", self.judgments_stage, **self.config.pairs.model_dump(mode="json"))

    @cached_property
    def train_stage(self) -> Stage:
        settings = self.config.train.model_dump(mode="json", exclude={"save_steps"})
        return self._stage("train", self.pairs_stage, **settings)

    @cached_property
    def base_answers_stage(self) -> Stage:
        return self._stage("heldout_base", self.prompts_stage, **self._one_answer.model_dump(mode="json"))

    @cached_property
    def tuned_answers_stage(self) -> Stage:
        return self._stage("heldout_tuned", self.train_stage, **self._one_answer.model_dump(mode="json"))

    @cached_property
    def comparisons_stage(self) -> Stage:
        return self._stage("comparisons", self.tuned_answers_stage, **self._eval_judging.model_dump(mode="json"))

    @cached_property
    def _one_answer(self) -> ResponsesConfig:
        return self.config.responses.model_construct(**(self.config.responses.model_dump() | {"n": 1}))

    @cached_property
    def _eval_judging(self) -> Any:
        """Both orders always; the controls (random, oracle) label training pairs only, the model judges the result."""
        method = self.config.judging.method
        return self.config.judging.model_copy(
            update={"orders": "both", "method": method if method in ("logprob", "text") else "logprob"}
        )

    # The work of each stage.

    def _fill(
        self, stage: Stage, kind: type[Record], total: int, make: Callable[[str, set[str]], Iterable[Record | Drop]],
        limit_drops: bool = True,
    ) -> None:  # fmt: skip
        """Run a stage to its end: write what `make(key, done)` yields, watch the drops, seal."""
        stage.open()
        if stage.finished:
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
        counts = stage.counts
        if limit_drops:
            self._check_drops(stage, counts["dropped"], counts["dropped"] + counts["records"], counts["reasons"])

    def _check_drops(self, stage: Stage, dropped: int, of: int, reasons: dict[str, int]) -> None:
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

    def _prompts(self, held_out: bool) -> Iterator[Prompt]:
        n = self.config.personas.n
        return (p for p in self.prompts_stage.records(Prompt) if (p.row >= n) == held_out)

    def respond(self) -> None:
        """n answers to each training prompt."""
        c = self.config.responses
        total = self.config.personas.n * c.n
        self._fill(
            self.responses_stage,
            Response,
            total,
            lambda key, done: responses.answer_prompts(self._prompts(False), self.engine, c, key, done),
        )

    def _answered(self) -> Iterator[tuple[Prompt, list[Response]]]:
        """Each training prompt with its answers: both files are in the same order."""
        answers = _grouped(self.responses_stage.records(Response))
        return ((prompt, answers.take(prompt.id)) for prompt in self._prompts(False))

    def judge(self) -> None:
        """Verdicts on every two answers to a prompt."""
        c, n = self.config.judging, self.config.responses.n
        orders = 2 if c.orders == "both" else 1
        needs_engine = c.method in ("logprob", "text")

        def make(key: str, done: set[str]) -> Iterator[Judgment]:
            groups = ((prompt.id, prompt.text, answers) for prompt, answers in self._answered())
            duels = judging.duels(groups, orders, key, n)
            return judging.judge(duels, self.engine if needs_engine else None, c, done, self.oracle)

        total = self.config.personas.n * n * (n - 1) // 2 * orders
        self._fill(self.judgments_stage, Judgment, total, make)

    def _judged(self) -> Iterator[tuple[Prompt, list[Response], list[Judgment]]]:
        verdicts = _grouped(self.judgments_stage.records(Judgment))
        return ((prompt, answers, verdicts.take(prompt.id)) for prompt, answers in self._answered())

    def pairs(self) -> None:
        """The verdicts that are learnt from."""
        n = self.config.responses.n
        self._fill(
            self.pairs_stage,
            PreferencePair,
            self.config.personas.n * n * (n - 1) // 2,
            lambda key, done: (
                pair
                for pair in pairs.build_pairs(((a, j) for _, a, j in self._judged()), self.config.pairs, key, n)
                if (pair.record_id if isinstance(pair, Drop) else pair.id) not in done
            ),
            limit_drops=False,
        )

    def labelled(self) -> Iterator[tuple[Prompt, PreferencePair, Response, Response]]:
        """The finished data set: prompt, pair, chosen, rejected."""
        kept = _grouped(self.pairs_stage.records(PreferencePair))
        for prompt, answers in self._answered():
            by_id = {r.id: r for r in answers}
            for pair in kept.take(prompt.id):
                yield prompt, pair, by_id[pair.chosen_id], by_id[pair.rejected_id]

    @property
    def model_dir(self) -> Path:
        """Where the trained model lies."""
        return self.train_stage.path / "model"

    def train(self) -> None:
        """Preference optimisation on the pairs."""
        stage = self.train_stage.open()
        if stage.finished and self.model_dir.is_dir():
            return
        if self.pairs_stage.counts["records"] == 0:
            reasons = self.pairs_stage.counts["reasons"]
            raise TrainingError(
                f"no pairs to train on: all were dropped ({reasons}). Lower --pairs.min_margin or raise --personas.n"
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
            return lambda key, done: responses.answer_prompts(self._prompts(True), engine, self._one_answer, key, done)

        if not self.base_answers_stage.open().finished:
            self._fill(self.base_answers_stage, Response, total, answers(self.engine))
        if not self.tuned_answers_stage.open().finished:
            self.close()
            tuned = self.given_engine or open_engine(self.config, str(self.model_dir))
            try:
                self._fill(self.tuned_answers_stage, Response, total, answers(tuned))
            finally:
                tuned.close()
        if not self.comparisons_stage.open().finished:
            self._fill(self.comparisons_stage, Comparison, 2 * total, self._compare)

    def held_out(self) -> Iterator[tuple[Prompt, Response, Response]]:
        """Held-out prompts that both models answered: prompt, base's answer, tuned model's answer."""
        base = _grouped(self.base_answers_stage.records(Response))
        tuned = _grouped(self.tuned_answers_stage.records(Response))
        for prompt in self._prompts(True):
            x, y = base.take(prompt.id), tuned.take(prompt.id)
            if x and y:
                yield prompt, x[0], y[0]

    def _compare(self, key: str, done: set[str]) -> Iterator[Comparison]:
        bases = {base.id for _, base, _ in self.held_out()}

        def duels() -> Iterator[judging.Duel]:
            for prompt, base, tuned in self.held_out():
                group = [(prompt.id, prompt.text, [base, _second(tuned)])]
                yield from judging.duels(group, 2, key, 2)

        for verdict in judging.judge(duels(), self.engine, self._eval_judging, done, self.oracle):
            yield compare.comparison_of(verdict, verdict.first_id if verdict.first_id in bases else verdict.second_id)

    # What came of it.

    def funnel(self) -> list[dict[str, Any]]:
        """What entered and left each finished stage and why the rest was dropped; it adds up."""
        stages = [self.prompts_stage, self.responses_stage, self.judgments_stage, self.pairs_stage, self.train_stage]
        return [{"stage": s.name, **s.counts} for s in stages if s.finished]

    def summary(self, until: str) -> dict[str, Any]:
        """What `--json` prints."""
        found: dict[str, Any] = {
            "model": self.config.model,
            "seed": self.config.seed,
            "judging": self.config.judging.method,
            "worked": self.worked,
            "funnel": self.funnel(),
        }
        reached = STAGES.index(until)
        if reached >= STAGES.index("judge"):
            found["judge"] = compare.judge_summary(((p.text, a, j) for p, a, j in self._judged()), self.oracle)
        if reached >= STAGES.index("pairs"):
            possible = self.config.personas.n * self.config.responses.n * (self.config.responses.n - 1) // 2
            found["kept"] = compare.kept_summary(((p.text, k, c, r) for p, k, c, r in self.labelled()), possible, self.oracle)
        if reached >= STAGES.index("eval") and self.config.personas.held_out:
            found |= self._outcome()
        found["paths"] = {"run": str(self.root), "log": str(self.train_stage.path / "metrics.jsonl")}
        if self.pairs_stage.finished:
            found["paths"]["pairs"] = str(self.pairs_stage.path / "records.jsonl")
        if self.model_dir.is_dir():
            found["paths"]["model"] = str(self.model_dir)
        return found

    def _outcome(self) -> dict[str, Any]:
        rows = [(prompt.text, base.text, tuned.text) for prompt, base, tuned in self.held_out()]
        resamples, seed = self.config.eval.bootstrap, self.config.seed
        same = sum(base == tuned for _, base, tuned in rows)
        wins = compare.win_summary(self.comparisons_stage.records(Comparison), same, resamples, seed)
        words = list(compare.lengths(rows))
        wins |= {
            "label": "CIRCULAR: judged by the untrained model itself",
            "words_base": sum(a for a, _ in words) / max(1, len(words)),
            "words_tuned": sum(b for _, b in words) / max(1, len(words)),
        }
        examples = [{"prompt": p, "before": a, "after": b} for p, a, b in rows if a != b][:3]
        found: dict[str, Any] = {"heldout": wins, "examples": examples}
        if self.oracle:
            found["oracle"] = compare.oracle_summary(rows, self.oracle, resamples, seed)
        return found


def _second(response: Response) -> Response:
    """The same answer as number 1 of its prompt, so that base and tuned answer are told apart by place."""
    from dataclasses import replace

    return replace(response, index=1)


class _Grouped:
    """Records in order, handed out prompt by prompt: a merge join that holds one group in memory."""

    def __init__(self, records: Iterator[Any]) -> None:
        self._groups = groupby(records, key=lambda r: r.prompt_id)
        self._next: tuple[str, list[Any]] | None = None

    def take(self, prompt_id: str) -> list[Any]:
        """The records of this prompt; prompts must be asked for in the files' order."""
        if self._next is None:
            key, group = next(self._groups, ("", iter(())))
            self._next = (key, list(group))
        if self._next[0] != prompt_id:
            return []
        found, self._next = self._next[1], None
        return found


def _grouped(records: Iterator[Any]) -> _Grouped:
    return _Grouped(records)


__all__ = ["STAGES", "Run", "dumps", "evaluation", "run"]
