"""Broken small files of a model's folder, adapters in it, and quantised weights: each is said, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sao.config import Config, EngineConfig, TrainConfig
from sao.engines import Completion, Request, Sample, Sampling
from sao.engines.transformers import TransformersEngine
from sao.errors import ModelError
from sao.models.folder import notices
from sao.models.load import check_model, check_trainable, load_model
from sao.records import Message
from sao.training.job import load_to_train
from support import families, tiny_models
from support.errors import raises

CONFIG = EngineConfig(name="transformers", device="cpu", slots=4, threads=1)


def model(folder: Path) -> Path:
    return Path(tiny_models.qwen3(folder / "model"))


def change_config(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **settings}), "utf-8")


def text_of(folder: Path) -> str:
    engine = TransformersEngine(str(folder), CONFIG)
    (done,) = engine.generate([Request((Message("user", "hello"),), (Sample("a", 1),), Sampling(12, 0.0))])
    return done.text


@pytest.mark.parametrize("content", ["[]", "{", "null", '"a"', "", "\x00", "[" * 100_000])
@pytest.mark.parametrize(
    "name",
    [
        "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "tokenizer.json", "adapter_config.json", "model.safetensors.index.json",
        "vocab.json",
    ],
)  # fmt: skip
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = model(tmp_path)
    (folder / name).write_text(content, "utf-8")
    for load in (check_model, TransformersEngine):
        with raises(ModelError, key=name, match=f"{folder}/{name}: "):
            load(str(folder), CONFIG)


@pytest.mark.parametrize("name", ["chat_template.jinja", "merges.txt", "vocab.txt"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path)
    (folder / name).write_bytes(b"\xff\xfe\x00 no text")
    for load in (check_model, TransformersEngine):
        with raises(ModelError, key=name, match=f"{folder}/{name}: cannot be read"):
            load(str(folder), CONFIG)


def test_an_unknown_part_of_the_tokenizer_is_named(tmp_path: Path) -> None:
    file = model(tmp_path) / "tokenizer.json"
    whole = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**whole, "pre_tokenizer": {"type": "OfNextYear"}}), "utf-8")
    with raises(ModelError, key="tokenizer.json", match="PreTokenizer"):
        check_model(str(file.parent), CONFIG)


def test_a_tokenizer_of_a_kind_that_would_be_guessed_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    with raises(ModelError, key="tokenizer_config.json", match="no tokenizer_config.json"):
        check_model(str(folder), CONFIG)


def test_a_setting_that_breaks_the_tokenizer_is_said(tmp_path: Path) -> None:
    folder = model(tmp_path)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "model_max_length": {}}), "utf-8")
    with raises(ModelError, key="tokenizer", match=r"cannot be used: TypeError.*tokenizer_config\.json"):
        check_model(str(folder), CONFIG)


@pytest.mark.parametrize("names", [True, 7, "Qwen3ForCausalLM", [7], {"a": 1}])
def test_names_of_the_models_class_are_a_list(tmp_path: Path, names: object) -> None:
    folder = model(tmp_path)
    change_config(folder, architectures=names)
    with raises(ModelError, key="config.json", match="architectures"):
        check_model(str(folder), CONFIG)


@pytest.mark.parametrize("ends", ["2", [2, "a"], True, 2.0, {"a": 2}])
def test_ends_of_text_are_numbers_of_tokens(tmp_path: Path, ends: object) -> None:
    folder = model(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), "utf-8")
    with raises(ModelError, key="generation_config.json", match="eos_token_id"):
        check_model(str(folder), CONFIG)


@pytest.mark.parametrize("ends", [2, [2, 0], None])
def test_ends_of_text_may_be_one_several_or_none(tmp_path: Path, ends: object) -> None:
    folder = model(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), "utf-8")
    check_model(str(folder), CONFIG)


def save_adapter(folder: Path, out: Path) -> None:
    """An adapter that changes what the model says."""
    base = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=1.0)
    adapted.save_pretrained(str(out))


def test_an_adapter_alone_is_named_as_such(tmp_path: Path) -> None:
    save_adapter(model(tmp_path), tmp_path / "adapter")
    with raises(ModelError, key="config.json", match=r"an adapter \(LoRA\) of .*model, not a model"):
        check_model(str(tmp_path / "adapter"), CONFIG)


def test_an_adapter_beside_weights_is_ignored_aloud(tmp_path: Path) -> None:
    folder = model(tmp_path)
    plain = text_of(folder)
    assert notices(folder) == []
    save_adapter(folder, folder)
    notes: list[str] = []
    TransformersEngine(str(folder), CONFIG, notify=notes.append)
    assert notes == notices(folder)
    assert "an adapter lies beside" in notes[0]
    assert text_of(folder) == plain
    loaded = load_to_train(Config(model=str(folder), engine=CONFIG))
    assert loaded.name_or_path == str(folder)
    assert all(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("method", ["of-next-year", None, 4])
def test_weights_held_in_an_unknown_way_are_refused(tmp_path: Path, method: object) -> None:
    folder = model(tmp_path)
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    for load in (check_model, load_model):
        with raises(ModelError, key="quantization_config", match="quant_method"):
            load(str(folder), CONFIG)


def test_weights_in_four_bits_write_and_are_not_trained(tmp_path: Path) -> None:
    """bitsandbytes, by transformers' own loader: greedy tokens as `generate`'s."""
    pytest.importorskip("bitsandbytes")
    plain = families.build("qwen3", tmp_path / "plain", hidden_size=128, head_dim=32, intermediate_size=128)
    held: Any = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    folder = tmp_path / "quantised"
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=held).save_pretrained(folder)
    for file in Path(plain).iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    engine = TransformersEngine(str(folder), CONFIG)
    (done,) = engine.generate([Request((Message("user", "hello"),), (Sample("a", 1),), Sampling(12, 0.0))])
    assert isinstance(done, Completion)
    ids = torch.tensor([engine.chat.prompt_ids((Message("user", "hello"),))])
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
        eos_token_id=sorted(engine.chat.end_ids), pad_token_id=engine.chat.pad_id,
    )  # fmt: skip
    assert done.token_ids == tuple(expected[0, ids.shape[1] :].tolist())
    with raises(ModelError, key="quantization_config", match="not trained here"):
        check_trainable(str(folder))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_quantised_weights_are_not_trained(tmp_path: Path, method: str) -> None:
    folder = model(tmp_path)
    change_config(folder, quantization_config={"quant_method": "fp8"})
    config = Config(model=str(folder), engine=CONFIG, train=TrainConfig.model_validate({"method": method}))
    with raises(ModelError, key="quantization_config", match=r"quantised \(fp8\).*not trained here"):
        load_to_train(config)


def test_weights_that_are_not_held_as_the_config_says_are_refused(tmp_path: Path) -> None:
    """Said to be in 4 bits, but float32: the first forward pass fails within the package that holds them."""
    folder = model(tmp_path)
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with raises(ModelError, key="config.json", match="a plain forward pass fails"):
        TransformersEngine(str(folder), CONFIG)


@pytest.mark.parametrize(
    ("build", "asked", "found"),
    [
        (tiny_models.qwen3, "auto", "sdpa"),
        (tiny_models.qwen3, "eager", "eager"),
        (tiny_models.gemma2, "auto", "eager"),  # its scores are soft-capped
        (lambda folder: families.build("gpt_oss", folder), "auto", "eager"),  # sinks
    ],
)
def test_attention_is_chosen_by_family_or_as_asked(
    tmp_path: Path, build: Callable[[Path], str], asked: str, found: str
) -> None:
    config = EngineConfig.model_validate({**CONFIG.model_dump(), "attention": asked})
    assert load_model(build(tmp_path), config).config._attn_implementation == found


def test_attention_that_is_not_installed_is_said(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"attention": "flash_attention_2"})
    with raises(ModelError, key="model folder", match="[Ff]lash"):
        load_model(str(model(tmp_path)), config)
