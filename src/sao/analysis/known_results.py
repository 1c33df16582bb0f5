"""One suite with known answers: both models are asked, a program checks what they said, and a
`KnownSuiteResult` comes out. Beside it lies items-SUITE.jsonl (one line for each question)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sao.config import ResponsesConfig
from sao.errors import ConfigError
from sao.evaluation.known_items import ChosenItem, Items, KnownSuite, Scored, WrittenItem
from sao.evaluation.known_scores import compare_scores
from sao.evaluation.sanity_checks import cut_off_and_degenerate
from sao.pipeline.likelihoods import Weighing
from sao.pipeline.players import Player
from sao.pipeline.two_models import Answers, TwoModels
from sao.records import Likelihoods
from sao.results.evaluation import KnownSuiteResult
from sao.store.files import dumps, write_atomic


@dataclass(frozen=True, kw_only=True)
class KnownWork:
    """A suite, its items, and what was said so far."""

    models: TwoModels
    suite: KnownSuite
    source: str
    """Where the questions come from, in words."""
    items: Items
    written: dict[str, Answers] = field(default_factory=dict)
    """By role: the answers."""
    weighed: dict[str, Mapping[str, Likelihoods]] = field(default_factory=dict)
    """By role, then by question: the log-probabilities of the endings."""

    def ask(self, player: Player) -> None:
        """Ask a player all that it has not answered yet."""
        written = [item for item in self.items if isinstance(item, WrittenItem)]
        chosen = [item for item in self.items if isinstance(item, ChosenItem)]
        if written:
            questions = [item.question for item in written]
            found = self.models.answers(player, questions, self._how(), self.suite.name)
            self.written[player.role] = found
        if chosen:
            self._check_model(player)
            weighing = Weighing(player=player, items=chosen)
            self.weighed[player.role] = self.models.likelihoods(weighing, self.suite.name)

    def _how(self) -> ResponsesConfig:
        """Greedy answers, of the suite's length where it has one."""
        responses = self.models.config.responses
        longest = self.suite.max_tokens or responses.max_tokens
        update = {"temperature": 0.0, "top_p": 1.0, "max_tokens": longest}
        return responses.model_copy(update=update)

    def _check_model(self, player: Player) -> None:
        if player.is_file:
            raise ConfigError(
                f"suite {self.suite.name} reads log-probabilities, which the file {player.model} does not "
                "hold: give a model",
                key=f"--{player.role}",
            )

    def result(self) -> KnownSuiteResult:
        """Check the answers and write the suite's file."""
        scored = {role: dict(self._scored(role)) for role in ("base", "tuned")}
        resamples, seed = self.models.config.evaluation.bootstrap, self.models.config.seed
        scores = compare_scores(self.suite.measures, scored["base"], scored["tuned"], resamples, seed)
        self._write_items(scored)
        cut_off, wrong = cut_off_and_degenerate(self.written, cut_is_meant=self.suite.max_tokens is not None)
        return KnownSuiteResult(
            title=self.suite.title,
            n=len(self.items),
            questions=self.source,
            template="",
            degenerate=wrong,
            cut_off=cut_off,
            missing={role: len(self.items) - len(own) for role, own in scored.items()},
            by_category={},
            delta=scores[0].delta,
            scores=scores,
        )

    def _scored(self, role: str) -> Iterator[tuple[str, Scored]]:
        """What a player's answers earned, by the question's id."""
        for item in self.items:
            id_ = item.question.prompt.id
            if isinstance(item, WrittenItem):
                if id_ in self.written[role]:
                    yield id_, item.score(self.written[role][id_][0].text)
            elif id_ in self.weighed[role]:
                yield id_, item.score(self.weighed[role][id_].logprobs)

    def _write_items(self, scored: Mapping[str, Mapping[str, Scored]]) -> None:
        lines = "".join(dumps(self._line(item, scored)) + "\n" for item in self.items)
        write_atomic(self.models.root / f"items-{self.suite.name}.jsonl", lines)

    def _line(
        self, item: WrittenItem | ChosenItem, scored: Mapping[str, Mapping[str, Scored]]
    ) -> dict[str, Any]:
        """What a question's line holds: what was asked, what both said, and what it earned."""
        question, id_ = item.question, item.question.prompt.id
        line: dict[str, Any] = {"id": id_, "key": question.key, "question": question.prompt.text}
        if question.category:
            line["category"] = question.category
        if isinstance(item, WrittenItem):
            sides = self.written.items()
            line["answers"] = {role: side[id_][0].text for role, side in sides if id_ in side}
        else:
            line["endings"] = item.continuations
            weighed = self.weighed.items()
            line["logprobs"] = {role: side[id_].logprobs for role, side in weighed if id_ in side}
        line["earned"] = {
            role: {name: points for name, (points, _) in own[id_].items()}
            for role, own in scored.items()
            if id_ in own
        }
        return line
