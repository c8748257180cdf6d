"""Manifests: a record is there whole or not at all, and a folder belongs to one recipe and one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from excl.pipeline.artifacts.atomic_files import write_json, write_text
from excl.pipeline.artifacts.header import RecipeMismatchError, header_is_as_written
from excl.pipeline.artifacts.locks import BusyError
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.run_once import run_once

JOB = {"stage": "extract", "identity": {"fps": 5.0, "weights": {"source": "kinetics"}}, "code_version": 1}


def test_records_survive(tmp_path):
    with Manifest.open(tmp_path / "out", **JOB) as manifest:
        manifest.add({"id": "a", "rows": 3})
        manifest.add({"id": "b", "error": "VideoError", "message": "é\u2028 broken"})
        manifest.add({"id": "a", "rows": 4})
    with Manifest.open(tmp_path / "out", **JOB) as manifest:
        assert manifest.records["a"] == {"id": "a", "rows": 4}
        assert list(manifest.failed) == ["b"]
        assert manifest.failed["b"]["message"] == "é\u2028 broken"
        assert not manifest.is_complete
        manifest.complete({"n": 1})
    assert Manifest.read(tmp_path / "out", stage="extract").is_complete
    with pytest.raises(ValueError, match="expected one made by 'pack'"):
        Manifest.read(tmp_path / "out", stage="pack")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 200))
def test_a_line_cut_short_was_never_committed(tmp_path, cut):
    folder = tmp_path / f"cut{cut}"
    with Manifest.open(folder, **JOB) as manifest:
        for name in "abc":
            manifest.add({"id": name, "text": "x" * 20})
    content = (folder / "records.jsonl").read_bytes()
    (folder / "records.jsonl").write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    with Manifest.open(folder, **JOB) as manifest:
        assert list(manifest.records) == list("abc")[:whole]
        manifest.add({"id": "d"})
    assert list(Manifest.read(folder).records) == [*"abc"[:whole], "d"]


def test_damage_in_the_middle_is_no_cut(tmp_path):
    with Manifest.open(tmp_path / "out", **JOB) as manifest:
        manifest.add({"id": "a"})
        manifest.add({"id": "b", "seconds": 1.25})
        manifest.add({"id": "c"})
    path = tmp_path / "out" / "records.jsonl"
    whole = path.read_bytes()
    for damaged in (
        whole.replace(b"1.25", b"1.35"),
        whole.replace(b'"seconds"', b'"secondS"'),
        whole.replace(b"\n", b"\nx\n", 1),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"records\.jsonl:2: not a record"):
            Manifest.read(tmp_path / "out")
    path.write_bytes(whole)
    header = tmp_path / "out" / "manifest.json"
    header.write_text(header.read_text().replace("5.0", "6.0"))
    with pytest.raises(ValueError, match=r"manifest\.json: damaged .*checksum"):
        Manifest.read(tmp_path / "out")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10_000))
def test_a_flipped_bit_in_header_or_records_is_found(tmp_path, bit):
    folder = tmp_path / "out"
    with Manifest.open(folder, **JOB) as manifest:
        if not manifest.records:
            manifest.add({"id": "é", "rows": 3, "wall_s": 1.5, "text": "a b"})
    for name in ("manifest.json", "records.jsonl"):
        whole = (folder / name).read_bytes()
        flipped = bytearray(whole)
        flipped[bit // 8 % len(whole)] ^= 1 << bit % 8
        (folder / name).write_bytes(flipped)
        try:
            records = Manifest.read(folder).records
            found = not header_is_as_written(folder) or not records  # a line without its end was never committed
        except ValueError:
            found = True
        (folder / name).write_bytes(whole)
        assert found


def test_another_recipe_is_refused_with_what_differs(tmp_path):
    with Manifest.open(tmp_path / "out", **JOB) as manifest:
        manifest.add({"id": "a"})
    other = {**JOB, "identity": {"fps": 6.0, "weights": {"source": "kinetics"}, "crop": 224}}
    with pytest.raises(RecipeMismatchError) as error, Manifest.open(tmp_path / "out", **other):
        pass
    assert "identity.fps: the folder has 5.0, asked for is 6.0" in str(error.value)
    assert "identity.crop" in str(error.value)
    assert "weights" not in str(error.value)
    with (
        pytest.raises(RecipeMismatchError, match="code_version"),
        Manifest.open(tmp_path / "out", **{**JOB, "code_version": 2}),
    ):
        pass


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not empty.*thesis\.tex"), Manifest.open(tmp_path, **JOB):
        pass
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        Manifest.read(tmp_path)


def test_one_process_at_a_time_and_the_lock_dies_with_it(tmp_path):
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from excl.pipeline.artifacts.manifest import Manifest
        with Manifest.open(Path({str(tmp_path / "out")!r}), **{JOB!r}):
            print("open", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(BusyError, match="another process"), Manifest.open(tmp_path / "out", **JOB):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Manifest.open(tmp_path / "out", **JOB):
            pass


def test_atomic_leaves_what_was_there_or_all_that_is_new(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of the new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    write_json(path, {"ü": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": 1}


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    with Manifest.open(tmp_path / "out", **JOB):
        pass
    (tmp_path / "out" / "parts").mkdir()
    (tmp_path / "out" / "parts" / ".000001.h5.123.tmp").write_text("half")
    (tmp_path / "out" / "parts" / "000000.h5").write_text("whole")
    with Manifest.open(tmp_path / "out", **JOB):
        assert os.listdir(tmp_path / "out" / "parts") == ["000000.h5"]


def test_fingerprints_tell_results_apart(tmp_path):
    def folder(name, identity, *records):
        with Manifest.open(tmp_path / name, stage="s", identity=identity, code_version=1) as manifest:
            for record in records:
                manifest.add(record)
            return manifest.fingerprint()

    a, b = {"id": "a", "sha256": "1", "wall_s": 3.0}, {"id": "b", "sha256": "2"}
    same = folder("one", {"x": 1}, a, b)
    assert folder("two", {"x": 1}, b, {**a, "wall_s": 9.9}) == same
    assert folder("three", {"x": 2}, a, b) != same
    assert folder("four", {"x": 1}, a) != same
    assert folder("five", {"x": 1}, {**a, "sha256": "3"}, b) != same


def test_single_runs_once(tmp_path):
    calls = []

    def work(manifest):
        calls.append(manifest.folder)
        return {"n": len(calls)}

    for _ in range(2):
        run_once(tmp_path / "out", stage="s", identity={}, code_version=1, build=work)
    assert len(calls) == 1
    assert Manifest.read(tmp_path / "out").records["complete"]["n"] == 1


def test_a_folder_in_which_nothing_was_made_takes_another_recipe(tmp_path):
    other = {**JOB, "identity": {"fps": 6.0}}
    with Manifest.open(tmp_path / "out", **JOB) as manifest:
        manifest.add({"id": "plan/0", "planned": ["a"]})
    with Manifest.open(tmp_path / "out", **other) as manifest:
        assert manifest.records == {}
        (tmp_path / "out" / "last.pt").write_text("an epoch")  # made, though not recorded
    with pytest.raises(RecipeMismatchError), Manifest.open(tmp_path / "out", **JOB):
        pass


def test_differences_reach_into_lists(tmp_path):
    job = {**JOB, "identity": {"train": [{"file": "a.json", "sha256": "1"}]}}
    with Manifest.open(tmp_path / "out", **job) as manifest:
        manifest.add({"id": "x"})
    job["identity"] = {"train": [{"file": "a.json", "sha256": "2"}]}
    with pytest.raises(RecipeMismatchError, match=r"identity\.train\.0\.sha256: the folder has '1'") as error:  # noqa: SIM117
        with Manifest.open(tmp_path / "out", **job):
            pass
    assert "file" not in str(error.value)
