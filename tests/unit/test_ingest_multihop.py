"""Multiple choice and abstracts through the multihop source: MedQA's and PubMedQA's formats."""

from pathlib import Path

from ingest_corpora import column, ingest, rows, write_lines

SECTIONS = [
    {"title": "OBJECTIVE", "text": "To assess it.", "is_supporting": False},
    {"title": "", "text": "Nothing more.", "is_supporting": True},
]


def test_options_of_the_entry_are_those_of_every_question_without_its_own(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "qa.jsonl", [
        {"id": "1", "question": "Is it so?", "answers": ["maybe"]},
        {"id": "2", "question": "Storage of vaccines: a weak link?", "answers": ["no"]},
        {"id": "3", "question": "Which?", "options": {"B": "two", "A": "one"}, "answers": ["two"],
         "answer_idx": "B", "step": "step1", "passages": []},
    ])  # fmt: skip
    three = ["yes", "no", "maybe"]
    corpus = ingest("multihop", path, tmp_path / "r", options=three)
    assert column(corpus, "queries", "options") == [three, three, ["one", "two"]]
    assert rows(corpus, "queries")[2]["meta"] == '{"answer_idx":"B","step":"step1"}'
    plain = ingest("multihop", path, tmp_path / "r")
    assert column(plain, "queries", "options") == [["yes", "no"], [], ["one", "two"]]


def test_sections_are_joined_into_one_document(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "qa.jsonl", [
        {"id": "1", "question": "a?", "passages": SECTIONS},
        {"id": "2", "question": "b?", "passages": []},
        {"id": "3", "question": "c?", "passages": [{"title": "T", "text": 5}]},
    ])  # fmt: skip
    corpus = ingest("multihop", path, tmp_path / "r", joined=True)
    assert column(corpus, "documents", "text") == ["OBJECTIVE: To assess it.\nNothing more."]
    (judged,) = rows(corpus, "qrels")
    assert (judged["qid"], judged["docid"]) == ("1", rows(corpus, "documents")[0]["docid"])
    assert corpus.stats["queries"]["quarantined"] == {"schema": 1}
    apart = ingest("multihop", path, tmp_path / "r")
    assert sorted(column(apart, "documents", "title")) == ["", "OBJECTIVE"]
