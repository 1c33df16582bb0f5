"""Other chat models go through the whole run, and every stage encodes them alike."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sao.config import Config, EngineConfig, make_config
from sao.engines import Request, Sample, Sampling
from sao.engines.transformers import TransformersEngine
from sao.errors import ModelError
from sao.method import run
from sao.models.chat import ChatTokenizer
from sao.models.locate import find_model
from sao.records import Message, PreferencePair, Prompt, Response
from sao.training.job import encode_pair
from support import tiny_models
from support.errors import raises

MODELS = {"llama": tiny_models.llama, "gemma2": tiny_models.gemma2, "qwen3": tiny_models.qwen3}


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    # Nearly uniform weights end a turn after some 300 tokens; the context holds two such answers.
    return MODELS[request.param](
        tmp_path / request.param, max_position_embeddings=4096, initializer_range=0.02
    )


def tiny_config(model: str, tmp_path: Path) -> Config:
    """Random weights write no marker and end no turn, so the recipe asks for neither."""
    (tmp_path / "people.txt").write_text("\n".join(f"person number {i}" for i in range(13)))
    sections: dict[str, Any] = {
        "engine": {"slots": 16},
        "personas": {"source": str(tmp_path / "people.txt"), "n": 10, "held_out": 3},
        "prompts": {"marker": "", "max_tokens": 400, "temperature": 1.0},
        "responses": {"max_tokens": 400, "system": "be brief", "temperature": 1.0},
        "judging": {"min_verdict_prob": 0.0},
        "pairs": {"keep": "all"},
        "train": {"batch_size": 4, "micro_batch_size": 2, "lr": 1e-3, "max_length": 4096},
        "max_drop_share": 1.0,
    }
    return make_config({"model": model, **sections})


@pytest.mark.slow
def test_the_whole_run(model: str, tmp_path: Path) -> None:
    Path(model, "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    summary = run(tiny_config(model, tmp_path), tmp_path / "run")
    funnel = {row.stage: row for row in summary.funnel}
    assert funnel["prompts"].records + funnel["prompts"].dropped == 13
    assert funnel["train"].records == funnel["pairs"].records > 0
    tuned = Path(summary.paths["model"])
    assert "| its licence | apache-2.0 |" in (tuned / "README.md").read_text()
    manifest = json.loads((tuned / "sao_manifest.json").read_text())
    assert manifest["licences"]["model"] == "apache-2.0"
    assert find_model(str(tuned)) == tuned
    before, after = (ChatTokenizer.load(m, EngineConfig()) for m in (model, str(tuned)))
    chat = [Message("system", "be brief"), Message("user", "hello there")]
    assert before.prompt_ids(chat) == after.prompt_ids(chat)
    assert before.end_ids == after.end_ids
    again = run(tiny_config(model, tmp_path), tmp_path / "run")
    assert not again.worked
    assert again.paths == summary.paths


def test_generation_judging_and_training_see_the_same_ids(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(model, tmp_path)
    chat = ChatTokenizer.load(model, config.engine)
    messages = (Message("system", "be brief"), Message("user", "tell me about it"))
    ids = chat.prompt_ids(messages)
    if chat.bos_id is not None:
        assert ids.count(chat.bos_id) == 1
        assert ids[0] == chat.bos_id
    engine = TransformersEngine(model, config.engine)
    seen: list[list[int]] = []
    inner = engine.chat.prompt_ids

    def watched(messages: Sequence[Message], prefill: str = "") -> list[int]:
        seen.append(inner(messages, prefill))
        return seen[-1]

    monkeypatch.setattr(engine.chat, "prompt_ids", watched)
    list(engine.generate([Request(messages, (Sample("a", 1),), Sampling(4))]))
    prompt = Prompt(id="p", row=0, persona_id="x", text="tell me about it")
    replies = [
        Response(id=t, row=i, prompt_id="p", index=i, text=t, token_ids=None, finish_reason="stop")
        for i, t in enumerate(("fine then", "no"))
    ]
    pair = PreferencePair(
        id="x", row=0, prompt_id="p", chosen_id="", rejected_id="", p_chosen=None, margin=None
    )
    trained = encode_pair(chat, config, prompt, pair, replies[0], replies[1])
    assert seen[0] == ids == list(trained.prompt_ids)
    assert trained.chosen_ids[-1] in chat.end_ids
    assert chat.decode(trained.chosen_ids[:-1]) == "fine then"
    assert sum(i in chat.end_ids for i in trained.chosen_ids) == 1


def test_text_cannot_open_or_end_a_turn(model: str) -> None:
    chat = ChatTokenizer.load(model, EngineConfig())
    special = [t.content for t in chat.tokenizer.added_tokens_decoder.values() if t.special]
    plain = chat.prompt_ids([Message("user", "ab")])
    for token in special:
        assert chat.prompt_ids([Message("user", f"a{token}b")]) == plain
        half = len(token) // 2
        assert chat.prompt_ids([Message("user", f"a{token[:half]}{token}{token[half:]}b")]) == plain


def test_a_model_without_a_chat_template_is_refused_with_advice(tmp_path: Path) -> None:
    path = Path(tiny_models.llama(tmp_path / "m"))
    for name in ("chat_template.jinja",):
        (path / name).unlink(missing_ok=True)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    with raises(ModelError, key="chat template", match=r"instruct version.*--chat\.template FILE"):
        ChatTokenizer.load(str(path), EngineConfig())


def test_broken_weights_are_a_clear_error(tmp_path: Path) -> None:
    from sao.models.load import load_model

    path = Path(tiny_models.llama(tmp_path / "m"))
    (path / "model.safetensors").write_bytes(b"nonsense")
    with raises(ModelError, key="model folder"):
        load_model(str(path), EngineConfig())


def test_a_generation_config_that_transformers_refuses_to_save_is_mended(tmp_path: Path) -> None:
    from sao.models.load import load_model

    path = Path(tiny_models.llama(tmp_path / "m"))
    settings = json.loads((path / "generation_config.json").read_text())
    settings |= {"temperature": 0.6, "top_p": 0.9, "do_sample": False}
    (path / "generation_config.json").write_text(json.dumps(settings))
    load_model(str(path), EngineConfig()).save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == settings["eos_token_id"]
    assert saved.get("temperature") is None
