"""What came of a run: a run folder in, a `Summary` out, which `sao run` prints and keeps as summary.json."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import islice
from typing import Any

from sao.analysis import checked
from sao.analysis.audit import audit, possible_pairs
from sao.analysis.audit.tally import Tally
from sao.errors import SAOError, StoreError
from sao.evaluation import compare
from sao.evaluation.compare import Oracle
from sao.pipeline.reader import Reader
from sao.records import Prompt, Response
from sao.results.summary import (
    CutOff,
    Example,
    HeldOut,
    JudgeFigures,
    KeptPairs,
    OracleOutcome,
    Spent,
    Summary,
)
from sao.stages.calibration import Calibration
from sao.statistics import mean
from sao.store.manifest import USAGE, read_usage

AUDITED_UP_TO = 100_000
"""Verdicts up to which the summary holds the audit's verdict; beyond, `sao audit` is asked, since it keeps
32 bytes of each."""
EXAMPLES = 3
"""Held-out prompts that are shown with both answers."""
HeldOutRow = tuple[Prompt, Response, Response]
"""A held-out prompt, the base's answer, the trained model's."""


def summarise(run: Reader, finished: Collection[str], worked: bool) -> Summary:
    """The summary of a run of which these steps are finished."""
    judge = judge_figures(run) if "judgments" in finished else None
    kept, verdict = None, None
    if "pairs" in finished and judge is not None:
        kept = _kept_pairs(run)
        verdict = worth_of_judge(run) if judge.verdicts <= AUDITED_UP_TO else None
    summary = Summary(
        model=run.config.model,
        seed=run.config.seed,
        judging=run.config.judging.method,
        worked=worked,
        funnel=run.funnel(),
        judge=judge,
        kept=kept,
        verdict=verdict,
        usage=_usage(run),
        paths=_paths(run),
    )
    return _with_outcome(summary, run, "comparisons" in finished) if "heldout_tuned" in finished else summary


def _with_outcome(summary: Summary, run: Reader, judged: bool) -> Summary:
    """The summary with what the held-out prompts say, and the judge of them where it was asked."""
    held_out = _held_out(run)
    unseen = _unseen(run, held_out)
    outcome = {
        "heldout": _held_out_wins(run, held_out, len(unseen)) if judged else None,
        "oracle": _oracle_outcome(run, held_out, unseen, run.oracle, judged) if run.oracle else None,
        "checks": checked.outcome(
            held_out, run.config.evaluation.bootstrap, run.config.seed, run.base_logprobs()
        ),
        "examples": _examples(held_out),
    }
    return summary.model_copy(update=outcome)


def worth_of_judge(run: Reader) -> str:
    """The audit's verdict on the run's judge, in one sentence; a file that it cannot read takes no result
    away."""
    try:
        return audit(run).verdict
    except SAOError as error:
        return f"not known: {error}"


def judge_figures(run: Reader) -> JudgeFigures:
    """The first judge's verdicts in five figures; `sao audit` has more, with intervals."""
    tally, first = Tally(Calibration(), explains=False), run.judges[0].name
    for prompt, answers, judgments in run.judged():
        gold = {a.id: run.gold(prompt.conversation, a.text) for a in answers} if run.gold else {}
        tally.see(answers, [j for j in judgments if j.judge == first], gold)
    return JudgeFigures(
        verdicts=tally.verdicts,
        unparseable=tally.unparseable,
        first_slot_rate=tally.rate("first_slot_rate").rate,
        flip_rate=tally.rate("flip_rate").rate,
        accuracy=tally.rate("accuracy").rate,
    )


def _kept_pairs(run: Reader) -> KeptPairs:
    labelled = ((p.conversation, pair, chosen, rejected) for p, pair, chosen, rejected in run.labelled())
    return compare.kept_pairs(labelled, possible_pairs(run), run.gold)


def _held_out(run: Reader) -> list[HeldOutRow]:
    """The held-out prompts with both answers, without their tokens, which take most of the memory."""
    return [
        (prompt, replace(base, token_ids=None), replace(tuned, token_ids=None))
        for prompt, base, tuned in run.held_out()
    ]


def _held_out_wins(run: Reader, held_out: list[HeldOutRow], unseen: int) -> HeldOut:
    same_text = sum(base.text == tuned.text for _, base, tuned in held_out)
    comparisons = run.compared()
    wins = compare.win_summary(comparisons, same_text, run.config.evaluation.bootstrap, run.config.seed)
    return HeldOut(
        **dict(wins),
        label=f"CIRCULAR: judged by {_judge_of(run)}",
        words_base=_mean_words([base for _, base, _ in held_out]),
        words_tuned=_mean_words([tuned for _, _, tuned in held_out]),
        seen_in_training=len(held_out) - unseen,
        cut_off=CutOff(
            base=sum(_is_cut(base) for _, base, _ in held_out),
            tuned=sum(_is_cut(tuned) for _, _, tuned in held_out),
        ),
    )


def _judge_of(run: Reader) -> str:
    if run.round.roles.reader.config.engine is None:
        return "the untrained model itself"
    return f"{run.round.roles.reader.role.model}, whose verdicts it was trained on"


def _mean_words(answers: list[Response]) -> float:
    return mean([len(answer.text.split()) for answer in answers]) if answers else 0.0


def _is_cut(answer: Response) -> bool:
    """Whether an answer was cut off at the token limit, or is empty: it counts as it stands."""
    return answer.finish_reason == "length" or not answer.text.strip()


def _unseen(run: Reader, held_out: list[HeldOutRow]) -> list[HeldOutRow]:
    """Those whose question was not trained on. Personas are disjoint, questions need not be: many people ask
    the same."""
    trained_on = run.trained_texts()
    return [row for row in held_out if row[0].conversation not in trained_on]


def _oracle_outcome(
    run: Reader, held_out: list[HeldOutRow], unseen: list[HeldOutRow], oracle: Oracle, judged: bool
) -> OracleOutcome:
    resampling = (run.config.evaluation.bootstrap, run.config.seed)

    def texts(rows: list[HeldOutRow]) -> list[tuple[str, str, str]]:
        return [(prompt.conversation, base.text, tuned.text) for prompt, base, tuned in rows]

    gain = compare.oracle_gain(texts(held_out), oracle, *resampling)
    named = ((p.id, p.text, base.text, tuned.text) for p, base, tuned in held_out)
    comparisons = run.compared() if judged else ()
    return OracleOutcome(
        **dict(gain),
        verdict=compare.oracle_wins(named, comparisons, oracle, *resampling),
        unseen=compare.oracle_gain(texts(unseen), oracle, *resampling),
    )


def _examples(held_out: list[HeldOutRow]) -> list[Example]:
    differing = (
        Example(prompt=prompt.conversation, before=base.text, after=tuned.text)
        for prompt, base, tuned in held_out
        if base.text != tuned.text
    )
    return list(islice(differing, EXAMPLES))


def _usage(run: Reader) -> Spent | None:
    lines = read_usage(run.root)
    totals: dict[str, Any] = dict.fromkeys(Spent.model_fields, 0)
    for number, line in enumerate(lines, 1):
        for name in totals:
            value = line.get(name) if isinstance(line, dict) else None
            if not isinstance(value, int | float):
                raise StoreError(
                    f"{run.root / USAGE}, line {number}: {name} is no number. Mend or delete the line",
                    key=USAGE,
                )
            totals[name] += value
    return Spent(**totals) if lines else None


def _paths(run: Reader) -> dict[str, str]:
    places = {"run": run.root}
    if "pairs" in run.round.table:
        places["pairs"] = run.stage("pairs").path / "records.jsonl"
    if "train" in run.round.table:
        places |= {"log": run.stage("train").path / "metrics.jsonl", "model": run.round.model_dir}
    return {name: str(path) for name, path in places.items() if path.exists()}
