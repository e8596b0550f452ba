"""Pools of evidence of one question: those that a run of RFM-RAG had, and those made from support.

What ``sufficiency`` labels. The loop's own pools are read back from a run's answers: an item has
the round in which it came, and the one from which it was gone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.digest import digest, uniform
from stages.errors import QuarryError
from stages.evidence import Evidence, distil, judge_text, pool_facts, wanted_words
from stages.gaps import Alike, Fact, Match, Rule, match
from stages.pairs import Inputs
from stages.runs import parent
from stages.tables import read_table
from stages.types import Passage

SPLITS = ("train", "dev")


class Pool(NamedTuple):
    """Evidence of one question, how it was made, and after which round."""

    source: str
    items: list[Evidence]
    found: Match
    round: int
    unread: bool  # the question has no triples: no numbers

    @property
    def text(self) -> str:
        """What the judge reads."""
        return judge_text(self.items, self.found, self.round, unread=self.unread)


class Asked(NamedTuple):
    """A question of the run: what it was read as, what it found, what supports its answer."""

    qid: str
    text: str
    split: str
    type: str
    answers: list[str]
    options: list[str]
    triples: list[Fact]
    rule: Rule
    unread: bool  # as triples
    alike: Alike
    items: list[tuple[Evidence, int | None]]  # the run's, with the round from which one is gone
    n_rounds: int
    support: list[Evidence]  # in hop order
    documents: set[str]  # that the judgements name


def read_run(
    inputs: Inputs, *, dev_share: float, most: Mapping[str, int | None] | None = None
) -> list[Asked]:
    """The questions of splits train and dev whose support is known, by qid.

    Of a split ``most``, those of smallest id hash; none: all. A run without dev questions gives a
    share of its train questions to dev, by hash.

    Raises:
        QuarryError: the run is of another strategy.
    """
    asked = {q["qid"]: q for q in inputs.queries.to_pylist()}
    documents: dict[str, list[str]] = {}
    for row in inputs.qrels.to_pylist():
        if row["rel"] > 0:
            documents.setdefault(row["qid"], []).append(row["docid"])
    rows = [r for r in read_table(inputs.run, "answers").to_pylist() if not r["error"]]
    rows = [r for r in rows if r["qid"] in documents and asked[r["qid"]]["answers"]]
    has_dev = any(asked[r["qid"]]["split"] == "dev" for r in rows)
    sources = _Sources(inputs)
    questions = []
    for row in rows:
        q, trace = asked[row["qid"]], read_trace(row["memory"], inputs.run)
        split = q["split"]
        if not has_dev and split == "train" and uniform("dev", q["qid"]) < dev_share:
            split = "dev"
        if split not in SPLITS:
            continue
        triples = [Fact(*f) for f in trace["asked"]]
        items = [
            (Evidence(**{**e, "facts": tuple(Fact(*f) for f in e["facts"])}), gone)
            for e in trace["pool"]
            for gone in [e.pop("evicted")]
        ]
        about = json.loads(q["meta"] or "{}")
        support = sources.support(about.get("chain", []), documents[q["qid"]], triples)
        questions.append(Asked(
            q["qid"], q["text"], split, str(about.get("type", "")), q["answers"],
            list(q["options"] or ()), triples, trace["rule"], trace["unread"],
            Alike(contained=trace["contained"]), items, len(trace["rounds"]), support,
            set(documents[q["qid"]]),
        ))  # fmt: skip
    questions = [q for q in questions if q.support]
    taken: set[str] = set()
    for split in SPLITS:
        of_split = sorted((uniform(q.qid), q.qid) for q in questions if q.split == split)
        taken |= {qid for _, qid in of_split[: (most or {}).get(split)]}
    return [q for q in questions if q.qid in taken]


def read_trace(memory: str, run: Path) -> dict[str, Any]:
    """What a question of rfm_rag left as its memory.

    Raises:
        QuarryError: it is of another strategy.
    """
    try:
        trace = json.loads(memory)
        _ = trace["asked"], trace["pool"], trace["rounds"], trace["rule"], trace["unread"]
    except (ValueError, KeyError, TypeError):
        raise QuarryError(
            f"pairs: {run} is not a run of strategy rfm_rag (its memory is no trace). Name one."
        ) from None
    return trace


class _Sources:
    """Passages and their facts, by document."""

    def __init__(self, inputs: Inputs) -> None:
        self.passages: dict[str, list[Passage]] = {}
        for row in inputs.passages.select(["docid", "title", "text"]).to_pylist():
            self.passages.setdefault(parent(row["docid"]), []).append(Passage(**row))
        self.facts: dict[str, list[Fact]] = {}
        for row in inputs.triples.select(["docid", "subj", "rel", "obj"]).to_pylist():
            docid, *fact = row.values()
            self.facts.setdefault(docid, []).append(Fact(*fact))

    def support(
        self, chain: Sequence[Mapping[str, str]], documents: Sequence[str], asked: Sequence[Fact]
    ) -> list[Evidence]:
        """The sentence of each fact of the chain; without one the best of each document."""
        if chain:
            steps = [(s["docid"], [Fact(s["subj"], s["rel"], s["obj"])]) for s in chain]
        else:
            steps = [(docid, []) for docid in documents]
        found = []
        for docid, facts in steps:
            wanted = wanted_words(facts or asked)
            best = [
                (score, passage, text, own)
                for passage in self.passages.get(docid, [])
                for text, own, score in distil(
                    passage, facts or self.facts.get(passage.docid, []), wanted, most=1
                )
            ]
            if best:
                score, passage, text, own = max(best, key=lambda b: b[0])
                found.append(Evidence(text, passage.docid, own, score=score))
        return found


# -- pools ------------------------------------------------------------------------------------


def make_pools(
    q: Asked, others: Sequence[Evidence], *, most_distractors: int, seed: int
) -> list[Pool]:
    """Every pool of a question, each text once: the loop's own first."""

    def draw(what: str, n: int) -> int:
        return int(uniform("pool", str(seed), q.qid, what) * n)

    def pool(source: str, items: Sequence[Evidence], n_round: int | None = None) -> Pool:
        kept = list(items)
        if n_round is None:  # made by hand: neither order nor round may say how
            kept.sort(key=lambda e: digest(str(seed), q.qid, source, e.text))
            n_round = 1 + draw(f"round {source}", most_rounds)
        found = match(q.triples, pool_facts(kept)[0], q.alike)
        return Pool(source, kept, found, n_round, q.unread)

    most_rounds = max(q.n_rounds, len(q.triples), 1)
    made = [
        pool(
            "self", [e for e, gone in q.items if e.round <= t and (gone is None or gone > t)], t + 1
        )
        for t in range(q.n_rounds)
    ]
    full, n = q.support, len(q.support)
    n_beside = 1 + draw("distractors", most_distractors)
    beside = _distractors(q, others, n_beside + n, seed)
    without = draw("replaced", n)
    made += [
        pool("full", full), pool("full+distractors", [*full, *beside[:n_beside]]),
        pool("distractors", beside),
        pool(_last("replaced", without, n),
             [*full[:without], *full[without + 1 :], *beside[: n_beside + 1]]),
    ]  # fmt: skip
    made += [pool(_last("left_out", i, n), [*full[:i], *full[i + 1 :]]) for i in range(n)]
    made += [pool("prefix", full[:i]) for i in range(1, n - 1)]  # of n - 1: left_out_last
    return list({p.text: p for p in reversed(made)}.values())[::-1]


def _last(source: str, hop: int, n: int) -> str:
    return f"{source}_last" if hop == n - 1 else source


def _distractors(q: Asked, others: Sequence[Evidence], n: int, seed: int) -> list[Evidence]:
    """n sentences that support nothing: found for this question, then of other questions."""
    facts = {f for e in q.support for f in e.facts}
    texts = {e.text for e in q.support}

    def is_beside(e: Evidence) -> bool:
        return e.text not in texts and not facts & set(e.facts)

    own = {e.text: e for e, _ in q.items if is_beside(e)}
    found = sorted(own.values(), key=lambda e: digest(str(seed), q.qid, e.text))[:n]
    at = int(uniform("others", str(seed), q.qid) * len(others)) if others else 0
    for e in (*others[at:], *others[:at]):
        if len(found) >= n:
            break
        if is_beside(e) and e.text not in own:
            own[e.text] = e
            found.append(e)
    return found
