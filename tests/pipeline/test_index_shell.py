"""The index room as DVC calls it: bytes, reuse after edits, one message and nothing written."""

import contextlib
import json
import logging
import os
import random
import re
import sqlite3
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest
import yaml
from index_worlds import MOUNTAINS, encoder_dir, encoder_with, passages_of

from stages import shell
from stages.digest import folder_digest
from stages.index import __main__ as room
from stages.index import open_index
from stages.tables import write_table

ROOT = Path(__file__).parents[2]
DENSE = {"corpus": "m", "model": "minilm", "centroids": "none"}
ENTRIES = {
    "bm25-m": {"kind": "bm25", "corpus": "m", "model": "none", "centroids": "none"},
    "splade-m": {"kind": "splade", "corpus": "m", "model": "splade-tiny", "centroids": "none"},
    "flat-m": {"kind": "flat", **DENSE},
    "centroids-m": {"kind": "centroids", **DENSE, "nlist": 3},
    "ivf-m": {"kind": "ivf", **DENSE, "centroids": "centroids-m", "nprobe": 2},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUARRY_RECORDS", raising=False)
    Path("params.yaml").write_text(yaml.safe_dump({"index": ENTRIES}), encoding="utf-8")
    Path("data/finetune").mkdir(parents=True)
    for role in ("dense", "sparse"):
        model = encoder_dir(role)
        Path("data/finetune", model.name).symlink_to(model)
    write_corpus(MOUNTAINS)
    return tmp_path


def write_corpus(texts: dict[str, tuple[str, str]]) -> None:
    folder = Path("data/ingest/m")
    folder.mkdir(parents=True, exist_ok=True)
    write_table(passages_of(texts), folder, "passages")


def build(entry: str, monkeypatch) -> Path:
    """Run the shell in this process; the entry's folder."""
    monkeypatch.setattr(sys, "argv", ["index", entry])
    shell.run("index", "doc", room.make)
    return Path("data/index", entry)


def facts(entry: str) -> dict:
    return json.loads(Path(".quarry/timings/index", f"{entry}.json").read_text(encoding="utf-8"))


def test_every_kind_is_built_and_found_again(project, monkeypatch) -> None:
    for entry, values in ENTRIES.items():
        path = build(entry, monkeypatch)
        assert {"meta.json", "docids.json"} <= {f.name for f in path.iterdir()}
        if values["kind"] != "centroids":
            encoder = Path("data/finetune", values["model"])
            (hits,) = open_index(path, encoder).search(["volcano in Japan"], 1)
            assert hits[0].docid == "fuji#0", entry
    counts = {e: (facts(e)["encoded"], facts(e)["reused"]) for e in ENTRIES if e != "bm25-m"}
    assert counts == {
        "splade-m": (5, 0), "flat-m": (5, 0), "centroids-m": (0, 5), "ivf-m": (0, 5),
    }, "five distinct texts; what flat has encoded, the others reuse"  # fmt: skip


def test_two_processes_write_the_same_bytes(project) -> None:
    digests = []
    for seed in ("1", "2"):  # of Python's hashes: the order of its sets
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-m", "stages.index", "bm25-m"]
        subprocess.run(command, env=env, check=True, capture_output=True)
        digests.append(folder_digest(Path("data/index/bm25-m")))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_after_edits_an_index_is_byte_equal_to_one_from_scratch(seed, project, monkeypatch) -> None:
    rng = random.Random(seed)
    texts = dict(MOUNTAINS)
    entries = ["splade-m", "flat-m", "centroids-m", "ivf-m"]
    for entry in entries:
        build(entry, monkeypatch)
    seen = {"splade-m": set(texts.values()), "flat-m": set(texts.values())}
    for step in range(3):
        kind = rng.choice(["add", "edit", "delete"])
        docid = f"new{step}#0" if kind == "add" else rng.choice(sorted(texts))
        if kind == "delete":
            del texts[docid]
        else:
            texts[docid] = ("Teide", f"Teide is volcano number {rng.randint(0, 2)} of Spain.")
        write_corpus(texts)
        for entry in entries:
            build(entry, monkeypatch)
        for entry, known in seen.items():
            new = set(texts.values()) - known
            assert facts(entry)["encoded"] == len(new), f"{kind}: calls = new text hashes"
            known |= new
    incremental = {e: folder_digest(Path("data/index", e)) for e in entries}
    monkeypatch.setenv("QUARRY_RECORDS", str(project / "empty"))
    scratch = {e: folder_digest(build(e, monkeypatch)) for e in entries}
    assert scratch == incremental


def test_a_killed_build_resumes_and_ends_byte_equal(project, monkeypatch) -> None:
    words = ("etna", "fuji", "rhine", "alps", "volcano", "river", "sea", "japan", "sicily", "climb")
    texts = {f"d{i}#0": ("", " ".join(some)) for i, some in enumerate(permutations(words, 3))}
    write_corpus(texts)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen([sys.executable, "-m", "stages.index", "flat-m"], env=env)
    while not (kept := records_kept()) and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    kept = records_kept()
    assert 0 < kept < len(texts), "killed after some and before all of its records"
    assert not Path("data/index/flat-m").exists()

    resumed = folder_digest(build("flat-m", monkeypatch))
    assert facts("flat-m")["encoded"] == len(texts) - kept
    assert [p.name for p in Path("data/index").iterdir()] == ["flat-m"], "no half output is left"
    monkeypatch.setenv("QUARRY_RECORDS", str(project / "empty"))
    assert folder_digest(build("flat-m", monkeypatch)) == resumed


def records_kept() -> int:
    path = Path(".quarry/records/records.sqlite")
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        try:
            return db.execute("SELECT COUNT(*) FROM records").fetchone()[0]
        except sqlite3.OperationalError:  # not made yet
            return 0


def test_what_was_reused_is_printed(project, monkeypatch, caplog) -> None:
    with caplog.at_level(logging.INFO):
        build("flat-m", monkeypatch)
        build("flat-m", monkeypatch)
    lines = [r.message for r in caplog.records if "reused" in r.message]
    assert lines == ["6 passages: 1 reused, 5 computed", "6 passages: 6 reused, 0 computed"]


@pytest.mark.parametrize(
    ("entry", "changed", "message"),
    [
        ("bm25-m", {"stemmer": "klingon"}, "index.bm25-m.stemmer: .*there are: none, arabic"),
        ("bm25-m", {"stop_words": "none"}, "index.bm25-m.stop_words: unknown.*'stopwords'"),
        ("bm25-m", {"b": 1.5}, "index.bm25-m.b: Input should be less than or equal to 1"),
        ("bm25-m", {"kind": "bm52"}, "index.bm25-m.kind is 'bm52'. Did you mean 'bm25'"),
        ("flat-m", {"model": "none"}, "index.flat-m.model: .*this kind needs one"),
        ("flat-m", {"model": "minilm2"}, "data/finetune/minilm2 is missing. .*finetune@minilm2"),
        ("flat-m", {"model": "splade-tiny"}, "is a sparse model, a dense model is needed"),
        ("flat-m", {"corpus": "n"}, "input data/ingest/n is missing. .*dvc repro ingest@n"),
        ("ivf-m", {}, "input data/index/centroids-m is missing. .*dvc repro index@centroids-m"),
        ("ivf-m", {"nprobe": 0}, "index.ivf-m.nprobe: Input should be greater"),
    ],
)  # fmt: skip
def test_bad_values_are_one_message_and_nothing_written(
    entry, changed, message, project, monkeypatch, capsys
) -> None:
    values = {"index": {entry: {**ENTRIES[entry], **changed}}}
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    refused(entry, message, monkeypatch, capsys)


def test_a_damaged_model_writes_no_index_and_no_records(project, monkeypatch, capsys) -> None:
    encoder_with("dense", project / "broken", {})
    (project / "broken/tokenizer.json").unlink()
    Path("data/finetune/minilm").unlink()
    Path("data/finetune/minilm").symlink_to(project / "broken")
    refused("flat-m", r"data/finetune/minilm: .*without tokenizer\.json", monkeypatch, capsys)


def refused(entry: str, message: str, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        build(entry, monkeypatch)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("quarry: ") for line in said)
    assert re.search(message, "\n".join(said)), said
    assert not Path("data/index").exists() or not any(Path("data/index").iterdir())
