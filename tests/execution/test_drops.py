"""A stage that loses too much ends early, at the same place after a kill, and shows what was written."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sao.config import Config, make_config
from sao.engines import Sampling
from sao.engines.scripted import ScriptedEngine, default_reply
from sao.errors import DropError
from sao.execution.drops import DropWatch
from sao.method import run
from sao.records import Drop, Judgment, Message, Prompt
from sao.store.stage import Ids, Stage
from support.errors import raises


def recipe(n: int = 200, **more: object) -> Config:
    own = {
        "model": "m",
        "engine": {"name": "scripted"},
        "personas": {"source": "builtin:general", "n": n, "held_out": 0},
    }
    return make_config({**own, **more})


def forgetful(share: float) -> ScriptedEngine:
    """Leaves out the marker in this share of the prompts, drawn by their seeds."""

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        text = default_reply(messages, seed, sampling)
        return text.removeprefix("Prompt: ") if random.Random(seed).random() < share else text

    return ScriptedEngine(reply=reply)


def test_a_hopeless_stage_ends_after_its_first_rows(tmp_path: Path) -> None:
    engine = forgetful(0.95)
    with raises(DropError, key="max_drop_share") as caught:
        run(recipe(), tmp_path, until="prompts", engine=engine)
    message = str(caught.value)
    assert "of the first 32 items were lost" in message
    assert "no marker (" in message
    assert message.count("\n  - Explain ") == 3  # what was written
    assert "--prompts.prefill true" in message
    assert "--prompts.method user_turn" in message
    assert engine.calls == 32
    rows = [json.loads(line) for file in tmp_path.rglob("part-*") for line in file.read_text().splitlines()]
    assert len(rows) == 32
    assert all(row["text"].startswith("Explain ") for row in rows if "reason" in row)


def test_a_stage_that_may_be_fine_goes_on(tmp_path: Path) -> None:
    summary = run(recipe(), tmp_path, until="prompts", engine=forgetful(0.4))
    assert 40 < summary.funnel[0].dropped < 120


class Late:
    """Records in an order of finishing that is not that of asking; ends after `most`."""

    def __init__(self, lost: set[int], order: list[int], most: int | None = None) -> None:
        self.lost, self.order, self.most = lost, order, most

    def make(self, done: Ids) -> Iterator[Prompt | Drop]:
        rows = [row for row in self.order if f"{row:016x}" not in done]
        for number, row in enumerate(rows):
            if number == self.most:
                raise KeyboardInterrupt
            if row in self.lost:
                yield Drop(
                    row=row, stage="s", record_id=f"{row:016x}", reason="no marker", text=f"text {row}"
                )
            else:
                yield Prompt(id=f"{row:016x}", row=row, persona_id="", text="x")


def work(root: Path, source: Late, rows: range = range(100)) -> tuple[list[int], str]:
    """The rows that were taken in, over all calls, and how the stage ended."""
    taken: list[int] = []
    for _ in range(200):
        stage = Stage(root, "s", {}).open()
        try:
            watch = DropWatch(stage, 0.5, rows)
            with stage.writer() as out:
                for record in source.make(stage.done):
                    out.write(record)
                    taken.append(record.row)
                    watch.see(record)
            stage.seal(Prompt)
        except KeyboardInterrupt:
            continue
        except DropError as error:
            return taken, str(error)
        return taken, "finished"
    raise AssertionError("no end")


@pytest.mark.parametrize("seed", range(5))
def test_the_decision_waits_for_the_first_rows_and_survives_kills(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    order = rng.sample(range(100), 100)
    lost = set(rng.sample(range(32), 24)) | set(range(90, 100))
    last = max(order.index(row) for row in range(32))
    taken, end = work(tmp_path / "whole", Late(lost, order))
    assert taken == order[: last + 1]  # neither earlier nor later
    assert "24 of the first 32 items" in end
    kills, same_end = work(tmp_path / "killed", Late(lost, order, most=7))
    assert kills == taken
    assert same_end.split("Look at")[0].split("What was")[0] == end.split("Look at")[0].split("What was")[0]
    again, _ = work(tmp_path / "killed", Late(lost, order))
    assert again == []  # the same command ends at once
    fine = {row for row in lost if row not in range(0, 32, 4)}
    assert work(tmp_path / "fine", Late(set(list(fine)[:20]), order))[1] == "finished"


def test_the_bound_is_the_lower_end_of_wilsons_interval(tmp_path: Path) -> None:
    """22 of 32 lie above one half with 95 % (0.514), 21 do not (0.483)."""
    for lost, ends in ((22, True), (21, False)):
        _, end = work(tmp_path / str(lost), Late(set(range(lost)), list(range(100))))
        assert (f"{lost} of the first 32" in end) == ends


def test_the_share_is_watched_over_kills(tmp_path: Path) -> None:
    """Row 32 and later: 60 % are lost, which shows from row 500 on, killed or not; the first rows are
    fine."""
    lost = {row for row in range(32, 900) if row % 5 < 3}
    whole, end = work(tmp_path / "whole", Late(lost, list(range(900))), range(900))
    assert len(whole) == 500
    assert "items were lost" in end
    killed, same = work(tmp_path / "killed", Late(lost, list(range(900)), most=70), range(900))
    assert killed == whole
    assert same.split("Look at")[0] == end.split("Look at")[0]


def test_reasons_are_counted_over_the_rows_that_decide(tmp_path: Path) -> None:
    """Rows beyond the first may come before the last of these."""
    _, end = work(tmp_path, Late(set(range(31)) | set(range(40, 99)), [*range(31), *range(40, 99), 31]))
    assert "31 of the first 32" in end
    assert "no marker (31)" in end
    assert all(f"text {row}\n" in end for row in range(3))


def test_fewer_rows_are_judged_at_the_end(tmp_path: Path) -> None:
    taken, end = work(tmp_path, Late(set(range(31)), list(range(31))), range(31))
    assert (len(taken), end) == (31, "finished")


def test_a_verdict_that_cannot_be_read_counts(tmp_path: Path) -> None:
    watch = DropWatch(Stage(tmp_path, "judgments", {}).open(), 0.5, range(32))
    with raises(
        DropError, key="max_drop_share", match=r"(?s)32 of the first 32.*together: 0\.012.*judging\.prefill"
    ):
        for row in range(40):
            ids = {"prompt_id": "p", "first_id": "a", "second_id": "b", "judge": "self"}
            watch.see(Judgment(id=f"{row}", row=row, **ids, verdict=None, p_first=0.5, verdict_prob=0.012))


def test_long_texts_are_cut(tmp_path: Path) -> None:
    long = ScriptedEngine(reply=lambda m, seed, s: f"{seed} " + "word " * 1000)
    with raises(DropError, key="max_drop_share") as caught:
        run(recipe(), tmp_path, until="prompts", engine=long)
    rows = [json.loads(line) for file in tmp_path.rglob("part-*") for line in file.read_text().splitlines()]
    assert {len(row["text"]) for row in rows} == {2000}
    assert len(str(caught.value)) < 2000


def test_answers_cut_off_keep_their_text_and_name_what_to_change(tmp_path: Path) -> None:
    class Cut(ScriptedEngine):
        def generate(self, requests):  # type: ignore[no-untyped-def]
            from dataclasses import replace

            for completion in super().generate(requests):
                yield (
                    completion
                    if completion.text.startswith("Prompt")
                    else replace(completion, finish_reason="length")
                )

    with raises(
        DropError,
        key="max_drop_share",
        match=r"(?s)responses: 32 of the first 32.*Answer .*responses\.max_tokens.*responses\.system",
    ):
        run(recipe(), tmp_path, until="respond", engine=Cut())
