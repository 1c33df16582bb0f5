"""A .json file of several arrays, or of an array and something else."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sao.data.readers import read_rows
from sao.errors import DataError
from support.errors import raises
from support.pair_files import ASKED, BAD, GOOD, Row

# A .json file of several arrays, or of an array and something else

RECORDS = [{"a": 0}, {"a": "], [{"}, {"a": [3.5, {"b": "ü"}]}]


def items(path: Path) -> list[Any]:
    return [row for _, row in read_rows(str(path), [], what="pairs", option="x")]


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 0}]\n[{"a": "], [{"}, {"a": [3.5, {"b": "ü"}]}]',
        '[{"a": 0}][{"a": "], [{"}][{"a": [3.5, {"b": "ü"}]}]',
        '[{"a": 0}, {"a": "], [{"}],[{"a": [3.5, {"b": "ü"}]}]\n\n',
        '[\n{"a": 0}\n]\n,\n[\n{"a": "], [{"},{"a": [3.5, {"b": "ü"}]}\n]',
        '[]\n[{"a": 0}, {"a": "], [{"}]\r\n[]\n[{"a": [3.5, {"b": "ü"}]}]',
        # two files joined, each with its mark
        '\ufeff [{"a": 0}]\n\ufeff[{"a": "], [{"}, {"a": [3.5, {"b": "ü"}]}]',
    ],
)
def test_arrays_of_records_are_one_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "p.json").write_text(text, "utf-8")
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(text.encode()))
    for piece in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr("sao.data.text_files.CHUNK", piece)
        assert items(tmp_path / "p.json") == items(tmp_path / "p.json.gz") == RECORDS
    places = [place for place, _ in read_rows(str(tmp_path / "p.json"), [], what="pairs", option="x")]
    assert places == [f"{tmp_path / 'p.json'}, item {number}" for number in range(3)]


texts = st.text(min_size=1, max_size=20).filter(lambda t: bool(t.strip()) and not t.startswith("\n\nHuman:"))


@given(
    arrays=st.lists(
        st.lists(st.dictionaries(texts, st.floats(allow_nan=False) | st.integers() | texts)), min_size=1
    ),
    between=st.sampled_from(["", ",", "\n", ",\n", " , ", "\ufeff"]),
    indent=st.none() | st.integers(0, 2),
    piece=st.integers(1, 40),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arrays_in_any_layout_are_read_whole(
    tmp_path: Path, arrays: list[list[Row]], between: str, indent: int | None, piece: int
) -> None:
    (tmp_path / "p.json").write_text(
        between.join(json.dumps(array, indent=indent) for array in arrays), "utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sao.data.text_files.CHUNK", piece)
        assert items(tmp_path / "p.json") == [row for array in arrays for row in array]


def test_numbers_that_cross_pieces_of_a_file_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [12345, -1.5, 2.5e-7, 1e300, 0]
    (tmp_path / "p.json").write_text("[12345,-1.5 , 2.5e-7,1E+300,0]")
    for piece in range(1, 32):
        monkeypatch.setattr("sao.data.text_files.CHUNK", piece)
        assert items(tmp_path / "p.json") == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"a": 1}, {"a": 2}]\nand more',
            r"item 2: after the end of the array stands 'and more'\. Write .*\.jsonl",
        ),
        ('[{"a": 1}]]', r"item 1: after the end of the array stands '\]'"),
        ('[{"a": 1}]\n{"a": 2}\n', r"item 1: after the end of the array stands '\{\"a\": 2\}\\n'.*\.jsonl"),
        ('[{"a": 1}],', r"item 1: the file ends after a comma\. Copy it again"),
        ('[{"a": 1}],,[{"a": 2}]', r"item 1: after the end of the array stands ',\["),
        ('[{"a": 1}]\n[{"a": 2}, {"a"', r"item 2: not JSON .*copy it again"),
        ('[{"a": 1}]\n[', r"item 1: not JSON"),
        ('[{"a": 1}]\n["b"]', r"item 1: no record .*several arrays.* \.jsonl"),
        ('["a", "b"]\n["c"]', r"item 0: no record .*several arrays.* \.jsonl"),
        ("[1, 2]\n[]", r"item 0: no record .*several arrays"),
        ('[[{"a": 1}]]\n[[{"a": 2}]]', r"item 0: no record .*several arrays"),
        (
            '[{"role": "user", "content": "q"}]\n[{"a": 2}]',
            r"item 0: a chat message.*one row\. .*one record a line, as \.jsonl",
        ),
        (
            '[{"a": 1}],[{"from": "human", "value": "q"}]',
            r"item 1: a chat message, in a file of several arrays",
        ),
        ('[{"from": "human", "value": "q"}][{"from": "human", "value": "r"}]', r"item 0: a chat message"),
    ],
)
def test_what_follows_an_array_is_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "p.json").write_text(text)
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(text.encode()))
    for piece in (3, 1 << 20):
        monkeypatch.setattr("sao.data.text_files.CHUNK", piece)
        for name in ("p.json", "p.json.gz"):
            with raises(DataError, key="JSON", match=message):
                items(tmp_path / name)


def test_one_array_of_anything_stays_what_it_is(tmp_path: Path) -> None:
    for rows in ([], ["a", "b"], [ASKED, GOOD], [[ASKED, GOOD], [ASKED, BAD]], [1, None]):
        (tmp_path / "p.json").write_text("\n " + json.dumps(rows) + " \n")
        assert items(tmp_path / "p.json") == rows


def test_an_array_behind_much_white_space_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sao.data.text_files.CHUNK", 5)
    (tmp_path / "p.json").write_text("\n" * 50 + '[{"a": 1},{"a": 2}]', "utf-8-sig")
    assert items(tmp_path / "p.json") == [{"a": 1}, {"a": 2}]
