"""The evaluate room as DVC calls it: files in, five files out, or one message and nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import tables
from stages.digest import folder_digest
from stages.runs import run_table
from stages.types import Hit

ROOT = Path(__file__).parents[2]


def evaluate(folder: Path, entry: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.evaluate", entry],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    keys = "suite: standard, corpus: c, split: test, resamples: 100"
    (tmp_path / "params.yaml").write_text(
        "serve: {two: {corpus: c}, one: {corpus: c}, new: {corpus: c}, far: {corpus: d}}\n"
        "fuse: {mixed: {corpus: c}, one: {corpus: clash}}\n"
        "evaluate:\n"
        f"  good: {{{keys}, fused: c, baseline: one, runs: [mixed, one, two]}}\n"
        f"  some: {{{keys}, fused: c, baseline: one, runs: [mixed]}}\n"
        f"  every: {{{keys}, fused: c, baseline: one}}\n"
        f"  not-made: {{{keys}, fused: c, baseline: one, runs: [new]}}\n"
        f"  renamed: {{{keys}, fused: c, baseline: one, runs: [one, old]}}\n"
        f"  lost: {{{keys}, fused: none, baseline: mixed, runs: [one]}}\n"
        f"  clash: {{{keys}, fused: clash, baseline: none, runs: [two]}}\n"
    )
    query = {"text": "?", "split": "test", "answers": [], "options": [], "meta": "{}"}
    ingest = {"queries": [{"qid": "q"} | query], "qrels": [{"qid": "q", "docid": "a", "rel": 1}]}
    for kind in ("documents", "passages", "queries", "qrels"):
        (tmp_path / "data/ingest/c").mkdir(parents=True, exist_ok=True)
        rows = tables.table(kind, ingest.get(kind, []))
        tables.write_table(rows, tmp_path / "data/ingest/c", kind)
    runs = ("runs/c/one", "runs/c/two", "runs/c/old", "fused/c/mixed", "runs/c/.dead.7.tmp")
    for name in runs:
        (tmp_path / "data" / name).mkdir(parents=True)
        found = run_table(["q"], [[Hit("a", 1.0)]])
        tables.write_table(found, tmp_path / "data" / name, "runs")
    return tmp_path


def test_runs_and_fused_runs_are_measured_and_twice_the_same_bytes(project):
    out = project / "data/evaluate/good"
    assert evaluate(project, "good").returncode == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == {s: {"nDCG@10": 1.0, "R@100": 1.0, "n": 1} for s in ("one", "two", "mixed")}
    assert {p.name for p in out.iterdir()} == {
        "metrics.json", "per_query.parquet", "comparisons.json", "recall.json", "cost.json",
        "rounds.json",
    }  # fmt: skip
    first = folder_digest(out)
    assert evaluate(project, "good").returncode == 0
    assert folder_digest(out) == first


def test_named_runs_and_the_baseline_take_part_and_nothing_else_that_lies_there(project):
    assert evaluate(project, "some").returncode == 0
    metrics = json.loads((project / "data/evaluate/some/metrics.json").read_text())
    assert set(metrics) == {"mixed", "one"}


def test_a_runs_budget_of_passages_is_read_from_its_entry(project):
    text = (project / "params.yaml").read_text()
    text = text.replace("two: {corpus: c}", "two: {corpus: c, budget: {max_docs: 2}}")
    (project / "params.yaml").write_text(text)
    answer = {"answer": "", "memory": "", "docids": [], "rounds": 1, "llm_calls": 0, "searches": 1,
              "tokens_in": 0, "tokens_out": 0, "stop_reason": "fixed", "error": ""}  # fmt: skip
    effect = {"qid": "q", "effect_no": 0, "turn": 0, "kind": "Search", "key": "k", "tokens_in": 0,
              "request": '{"unit": "passage"}', "tokens_out": 0,
              "result": json.dumps([[f"{d}#0", 1.0] for d in "abc"])}  # fmt: skip
    for system in ("one", "two"):
        folder = project / "data/runs/c" / system
        tables.write_table(tables.table("answers", [{"qid": "q"} | answer]), folder, "answers")
        tables.write_table(tables.table("effects", [effect]), folder, "effects")
    assert evaluate(project, "good").returncode == 0
    metrics = json.loads((project / "data/evaluate/good/metrics.json").read_text())
    assert (metrics["one"]["docs"], metrics["two"]["docs"]) == (3.0, 2.0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("every", "params.yaml: bad values:\n  evaluate.every.runs: missing; add it."),
        (
            "not-made",
            "evaluate.not-made: the run data/runs/c/new is missing. "
            "Make it with: dvc repro serve@new",
        ),
        (
            "renamed",  # its folder is still there
            "evaluate.renamed.runs: 'old' is no entry of serve with corpus 'c', nor of fuse with "
            "corpus 'c'; there are: two, one, new, mixed. Name one of them, or add the entry to "
            "params.yaml.",
        ),
        (
            "lost",
            "evaluate.lost.baseline: 'mixed' is no entry of serve with corpus 'c', nor of fuse "
            "with corpus 'none'; there are: two, one, new. Name one of them, or add the entry to "
            "params.yaml.",
        ),
        (
            "clash",
            "evaluate.clash: serve.one and fuse.one have the same name. "
            "Rename one of the two in params.yaml.",
        ),
    ],
)
def test_what_does_not_fit_is_one_message_and_nothing_is_written(project, entry, message):
    done = evaluate(project, entry)
    assert done.returncode == 2
    assert done.stderr.endswith(f"quarry: {message}\n")
    assert list((project / "data").glob("evaluate/*")) == []
