"""A rerun computes what changed, and its outputs are those of a run that knew nothing.

Random documents are added, changed, deleted and moved in a JSON-lines source. After each edit
ingest, triples and the indexes run twice: with the record store kept from before, and with an
empty one. All outputs must be equal byte for byte; the parser and the encoder must have read
the texts that were never there before, each once, and no other.
"""

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from encoders import tiny_bert
from hypothesis import given, settings
from hypothesis import strategies as st
from rooms import run_room, write_params

from stages.tables import read_table
from stages.triples import parse

SENTENCES = [
    "Paris is the capital of France.",
    "The batting hand of Pat Burrell is Right.",
    "Marie Curie, the physicist, was born in Warsaw.",
    "It rained.",
    "Rome has two airports and one river.",
    "東京は日本の首都です。",
]
# Near-duplicates are dropped, and passages are cut by content, so that an edit of one document
# reaches others: a deleted representative brings another one back.
CHUNK = {"mode": "cdc", "lo": 4, "hi": 12, "m": 2}
INDEXES = ["words", "vectors"]

Documents = dict[str, tuple[str, str]]


class CountingParser:
    """The real parser, loaded once for all runs, and how many texts it was given."""

    def __init__(self) -> None:
        self.parsed = 0
        self.load = functools.cache(parse.load_parser)

    def __call__(self, folder: Path) -> "CountingParser":
        self.nlp = self.load(folder)
        return self

    def pipe(self, texts: Iterator[str]):
        texts = list(texts)
        self.parsed += len(texts)
        return self.nlp.pipe(texts)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def parser() -> Iterator[CountingParser]:
    counting = CountingParser()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse, "load_parser", counting)
        yield counting


class Project:
    """A corpus and the rooms that follow it, in the current folder."""

    def __init__(self, encoder: Path, parser: CountingParser) -> None:
        self.parser = parser
        Path("data/finetune").mkdir(parents=True)
        Path("data/finetune/tiny").symlink_to(encoder)
        entry = {"corpus": "c", "centroids": "none"}
        write_params(
            ingest={"c": {"source": "jsonl", "path": "c.jsonl", "chunk": CHUNK,
                          "dedup": {"mode": "drop"}}},
            triples={"facts": {"extractor": "parse", "corpus": "c", "model": "none"}},
            index={"words": {**entry, "kind": "bm25", "model": "none"},
                   "vectors": {**entry, "kind": "flat", "model": "tiny", "max_tokens": 64}},
        )  # fmt: skip

    def write(self, documents: Documents) -> None:
        rows = [{"id": i, "title": t, "text": x} for i, (t, x) in documents.items()]
        Path("c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def run(self, store: str) -> tuple[list[str], dict[str, int]]:
        """Digests of all outputs, and how many texts each model read."""
        os.environ["QUARRY_RECORDS"] = store
        before = self.parser.parsed
        digests = [run_room("ingest", "c"), run_room("triples", "facts")]
        digests += [run_room("index", kind) for kind in INDEXES]
        timing = json.loads(Path(".quarry/timings/index/vectors.json").read_text())
        return digests, {"parsed": self.parser.parsed - before, "encoded": timing["encoded"]}

    def texts(self) -> set[str]:
        return set(read_table(Path("data/ingest/c"), "passages")["text_hash"].to_pylist())


@contextlib.contextmanager
def project(encoder: Path, parser: CountingParser) -> Iterator[Project]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("QUARRY_RECORDS", "kept")
        yield Project(encoder, parser)


docid = st.sampled_from("abcdef")
text = st.lists(st.sampled_from(SENTENCES), max_size=5).map(" ".join)
document = st.tuples(st.sampled_from(["", "Paris", "Pat Burrell"]), text)
edit = st.one_of(
    st.tuples(st.just("put"), docid, document),  # adds, or changes
    st.tuples(st.just("delete"), docid, st.none()),
    st.tuples(st.just("move to the front"), docid, st.none()),
)


def edited(documents: Documents, what: str, docid: str, new: tuple[str, str] | None) -> Documents:
    if what == "put":
        return {**documents, docid: new}
    rest = {i: d for i, d in documents.items() if i != docid}
    if what == "delete" or docid not in documents:
        return rest
    return {docid: documents[docid], **rest}


@settings(max_examples=6, deadline=None)
@given(
    documents=st.dictionaries(docid, document, max_size=5),
    edits=st.lists(edit, min_size=1, max_size=4),
)
def test_a_kept_store_and_an_empty_one_give_equal_bytes(encoder, parser, documents, edits) -> None:
    with project(encoder, parser) as p:
        seen: set[str] = set()
        for step, change in enumerate([None, *edits]):
            documents = edited(documents, *change) if change else documents
            p.write(documents)
            kept, read = p.run("kept")
            new, seen = p.texts() - seen, seen | p.texts()
            assert read == {"parsed": len(new), "encoded": len(new)}
            scratch, read = p.run(f"empty-{step}")
            assert read == {"parsed": len(p.texts()), "encoded": len(p.texts())}
            assert kept == scratch


def test_one_new_document_is_one_new_row_everywhere(encoder, parser) -> None:
    names = [a + b for a in "BDFGHKLM" for b in ("arla", "enno", "ilvi", "osta", "ummo")]
    documents = {n: (n, f"{n} lies on the {n[::-1]} and its mayor is {n * 2}.") for n in names}
    with project(encoder, parser) as p:
        p.write(documents)
        p.run("kept")
        p.write({**documents, "new": ("Oslo", "Oslo is the capital of Norway.")})
        kept, read = p.run("kept")
        assert read == {"parsed": 1, "encoded": 1}
        assert p.run("empty") == (kept, {"parsed": 40 + 1, "encoded": 40 + 1})
        p.write(documents)
        assert p.run("kept")[1] == {"parsed": 0, "encoded": 0}


def test_the_check_sees_a_store_that_answers_for_another_record(encoder, parser) -> None:
    """The property is able to fail: swap two kept records and the bytes differ."""
    documents = {i: ("", f"{s} {s}") for i, s in zip("abc", SENTENCES, strict=False)}
    with project(encoder, parser) as p, pytest.MonkeyPatch.context() as patch:
        p.write(documents)
        p.run("kept")

        def backwards(self, keys, records, fn, **how):
            return compute(self, keys[::-1], list(records)[::-1], fn, **how)

        compute = parse.RecordStore.compute
        patch.setattr(parse.RecordStore, "compute", backwards)
        wrong, _ = p.run("kept")
        patch.undo()
        assert wrong != p.run("empty")[0]
