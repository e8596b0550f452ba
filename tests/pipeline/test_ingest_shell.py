"""The shell on a small project in tmp_path: messages, bytes, and what an edit costs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_corpora import write_lines
from rooms import run_room, write_params
from strategies import awkward

from stages.digest import folder_digest
from stages.ingest import SOURCES, dedup
from stages.ingest.__main__ import make
from stages.records import RecordStore
from stages.shell import Task

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = {
    "notes": {
        "source": "jsonl", "path": "in.jsonl", "chunk": {"mode": "cdc", "lo": 5, "hi": 30, "m": 2},
    },
    "typo": {"source": "jsonl", "path": "in.jsonl", "max_char": 5},
    "kind": {"source": "json", "path": "in.jsonl"},
    "nested": {"source": "jsonl", "path": "in.jsonl", "chunk": {"mode": "sentence"}},
    "gone": {"source": "jsonl", "path": "nowhere.jsonl"},
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"ingest": ENTRIES}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARRY_RECORDS", str(tmp_path / "records"))
    write_lines(tmp_path / "in.jsonl", [{"id": str(i), "text": f"Text {i}."} for i in range(9)])
    return tmp_path


def run(entry: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.ingest", entry], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("note", "no entry 'note' under 'ingest'. Did you mean 'notes'?"),
        ("typo", "ingest.typo.max_char: unknown key. Did you mean 'max_chars'?"),
        ("kind", "ingest.kind.source is 'json'. Did you mean 'jsonl'? There are: beir, multihop"),
        ("nested", "ingest.nested.chunk.mode: Input should be 'none', 'words', 'sentences' or"),
        ("gone", "ingest.gone.path: nowhere.jsonl is not there. Name a file or folder"),
    ],
)
def test_a_mistake_in_params_is_one_message_and_nothing_is_written(
    project: Path, entry: str, says: str
) -> None:
    done = run(entry)
    assert done.returncode == 2 and done.stderr.startswith("quarry: "), done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
    assert not list(project.glob("data/ingest/*")), "nothing written"


def test_every_source_is_a_file_with_the_rooms_entry_function() -> None:
    for module in SOURCES.values():
        text = (ROOT / "stages/ingest" / f"{module}.py").read_text(encoding="utf-8")
        assert "\ndef read(path: Path, params: Params, store: RecordStore) -> Source:" in text
        assert "\nclass Params(" in text


def test_a_run_writes_five_tables_and_stats_and_a_second_one_the_same_bytes(project: Path) -> None:
    assert run("notes").returncode == 0
    out = project / "data/ingest/notes"
    assert sorted(p.name for p in out.iterdir()) == [
        "documents.parquet", "passages.parquet", "qrels.parquet", "quarantine.parquet",
        "queries.parquet", "stats.json",
    ]  # fmt: skip
    first = folder_digest(out)
    again = run("notes")
    assert folder_digest(out) == first
    assert "9 documents: 9 reused, 0 computed" in again.stderr
    facts = json.loads((project / ".quarry/timings/ingest/notes.json").read_text())
    assert (facts["records_reused"], facts["records_computed"]) == (9, 0)


EDITS = st.lists(
    st.tuples(st.sampled_from(["add", "edit", "delete", "move"]), st.integers(0, 99), awkward),
    min_size=1, max_size=3,
)  # fmt: skip


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(EDITS)
def test_after_any_edits_the_bytes_are_those_of_a_run_from_scratch_and_only_new_texts_cost(
    project: Path, edits: list[tuple[str, int, str]]
) -> None:
    rows = [
        {"id": f"{i:03d}", "text": f"Document {i} stands here. It has two sentences."}
        for i in range(30)
    ]
    (project / "records/records.sqlite").unlink(missing_ok=True)
    seen: set[str] = set()
    for kind, at, text in [("none", 0, ""), *edits]:
        at = at % len(rows) if rows else 0
        if kind == "add":
            rows.insert(at, {"id": f"n{at}-{len(text)}-{len(rows)}", "text": text})
        elif rows and kind == "edit":
            rows[at] = rows[at] | {"text": rows[at]["text"] + " " + text}
        elif rows and kind in ("delete", "move"):
            row = rows.pop(at)
            rows += [row] if kind == "move" else []
        write_lines(project / "in.jsonl", rows)
        facts = make_in("warm", None)
        assert make_in("cold", project / "scratch") and same_bytes("warm", "cold")
        hashes = set(documents("warm")["content_hash"].to_pylist())
        assert facts["records_computed"] == len(hashes - seen)
        seen |= hashes


def make_in(folder: str, store: Path | None) -> dict[str, float]:
    """Run the entry into ``folder``; with ``store`` from an empty record store."""
    out = Path(folder)
    out.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if store:
            (store / "records.sqlite").unlink(missing_ok=True)
            patch.setenv("QUARRY_RECORDS", str(store))
        return make(Task("ingest", "notes", False), out)


def documents(folder: str):
    from stages.tables import read_table

    return read_table(Path(folder), "documents")


def same_bytes(a: str, b: str) -> bool:
    return folder_digest(Path(a)) == folder_digest(Path(b))


SLOW = """
import time
from stages.ingest import __main__ as shell, corpus, dedup
fast = dedup.band_hashes
def slow(*a, **k):
    time.sleep(0.15)
    return fast(*a, **k)
dedup.band_hashes, corpus.BATCH = slow, 50
shell.run("ingest", "", shell.make)
"""


def test_a_killed_run_leaves_nothing_and_the_next_one_computes_only_the_rest(project: Path) -> None:
    lines = [{"id": str(i), "text": f"Document number {'x' * i} stands here."} for i in range(1000)]
    write_lines(project / "in.jsonl", lines)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, "notes"], env=env, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while kept_records(project) < 100 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = kept_records(project)
    assert 0 < kept < 1000, "the trial counts only if some and not all records were written"
    assert not (project / "data/ingest/notes").exists()
    done = run("notes")
    assert done.returncode == 0, done.stderr
    assert f"1000 documents: {kept} reused, {1000 - kept} computed" in done.stderr
    resumed = folder_digest(project / "data/ingest/notes")
    assert run("notes", QUARRY_RECORDS=str(project / "empty")).returncode == 0
    assert folder_digest(project / "data/ingest/notes") == resumed
    assert not list((project / "data/ingest").glob(".*.tmp"))


def kept_records(project: Path) -> int:
    path = project / "records"
    if not (path / "records.sqlite").exists():
        return 0
    with RecordStore(path) as store:
        return store._db.execute("SELECT COUNT(*) FROM records").fetchone()[0]


def test_another_signature_version_reuses_nothing(project: Path, monkeypatch) -> None:
    assert make_in("a", None)["records_computed"] == 9
    assert make_in("a", None)["records_computed"] == 0
    monkeypatch.setattr(dedup, "VERSION", "other")
    assert make_in("a", None)["records_computed"] == 9


@pytest.mark.parametrize("how", ["rewritten", "replaced", "added to the folder"])
def test_a_source_that_changes_while_it_is_read_is_no_corpus(
    how: str, project: Path, monkeypatch, capsys
) -> None:
    """A reader in the middle of a file would give lines of both; DVC would call it up to date."""
    from stages.ingest import jsonl

    Path("c").mkdir()
    source = Path("c/a.jsonl")
    lines = [f'{{"id": "{i}", "text": "old {i}"}}\n' for i in range(2000)]
    source.write_text("".join(lines))
    write_params(ingest={"mine": {"source": "jsonl", "path": "c"}})
    kept = run_room("ingest", "mine")
    read = jsonl.to_document

    def while_written(row, *args, **values):
        if row["id"] == "1000":
            new = "".join(lines).replace("old", "new")
            if how == "replaced":
                Path("c/.new").write_text(new)
                Path("c/.new").replace(source)
            else:
                (source if how == "rewritten" else Path("c/b.jsonl")).write_text(new)
        return read(row, *args, **values)

    monkeypatch.setattr(jsonl, "to_document", while_written)
    with pytest.raises(SystemExit):
        run_room("ingest", "mine")
    assert "ingest.mine.path: c changed while it was read" in capsys.readouterr().err
    assert folder_digest(Path("data/ingest/mine")) == kept, "what was made before stays"
