"""The Makefile's targets that touch files."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_clean_removes_what_stages_wrote_and_nothing_that_git_keeps(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--depth", "1", ROOT.as_uri(), clone], check=True)
    (clone / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    written = clone / "data" / "runs" / "mine" / "bm25-mine"
    written.mkdir(parents=True)
    (written / "runs.parquet").touch()
    before = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, check=True, capture_output=True, text=True
    ).stdout

    subprocess.run(["make", "-s", "clean"], cwd=clone, check=True)
    after = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, check=True, capture_output=True, text=True
    ).stdout
    assert after == before  # no tracked file is gone
    assert not written.exists()
    assert (clone / "data" / "runs" / "none").is_dir()
    assert list((clone / "data" / "evaluate").glob("*/metrics.json"))


def test_python_keeps_what_it_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set-up compiles nothing: where no compiled file may be kept, each import compiles anew."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    show = "show: ; @python -c 'import sys; print(sys.dont_write_bytecode)'"
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval", show, "show"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


def test_a_benchmark_that_is_not_there_is_named_with_those_that_are() -> None:
    done = subprocess.run(
        ["make", "bench", "NAME=fusion"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "python" not in done.stdout
    assert "no benchmark 'fusion'; there are: bm25 " in done.stderr and " fuse " in done.stderr
