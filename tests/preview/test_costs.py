"""What a preview says that the whole run will take."""

from pathlib import Path

from sao.config import load_recipe
from sao.preview.costs import run_cost
from sao.preview.meter import Booked, CountedSession, Notebook
from sao.report.preview import show_preview
from sao.results import Preview
from sao.results.preview import AnswerFigures, PromptWay, RunCost

ANSWERS = AnswerFigures(
    prompts=4, asked=8, max_tokens=64, recipe_max_tokens=64, cut=0, empty=0, failed=0, words=9.0, tokens=12.0,
    distinct=1.0, looping=0, texts=[],
)  # fmt: skip
WAY = PromptWay(name="prompt", settings={}, is_recipe=True, asked=4, usable=4)


def cost(folder: Path, rounds: int) -> RunCost:
    """Of the demo, at 100 tokens and 10 verdicts a second."""
    notebook = Notebook(folder, CountedSession())
    notebook.steps = {
        "prompts, prompt": Booked(items=4, tokens=40, characters=160, read=0, seconds=0.4),
        "judging": Booked(items=10, tokens=0, characters=0, read=2000, seconds=1.0),
    }
    config = load_recipe("demo", {"rounds.n": str(rounds)})
    return run_cost(config, notebook, WAY, ANSWERS, "judging")


def test_all_rounds_are_counted(tmp_path: Path) -> None:
    one, three = cost(tmp_path, 1), cost(tmp_path, 3)
    assert one.unknown is None and one.seconds and three.seconds
    assert 2 * one.seconds < three.seconds < 3 * one.seconds  # held-out prompts are written once
    assert sum(stage.seconds or 0 for stage in three.stages) == three.seconds
    items = [{stage.name: stage.items for stage in run.stages} for run in (one, three)]
    assert items[1]["training"] == 3 * items[0]["training"] > 0
    shown = " ".join(show_preview(Preview(model="m", engine="e", folder="f", run=three)).split())
    assert "all 3 rounds" in shown


def test_other_minutes_and_limits_are_decided_anew(tmp_path: Path) -> None:
    def asked(minutes: float, n: int) -> int:
        limits = {"minutes": minutes, "responses.max_tokens": 512.0}
        return Notebook(tmp_path, CountedSession(), limits).decide("pairs", lambda: n)

    assert [asked(3, 7), asked(3, 50), asked(10, 50), asked(10, 9)] == [7, 7, 50, 50]
