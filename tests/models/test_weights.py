"""Nothing is made up: weights that are missing, misnamed or not finite, and tokenizers without words, are
refused by name."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sao.config import EngineConfig, make_config
from sao.errors import ModelError, SAOError
from sao.method import run
from sao.models import vocabulary, weights
from sao.models.chat import ChatTokenizer
from sao.models.load import check_model, load_model
from sao.models.locate import identity_of, weights_identity
from sao.models.weights import is_whole
from support.errors import raises
from support.tiny_models import gemma2, llama, mistral, qwen3

Weights = dict[str, torch.Tensor]
AUTO = EngineConfig()


def changed(folder: Path, change: Callable[[Weights], Weights]) -> str:
    """The tiny Qwen-3-like model with other weights in its file."""
    model = qwen3(folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return model


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda w: {name: value for name, value in w.items() if not any(part in name for part in parts)}


BROKEN = {
    "no head": (without("lm_head"), r"the weight lm_head\.weight is missing"),
    "no layer": (
        without("layers.1."),
        r"model\.layers\.1\.input_layernorm\.weight is missing .*\(11 such weights\)",
    ),
    "another prefix": (
        lambda w: {f"policy.{name}": value for name, value in w.items()},
        r"lm_head\.weight is missing.*\(25 such weights\); the weight policy\.lm_head\.weight has no "
        r"place.*\(25 such weights\)",
    ),
    "one too many": (
        lambda w: w | {"model.extra.weight": torch.zeros(2)},
        r"model\.extra\.weight has no place",
    ),
    "another shape": (
        lambda w: w | {"lm_head.weight": w["lm_head.weight"][:-1].clone()},
        r"lm_head\.weight has another shape",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    model = changed(tmp_path / "m", change)
    for load in (check_model, load_model):
        with raises(ModelError, key="weights", match=message):
            load(model, AUTO)


def test_vllm_may_know_more_kinds_of_models(tmp_path: Path) -> None:
    """Quantised weights have other names, and transformers does not know every model: vLLM looks at these by
    itself."""
    vllm = EngineConfig(name="vllm")
    settings = tmp_path / "m" / "config.json"
    model = changed(tmp_path / "m", lambda w: {f"{name}.qweight": value for name, value in w.items()})
    with raises(ModelError, key="weights", match="is missing"):
        check_model(model, vllm)
    whole = json.loads(settings.read_text())
    settings.write_text(json.dumps(whole | {"quantization_config": {"quant_method": "awq", "bits": 4}}))
    check_model(model, vllm)
    settings.write_text(
        json.dumps(whole | {"model_type": "new_kind", "architectures": ["NewKindForCausalLM"]})
    )
    check_model(model, vllm)
    with raises(ModelError, key="config.json"):
        check_model(model, AUTO)


@pytest.mark.parametrize("family", [llama, gemma2, qwen3, mistral])
def test_whole_models_pass(family: Callable[[Path], str], tmp_path: Path) -> None:
    check_model(family(tmp_path / "m"), AUTO)  # tied heads among them


def test_what_old_checkpoints_hold_besides_weights_is_no_weight(tmp_path: Path) -> None:
    """GPT-2's masked_bias, for one: a constant."""
    more = {
        "model.layers.0.attn.masked_bias": torch.tensor(-1e4),
        "model.embeddings.position_ids": torch.arange(8),
    }
    model = changed(tmp_path / "m", lambda w: w | more)
    check_model(model, AUTO)
    load_model(model, AUTO)


def test_a_classifier_is_no_chat_model(tmp_path: Path) -> None:
    base = qwen3(tmp_path / "base")
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(
        tmp_path / "reward"
    )
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "reward")
    for engine in (AUTO, EngineConfig(name="vllm")):
        with raises(ModelError, key="model class", match="Qwen3ForSequenceClassification"):
            check_model(str(tmp_path / "reward"), engine)
    with raises(ModelError, key="model class"):
        load_model(str(tmp_path / "reward"), AUTO)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_number_that_is_none_is_named(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def change(w: Weights) -> Weights:
        w = {key: tensor.to(dtype) for key, tensor in w.items()}
        w[name][0, 0] = value
        return w

    model = changed(tmp_path / "m", change)
    with raises(ModelError, key="weights", match=rf"the weight {name} holds NaN or infinity"):
        weights_identity(model)


def test_large_finite_numbers_and_whole_numbers_pass(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    tensors = {
        "a": torch.full((5,), torch.finfo(torch.float16).max, dtype=torch.float16),
        "b": torch.full((5,), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16),
        "c": torch.full((3,), -1, dtype=torch.int32),  # all bits set
        "d": torch.full((3,), 255, dtype=torch.uint8),
        "e": torch.zeros(0),
        "f": torch.full((4,), 448.0).to(torch.float8_e4m3fn),
    }
    save_file(tensors, file)
    assert weights.file_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    save_file({"f": torch.full((4,), float("nan")).to(torch.float8_e4m3fn)}, tmp_path / "n.safetensors")
    with raises(ModelError, key="weights", match="the weight f holds NaN"):
        weights.file_digest(tmp_path / "n.safetensors")


def test_a_number_behind_the_first_piece_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK", 64)
    tensor = torch.zeros(100)
    tensor[77] = float("nan")
    save_file({"x": torch.zeros(3), "y": tensor}, tmp_path / "w.safetensors")
    with raises(ModelError, key="weights", match="the weight y holds NaN"):
        weights.file_digest(tmp_path / "w.safetensors")


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    model = qwen3(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    whole = file.read_bytes()
    for data in (whole[:-100], whole + b"\0" * 8, whole[:5], b"\xff" * 64):
        file.write_bytes(data)
        with raises(ModelError, key="weights", match=r"model\.safetensors"):
            weights_identity(model)


def test_large_files_are_remembered_between_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "REMEMBERED", 1000)
    file = tmp_path / "w.safetensors"
    save_file({"x": torch.arange(1000.0)}, file)
    first = weights.file_digest(file)
    monkeypatch.setattr(weights, "_digests", {})
    with monkeypatch.context() as patch:
        patch.setattr(weights, "_scan", lambda *_: pytest.fail("read again"))
        assert weights.file_digest(file) == first
    save_file({"x": torch.full((1000,), float("nan"))}, file)  # as many bytes, another content
    with raises(ModelError, key="weights", match="x holds NaN"):
        weights.file_digest(file)
    (note,) = (tmp_path / "cache/digests").iterdir()
    note.write_text("torn")
    save_file({"x": torch.arange(1000.0)}, file)
    (tmp_path / "cache/digests").rename(tmp_path / "away")
    (tmp_path / "cache/digests").write_text("no folder")  # a cache that cannot be written stops nobody
    assert weights.file_digest(file) == first


def test_files_are_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = qwen3(tmp_path / "m")
    first = weights_identity(model)
    monkeypatch.setattr(weights, "_scan", lambda *_: pytest.fail("read again"))
    assert weights_identity(model) == first


@pytest.mark.parametrize("change", ["nan", "head"])
@pytest.mark.parametrize("role", ["policy", "judge"])
def test_a_run_stops_before_it_writes(change: str, role: str, tmp_path: Path) -> None:
    def edit(w: Weights) -> Weights:
        if change == "head":
            return without("lm_head")(w)
        w["lm_head.weight"][0, 0] = float("nan")
        return w

    broken, whole = changed(tmp_path / "broken", edit), llama(tmp_path / "whole")
    judge = {"engine": {"model": broken}} if role == "judge" else {}
    recipe = {
        "model": whole if role == "judge" else broken, "judging": judge,
        "personas": {"source": "builtin:general", "n": 4, "held_out": 2},
    }  # fmt: skip
    with raises(ModelError, key="weights", match=r"lm_head\.weight"):
        run(make_config(recipe), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*"))


def test_a_run_with_a_broken_reward_model_stops_before_it_writes(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")  # a chat model has no score head
    judge = {"method": "reward", "engine": {"model": base}}
    recipe = {
        "model": base,
        "judging": judge,
        "personas": {"source": "builtin:general", "n": 4, "held_out": 2},
    }
    with raises(ModelError, key="reward model", match=r"score\.weight is missing"):
        run(make_config(recipe), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*"))


def test_a_shard_that_the_index_names_and_is_not_there_is_named(tmp_path: Path) -> None:
    model = qwen3(tmp_path / "m")
    load_model(model, AUTO).save_pretrained(tmp_path / "m", max_shard_size="20KB")
    (tmp_path / "m" / "model.safetensors").unlink()
    check_model(model, AUTO)
    shard = sorted((tmp_path / "m").glob("model-*.safetensors"))[1]
    shard.unlink()
    with raises(ModelError, key="model folder", match=shard.name):
        check_model(model, AUTO)


LORA = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"


def adapter(folder: Path, tensors: Weights) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_adapters_are_looked_through(tmp_path: Path) -> None:
    model = qwen3(tmp_path / "m")
    whole = {LORA.format("A"): torch.zeros(2, 32), LORA.format("B"): torch.zeros(64, 2)}
    for number, (tensors, message) in enumerate((
        (whole, None),
        ({**whole, LORA.format("A"): torch.full((2, 32), float("inf"))}, r"lora_A\.weight holds NaN or "
                                                                         r"infinity"),
        ({LORA.format("A"): torch.zeros(2, 32)}, "has no lora_B beside it"),
        ({name.replace(".0.", ".7."): value for name, value in whole.items()}, r"changes layer "
                                                                               r"7\.mlp\.up_proj, which"),
    )):  # fmt: skip
        folder = adapter(tmp_path / str(number), tensors)
        config = EngineConfig.model_validate({"name": "vllm", "vllm": {"lora": str(folder)}})
        if message is None:
            check_model(model, config)
            assert identity_of(config, model) != weights_identity(model)
            continue
        with pytest.raises(ModelError, match=message):
            identity_of(config, model)
            check_model(model, config)
    quantised = changed(
        tmp_path / "q", lambda w: {name.replace(".weight", ".qweight"): value for name, value in w.items()}
    )
    head = {f"base_model.model.lm_head.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    for number, tensors in enumerate(
        (whole, head)
    ):  # a quantised base; a tied head, which has no file of its own
        weights.check_adapter(adapter(tmp_path / f"more{number}", tensors), Path(quantised))
    with raises(ModelError, key="adapter"):
        weights.check_adapter(tmp_path, Path(model))


# Tokenizers.


def test_a_tokenizer_without_its_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(llama(tmp_path / "m"))
    (model / "tokenizer.json").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizer"}))
    with raises(ModelError, key="tokenizer.json"):
        ChatTokenizer.load(str(model), AUTO)
    monkeypatch.setattr(vocabulary, "find_spec", lambda name: None)
    for name, package in (
        ("tokenizer.model", "sentencepiece"), ("spiece.model", "sentencepiece"), ("tekken.json",
        "mistral-common"),
    ):  # fmt: skip
        (model / name).write_text("{}")
        with raises(
            ModelError,
            key="tokenizer",
            match=rf"in {name} only, which needs the package {package}: pip install {package}",
        ):
            ChatTokenizer.load(str(model), AUTO)
        (model / name).unlink()


def test_a_vocabulary_without_its_merges_is_named(tmp_path: Path) -> None:
    model = Path(llama(tmp_path / "m"))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    with raises(ModelError, key="merges.txt"):
        ChatTokenizer.load(str(model), AUTO)


def test_a_vocabulary_of_special_tokens_only_is_refused(tmp_path: Path) -> None:
    model = Path(llama(tmp_path / "m"))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    special = {t["content"] for t in tokenizer["added_tokens"]}
    tokenizer["model"]["vocab"] = {t: i for t, i in tokenizer["model"]["vocab"].items() if t in special}
    tokenizer["model"]["merges"] = []
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with raises(ModelError, key="vocabulary"):
        ChatTokenizer.load(str(model), AUTO)


def test_a_template_that_loses_the_users_text_is_refused(tmp_path: Path) -> None:
    model = Path(llama(tmp_path / "m"))
    lossy = (
        "{% for m in messages %}<|user|>{% for part in m['content'] if part is mapping %}{{ part.kind }}"
        "{% endfor %}<|end|>{% endfor %}"
    )
    (model / "chat_template.jinja").write_text(lossy)
    with raises(
        ModelError, key="chat_template.jinja", match="leaves out what the user and the assistant said"
    ):
        ChatTokenizer.load(str(model), AUTO)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    model = llama(tmp_path / "m")
    rows = json.loads((tmp_path / "m" / "config.json").read_text())["vocab_size"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["onemoreword"])
    tokenizer.save_pretrained(tmp_path / "m")
    with raises(
        ModelError,
        key="embedding",
        match=rf"knows 'onemoreword' as number {rows}, but the embedding has {rows} rows \(1 such",
    ):
        ChatTokenizer.load(model, AUTO)


def test_a_special_token_beyond_the_embedding_that_no_text_holds_is_fine(tmp_path: Path) -> None:
    """Gemma-3's text models: the image token's number is the number of rows."""
    model = llama(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(tmp_path / "m")
    from sao.records import Message

    found = ChatTokenizer.load(model, AUTO)
    rows = json.loads((tmp_path / "m" / "config.json").read_text())["vocab_size"]
    assert max(found.prompt_ids([Message("user", "a <image> b")])) < rows
    template = tmp_path / "m" / "chat_template.jinja"
    template.write_text(template.read_text() + "<image>")
    with raises(ModelError, key="embedding", match="'<image>' as number"):
        ChatTokenizer.load(model, AUTO)


def test_no_word_of_other_scripts_is_needed(tmp_path: Path) -> None:
    """A byte-level vocabulary without merges has single letters only."""
    model = Path(llama(tmp_path / "m"))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    special = len(tokenizer["added_tokens"])
    tokenizer["model"]["merges"] = []
    tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items())[: special + 256])
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    ChatTokenizer.load(str(model), AUTO)


def test_a_folder_of_another_kind_is_named(tmp_path: Path) -> None:
    model = qwen3(tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    with raises(SAOError, key="model"):
        check_model(model, AUTO)


def test_a_saved_model_is_whole_or_not(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    assert not is_whole(tmp_path)
    (tmp_path / "model-00001.safetensors").write_text("")
    assert is_whole(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}})
    )
    assert not is_whole(tmp_path)  # one of its files is gone
    (tmp_path / "model-00002.safetensors").write_text("")
    assert is_whole(tmp_path)
    index.write_text("{")
    assert not is_whole(tmp_path)
