"""What judges are shown and say: the verdicts on answers, the comparisons of models on held-out prompts, and
in later rounds what the judge of the round before says of the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from sao.config import Config
from sao.config.judging import READERS
from sao.evaluation import compare
from sao.execution.step import Work
from sao.pipeline.reader import Reader, Since
from sao.pipeline.roles import NOW, Judge, judges_itself
from sao.pipeline.rounds import Round
from sao.pipeline.settings import judgment_settings, own_pairs
from sao.records import Comparison, Drop, Judgment
from sao.stages import judging, rows

# Answers to training prompts.


def training_pairs(work: Work[Round]) -> Iterator[judging.OrderedPair]:
    """The pairs of answers that a judge is shown."""
    judge: Judge = work.variant
    groups = ((p.id, p.conversation, answers) for p, answers in Reader(work.run).answered())
    n, orders = work.config.responses.n, judging.orders_of(judge.config)
    # Judges that are compared with this round's first one are shown a pair in the same order as it.
    first = work.run.stages("judgments")[0]
    is_compared = judge.name.endswith(NOW) or work.stage.name == "rejudged"
    order_key = first.key if is_compared else work.key
    return judging.ordered_pairs(groups, orders, work.key, n, judge.config.comparisons_per_answer, order_key)


def make_judgments(work: Work[Round]) -> Iterator[Judgment | Drop]:
    """A judge's verdicts."""
    judge: Judge = work.variant
    how, pairs = judge.config, training_pairs(work)
    if how.method == "reward":
        with work.runner.session.reward_model(judge.role) as scorer:
            yield from judging.judge(pairs, None, how, work.done, scorer=scorer, name=judge.name)
        return
    engine = work.engine(judge.role) if how.method in READERS else None
    reader = Reader(work.run)
    gold = reader.checks if how.method == "checks" else reader.oracle
    yield from judging.judge(pairs, engine, how, work.done, gold, name=judge.name)


def judgment_total(work: Work[Round]) -> int:
    """The verdicts on the answers that exist: none on those that were lost, nor on identical ones."""
    how = work.variant.config
    groups = (answers for _, answers in Reader(work.run).answered())
    shown = sum(judging.shown_pairs(answers, how.comparisons_per_answer) for answers in groups)
    return shown * judging.orders_of(how)


# Held-out prompts: base and trained model, or the model before and the trained one.


def compares(config: Config) -> bool:
    """Whether there are held-out prompts to compare on."""
    return config.personas.held_out > 0


def judges_held_out(config: Config) -> bool:
    """Whether the judge says which of the two models answers them better."""
    return compares(config) and config.evaluation.judged


def compares_rounds(config: Config) -> bool:
    """Whether a judge says if a later round's model is better than the one before."""
    return own_pairs(config) and judges_held_out(config)


def held_out_pairs(work: Work[Round], since: Since = "base") -> Iterator[judging.OrderedPair]:
    """The answers of the base (or of the model before, by `since`) and of the trained model, in both
    orders."""
    for prompt, base, tuned in Reader(work.run).held_out(since):
        answers = [
            replace(base, row=rows.answer_row(prompt, 2, 0)),
            replace(tuned, row=rows.answer_row(prompt, 2, 1), index=1),
        ]
        yield from judging.ordered_pairs([(prompt.id, prompt.conversation, answers)], 2, work.key, 2)


def make_comparisons(work: Work[Round], since: Since = "base") -> Iterator[Comparison | Drop]:
    """The judge on these pairs."""
    bases = {base.id for _, base, _ in Reader(work.run).held_out(since)}
    judge = work.run.roles.reader
    engine, pairs = work.engine(judge.role), held_out_pairs(work, since)
    for verdict in judging.judge(pairs, engine, judge.config, work.done, name=judge.name):
        if isinstance(verdict, Drop):
            yield verdict
            continue
        base_id = verdict.first_id if verdict.first_id in bases else verdict.second_id
        yield compare.comparison_of(verdict, base_id)


def comparison_total(work: Work[Round], since: Since = "base") -> int:
    """The verdicts that these are."""
    return sum(1 for _ in held_out_pairs(work, since))


def comparison_settings(run: Round, since: Since = "base") -> dict[str, Any]:
    """The judge; and what made the answers of the model before, where those are compared."""
    settings = judgment_settings(run, run.roles.reader)
    if since == "before" and run.before is not None:
        settings["before"] = run.before.stage("heldout_tuned").key
    return settings


# Two judges on the same answers.


def judges_anew(config: Config) -> bool:
    """Whether later rounds have another judge than those before, which is asked about their pairs too."""
    return own_pairs(config) and judges_itself(config.judging) and config.rounds.judge == "current"


def judge_before(run: Round) -> Judge:
    """The first judge of the round before."""
    return run.roles.judges[0] if run.before is None else run.before.roles.judges[0]


REJUDGED = 200
"""Pairs of a round that the judge of the round before is asked about too."""


def make_rejudged(work: Work[Round]) -> Iterator[Judgment | Drop]:
    """The verdicts of the judge before on some of this round's pairs."""
    judge = judge_before(work.run)
    engine, pairs = work.engine(judge.role), _some_pairs(work)
    yield from judging.judge(pairs, engine, judge.config, work.done, name=judge.name)


def rejudged_total(work: Work[Round]) -> int:
    """The verdicts that these are."""
    return sum(1 for _ in _some_pairs(work))


def _some_pairs(work: Work[Round]) -> Iterator[judging.OrderedPair]:
    judge = judge_before(work.run)
    most = REJUDGED * judging.orders_of(judge.config)
    return islice(training_pairs(replace(work, variant=judge)), most)
