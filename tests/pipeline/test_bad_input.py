"""What a user gets wrong, through the real command: its status, its words, what is written."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoders import tiny_bert
from ingest_corpora import write_lines
from rooms import files, run_room, write_params
from safetensors.torch import load_file, save_file
from strategies import write_corpus

from stages.tables import read_table, table, write_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARRY_RECORDS", "records")


def stage(room: str, entry: str) -> subprocess.CompletedProcess[str]:
    """The command that dvc.yaml has for this entry."""
    return subprocess.run(
        [sys.executable, "-m", f"stages.{room}", entry], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_an_index_is_not_searched_with_another_encoder() -> None:
    """Same size, other weights: every score would be wrong and none would look it."""
    tiny_bert(Path("data/finetune/tiny"))
    tiny_bert(Path("data/finetune/retrained"), seed=4)
    corpus = Path("data/ingest/c")
    write_corpus(corpus, "amber", "birch")
    question = {"qid": "q", "text": "amber", "split": "test", "answers": [], "options": [],
                "meta": "{}"}  # fmt: skip
    write_table(table("queries", [question]), corpus, "queries")
    search = {"strategy": "search", "corpus": "c", "index": "dense", "triples": "none",
              "model": "none", "split": "all"}  # fmt: skip
    write_params(
        index={"dense": {"kind": "flat", "corpus": "c", "model": "tiny", "centroids": "none"}},
        serve={"same": {**search, "encoder": "tiny"}, "other": {**search, "encoder": "retrained"}},
    )
    run_room("index", "dense")

    done = stage("serve", "other")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "quarry: index 'dense' was built with tiny (d=32); the encoder is retrained (d=32, other "
        "fingerprint). Say encoder: tiny in the entry that searches it, or model: retrained in the "
        "index's."
    )
    assert "Traceback" not in done.stderr
    assert files(Path("data/runs")) == [] and list(Path("data/runs").glob("*/*")) == []
    run_room("serve", "same")
    assert files(Path("data/runs"))


def test_weights_that_give_nan_build_no_index() -> None:
    model, corpus = Path("data/finetune/tiny"), Path("data/ingest/c")
    tiny_bert(model)
    weights = load_file(model / "model.safetensors")
    save_file({n: w * torch.nan for n, w in weights.items()}, model / "model.safetensors")
    write_corpus(corpus, "amber", "birch")
    write_params(
        index={"dense": {"kind": "flat", "corpus": "c", "model": "tiny", "centroids": "none",
                         "triples": "none"}}
    )  # fmt: skip
    done = stage("index", "dense")
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith("quarry: encoder 'tiny': the vector of document '")
    assert said.endswith(
        "has NaN or infinity. Its weights are damaged: make the model again (dvc repro -f "
        "finetune@tiny), with a smaller learning rate if it was trained."
    )
    assert not Path("data/index").exists() or files(Path("data/index")) == []


def test_parquet_of_another_schema_is_named_with_what_was_expected() -> None:
    pq.write_table(pa.table({"key": ["a"], "body": ["amber"]}), "in.parquet")
    write_params(ingest={"notes": {"source": "parquet", "path": "in.parquet"}})
    done = stage("ingest", "notes")
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith("quarry: in.parquet:") and "key, body" in said, said
    assert not Path("data/ingest").exists() or files(Path("data/ingest")) == []


HUGE = json.dumps({"id": "huge", "text": "x" * 10_000_000}).encode()
SMALL = [{"id": str(i), "text": f"Text {i}."} for i in range(5)]


def write_source(**values: object) -> None:
    write_lines(Path("in.jsonl"), [*SMALL[:3], HUGE, *SMALL[3:]])
    write_params(ingest={"notes": {"source": "jsonl", "path": "in.jsonl", **values}})


@pytest.mark.parametrize(
    ("values", "reason", "detail"),
    [
        ({}, "oversize", "a line of more than 4194304 bytes"),
        (
            {"max_line_bytes": 20_000_000}, "too_long",
            "10000000 characters, max_chars is 1000000",
        ),
    ],
)  # fmt: skip
def test_a_line_of_ten_megabytes_is_set_aside_with_its_reason_and_the_others_stay(
    values: dict, reason: str, detail: str
) -> None:
    write_source(**values)
    done = stage("ingest", "notes")
    assert done.returncode == 0, done.stderr
    out = Path("data/ingest/notes")
    assert read_table(out, "documents")["docid"].to_pylist() == ["0", "1", "2", "3", "4"]
    assert read_table(out, "passages").num_rows == 5
    assert read_table(out, "quarantine").to_pylist() == [
        {"locator": "in.jsonl:4", "code": reason, "detail": detail, "raw": HUGE[:65_536],
         "raw_sha256": hashlib.sha256(HUGE + b"\n").hexdigest()}
    ]  # fmt: skip
    stats = json.loads((out / "stats.json").read_text())["documents"]
    assert (stats["read"], stats["kept"], stats["quarantined"]) == (6, 5, {reason: 1})


def test_where_no_row_may_be_bad_it_stops_the_stage_and_nothing_is_written() -> None:
    write_source(quarantine_max=0.0)
    done = stage("ingest", "notes")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "quarry: ingest.notes (in.jsonl): 1 of 6 documents cannot be used, at most 0.00% may: "
        "oversize 1. The first is in.jsonl:4 (oversize: a line of more than 4194304 bytes). "
        "Repair the source, or raise quarantine_max of this entry in params.yaml."
    )
    assert "Traceback" not in done.stderr
    assert list(Path("data/ingest").iterdir()) == []
