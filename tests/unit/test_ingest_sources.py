"""What each source makes of small files: ids, splits, judgements, lineage."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingest_corpora import column, ingest, rows, write_lines

from stages.errors import QuarryError
from stages.tables import table


def beir(folder: Path) -> Path:
    """Three documents, two judged queries and one that is not, in two splits."""
    write_lines(folder / "corpus.jsonl", [
        {"_id": "01", "title": "Alpha", "text": "first text"},
        {"_id": "1", "title": "Only a title", "text": "", "metadata": {"url": "u"}},
        {"_id": "x", "text": "no title at all"},
    ])  # fmt: skip
    write_lines(folder / "queries.jsonl", [
        {"_id": "q1", "text": "first?"}, {"_id": "q2", "text": "second?"},
        {"_id": "q3", "text": "third?"},
    ])  # fmt: skip
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t01\t2\nq1\tx\t0\n")
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq2\t1\t1\nq1\tx\t0\n")
    return folder


def test_beir_round_trip_keeps_ids_titles_texts_and_grades(tmp_path: Path) -> None:
    corpus = ingest("beir", beir(tmp_path / "b"), tmp_path / "r")
    documents = [(r["docid"], r["title"], r["text"]) for r in rows(corpus, "documents")]
    assert documents == [
        ("01", "Alpha", "first text"), ("1", "Only a title", ""), ("x", "", "no title at all"),
    ]  # fmt: skip
    assert column(corpus, "documents", "meta")[1] == '{"metadata":{"url":"u"}}'
    assert {(r["qid"], r["split"]) for r in rows(corpus, "queries")} == {
        ("q1", "test"), ("q2", "train"), ("q3", "unjudged"),
    }  # fmt: skip
    qrels = {(r["qid"], r["docid"]): r["rel"] for r in rows(corpus, "qrels")}
    assert qrels == {("q1", "01"): 2, ("q1", "x"): 0, ("q2", "1"): 1}
    assert corpus.stats["judgements"]["repeated"] == 1


def test_queries_and_judgements_may_be_missing(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b")
    shutil.rmtree(folder / "qrels")
    corpus = ingest("beir", folder, tmp_path / "r")
    assert set(column(corpus, "queries", "split")) == {"test"}
    assert corpus.tables["qrels"].num_rows == 0
    (folder / "queries.jsonl").unlink()
    assert ingest("beir", folder, tmp_path / "r").tables["queries"].num_rows == 0


def test_judgements_without_their_queries_are_not_read(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b")
    (folder / "queries.jsonl").unlink()
    stats = ingest("beir", folder, tmp_path / "r").stats["judgements"]
    assert stats == {"read": 0, "kept": 0, "repeated": 0, "quarantined": {}}


def test_a_judgement_of_nothing_is_dangling_and_a_bad_grade_no_judgement(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b")
    with (folder / "qrels/test.tsv").open("a") as f:
        f.write("q1\tgone\t1\nnobody\tx\t1\nq2\tx\tgood\nq2\tx\n")
    corpus = ingest("beir", folder, tmp_path / "r")
    found = {(r["locator"], r["code"]): r["detail"] for r in rows(corpus, "quarantine")}
    assert found == {
        ("qrels/test.tsv:4", "qrel_dangling"): "document 'gone' is not among those kept",
        ("qrels/test.tsv:5", "qrel_dangling"): "query 'nobody' is not among those kept",
        ("qrels/test.tsv:6", "schema"): "grade 'good' is not a whole number",
        ("qrels/test.tsv:7", "schema"): "expected 3 columns separated by tabs, got 2",
    }


def test_judgements_in_trec_columns_or_without_a_header_are_read(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b")
    (folder / "qrels/test.tsv").write_text("q1 0 01 1\nq2 0 x 3\n")
    corpus = ingest("beir", folder, tmp_path / "r")
    assert {(r["qid"], r["docid"], r["rel"]) for r in rows(corpus, "qrels")} >= {
        ("q1", "01", 1), ("q2", "x", 3),
    }  # fmt: skip


@pytest.mark.parametrize("line", ["q1 0 d1 1", "q1\t0\td1\t1", "q1 d1 1", " q1\td1 \t1.0\r"])
def test_a_query_has_the_split_of_the_file_whose_line_judges_it_in_any_columns(
    tmp_path: Path, line: str
) -> None:
    write_lines(tmp_path / "corpus.jsonl", [{"_id": "d1", "text": "x"}])
    write_lines(
        tmp_path / "queries.jsonl", [{"_id": "q1", "text": "a"}, {"_id": "q2", "text": "b"}]
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/dev.tsv").write_text(line + "\n")
    corpus = ingest("beir", tmp_path, tmp_path / "r")
    assert rows(corpus, "qrels") == [{"qid": "q1", "docid": "d1", "rel": 1}]
    assert column(corpus, "queries", "split") == ["dev", "unjudged"]


def test_a_file_of_judgements_that_is_only_a_header_judges_nothing(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b")
    for name in ("test", "train"):
        (folder / f"qrels/{name}.tsv").write_text("query-id\tcorpus-id\tscore\n")
    corpus = ingest("beir", folder, tmp_path / "r")
    assert set(column(corpus, "queries", "split")) == {"test"}
    assert corpus.stats["judgements"]["read"] == 0


def test_grades_are_whole_numbers_and_a_first_line_with_a_number_is_no_header(
    tmp_path: Path,
) -> None:
    folder = beir(tmp_path / "b")
    shutil.rmtree(folder / "qrels")
    (folder / "qrels").mkdir()
    (folder / "qrels/dev.tsv").write_text("q1\t01\t1.0\nq1\t1\t2e0\nq1\tx\t-1\n")
    (folder / "qrels/test.tsv").write_text(
        "q2\t01\t0.5\nq2\t1\tnan\nq2\tx\t1e300\nq2\tx\tinf\nq2\t1\t1\n"
    )
    corpus = ingest("beir", folder, tmp_path / "r")
    assert {(r["qid"], r["docid"]): r["rel"] for r in rows(corpus, "qrels")} == {
        ("q1", "01"): 1, ("q1", "1"): 2, ("q1", "x"): -1, ("q2", "1"): 1,
    }  # fmt: skip
    assert {r["locator"]: r["detail"] for r in rows(corpus, "quarantine")} == {
        "qrels/test.tsv:1": "grade '0.5' is not a whole number",
        "qrels/test.tsv:2": "grade 'nan' is not a whole number",
        "qrels/test.tsv:3": "grade '1e300' has more than 32 bits",
        "qrels/test.tsv:4": "grade 'inf' is not a whole number",
    }


def test_beir_keeps_an_empty_document_and_other_sources_set_it_aside(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b/corpus.jsonl", [{"_id": "a", "title": "", "text": ""}])
    assert column(ingest("beir", path.parent, tmp_path / "r"), "passages", "docid") == ["a#0"]
    corpus = ingest("beir", path.parent, tmp_path / "r", keep_empty=False)
    assert column(corpus, "quarantine", "code") == ["empty_text"]


def test_a_folder_without_corpus_is_an_error_that_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(QuarryError, match=r"expected a folder in BEIR layout with corpus\.jsonl"):
        ingest("beir", tmp_path, tmp_path / "r")


TWINS = [
    {"_id": "long", "text": " ".join(f"word{chr(97 + i)}" for i in range(26)) + " and more"},
    {"_id": "short", "text": " ".join(f"Word{chr(97 + i)}" for i in range(26))},
    {"_id": "other", "text": "Something else altogether stands here."},
]


def judged_twins(folder: Path) -> Path:
    write_lines(folder / "corpus.jsonl", TWINS)
    write_lines(folder / "queries.jsonl", [{"_id": "q", "text": "word?"}])
    (folder / "qrels").mkdir()
    (folder / "qrels/test.tsv").write_text("q\tshort\t2\nq\tlong\t1\n")
    return folder


def test_marked_duplicates_stay_and_dropped_ones_lend_their_judgements(tmp_path: Path) -> None:
    """22 shingles of the short one are among the 24 of the long one."""
    folder = judged_twins(tmp_path / "b")
    marked = ingest("beir", folder, tmp_path / "r")
    assert column(marked, "documents", "dup_of") == ["", "long", ""]
    assert marked.tables["passages"].num_rows == 3 and marked.tables["qrels"].num_rows == 2
    dropped = ingest("beir", folder, tmp_path / "r", dedup={"mode": "drop"})
    assert column(dropped, "documents", "dup_of") == ["", "long", ""]
    assert column(dropped, "passages", "parent") == ["long", "other"]
    assert rows(dropped, "qrels") == [{"qid": "q", "docid": "long", "rel": 2}]
    off = ingest("beir", folder, tmp_path / "r", dedup={"mode": "off"})
    assert column(off, "documents", "dup_of") == ["", "", ""]
    assert marked.stats["documents"]["duplicates"] == 1


def test_multihop_pools_passages_once_and_judges_the_supporting_ones(tmp_path: Path) -> None:
    a = {"title": "A", "text": "about a", "is_supporting": True}
    b = {"title": "B", "text": "about  b", "is_supporting": False}
    write_lines(tmp_path / "m/dev2.jsonl", [
        {"id": "1", "question": "a?", "answers": ["yes"], "passages": [a, b], "hops": 2},
        {"id": "2", "question": "b?", "answers": [], "options": {"B": "two", "A": "one"},
         "passages": [{**b, "text": "about b", "is_supporting": True}]},
        b"{",
    ])  # fmt: skip
    write_lines(tmp_path / "m/train.jsonl", [{"id": 3, "question": "c?", "passages": []}])
    corpus = ingest("multihop", tmp_path / "m", tmp_path / "r")
    docs = {r["title"]: r["docid"] for r in rows(corpus, "documents")}
    assert sorted(docs) == ["A", "B"] and corpus.stats["documents"]["repeated"] == 1
    assert {(r["qid"], r["docid"]) for r in rows(corpus, "qrels")} == {
        ("1", docs["A"]),
        ("2", docs["B"]),
    }
    queries = {r["qid"]: r for r in rows(corpus, "queries")}
    assert [queries[q]["split"] for q in "123"] == ["dev", "dev", "train"]
    assert queries["2"]["options"] == ["one", "two"] and queries["1"]["meta"] == '{"hops":2}'
    assert corpus.stats["queries"]["quarantined"] == {"json": 1}


def test_a_question_set_aside_brings_neither_passages_nor_judgements(tmp_path: Path) -> None:
    def line(qid: str, question: str, *titles: str) -> dict:
        passages = [{"title": t, "text": f"about {t}", "is_supporting": True} for t in titles]
        return {"id": qid, "question": question, "answers": ["x"], "passages": passages}

    path = write_lines(tmp_path / "test.jsonl", [
        line("1", "a?", "A"), line("1", "another?", "B"), line("2", " \n", "C"),
        line("3", "c?", "A", "D"), line("1", "a?", "E"),
    ])  # fmt: skip
    corpus = ingest("multihop", path, tmp_path / "r")
    docs = {r["docid"]: r["title"] for r in rows(corpus, "documents")}
    assert sorted(docs.values()) == ["A", "D", "E"]
    assert {(r["qid"], docs[r["docid"]]) for r in rows(corpus, "qrels")} == {
        ("1", "A"), ("1", "E"), ("3", "A"), ("3", "D"),  # the same question again says more of it
    }  # fmt: skip
    assert {r["locator"]: (r["code"], r["detail"]) for r in rows(corpus, "quarantine")} == {
        "test.jsonl:2": ("id_conflict", "'1' was read before with other content"),
        "test.jsonl:3": ("empty_text", "a query without text"),
    }
    assert corpus.stats["queries"]["repeated"] == 1


def test_multihop_questions_that_ask_whether_have_options_unless_theirs_are_given(
    tmp_path: Path,
) -> None:
    path = write_lines(tmp_path / "test.jsonl", [
        {"id": "1", "question": "Are Ann and Bo both kings?", "answers": ["Ann"]},
        {"id": "2", "question": "Is it so?", "options": ["A", "B"]},
        {"id": "3", "question": "Who is a king?", "answers": ["yes"]},
    ])  # fmt: skip
    corpus = ingest("multihop", path, tmp_path / "r")
    assert column(corpus, "queries", "options") == [["yes", "no"], ["A", "B"], []]


def test_jsonl_maps_fields_and_keeps_the_rest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"key": "k", "head": "H", "body": "B", "year": 1999}])
    corpus = ingest("jsonl", path, tmp_path / "r", id="key", title="head", text="body")
    [row] = rows(corpus, "documents")
    assert (row["docid"], row["title"], row["text"], row["meta"]) == (
        "k",
        "H",
        "B",
        '{"year":1999}',
    )


def test_records_without_ids_keep_theirs_when_a_line_is_inserted_above(tmp_path: Path) -> None:
    old = write_lines(tmp_path / "old.jsonl", [{"text": "one"}, {"text": "two"}])
    new = write_lines(tmp_path / "new.jsonl", [{"text": "zero"}, {"text": "one"}, {"text": "two"}])
    before = set(column(ingest("jsonl", old, tmp_path / "r", id=None), "documents", "docid"))
    after = set(column(ingest("jsonl", new, tmp_path / "r", id=None), "documents", "docid"))
    assert before < after and len(after) == 3


def test_a_folder_of_records_has_queries_and_judgements_beside_them(tmp_path: Path) -> None:
    folder = beir(tmp_path / "f")
    (folder / "corpus.jsonl").rename(folder / "b.jsonl")
    write_lines(folder / "a.jsonl", [{"_id": "y", "text": "y"}])
    corpus = ingest("jsonl", folder, tmp_path / "r", id="_id")
    assert column(corpus, "documents", "docid") == ["y", "01", "1", "x"]
    assert corpus.tables["queries"].num_rows == 3 and corpus.tables["qrels"].num_rows == 3


def test_parquet_gives_what_jsonl_gives(tmp_path: Path) -> None:
    records = [
        {"id": "a", "title": None, "text": "x", "n": 1},
        {"id": "b", "title": "T", "text": "y"},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet", row_group_size=1)
    write_lines(
        tmp_path / "c.jsonl", [{k: v for k, v in r.items() if v is not None} for r in records]
    )
    tables = [
        ingest(kind, tmp_path / f"c.{kind}", tmp_path / "r").tables["documents"].drop("locator")
        for kind in ("parquet", "jsonl")
    ]
    assert tables[0].equals(tables[1])


def test_parquet_rows_without_text_are_set_aside_by_their_number(tmp_path: Path) -> None:
    t = pa.table({"id": pa.array(["a", "b", None]).dictionary_encode(), "text": ["x", None, "z"]})
    pq.write_table(t, tmp_path / "c.parquet")
    corpus = ingest("parquet", tmp_path / "c.parquet", tmp_path / "r")
    assert column(corpus, "quarantine", "locator") == ["c.parquet:2", "c.parquet:3"]


def test_passages_carry_their_address_their_place_and_a_hash(tmp_path: Path) -> None:
    text = "One two three. Four five six. Seven eight nine."
    path = write_lines(tmp_path / "c.jsonl", [{"id": "d#1", "title": "T", "text": text}])
    chunk = {"mode": "sentences", "words": 6, "overlap": 3}
    corpus = ingest("jsonl", path, tmp_path / "r", chunk=chunk)
    found = rows(corpus, "passages")
    assert [(p["docid"], p["seq"], p["text"]) for p in found] == [
        ("d#1#0", 0, "One two three. Four five six."),
        ("d#1#1", 1, "Four five six. Seven eight nine."),
    ]
    assert all(text[p["start"] : p["end"]] == p["text"] and p["title"] == "T" for p in found)
    assert len({p["text_hash"] for p in found}) == 2
    for kind, t in corpus.tables.items():
        assert t.schema.equals(table(kind, []).schema)


def test_overlap_is_the_share_of_a_questions_words_in_its_relevant_documents(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "b"
    write_lines(folder / "corpus.jsonl", [{"_id": "d", "title": "The river", "text": "is long"}])
    write_lines(folder / "queries.jsonl", [
        {"_id": "q", "text": "How long is the river?"}, {"_id": "p", "text": "Deep?"},
    ])  # fmt: skip
    (folder / "qrels").mkdir()
    (folder / "qrels/test.tsv").write_text("q\td\t1\np\td\t1\n")
    stats = ingest("beir", folder, tmp_path / "r").stats
    assert stats["question_passage_overlap"] == (4 / 5 + 0 / 1) / 2
    assert stats["contamination"] is None, "there is no training split"
    assert json.dumps(stats, allow_nan=False)


def test_test_questions_that_training_has_seen_are_counted_and_stay(tmp_path: Path) -> None:
    rest = "which is long enough that nobody writes it twice by chance at all"  # 13 words
    documents = {"a": f"One text {rest}", "b": f"Other words, {rest}!", "c": rest[6:], "d": "x"}
    questions = {
        "train": {"t1": "Of a?", "t2": "The same question"},
        "test": {
            "b": "shares 13 words with what t1 is about", "c": "shares 12 of them",
            "d": "the SAME question.", "e": "has no judgement",
        },
    }  # fmt: skip
    folder = tmp_path / "b"
    write_lines(folder / "corpus.jsonl", [{"_id": d, "text": t} for d, t in documents.items()])
    of_both = {q: t for of_split in questions.values() for q, t in of_split.items()}
    write_lines(folder / "queries.jsonl", [{"_id": q, "text": t} for q, t in of_both.items()])
    (folder / "qrels").mkdir()
    (folder / "qrels/train.tsv").write_text("t1\ta\t1\nt2\td\t0\n")
    (folder / "qrels/test.tsv").write_text("b\tb\t1\nc\tc\t1\nd\td\t1\n")
    corpus = ingest("beir", folder, tmp_path / "r")
    assert corpus.stats["contamination"] == {"test_questions": 3, "seen_in_training": 2}
    assert corpus.tables["queries"].num_rows == len(of_both)


def test_reading_shows_its_progress_only_after_two_seconds_and_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A clock that goes on by a second a look, and a terminal, are played."""
    path = write_lines(tmp_path / "c.jsonl", [{"id": str(i), "text": f"x{i}"} for i in range(99)])
    ingest("jsonl", path, tmp_path / "r")
    assert "row" not in capfd.readouterr().err, "no terminal, no bar"
    seconds = itertools.count()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(seconds)))
    ingest("jsonl", path, tmp_path / "r")
    err = capfd.readouterr().err
    assert "reading: 99row" in err and "reading: 0row" not in err
