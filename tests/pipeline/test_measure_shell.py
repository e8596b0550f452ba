"""``python -m stages.serve.measure`` on a small corpus: what lies there, and what is refused."""

import json
import logging
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from encoders import tiny_bert
from language_models import tiny_lm
from rooms import files, run_room, write_params
from strategies import passages_table

from flows.lookahead import read_studies
from stages import shell
from stages.serve import measure
from stages.serve.prefetch.serve_log import SCHEMA
from stages.tables import table, write_table

TEXTS = [f"{town} is in {land}." for town, land in zip(
    ["Lyon", "Turin", "Porto", "Graz", "Bern", "Cork", "Gent", "Oslo"],
    ["France", "Italy", "Portugal", "Austria", "Switzerland", "Ireland", "Belgium", "Norway"],
    strict=True,
)]  # fmt: skip
SLOTS = dict(corpus="c", model="lm", triples="none")
READ = SLOTS | dict(strategy="iter_retgen", index="words", encoder="none", split="all", rounds=2,
                    passage_tokens=20, max_tokens=8)  # fmt: skip
FIND = {**READ, "strategy": "rag"}
del FIND["rounds"]
STUDY = dict(strategy="iter_retgen", corpus="c", index="store", encoder="bert", model="lm",
             run="c/read", questions=2, calibrate=2, disk_mib_s=1.0, hot_mib=1,
             systems=["none", "gradual", "runtime"])  # fmt: skip
WRITTEN = ["budget.json", "hit_rate.json", "latency.json", "metrics.json", "serve_log.parquet"]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A run over words, and an index of clusters to replay it over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARRY_RECORDS", "records")
    folder = Path("data/ingest/c")
    folder.mkdir(parents=True)
    questions = [f"Where is {t.split()[0]}?" for t in TEXTS[:4]]
    rows = [
        dict(qid=f"q{i}", text=q, split="test", answers=["x"], options=[], meta="{}")
        for i, q in enumerate(questions)
    ]
    write_table(table("queries", rows), folder, "queries")
    write_table(passages_table(*TEXTS), folder, "passages")
    dense = dict(corpus="c", model="bert", triples="none")
    write_params(
        index={
            "words": dict(kind="bm25", corpus="c", model="none", centroids="none", triples="none"),
            "cut": dense | dict(kind="centroids", centroids="none", nlist=4),
            "store": dense | dict(kind="clustered", centroids="cut", nprobe=2),
        },
        serve={"read": READ, "find": FIND},
        latency={"a": STUDY, "few": STUDY | dict(questions=9), "other": STUDY | dict(run="c/find")},
    )  # fmt: skip
    tiny_lm(Path("data/finetune/lm"), context=2048)
    tiny_bert(Path("data/finetune/bert"))
    for name in ("words", "cut", "store"):
        run_room("index", name)


def run_measure(monkeypatch, entry: str) -> Path:
    handlers = logging.getLogger().handlers[:]
    monkeypatch.setattr(sys, "argv", ["measure", entry])
    try:
        shell.run("latency", "", measure.make, out=measure.out_folder)
    finally:
        logging.getLogger().handlers[:] = handlers
    return Path("measured/latency") / entry


def test_a_study_writes_its_log_calibration_figures_and_plots(monkeypatch):
    run_room("serve", "read")
    folder = run_measure(monkeypatch, "a")
    assert files(folder) == WRITTEN
    log = pq.read_table(folder / "serve_log.parquet")
    assert log.schema.remove_metadata() == SCHEMA
    rows = log.to_pylist()
    assert {r["condition"] for r in rows} == {"none", "gradual", "runtime"}
    assert len(rows) == 3 * 2 * 2, "three conditions, two questions, two rounds"
    assert all(r["hits"] + r["misses"] == 2 for r in rows)
    assert {r["hits"] for r in rows if r["system"] == "none"} == {0}
    assert {r["misses"] for r in rows if r["system"] == "runtime"} == {0}
    assert all(r["t_pre"] > 0 for r in rows if r["round"] == 1)
    said = json.loads((folder / "metrics.json").read_text())
    assert said["served"]["gradual"]["speedup"] > 0 and said["served"]["none"]["n"] == 2
    budget = json.loads((folder / "budget.json").read_text())
    assert budget["with_window"] == 0.5 and budget["bandwidth_mib_s"] <= 1.0
    assert not Path("data/latency").exists(), "measurements lie apart from results"


def test_the_report_reads_what_was_written(monkeypatch):
    run_room("serve", "read")
    folder = run_measure(monkeypatch, "a")
    text = Path("params.yaml").read_text()
    indented = "".join(f"  {line}\n" for line in text[text.index("latency:") :].splitlines())
    Path("studies.yaml").write_text(f"studies:\n{indented}")
    studies = {s.name: s for s in read_studies(params=Path("studies.yaml"), folder=folder.parent)}
    assert list(studies["a"].served) == ["none", "gradual", "runtime"]
    assert studies["a"].calibration["clusters"] == 2 and not studies["few"].served


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("few", "has 4 questions of its corpus; 9 to measure and 2 to calibrate on are 11"),
        ("other", "strategy is 'iter_retgen' and run 'c/find', but serve.find has strategy 'rag'"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_a_reason(monkeypatch, capsys, entry, said):
    run_room("serve", "read")
    with pytest.raises(SystemExit) as exit_:
        run_measure(monkeypatch, entry)
    assert exit_.value.code == 2 and said in " ".join(capsys.readouterr().err.split())
    assert not Path("measured/latency", entry).exists()


def test_without_the_run_its_command_is_named(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_measure(monkeypatch, "a")
    assert "data/runs/c/read is missing. Make it with: dvc repro serve@read" in (
        capsys.readouterr().err
    )
