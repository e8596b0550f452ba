"""Pools of evidence that answer their question, and pools that do not: what trains RFM-RAG's judge.

Li et al., arXiv:2508.17862, train their R-Feedback model on data that could not be read. Ours, in
the spirit of SIM-RAG's self-practice (Yang et al., 2025) and with supporting facts where a corpus
has them:

    self               the loop's own pool after every round: a serve run of rfm_rag that never
                       judges (judge: always_continue), read back from its answers
    full               what the supporting documents say
    full+distractors   and 1-5 sentences beside it
    left_out           one support missing       (left_out_last: that of the last hop)
    replaced           one support missing, one more distractor: as long as full+distractors
    distractors        nothing but distractors
    prefix             the first hops

With o: the reader answers rightly from this pool, and g: all supporting documents are in it, a
pool is sufficient where o and g, insufficient where neither, or where a support was taken out.
What is between teaches nothing and gets no label: o without g is a guess or known by heart, g
without o is the reader's failure. The reader is the entry's model; without one the answer is
copied: the value that the question's triples give (``stages.gaps.copy_answer``).

Every question has as many of one label as of the other, of those without a support of the last
hop one at the least. Pools of dev questions stay in the table without a label too: the threshold
is chosen on the loop's own rounds. A question of which one label is missing is left out, counted.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import Field, PositiveInt

from stages.answers import exact_match, token_f1
from stages.digest import digest
from stages.effects import LLM, Choice, Effect, Outcome, Question, Steps, dumps
from stages.errors import QuarryError
from stages.evidence import bound_items, reading_order
from stages.gaps import copy_answer
from stages.loop import run_loop
from stages.pairs import Built, Inputs
from stages.pairs.evidence_pools import Asked, Pool, make_pools, read_run
from stages.params import Entry
from stages.preference import dense_ranks
from stages.prompts import STOP, rag_prompt
from stages.records import RecordStore
from stages.runs import parent
from stages.tables import table
from stages.tools import Tools
from stages.types import Passage, Request

METHOD, KIND = "rfm_rag", "sufficiency"
WITHOUT_LAST = ("left_out_last", "replaced_last")
CUT = ("left_out", "left_out_last", "replaced", "replaced_last")  # a support was taken out


class Params(Entry):
    """Values of a ``sufficiency`` entry."""

    recipe: Literal["sufficiency"]
    corpus: str
    index: Literal["none"]
    encoder: Literal["none"]
    model: str  # the reader; none: answers are copied
    triples: str  # those of the run
    run: str  # corpus/entry of a run of rfm_rag, judge: always_continue
    dev_share: float = Field(default=0.15, gt=0, lt=1)  # of train questions, if the run has no dev
    questions: PositiveInt | None = None  # of split train, those of smallest id hash; none: all
    dev_questions: PositiveInt | None = None  # of split dev, likewise
    per_label: PositiveInt = 3  # pools of one label and question, at the most
    most_distractors: PositiveInt = 5  # beside full support
    correct_f1: float = Field(default=0.8, gt=0, le=1)  # token F1 that counts as correct
    max_tokens: PositiveInt = 16  # of an answer
    batch: PositiveInt = 16  # answers generated together
    threads: PositiveInt = 1
    seed: int


def build(params: Params, inputs: Inputs, tools: Tools, store: RecordStore) -> Built:
    """Labelled pools of the run's questions, and how many were dropped for what.

    Raises:
        QuarryError: no run or triples are named, the run is of another strategy, or it has no
            question with supporting documents in split train.
    """
    if inputs.run is None or inputs.triples is None:
        raise QuarryError("pairs: a sufficiency entry needs a 'run' of rfm_rag and its 'triples'.")
    most = {"train": params.questions, "dev": params.dev_questions}
    questions = read_run(inputs, dev_share=params.dev_share, most=most)
    if not any(q.split == "train" for q in questions):
        raise QuarryError(
            f"pairs: run '{params.run}' has no train question with supporting documents. Serve "
            f"split train of a corpus that has them, with strategy rfm_rag."
        )
    others = [e for q in questions for e, _ in q.items if q.split == "train"]
    how = {"most_distractors": params.most_distractors, "seed": params.seed}
    pools = {q.qid: make_pools(q, others, **how) for q in questions}
    titles = dict(zip(*(inputs.passages[c].to_pylist() for c in ("docid", "title")), strict=True))
    answers, facts = read_answers(questions, pools, titles, params, tools, store)
    groups, candidates, stats = label_pools(questions, pools, answers, params)
    return Built(table("pref_groups", groups), table("pref_candidates", candidates), stats, facts)


# -- what a reader makes of them ----------------------------------------------------------------


def read_answers(
    questions: Sequence[Asked], pools: Mapping[str, list[Pool]], titles: Mapping[str, str],
    params: Params, tools: Tools, store: RecordStore,
) -> tuple[dict[str, list[str]], dict[str, float]]:  # fmt: skip
    """By qid an answer per pool, copied or the model's; measurements."""
    if tools.generator is None:
        copied = {
            q.qid: [copy_answer(q.triples, q.rule, p.found) for p in pools[q.qid]]
            for q in questions
        }
        return copied, {}
    by_qid = {q.qid: q for q in questions}
    ask = partial(_ask, by_qid=by_qid, pools=pools, titles=titles, params=params)
    loop = run_loop(
        ask, [Question(q.qid, q.text, tuple(q.options)) for q in questions], tools,
        batch=params.batch, store=store, trace=False,
    )  # fmt: skip
    if failed := [a for a in loop.answered if a.error]:
        raise QuarryError(f"pairs: {len(failed)} questions failed; the first: {failed[0].error}")
    answers = {a.qid: json.loads(a.outcome.memory) for a in loop.answered}
    return answers, {"model_seconds": round(sum(t.ms for t in loop.ticks) / 1000, 2)}


def _ask(
    question: Question, *, by_qid: Mapping[str, Asked], pools: Mapping[str, list[Pool]],
    titles: Mapping[str, str], params: Params,
) -> Steps:  # fmt: skip
    """All pools of a question at once, in the prompt that serving asks."""
    q, calls = by_qid[question.qid], []
    for pool in pools[q.qid]:
        order = reading_order(pool.items, bound_items(pool.items, pool.found))
        items = [pool.items[i] for i in order]
        shown = [Passage(e.docid, titles.get(e.docid, ""), e.text) for e in items]
        prompt = rag_prompt(q.text, shown)
        call: Effect = LLM(Request(prompt, params.max_tokens, STOP))
        if q.options:
            call = Choice(prompt, [f" {option}" for option in q.options])
        calls.append(call)
    replies = yield calls
    texts = [q.options[r] if q.options else r.text.strip() for r in replies]
    return Outcome(memory=dumps(texts))


# -- labels -------------------------------------------------------------------------------------


def label_of(source: str, is_right: bool, has_support: bool) -> int:
    """1 sufficient, -1 insufficient, 0 neither: o and g; not o and not g, or cut; the rest."""
    if source in CUT or not (is_right or has_support):
        return -1
    return 1 if is_right and has_support else 0


def label_pools(
    questions: Sequence[Asked], pools: Mapping[str, list[Pool]],
    answers: Mapping[str, list[str]], params: Params,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """Rows of both tables, and counts."""
    groups: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    count: Counter[str] = Counter()
    kept: dict[str, Counter[str]] = {}
    for q in questions:
        judged = []
        for pool, answer in zip(pools[q.qid], answers[q.qid], strict=True):
            f1 = token_f1(answer, q.answers)
            right = bool(exact_match(answer, q.answers)) or f1 >= params.correct_f1
            has = q.documents <= {parent(e.docid) for e in pool.items}
            label = label_of(pool.source, right, has)
            count["mixed_right_without_support" if right else "mixed_support_not_read"] += not label
            judged.append((pool, label, f1))
        chosen = balance(judged, params)
        if not chosen:
            labels = {label for _, label, _ in judged}
            count["dropped_no_insufficient" if 1 in labels else "dropped_no_sufficient"] += 1
            continue
        group_id = digest("pairs", METHOD, KIND, q.qid)
        about = {}
        rows = []
        for i, (pool, label, f1) in enumerate(judged):
            used = label if i in chosen else 0
            if not used and not (q.split == "dev" and pool.source == "self"):
                continue
            source = pool.source.removesuffix("_last")
            rows.append((pool.text, used))
            about[digest("cand", pool.text)] = (source, pool.round, round(f1, 4))
            if used:
                by = kept.setdefault(f"{q.split} {q.type}".strip(), Counter())
                by["sufficient" if used > 0 else "insufficient"] += 1
                by[f"source {source}"] += 1
                by["without_last_hop"] += pool.source in WITHOUT_LAST
        groups.append(_group_row(group_id, q, about))
        candidates += _candidate_rows(group_id, rows)
    stats = {
        "questions": len(questions), "groups": len(groups), "counts": dict(count),
        "kept": {k: dict(v) for k, v in kept.items()},
    }  # fmt: skip
    return groups, candidates, stats


def balance(judged: Sequence[tuple[Pool, int, float]], params: Params) -> set[int]:
    """Places of as many pools of one label as of the other; nothing where one is missing.

    First those that a test compares (as long as each other), then those without the last hop's
    support, then the loop's own, then the rest.
    """
    first = ("full+distractors", "replaced", "replaced_last", "left_out_last", "self")

    def order(i: int) -> tuple[int, str]:
        source = judged[i][0].source
        place = first.index(source) if source in first else len(first)
        return place, digest(str(params.seed), judged[i][0].text)

    sides = [
        sorted((i for i, (_, label, _) in enumerate(judged) if label == side), key=order)
        for side in (1, -1)
    ]
    n = min(params.per_label, *map(len, sides))
    return {i for side in sides for i in side[:n]}


def _group_row(group_id: str, q: Asked, about: dict[str, Any]) -> dict[str, Any]:
    return {
        "group_id": group_id, "method": METHOD, "kind": KIND, "qid": q.qid, "split": q.split,
        "prompt": q.text, "context": None, "docids": [e.docid for e in q.support],
        "retrieval_sign": 0, "iteration": 0, "weight": 1.0,
        "meta": dumps({"type": q.type, "pools": about}),
    }  # fmt: skip


def _candidate_rows(group_id: str, rows: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    scores = [(1 + label) / 2 for _, label in rows]
    return [
        {
            "group_id": group_id, "cand_id": digest("cand", text), "text": text, "score": score,
            "rank": rank, "label": label, "n_trials": 0, "n_success": 0, "temperature": -1.0,
            "gen_iteration": 0, "model": "", "n_tokens": 0,
        }
        for (text, label), score, rank in zip(rows, scores, dense_ranks(scores), strict=True)
    ]  # fmt: skip
