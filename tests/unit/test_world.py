"""The made world: chains follow, documents hold them, splits share no chain, bytes are equal."""

import functools
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from ingest_corpora import ingest, rows

from stages.errors import QuarryError
from stages.ingest.world import TYPES
from stages.ingest.world_words import PLACES, RELATIONS, TRADES
from stages.records import RecordStore
from stages.tables import write_table
from stages.triples.found import triples_table, with_meta
from stages.triples.given import Params, extract

SEED = 13
# Words of trades and places: no made ones.
COMMON = {w for form in (*TRADES, *PLACES) for w in form.split()} - {"{}"}


@functools.cache
def world() -> Any:
    """The world of the default sizes."""
    with TemporaryDirectory() as store:
        return ingest("world", Path("none"), Path(store), seed=SEED, dedup={"mode": "off"})


@functools.cache
def documents() -> dict[str, dict[str, Any]]:
    return {row["docid"]: row for row in rows(world(), "documents")}


@functools.cache
def triples() -> dict[str, list[tuple[str, str, str]]]:
    return {
        d: [tuple(t) for t in json.loads(row["meta"])["triples"]] for d, row in documents().items()
    }


@functools.cache
def questions() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every question with what its meta says."""
    return [(q, json.loads(q["meta"])) for q in rows(world(), "queries")]


def test_counts_are_those_of_the_card() -> None:
    assert len(documents()) == 600
    assert Counter(q["split"] for q, _ in questions()) == {"train": 2000, "dev": 300, "test": 300}
    said = list(itertools.chain.from_iterable(triples().values()))
    assert {rel for _, rel, _ in said} == set(RELATIONS)
    assert len(RELATIONS) == 12
    assert {len(facts) for facts in triples().values()} == {4, 5, 6, 7, 8}
    types = Counter((meta["type"], meta["hops"]) for q, meta in questions() if q["split"] == "test")
    assert types == {kind: round(300 * share) for kind, share in TYPES.items()}


def test_every_sentence_can_be_read_back_and_says_one_of_the_documents_triples() -> None:
    patterns = [
        (
            rel,
            re.compile(
                re.escape(told).replace(r"\{s\}", "(?P<s>.+)").replace(r"\{o\}", "(?P<o>.+)")
            ),
        )
        for rel, relation in RELATIONS.items()
        for told in relation.told
    ]
    used = set()
    for docid, row in documents().items():
        read = []
        for sentence in row["text"].removesuffix(".").split(". "):
            (fact,) = [
                (match["s"], rel, match["o"])
                for rel, pattern in patterns
                if (match := pattern.fullmatch(f"{sentence}."))
            ]
            read.append(fact)
            used.add((fact[1], re.sub("|".join(map(re.escape, fact[::2])), "", sentence)))
        assert read == triples()[docid]
        assert {subj for subj, _, _ in read} == {row["title"]}
    told = Counter(rel for rel, _ in used)
    assert all(told[rel] == len(relation.told) >= 2 for rel, relation in RELATIONS.items())


def test_every_entity_shares_a_word_of_its_name_with_another() -> None:
    names = [row["title"] for row in documents().values()]
    assert len(set(names)) == len(names)
    assert {len(name.split()) for name in names} == {2}
    families = Counter(word for name in names for word in name.split() if word not in COMMON)
    for name in names:
        assert any(families[word] >= 2 for word in name.split())
    across = [  # shared by a person and by a company or a town
        word
        for word in families
        if len({bool(COMMON & set(name.split())) for name in names if word in name.split()}) == 2
    ]
    assert len(across) > 100


def test_each_hop_is_in_its_document_and_leads_to_the_next_and_the_answer_follows() -> None:
    for q, meta in questions():
        chain = meta["chain"]
        assert meta["hops"] == len(chain)
        for f in chain:
            assert (f["subj"], f["rel"], f["obj"]) in triples()[f["docid"]]
        if meta["type"] == "comparison":
            a, b = chain
            assert a["rel"] == b["rel"] and a["obj"] != b["obj"]
            first, last = sorted(chain, key=lambda f: int(f["obj"]))
            late = any(word in q["text"] for word in ("later", "younger"))
            assert q["answers"] == [(last if late else first)["subj"]]
            assert late or any(word in q["text"] for word in ("earlier", "older"))
        else:
            assert all(a["obj"] == b["subj"] for a, b in itertools.pairwise(chain))
            assert q["answers"] == [chain[-1]["obj"]]
            names = [f["subj"] for f in chain] + [chain[-1]["obj"]]
            assert len(set(names)) == len(names), "a chain visits nobody twice"


def test_a_relation_that_is_asked_has_one_object() -> None:
    """Otherwise a question had several answers."""
    for facts in triples().values():
        several = {rel for rel, n in Counter(rel for _, rel, _ in facts).items() if n > 1}
        assert not any(RELATIONS[rel].asked for rel in several)
    assert not any(t["rel"] in ("speaks", "known for") for _, m in questions() for t in m["chain"])


def test_the_question_names_where_it_starts_and_no_bridge_and_no_answer() -> None:
    for q, meta in questions():
        chain = meta["chain"]
        assert chain[0]["subj"] in q["text"]
        if meta["type"] == "comparison":
            assert chain[1]["subj"] in q["text"]
        else:
            for hidden in [f["subj"] for f in chain[1:]] + q["answers"]:
                assert hidden not in q["text"]


def test_no_question_and_no_step_of_two_facts_is_in_two_splits() -> None:
    texts: dict[str, str] = {}
    steps: dict[tuple[str, ...], str] = {}
    pairs: dict[frozenset[str], str] = {}
    for q, meta in questions():
        assert texts.setdefault(q["text"], q["qid"]) == q["qid"], "asked twice"
        chain = meta["chain"]
        if meta["type"] == "comparison":
            pair = frozenset(f["subj"] for f in chain)
            assert pairs.setdefault(pair, q["split"]) == q["split"]
        else:
            for a, b in itertools.pairwise(chain):
                step = a["subj"], a["rel"], b["rel"]
                assert steps.setdefault(step, q["split"]) == q["split"]
            if len(chain) == 1:
                alone = chain[0]["subj"], chain[0]["rel"]
                assert steps.setdefault(alone, q["split"]) == q["split"]


def test_relevant_are_the_documents_of_the_chain() -> None:
    judged: dict[str, set[str]] = {}
    for row in rows(world(), "qrels"):
        assert row["rel"] == 1
        judged.setdefault(row["qid"], set()).add(row["docid"])
    for q, meta in questions():
        assert judged[q["qid"]] == {f["docid"] for f in meta["chain"]}


SMALL = {"entities": 120, "questions": {"train": 40, "dev": 5, "test": 5}}


def test_equal_values_make_equal_bytes_and_another_seed_another_world(tmp_path: Path) -> None:
    def made(folder: Path, seed: int) -> list[bytes]:
        corpus = ingest("world", Path("none"), tmp_path / "r", seed=seed, **SMALL)
        folder.mkdir()
        for kind, t in corpus.tables.items():
            write_table(t, folder, kind)
        return [p.read_bytes() for p in sorted(folder.iterdir())]

    first = made(tmp_path / "a", 1)
    assert made(tmp_path / "b", 1) == first
    assert made(tmp_path / "c", 2) != first


def test_fewer_questions_leave_the_others_of_their_split_unless_none_are_left(
    tmp_path: Path,
) -> None:
    fewer = SMALL | {"questions": {"train": 10, "dev": 5, "test": 0}}
    texts = [
        {q["split"]: set() for q in rows(c, "queries")}
        | {s: {q["text"] for q in rows(c, "queries") if q["split"] == s} for s in ("train", "dev")}
        for c in (
            ingest("world", Path("none"), tmp_path / "r", seed=1, **SMALL),
            ingest("world", Path("none"), tmp_path / "r", seed=1, **fewer),
        )
    ]
    assert texts[1]["train"] < texts[0]["train"]
    assert texts[1]["dev"] == texts[0]["dev"]
    assert "test" not in texts[1]


def test_more_questions_than_a_world_has_is_an_error_that_says_how_many_there_are(
    tmp_path: Path,
) -> None:
    with pytest.raises(QuarryError, match=r"40 entities has \d+ single questions.*split train"):
        ingest("world", Path("none"), tmp_path / "r", seed=1, entities=40)


# -- the extractor given -------------------------------------------------------------------------

VALUES = Params(extractor="given", corpus="world", model="none")


def given(passages: pa.Table, folder: Path) -> Any:
    with RecordStore(folder) as store:
        return extract(passages, VALUES, model=None, store=store)


def test_given_writes_every_triple_of_the_world_and_drops_none(tmp_path: Path) -> None:
    tables = world().tables
    passages = with_meta(tables["passages"], tables["documents"])
    found = given(passages, tmp_path)
    assert not any(one.rejected for one in found)
    written = triples_table(passages, found).to_pylist()
    by_passage: dict[str, list[tuple[str, str, str]]] = {}
    for row in written:
        by_passage.setdefault(row["docid"], []).append((row["subj"], row["rel"], row["obj"]))
    assert by_passage == {f"{docid}#0": facts for docid, facts in triples().items()}


def passage(*metas: str) -> pa.Table:
    return pa.table({
        "docid": [f"{n}#0" for n in range(len(metas))], "title": ["Ada Lovelace"] * len(metas),
        "text": ["Ada Lovelace was born in London."] * len(metas), "meta": list(metas),
    })  # fmt: skip


def test_given_keeps_what_stands_in_the_passage_and_counts_the_rest(tmp_path: Path) -> None:
    meta = {"triples": [["Ada Lovelace", "born in", "London"], ["Ada Lovelace", "born in", "Rome"]]}
    first, second = given(passage(json.dumps(meta), "{}"), tmp_path)
    assert [tuple(t) for t in first.triples] == [("Ada Lovelace", "born in", "London")]
    assert first.rejected == {"object_not_in_text": 1}
    assert second.triples == []


def test_given_refuses_a_corpus_without_facts_and_facts_of_another_form(tmp_path: Path) -> None:
    assert given(passage(), tmp_path) == []
    with pytest.raises(QuarryError, match="no document of corpus 'world' has 'triples'"):
        given(passage("{}"), tmp_path)
    for bad in ([["a", "b"]], "abc", [["a", "b", 3]], {"a": 1}):
        with pytest.raises(QuarryError, match=r"passage 0#0.*three texts"):
            given(passage(json.dumps({"triples": bad})), tmp_path)
