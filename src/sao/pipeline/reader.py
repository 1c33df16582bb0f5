"""The finished records of a run, joined: each prompt with its answers, verdicts and pairs.

All files are in the order of their rows, so one group is in memory at a time. Reads only.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao.config import Config
from sao.evaluation import compare
from sao.pipeline.roles import Judge
from sao.pipeline.rounds import Round
from sao.records import Drop, Judgment, Persona, PreferencePair, Prompt, Response
from sao.stages import pairs
from sao.store.stage import Stage

if TYPE_CHECKING:
    from sao.data.preferences import TextPair


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

    def asked(self, held_out: bool) -> Iterator[Prompt]:
        """The prompts that are answered: those for training, or the held-out ones."""
        n = self.config.personas.n
        return (p for p in self.stage("filtered").records(Prompt) if (p.row >= n) == held_out)

    def with_persona(self, prompts: Iterator[Prompt]) -> Iterator[tuple[Prompt, str]]:
        """Each prompt with the text of its persona."""
        them = self.stage("personas").records(Persona)
        persona = next(them, None)
        for prompt in prompts:
            while persona is not None and persona.row < prompt.row:
                persona = next(them, None)
            yield prompt, persona.text if persona is not None and persona.row == prompt.row else ""

    def answered(self) -> Iterator[tuple[Prompt, list[Response]]]:
        """Each training prompt with its answers."""
        answers = Grouped(self.stage("filtered_responses").records(Response))
        return ((prompt, answers.take(prompt.id)) for prompt in self.asked(held_out=False))

    def judged(self) -> Iterator[tuple[Prompt, list[Response], list[Judgment]]]:
        """Each training prompt with its answers and the verdicts of all judges."""
        verdicts = [
            (judge.name, Grouped(self.round.stage("judgments", judge).records(Judgment)))
            for judge in self.judges
        ]
        for prompt, answers in self.answered():
            said = [j for name, one in verdicts for j in named(one.take(prompt.id), name)]
            yield prompt, answers, said

    def jury(self) -> pairs.Jury:
        """The judges with what their verdicts over the run say about them."""
        judging = self.config.judging
        calibrate = self.config.pairs.calibrate and judging.method != "reward"  # scores know no slots
        calibrations = pairs.calibrate(self.judged()) if calibrate else {}
        weights = {judge.name: judge.weight for judge in self.judges}
        return pairs.Jury(
            calibrations=calibrations, weights=weights, orders=2 if judging.orders == "both" else 1
        )

    def chosen(self, key: str, done: Container[str]) -> Iterator[PreferencePair | Drop]:
        """The pairs that the verdicts come to, by the recipe's rule, and Drops for the others, that are not
        `done`."""
        config, jury = self.config.pairs, self.jury()
        balance = pairs.balance_lengths(self.judged(), config, key, jury) if config.length_matched else None
        every = pairs.build_pairs(self.judged(), config, key, self.config.responses.n, jury, balance)
        return (pair for pair in every if (pair.record_id if isinstance(pair, Drop) else pair.id) not in done)

    def labelled(self) -> Iterator[tuple[Prompt, PreferencePair, Response, Response]]:
        """The finished data set: prompt, pair, chosen, rejected."""
        kept = Grouped(self.stage("pairs").records(PreferencePair))
        for prompt, answers in self.answered():
            by_id = {answer.id: answer for answer in answers}
            for pair in kept.take(prompt.id):
                yield prompt, pair, by_id[pair.chosen_id], by_id[pair.rejected_id]

    def to_train_on(self) -> Iterator[tuple[Prompt, PreferencePair, Response, Response] | TextPair | Drop]:
        """The run's own data set, or the one that pairs.source names."""
        given = self.config.pairs
        if given.source is None:
            return self.labelled()
        from sao.data.preferences import read_pairs

        return read_pairs(given.source, given.revision, given.subset, given.split)

    def held_out(self) -> Iterator[tuple[Prompt, Response, Response]]:
        """Held-out prompts that both models answered: prompt, base's answer, tuned model's answer."""
        base = Grouped(self.stage("heldout_base").records(Response))
        tuned = Grouped(self.stage("heldout_tuned").records(Response))
        for prompt in self.asked(held_out=True):
            x, y = base.take(prompt.id), tuned.take(prompt.id)
            if x and y:
                yield prompt, x[0], y[0]

    def trained_texts(self) -> set[str]:
        """The questions that were trained on."""
        if self.config.pairs.source is None:
            return {prompt.conversation for prompt in self.asked(held_out=False)}
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
        yield from (("prompt", p.id, p.conversation) for p in self.stage("filtered").records(Prompt))
        answers = self.stage("filtered_responses")
        if answers.finished:
            yield from (("answer", answer.id, answer.text) for answer in answers.records(Response))

    def funnel(self) -> list[dict[str, Any]]:
        """What entered and left each finished step and why the rest was dropped; it adds up."""
        rows = []
        for step in self.round.steps:
            shown = step.in_funnel and (step.name != "personas" or self.config.personas.source == "self")
            if shown and self.round.has(step.name):
                stages = self.round.stages(step.name)
                rows += [{"stage": stage.name, **stage.counts} for stage in stages if stage.finished]
        return rows


def named(judgments: list[Judgment], name: str) -> list[Judgment]:
    """The judgments under the name that their judge has in this recipe."""
    return [j if j.judge == name else replace(j, judge=name) for j in judgments]


class Grouped:
    """Records in order, handed out prompt by prompt: a merge join that holds one group in memory."""

    def __init__(self, records: Iterator[Any]) -> None:
        self._groups = groupby(records, key=lambda record: record.prompt_id)
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
