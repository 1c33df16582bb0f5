"""Repeats among texts: what counts as equal, hand-worked similarities, the order of rows, bounds, hostile
texts."""

import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sao.data import similarity
from sao.data.similarity import (
    Repeats,
    bands_for,
    find_by_embedding,
    find_duplicates,
    jaccard,
    normalise,
    shingles,
    words,
)
from sao.errors import ConfigError
from support.errors import raises
from support.repository import ROOT


def repeats(texts: list[str], threshold: float | None = 0.7) -> list[int]:
    return list(find_duplicates(lambda: iter(texts), threshold).earlier)


def made_up(n: int, seed: int = 0, length: tuple[int, int] = (12, 40)) -> list[list[str]]:
    """n texts of made-up words, as lists."""
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(3000)]
    return [rng.choices(vocabulary, k=rng.randint(*length)) for _ in range(n)]


def edited(said: list[str], rng: random.Random) -> list[str]:
    """One word replaced, taken out or put in, or two neighbours swapped."""
    at = rng.randrange(len(said) - 1)
    middle = (["new"], [], ["new", said[at]], [said[at + 1], said[at]])[way := rng.randrange(4)]
    return [*said[:at], *middle, *said[at + (2 if way == 3 else 1) :]]


# What counts as a word, and as equal


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What's a snake_case name?", "what s a snake case name"),
        ("C, C++ and C#", "c c + + and c #"),
        ("3 - 4, 3*4 and -5; x/y", "3 - 4 3 * 4 and - 5 x / y"),
        ("5 % of 10%", "5 % of 10 %"),
        ("# Title\n- an *item* (well-known)", "title an item well known"),
        ("covid-19", "covid 19"),
        ("ＦＵＬＬ Straße ﬁx ①", "full strasse fix 1"),
        ("cafe\u0301 café", "café café"),
        ("हिन्दी की के", "हिन्दी की के"),
        ("Python中文", "python 中 文"),
        ("안녕 テスト", "안 녕 テ ス ト"),
        ("ดีครับ", "ดี ค รั บ"),
        ("👍🏽 at 5°C ❤\ufe0f", "👍 at 5 ° c ❤"),
        ("a\0b \ud800c", "a b c"),
        ("...!?", ""),
        ("", ""),
    ],
)
def test_words(text: str, found: str) -> None:
    assert words(text) == found.split()


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("What is it?", "  what IS\n\tit", True),
        ("“Quoted” — text…", "quoted text", True),
        ("What is C?", "What is C++?", False),
        ("What is C++?", "What is C#?", False),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("What is 5 - 3?", "What is 5-3?", True),
        ("Solve x = -5", "Solve x = 5", False),
        ("की", "के", False),
        ("great 🙂", "great 🙃", False),
        ("...", "!!!", False),
        (". ..", ".  ..", True),
        ("", " \n", True),
        ("\ud800", "\ud801", False),
    ],
)
def test_what_is_equal(a: str, b: str, equal: bool) -> None:
    assert (normalise(a) == normalise(b)) is equal
    assert repeats([a, b], None) == [-1, 0 if equal else -1]


def test_similarities_worked_by_hand() -> None:
    # the-cat cat-sat sat-on | on-the the-mat | on-a a-mat: 3 of 7
    assert jaccard(shingles("The cat sat on the mat."), shingles("the cat sat on a mat")) == 3 / 7
    assert shingles("one two one two") == {"one two", "two one"}
    assert shingles("Word!") == {"word"}
    assert shingles("?!") == {"?!"}
    assert shingles("") == set()
    assert jaccard(set(), set()) == 1.0
    assert jaccard({"a"}, set()) == 0.0


def test_bands_reach_the_recall_and_no_longer_rows_do() -> None:
    assert bands_for(0.7) == (25, 5)
    for threshold in np.arange(0.1, 1.0, 0.05).tolist():
        bands, rows = bands_for(threshold)
        assert bands * rows <= similarity.PERMUTATIONS
        assert 1 - (1 - threshold**rows) ** bands >= similarity.RECALL
        longer = 1 - (1 - threshold ** (rows + 1)) ** (similarity.PERMUTATIONS // (rows + 1))
        assert rows == 10 or longer < similarity.RECALL


# What repeats what


def test_the_first_stays_and_the_others_name_it() -> None:
    said = [f"w{i}" for i in range(20)]
    near = " ".join([*said[:10], "other", *said[11:]])  # 17 of 21 pairs
    texts = ["something else", " ".join(said), near, " ".join(said).upper() + "!", near, "w0 w1 w2"]
    found = find_duplicates(lambda: iter(texts), 0.7)
    assert list(found.earlier) == [
        -1,
        -1,
        1,
        1,
        2,
        -1,
    ]  # the second `near` equals the first, which did not stay
    assert list(found.similarity) == [0, 0, pytest.approx(17 / 21), 1, 1, 0]
    assert repeats(texts, 0.85) == [-1, -1, -1, 1, 2, -1]
    assert repeats(texts, None) == repeats(texts, 1.0) == [-1, -1, -1, 1, 2, -1]


def test_what_did_not_stay_takes_nothing_with_it() -> None:
    said = [f"w{i}" for i in range(30)]
    chain = [" ".join([*(f"x{i}" for i in range(n)), *said[n:]]) for n in (0, 4, 8)]
    a, b, c = (shingles(text) for text in chain)
    assert jaccard(a, b) >= 0.7 > jaccard(a, c)
    assert jaccard(b, c) >= 0.7
    assert repeats(chain) == [-1, 0, -1]  # the third is like the second only, and that is gone


def test_equal_word_pairs_in_another_order_are_near_and_not_equal() -> None:
    found = find_duplicates(lambda: iter(["a b a c a", "a c a b a"]), 0.7)
    assert list(found.earlier) == [-1, 0]
    assert found.similarity[1] == pytest.approx(0.999)


TEXTS = st.lists(st.lists(st.sampled_from("abcdef"), max_size=9).map(" ".join), max_size=25)


@given(TEXTS, st.sampled_from([None, 0.3, 0.5, 0.7, 0.9]))
@settings(max_examples=150)
def test_whatever_is_dropped_is_like_an_earlier_one_that_stays(
    texts: list[str], threshold: float | None
) -> None:
    found = find_duplicates(lambda: iter(texts), threshold)
    firsts: dict[str, int] = {}
    for row, (text, earlier, value) in enumerate(zip(texts, found.earlier, found.similarity, strict=True)):
        first = firsts.setdefault(normalise(text), row)
        if first < row:
            assert (earlier, value) == (first, 1)
        elif earlier >= 0:
            assert threshold is not None
            assert earlier < row
            assert found.earlier[earlier] < 0
            exact = jaccard(shingles(text), shingles(texts[earlier]))
            assert exact >= threshold
            assert value == pytest.approx(min(exact, 0.999))


def test_planted_repeats_are_found() -> None:
    rng = random.Random(3)
    texts = [" ".join(said) for said in made_up(3000)]
    originals = [rng.randrange(3000) for _ in range(600)]
    exact = [texts[i].upper().replace(" ", ",  ") for i in originals[:300]]
    light = [" ".join(edited(texts[i].split(), rng)) for i in originals[300:]]
    found = repeats([*texts, *exact, *light])
    assert found[:3000] == [-1] * 3000
    assert [texts[i].split() for i in found[3000:3300]] == [texts[i].split() for i in originals[:300]]
    close = [
        (row, i)
        for row, i in enumerate(originals[300:], 3300)
        if jaccard(shingles(light[row - 3300]), shingles(texts[i])) >= 0.7
    ]
    assert len(close) >= 0.9 * 300
    assert sum(found[row] == i for row, i in close) >= 0.98 * len(close)


def test_what_is_found_depends_on_the_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    texts = [" ".join(said) for said in made_up(400, seed=4)]
    texts += [" ".join(edited(text.split(), rng)) for text in texts[:200]]
    rng.shuffle(texts)
    whole = find_duplicates(lambda: iter(texts), 0.7)
    for batch in (1, 7, 5000):
        monkeypatch.setattr(similarity, "BATCH", batch)
        assert find_duplicates(lambda: iter(texts), 0.7) == whole
    kept: list[str] = []  # in rounds, each with those that stayed so far, as personas come
    for start in range(0, len(texts), 150):
        together = [*kept, *texts[start : start + 150]]
        found = repeats(together)
        assert found[: len(kept)] == [-1] * len(kept)
        kept = [text for text, earlier in zip(together, found, strict=True) if earlier < 0]
    assert kept == [text for text, earlier in zip(texts, whole.earlier, strict=True) if earlier < 0]


def test_what_is_found_does_not_depend_on_the_process() -> None:
    code = (
        "from sao.data.similarity import find_duplicates\n"
        "texts = [' '.join(f'w{(i * j) % 97}' for j in range(4, 24)) + ' end' * (i % 3) for i in "
        "range(150)]\n"
        "print(list(find_duplicates(lambda: iter(texts), 0.3).earlier))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert any(place >= 0 for place in json.loads(said.pop()))


# Bounds


def test_templated_texts_are_looked_at_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    candidates = similarity._candidates

    def counted(*args: Any) -> list[int]:
        nonlocal looked_at
        found = candidates(*args)
        looked_at += len(found)
        return found

    monkeypatch.setattr(similarity, "_candidates", counted)
    texts = [f"Explain thing{i % 37} and thing{i} in {i % 11} words." for i in range(1500)]
    assert repeats(texts) == [-1] * 1500
    assert looked_at <= 1500 * similarity.VERIFIED


def test_one_that_did_not_stay_leads_to_its_original(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "GROUP", 1)
    said = made_up(1, length=(40, 40))[0]
    texts = [" ".join([*said[:n], "new", *said[n + 1 :]]) for n in range(40)]
    texts[0] = " ".join(said)
    assert repeats(texts) == [-1, *[0] * 39]


def test_memory_does_not_hold_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "BATCH", 64)

    def texts(n: int) -> Iterator[str]:
        return (" ".join(f"w{i * j}" for j in range(40)) for i in range(n))

    peaks = []
    for n in (500, 1500):
        tracemalloc.start()
        assert max(find_duplicates(lambda n=n: texts(n), 0.7).earlier) == -1  # type: ignore[misc]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 1000 < 250  # bytes a text, of which each has about 240


# Hostile texts


def test_hostile_texts() -> None:
    long = " ".join(f"w{i}" for i in range(150_000))
    texts = [
        "",
        "\0",
        "\ud800",
        "\ud800 \udfff",
        "x" * 1_000_000,
        long,
        "🙂" * 500,
        "﷽" * 50,
        "a\u0301" * 2000,
        " \u2028 ",
    ]
    found = repeats([*texts, *texts, long.replace("w77 ", "")])
    assert found[:10] == [-1] * 9 + [0]  # a line separator is as empty as nothing
    assert found[10:20] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert found[20] == 5


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=12), max_size=8))
@settings(max_examples=200)
def test_any_text_has_words_and_equals_itself(texts: list[str]) -> None:
    for text in texts:
        assert all(word.strip() and word.encode() for word in words(text))
        assert words(" ".join(words(text))) is not None
    assert repeats([*texts, *texts])[len(texts) :] == [
        [normalise(other) for other in texts].index(normalise(text)) for text in texts
    ]


# By meaning


def test_embeddings_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = {"a": 0, "b": 10, "c": 25, "d": 20, "e": 90, "f": 0, "zero": None}

    def encode(texts: list[str]) -> Any:
        found = [
            (0.0, 0.0) if (angle := angles[text]) is None else np.exp(1j * np.radians(angle))
            for text in texts
        ]
        return np.array([[v.real, v.imag] if isinstance(v, complex) else v for v in found]) * 3

    def find(threshold: float) -> Repeats:
        return find_by_embedding(lambda: iter(angles), "", threshold, encode)

    # cos 15° = 0.966: a takes b (10°) and not c (25°); c, which stayed, takes d (5°)
    expected = [-1, 0, -1, 2, -1, 0, -1]
    for batch in (1, 2, 3, 1000):
        monkeypatch.setattr(similarity, "BATCH", batch)
        found = find(0.966)
        assert list(found.earlier) == expected
        assert found.similarity[1] == pytest.approx(np.cos(np.radians(10)), abs=1e-3)
        assert found.similarity[5] == pytest.approx(0.999)  # equal in meaning is not equal
    assert list(find(0.01).earlier) == [-1, 0, 0, 0, -1, 0, -1]
    assert list(find_by_embedding(lambda: iter(()), "", 0.9, encode).earlier) == []


def test_missing_packages_and_models_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with raises(ConfigError, key="sentence-transformers", match="pip install sentence-transformers"):
        find_by_embedding(lambda: iter(["a"]), "some-model", 0.9)


def test_a_real_sentence_transformer(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as parts
    from transformers import BertConfig, BertModel, BertTokenizer

    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three"])
    )
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    shape = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(shape).save_pretrained(tmp_path / "bert")
    inner = parts.Transformer(str(tmp_path / "bert"))
    model = SentenceTransformer(modules=[inner, parts.Pooling(16)], device="cpu")
    model.save(str(tmp_path / "model"))
    texts = ["one two", "three", "one two", "One two"]
    found = find_by_embedding(lambda: iter(texts), str(tmp_path / "model"), 0.9999)
    assert list(found.earlier) == [-1, -1, 0, 0]
    with raises(ConfigError, key="filters.embeddings"):
        find_by_embedding(lambda: iter(texts), str(tmp_path / "nothing"), 0.9)


@pytest.mark.slow
def test_the_benchmark_finds_what_it_planted() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "filters.py", "--rows", "4000"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["recall"]["exact"] == found["recall"]["item_exact"] == found["recall"]["item_wrapped"] == 1
    assert found["recall"]["near"] >= 0.9
    assert not found["wrong"]
