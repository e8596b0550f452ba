"""Prefixes of passages that lead to the answer, and prefixes that have left the way to it.

For the value head of FREESON (Kim & Kim, arXiv 2505.16409, whose recipe is not public; this is the
card's). *Synthetic*: a positive is a prefix of a relevant passage, from its beginning or from the
sentence with the answer; negatives are its siblings: the continuation that leaves the passage at
the last place where the corpus goes on in two ways, and the beginning of some other passage.
*Policy*: with ``run`` also the passages that a run's own searches found, by its own sub-queries,
relevant or not: what the head will have to tell apart (on-policy, a round at a time).

A sample is a group: the prompt is the query, ``meta`` has the tokens of its candidates (cutting the
texts again would give others). Prefixes are as long as nodes are (``stages.walks.levels``), at
levels 1, 2, 4, 8 ... and at the end. A prefix that still occurs more than ``max_occ`` times says
nothing of a passage and is left out, as is a negative that a relevant passage begins or holds too.
For questions whose answer any passage may hold (yes, a year), and all others, relevant is what the
corpus judged so; with ``answer_only`` it must also hold a gold answer.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import NonNegativeInt, PositiveInt

from stages.answers import normalise
from stages.digest import digest, uniform
from stages.effects import dumps
from stages.errors import QuarryError
from stages.pairs import Built, Inputs
from stages.params import Entry
from stages.preference import dense_ranks
from stages.records import RecordStore
from stages.runs import parent
from stages.tables import read_table, table
from stages.tools import Tools
from stages.walks import levels

METHOD = "freeson"
NOBODYS = -1.0  # temperature: no model wrote these


class Params(Entry):
    """Values of a ``paths`` entry."""

    recipe: Literal["paths"]
    corpus: str  # an ingest entry with judgements
    index: str  # of kind suffixes, over the same corpus
    encoder: Literal["none"]
    model: str  # the generator whose tokens these are
    triples: Literal["none"] = "none"
    run: str = "none"  # a run of strategy freeson over the same corpus: adds its searches
    questions: PositiveInt | None = None  # of split train, those of smallest id hash; none: all
    dev_questions: NonNegativeInt | None = None  # of split dev
    answer_only: bool = False  # a relevant passage must hold a gold answer
    negatives: PositiveInt = 2  # per positive, at each length
    granularity: PositiveInt = 6  # as in serving
    depth: PositiveInt = 16
    max_occ: PositiveInt = 50
    round: NonNegativeInt = 0  # of training on the head's own searches
    threads: PositiveInt = 1
    seed: int


class Way(NamedTuple):
    """A walk: where it begins in the index's tokens, and its tokens."""

    place: int
    tokens: tuple[int, ...]


def build(params: Params, inputs: Inputs, tools: Tools, store: RecordStore) -> Built:
    """Groups of the sampled questions, and how many were left out, and why.

    Raises:
        QuarryError: the index is of another kind or another model's, or no question of split train
            has a relevant passage.
    """
    index = tools.retriever
    if not hasattr(index, "roots") or tools.generator is None:
        raise QuarryError(
            "pairs: paths needs an index of kind suffixes and a generator; name both."
        )
    reader = tools.generator.reads_prefixes()
    if reader.tokenizer != index.tokenizer:
        raise QuarryError(
            f"pairs: index '{index.name}' holds tokens of another model than {params.model}."
        )
    number = {docid: i for i, docid in enumerate(index.docids)}
    relevant = find_relevant(inputs, number)
    asked = pick(inputs.queries, "train", params.questions)
    asked += pick(inputs.queries, "dev", params.dev_questions)
    searched = read_searches(inputs.run) if inputs.run else {}
    writer = _Writer(params, index, reader)
    for question in asked:
        gold = relevant.get(question["qid"], [])
        if params.answer_only:
            gold = [d for d in gold if holds_answer(reader.decode(index.text(d)), question)]
        writer.add_question(question, gold)
        for query, found in searched.get(question["qid"], {}).items():
            docs = [number[d] for d in found if d in number]
            writer.add_search(question, query, gold, docs)
    if not any(g["split"] == "train" for g in writer.groups):
        raise QuarryError(
            f"pairs: no question of split train of corpus '{params.corpus}' has a relevant passage "
            f"with a prefix of its own ({dict(writer.counts)}). Name a corpus with judgements."
        )
    stats = {"questions": len(asked), "by_kind": dict(sorted(writer.counts.items()))}
    return Built(
        table("pref_groups", writer.groups), table("pref_candidates", writer.candidates), stats,
        {"groups": len(writer.groups)},
    )  # fmt: skip


def pick(queries: pa.Table, split: str, n: int | None) -> list[dict[str, Any]]:
    """The n questions of a split with the smallest id hash; None: all."""
    rows = [q for q in queries.to_pylist() if q["split"] == split]
    return sorted(rows, key=lambda q: (uniform(q["qid"]), q["qid"]))[:n]


def find_relevant(inputs: Inputs, number: dict[str, int]) -> dict[str, list[int]]:
    """By qid: the numbers of the passages of its relevant documents."""
    of_document: dict[str, list[int]] = {}
    for docid in inputs.passages["docid"].to_pylist():
        of_document.setdefault(parent(docid), []).append(number[docid])
    found: dict[str, list[int]] = {}
    for row in inputs.qrels.to_pylist():
        if row["rel"] > 0:
            found.setdefault(row["qid"], []).extend(of_document.get(row["docid"], []))
    return found


def holds_answer(text: str, question: dict[str, Any]) -> bool:
    """Whether a normalised gold answer stands in the normalised text, as whole words."""
    words = f" {normalise(text)} "
    return any(f" {normalise(a)} " in words for a in question["answers"] or () if normalise(a))


def read_searches(run: Any) -> dict[str, dict[str, list[str]]]:
    """qid -> query -> the passages found, of a run's effect log."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in read_table(run, "effects").to_pylist():
        if row["kind"] == "Search":
            asked = json.loads(row["request"])
            if asked["unit"] == "passage":
                hits = json.loads(row["result"])
                if isinstance(hits, dict):  # of a walk, with what it cost
                    hits = hits["hits"]
                docids = [docid for docid, _ in hits]
                found.setdefault(row["qid"], {})[asked["query"]] = docids
    return found


def marks(n: int, granularity: int, depth: int) -> list[int]:
    """Lengths at which a walk of n tokens is judged: levels 1, 2, 4, 8 ... and its end."""
    every = levels(n, granularity, depth)
    return [m for i, m in enumerate(every, 1) if i & (i - 1) == 0 or i == len(every)]


class _Writer:
    """Collects rows; every draw is seeded by the question and the passage."""

    def __init__(self, params: Params, index: Any, reader: Any) -> None:
        self.params, self.index, self.reader = params, index, reader
        self.groups: list[dict[str, Any]] = []
        self.candidates: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()

    def add_question(self, question: dict[str, Any], gold: Sequence[int]) -> None:
        """A group for each walk into a relevant passage."""
        if not gold:
            self.counts["dropped_no_relevant_passage"] += 1
        for doc in gold:
            for way in self._ways(doc, question):
                lengths = marks(len(way.tokens), self.params.granularity, self.params.depth)
                others = list(self._siblings(way, question["qid"], gold))
                good = [way.tokens[:n] for n in lengths]
                bad = [o.tokens[: len(p)] for p in good for o in others if len(o.tokens) >= len(p)]
                self._add("synthetic", question, question["text"], gold, good, bad)

    def add_search(
        self, question: dict[str, Any], query: str, gold: Sequence[int], docs: Sequence[int]
    ) -> None:
        """A group of what one search found, if it found relevant and other passages."""
        good, bad = [], []
        for doc in docs:
            tokens = self._way(int(self.index.doc_start[doc])).tokens
            lengths = marks(len(tokens), self.params.granularity, self.params.depth)
            (good if doc in gold else bad).extend(tokens[:n] for n in lengths)
        self._add("policy", question, query, gold, good, bad)

    def _way(self, place: int) -> Way:
        """From here to the passage's end, or as far as a walk goes."""
        doc = int(np.searchsorted(self.index.doc_start, place, side="right")) - 1
        end = int(self.index.doc_start[doc + 1]) - 1
        end = min(end, place + self.params.granularity * self.params.depth)
        return Way(place, tuple(self.index.tokens[place:end].tolist()))

    def _ways(self, doc: int, question: dict[str, Any]) -> list[Way]:
        """From the passage's beginning, and from that of the sentence with the answer."""
        start, ids = int(self.index.doc_start[doc]), self.index.text(doc)
        ways = [self._way(start)]
        text = self.reader.decode(ids)
        ends = [i + 2 for i in range(len(text)) if text.startswith(". ", i)]
        for begin in [e - 1 for e in ends]:
            stop = next((e for e in ends if e > begin + 1), len(text))
            if holds_answer(text[begin:stop], question):
                skipped = self._tokens_before(ids, begin)
                if skipped is not None:
                    ways.append(self._way(start + skipped))
                break
        return ways

    def _tokens_before(self, ids: Sequence[int], characters: int) -> int | None:
        """The token that begins at a character of the text; None: it lies inside a token."""
        low, high = 0, len(ids)
        while low < high:
            mid = (low + high) // 2
            if len(self.reader.decode(ids[:mid])) < characters:
                low = mid + 1
            else:
                high = mid
        exact = len(self.reader.decode(ids[:low])) == characters
        return low if exact and low < len(ids) else None

    def _siblings(self, way: Way, qid: str, gold: Sequence[int]) -> Iterator[Way]:
        """Walks that leave this one: first at its last fork, then at the beginning."""
        index, wanted = self.index, set(gold)
        forks = []
        for depth in range(1, len(way.tokens)):
            left, right = index.find(way.tokens[:depth])
            if right - left < 2:
                break
            forks.append((depth, left, right))
        found: list[Way] = []
        for depth, left, right in reversed(forks):
            n = right - left
            for turn in range(min(n, 8)):
                row = left + (int(uniform(qid, str(way.place), str(depth)) * n) + turn) % n
                other = self._way(int(index.sa[row]))
                if self._doc(other) not in wanted and other.tokens != way.tokens:
                    found.append(other)
                    break
            if found:
                break
        for turn in range(20):
            if len(found) >= self.params.negatives:
                break
            drawn = uniform(str(self.params.seed), qid, str(way.place), str(turn))
            doc = int(drawn * len(index.docids))
            if doc not in wanted:
                found.append(self._way(int(index.doc_start[doc])))
        yield from found[: self.params.negatives]

    def _doc(self, way: Way) -> int:
        return int(np.searchsorted(self.index.doc_start, way.place, side="right")) - 1

    def _add(
        self, kind: str, question: dict[str, Any], query: str, gold: Sequence[int],
        good: Sequence[tuple[int, ...]], bad: Sequence[tuple[int, ...]],
    ) -> None:  # fmt: skip
        """A group of the prefixes that mean something, if both labels are left."""
        labels: dict[tuple[int, ...], int] = {}
        for prefix, label in [*((p, 1) for p in good), *((p, -1) for p in bad)]:
            left, right = self.index.find(prefix)
            if not prefix or right - left > self.params.max_occ:
                self.counts["left_out_too_frequent"] += 1
                continue
            there = self.index.docs(left, right, self.params.max_occ)
            if label < 0 and set(there) & set(gold):
                self.counts["left_out_also_relevant"] += 1
                continue
            labels.setdefault(prefix, label)
        texts = {self.reader.decode(prefix): prefix for prefix in reversed(labels)}
        texts.pop("", None)
        kept = {text: labels[prefix] for text, prefix in texts.items()}
        if len(set(kept.values())) < 2:
            self.counts[f"dropped_{kind}_one_label"] += 1
            return
        split, texts_by_id = question["split"], {digest("cand", t): p for t, p in texts.items()}
        group_id = digest("pairs", METHOD, kind, question["qid"], query, repr(sorted(texts)))
        self.counts[f"{kind}_{split}_groups"] += 1
        self.counts[f"{kind}_{split}_positives"] += sum(v > 0 for v in kept.values())
        self.counts[f"{kind}_{split}_negatives"] += sum(v < 0 for v in kept.values())
        self.groups.append({
            "group_id": group_id, "method": METHOD, "kind": kind, "qid": question["qid"],
            "split": split, "prompt": query, "context": None,
            "docids": [self.index.docids[d] for d in gold], "retrieval_sign": 0,
            "iteration": self.params.round, "weight": 1.0,
            "meta": dumps({"tokens": texts_by_id, "tokenizer": self.index.tokenizer}),
        })  # fmt: skip
        scores = [float(v > 0) for v in kept.values()]
        for text, rank, score in zip(kept, dense_ranks(scores), scores, strict=True):
            self.candidates.append({
                "group_id": group_id, "cand_id": digest("cand", text), "text": text,
                "score": score, "rank": rank, "label": 1 if score else -1, "n_trials": 0,
                "n_success": 0, "temperature": NOBODYS, "gen_iteration": self.params.round,
                "model": "", "n_tokens": len(texts[text]),
            })  # fmt: skip
