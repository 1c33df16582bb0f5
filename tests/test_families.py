"""The families of docs/models.md: every column that says yes holds, and every no has a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sao.engines import Request, Sample, Sampling
from sao.engines.lockstep import Lockstep
from sao.engines.transformers import TransformersEngine
from sao.errors import ModelError, SAOError, TrainingError
from sao.records import Message
from support.errors import raises
from support.families import FAMILIES, build
from support.family_checks import CHECKS, ENGINE, packs, planned, train_briefly, trains, writes

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINES: dict[str, dict[str, Any]] = {
    line["model_type"]: line for line in json.loads((DOCS / "models.json").read_text("utf-8"))
}
WHOLE = ("qwen3_5", "gemma3", "gpt_oss", "granitemoehybrid", "mixtral", "deepseek_v3")
"""A wrapper of linear attention, one with windows, sinks, a hybrid mixture, a mixture, latent attention."""


def test_every_family_is_in_the_table() -> None:
    assert list(LINES) == list(FAMILIES)
    text = (DOCS / "models.md").read_text("utf-8")
    assert all(f"| `{name}` |" in text for name in FAMILIES)


def test_at_least_nine_in_ten_write_judge_train_and_are_saved_and_planned() -> None:
    wanted = ("writes", "judges", "trains", "saves", "planned")
    good = [all(line[column] for column in wanted) for line in LINES.values()]
    assert sum(good) >= 0.9 * len(LINES)
    assert all(line["why"] for line in LINES.values() if not all(line[c] for c in CHECKS))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_writes_and_trains_as_the_table_says(model_type: str, tmp_path: Path) -> None:
    folder = build(model_type, tmp_path)
    for name, check in (("writes", writes), ("trains", trains), ("packed", packs)):
        if LINES[model_type][name]:
            check(folder)
        else:
            with pytest.raises(SAOError):
                check(folder)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", WHOLE)
@pytest.mark.parametrize("column", list(CHECKS))
def test_all_columns_of_six_families(model_type: str, column: str, tmp_path: Path) -> None:
    folder = build(model_type, tmp_path / "model")
    args = (folder, tmp_path / "out") if column in ("saves", "shares") else (folder,)
    if LINES[model_type][column]:
        CHECKS[column](*args)
    else:
        with pytest.raises(SAOError):
            CHECKS[column](*args)


def test_a_model_that_is_written_by_equal_lengths_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    engine = TransformersEngine(build("lfm2", tmp_path), ENGINE, notify=notes.append)
    assert isinstance(engine.batches, Lockstep)
    assert len(notes) == 1
    assert "texts of equal length are written together, which is slower" in notes[0]


OLDER: dict[str, dict[str, Any]] = {
    "falcon": {"alibi": True},
    "gptj": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "codegen": {},
    "bloom": {},
    "mpt": {},
    "xglm": {},
    "jetmoe": {},
    "afmoe": {},
}
"""Models that attend in a way of their own, which neither our batches nor packed rows know."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OLDER)
def test_a_model_that_attends_in_its_own_way_is_written_and_trained_plainly(
    model_type: str, tmp_path: Path
) -> None:
    folder = build(model_type, tmp_path, **OLDER[model_type])
    writes(folder)
    trains(folder)
    with raises(ModelError, key="train.batches"):
        packs(folder)


def test_a_cache_that_transformers_gets_wrong_is_not_used(tmp_path: Path) -> None:
    """A model of linear layers only, on which `generate` fails with a cache: greedy tokens are those of plain
    forward passes."""
    engine = TransformersEngine(build("qwen3_next", tmp_path, layer_types=["linear_attention"] * 4), ENGINE)
    assert isinstance(engine.batches, Lockstep)
    assert not engine.batches.cached
    request = Request((Message("user", "hello"),), (Sample("a", 1),), Sampling(6, 0.0))
    (done,) = engine.generate([request])
    ids = engine.chat.prompt_ids(request.messages)
    for token in done.token_ids or ():
        with torch.inference_mode():
            logits = engine.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert int(logits.argmax()) == token
        ids = [*ids, token]


def test_layers_that_share_keys_and_values_are_counted_once(tmp_path: Path) -> None:
    shared = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
    folder = build("gemma4_text", tmp_path, **shared)
    planned(folder)
    writes(folder)
    trains(folder)


def test_texts_longer_than_the_index_of_keys_are_not_trained_on(tmp_path: Path) -> None:
    folder = build("deepseek_v32", tmp_path / "model", index_topk=16)
    with raises(TrainingError, key="train.max_length", match="index of keys takes 16"):
        train_briefly(folder, tmp_path / "out")
