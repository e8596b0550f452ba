"""Answers that the generator samples with and without passages, ranked by correctness.

For DPO (Rafailov et al., NeurIPS 2023) on the model's own answers: of two answers to one prompt
the correct one is preferred. Each question makes two groups, one whose prompt shows retrieved
passages (kind ``rag``) and one without (kind ``closed``); the prompts are those that serving
asks (``stages.prompts``), and a candidate is what follows them, leading blank included.

Correct is exact match, or token F1 of at least ``correct_f1``. Where no sample is correct and
``include_gold`` is set, the first gold answer joins as the chosen one: off-policy text, marked
by temperature -1 and no model. A group in which all are right, or all wrong, teaches nothing:
it is dropped and counted. Dev questions are for measuring what training did.

A question with options (yes/no, multiple choice) is left out and counted: serving compares the
options' log-probabilities and generates nothing, so a sampled text is no answer to it, and its
token F1 against "yes" would prefer texts that nobody will ever be given.
"""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.answers import exact_match, token_f1
from stages.digest import digest, uniform
from stages.effects import LLM, Outcome, Question, Search, Steps, dumps
from stages.errors import QuarryError
from stages.loop import run_loop
from stages.pairs import Built, Inputs
from stages.params import Entry
from stages.preference import dense_ranks
from stages.prompts import PROMPT_VERSION, STOP, cut_passages, rag_prompt
from stages.records import RecordStore
from stages.tables import table
from stages.tools import Tools
from stages.types import Passage, Request

METHOD = "dpo"
GOLD_TEMPERATURE = -1.0  # of a candidate that nobody sampled


class Params(Entry):
    """Values of an ``answers`` entry."""

    recipe: Literal["answers"]
    corpus: str  # an ingest entry whose queries have answers
    index: str  # what is searched for passages
    encoder: str  # of the index, where that is dense
    model: str  # the generator that answers
    triples: Literal["none"] = "none"
    run: Literal["none"] = "none"
    questions: PositiveInt  # of split train, those of smallest id hash
    dev_questions: NonNegativeInt = 12  # of split dev
    samples: PositiveInt = 4  # per question and condition
    max_tokens: PositiveInt = 16  # of an answer
    passages: PositiveInt = 3  # shown
    passage_tokens: PositiveInt = 80  # of each, at the most
    temperature: NonNegativeFloat = 0.8
    correct_f1: Annotated[float, Field(gt=0, le=1)] = 0.8  # token F1 that counts as correct
    include_gold: bool = True  # where no sample is correct
    batch: PositiveInt = 16  # answers generated together
    threads: PositiveInt = 1
    seed: int


class Sampled(NamedTuple):
    """The answers to one prompt, as the model gave them."""

    kind: str  # rag or closed
    docids: list[str]  # shown
    prompt: str
    texts: list[str]


def build(params: Params, inputs: Inputs, tools: Tools, store: RecordStore) -> Built:
    """Preference groups of the sampled questions, and how many were dropped for what.

    Raises:
        QuarryError: the corpus has no train question with an answer and without options, the
            entry names no index or generator, or the model failed on more than half of the
            questions.
    """
    queries = inputs.queries
    asked = pick_questions(queries, "train", params.questions)
    if not asked:
        raise QuarryError(
            f"pairs: corpus '{params.corpus}' has no question with an answer in split train that "
            f"is not multiple choice. Name a corpus that has, for example one of source "
            f"fanoutqa_leaf."
        )
    asked += pick_questions(queries, "dev", params.dev_questions)
    rows = inputs.passages.select(["docid", "title", "text"]).to_pylist()
    library = {row["docid"]: Passage(**row) for row in rows}
    loop = run_loop(
        functools.partial(sample_answers, params=params, library=library, tools=tools),
        [Question(q["qid"], q["text"]) for q in asked], tools,
        seed=params.seed, batch=params.batch, store=store, trace=False,
    )  # fmt: skip
    failed = [a for a in loop.answered if a.error]
    if 2 * len(failed) > len(asked):
        raise QuarryError(f"pairs: {len(failed)} questions failed; the first: {failed[0].error}")
    sampled = {
        a.qid: [Sampled(*one) for one in json.loads(a.outcome.memory)]
        for a in loop.answered
        if not a.error
    }
    groups, candidates, stats = rank_answers(asked, sampled, params)
    lengths = tools.generator.count_tokens([c["text"] for c in candidates])
    for candidate, n_tokens in zip(candidates, lengths, strict=True):
        candidate["n_tokens"] = n_tokens
        candidate["model"] = tools.generator.fingerprint if candidate["temperature"] >= 0 else ""
    llm = [t for t in loop.ticks if t.kind == "LLM"]
    facts = {
        "sampled": sum(t.n_unique - t.n_cached for t in llm),
        "reused": sum(t.n_cached for t in llm),
        "model_seconds": round(sum(t.ms for t in llm) / 1000, 2),
    }
    options = {split: len(with_options(queries, split)) for split in ("train", "dev")}
    stats |= {"questions": len(asked), "failed": len(failed), "left_out_options": options}
    return Built(table("pref_groups", groups), table("pref_candidates", candidates), stats, facts)


def pick_questions(queries: pa.Table, split: str, n: int) -> list[dict[str, Any]]:
    """The n questions of a split with the smallest id hash, of those whose answer is a text."""
    rows = [q for q in _answered(queries, split) if not q["options"]]
    return sorted(rows, key=lambda q: (uniform(q["qid"]), q["qid"]))[:n]


def with_options(queries: pa.Table, split: str) -> list[dict[str, Any]]:
    """The questions of a split that have an answer, but one that is chosen and not written."""
    return [q for q in _answered(queries, split) if q["options"]]


def _answered(queries: pa.Table, split: str) -> list[dict[str, Any]]:
    return [q for q in queries.to_pylist() if q["split"] == split and q["answers"]]


def sample_answers(
    question: Question, *, params: Params, library: dict[str, Passage], tools: Tools
) -> Steps:
    """Ask ``samples`` times with the retrieved passages and as often without; all at once.

    A question that finds nothing is asked without passages alone.
    """
    hits = yield Search(question.text, params.passages)
    found = [library[hit.docid] for hit in hits]
    shown = cut_passages(found, params.passage_tokens, tools.generator.count_tokens)
    conditions = {"rag": shown, "closed": []} if shown else {"closed": []}
    prompts = {kind: rag_prompt(question.text, ps) for kind, ps in conditions.items()}
    replies = yield [
        LLM(Request(prompt, params.max_tokens, STOP, params.temperature))
        for prompt in prompts.values()
        for _ in range(params.samples)
    ]
    texts = [reply.text for reply in replies]
    sampled = [
        Sampled(kind, [p.docid for p in conditions[kind]], prompt,
                texts[n * params.samples : (n + 1) * params.samples])
        for n, (kind, prompt) in enumerate(prompts.items())
    ]  # fmt: skip
    return Outcome(memory=dumps(sampled))


def rank_answers(
    asked: Sequence[dict[str, Any]], sampled: dict[str, list[Sampled]], params: Params
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Rows of both tables, and counts by kind: samples, correct ones, groups kept and dropped."""
    groups: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    counts: dict[str, Counter[str]] = {}
    for q in asked:
        for one in sampled.get(q["qid"], []):
            count = counts.setdefault(one.kind, Counter())
            texts = [" " + t.strip() for t in one.texts if t.strip()]
            distinct = list(dict.fromkeys(texts))
            right = [t for t in distinct if is_correct(t, q["answers"], params.correct_f1)]
            count["samples"] += len(one.texts)
            count["empty"] += len(one.texts) - len(texts)
            count["correct"] += sum(t in right for t in texts)
            gold = [] if right or not params.include_gold else [" " + q["answers"][0].strip()]
            if not right and not gold:
                count["dropped_none_right"] += 1
            elif len(right) == len(distinct) and not gold:
                count["dropped_all_right"] += 1
            elif not distinct:
                count["dropped_no_answer"] += 1
            else:
                count["kept"] += 1
                count["kept_with_gold"] += bool(gold)
                group = _group_row(q, one)
                groups.append(group)
                candidates += _candidate_rows(group["group_id"], distinct, right, gold, params)
    return groups, candidates, {"by_kind": {k: dict(c) for k, c in counts.items()}}


def is_correct(answer: str, golds: Sequence[str], correct_f1: float) -> bool:
    """Whether an answer counts as right: equal to a gold answer, or nearly by token F1."""
    return bool(exact_match(answer, golds)) or token_f1(answer, golds) >= correct_f1


def _group_row(question: dict[str, Any], one: Sampled) -> dict[str, Any]:
    return {
        "group_id": digest("pairs", METHOD, one.kind, question["qid"], "0", one.prompt),
        "method": METHOD, "kind": one.kind, "qid": question["qid"], "split": question["split"],
        "prompt": one.prompt, "context": None, "docids": one.docids, "retrieval_sign": 0,
        "iteration": 0, "weight": 1.0, "meta": dumps({"prompt_version": PROMPT_VERSION}),
    }  # fmt: skip


def _candidate_rows(
    group_id: str, distinct: list[str], right: list[str], gold: list[str], params: Params
) -> list[dict[str, Any]]:
    texts = gold + distinct
    scores = [float(t in gold or t in right) for t in texts]
    return [
        {
            "group_id": group_id, "cand_id": digest("cand", text), "text": text, "score": score,
            "rank": rank, "label": 1 if score else -1, "n_trials": 0, "n_success": 0,
            "temperature": GOLD_TEMPERATURE if text in gold else params.temperature,
            "gen_iteration": 0, "model": "", "n_tokens": 0,
        }
        for text, score, rank in zip(texts, scores, dense_ranks(scores), strict=True)
    ]  # fmt: skip
