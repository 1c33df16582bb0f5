"""Rounds under control: what each round came to on the held-out prompts, when to stop, and which round is the
best. No rule looks at the toy world's oracle.

Why rules: loops of self-judged training over-optimise after about two rounds. Chosen and rejected answers
converge (arXiv 2508.06026), answers grow (arXiv 2401.10020),
and a judge that is trained with the model drifts (arXiv 2410.12735).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import fmean

from sao import checks
from sao.analysis.audit.tally import Tally
from sao.config import Config
from sao.evaluation import compare
from sao.evaluation.compare import Oracle
from sao.pipeline.reader import Reader, Since
from sao.pipeline.roles import AT_FIRST, NOW
from sao.pipeline.rounds import Round
from sao.records import Judgment, PreferencePair, Prompt, Response
from sao.results.base import Rate
from sao.results.rounds import Against, Answers, Gold, RoundJudge, RoundResult
from sao.stages.calibration import Calibration
from sao.stages.pairs import IDENTICAL, NOT_NEWER, repetition
from sao.stages.rows import pairs_each
from sao.statistics import bootstrap_ci, mean

HeldOut = tuple[Prompt, Response, Response]
"""A held-out prompt, an earlier model's answer, this round's model's."""


Among = Callable[[Prompt], bool]
"""Whether a held-out prompt is looked at."""
NEEDED = ("pairs", "train", "heldout_base", "heldout_tuned")
"""The steps of a round that is measured."""


def measure(round_: Round, among: Among = lambda prompt: True) -> RoundResult:
    """What a finished round came to, on those held-out prompts that no round trained on and that are
    `among` those to look at."""
    run, seen = Reader(round_), Reader(round_.first).trained_texts()
    held_out, since = (
        [row for row in run.held_out(which) if row[0].conversation not in seen and among(row[0])]
        for which in ("base", "before")
    )
    pairs, counts = list(run.stage("pairs").records(PreferencePair)), run.stage("pairs").counts
    asked = run.count_asked(held_out=False)
    every = asked * pairs_each(run.config.responses.n)
    same, clear = counts.reasons.get(IDENTICAL, 0), len(pairs) + counts.reasons.get(NOT_NEWER, 0)
    chosen, rejected = (logp_at_the_end(round_, which) for which in ("chosen", "rejected"))
    judged = round_.has("comparisons")
    return RoundResult(
        round=round_.number,
        model=str(round_.model_dir.relative_to(round_.root)),
        prompts=asked,
        pairs=len(pairs),
        kept_share=clear / (every - same) if every > same else None,
        identical=same / every if every else None,
        margin=mean(margins) if (margins := list(run.margins())) else None,
        chosen_logp=chosen,
        rejected_logp=rejected,
        gap=None if chosen is None or rejected is None else chosen - rejected,
        base=answers_of([base for _, base, _ in held_out]),
        answers=answers_of([tuned for _, _, tuned in held_out]),
        initial=against(run, "base", held_out) if judged else None,
        previous=against(run, "before", since) if judged else None,
        checks=_on_checks(run, held_out, since),
        oracle=None if run.oracle is None else gold(run.config, held_out, since, run.oracle),
        judge=_judge(run),
    )


def logp_at_the_end(round_: Round, which: str) -> float | None:
    """The mean log-probability of the chosen or rejected answers over the last quarter of the training."""
    path, key = round_.stage("train").path / "metrics.jsonl", f"logps/{which}"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as lines:
        found = [row[key] for row in map(json.loads, lines) if row.get(key) is not None]
    return fmean(found[-max(1, len(found) // 4) :]) if found else None


def answers_of(answers: Sequence[Response]) -> Answers:
    """What a model's answers are as texts."""
    words = [answer.text.split() for answer in answers]
    pairs = [pair for text in words for pair in pairwise(text)]
    cut = [answer.finish_reason == "length" or not answer.text.strip() for answer in answers]
    return Answers(
        words=_mean(map(len, words)),
        distinct_2=len(set(pairs)) / len(pairs) if pairs else None,
        repetition=_mean(repetition(answer.text) for answer in answers),
        cut_off=_mean(map(float, cut)),
    )


def _mean(numbers: Iterable[float]) -> float:
    found = list(numbers)
    return fmean(found) if found else 0.0


def against(run: Reader, since: Since, held_out: Sequence[HeldOut]) -> Against:
    """The win rate of this round's model; equal answers are ties."""
    same = sum(before.text == after.text for _, before, after in held_out)
    looked_at = {prompt.id for prompt, _, _ in held_out}
    verdicts = [verdict for verdict in run.compared(since) if verdict.prompt_id in looked_at]
    wins = compare.win_summary(verdicts, same, run.config.evaluation.bootstrap, run.config.seed)
    return Against(n=wins.n, win_rate=wins.win_rate, ci95=wins.ci95)


def _on_checks(run: Reader, held_out: list[HeldOut], since: list[HeldOut]) -> Gold | None:
    """Constraints kept; None where no held-out prompt has any."""
    by_text = {prompt.conversation: prompt.checks for prompt, _, _ in held_out if prompt.checks}
    if not by_text:
        return None
    return gold(run.config, held_out, since, lambda p, a: checks.score(a, by_text.get(p, ())))


def gold(config: Config, held_out: list[HeldOut], since: list[HeldOut], score: Oracle) -> Gold:
    """Mean scores, and how far they are from the first model's and the last one's."""
    first, last = ([_scores(row, score) for row in rows] for rows in (held_out, since))
    pairs, steps = ([pair for pair in found if pair is not None] for found in (first, last))
    gains, moved = ([after - before for before, after in found] for found in (pairs, steps))
    resampling = (config.evaluation.bootstrap, config.seed)
    return Gold(
        n=len(gains),
        before=mean([before for before, _ in pairs]) if pairs else None,
        after=mean([after for _, after in pairs]) if pairs else None,
        gain=mean(gains) if gains else None,
        ci95=bootstrap_ci(gains, *resampling) if gains else None,
        step=mean(moved) if moved else None,
        step_ci95=bootstrap_ci(moved, *resampling) if moved else None,
    )


def _scores(row: HeldOut, score: Oracle) -> tuple[float, float] | None:
    prompt, before, after = row
    one, two = (score(prompt.conversation, answer.text) for answer in (before, after))
    return None if one is None or two is None else (one, two)


def _judge(run: Reader) -> RoundJudge | None:
    """The first judge on this round's pairs, and how far it agrees with the one before."""
    if not run.round.has("judgments"):
        return None
    tally, ours = Tally(Calibration(), explains=False), newest_judge(run)
    for _, answers, judgments in run.judged():
        tally.see(answers, [j for j in judgments if j.judge == ours], {})
    return RoundJudge(
        first_slot_rate=tally.rate("first_slot_rate").rate,
        flip_rate=tally.rate("flip_rate").rate,
        agreement=agreement(run),
    )


def newest_judge(run: Reader) -> str:
    """The name of the first judge; of two (rounds.judge both) that of the round's own model."""
    names = [judge.name for judge in run.judges]
    first = names[0]
    now = f"{first.removesuffix(AT_FIRST)}{NOW}"
    return now if first.endswith(AT_FIRST) and now in names else first


def agreement(run: Reader) -> Rate | None:
    """How often the judge names the same answer as that of the round before; with rounds.judge both, as the
    model that the run began with. Both orders of a pair are summed."""
    ours, theirs = newest_judge(run), run.judges[0].name
    said: Iterable[tuple[list[Judgment], list[Judgment]]]
    if run.round.has("rejudged"):
        said = run.rejudged()
    elif ours != theirs:
        said = ((judgments, judgments) for _, _, judgments in run.judged())
    else:
        return None
    same: list[float] = []
    for now, then in said:
        one = winners(j for j in now if j.judge == ours)
        two = winners(j for j in then if then is not now or j.judge == theirs)
        same += [float(one[pair] == two[pair]) for pair in one.keys() & two.keys()]
    low, high = bootstrap_ci(same, run.config.evaluation.bootstrap, run.config.seed) if same else (0.0, 1.0)
    return Rate(rate=mean(same) if same else None, ci95=(low, high), n=len(same))


def winners(judgments: Iterable[Judgment]) -> dict[frozenset[str], str]:
    """Which answer of each pair a judge prefers, its orders summed; pairs that it ties on are left out."""
    leans: dict[frozenset[str], dict[str, float]] = {}
    for said in judgments:
        points = said.p_first
        if points is None:
            points = {"first": 1.0, "tie": 0.5, "second": 0.0}.get(said.verdict or "")
        if points is not None:
            lean = leans.setdefault(frozenset((said.first_id, said.second_id)), {})
            lean[said.first_id] = lean.get(said.first_id, 0.0) + points - 0.5
            lean[said.second_id] = lean.get(said.second_id, 0.0) + 0.5 - points
    best = {pair: max(lean, key=lambda i: (lean[i], i)) for pair, lean in leans.items()}
    return {pair: winner for pair, winner in best.items() if leans[pair][winner] > 0}


# When to stop. Each rule takes the rounds so far and says in a sentence why the run ends, or nothing.

LONGER, MORE_REPETITION, MORE_CUT = 1.5, 0.1, 0.1
"""Times the length at the start; shares above those at the start."""
FEWER_PAIRS, NARROWER = 0.5, 0.5
"""Shares of the first round's clear pairs, and of its margin."""
AGREES, MORE_BIAS, MORE_FLIPS = 0.7, 0.2, 0.15
"""Least agreement with the judge before; how much further from a half the share of first-slot verdicts may be
than in the first round, and how much larger the share of flips."""


def length(rounds: Sequence[RoundResult]) -> str | None:
    """Answers grow (arXiv 2401.10020): a judge that likes long answers is being pleased."""
    now = rounds[-1]
    times = now.answers.words / now.base.words if now.base.words else 1.0
    return f"answers {times:.1f} × as long as at the start" if times > LONGER else None


def repeats(rounds: Sequence[RoundResult]) -> str | None:
    """Answers repeat themselves: the policy has collapsed."""
    now = rounds[-1]
    more = now.answers.repetition - now.base.repetition
    told = f"{now.answers.repetition:.0%} of an answer repeats itself, {now.base.repetition:.0%} at the start"
    return told if more > MORE_REPETITION else None


def cut_off(rounds: Sequence[RoundResult]) -> str | None:
    """Answers no longer end."""
    now = rounds[-1]
    told = f"{now.answers.cut_off:.0%} of the answers do not end, {now.base.cut_off:.0%} at the start"
    return told if now.answers.cut_off - now.base.cut_off > MORE_CUT else None


def win_rate(rounds: Sequence[RoundResult]) -> str | None:
    """The judge that the run began with prefers the model before."""
    last = rounds[-1].previous
    if last is None or last.ci95 is None or last.ci95[1] >= 0.5:
        return None
    return f"it wins {last.win_rate:.0%} against the model before, by the first judge"


def fewer_checks(rounds: Sequence[RoundResult]) -> str | None:
    """Fewer constraints are kept than by the model before."""
    found = rounds[-1].checks
    if found is None or found.step is None or found.step_ci95 is None or found.step_ci95[1] >= 0:
        return None
    return f"the share of kept constraints moved by {found.step:+.3f}"


def few_pairs(rounds: Sequence[RoundResult]) -> str | None:
    """The judge finds few clear preferences left."""
    first, now = rounds[0].kept_share, rounds[-1].kept_share
    if not first or now is None or now >= FEWER_PAIRS * first:
        return None
    return f"{now:.0%} of the pairs were kept, {first:.0%} in the first round"


def judge_drifts(rounds: Sequence[RoundResult]) -> str | None:
    """A judge that changes with the rounds names other answers than the one before (CREAM, arXiv 2410.12735),
    or looks at the slot more than in the first round."""
    now = rounds[-1].judge
    if now is None or now.agreement is None:
        return None
    if (agreed := now.agreement).rate is not None and agreed.ci95[1] < AGREES:
        return f"the judge agrees with the one before on {agreed.rate:.0%} of the pairs"
    return less_sure(rounds)


def converged(rounds: Sequence[RoundResult]) -> str | None:
    """The answers to a prompt have become alike (arXiv 2508.06026): the same judge tells them apart less than
    in the first round."""
    judge = rounds[-1].judge
    if judge is None or judge.agreement is not None:
        return None
    first, now = rounds[0].margin, rounds[-1].margin
    if first and now is not None and now < NARROWER * first:
        return f"the mean margin of two answers is {now:.2f} nats, {first:.2f} in the first round"
    return less_sure(rounds)


def less_sure(rounds: Sequence[RoundResult]) -> str | None:
    """More verdicts than in the first round hang on the order in which the answers are shown."""
    first, now = rounds[0].judge, rounds[-1].judge
    if first is None or now is None:
        return None
    if (now.flip_rate or 0.0) - (first.flip_rate or 0.0) > MORE_FLIPS:
        told = f"{first.flip_rate or 0.0:.0%} in the first round"
        return f"{now.flip_rate:.0%} of the verdicts flip with the order, {told}"
    slots = [0.5 if r is None else r for r in (first.first_slot_rate, now.first_slot_rate)]
    if abs(slots[1] - 0.5) - abs(slots[0] - 0.5) > MORE_BIAS:
        told = f"{slots[0]:.0%} in the first round"
        return f"{slots[1]:.0%} of the verdicts are for the answer shown first, {told}"
    return None


RULES: dict[str, Callable[[Sequence[RoundResult]], str | None]] = {
    "length": length, "repetition": repeats, "cut_off": cut_off, "win_rate": win_rate,
    "gold": fewer_checks, "pairs": few_pairs, "judge": judge_drifts, "converged": converged,
}  # fmt: skip
"""By the names that rounds.stop has."""


def judged_by_rules(rounds: Sequence[RoundResult], names: Iterable[str]) -> RoundResult:
    """The last of these rounds, with what stops the run after it."""
    found = [sentence for name in names if (sentence := RULES[name](rounds)) is not None]
    return rounds[-1].model_copy(update={"stopped_by": found})


def best_of(rounds: Sequence[RoundResult]) -> RoundResult:
    """The round whose model is given back: of those that no rule stopped, the one that keeps most constraints
    where there are some, else the one that wins most against the first model by the first judge; the earlier
    one of equals. Where all were stopped, the first."""
    sound = [round_ for round_ in rounds if not round_.stopped_by]
    return max(sound or rounds[:1], key=lambda round_: (worth(round_), -round_.round))


def worth(round_: RoundResult) -> float:
    """What rounds are compared by: constraints kept, else the win rate; 0 where there is neither."""
    if round_.checks is not None and round_.checks.after is not None:
        return round_.checks.after
    found = round_.initial
    return found.win_rate if found is not None and found.win_rate is not None else 0.0
