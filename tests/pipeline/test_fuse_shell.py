"""The fuse room as DVC calls it: files in, one file out, or one message and nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import tables
from stages.digest import file_digest
from stages.runs import run_table
from stages.types import Hit

ROOT = Path(__file__).parents[2]


def fuse(folder: Path, entry: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.fuse", entry],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(
        "serve: {one: {corpus: c}, two: {corpus: c}, new: {corpus: c}, far: {corpus: d}}\n"
        "fuse:\n"
        "  good: {rule: rrf, corpus: c, runs: [one, two]}\n"
        "  not-made: {rule: rrf, corpus: c, runs: [one, new]}\n"
        "  renamed: {rule: rrf, corpus: c, runs: [one, old]}\n"
    )
    for name, docs in {"one": "ab", "two": "bc", "old": "ca"}.items():
        folder = tmp_path / "data/runs/c" / name
        folder.mkdir(parents=True)
        hits = [Hit(d, -float(i)) for i, d in enumerate(docs)]
        tables.write_table(run_table(["q"], [hits]), folder, "runs")
        tables.write_table(tables.empty_table("answers"), folder, "answers")
    return tmp_path


def test_an_entry_writes_its_run_below_its_corpus_and_twice_the_same_bytes(project):
    out = project / "data/fused/c/good/runs.parquet"
    assert fuse(project, "good").returncode == 0
    first = file_digest(out)
    assert fuse(project, "good").returncode == 0
    assert file_digest(out) == first
    assert tables.read_table(out.parent, "runs")["docid"].to_pylist() == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "not-made",
            "fuse.not-made: the run data/runs/c/new is missing. Make it with: dvc repro serve@new",
        ),
        (
            "renamed",  # its folder is still there
            "fuse.renamed.runs: 'old' is no entry of serve with corpus 'c'; there are: one, two, "
            "new. Name one of them, or add the entry to params.yaml.",
        ),
    ],
)
def test_a_run_that_is_not_there_is_named_and_nothing_is_written(project, entry, message):
    done = fuse(project, entry)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"quarry: {message}"
    assert not (project / "data/fused").exists() or not any((project / "data/fused/c").iterdir())
