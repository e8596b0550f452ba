"""Semanlink and FanOutQA as they come in their packages: counts, splits, facts."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from ingest_corpora import column, ingest, rows

from stages.errors import QuarryError
from stages.ingest.corpus import Corpus
from stages.ingest.semanlink import broader_edges, label, select
from stages.ingest.statement import options, state
from stages.models import package_path

NONE = Path("data/none")


@pytest.fixture(scope="module")
def semanlink(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return ingest("semanlink", NONE, tmp_path_factory.mktemp("r"))


@pytest.fixture(scope="module")
def fanout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus]:
    store = tmp_path_factory.mktemp("r")
    return ingest("fanoutqa", NONE, store), ingest("fanoutqa_leaf", NONE, store)


def test_semanlink_has_1104_documents_558_topics_and_2293_judgements(semanlink: Corpus) -> None:
    sizes = {k: t.num_rows for k, t in semanlink.tables.items()}
    assert sizes == {
        "documents": 1104, "passages": 1104, "queries": 558, "qrels": 2293, "quarantine": 0,
    }  # fmt: skip
    per_topic = Counter(column(semanlink, "qrels", "qid"))
    assert min(per_topic.values()) == 2 and max(per_topic.values()) == 40
    assert "arxiv_doc" not in per_topic
    splits = Counter(column(semanlink, "queries", "split"))
    assert all(abs(splits[s] / 558 - share) < 0.06 for s, share in [
        ("train", 0.6), ("dev", 0.2), ("test", 0.2),
    ])  # fmt: skip


def test_semanlink_topics_know_their_broader_tags(semanlink: Corpus) -> None:
    tags = json.loads((package_path("cherche/data/semanlink/tags.json")).read_text())
    edges = broader_edges(tags)
    assert len(edges) == 6141
    query = next(q for q in rows(semanlink, "queries") if q["qid"] == "conditional_random_field")
    assert query["text"] == "Conditional random fields"
    broader = [b for t, b in edges if t == "conditional_random_field"]
    assert json.loads(query["meta"]) == {"broader": broader}


def test_a_semanlink_document_is_its_comment_and_its_abstract() -> None:
    def doc(name: str, comment: str, abstract: str, *tags: str) -> dict:
        return {
            "document": name, "title": name, "arxiv_title": "", "comment": comment,
            "arxiv_summary": abstract, "tag": [f"http://x/tag/{t}" for t in tags],
        }  # fmt: skip

    docs = [
        doc("both", "c" * 10, "s" * 200, "t"), doc("short", "c" * 300, "s" * 199, "t"),
        doc("comment", "c" * 200, "", "t", "t"), doc("other", "c" * 200, "", "alone"),
    ]  # fmt: skip
    tags = {f"http://x/tag/{t}": {"prefLabel": ["", "T"], "altLabel": [], "broader": []} for t in
            ("t", "alone")}  # fmt: skip
    source = select(docs, tags)
    assert {d.docid: d.body for d in source.documents} == {
        "both": "c" * 10 + "\n\n" + "s" * 200, "comment": "c" * 200, "other": "c" * 200,
    }  # fmt: skip
    assert [(j.qid, j.docid) for j in source.judgements] == [("t", "both"), ("t", "comment")]
    assert [q.text for q in source.questions] == ["T"]
    assert label("http://x/tag/a_b", {"prefLabel": [], "altLabel": []}) == "a b"


def test_semanlink_elsewhere_names_the_files_it_needs(tmp_path: Path) -> None:
    with pytest.raises(QuarryError, match=r"no docs\.json and no tags\.json"):
        ingest("semanlink", tmp_path, tmp_path / "r")


DOC = dict.fromkeys(("document", "title", "arxiv_title", "comment", "arxiv_summary"), "d" * 200)
TAG: dict = {"prefLabel": ["T"], "altLabel": [], "broader": []}


@pytest.mark.parametrize(
    ("docs", "tags", "says"),
    [
        (b"no json", {}, "docs.json: expected Semanlink's JSON as in the package cherche; invalid"),
        ([{"\ud800": 1}], {}, "docs.json: expected Semanlink's JSON"),
        ({}, {}, "docs.json: .* a list of documents was expected, got dict"),
        ([7], {}, "docs.json: .* document 0: an object was expected, got int"),
        ([DOC | {"tag": []}, {"name": "x"}], {}, "document 1: field 'document' was expected to be"),
        ([DOC | {"tag": "t"}], {}, "document 0: field 'tag' was expected to be a list of texts"),
        ([DOC | {"tag": ["t"]}], {"t": []}, "tags.json: .* tag 't': an object was expected"),
        ([DOC | {"tag": ["t"]}], {"t": TAG | {"broader": None}}, "tag 't': field 'broader' was"),
        ([DOC | {"tag": ["t", "u"]}], {"t": TAG}, "document 0: .*'u' is not there. Take both"),
    ],
)
def test_files_that_are_not_semanlinks_are_an_error_that_says_where(
    tmp_path: Path, docs: object, tags: object, says: str
) -> None:
    for name, value in (("docs.json", docs), ("tags.json", tags)):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        (tmp_path / name).write_bytes(content)
    with pytest.raises(QuarryError, match=says):
        ingest("semanlink", tmp_path, tmp_path / "r")


def test_semanlink_in_a_folder_is_read_like_the_package(tmp_path: Path) -> None:
    (tmp_path / "docs.json").write_text(
        json.dumps([DOC | {"document": name, "tag": ["x/t"]} for name in "ab"])
    )
    (tmp_path / "tags.json").write_text(json.dumps({"x/t": TAG}))
    corpus = ingest("semanlink", tmp_path, tmp_path / "r")
    assert [(j["qid"], j["docid"]) for j in rows(corpus, "qrels")] == [("t", "a"), ("t", "b")]


def test_fanoutqa_has_310_questions_whose_leaves_are_2126_facts(
    fanout: tuple[Corpus, Corpus],
) -> None:
    top, leaf = fanout
    assert top.tables["documents"].equals(leaf.tables["documents"])
    assert top.tables["documents"].num_rows == 2126
    assert (top.tables["queries"].num_rows, leaf.tables["queries"].num_rows) == (310, 1772)
    assert leaf.tables["qrels"].num_rows == 1772
    per_question = Counter(column(top, "qrels", "qid"))
    assert len(per_question) == 310 and max(per_question.values()) == 46
    assert round(sum(per_question.values()) / 310, 1) == 6.9
    assert top.tables["quarantine"].num_rows == leaf.tables["quarantine"].num_rows == 0


def test_no_sub_question_is_asked_in_two_splits(fanout: tuple[Corpus, Corpus]) -> None:
    top, leaf = fanout
    split = {q["qid"]: q["split"] for q in rows(top, "queries")}
    asked = defaultdict(set)
    for d in rows(top, "documents"):
        meta = json.loads(d["meta"])
        asked[meta["question"].lower().rstrip("? ")] |= {split[t] for t in meta["parents"]}
    assert all(len(splits) == 1 for splits in asked.values())
    for q in rows(leaf, "queries"):
        parents = json.loads(q["meta"])["parents"]
        assert {q["split"]} == {split[t] for t in parents}
    shares = Counter(split.values())
    assert all(abs(shares[s] / 310 - p) < 0.06 for s, p in [("train", 0.6), ("test", 0.2)])


def test_answers_are_strings_and_flattened(fanout: tuple[Corpus, Corpus]) -> None:
    top, leaf = (
        {q["qid"]: q for q in rows(c, "queries")} for c in fanout
    )  # fmt: skip
    question = top["7dcbbbdc7f1120cd"]  # batting hands of the first five picks of 1998
    assert question["answers"] == [
        "Pat Burrell", "Right", "Mark Mulder", "Left", "Corey Patterson", "Left",
        "Jeff Austin", "Right", "JD Drew", "Left",
    ]  # fmt: skip
    assert '"answer_type":"dict"' in question["meta"]
    assert leaf["739617a754ded71f"]["answers"] == ["Right"]
    assert {a for q in leaf.values() for a in q["answers"]} >= {"yes", "no", "78.7", "1321045"}
    assert all(len(q["answers"]) == 1 for q in leaf.values())


def test_a_fact_leads_back_to_its_question_and_page(fanout: tuple[Corpus, Corpus]) -> None:
    fact = next(d for d in rows(fanout[0], "documents") if d["docid"] == "739617a754ded71f")
    assert (fact["title"], fact["text"]) == (
        "Pat Burrell", "The batting hand of Pat Burrell is Right.",
    )  # fmt: skip
    assert json.loads(fact["meta"]) == {
        "question": "What is the batting hand of Pat Burrell?", "answer": "Right",
        "leaf": "739617a754ded71f", "parents": ["7dcbbbdc7f1120cd"],
        "url": "https://en.wikipedia.org/wiki/Pat_Burrell", "revid": 1184558033,
    }  # fmt: skip


def test_nearly_all_facts_are_statements_and_all_hold_their_answer(
    fanout: tuple[Corpus, Corpus],
) -> None:
    plain = 0
    for d in rows(fanout[0], "documents"):
        meta = json.loads(d["meta"])
        assert meta["answer"].rstrip(".") in d["text"] or meta["answer"] in ("yes", "no", "")
        plain += (
            d["text"].startswith(meta["question"].rstrip("?. ")[:20] + "") and ": " in d["text"]
        )
    assert plain <= 0.015 * 2126


LEAF = {"id": "l", "question": "Who?", "answer": "Ann", "decomposition": [], "evidence": None}
TOP = {"id": "t", "question": "Who all?", "answer": ["Ann"], "categories": []}


@pytest.mark.parametrize(
    ("tops", "says"),
    [
        ([{"id": "a"}], "question 0: field 'decomposition' must be a list"),
        ({"a": 1}, "a list of questions was expected, got dict"),
        ([TOP | {"decomposition": [LEAF, {"step": 1}]}], "0, step 1: field 'decomposition'"),
        ([TOP | {"decomposition": ["Who?"]}], "0, step 0: an object was expected, got str"),
        (
            [TOP | {"decomposition": [LEAF | {"decomposition": [LEAF | {"question": 7}]}]}],
            "question 0, step 0, step 0: fields 'id' and 'question' must be texts",
        ),
        ([TOP | {"decomposition": [LEAF | {"evidence": "url"}]}], "step 0: field 'evidence' must"),
        ([TOP | {"decomposition": [LEAF | {"answer": None}]}], "step 0: field 'answer' is missing"),
        ([TOP | {"decomposition": [LEAF], "categories": None}], "0: field 'categories' must be"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_fanoutqa_is_an_error_that_says_where(
    tmp_path: Path, tops: object, says: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(tops))
    with pytest.raises(QuarryError) as e:
        ingest("fanoutqa", path, tmp_path / "r")
    assert str(e.value).startswith(f"{path}: expected FanOutQA's JSON") and says in str(e.value)


def test_a_leaf_may_come_without_its_page(tmp_path: Path) -> None:
    leaf = {k: v for k, v in LEAF.items() if k != "evidence"}
    (tmp_path / "x.json").write_text(json.dumps([TOP | {"decomposition": [leaf]}]))
    corpus = ingest("fanoutqa", tmp_path / "x.json", tmp_path / "r")
    assert column(corpus, "documents", "text") == ["Who: Ann."]


@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("What is the capital of Peru?", "Lima", "The capital of Peru is Lima."),
        ("Who are the twins?", ["Ann", "Bo"], "The twins are Ann and Bo."),
        ("How old is Jo March?", 45, "Jo March is 45 years old."),
        ("Where was Lee Sedol born?", "Sinan, Korea", "Lee Sedol was born in Sinan, Korea."),
        ("Where did she study law?", "Yale Law School", "She studied law at Yale Law School."),
        ("When was Nvidia founded?", "April 5, 1993", "Nvidia was founded on April 5, 1993."),
        ("When did the Eagles win the cup?", "1948", "The Eagles won the cup in 1948."),
        ("Where is Nicki Minaj from?", "Trinidad", "Nicki Minaj is from Trinidad."),
        ("Who directed Avatar", "James Cameron", "James Cameron directed Avatar."),
        ("Which company owns Twitter?", "X Corp.", "The company that owns Twitter is X Corp."),
        ("Which team has won in 2019?", "Rams", "The team that has won in 2019 is Rams."),
        ("Which college did Teo attend?", "MIT", "The college Teo attended is MIT."),
        ("In which state was Polk born?", "NC", "The state in which Polk was born is NC."),
        ("What state do the Bills play in?", "NY", "The state the Bills play in is NY."),
        ("What genre is Tetris?", "Puzzle", "The genre of Tetris is Puzzle."),
        ("How many sons does Ed have?", 4, "The number of sons Ed has is 4."),
        ("How many pages are in Emma?", 500, "The number of pages in Emma is 500."),
        ("How much endowment does MIT have?", "$23", "The endowment MIT has is $23."),
        ("How large is Qatar?", "11,571 km2", "Qatar is 11,571 km2."),
        ("Does Utah have a flag?", True, "Utah has a flag."),
        ("Does Utah have a king?", False, "Utah does not have a king."),
        ("Was Ada born in Rome?", False, "Ada was not born in Rome."),
        ("Has Yale ever had a king?", "Yes, Al", "Yale has had a king: Yes, Al."),
        ("In 2022, What is the rate?", "3 %", "In 2022, the rate is 3 %."),
        ("For what did Esther receive it?", "Physics", "Esther received it for Physics."),
        ("Name one cancer.", "lung cancer", "One cancer is lung cancer."),
        ("What is his birthday?", "", "His birthday is not known."),
        ("Of the two, who won?", "Bo", "Of the two, who won: Bo."),
        ("Staff of X in 2022?", {"X": 7}, "Staff of X in 2022: 7."),
        ("Sizes?", {"A": 1, "B": [2, 3]}, "Sizes: A: 1; B: 2 and 3."),
    ],
)
def test_statements(question: str, answer: object, statement: str) -> None:
    assert state(question, answer) == statement


@pytest.mark.parametrize(
    "question",
    [
        "Was Ada born in Rome?", "does  Utah have a flag", "Is Amy Gutmann still alive today?",
        "Did she study at one of these: Yale, Duke or MIT?", "Has Yale ever had a king or queen?",
        "Are Ann and Bo both painters?", "Were any of them kings or queens?", "Can a swan fly?",
    ],
)  # fmt: skip
def test_a_question_that_asks_whether_is_answered_by_yes_or_no(question: str) -> None:
    assert options(question) == ("yes", "no")


@pytest.mark.parametrize(
    "question",
    [
        "Who is older?", "Is Ann or Bo older?", "Was Io seen before 1700 and if so, who saw it?",
        "Can you name the planets?", "Do you know where Utah is?", "In 2022, what is the rate?",
        "Isar?", "Is", "", "Was it built, and when?", "Name it.",
    ],
)  # fmt: skip
def test_a_question_that_asks_for_more_or_in_doubt_is_answered_in_words(question: str) -> None:
    assert options(question) == ()


def test_eighty_leaves_have_options_and_their_form_alone_decides(
    fanout: tuple[Corpus, Corpus],
) -> None:
    top, leaf = fanout
    asked = [q for q in rows(leaf, "queries") if q["options"]]
    assert len(asked) == 80 and all(q["options"] == ["yes", "no"] for q in asked)
    said = Counter(q["answers"][0].split(",")[0].lower() for q in asked)
    assert said == {"yes": 59, "no": 21}
    assert [q["text"] for q in rows(top, "queries") if q["options"]] == [
        "Did Sedol Lee win the Go game against Alpha Go?"
    ]
    # None of the others has yes or no for its answer, but those that ask for more.
    rest = [q for q in rows(leaf, "queries") if not q["options"]]
    assert all("if so" in q["text"] for q in rest if set(q["answers"]) & {"yes", "no"})
