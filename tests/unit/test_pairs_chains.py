"""Samples for the aligner: chains, gold and by rule, their prefixes, and what is no next fact."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from ingest_corpora import ingest

from stages.chains import chain_query, triple_text
from stages.errors import QuarryError
from stages.pairs import Built, Inputs
from stages.pairs.chains import (
    Chain,
    Params,
    build,
    find_chain,
    make_samples,
    read_facts,
    supporting,
)  # fmt: skip
from stages.pairs.linking import Fact, Rarity, link
from stages.preference import read_groups
from stages.records import RecordStore
from stages.tables import table
from stages.tools import Tools
from stages.types import Hit

VALUES = {"recipe": "chains", "corpus": "c", "index": "none", "encoder": "none", "model": "none",
          "triples": "t"}  # fmt: skip
# Two passages answer; "other" shares the question's words; "far" is only found with the chain.
FACTS = {
    "film": [("Night Train", "was directed by", "Ann Lee"), ("Night Train", "was shot in", "Oslo"),
             ("Ann Lee", "directed", "Night Train")],
    "lee": [("Ann Lee", "was born in", "Bergen"), ("Ann Lee", "studied in", "Rome")],
    "other": [("Night Bus", "was directed by", "Bo Ek")],
    "far": [("Anna Leeds", "was born in", "Leeds")],
}  # fmt: skip
QUESTION = "Where was the person born who directed Night Train?"
ANSWERS = ["Bergen"]


def triples(facts: dict[str, list[tuple[str, str, str]]]) -> pa.Table:
    return table("triples", [
        {"docid": f"{docid}#0", "seq": seq, "subj": s, "rel": r, "obj": o, "text_hash": docid}
        for docid, own in facts.items()
        for seq, (s, r, o) in enumerate(own)
    ])  # fmt: skip


def question(qid: str = "q", **changes: Any) -> dict[str, Any]:
    row = {"qid": qid, "text": QUESTION, "split": "train", "answers": ANSWERS, "options": [],
           "meta": "{}"}  # fmt: skip
    return row | changes


def inputs(*queries: dict[str, Any], support: tuple[str, ...] = ("film", "lee"),
           facts: dict[str, Any] = FACTS) -> Inputs:  # fmt: skip
    passages = [
        {"docid": f"{d}#0", "parent": d, "seq": 0, "title": d, "text": d, "start": 0, "end": 1,
         "text_hash": d}
        for d in facts
    ]  # fmt: skip
    qrels = [{"qid": q["qid"], "docid": d, "rel": 1} for q in queries for d in support]
    return Inputs(
        table("queries", list(queries)), table("passages", passages), table("qrels", qrels),
        triples(facts),
    )  # fmt: skip


class Found:
    """An index that finds "other" for a question and "far" once a fact stands behind it."""

    fingerprint = "fixed"

    def __init__(self) -> None:
        self.queries: list[str] = []

    def search(self, queries, k):
        self.queries += queries
        assert k == 10
        return [[Hit("far#0" if "<" in q else "other#0", 1.0)] for q in queries]


def built(given: Inputs, index: Any = None, **changes: Any) -> Built:
    with TemporaryDirectory() as folder, RecordStore(Path(folder)) as store:
        params = Params.model_validate(VALUES | changes)
        made = build(params, given, Tools(retriever=index), store)
    read_groups(made.groups, made.candidates)  # valid
    return made


def by_prompt(made: Built) -> dict[str, list[tuple[str, list[str]]]]:
    """(chosen, rejected) by prompt."""
    rows = made.candidates.to_pylist()
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for group in made.groups.to_pylist():
        own = [c for c in rows if c["group_id"] == group["group_id"]]
        (chosen,) = [c["text"] for c in own if c["label"] == 1]
        rejected = [c["text"] for c in own if c["label"] == -1]
        assert len(rejected) + 1 == len(own)
        found.setdefault(group["prompt"], []).append((chosen, rejected))
    return found


# -- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "samples"), [(1, 1), (2, 4), (3, 11), (4, 36)])
def test_a_bridge_of_n_facts_makes_n_samples_and_a_comparison_more(n: int, samples: int) -> None:
    facts = tuple(Fact("d#0", "a", "is", str(i)) for i in range(n))
    bridge = make_samples(Chain(question(), facts, "gold", "bridge", []))
    assert [(s.prefix, s.positive) for s in bridge] == [(facts[:k], facts[k]) for k in range(n)]
    comparison = make_samples(Chain(question(), facts, "gold", "comparison", []))
    assert len(comparison) == len(set(comparison)) == samples
    assert [s.positive for s in comparison[:n]] == list(facts), "each may be the first"
    assert all(s.positive not in s.prefix for s in comparison)
    longest = [s for s in comparison if len(s.prefix) == n - 1]
    assert {frozenset({*s.prefix, s.positive}) for s in longest} <= {frozenset(facts)} or n == 1


def test_a_sample_is_asked_as_serving_asks_and_its_others_are_of_what_serving_has_found() -> None:
    index = Found()
    made = by_prompt(built(inputs(question()), index))
    first, second = (triple_text(*FACTS[d][0]) for d in ("film", "lee"))
    assert set(made) == {QUESTION, chain_query(QUESTION, [first])}
    assert index.queries == [QUESTION, f"{QUESTION} {first}"]
    ((chosen, rejected),) = made[QUESTION]
    assert chosen == first
    # "Ann Lee directed Night Train" is the chain's fact in other words (F1 0.8), the other steps
    # of the chain are nobody's rejected fact.
    shot, studied = triple_text(*FACTS["film"][1]), triple_text(*FACTS["lee"][1])
    other, far = triple_text(*FACTS["other"][0]), triple_text(*FACTS["far"][0])
    assert set(rejected) == {shot, studied, other}
    ((chosen, rejected),) = made[chain_query(QUESTION, [first])]
    assert chosen == second and set(rejected) == {shot, studied, other, far}


def test_no_more_others_than_wanted_those_of_supporting_passages_first() -> None:
    made = by_prompt(built(inputs(question()), Found(), others=2))
    ((_, rejected),) = made[QUESTION]
    assert set(rejected) == {triple_text(*FACTS["film"][1]), triple_text(*FACTS["lee"][1])}


def test_gold_chains_are_those_of_the_corpus_and_rule_steps_in_where_a_fact_is_missing() -> None:
    def chain(rel: str) -> str:
        facts = [("film", *FACTS["film"][0]), ("lee", "Ann Lee", rel, "Rome")]
        steps = [dict(zip(("docid", "subj", "rel", "obj"), f, strict=True)) for f in facts]
        return json.dumps({"type": "bridge", "hops": 2, "chain": steps})

    gold = question("a", meta=chain("studied in"))
    unknown = question("b", meta=chain("lives in"))
    made = built(inputs(gold, unknown))
    assert made.stats["by_split"]["train"] == {
        "chain_gold": 1, "chain_rule": 1, "samples": 4, "others": sum(
            len(r) for rows in by_prompt(made).values() for _, r in rows
        ),
    }  # fmt: skip
    assert made.stats["chain_lengths"] == {"gold_bridge": {"2": 1}, "rule_bridge": {"2": 1}}
    chosen = {
        (g["qid"], g["kind"], json.loads(g["meta"])["step"]): c["text"]
        for g in made.groups.to_pylist()
        for c in made.candidates.to_pylist()
        if c["group_id"] == g["group_id"] and c["label"] == 1
    }
    assert chosen["a", "gold", 1] == triple_text(*FACTS["lee"][1])
    assert chosen["b", "rule", 1] == triple_text(*FACTS["lee"][0])
    directed = triple_text(*FACTS["film"][2])
    assert any(directed in rejected for rows in by_prompt(made).values() for _, rejected in rows), (
        "in a gold chain it is another fact"
    )


@pytest.mark.parametrize("chain", ["film", [], ["film"], [{"docid": "film"}], {"a": 1}, None])
def test_a_chain_of_another_form_is_none(chain: Any) -> None:
    made = built(inputs(question(meta=json.dumps({"type": "bridge", "chain": chain}))))
    assert made.stats["by_split"]["train"]["chain_rule"] == 1


def test_questions_without_a_chain_are_counted_by_reason() -> None:
    rows = [
        question("a", answers=["Paris"]), question("b", text="Who knows?"),
        question("c", split="dev"), question("d", split="test"),
    ]  # fmt: skip
    made = built(inputs(*rows, question("e")))
    assert made.stats["questions"] == {"train": 3, "dev": 1}, "test questions are not looked at"
    counts = made.stats["by_split"]["train"]
    assert counts["no_chain_no_answer"] == counts["no_chain_no_start"] == counts["chain_rule"] == 1
    assert made.stats["by_split"]["dev"]["chain_rule"] == 1
    assert set(made.groups["split"].to_pylist()) == {"train", "dev"}


def test_fewer_questions_are_those_of_smallest_hash() -> None:
    rows = [question(f"q{i}") for i in range(9)]
    few = built(inputs(*rows), questions=3)
    some = built(inputs(*rows), questions=5)
    assert set(few.groups["qid"].to_pylist()) < set(some.groups["qid"].to_pylist())
    assert len(set(some.groups["qid"].to_pylist())) == 5


def test_a_sample_without_others_is_dropped_and_counted() -> None:
    facts = {d: FACTS[d][:1] for d in ("film", "lee")}
    with_more = question("b")
    made = built(inputs(question(), with_more, facts=facts))
    assert made.groups.num_rows == 0
    assert made.stats["by_split"]["train"]["dropped_no_others"] == 4


def test_an_entry_without_triples_or_without_any_chain_is_an_error() -> None:
    with pytest.raises(QuarryError, match="the entry names none"):
        built(inputs(question())._replace(triples=None))
    with pytest.raises(QuarryError, match="no question of split train has a chain.*no_support"):
        built(inputs(question(), support=()))


# -- the rule ------------------------------------------------------------------------------------


def linked(
    text: str = QUESTION,
    answers: Any = ("Bergen",),
    facts: Any = FACTS,
    docids: tuple[str, ...] = ("film", "lee"),
    *,
    comparison: bool = False,
) -> Any:
    facts_of = read_facts(triples(facts))
    found = link(text, list(answers), [f"{d}#0" for d in docids], facts_of, Rarity(facts_of),
                 comparison=comparison)  # fmt: skip
    return [f.text for f in found.chain] or found.reason


def test_a_chain_starts_at_the_question_steps_over_a_shared_entity_and_ends_at_the_answer() -> None:
    expected = [triple_text(*FACTS["film"][0]), triple_text(*FACTS["lee"][0])]
    assert linked() == expected
    assert linked(docids=("lee", "film")) == expected, "the order of the passages does not matter"


def test_a_name_inside_a_longer_one_links_a_single_word_does_not() -> None:
    longer = FACTS | {"lee": [("Dr. Ann Lee Jones", "was born in", "Bergen")]}
    assert linked(facts=longer)[-1] == triple_text(*longer["lee"][0])
    assert linked(facts=FACTS | {"lee": [("Lee", "was born in", "Bergen")]}) == "no_link"
    assert linked(facts=FACTS | {"lee": [("", "was born in", "Bergen")]}) == "no_link"


def test_an_answer_stands_as_whole_words() -> None:
    assert linked(answers=["berg"]) == "no_answer"
    assert linked(answers=["the Bergen!"])[-1] == triple_text(*FACTS["lee"][0])
    assert linked(answers=["yes"]) == "no_answer"
    assert linked(answers=[""]) == "no_answer"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"docids": ()}, "no_support"),
        ({"docids": ("film", "nothing")}, "document_without_triples"),
        ({"text": "Who was it?"}, "no_start"),
        ({"docids": ("film", "far"), "answers": ["Leeds"]}, "no_link"),
        ({"docids": ("film", "lee", "other", "far", "fifth")}, "too_many_documents"),
    ],
)
def test_why_there_is_no_chain(changes: dict[str, Any], reason: str) -> None:
    assert linked(**changes) == reason


def test_a_comparison_takes_of_each_document_the_fact_that_shares_most_with_the_question() -> None:
    facts = {
        "a": [("Ann Lee", "lives in", "Rome"), ("Ann Lee", "was born in", "1950")],
        "b": [("Bo Ek", "was born in", "1960"), ("Bo Ek", "works in", "Oslo")],
        "c": [("Cy Ott", "sings in", "Rome")], "d": [("Di Roy", "sings in", "Rome")],
    }  # fmt: skip
    chain = linked("Who was born first, Ann Lee or Bo Ek?", ["Ann Lee"], facts, ("a", "b"),
                   comparison=True)  # fmt: skip
    assert chain == ["<Ann Lee; was born in; 1950>", "<Bo Ek; was born in; 1960>"]
    assert linked("Is it so?", ["yes"], facts, ("a", "b"), comparison=True) == "no_start"


def test_passages_of_one_document_are_one_step() -> None:
    facts_of = {
        "film#0": [Fact("film#0", "Night Train", "was shot in", "Oslo")],
        "film#1": [Fact("film#1", *FACTS["film"][0])],
        "lee#0": [Fact("lee#0", *FACTS["lee"][0])],
    }
    found = link(QUESTION, ANSWERS, list(facts_of), facts_of, Rarity(facts_of), comparison=False)
    assert [f.docid for f in found.chain] == ["film#1", "lee#0"]


# -- on the made world ---------------------------------------------------------------------------


def small_world(store: Path) -> Inputs:
    corpus = ingest(
        "world", Path("none"), store, seed=1, entities=120, dedup={"mode": "off"},
        questions={"train": 40, "dev": 10, "test": 5},
    ).tables  # fmt: skip
    rows = [
        {"docid": f"{d['docid']}#0", "seq": n, "subj": s, "rel": r, "obj": o, "text_hash": ""}
        for d in corpus["documents"].to_pylist()
        for n, (s, r, o) in enumerate(json.loads(d["meta"])["triples"])
    ]
    given = Inputs(corpus["queries"], corpus["passages"], corpus["qrels"], table("triples", rows))
    return given


def test_every_question_of_the_world_has_its_gold_chain_and_the_counts_follow(
    tmp_path: Path,
) -> None:
    given = small_world(tmp_path)
    made = built(given)
    train = made.stats["by_split"]["train"]
    assert train["chain_gold"] == 40 and made.stats["by_split"]["dev"]["chain_gold"] == 10
    assert train["samples"] == 6 * 1 + 10 * 4 + 8 * 3 + 16 * 2  # single, comparison, 3 and 2 hops
    assert set(made.groups["kind"].to_pylist()) == {"gold"}


def test_the_rule_finds_most_of_the_worlds_own_chains(tmp_path: Path) -> None:
    """It sees questions, answers and judged documents; the world knows the chains."""
    given = small_world(tmp_path)
    chains, right = 0, 0
    facts_of = read_facts(given.triples)
    rarity = Rarity(facts_of)
    support = supporting(given.passages, given.qrels)
    for q in given.queries.to_pylist():
        meta = json.loads(q["meta"])
        gold = [triple_text(f["subj"], f["rel"], f["obj"]) for f in meta["chain"]]
        hidden = q | {"meta": json.dumps({"type": meta["type"]})}
        found = find_chain(hidden, support[q["qid"]], facts_of, rarity)
        if isinstance(found, Chain):
            chains += 1
            right += [f.text for f in found.facts] == gold
    assert chains >= 50
    assert right >= 0.8 * chains
