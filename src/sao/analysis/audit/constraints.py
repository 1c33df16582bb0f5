"""A run's judge on constraints that a program can check (`sao.checks`): how often it names the answer that
keeps more of them.

Only kinds that between 5 and 95 % of the answers keep are counted: on the others there is nothing to tell
apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from sao import checks
from sao.analysis.audit.tally import EVERY, Counts, RateSums
from sao.records import Constraint, Judgment, Prompt, Response
from sao.results.base import Rate
from sao.results.checks import ChecksAudit, KindAccuracy
from sao.stages import pairs

COUNTED = (0.05, 0.95)
"""A kind is counted whose share of answers that keep it lies between these."""
_VERDICTS, _BOTH = "verdicts", "both orders"


class KindTally:
    """How often the answers of a run keep each kind of constraint."""

    def __init__(self, groups: Iterable[tuple[Prompt, Sequence[str]]]) -> None:
        """`groups`: prompts with the texts of their answers."""
        self._sums: dict[str, RateSums] = {}
        for prompt, answers in groups:
            for kind in sorted({check.kind for check in prompt.checks}):
                asked = [check for check in prompt.checks if check.kind == kind]
                kept = [checks.passes(answer, check) for answer in answers for check in asked]
                self._sums.setdefault(kind, RateSums()).add(sum(kept), len(kept))

    @property
    def kinds(self) -> list[str]:
        """The kinds that were asked for, by name."""
        return sorted(self._sums)

    def kept(self, kind: str) -> Rate:
        """The share of the answers that keep a kind."""
        return self._sums.get(kind, RateSums()).rate()

    def counts(self, kind: str) -> bool:
        """Whether a kind is counted."""
        rate = self.kept(kind).rate
        return rate is not None and COUNTED[0] <= rate <= COUNTED[1]

    @property
    def left_out(self) -> list[str]:
        """The kinds that are not counted."""
        return [kind for kind in self.kinds if not self.counts(kind)]

    def counted(self, prompt: Prompt) -> tuple[Constraint, ...]:
        """The constraints of a prompt that count."""
        return tuple(check for check in prompt.checks if self.counts(check.kind))


class JudgeOnChecks:
    """Counts of one judge's verdicts on pairs of answers that keep more or fewer constraints."""

    def __init__(self, kinds: KindTally, panel: pairs.Panel) -> None:
        self._kinds, self._panel = kinds, panel
        self._verdicts, self._pairs = RateSums(), RateSums()
        self._by_kind: dict[str, RateSums] = {}

    def see(self, prompt: Prompt, answers: list[Response], judgments: list[Judgment]) -> None:
        """One prompt with its answers and the judge's verdicts on them."""
        counted = self._kinds.counted(prompt)
        if not counted:
            return
        kept = {answer.id: [checks.passes(answer.text, check) for check in counted] for answer in answers}
        counts = Counts()
        for judgment in judgments:
            if judgment.winner_id is not None:
                _note(counts, judgment, kept, counted)
        for a, b in combinations(answers, 2):
            difference = sum(kept[a.id]) - sum(kept[b.id])
            lean = pairs.opinion_on([a, b], judgments, EVERY, self._panel).lean if difference else 0.0
            if abs(lean) > pairs.TINY:
                counts.note(_BOTH, (lean > 0) == (difference > 0))
        for name, (hits, of) in counts.items():
            self._sums_of(name).add(hits, of)

    def _sums_of(self, name: str) -> RateSums:
        if name == _VERDICTS:
            return self._verdicts
        return self._pairs if name == _BOTH else self._by_kind.setdefault(name, RateSums())

    def figures(self) -> ChecksAudit:
        """The rates with their intervals."""
        kinds = self._kinds
        return ChecksAudit(
            accuracy=self._verdicts.rate(),
            both_orders=self._pairs.rate(),
            kinds=[
                KindAccuracy(
                    kind=kind,
                    kept=kinds.kept(kind),
                    counted=kinds.counts(kind),
                    accuracy=self._by_kind.get(kind, RateSums()).rate(),
                )
                for kind in kinds.kinds
            ],
            left_out=kinds.left_out,
        )


def _note(
    counts: Counts, judgment: Judgment, kept: dict[str, list[bool]], counted: Sequence[Constraint]
) -> None:
    """One decided verdict: whether it is for the answer that keeps more, and of which kind that is."""
    first, second = kept[judgment.first_id], kept[judgment.second_id]
    differs = [number for number in range(len(counted)) if first[number] != second[number]]
    difference = sum(first) - sum(second)
    right = (judgment.verdict == "first") == (difference > 0)
    if difference:
        counts.note(_VERDICTS, right)
    if len(differs) == 1:
        counts.note(counted[differs[0]].kind, right)
