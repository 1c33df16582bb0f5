"""The method in order: personas → prompts → responses → judgments → pairs → training → evaluation.

`run(config, out)` does all of it in a run folder, or goes on where an earlier call stopped; `until` ends
after a stage.
What stands in the folder is never computed again: a changed setting makes its stage, and those after it, anew
beside the old ones, and everything before is reused.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from sao.analysis.summary import summarise, worth_of_judge
from sao.config import Config, EngineConfig, JudgingConfig
from sao.data import readers
from sao.engines import Engine, Usage, open_engine, require_prefill
from sao.engines.auto import settle
from sao.errors import ConfigError, DropError, Terminated, TrainingError
from sao.evaluation import compare
from sao.execution.drops import DropWatch, check_finished, check_readable
from sao.models import gguf
from sao.models.locate import is_local
from sao.pipeline.folder import Juror, RunFolder
from sao.records import Comparison, Drop, Judgment, Message, Persona, PreferencePair, Prompt, Record, Response
from sao.results.summary import Summary
from sao.stages import filters, judging, personas, prompts, responses
from sao.store import manifest
from sao.store.files import write_atomic
from sao.store.stage import Stage
from sao.templates import load_template
from sao.training.cards import model_card, push_model

STAGES = ("prompts", "respond", "judge", "pairs", "train", "eval")
OWN_DATA = ("respond", "judge", "pairs")
"""The stages that a given set of pairs (pairs.source) takes the place of."""
Progress = Callable[[str, int, int], None]
"""(stage, items done, items in all), called for every item."""
Notify = Callable[[str], None]
BOOKED_EVERY = 1000


def run(
    config: Config,
    out: str | Path,
    *,
    until: str = "eval",
    engine: Engine | None = None,
    progress: Progress = lambda stage, done, total: None,
    notify: Notify = lambda line: None,
) -> Summary:
    """Run the method in folder `out` up to the stage `until` (one of STAGES); the summary that `sao run
    --json` prints.

    `engine` takes the place of the configured one (tests, planted judges). Raises SAOError's children;
    whatever was finished before stays finished.
    """
    started = time.monotonic()
    if engine is None:
        config = settle(config)[0]
    names = list(STAGES[: STAGES.index(until) + 1])
    if config.pairs.source is not None:
        # Nobody is asked for training; the evaluation has its own personas.
        config = config.model_copy(update={"personas": config.personas.model_copy(update={"n": 0})})
        names = [name for name in names if name not in OWN_DATA and (name != "prompts" or until == "eval")]
    job = Run(config, Path(out), engine, progress=progress, notify=notify)
    try:
        job.open("train" in names)
        if is_worker():
            job.train_together(until)
        else:
            for name in names:
                getattr(job, name)()
        summary = summarise(job, STAGES.index(until) + 1, job.worked)
    finally:
        job.close()
    summary = summary.model_copy(update={"seconds": round(time.monotonic() - started, 1)})
    if until == STAGES[-1] and (job.worked or not (job.root / "summary.json").is_file()):
        write_atomic(job.root / "summary.json", summary.model_dump_json(indent=1) + "\n")
    return summary


@dataclass
class Run(RunFolder):
    """The work of each stage, in the folder's places."""

    progress: Progress = lambda stage, done, total: None
    notify: Notify = lambda line: None
    worked: bool = field(default=False, init=False)
    _opened: tuple[EngineConfig, str, str | None] | None = field(default=None, init=False)
    _engine: Engine | None = field(default=None, init=False)
    _booked: Usage = field(default_factory=Usage, init=False)

    def open(self, trains: bool = True) -> None:
        """Check model, templates and folder before any work starts; `trains`: whether the weights will be
        needed here."""
        self.check(trains)
        if int(os.environ.get("RANK", "0")) > 0:
            return  # the first process writes
        c = self.config
        source = readers.content_identity(c.personas.source if c.prompts.source is None else c.prompts.source)
        licences = {"model": self.model_licence}
        if c.prompts.source is None and c.pairs.imported is None:
            licences["personas"] = personas.licence_of(c.personas, self.model_licence)
        elif c.prompts.source is not None:
            licences["prompts"] = (
                c.prompts.licence or "unknown: set prompts.licence to the data set's licence"
            )
        if c.pairs.source is not None or c.pairs.imported is not None:
            licences["pairs"] = c.pairs.licence or "unknown: set pairs.licence to the data set's licence"
        for what, licence in licences.items():
            if personas.non_commercial(licence):
                self.notify(
                    f"NON-COMMERCIAL: the licence of the {what} is {licence}; it binds the data and the "
                    "model made here"
                )
        if gguf.is_gguf(c.model) and is_local(c.model) and self.given_engine is None:
            self.notify(gguf.notice(Path(c.model).expanduser()))
        self.funnel()  # looks at every stage, and so at all that the run depends on
        for line in manifest.open_manifest(self.root, c, self.model_identity, source, licences, self.outside):
            self.notify(f"changed since the last run here: {line}")

    def check(self, trains: bool = True) -> None:
        """Raise ConfigError for what would only show itself hours later."""
        for name, fields in self.templates.items():
            load_template(name, fields)
        if trains and not self.model_dir.is_dir():
            manifest.check_packages(self.config)
        if self.kept_prompts_stage is not self.prompts_stage and not self.kept_responses_stage.finished:
            filters.check_filters(self.config.filters)
        stages = [stage.fingerprint for stage in self.judgments_stages]
        if len(set(stages)) < len(stages):
            raise ConfigError("judging.panel: two judges are the same; give each another template or engine")
        if self.config.judging.method == "oracle" and self.oracle is None:
            raise ConfigError(
                "judging.method oracle exists in the proving ground only (personas.source builtin:world)"
            )
        if self.given_engine is None:
            self._engine_check(trains)
        if self.config.pairs.source is not None and not self.model_dir.is_dir():
            deque(itertools.islice(self.to_train_on(), 200), maxlen=0)  # raises where the set is none

    def _engine_check(self, trains: bool) -> None:
        """Raise ModelError or EngineError for a model or a server that cannot do what the recipe asks of
        it."""
        from sao.models.load import check_model

        config, asked = self.config, self.config.prompts
        written = asked.source is None and config.pairs.imported is None
        as_user = written and asked.method == "user_turn"
        opening = (Message("system", "a"),) if self._has_personas else ()
        begun = as_user or (written and asked.prefill)
        asks = [(config.engine, config.model, config.revision, self.prompts_stage, begun)]
        judges = [
            (juror.config, stage) for juror, stage in zip(self.jury, self.judgments_stages, strict=True)
        ]
        if trains and config.personas.held_out:
            judges.append((self.eval_judging, self.comparisons_stage))
        for c, stage in judges:
            if c.method in ("logprob", "text"):
                asks.append((c.engine or config.engine, *self.judge_model(c), stage, bool(c.prefill)))
            elif c.method == "reward" and not stage.finished:
                self._check_reward_model(c)
        checked: list[Any] = []
        for engine, model, revision, stage, prefill in asks:
            if stage.finished or engine.name == "scripted" or (engine, model, revision, prefill) in checked:
                continue
            checked.append((engine, model, revision, prefill))
            opens = as_user and stage is self.prompts_stage
            if engine.name == "openai" and prefill:
                require_prefill(self._use(engine, model, revision), engine.openai.base_url)
            if engine.name != "openai" or opens:
                check_model(model, engine, revision, opening if opens else None)
        if trains and config.engine.name == "openai" and not self.model_dir.is_dir():
            check_model(config.model, config.engine, config.revision)

    def _check_reward_model(self, judging: JudgingConfig) -> None:
        from sao.engines.reward import check_reward_model

        model, revision = self.judge_model(judging)
        check_reward_model(model, judging.engine or self.config.engine, revision)

    @property
    def engine(self) -> Engine:
        """The engine with the untrained model."""
        return self._use(self.config.engine, self.config.model, self.config.revision)

    def judge_engine(self, judging: JudgingConfig) -> Engine:
        """The engine that judges."""
        return self._use(judging.engine or self.config.engine, *self.judge_model(judging))

    def _use(self, config: EngineConfig, model: str, revision: str | None = None) -> Engine:
        """The engine asked for, opened when first needed; one is open at a time, so that each has all the
        memory."""
        if self.given_engine is not None and model != str(self.model_dir):
            return self.given_engine
        if self._engine is None or self._opened != (config, model, revision):
            self.close()
            self.notify(f"asking {config.openai.base_url}" if config.name == "openai" else f"loading {model}")
            self._engine, self._opened = (
                open_engine(config, model, revision, self.notify),
                (config, model, revision),
            )
        return self._engine

    def close(self) -> None:
        """Give back the engine's memory."""
        if self._engine is not None:
            self._engine.close()
            self._engine, self._booked = None, Usage()

    def _book(self, stage: str) -> None:
        """Note in usage.jsonl what the engine was asked since the last note."""
        usage = self._engine.usage if self._engine is not None else None
        if usage is None or self._opened is None or usage == self._booked:
            return
        spent = {
            name: now - before
            for (name, now), before in zip(asdict(usage).items(), asdict(self._booked).values())
        }
        price = self._opened[0].openai
        cost = (
            spent["prompt_tokens"] * price.price_prompt + spent["completion_tokens"] * price.price_completion
        ) / 1e6
        manifest.append_usage(self.root, {"stage": stage, "model": self._opened[1], **spent, "cost": cost})
        self._booked = replace(usage)

    # The work of each stage.

    def _fill(
        self, stage: Stage, kind: type[Record], total: int, make: Callable[[str, Container[str]],
        Iterable[Record | Drop]],
        limit_drops: bool = True, rows: Callable[[], Iterable[int]] = tuple,
    ) -> None:  # fmt: skip
        """Run a stage to its end: write what `make(key, done)` yields, watch the drops, seal. `rows` are
        those that it asks for,
        in order: the first of them decide whether it is hopeless."""
        limit = self.config.max_drop_share if limit_drops else 1.0
        stage.open()
        if stage.finished:
            check_finished(stage, limit)
            return
        self.worked = True
        done = len(stage.done)
        self.progress(stage.name, done, total)
        watch = DropWatch(stage, limit, rows())

        def see(record: Record | Drop) -> None:
            nonlocal done
            done += 1
            self.progress(stage.name, done, total)
            if watch.done % BOOKED_EVERY == 0:
                self._book(stage.name)
            watch.see(record)

        try:
            stage.fill(kind, make, see)
        finally:
            self._book(stage.name)
        self.progress(stage.name, total, total)  # identical answers are not judged, so fewer may have come
        check_finished(stage, limit)

    def prompts(self) -> None:
        """Personas and what they ask (the held-out ones too), and which of it is worth an answer."""
        c = self.config
        total = c.personas.n + c.personas.held_out
        if c.prompts.source is None:
            self._fill(self.personas_stage, Persona, total, self._personas, limit_drops=False)

        def make(key: str, done: Container[str]) -> Iterator[Prompt | Drop]:
            if c.prompts.source is None:
                who = self.personas_stage.records(Persona)
                return prompts.write_prompts(who, self.engine, c.prompts, key, done)
            return (p for p in prompts.given_prompts(c.prompts, c.personas, c.seed, key) if p.id not in done)

        def rows() -> Iterator[int]:
            return (
                (p.row for p in self.personas_stage.records(Persona))
                if c.prompts.source is None
                else iter(())
            )

        self._fill(self.prompts_stage, Prompt, total, make, rows=rows)
        if self.kept_prompts_stage is not self.prompts_stage:
            self._filter()

    def _personas(self, key: str, done: Container[str]) -> Iterator[Persona | Drop]:
        c = self.config.personas
        wanted = c.n + c.held_out
        found = personas.read_personas(c, self.config.seed) if c.source != "self" else self._written(wanted)
        return (p for p in found if (p.record_id if isinstance(p, Drop) else p.id) not in done)

    def _written(self, wanted: int) -> Iterator[Persona | Drop]:
        """Personas of the model's own, written in rounds until `wanted` distinct ones stand.

        Raises DropError where the last round brought hardly any new ones.
        """
        c = self.config.personas.writing
        settled = personas.Settled(c.max_similarity)
        stage, number = None, 0
        while len(settled.kept) < wanted:
            size = personas.round_size(len(settled.kept))
            stage = self.drafts_stage(stage, number, size)

            def make(key: str, done: Container[str], size: int = size) -> Iterator[Persona | Drop]:
                return personas.write_drafts(size, settled.kept, self.engine, c, key, done)

            self._fill(stage, Persona, size, make, rows=partial(range, size))
            new = settled.add(stage.records(Persona), stage.drops())
            number, stood = number + 1, len(settled.kept)
            self.notify(
                f"round {number}: {new} of {size} personas are new; {min(stood, wanted)} of {wanted} stand"
            )
            if new < c.min_new * size and stood < wanted:
                raise DropError(
                    f"personas: the model has run dry: of the last {size} it wrote {new} were new, less than "
                    f"personas.writing.min_new = {c.min_new:g}. {stood} distinct ones stand and are kept. "
                    "Take no more "
                    f"(--personas.n {max(0, stood - self.config.personas.held_out)}), or give it more to "
                    "start from: "
                    "personas.writing.traits, traits_each or temperature (these begin anew)"
                )
        return settled.records(wanted)

    def _filter(self) -> None:
        c = self.config

        def read() -> Iterator[tuple[Prompt, str]]:
            written = self.prompts_stage.records(Prompt)
            if c.prompts.source is not None:
                return ((prompt, "") for prompt in written)
            return joined_by_row(written, self.personas_stage.records(Persona))

        marker = c.prompts.marker if c.prompts.source is None else ""  # others' prompts have none

        def make(key: str, done: Container[str]) -> Iterator[Prompt | Drop]:
            return filters.filter_prompts(read, c.filters, marker, done)

        counts = self.prompts_stage.counts
        self._fill(self.filtered_stage, Prompt, counts["records"], make, limit_drops=False)
        if counts["records"] and not self.filtered_stage.counts["records"]:
            reasons = self.filtered_stage.counts["reasons"]
            raise DropError(
                f"filtered: no prompt is left ({reasons}). Look at {self.filtered_stage.path}; change "
                "section filters"
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
            rows=lambda: (prompt.row * c.n + index for prompt in self.asked(False) for index in range(c.n)),
        )
        if self.kept_responses_stage is not self.responses_stage:
            answers = self.responses_stage.records(Response)
            self._fill(
                self.kept_responses_stage,
                Response,
                self.responses_stage.counts["records"],
                lambda key, done: filters.filter_responses(answers, self.config.filters, done),
            )

    def judge(self) -> None:
        """Each judge's verdicts on the answers to each prompt."""
        n = self.config.responses.n
        for juror, stage in zip(self.jury, self.judgments_stages, strict=True):
            c, orders = juror.config, 2 if juror.config.orders == "both" else 1

            def ordered_pairs(
                key: str, c: JudgingConfig = c, orders: int = orders
            ) -> Iterator[judging.OrderedPair]:
                groups = ((prompt.id, prompt.conversation, answers) for prompt, answers in self.answered())
                return judging.ordered_pairs(groups, orders, key, n, c.opponents)

            def make(
                key: str,
                done: Container[str],
                juror: Juror = juror,
                c: JudgingConfig = c,
                read: Any = ordered_pairs,
            ) -> Iterator[Judgment | Drop]:
                ordered_pairs = read(key)
                if c.method != "reward":
                    engine = self.judge_engine(c) if c.method in ("logprob", "text") else None
                    return judging.judge(ordered_pairs, engine, c, done, self.oracle, name=juror.name)
                return self._by_reward(ordered_pairs, c, done, juror.name)

            total = self.config.personas.n * len(judging.opponents_of(n, c.opponents)) * orders
            first = (pair.row for pair in ordered_pairs(stage.key))
            self._fill(stage, Judgment, total, make, rows=lambda rows=first: rows)  # type: ignore[misc]
            check_readable(stage, self.config.max_drop_share)

    def _by_reward(
        self,
        ordered_pairs: Iterator[judging.OrderedPair],
        config: JudgingConfig,
        done: Container[str],
        name: str,
    ) -> Iterator[Judgment | Drop]:
        """Verdicts of a reward model, which is alone in memory and gone afterwards."""
        from sao.engines.reward import RewardModel

        self.close()
        model, revision = self.judge_model(config)
        self.notify(f"loading {model}")
        scorer = RewardModel(model, config.engine or self.config.engine, revision)
        try:
            yield from judging.judge(ordered_pairs, None, config, done, scorer=scorer, name=name)
        finally:
            scorer.close()

    def pairs(self) -> None:
        """The verdicts that are learnt from."""
        n = self.config.responses.n
        total = self.config.personas.n * n * (n - 1) // 2
        self._fill(self.pairs_stage, PreferencePair, total, self.chosen, limit_drops=False)

    def train(self) -> None:
        """Preference optimisation on the pairs."""
        stage = self.train_stage.open()
        if stage.finished and self.model_dir.is_dir():
            return
        if self.config.pairs.source is None and self.pairs_stage.counts["records"] == 0:
            reasons = self.pairs_stage.counts["reasons"]
            raise TrainingError(
                f"no pairs to train on: all were dropped ({reasons}). What the judge is worth: "
                f"{worth_of_judge(self)}. Take "
                "another judge (--judging.engine.model) or --judging.prefill, lower --pairs.min_p, keep "
                "every readable verdict "
                "(--pairs.keep all), or start again with more personas in another --out"
            )
        if self.config.engine.name == "scripted" and self.given_engine is None:
            raise ConfigError("the scripted engine has no model to train; stop before with `sao pairs`")
        self.close()
        self.worked = True
        if self.config.train.processes > 1 and not is_worker():
            status = launch(self.config, self.root, stage.path)
            # A process may be aborted while it ends, after all is done (torch's threads): what counts is what
            # lies there.
            if not (stage.open().finished and self.model_dir.is_dir()):
                raise TrainingError(
                    f"training in {self.config.train.processes} processes ended with status {status}; the "
                    "reason stands above. "
                    "Checkpoints are kept, and the same command goes on from them"
                )
        else:
            self._train(stage)

    def train_together(self, until: str) -> None:
        """What each of torchrun's processes does: the training, and nothing else."""
        if until != "train" or (self.config.pairs.source is None and not self.pairs_stage.open().finished):
            raise ConfigError(
                "under torchrun there is only training: first `sao pairs` with the same recipe and --out, "
                "then torchrun with "
                "`-m sao train`. On one machine plain `sao run` with --train.processes does it all"
            )
        stage = self.train_stage.open()
        if not (stage.finished and self.model_dir.is_dir()):
            self._train(stage)

    def _train(self, stage: Stage) -> None:
        from sao.training import job

        counts = job.train_run(self.config, self.to_train_on(), stage.path, self.progress, self.notify)
        if int(os.environ.get("RANK", "0")) > 0:
            return
        made = (self.root / "manifest.json").read_text("utf-8")
        write_atomic(
            self.model_dir / "README.md",
            model_card(json.loads(made), [*self.funnel(), {"stage": stage.name, **counts}]),
        )
        write_atomic(self.model_dir / "sao_manifest.json", made)
        stage.finish(counts)
        if self.config.train.push_to_hub is not None:
            self.notify(f"uploaded: {push_model(self.model_dir, self.config.train.push_to_hub)}")

    def eval(self) -> None:
        """Held-out prompts answered by base and tuned model, compared in both orders by the untrained
        model."""
        if self.config.personas.held_out == 0:
            return
        total = self.config.personas.held_out

        for stage, model, revision in (
            (self.base_answers_stage, self.config.model, self.config.revision),
            (self.tuned_answers_stage, str(self.model_dir), None),
        ):

            def answers(
                key: str, done: Container[str], model: str = model, revision: str | None = revision
            ) -> Iterator[Any]:
                engine = self._use(self.eval_engine, model, revision)
                # What is cut off or empty is an answer here: to leave it out would flatter the model.
                return responses.answer_prompts(
                    self.asked(True), engine, self.one_answer, key, done, keep_cut=True
                )

            self._fill(stage, Response, total, answers)
        if not self.comparisons_stage.open().finished:
            rows = (pair.row for pair in self._held_out_pairs(self.comparisons_stage.key))
            self._fill(self.comparisons_stage, Comparison, 2 * total, self._compare, rows=lambda: rows)

    def _held_out_pairs(self, key: str) -> Iterator[judging.OrderedPair]:
        for prompt, base, tuned in self.held_out():
            answers = [replace(base, row=2 * prompt.row), replace(tuned, row=2 * prompt.row + 1, index=1)]
            yield from judging.ordered_pairs([(prompt.id, prompt.conversation, answers)], 2, key, 2)

    def _compare(self, key: str, done: Container[str]) -> Iterator[Comparison | Drop]:
        bases = {base.id for _, base, _ in self.held_out()}
        c = self.eval_judging
        for verdict in judging.judge(
            self._held_out_pairs(key), self.judge_engine(c), c, done, name=self.judge_name(c)
        ):
            if isinstance(verdict, Drop):
                yield replace(verdict, stage="comparisons")
                continue
            yield compare.comparison_of(
                verdict, verdict.first_id if verdict.first_id in bases else verdict.second_id
            )


def joined_by_row(prompts: Iterable[Prompt], people: Iterable[Persona]) -> Iterator[tuple[Prompt, str]]:
    """Each prompt with the text of its persona; both are in the order of their rows."""
    them = iter(people)
    persona = next(them, None)
    for prompt in prompts:
        while persona is not None and persona.row < prompt.row:
            persona = next(them, None)
        yield prompt, persona.text if persona is not None and persona.row == prompt.row else ""


def is_worker() -> bool:
    """Whether this is one of several processes that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(config: Config, root: Path, folder: Path) -> int:
    """Train in `config.train.processes` processes on this machine, by torchrun; its status. SIGTERM and
    Ctrl-C reach them.

    Raises Terminated where SIGTERM came.
    """
    from sao.training.monitors import LAUNCHER

    recipe = folder / "recipe.yaml"
    write_atomic(recipe, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        "--nproc-per-node",
        str(config.train.processes),
        "-m",
        "sao",
        "train",
        str(recipe),
        "--out",
        str(root),
    ]
    # torchrun gives its processes half a minute to end, too little for a large model's checkpoint.
    given = {"OMP_NUM_THREADS": str(config.engine.threads or 1), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "900"}
    given[LAUNCHER] = str(os.getpid())  # they end when this process is gone
    environment = {**given, **os.environ}
    listening = threading.current_thread() is threading.main_thread()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as together:
        ended: list[int] = []

        def pass_on(number: int, frame: Any) -> None:
            ended.append(number)
            together.send_signal(signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, pass_on) if listening else None
        try:
            status = together.wait()
        finally:
            if listening:
                signal.signal(signal.SIGTERM, before)
    if ended:
        raise Terminated("training: ended by SIGTERM; what was saved is kept")
    return status
