"""A GGUF file as a model: the weights that it holds, a normal folder in the cache, and clear ends for what it
cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType
from safetensors.torch import load_file

from sao.cli import read_target
from sao.config import EngineConfig
from sao.errors import ModelError, StoreError
from sao.models import gguf
from sao.models.chat import ChatTokenizer
from sao.models.counting import read_shape
from sao.models.load import load_model
from sao.models.locate import find_model, identity_of, model_licence, weights_identity
from sao.pipeline.players import player
from sao.records import Message
from support.errors import raises
from support.gguf_files import write_gguf
from support.tiny_models import qwen3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return qwen3(tmp_path / "tiny", head_dim=128)  # all that transformers knows of Qwen-3 in this format


def test_plain_numbers_arrive_as_they_are(tiny: str, tmp_path: Path) -> None:
    file = write_gguf(tiny, tmp_path / "tiny.gguf")
    folder = find_model(str(file))
    before, after = (load_file(Path(p) / "model.safetensors") for p in (tiny, folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ours, theirs = ChatTokenizer.load(str(file), EngineConfig()), ChatTokenizer.load(tiny, EngineConfig())
    messages = [Message("system", "be brief"), Message("user", "Name three tools, héllo 1 2")]
    assert ours.prompt_ids(messages) == theirs.prompt_ids(messages)
    assert ours.end_ids >= {2}
    ids = torch.tensor([ours.prompt_ids(messages)])
    a, b = (load_model(m, EngineConfig()).eval()(ids).logits for m in (str(file), tiny))
    assert torch.allclose(a, b, atol=1e-5)


def test_rounded_weights_are_what_the_file_says(tiny: str, tmp_path: Path) -> None:
    file = write_gguf(tiny, tmp_path / "tiny.Q4_0.gguf", "Q4_0")
    name = "model.layers.0.mlp.down_proj.weight"
    weight = load_file(Path(tiny) / "model.safetensors")[name].numpy()
    rounded = quants.dequantize(quants.quantize(weight, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    found = load_file(find_model(str(file)) / "model.safetensors")[name]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.from_numpy(rounded).to(torch.bfloat16))
    assert not np.allclose(rounded, weight, atol=1e-3)
    assert "rounded to Q4_0" in gguf.notice(file)
    assert "base in every comparison" in gguf.notice(file)


def test_a_rule_of_splitting_that_nobody_knows_is_said(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers falls back to GPT-2's rule without a word."""
    for rule, said in (("qwen2", False), ("smollm", False), ("deepseek-llm", True)):
        file = write_gguf(tiny, tmp_path / f"{rule}.gguf", rule=rule)
        assert (f"does not know the rule '{rule}'" in gguf.notice(file)) == said
    # the folder says it, the package is not needed any more
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    assert "deepseek-llm" in gguf.notice(file)


def test_other_tokens_are_another_model(tiny: str, tmp_path: Path) -> None:
    one, other = (write_gguf(tiny, tmp_path / f"{rule}.gguf", rule=rule) for rule in ("qwen2", "gpt-2"))
    assert weights_identity(str(one)) != weights_identity(str(other))


def test_the_folder_is_made_once_and_is_a_normal_one(tiny: str, tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tiny, tmp_path / "tiny.gguf", tokenizer__ggml__eot_token_id=0)
    folder = find_model(str(file))
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert find_model(str(file)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert [p.name for p in (cache / "gguf").iterdir()] == [folder.name]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    assert ChatTokenizer.load(str(file), EngineConfig()).end_ids == {0, 2}
    assert model_licence(str(file)) == "apache-2.0"
    load_model(str(folder), EngineConfig()).save_pretrained(tmp_path / "again")
    identity = weights_identity(str(file))
    moved = file.rename(tmp_path / "other.gguf")
    assert weights_identity(str(moved)) == identity == identity_of(EngineConfig(), str(moved))


def test_what_a_killed_process_left_is_cleared_away(tiny: str, tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tiny, tmp_path / "tiny.gguf")
    folder = find_model(str(file))
    import shutil
    import socket
    import subprocess
    import sys

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = folder.with_name(f"{folder.name}.{socket.gethostname()}.{gone.pid}.partial")
    folder.rename(left)
    assert find_model(str(file)).is_dir()
    assert not left.exists()
    shutil.rmtree(folder)


def test_a_missing_weight_is_not_made_up(tiny: str, tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tiny, tmp_path / "tiny.gguf", leave_out="blk.1.ffn_up.weight")
    with raises(ModelError, key="weights", match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        find_model(str(file))
    assert not any((cache / "gguf").iterdir())


def test_nan_in_a_file_is_named(tiny: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = load_file(Path(tiny) / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, Path(tiny) / "model.safetensors", metadata={"format": "pt"})
    file = write_gguf(tiny, tmp_path / "tiny.gguf")
    with raises(ModelError, key="weights", match=r"down_proj\.weight holds NaN"):
        find_model(str(file))


def test_a_shape_that_the_settings_do_not_have_is_named(tmp_path: Path) -> None:
    """transformers reads no size of a head from this kind of file, and takes 128."""
    file = write_gguf(qwen3(tmp_path / "small", head_dim=8), tmp_path / "small.gguf")
    with raises(ModelError, key="weights", match=r"q_proj\.weight.*\[32, 32\].*\[512, 32\]"):
        find_model(str(file))


def test_broken_files_end_in_one_line(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_gguf(tiny, tmp_path / "tiny.gguf").read_bytes()
    for name, data in (
        ("cut.gguf", whole[: len(whole) // 2]),
        ("head.gguf", whole[:40]),
        ("no.gguf", b"PK\3\4" * 20),
        ("e.gguf", b""),
    ):
        (tmp_path / name).write_bytes(data)
        with raises(ModelError, key="GGUF file", match=name) as caught:
            find_model(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with raises(ModelError, key="GGUF file"):
        find_model(str(tmp_path / "none.gguf"))
    part = tmp_path / "m-00001-of-00003.gguf"
    part.write_bytes(whole)
    with raises(ModelError, key="GGUF file", match="llama-gguf-split --merge"):
        find_model(str(part))
    with raises(ModelError, key="config.json", match=r"give that \(.*cut\.gguf\)"):
        find_model(str(tmp_path))
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    (tmp_path / "new.gguf").write_bytes(whole + b"\0" * 32)
    with raises(ModelError, key="gguf", match=r"pip install 'sao\[gguf\]'"):
        find_model(str(tmp_path / "new.gguf"))


def test_a_model_without_a_chat_template_is_said(tiny: str, tmp_path: Path) -> None:
    (Path(tiny) / "chat_template.jinja").unlink()
    file = write_gguf(tiny, tmp_path / "base.gguf", licence=None)
    with raises(ModelError, key="chat template"):
        ChatTokenizer.load(str(file), EngineConfig())
    assert model_licence(str(file)).startswith("unknown")


def test_a_cache_that_cannot_be_written_is_named(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tiny, tmp_path / "tiny.gguf")
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("SAO_CACHE", str(tmp_path / "taken"))
    with raises(StoreError, key="SAO_CACHE", match=r"tiny\.gguf"):
        find_model(str(file))


def test_a_gguf_file_is_a_player_and_no_file_of_answers(tiny: str, tmp_path: Path) -> None:
    one = player("base", str(write_gguf(tiny, tmp_path / "tiny.gguf")))
    assert not one.is_file
    assert one.model.endswith("tiny.gguf")


def test_a_gguf_file_is_planned_for(tiny: str, tmp_path: Path) -> None:
    assert read_shape(str(write_gguf(tiny, tmp_path / "tiny.gguf"))) == read_shape(tiny)


def test_a_gguf_file_is_a_target() -> None:
    assert read_target("model.gguf", {}).model == "model.gguf"
    assert read_target("models/Model.GGUF", {}).model == "models/Model.GGUF"
