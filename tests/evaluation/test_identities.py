"""Who judges whom: models that are one, relatives, and who labelled the training pairs."""

import json
from pathlib import Path
from typing import Any

import pytest

from sao.config.judging import READERS
from sao.evaluation.identities import Identity, judge_label, read_identity, relation

BASE, TUNED, OTHER = "b" * 16, "7" * 16, "0" * 16


def folder(
    path: Path, model_type: str = "llama", manifest: dict[str, Any] | None = None, **config: Any
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
    if manifest is not None:
        (path / "sao_manifest.json").write_text(json.dumps(manifest))
    return path


def here(path: Path, weights: str, **more: Any) -> Identity:
    return read_identity(weights, str(path), folder(path, **more))


def served(name: str, model: str = "") -> Identity:
    """A model of a server, `model` being the folder's weights or the hub id that stands for it."""
    return read_identity(f"openai:{name}:{model or name}", name, None)


def test_relations_of_a_judge(tmp_path: Path) -> None:
    base = Identity(weights="b", name="org/base", family="llama")
    tuned = Identity(weights="t", name="runs/x/model", parents=frozenset({"b", "org/base"}), family="llama")
    assert relation(base, tuned) == "lineage"
    assert relation(tuned, tuned) == "same"
    assert relation(Identity(weights="b", name="elsewhere"), base) == "same"
    assert relation(Identity(weights="o", name="other", family="llama"), base) == "family"
    assert relation(Identity(weights="o", name="other", family="qwen3"), base) == "none"
    sibling = Identity(weights="s", name="sibling", parents=frozenset({"b"}))
    assert relation(sibling, tuned) == "lineage"
    assert judge_label(base, tuned, base)[0] == "CIRCULAR"
    assert judge_label(Identity(weights="o", name="o", family="llama"), tuned, base)[0] == "WARNING"
    assert judge_label(Identity(weights="o", name="o", family="gemma2"), tuned, base) == ("", "")
    read = here(
        tmp_path,
        "t",
        _name_or_path="org/base",
        manifest={"model_identity": "b", "config": {"model": "org/base"}},
    )
    assert (read.family, read.parents) == ("llama", frozenset({"b", "org/base"}))
    assert read_identity("x", "Qwen/Qwen3-8B", None).family == "qwen"


def test_files_that_are_no_manifest_say_nothing(tmp_path: Path) -> None:
    folder(tmp_path)
    for text in (
        "[1]",
        "{",
        '{"config": 3}',
        '{"config": {"judging": {"panel": [1, {"engine": 2}]}, "engine": []}}',
    ):
        (tmp_path / "sao_manifest.json").write_text(text)
        read = read_identity("t", str(tmp_path), tmp_path)
        assert (read.parents, read.judges) == (frozenset(), frozenset())


def test_the_same_weights_behind_another_engine(tmp_path: Path) -> None:
    base = here(tmp_path / "base", BASE)
    made = {"model_identity": BASE, "config": {"model": str(tmp_path / "base")}}
    tuned = here(tmp_path / "tuned", TUNED, manifest=made)
    fp8 = here(tmp_path / "base", f"{BASE}+0123456789abcdef")
    behind = read_identity(f"openai:judge:{BASE}+0123456789abcdef", "judge", None)
    for judge in (fp8, behind, read_identity("a server", "judge", None, plain=BASE)):
        assert relation(judge, base) == "same"
        assert relation(judge, tuned) == "lineage"
        assert judge_label(judge, tuned, base)[0] == "CIRCULAR"
    assert relation(read_identity(f"openai:qwen3:8b:{BASE}", "qwen3:8b", None), base) == "same"
    # The manifest's own model ran on a server, or in eight bits.
    for identity in (f"openai:served:{BASE}", f"{BASE}+0123456789abcdef"):
        made = {"model_identity": identity, "config": {"model": "elsewhere/base"}}
        assert relation(base, here(tmp_path / "t2", TUNED, manifest=made)) == "lineage"


def test_a_server_asked_for_another_model_borrows_no_weights(tmp_path: Path) -> None:
    base = here(tmp_path / "Qwen3-8B", BASE)
    for borrowed in (BASE, "Qwen/Qwen3-8B"):
        judge = read_identity(f"openai:gpt-4.1:{borrowed}", "gpt-4.1", None, plain="")
        assert relation(judge, base) == "none"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Qwen/Qwen3-8B", "models/Qwen3-8B"),
        ("Qwen/Qwen3-8B", "models/Qwen3-8B/"),
        ("Qwen/Qwen3-8B-FP8", "models/qwen3-8b"),
        ("Qwen/Qwen3-8B-GPTQ-Int4", "models/Qwen3-8B"),
        ("Qwen3-8B-Q4_K_M.gguf", "models/Qwen3-8B"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("Qwen3-8B-IQ4_XS.gguf", "models/Qwen3-8B"),
        ("qwen3:8b", "models/Qwen3-8B"),
        ("Qwen/Qwen3-8B@main", "hub/models--Qwen--Qwen3-8B/snapshots/" + "a1" * 20),
        ("/data/runs/good/train-1a2b/model", "runs/good/train-1a2b/model"),
    ],
)
def test_names_on_a_server_and_of_folders(tmp_path: Path, name: str, path: str) -> None:
    base = read_identity(BASE, f"{tmp_path}/{path}", folder(tmp_path / path, "llama"))
    assert relation(served(name), base) == "same"
    made = {"model_identity": BASE, "config": {"model": base.name}}
    assert relation(served(name), here(tmp_path / "tuned", TUNED, manifest=made)) == "lineage"
    # By the hub id that the recipe names, whatever the server's name.
    assert relation(served("judge", name), base) == "same"
    # Other weights under the same last name are another model.
    assert relation(Identity(weights=OTHER, plain=OTHER, name=name), base) == "none"


def test_names_that_all_models_have_are_no_names(tmp_path: Path) -> None:
    base = here(tmp_path / "a" / "model", BASE)
    for name in ("/b/model", "model", "/c/checkpoint-100", "/d/final/", "/e/8b"):
        assert relation(served(name), base) == "none"
    assert relation(here(tmp_path / "b" / "model", OTHER, model_type="olmo2"), base) == "none"
    one = here(
        tmp_path / "c" / "checkpoint-100", TUNED, model_type="olmo2", _name_or_path="/x/checkpoint-100"
    )
    assert relation(served("/y/checkpoint-100"), one) == "none"


def manifest(judging: dict[str, Any], pairs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"model_identity": BASE, "config": {"model": "base", "judging": judging, "pairs": pairs or {}}}


@pytest.mark.parametrize("method", [*READERS, "reward"])
def test_who_labelled_the_training_pairs(tmp_path: Path, method: str) -> None:
    judging = {
        "method": method,
        "engine": {"name": "vllm", "model": "org/Big-Judge", "openai": {"model": "not asked"}},
        "panel": [
            {"engine": {"name": "openai", "model": None, "openai": {"model": "gpt-4.1"}}},
            {"engine": {"name": "openai", "model": "/m/Third", "openai": {"model": "third-served"}}},
            {"template": "mine.txt", "engine": None},
        ],
    }
    tuned = here(tmp_path / "tuned", TUNED, manifest=manifest(judging))
    base = here(tmp_path / "base", BASE)
    assert tuned.judges == {"org/Big-Judge", "gpt-4.1", "/m/Third", "third-served"}
    local = here(tmp_path / "Big-Judge", OTHER, model_type="qwen3")
    for judge in (
        local,
        served("Big-Judge"),
        served("gpt-4.1"),
        served("x", "Third"),
        served("third-served"),
    ):
        assert relation(judge, tuned) == "labels"
        assert relation(judge, base) in ("none", "family")
        label, why = judge_label(judge, tuned, base)
        assert label == "CIRCULAR"
        assert why.startswith("the judge labelled the pairs that the tuned model was trained on")
    assert judge_label(served("gpt-4o"), tuned, base) == ("", "")


@pytest.mark.parametrize(
    ("judging", "pairs"),
    [
        ({"method": "longer", "engine": {"name": "vllm", "model": "org/Big-Judge"}}, {}),
        (
            {"method": "logprob", "engine": {"name": "vllm", "model": "org/Big-Judge"}},
            {"source": "pairs.jsonl"},
        ),
        ({"method": "logprob", "engine": None}, {}),
    ],
)
def test_nobody_else_labelled(tmp_path: Path, judging: dict[str, Any], pairs: dict[str, Any]) -> None:
    tuned = here(tmp_path / "tuned", TUNED, manifest=manifest(judging, pairs))
    assert tuned.judges == frozenset()
    assert relation(served("org/Big-Judge"), tuned) == "none"


@pytest.mark.parametrize(
    ("judge", "model_type", "how"),
    [
        ("Qwen/Qwen2.5-72B-Instruct", "qwen3", "family"),
        ("qwen3:235b", "qwen3_moe", "family"),
        ("google/gemma-2-27b-it", "gemma2", "family"),
        ("gemma3:27b", "gemma3_text", "family"),
        ("microsoft/Phi-3-medium", "phi3", "family"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", "llama", "family"),
        ("codellama:34b", "llama", "family"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "qwen2", "family"),
        ("mistralai/Ministral-8B", "mistral", "family"),
        ("EleutherAI/gpt-neox-20b", "gpt_neox", "family"),
        ("openai/gpt-oss-120b", "gpt_oss", "family"),
        ("gpt-4.1", "gpt_neox", "none"),
        ("ollama/gemma3", "llama", "none"),
        ("cognitive/dolphin-2.9", "phi3", "none"),
        ("gpt-4.1", "llama", "none"),
        ("claude-opus", "qwen3", "none"),
    ],
)
def test_families_by_their_letters(tmp_path: Path, judge: str, model_type: str, how: str) -> None:
    base, tuned = (
        here(tmp_path / name, weights, model_type=model_type) for name, weights in (("x", BASE), ("y", TUNED))
    )
    assert relation(served(judge), base) == how
    assert relation(base, served(judge)) == how
    assert judge_label(served(judge), tuned, base)[0] == ("WARNING" if how == "family" else "")


def test_families_of_two_servers() -> None:
    assert relation(served("Llama-3.1-70B-Instruct"), served("meta-llama/Meta-Llama-3-8B")) == "family"
    assert relation(served("my-judge"), served("my-tuned-model")) == "none"
    assert relation(served("gpt-4.1-mini"), served("qwen3-mini")) == "none"


def test_base_and_tuned_that_are_one(tmp_path: Path) -> None:
    base = here(tmp_path / "base", BASE)
    copy = here(tmp_path / "copy", BASE)
    label, why = judge_label(served("gpt-4.1"), copy, base)
    assert (label, why) == (
        "WARNING",
        "base and tuned are the same weights: any difference between them is chance",
    )
    label, why = judge_label(base, copy, base)
    assert label == "CIRCULAR"
    assert why.startswith("the judge is the tuned model itself")
    assert "base and tuned are the same weights" in why
    label, why = judge_label(served("Llama-3-70B"), copy, base)
    assert label == "WARNING"
    assert "same weights" in why
    assert "same family" in why
