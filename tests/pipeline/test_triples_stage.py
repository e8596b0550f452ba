"""The triples room as a stage: what it writes, what it reuses, what it refuses."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rooms import files, run_room, write_params
from strategies import write_corpus

from stages.tables import read_table

ENTRY = {"extractor": "parse", "corpus": "small", "model": "none"}
CORPUS = Path("data/ingest/small")
OUT = Path("data/triples/facts")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARRY_RECORDS", str(tmp_path / "store"))
    write_params(triples={"facts": ENTRY})


def corpus(*texts: str) -> None:
    write_corpus(CORPUS, *texts)


def written() -> list[str]:
    """All files but the record store's."""
    return [f for f in files() if not f.startswith("store/")]


def refused(capsys, entry: str = "facts") -> str:
    """The message of a run that must fail, having written nothing."""
    before = written()
    with pytest.raises(SystemExit) as e:
        run_room("triples", entry)
    assert e.value.code == 2
    assert written() == before
    return capsys.readouterr().err


def test_facts_are_written_with_their_counts(capsys) -> None:
    corpus("Paris is in France.", "It rained.", "Rome has two airports.")
    run_room("triples", "facts")
    rows = read_table(OUT, "triples").to_pylist()
    assert [(r["docid"], r["seq"], r["subj"], r["rel"], r["obj"]) for r in rows] == [
        ("d0#0", 0, "Paris", "is in", "France"),
        ("d2#0", 0, "Rome", "has", "two airports"),
    ]
    assert json.loads((OUT / "stats.json").read_text()) == {
        "passages": 3, "passages_without_triples": 1, "triples": 2, "rejected": {}
    }  # fmt: skip
    assert files(OUT) == ["stats.json", "triples.parquet"]


@pytest.mark.parametrize("texts", [(), ("",), ("Paris is in France.",)])
def test_an_empty_corpus_and_one_document_are_ordinary(texts) -> None:
    corpus(*texts)
    run_room("triples", "facts")
    stats = json.loads((OUT / "stats.json").read_text())
    assert stats["passages"] == len(texts)
    assert read_table(OUT, "triples").num_rows == stats["triples"] == int("".join(texts) != "")


def test_the_store_changes_what_is_computed_and_never_what_comes_out(monkeypatch) -> None:
    corpus("Paris is in France.")
    run_room("triples", "facts")
    corpus("Paris is in France.", "Rome has two airports.")
    kept = run_room("triples", "facts")
    facts = json.loads(Path(".quarry/timings/triples/facts.json").read_text())
    assert (facts["reused"], facts["computed"]) == (1, 1)
    monkeypatch.setenv("QUARRY_RECORDS", "empty")
    assert run_room("triples", "facts") == kept


def test_a_limit_reads_the_same_passages_for_every_extractor() -> None:
    corpus(*(f"City{i} is in Region{i}." for i in range(9)))
    write_params(triples={"facts": {**ENTRY, "limit": 2}})
    run_room("triples", "facts")
    assert json.loads((OUT / "stats.json").read_text())["passages"] == 2


def test_a_missing_corpus_is_refused(capsys) -> None:
    assert refused(capsys) == (
        "quarry: triples.facts: input data/ingest/small is missing. "
        "Make it with: dvc repro ingest@small\n"
    )


def test_a_passages_file_with_another_schema_is_refused(capsys) -> None:
    CORPUS.mkdir(parents=True)
    pq.write_table(pa.table({"id": [1], "text": ["x"]}), CORPUS / "passages.parquet")
    assert refused(capsys) == (
        "quarry: data/ingest/small/passages.parquet: table passages has no column 'docid' "
        "(string); columns there: id, text. Rebuild it with the stage that writes it.\n"
    )


def test_an_unknown_entry_is_refused(capsys) -> None:
    assert refused(capsys, "fact") == (
        "quarry: params.yaml: no entry 'fact' under 'triples'. Did you mean 'facts'? "
        "There are: facts.\n"
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"limits": 3}, "triples.facts.limits: unknown key. Did you mean 'limit'?"),
        ({"limit": "3"}, "triples.facts.limit: Input should be a valid integer, got '3'"),
        ({"corpus": "none"}, "triples.facts.corpus: Value error, name an entry here, got 'none'"),
        ({"model": "smollm2"}, "triples.facts.model: Input should be 'none', got 'smollm2'"),
        ({"extractor": "pase"}, "triples.facts.extractor is 'pase'. Did you mean 'parse'?"),
    ],
)
def test_wrong_values_are_refused(changed, message: str, capsys) -> None:
    corpus("Paris is in France.")
    write_params(triples={"facts": {**ENTRY, **changed}})
    assert message in refused(capsys)


def test_an_extractor_without_its_model_is_refused(capsys) -> None:
    corpus("Paris is in France.")
    entry = {"extractor": "llm", "corpus": "small", "model": "none"}
    write_params(triples={"facts": entry})
    assert "triples.facts.model: Value error, name an entry here, got 'none'." in refused(capsys)
    write_params(triples={"facts": {**entry, "model": "gone"}})
    assert "triples.facts: input data/finetune/gone is missing." in refused(capsys)


def test_a_model_without_tokenizer_is_refused(capsys) -> None:
    corpus("Paris is in France.")
    folder = Path("data/finetune/lm")
    folder.mkdir(parents=True)
    (folder / "training.json").write_text('{"role": "generator", "fingerprint": "f"}')
    (folder / "model.safetensors").write_bytes(b"")
    write_params(triples={"facts": {"extractor": "llm", "corpus": "small", "model": "lm"}})
    assert refused(capsys) == (
        "quarry: data/finetune/lm: model directory without tokenizer.json. Rebuild it: dvc repro.\n"
    )
