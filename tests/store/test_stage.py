"""A stage's files: sealed, resumed, cut where a line is torn."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sao.errors import SAOError, StoreError
from sao.records import Drop, Persona, Prompt, from_dict, make_id, seed_of, to_dict
from sao.store.files import store_error, write_atomic
from sao.store.stage import Stage
from support.errors import raises
from support.repository import ROOT


def persona(row: int) -> Persona:
    return Persona(id=make_id("p", row), row=row, text=f"person {row}")


def test_sealed_records_are_sorted_by_row_and_single(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "personas", {"n": 4}).open()
    with stage.writer() as out:
        for row in (3, 1, 2):
            out.write(persona(row))
    with stage.writer() as out:
        out.write(persona(1))
        out.write(Drop(row=0, stage="personas", record_id=make_id("p", 0), reason="empty"))
    stage.seal(Persona)
    assert [p.row for p in stage.records(Persona)] == [1, 2, 3]
    assert [d.reason for d in stage.drops()] == ["empty"]
    counts = stage.counts
    assert (counts.records, counts.dropped, counts.reasons) == (3, 1, {"empty": 1})
    assert not list(stage.path.glob("part-*"))


def test_reopening_finds_what_is_done_and_cuts_a_torn_line(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "personas", {}).open()
    with stage.writer() as out:
        out.write(persona(0))
        out.write(persona(1))
    part = next(stage.path.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-5])
    again = Stage(tmp_path, "personas", {}).open()
    assert [persona(row).id in again.done for row in range(3)] == [True, False, False]
    assert len(again.done) == 1
    assert part.read_bytes().endswith(b"\n")


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "personas", {}).open()
    (stage.path / "part-x.jsonl").write_text('{"id": 1\n{}\n')
    with raises(StoreError, key="part-x.jsonl", match="line 1"):
        Stage(tmp_path, "personas", {}).open()


@pytest.mark.parametrize(
    "line", ['{"id": "1", "row": 0}', '{"row": 0}', '{"id": "00000000000000zz", "row": 0}', '{"id": "%s"}']
)
def test_a_damaged_line_of_a_part_is_named(tmp_path: Path, line: str) -> None:
    stage = Stage(tmp_path, "personas", {}).open()
    (stage.path / "part-x.jsonl").write_text(line.replace("%s", "0" * 16) + "\n")
    with raises(StoreError, key="part-x.jsonl", match=r"part-x\.jsonl.*Delete the folder"):
        Stage(tmp_path, "personas", {}).open()


def test_other_settings_are_another_folder(tmp_path: Path) -> None:
    a, b = (
        Stage(tmp_path, "judgments", {"method": "text"}),
        Stage(tmp_path, "judgments", {"method": "logprob"}),
    )
    assert a.path != b.path
    assert a.fingerprint == Stage(tmp_path, "judgments", {"method": "text"}).fingerprint


def test_unfinished_stage_has_no_counts(tmp_path: Path) -> None:
    with raises(StoreError, key="stage"):
        _ = Stage(tmp_path, "pairs", {}).open().counts


@given(st.text(), st.integers(0, 10**9))
def test_records_survive_the_round_trip(text: str, row: int) -> None:
    record = Prompt(id=make_id(text), row=row, persona_id="x", text=text)
    encoded = json.dumps(to_dict(record)).encode("utf-8", "surrogatepass")
    assert from_dict(Prompt, json.loads(encoded)) == record
    assert 0 <= seed_of(record.id) < 2**63


def test_a_full_disk_loses_nothing_and_says_so(tmp_path: Path) -> None:
    """A file-size limit makes the kernel refuse the write half-way, as a full disk does."""
    stage = Stage(tmp_path, "personas", {}).open()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with raises(StoreError, key="disk"), stage.writer() as out:
            out.write(persona(0))
            out.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, old[1]))
            for row in range(1, 50):
                out.write(persona(row))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    again = Stage(tmp_path, "personas", {}).open()
    assert persona(0).id in again.done
    with again.writer() as out:
        for row in range(50):
            if persona(row).id not in again.done:
                out.write(persona(row))
    again.seal(Persona)
    assert [p.row for p in again.records(Persona)] == list(range(50))


def test_errors_of_the_system_name_the_next_step() -> None:
    full = store_error(OSError(errno.ENOSPC, "No space left on device"), Path("x"))
    assert "free some space" in str(full)
    denied = store_error(OSError(errno.EACCES, "Permission denied"), Path("x"))
    assert "--out" in str(denied)
    assert isinstance(full, SAOError)
    assert isinstance(full, OSError)


def test_atomic_writes_leave_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, old[1]))
        with raises(StoreError, key="disk"):
            write_atomic(path, "n" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]  # noqa: PTH208


def test_killed_writers_leave_a_sealable_stage(tmp_path: Path) -> None:
    """SIGKILL at random moments: what is durable stays, the rest is written again, the sealed file is the
    same."""
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from sao.store.stage import Stage
        from sao.records import Persona, make_id
        stage = Stage(Path(sys.argv[1]), "personas", {}).open()
        if not stage.finished:
            with stage.writer() as out:
                for row in range(3000):
                    if make_id("p", row) not in stage.done:
                        out.write(Persona(id=make_id("p", row), row=row, text=f"person {row}"))
            stage.seal(Persona)
    """)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "whole")], check=True)
    rng = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed")])
        try:
            process.wait(0.1 + 0.3 * rng.random())
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed")], check=True)
    files = [
        next((tmp_path / name).glob("personas-*/records.jsonl")).read_bytes() for name in ("whole", "killed")
    ]
    assert files[0] == files[1]
    assert files[0].count(b"\n") == 3000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    """All of `sao pairs` with 200,000 requests against 20,000 (benchmarks/memory.py)."""
    script = ROOT / "benchmarks/memory.py"
    command = [sys.executable, str(script), "--sides", "scripted"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = json.loads(said[-1])["scripted"]
    assert [run["records"] for run in found["runs"]] == [10_000, 100_000]
    assert found["ratio"] <= 1.2
