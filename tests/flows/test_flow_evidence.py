"""What is read from two checkouts: drift, with vectors of a small encoder; what stayed the same."""

import json
from pathlib import Path

import pytest
import yaml
from encoders import tiny_bert

from flows.drift import DriftPolicy
from flows.evidence import find_same, pick_texts, read_drifts, read_evidence
from flows.gate import GatePolicy, Primary
from stages.digest import digest
from stages.encoder import DenseEncoder, embed, open_encoder
from stages.errors import QuarryError
from stages.records import RecordStore
from stages.tables import table, write_table


def write_corpus(checkout: Path, texts: dict[str, str]) -> None:
    folder = checkout / "data/ingest/notes"
    folder.mkdir(parents=True, exist_ok=True)
    documents = [
        {"docid": d, "title": "", "text": t, "content_hash": digest("doc", "1", "", t),
         "dup_of": "", "locator": "", "meta": ""}
        for d, t in texts.items()
    ]  # fmt: skip
    passages = [
        {"docid": f"{d}#0", "parent": d, "seq": 0, "title": "", "text": t, "start": 0,
         "end": len(t), "text_hash": digest("", t)}
        for d, t in texts.items()
    ]  # fmt: skip
    write_table(table("documents", documents), folder, "documents")
    write_table(table("passages", passages), folder, "passages")


@pytest.fixture
def checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setenv("QUARRY_RECORDS", str(tmp_path / "records"))
    return tmp_path / "promoted", tmp_path / "candidate"


OLD = {f"d{i:02}": f"the cat and the dog {i}" for i in range(12)}
POLICY = DriftPolicy(permutations=200)


def test_a_corpus_that_did_not_change_has_no_drift(checkouts) -> None:
    for checkout in checkouts:
        write_corpus(checkout, OLD)
    assert read_drifts(*checkouts, ["notes", "not made"], POLICY, {}, {}) == {}


def test_arrivals_are_tested_against_what_stayed_with_the_promoted_encoder(checkouts) -> None:
    promoted, candidate = checkouts
    tiny_bert(promoted / "data/finetune/tiny")
    write_corpus(promoted, OLD)
    other = {f"n{i}": f"{i} " * (9 + i) for i in range(8)}
    write_corpus(candidate, {**OLD, **other})
    drift = read_drifts(*checkouts, ["notes"], POLICY, {"notes": "tiny"}, {})["notes"]
    assert (len(drift.changes.new), drift.changes.before) == (8, 12)
    assert drift.vocabulary.divergence > 0.2
    assert drift.embedding.p == 1 / 201

    alike = {f"n{i}": OLD[f"d{i + 2:02}"] for i in range(8)}  # copies of what was there
    write_corpus(candidate, {**OLD, **alike})
    drift = read_drifts(*checkouts, ["notes"], POLICY, {"notes": "tiny"}, {})["notes"]
    assert drift.embedding.p > 0.01

    write_corpus(candidate, {**OLD, "n0": "few"})
    assert (
        read_drifts(*checkouts, ["notes"], POLICY, {"notes": "tiny"}, {})["notes"].embedding is None
    )


def test_vectors_of_an_index_are_not_made_again(checkouts, monkeypatch) -> None:
    """Read as the index reads, what was there is in the record store; what arrived is kept."""
    promoted, candidate = checkouts
    tiny_bert(promoted / "data/finetune/tiny")
    write_corpus(promoted, OLD)
    write_corpus(candidate, {**OLD, **{f"n{i}": f"something else {i}" for i in range(8)}})
    with RecordStore() as store:
        as_index = open_encoder(promoted / "data/finetune/tiny", max_tokens=48, threads=2)
        embed(as_index, list(OLD), list(OLD.values()), store)
    encode, read = DenseEncoder.encode, []
    monkeypatch.setattr(
        DenseEncoder,
        "encode",
        lambda self, texts, role: read.extend(texts) or encode(self, texts, role),
    )
    index = {"corpus": "notes", "model": "tiny", "max_tokens": 48, "threads": 2}
    given = (*checkouts, ["notes"], POLICY, {"notes": "tiny"})
    indexes = {"other": {**index, "corpus": "x"}, "flat": index}
    assert read_drifts(*given, indexes)["notes"].embedding
    assert sorted(read) == [f"something else {i}" for i in range(8)]
    read.clear()
    assert read_drifts(*given, indexes)["notes"].embedding and not read
    assert read_drifts(*given, {})["notes"].embedding and len(read) == 20


def test_a_corpus_that_is_new_counts_as_wholly_changed(checkouts) -> None:
    write_corpus(checkouts[1], OLD)
    drift = read_drifts(*checkouts, ["notes"], POLICY, {"notes": "tiny"}, {})["notes"]
    assert (drift.changes.before, drift.changes.share, drift.embedding) == (0, 1.0, None)


def test_stages_are_the_same_when_their_lock_entries_are(checkouts) -> None:
    def write(checkout: Path, **hashes: str) -> None:
        stages = {name.replace("_", "@"): {"outs": [{"md5": h}]} for name, h in hashes.items()}
        checkout.mkdir(exist_ok=True)
        (checkout / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))

    write(checkouts[0], evaluate_a="1", serve_x="1", evaluate_b="1", serve_y="1")
    write(checkouts[1], evaluate_a="1", serve_x="1", evaluate_b="1", serve_y="2", evaluate_c="1")
    wanted = {
        "a": ["evaluate@a", "serve@x"], "b": ["evaluate@b", "serve@y"], "c": ["evaluate@c"],
    }  # fmt: skip
    assert find_same(*checkouts, wanted) == {"a"}, "b's answers are equal, its serving is not"


def test_evidence_is_of_the_evaluations_that_the_gate_names_and_that_were_made(checkouts) -> None:
    folder = checkouts[0]
    made = folder / "data/evaluate/e"
    made.mkdir(parents=True)
    row = {"system": "s", "measure": "nDCG@10", "qid": "q1", "value": 0.5}
    write_table(table("per_query", [row]), made, "per_query")
    (made / "metrics.json").write_text(json.dumps({"s": {"nDCG@10": 0.5, "n": 1}}))
    corpus = folder / "data/ingest/notes"
    corpus.mkdir(parents=True)
    fixed = {"answers": [], "options": [], "meta": ""}
    rows = [
        {"qid": f"q{i}", "text": f"text {i}", "split": "test" if i else "train", **fixed}
        for i in range(5)
    ]
    write_table(table("queries", rows), corpus, "queries")
    entries = {name: {"corpus": "notes", "split": "test"} for name in ("e", "later")}
    policy = GatePolicy(primary={"e": Primary(system="s"), "later": Primary(system="s")})
    found = read_evidence(folder, policy, entries)
    assert list(found) == ["e"] and found["e"].metrics["s"]["nDCG@10"] == 0.5
    with pytest.raises(QuarryError, match="retrain.gate.primary.e: no such entry of evaluate"):
        read_evidence(folder, policy, {"other": {}})

    texts = pick_texts(folder, entries["e"], 3)
    assert len(texts) == 3 and "text 0" not in texts
    assert texts == pick_texts(folder, entries["e"], 4)[:3]
