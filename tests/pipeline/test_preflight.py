"""What is refused before anything is written."""

import json
from pathlib import Path
from typing import Any

import pytest

from sao.config import make_config
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DataError, EngineError, ModelError
from sao.method import run
from support.errors import raises
from support.tiny_models import gemma2


@pytest.mark.parametrize(
    "ask",
    [{"prompts": {"method": "user_turn"}}, {"prompts": {"prefill": True}}, {"judging": {"prefill": "x"}}],
)
def test_a_server_that_cannot_is_refused_before_anything_is_written(
    ask: dict[str, Any], tmp_path: Path
) -> None:
    from sao.execution import session

    config = make_config({
        "model": "m", "engine": {"name": "openai"}, "personas": {"source": "builtin:general", "n": 4,
        "held_out": 0}, **ask,
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_engine", lambda *_: ScriptedEngine(has_prefill=False))
        with raises(
            EngineError,
            key="prefill",
            match=r"prompts\.method instruct",
        ):
            run(config, tmp_path / "run", until="judge")
    assert not list((tmp_path / "run").rglob("*"))


@pytest.mark.parametrize(
    ("ask", "key"),
    [
        ({"method": "pointwise"}, "judging.method"),
        ({"content_free": True}, "judging.content_free"),
        ({"wordings": ["judge", "judge_short"]}, "judging.wordings"),
    ],
)
def test_a_server_without_log_probabilities_is_refused_before_anything_is_written(
    ask: dict[str, Any], key: str, tmp_path: Path
) -> None:
    from sao.execution import session

    people = {"source": "builtin:general", "n": 4, "held_out": 0}
    config = make_config({"model": "m", "engine": {"name": "openai"}, "personas": people, "judging": ask})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_engine", lambda *_: ScriptedEngine(has_logprobs=False))
        with raises(ConfigError, key=key):
            run(config, tmp_path / "run", until="judge")
    assert not list((tmp_path / "run").rglob("*"))


def test_a_template_that_cannot_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = {
        "model": gemma2(tmp_path / "m"), "engine": {"name": "transformers"},
        "prompts": {"method": "user_turn"},
        "personas": {"source": "builtin:general", "n": 4, "held_out": 0},
    }  # fmt: skip
    with raises(ModelError, key="prompts.method"):
        run(make_config(recipe), tmp_path / "run", until="prompts")
    assert not list((tmp_path / "run").rglob("*"))


def test_weights_that_cannot_be_trained_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tmp_path / "m" / "config.json"
    folder = gemma2(tmp_path / "m")
    held = json.loads(config.read_text("utf-8")) | {"quantization_config": {"quant_method": "fp8"}}
    config.write_text(json.dumps(held), "utf-8")
    people = {"source": "builtin:general", "n": 4, "held_out": 2}
    recipe = make_config({"model": folder, "engine": {"name": "transformers"}, "personas": people})
    with raises(ModelError, key="quantization_config", match=r"quantised \(fp8\).*not trained here"):
        run(recipe, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*"))


def test_too_few_personas_for_all_rounds_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    people = {"source": "builtin:general", "n": 800, "held_out": 20}
    recipe = {"engine": {"name": "scripted"}, "personas": people, "rounds": {"n": 2}}
    with raises(DataError, key="personas.n", match="800 went to earlier rounds"):
        run(make_config(recipe), tmp_path, until="prompts")
    assert not list(tmp_path.rglob("records.jsonl"))
    run(make_config({**recipe, "rounds": {"n": 2, "personas": "same"}}), tmp_path, until="prompts")
