"""The atomic write and the messages of a stage that cannot run."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import shell
from stages.errors import QuarryError
from stages.shell import Task, replaced, write_json, write_timing

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_output_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "room" / "mine"
    with replaced(out) as folder:
        (folder / "a").write_text("1")
        (folder / "b").write_text("1")
        assert not out.exists()
    with replaced(out) as folder:
        (folder / "a").write_text("2")
        assert (out / "a").read_text() == "1"
    assert names(tmp_path) == ["room/mine/a"]
    assert (out / "a").read_text() == "2"


def test_an_error_leaves_the_old_output_and_no_temporary_file(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    with replaced(out) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced(out) as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["mine/a"]
    assert (out / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for leftover in (".mine.123.tmp", ".mine.123.old.tmp", ".mine.v2.123.tmp", ".mine2.7.tmp"):
        (tmp_path / leftover).mkdir()
    with replaced(tmp_path / "mine"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".mine.v2.123.tmp",
        ".mine2.7.tmp",
        "mine",
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
from stages.shell import replaced
with replaced(Path("mine")) as folder:
    (folder / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_old_output_and_the_next_run_cleans_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("mine")
    with replaced(out) as folder:
        (folder / "a").write_text("old")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", KILLED], env=env).returncode == -9
    assert (out / "a").read_text() == "old"
    assert len(list(Path().glob(".mine.*.tmp"))) == 1
    with replaced(out) as folder:
        (folder / "a").write_text("new")
    assert names(Path()) == ["mine/a"]


def test_json_is_canonical_and_knows_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": "é", "a": 0.1})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": 0.1,\n  "b": "é"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "y.json", {"a": float("nan")})
    assert names(tmp_path) == ["x.json"]


def test_a_missing_input_names_the_stage_that_makes_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = Task("triples", "mine", study=False)
    assert task.slot("ingest", "none") is None
    with pytest.raises(QuarryError) as e:
        task.slot("ingest", "nq")
    assert str(e.value) == (
        "triples.mine: input data/ingest/nq is missing. Make it with: dvc repro ingest@nq"
    )


def test_a_study_reads_and_writes_below_studies() -> None:
    assert Task("index", "x", study=True).folder("runs", "nq/x") == Path("data/studies/runs/nq/x")


def test_timings_of_entries_that_share_a_stem_do_not_collide(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    for entry, seconds in (("bm25.v1", 1.0), ("bm25.v2", 2.0)):
        write_timing(Task("index", entry, study=False), out, seconds, {"computed": 7})
    folder = tmp_path / ".quarry/timings/index"
    assert names(folder) == ["bm25.v1.json", "bm25.v2.json"]
    written = json.loads((folder / "bm25.v2.json").read_text())
    assert (written["seconds"], written["computed"]) == (2.0, 7)


def run(monkeypatch, make, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["room", *args])
    shell.run("index", "doc", make)


def test_a_quarry_error_is_one_message_status_2_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def make(task: Task, folder: Path) -> None:
        (folder / "half").write_text("x")
        raise QuarryError("index.mine: no such thing. Do this.")

    with pytest.raises(SystemExit) as e:
        run(monkeypatch, make, "mine")
    assert e.value.code == 2
    assert capsys.readouterr().err == "quarry: index.mine: no such thing. Do this.\n"
    assert names(tmp_path) == []


def test_a_stage_writes_its_output_and_its_measurements_apart(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def make(task: Task, folder: Path) -> dict[str, float]:
        write_json(folder / "stats.json", {"entry": task.entry})
        return {"reused": 3}

    run(monkeypatch, make, "mine")
    assert names(tmp_path) == [".quarry/timings/index/mine.json", "data/index/mine/stats.json"]
    assert json.loads(Path(".quarry/timings/index/mine.json").read_text())["reused"] == 3
    run(monkeypatch, make, "mine", "--study")
    assert Path("data/studies/index/mine/stats.json").exists()
    assert Path(".quarry/timings/studies/index/mine.json").exists()


@pytest.fixture(autouse=True)
def quiet_logging():
    """shell.run sets levels of other libraries' loggers; put the root logger back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
