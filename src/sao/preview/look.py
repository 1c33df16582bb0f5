"""The folder of a preview: the method's own steps on a few personas, with variations of the recipe side by
side, and two steps of its own: answers to prompts with constraints, and verdicts on chosen pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sao.config import Config, ResponsesConfig
from sao.engines import Engine
from sao.errors import DropError
from sao.execution.runner import Progress, Runner
from sao.execution.session import Notify
from sao.execution.step import Step, Work
from sao.method import wanted
from sao.pipeline.reader import Reader
from sao.pipeline.roles import Judge
from sao.pipeline.rounds import Round
from sao.pipeline.settings import judgment_settings
from sao.pipeline.steps import STEPS
from sao.preview.meter import CountedSession, Notebook
from sao.preview.ways import Settings, varied
from sao.records import Drop, Judgment, Prompt, Response, make_id
from sao.stages import judging, rows
from sao.stages.responses import answer_prompts
from sao.store.stage import Stage

SIDE_BY_SIDE = 4
"""Pairs after which ways to judge take turns where the engine keeps what it read last: it then reads only
once how the prompts of two ways begin, where they begin alike."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Prompts that are answered `each` times, with `tokens` at most; `system` is the system message where the
    recipe has none."""

    prompts: Sequence[Prompt]
    each: int
    tokens: int
    system: str | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to a prompt; `better` is the id of the better one, None where no program knows it. Pairs of
    one `source` answer the same prompt with other constraints. `again`: one of the answers stands in an
    earlier pair, too."""

    prompt: Prompt
    answers: tuple[Response, Response]
    better: str | None = None
    source: str | None = None
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Pairs that a judge sees in both orders, and a round whose recipe judges in this way, by its name. The
    rows of the verdicts begin at twice `start`."""

    round: Round
    pairs: Sequence[Pair]
    way: str = ""
    start: int = 0

    @property
    def step(self) -> str:
        """What the notebook calls it."""
        return f"verdicts, {self.way}"

    @property
    def judge(self) -> Judge:
        """The first judge of the recipe."""
        return self.round.roles.judges[0]

    def ordered(self, key: str) -> Iterator[judging.OrderedPair]:
        """Each pair in both orders."""
        for number, pair in enumerate(self.pairs, self.start):
            both = [replace(a, row=2 * number + k, index=k) for k, a in enumerate(pair.answers)]
            yield from judging.ordered_pairs([(pair.prompt.id, pair.prompt.conversation, both)], 2, key, 2)

    def parts(self, size: int) -> Iterator[Shown]:
        """The same, `size` pairs at a time."""
        for start in range(0, len(self.pairs), size):
            yield replace(self, pairs=self.pairs[start : start + size], start=self.start + start)


class Look:
    """A preview at work. `given` takes the place of the configured engine (tests, planted judges)."""

    def __init__(
        self,
        config: Config,
        root: Path,
        given: Engine | None,
        progress: Progress,
        notify: Notify,
        minutes: float,
    ) -> None:
        self.config, self.root, self.given = config, root, given
        roles = dict.fromkeys(("policy", "judge"), given) if given is not None else None
        self.session = CountedSession(notify, roles)
        self.runner = Runner(root, self.session, 1.0, progress, notify)
        self.session.notify = self.runner.notify
        written, answered = config.prompts.max_tokens, config.responses.max_tokens
        limits = {"minutes": minutes, "prompts.max_tokens": written, "responses.max_tokens": answered}
        self.notebook = Notebook(root, self.session, limits)

    @property
    def engine(self) -> Engine:
        """The engine with the recipe's model."""
        return self.session.engine(self.round({}).roles.policy)

    def round(self, settings: Settings) -> Round:
        """The round of the recipe with these keys set."""
        return Round(varied(self.config, settings), self.root, STEPS, given=self.given)

    def run(self, settings: Settings, until: str) -> Reader:
        """The method's own steps up to `until` (see `sao.method.wanted`), by the recipe with these keys."""
        round_ = self.round(settings)
        try:
            for name in wanted(round_, until):
                self.runner.run(round_.table[name], round_)
        except DropError:
            pass  # the filters left no prompt: that is seen in the counts
        return Reader(round_)

    @property
    def table(self) -> dict[str, Step[Look]]:
        """The steps of the preview's own."""
        return TABLE

    def stage(self, step: str, variant: Any = None) -> Stage:
        """Where the records of one of the preview's own steps lie."""
        return Stage(self.root / "preview", step, dict(TABLE[step].settings(self, variant)))

    def answers(self, asked: Asked) -> list[Response]:
        """The finished answers to these prompts."""
        stage = self.runner.run_variant(TABLE["checked_answers"], self, asked, "checked answers")
        return list(stage.records(Response))

    def verdicts(self, ways: Sequence[Shown]) -> list[list[Judgment]]:
        """The verdicts in each of these ways, on the pairs of the first."""
        pairs = ways[0].pairs
        each = len(pairs)
        ways = [replace(way, pairs=pairs, start=number * each) for number, way in enumerate(ways)]
        title = f"verdicts, {' and '.join(way.way for way in ways)}"
        found: list[list[Judgment]] = [[] for _ in ways]
        for verdict in self.runner.run_variant(TABLE["verdicts"], self, ways, title).records(Judgment):
            found[verdict.row // (2 * each)].append(verdict)
        return found

    def verdicts_now(self, shown: Shown) -> Iterator[Judgment | Drop]:
        """Verdicts on these pairs that are kept nowhere, to see how fast they come."""
        engine = self.session.engine(shown.judge.role)
        return judging.judge(shown.ordered("speed"), engine, shown.judge.config, set())


def _sampling(run: Look, asked: Asked) -> ResponsesConfig:
    own = run.config.responses
    system = own.system or asked.system
    return own.model_copy(update={"n": asked.each, "max_tokens": asked.tokens, "system": system})


def _answer_settings(run: Look, asked: Asked) -> dict[str, Any]:
    round_ = run.round({})
    identity = round_.identity(round_.roles.policy)
    texts = make_id(*(f"{prompt.id} {prompt.text}" for prompt in asked.prompts))
    return {**_sampling(run, asked).counted(), "model": identity, "prompts": texts}


def _make_answers(work: Work[Look]) -> Iterator[Response | Drop]:
    asked: Asked = work.variant
    sampling = _sampling(work.run, asked)
    extra = work.run.config.chat.reasoning_tokens
    return answer_prompts(asked.prompts, work.run.engine, sampling, work.key, work.done, False, extra)


def _verdict_settings(run: Look, ways: Sequence[Shown]) -> dict[str, Any]:
    pairs = make_id(*(f"{a.id} {a.text}" for pair in ways[0].pairs for a in pair.answers))
    judged = [judgment_settings(way.round, way.judge) for way in ways]
    return {"ways": judged, "orders": "both", "pairs": pairs}


def _make_verdicts(work: Work[Look]) -> Iterator[Judgment | Drop]:
    """Several ways take turns after SIDE_BY_SIDE pairs where that saves reading."""
    ways: Sequence[Shown] = work.variant
    size = SIDE_BY_SIDE if _read_alike(work, ways) else len(ways[0].pairs)
    for parts in zip(*(way.parts(size) for way in ways), strict=True):
        for part in parts:
            judge, pairs = part.judge, part.ordered(f"{work.key} {part.step}")
            with work.run.notebook.timed(part.step):
                yield from judging.judge(
                    pairs, work.engine(judge.role), judge.config, work.done, name=judge.name
                )


def _read_alike(work: Work[Look], ways: Sequence[Shown]) -> bool:
    """Whether an engine that keeps what it read last reads the same pairs in these ways; small batches cost
    the others time."""
    judges = [way.judge for way in ways]
    by_words = all(judge.config.method == "logprob" for judge in judges)
    return len(ways) > 1 and by_words and getattr(work.engine(judges[0].role), "keeps_prefixes", False)


TABLE: dict[str, Step[Look]] = {
    step.name: step
    for step in (
        Step(
            name="checked_answers", record=Response, settings=_answer_settings, make=_make_answers,
            rows=lambda work: (
                rows.answer_row(prompt, work.variant.each, number)
                for prompt in work.variant.prompts
                for number in range(work.variant.each)
            ),
            total=lambda work: len(work.variant.prompts) * work.variant.each, limited=False,
        ),
        Step(
            name="verdicts", record=Judgment, settings=_verdict_settings, make=_make_verdicts,
            rows=lambda work: (pair.row for way in work.variant for pair in way.ordered(work.key)),
            total=lambda work: 2 * sum(len(way.pairs) for way in work.variant), limited=False,
        ),
    )
}  # fmt: skip
"""The steps of the preview's own."""
