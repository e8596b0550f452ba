"""Samples for KiRAG's aligner: a question and a chain so far, the fact that comes next, others.

Fang, Meng & Macdonald, KiRAG: Knowledge-Driven Iterative Retriever for Enhancing
Retrieval-Augmented Generation, ACL 2025. Chains are ``gold`` where the corpus knows them
(``meta`` of a query, as source ``world`` writes it) and the triples hold them; else they come from
the supporting passages by rule (``linking``), and are marked ``rule``.

A bridge chain of n facts makes n samples: after the first k - 1 facts the k-th comes next. In a
comparison any order is right: each fact is a first step, and each order of the first k facts is
a prefix and its next fact, so n = 1, 2, 3, 4 make 1, 4, 11, 36 samples. A sample is a group: the
prompt is what serving asks the aligner (``stages.chains.chain_query``); of its candidates, facts
as serving ranks them, the next one is chosen, the others are rejected.

The others are facts of the passages that serving would have found by then, with the question and
with each fact of the prefix behind it, and of the supporting passages, whose own come first. No
fact of the question's chain is among them, whatever the step; with a chain by rule also none
that serving would take for one of them (token F1): there a rule chose between two readings of
one sentence.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import NonNegativeInt, PositiveInt

from stages.answers import token_f1
from stages.chains import chain_query, triple_text
from stages.digest import digest, uniform
from stages.effects import dumps
from stages.errors import QuarryError
from stages.pairs import Built, Inputs
from stages.pairs.linking import Fact, Linked, Rarity, link
from stages.params import Entry
from stages.records import RecordStore
from stages.runs import parent
from stages.tables import table
from stages.tools import Tools
from stages.types import Retriever

METHOD = "kirag"
SAME = 0.6  # token F1 from which serving takes a written fact for one that it knows
NOBODYS = -1.0  # temperature: no model wrote these
BLOCK = 1024  # queries of one search


class Params(Entry):
    """Values of a ``chains`` entry."""

    recipe: Literal["chains"]
    corpus: str  # an ingest entry with judgements
    index: str  # where serving searches; none: the others are of supporting passages alone
    encoder: str  # of the index, where that is dense
    model: Literal["none"]
    triples: str  # an entry of triples, over the same corpus
    run: Literal["none"] = "none"
    questions: PositiveInt | None = None  # of split train, those of smallest id hash; none: all
    dev_questions: NonNegativeInt | None = None  # of split dev
    found: PositiveInt = 10  # passages of a search, as in serving
    others: PositiveInt = 40  # rejected facts of a sample, at the most
    threads: PositiveInt = 1


class Chain(NamedTuple):
    """A question with its chain, and where that comes from."""

    question: dict[str, Any]  # a row of queries
    facts: tuple[Fact, ...]
    source: Literal["gold", "rule"]
    type: str  # bridge, comparison or single
    support: list[str]  # supporting passages


class Sample(NamedTuple):
    """A chain so far, and the fact that comes next."""

    prefix: tuple[Fact, ...]
    positive: Fact


def build(params: Params, inputs: Inputs, tools: Tools, store: RecordStore) -> Built:
    """Groups of the sampled questions, and how many have no chain, and why.

    Raises:
        QuarryError: the entry names no triples, or no question of split train has a chain.
    """
    if inputs.triples is None:
        raise QuarryError(
            f"pairs: chains are made of triples and the entry names none. Say triples: an entry "
            f"that read corpus '{params.corpus}'."
        )
    facts_of = read_facts(inputs.triples)
    support = supporting(inputs.passages, inputs.qrels)
    rarity = Rarity(facts_of)
    asked = pick(inputs.queries, "train", params.questions)
    asked += pick(inputs.queries, "dev", params.dev_questions)
    counts = {split: Counter[str]() for split in ("train", "dev")}
    chains = []
    for question in asked:
        chain = find_chain(question, support.get(question["qid"], []), facts_of, rarity)
        if isinstance(chain, Linked):
            counts[question["split"]][f"no_chain_{chain.reason}"] += 1
        else:
            counts[question["split"]][f"chain_{chain.source}"] += 1
            chains.append(chain)
    if not any(chain.question["split"] == "train" for chain in chains):
        raise QuarryError(
            f"pairs: no question of split train has a chain ({dict(counts['train'])}). Name a "
            f"corpus with judgements (or of source world), and triples that were read from it."
        )
    samples = [(chain, sample) for chain in chains for sample in make_samples(chain)]
    hits = search(tools.retriever, samples, params.found)
    groups, candidates = [], []
    for chain, sample in samples:
        count = counts[chain.question["split"]]
        found = [hits[query] for query in queries_of(chain, sample.prefix)] if hits else []
        docids, others = find_others(chain, found, facts_of, params.others)
        if not others:
            count["dropped_no_others"] += 1
            continue
        count["samples"] += 1
        count["others"] += len(others)
        group = _group_row(chain, sample, docids)
        groups.append(group)
        candidates += _candidate_rows(group["group_id"], sample.positive.text, others)
    stats = {
        "questions": dict(Counter(q["split"] for q in asked)),
        "by_split": {split: dict(sorted(c.items())) for split, c in counts.items()},
        "chain_lengths": _lengths(chains),
    }
    return Built(
        table("pref_groups", groups), table("pref_candidates", candidates), stats,
        {"searches": len(hits)},
    )  # fmt: skip


def _lengths(chains: Sequence[Chain]) -> dict[str, dict[str, int]]:
    """Questions by source and type, and by length of the chain."""
    found: dict[str, Counter[str]] = {}
    for chain in chains:
        name = f"{chain.source}_{chain.type}"
        found.setdefault(name, Counter())[str(len(chain.facts))] += 1
    return {name: dict(sorted(c.items())) for name, c in sorted(found.items())}


def read_facts(triples: pa.Table) -> dict[str, list[Fact]]:
    """The facts of each passage, in the table's order."""
    columns = [triples[name].to_pylist() for name in ("docid", "subj", "rel", "obj")]
    facts_of: dict[str, list[Fact]] = {}
    for docid, *fact in zip(*columns, strict=True):
        facts_of.setdefault(docid, []).append(Fact(docid, *fact))
    return facts_of


def supporting(passages: pa.Table, qrels: pa.Table) -> dict[str, list[str]]:
    """The passages of the documents that are relevant to each question, in order."""
    of_document: dict[str, list[str]] = {}
    for docid in passages["docid"].to_pylist():
        of_document.setdefault(parent(docid), []).append(docid)
    found: dict[str, list[str]] = {}
    for row in qrels.to_pylist():
        if row["rel"] > 0:
            found.setdefault(row["qid"], []).extend(of_document.get(row["docid"], []))
    return found


def pick(queries: pa.Table, split: str, n: int | None) -> list[dict[str, Any]]:
    """The n questions of a split with the smallest id hash; None: all."""
    rows = [q for q in queries.to_pylist() if q["split"] == split]
    return sorted(rows, key=lambda q: (uniform(q["qid"]), q["qid"]))[:n]


def find_chain(
    question: dict[str, Any],
    support: list[str],
    facts_of: Mapping[str, Sequence[Fact]],
    rarity: Rarity,
) -> Chain | Linked:
    """The question's chain: the corpus's own where the triples have all of its facts, else by
    rule; or why there is none."""
    meta = json.loads(question["meta"])
    kind = meta.get("type") or ("bridge" if len(support) > 1 else "single")
    gold = _read_gold(meta.get("chain"), support, facts_of)
    if gold:
        return Chain(question, gold, "gold", kind, support)
    linked = link(
        question["text"], question["answers"], support, facts_of, rarity,
        comparison=kind == "comparison",
    )  # fmt: skip
    return Chain(question, linked.chain, "rule", kind, support) if linked.chain else linked


def _read_gold(
    said: Any, support: Sequence[str], facts_of: Mapping[str, Sequence[Fact]]
) -> tuple[Fact, ...]:
    """The facts of the triples that a question's meta names; empty if one is not there, or if
    what it names is no list of facts."""
    chain: list[Fact] = []
    for step in said if isinstance(said, list) else ():
        if not isinstance(step, dict) or not step.keys() >= {"docid", "subj", "rel", "obj"}:
            return ()
        text = triple_text(step["subj"], step["rel"], step["obj"])
        own = (f for d in support if parent(d) == step["docid"] for f in facts_of.get(d, ()))
        fact = next((f for f in own if f.text == text), None)
        if fact is None:
            return ()
        chain.append(fact)
    return tuple(chain)


def make_samples(chain: Chain) -> list[Sample]:
    """The samples of a chain: n of a bridge of n facts; 1, 4, 11, 36 of a comparison of 1 to 4."""
    facts = chain.facts
    if chain.type != "comparison":
        return [Sample(facts[:k], fact) for k, fact in enumerate(facts)]
    samples = [Sample((), fact) for fact in facts]
    for k in range(2, len(facts) + 1):
        samples += [Sample(order[:-1], order[-1]) for order in itertools.permutations(facts[:k])]
    return samples


def queries_of(chain: Chain, prefix: Sequence[Fact]) -> list[str]:
    """What serving has searched with when it knows the prefix: the question alone, then with
    each fact behind it."""
    text = chain.question["text"]
    return [text, *(f"{text} {fact.text}" for fact in prefix)]


def search(
    index: Retriever | None, samples: Sequence[tuple[Chain, Sample]], k: int
) -> dict[str, list[str]]:
    """Passages by query, best first, of all queries; nothing without an index."""
    if index is None:
        return {}
    queries = list(dict.fromkeys(q for c, s in samples for q in queries_of(c, s.prefix)))
    found: dict[str, list[str]] = {}
    for at in range(0, len(queries), BLOCK):
        part = queries[at : at + BLOCK]
        for query, hits in zip(part, index.search(part, k), strict=True):
            found[query] = [hit.docid for hit in hits]
    return found


def find_others(
    chain: Chain, found: Sequence[Sequence[str]], facts_of: Mapping[str, Sequence[Fact]], n: int
) -> tuple[list[str], list[str]]:
    """(passages, up to n facts of theirs that do not come next), each once.

    Supporting passages first, then what was found, search by search.
    """
    docids = list(dict.fromkeys([*chain.support, *itertools.chain.from_iterable(found)]))
    own = [fact.text for fact in chain.facts]
    others: dict[str, None] = {}
    for fact in _facts(docids, facts_of):
        if len(others) == n:
            break
        alike = token_f1(fact.text, own) >= SAME if chain.source == "rule" else fact.text in own
        if not alike:
            others[fact.text] = None
    return docids, list(others)


def _facts(docids: Sequence[str], facts_of: Mapping[str, Sequence[Fact]]) -> Iterator[Fact]:
    return itertools.chain.from_iterable(facts_of.get(docid, ()) for docid in docids)


def _group_row(chain: Chain, sample: Sample, docids: list[str]) -> dict[str, Any]:
    question = chain.question
    prompt = chain_query(question["text"], [fact.text for fact in sample.prefix])
    meta = {"type": chain.type, "step": len(sample.prefix), "facts": len(chain.facts)}
    return {
        "group_id": digest("pairs", METHOD, chain.source, question["qid"], prompt,
                           sample.positive.text),
        "method": METHOD, "kind": chain.source, "qid": question["qid"],
        "split": question["split"], "prompt": prompt, "context": None, "docids": docids,
        "retrieval_sign": 0, "iteration": 0, "weight": 1.0, "meta": dumps(meta),
    }  # fmt: skip


def _candidate_rows(group_id: str, positive: str, others: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "group_id": group_id, "cand_id": digest("cand", text), "text": text,
            "score": float(n == 0), "rank": min(n, 1), "label": -1 if n else 1, "n_trials": 0,
            "n_success": 0, "temperature": NOBODYS, "gen_iteration": 0, "model": "",
            "n_tokens": 0,
        }
        for n, text in enumerate([positive, *others])
    ]  # fmt: skip
