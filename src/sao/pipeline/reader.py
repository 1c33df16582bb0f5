"""The finished records of a run, joined: each prompt with its answers, verdicts and pairs.

All files are in the order of their rows, so one group is in memory at a time. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from sao import checks
from sao.config import Config
from sao.errors import StoreError
from sao.evaluation import compare
from sao.pipeline.roles import Judge
from sao.pipeline.rounds import Round
from sao.records import Comparison, Drop, Judgment, Likelihoods, Persona, PreferencePair, Prompt, Response
from sao.results.base import StageCounts
from sao.stages import judging, pairs, rows
from sao.store.files import MEND
from sao.store.stage import Stage, read_stage_info

if TYPE_CHECKING:
    from sao.data.preferences import TextPair

Since = Literal["base", "before"]
"""With which model's answers the trained model's are compared."""
R = TypeVar("R", Response, Judgment, PreferencePair, Comparison)


class Reader:
    """The records of one round of a run."""

    def __init__(self, run: Round) -> None:
        self.round = run

    @property
    def config(self) -> Config:
        """The recipe."""
        return self.round.config

    @property
    def root(self) -> Path:
        """The run folder."""
        return self.round.root

    @property
    def judges(self) -> tuple[Judge, ...]:
        """The judges of the run."""
        return self.round.roles.judges

    def stage(self, step: str) -> Stage:
        """Where the records of a step lie."""
        return self.round.stage(step)

    @cached_property
    def oracle(self) -> compare.Oracle | None:
        """The toy world's oracle, None elsewhere: it knows what people of that world ask, or what its model
        writes."""
        if self.config.personas.source != "builtin:world" and self.config.model != "builtin:world":
            return None
        from sao.toy_world.oracle import score

        return score

    @cached_property
    def checks(self) -> compare.Oracle | None:
        """(prompt, answer) → the share of the prompt's constraints that the answer keeps, None for a prompt
        without any; None where the recipe has no checkable prompts."""
        if not self.round.has("checkable"):
            return None
        asked = (*self.asked(held_out=False), *self.asked(held_out=True))
        constraints = {prompt.conversation: prompt.checks for prompt in asked if prompt.checks}
        return lambda prompt, answer: checks.score(answer, constraints.get(prompt, ()))

    @cached_property
    def gold(self) -> compare.Oracle | None:
        """The exact score of an answer where there is one: its constraints, else the toy world's oracle."""
        by_checks, by_oracle = self.checks, self.oracle
        if by_checks is None or by_oracle is None:
            return by_checks or by_oracle

        def score(prompt: str, answer: str) -> float | None:
            share = by_checks(prompt, answer)
            return by_oracle(prompt, answer) if share is None else share

        return score

    # Prompts.

    def asked(self, held_out: bool) -> Iterator[Prompt]:
        """The prompts that are answered: those for training, or the held-out ones of the first round."""
        prompts = (self.round.first if held_out else self.round).stage("checkable").records(Prompt)
        return (prompt for prompt in prompts if rows.is_held_out(prompt.row) == held_out)

    def count_asked(self, held_out: bool) -> int:
        """How many these are: fewer than the personas where prompts were lost or filtered."""
        return sum(1 for _ in self.asked(held_out))

    def written(self) -> Iterator[tuple[Prompt, str]]:
        """Every prompt before the filters, with the text of its persona; "" where it was given."""
        prompts = self.stage("prompts").records(Prompt)
        if self.config.prompts.source is not None:
            return ((prompt, "") for prompt in prompts)
        return self.with_persona(prompts)

    def with_persona(self, prompts: Iterator[Prompt]) -> Iterator[tuple[Prompt, str]]:
        """Each prompt with the text of its persona. Raises StoreError where one has none."""
        stage = self.stage("personas")
        people = stage.records(Persona)
        for prompt in prompts:
            persona = next((person for person in people if person.row >= prompt.row), None)
            if persona is None or persona.id != prompt.persona_id:
                raise StoreError(
                    f"{stage.path / 'records.jsonl'}: no persona {prompt.persona_id} at row {prompt.row}, of "
                    f"whom prompt {prompt.id} is. {MEND}",
                    key="records.jsonl",
                )
            yield prompt, persona.text

    # Each with its answers, verdicts and pairs.

    def answered(self) -> Iterator[tuple[Prompt, list[Response]]]:
        """Each training prompt with its answers."""
        n = self.config.responses.n
        written = Groups(self.stage("responses"), Response, n)
        searched = self.round.has("filtered_responses")
        kept = Groups(self.stage("filtered_responses"), Response, n) if searched else None
        for prompt in self.asked(held_out=False):
            answers = written.take(prompt, n)
            yield prompt, kept.take(prompt, len(answers)) if kept else answers
        written.end()
        if kept:
            kept.end()

    def judged(self) -> Iterator[tuple[Prompt, list[Response], list[Judgment]]]:
        """Each training prompt with its answers and the verdicts of all judges."""
        n = self.config.responses.n
        each = []
        for judge in self.judges:
            orders, stage = judging.orders_of(judge.config), self.round.stage("judgments", judge)
            each.append((judge, orders, Groups(stage, Judgment, rows.pairs_each(n) * orders)))
        for prompt, answers in self.answered():
            said: list[Judgment] = []
            for judge, orders, verdicts in each:
                shown = judging.shown_pairs(answers, judge.config.comparisons_per_answer) * orders
                said += named(verdicts.take(prompt, shown), judge.name)
            yield prompt, answers, said
        for *_, verdicts in each:
            verdicts.end()

    def judged_beside(self) -> Iterator[tuple[str, Iterator[tuple[Prompt, list[Response], list[Judgment]]]]]:
        """Finished verdicts by other recipes on the same answers in this folder, under the name of their
        judge and folder."""
        mine, n = self.round.stages("judgments"), self.config.responses.n
        upstream = mine[0].settings["step"]["upstream"]
        for path in sorted(self.round.place.glob("judgments-*/stage.json")):
            info = read_stage_info(path)
            settings = info.settings
            stage = Stage(self.round.place, "judgments", settings, sizes=self.round.sizes[-1])
            if stage.path in {own.path for own in mine} or not stage.finished:
                continue
            if settings.get("step", {}).get("upstream") != upstream:
                continue
            name = f"{settings['method']} ({stage.path.name})"
            orders = judging.ORDERS[settings["orders"]]
            verdicts = Groups(stage, Judgment, rows.pairs_each(n) * orders)
            yield name, self._with_verdicts(verdicts, name, orders, settings["comparisons_per_answer"])

    def _with_verdicts(
        self, verdicts: Groups[Judgment], name: str, orders: int, comparisons_per_answer: int | None
    ) -> Iterator[tuple[Prompt, list[Response], list[Judgment]]]:
        for prompt, answers in self.answered():
            shown = judging.shown_pairs(answers, comparisons_per_answer) * orders
            yield prompt, answers, named(verdicts.take(prompt, shown), name)
        verdicts.end()

    @property
    def scores_alone(self) -> bool:
        """Whether each answer is scored by itself: such a score knows no slots."""
        return self.config.judging.method in ("reward", "pointwise")

    def panel(self) -> pairs.Panel:
        """The judges with what their verdicts over the run say about them."""
        how = self.config.judging
        calibrate = self.config.pairs.calibrate and not self.scores_alone
        calibrations = pairs.calibrate(self.judged()) if calibrate else {}
        weights = {judge.name: judge.weight for judge in self.judges}
        return pairs.Panel(calibrations=calibrations, weights=weights, orders=judging.orders_of(how))

    def chosen(self, key: str) -> Iterator[PreferencePair | Drop]:
        """The pairs that the verdicts come to, by the recipe's rule, and Drops for the others."""
        config, panel, n = self.config.pairs, self.panel(), self.config.responses.n
        newer = None if self.round.roles.rejected is None else rows.newer_answers(n)
        balance = (
            pairs.balance_lengths(self.judged(), config, key, panel, newer) if config.length_matched else None
        )
        return pairs.build_pairs(self.judged(), config, key, n, panel, balance, newer)

    def margins(self) -> Iterator[float]:
        """How sure the judges are of every two answers that differ, kept as a pair or not: their log-odds
        (nats) without the sign. Nothing comes where they give no numbers."""
        if not self.round.has("judgments"):
            return
        panel, how = self.panel(), self.config.pairs.model_copy(update={"keep": "all"})
        for _, answers, judgments in self.judged():
            for a, b in combinations(answers, 2):
                margin = pairs.opinion_on([a, b], judgments, how, panel).margin
                if margin is not None:
                    yield abs(margin)

    def labelled(self) -> Iterator[tuple[Prompt, PreferencePair, Response, Response]]:
        """The finished data set: prompt, pair, chosen, rejected."""
        stage, possible = self.stage("pairs"), rows.pairs_each(self.config.responses.n)
        pairs_of = Groups(stage, PreferencePair, possible)
        for prompt, answers in self.answered():
            by_id = {answer.id: answer for answer in answers}
            for pair in pairs_of.take(prompt, possible):
                for id_ in (pair.chosen_id, pair.rejected_id):
                    if id_ not in by_id:
                        raise StoreError(
                            f"{stage.path / 'records.jsonl'}: pair {pair.id} names answer {id_}, which "
                            f"prompt {prompt.id} does not have. {MEND}",
                            key="records.jsonl",
                        )
                yield prompt, pair, by_id[pair.chosen_id], by_id[pair.rejected_id]
        pairs_of.end()

    def to_train_on(self) -> Iterator[tuple[Prompt, PreferencePair, Response, Response] | TextPair | Drop]:
        """The run's own data set, or the one that pairs.source names."""
        given = self.config.pairs
        if given.source is None:
            earlier = self.round.earlier if self.config.rounds.data == "all" else ()
            return chain.from_iterable(Reader(run).labelled() for run in (*earlier, self.round))
        from sao.data.preferences import read_pairs

        return read_pairs(given.source, given.revision, given.subset, given.split)

    def held_out(self, since: Since = "base") -> Iterator[tuple[Prompt, Response, Response]]:
        """Held-out prompts that both models answered: prompt, base's answer, tuned model's answer. `since`:
        in place of the base the model of the round before."""
        base = Groups(self._answered_before(since), Response, 1)
        tuned = Groups(self.stage("heldout_tuned"), Response, 1)
        for prompt in self.asked(held_out=True):
            before, after = base.take(prompt, 1), tuned.take(prompt, 1)
            if before and after:
                yield prompt, before[0], after[0]
        base.end()
        tuned.end()

    def _answered_before(self, since: Since) -> Stage:
        """Where the answers lie with which the tuned model's are compared."""
        before = self.round.before
        if since == "base" or before is None:
            return self.stage("heldout_base")
        return before.stage("heldout_tuned")

    def base_logprobs(self) -> dict[str, float]:
        """How probable the base model finds each held-out answer to a checkable prompt, in nats a token, by
        the answer's id; empty where it was not asked."""
        stage = self.stage("base_logprobs") if self.round.has("base_logprobs") else None
        if stage is None or not stage.finished:
            return {}
        by_prompt = {found.prompt_id: found for found in stage.records(Likelihoods)}
        means: dict[str, float] = {}
        for prompt, *answers in self.held_out():
            if (found := by_prompt.get(prompt.id)) is not None:
                for answer, total, n in zip(answers, found.logprobs, found.tokens, strict=True):
                    means[answer.id] = total / n
        return means

    def compared(self, since: Since = "base") -> Iterator[Comparison]:
        """The verdicts on base against trained model; equal answers have none. `since` as for `held_out`."""
        is_step = since == "before" and self.round.before is not None
        verdicts = Groups(self.stage("comparisons_before" if is_step else "comparisons"), Comparison, 2)
        answers = {prompt.id: base.text != tuned.text for prompt, base, tuned in self.held_out(since)}
        for prompt in self.asked(held_out=True):
            yield from verdicts.take(prompt, 2 if answers.get(prompt.id) else 0)
        verdicts.end()

    def rejudged(self) -> Iterator[tuple[list[Judgment], list[Judgment]]]:
        """The verdicts of this round's judge and of the one before on the same prompts' answers."""
        said: dict[str, list[Judgment]] = {}
        for judgment in self.stage("rejudged").records(Judgment):
            said.setdefault(judgment.prompt_id, []).append(judgment)
        for prompt, _, judgments in self.judged():
            if prompt.id in said:
                yield judgments, said[prompt.id]

    def trained_texts(self) -> set[str]:
        """The questions that were trained on."""
        if self.config.pairs.source is None:
            rounds = (*self.round.earlier, self.round)
            return {p.conversation for run in rounds for p in Reader(run).asked(held_out=False)}
        from sao.data.preferences import TextPair

        texts = set()
        for pair in self.to_train_on():
            if isinstance(pair, TextPair):
                turns = [message.content for message in pair.messages if message.role != "system"]
                if turns:
                    *earlier, last = turns
                    asked = Prompt(id="", row=0, persona_id="", text=last, earlier=tuple(earlier))
                    texts.add(asked.conversation)
        return texts

    def texts(self) -> Iterator[tuple[str, str, str]]:
        """(kind, id, text) of every prompt that is answered and of every answer, of given pairs likewise;
        held-out prompts are prompts too."""
        if self.config.pairs.source is not None:
            for number, pair in enumerate(self.to_train_on()):
                if not isinstance(pair, Drop | tuple):
                    yield "prompt", str(number), "\n\n".join(message.content for message in pair.messages)
                    yield "answer", f"{number} chosen", pair.chosen
                    yield "answer", f"{number} rejected", pair.rejected
            return
        yield from (("prompt", p.id, p.conversation) for p in self.stage("checkable").records(Prompt))
        answers = self.stage("filtered_responses")
        if answers.finished:
            yield from (("answer", answer.id, answer.text) for answer in answers.records(Response))

    def funnel(self) -> list[StageCounts]:
        """What entered and left each finished step and why the rest was dropped; it adds up."""
        found: list[StageCounts] = []
        for step in self.round.steps:
            shown = step.in_funnel and (step.name != "personas" or self.config.personas.source == "self")
            if shown and self.round.has(step.name):
                stages = self.round.stages(step.name)
                found += [stage.counts for stage in stages if stage.finished]
        return found


def named(judgments: list[Judgment], name: str) -> list[Judgment]:
    """The judgments under the name that their judge has in this recipe."""
    return [j if j.judge == name else replace(j, judge=name) for j in judgments]


class Groups(Generic[R]):
    """The records of a finished stage, handed out prompt by prompt: a merge join that holds one group in
    memory.

    Each prompt has `each` rows, of which some may be Drops. Raises StoreError, with file and line, for a
    record or Drop in another order, one of a prompt that is not among those asked for, and one that is
    missing.
    """

    def __init__(self, stage: Stage, kind: type[R], each: int) -> None:
        self.stage, self.each = stage, each
        self._records: Iterator[tuple[int, R]] = enumerate(stage.records(kind), 1)
        self._dropped: Iterator[tuple[int, Drop]] = enumerate(stage.drops(), 1)
        self._record: tuple[int, R] | None = next(self._records, None)
        self._drop = next(self._dropped, None)
        self._row = -1

    def take(self, prompt: Prompt, expected: int) -> list[R]:
        """The records of this prompt, of which there are `expected` together with its Drops."""
        start = rows.index_of(prompt.row) * self.each
        found: list[R] = []
        while (row := self._next_row()) is not None and row < start + self.each:
            line, record = self._record  # type: ignore[misc]
            if row <= self._row:
                raise self._error(line, f"row {row} comes after row {self._row}: the order is broken")
            if row < start or record.prompt_id != prompt.id:
                raise self._orphan(line, record)
            self._row = row
            found.append(record)
            self._record = next(self._records, None)
        dropped = 0
        while self._drop is not None and self._drop[1].row < start + self.each:
            if self._drop[1].row < start:
                raise self._lost_drop(*self._drop)
            dropped += 1
            self._drop = next(self._dropped, None)
        if len(found) + dropped != expected:
            last = self._record[0] if self._record else "the last"
            raise self._error(
                last,
                f"prompt {prompt.id} has {len(found)} records and {dropped} drops here before this line, not "
                f"{expected} together",
            )
        return found

    def end(self) -> None:
        """All prompts were asked for: nothing may be left."""
        if self._record is not None:
            raise self._orphan(*self._record)
        if self._drop is not None:
            raise self._lost_drop(*self._drop)

    def _next_row(self) -> int | None:
        return None if self._record is None else self._record[1].row

    def _orphan(self, line: int, record: R) -> StoreError:
        return self._error(line, f"prompt {record.prompt_id} is not among those that were asked for here")

    def _lost_drop(self, line: int, drop: Drop) -> StoreError:
        what = f"row {drop.row} is out of order, or of no prompt that was asked for here"
        return self._error(line, what, "drops.jsonl")

    def _error(self, line: int | str, what: str, file: str = "records.jsonl") -> StoreError:
        return StoreError(f"{self.stage.path / file}, line {line}: {what}. {MEND}", key=file)
