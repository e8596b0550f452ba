"""RAR²'s pairs: thoughts that reason well and find well, and answers read from what they find.

Xu et al., RAR²: Retrieval-Augmented Medical Reasoning via Thought-Driven Retrieval, EMNLP 2025
Findings (arXiv:2509.22713); its rules are known from a summary. Of each question K thoughts are
drawn. A thought is right (a) if the answer that goes on from it is, without documents, and finds
well (b) if the answer from what it finds is right. Chosen are the thoughts with a and b, rejected
all others: a alone rewards memory, b alone lucky finds. One pair per question (kind ``thought``).
Kind ``answer``: K answers drawn from documents, right ones against wrong ones; ours takes those of
a chosen thought and of a rejected one, so that noise is trained on as well.

Luck: with m options a thought without content is chosen at a rate of 1 / m²; with
``require_repeats: 2`` (ours) every answer has to be right twice, and it is 1 / m⁴.

Questions with options are answered by a letter (``stages.thoughts``), others by a line, as serving
asks them (strategy rar2, ``answer: letters`` or ``text``). The preference recipe trains on both
kinds at once: one model thinks and answers.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.answers import exact_match, token_f1
from stages.digest import uniform
from stages.effects import LLM, Outcome, Question, Search, Steps, dumps
from stages.errors import QuarryError
from stages.loop import run_loop
from stages.pairs import Built, Inputs
from stages.pairs.thought_groups import Answers, Rollout, choose_thoughts, pair_up, pick
from stages.params import Entry
from stages.prompts import STOP, cut_passages, fit_passages, rag_prompt
from stages.records import RecordStore
from stages.tables import table
from stages.thoughts import letter_prompt, read_letter, read_thought, think_prompt
from stages.tools import Tools
from stages.types import Passage, Request


class Params(Entry):
    """Values of a ``thoughts`` entry."""

    recipe: Literal["thoughts"]
    corpus: str  # an ingest entry whose queries have answers
    index: str  # what the thoughts search
    encoder: str  # of the index, where that is dense
    model: str  # the generator that thinks and answers
    triples: Literal["none"] = "none"
    run: Literal["none"] = "none"
    questions: PositiveInt  # of split train, those of smallest id hash
    dev_questions: NonNegativeInt = 12  # of split dev
    samples: PositiveInt = 8  # K: thoughts of a question, and answers to a prompt
    require_repeats: PositiveInt = 1  # r: answers that must all be right for a or b
    rejected: Literal["uniform", "near_miss"] = "uniform"  # near_miss: a or b, where there are
    most_thoughts: PositiveInt = 4000  # train groups of kind thought
    most_answers: PositiveInt = 8000  # of kind answer
    thought_tokens: PositiveInt = 512
    max_tokens: PositiveInt = 16  # of an answer
    passages: PositiveInt = 8  # shown
    passage_tokens: PositiveInt = 80  # of each, at the most
    prompt_tokens: PositiveInt = 1536  # of a prompt; beyond, its last passages are left out
    temperature: NonNegativeFloat = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    correct_f1: Annotated[float, Field(gt=0, le=1)] = 0.8  # token F1 that counts as correct
    batch: PositiveInt = 16  # texts generated together
    threads: PositiveInt = 1
    seed: int


def build(params: Params, inputs: Inputs, tools: Tools, store: RecordStore) -> Built:
    """Groups of both kinds for the sampled questions, and how many gave none for what reason.

    Raises:
        QuarryError: the corpus has no train question with an answer, the entry names no index or
            generator, or the model failed on more than half of the questions.
    """
    asked = [
        *pick_questions(inputs.queries, "train", params.questions),
        *pick_questions(inputs.queries, "dev", params.dev_questions),
    ]
    if not any(q["split"] == "train" for q in asked):
        raise QuarryError(
            f"pairs: corpus '{params.corpus}' has no question with an answer in split train. Name "
            f"a corpus that has, for example one of source fanoutqa_leaf."
        )
    rows = inputs.passages.select(["docid", "title", "text"]).to_pylist()
    strategy = functools.partial(
        roll_out, params=params, library={row["docid"]: Passage(**row) for row in rows},
        golds={q["qid"]: q["answers"] for q in asked}, tools=tools,
    )  # fmt: skip
    loop = run_loop(
        strategy, [Question(q["qid"], q["text"], tuple(q["options"] or ())) for q in asked], tools,
        seed=params.seed, batch=params.batch, store=store, trace=False,
    )  # fmt: skip
    failed = [a for a in loop.answered if a.error]
    if 2 * len(failed) > len(asked):
        raise QuarryError(f"pairs: {len(failed)} questions failed; the first: {failed[0].error}")
    rolled = {a.qid: _read(a.outcome.memory) for a in loop.answered if not a.error}
    groups, candidates, stats = pair_up(
        asked, rolled, seed=params.seed, temperature=params.temperature, rejected=params.rejected,
        most={"thought": params.most_thoughts, "answer": params.most_answers},
    )  # fmt: skip
    lengths = tools.generator.count_tokens([c["text"] for c in candidates])
    for candidate, n_tokens in zip(candidates, lengths, strict=True):
        candidate |= {"n_tokens": n_tokens, "model": tools.generator.fingerprint}
    llm = [t for t in loop.ticks if t.kind == "LLM"]
    facts = {
        "sampled": sum(t.n_unique - t.n_cached for t in llm),
        "reused": sum(t.n_cached for t in llm),
        "model_seconds": round(sum(t.ms for t in llm) / 1000, 2),
    }
    stats |= {"questions": len(asked), "failed": len(failed)}
    return Built(table("pref_groups", groups), table("pref_candidates", candidates), stats, facts)


def pick_questions(queries: pa.Table, split: str, n: int) -> list[dict[str, Any]]:
    """The n questions of a split with the smallest id hash, of those with an answer."""
    rows = [q for q in queries.to_pylist() if q["split"] == split and q["answers"]]
    return sorted(rows, key=lambda q: (uniform(q["qid"]), q["qid"]))[:n]


# -- what is drawn ----------------------------------------------------------------------------


def roll_out(
    question: Question, *, params: Params, library: dict[str, Passage],
    golds: dict[str, Sequence[str]], tools: Tools,
) -> Steps:  # fmt: skip
    """K thoughts, r answers from each without documents and with, and K answers to some prompts."""
    q, options = question, question.options
    how, r = params, params.require_repeats

    def ask(prompt: str, most: int) -> LLM:
        return LLM(Request(prompt, most, STOP, how.temperature, how.top_p))

    def judge(texts: Sequence[str]) -> list[bool]:
        return [is_correct(text, golds[q.qid], options, how.correct_f1) for text in texts]

    replies = yield [ask(think_prompt(q.text, options), how.thought_tokens)] * how.samples
    thoughts = [read_thought(reply.text, len(options)) for reply in replies]
    direct = yield [
        ask(answer_prompt(q, [], z), how.max_tokens) for z in thoughts for _ in range(r)
    ]
    found = yield [Search(z or q.text, how.passages) for z in thoughts]
    if not all(found):  # as in serving: the question stands in for what finds nothing
        instead = yield Search(q.text, how.passages)
        found = [hits or instead for hits in found]
    shown = []
    for hits in found:
        passages = cut_passages(
            [library[hit.docid] for hit in hits], how.passage_tokens, tools.generator.count_tokens
        )
        shown.append(fit_passages(
            passages, how.prompt_tokens, tools.generator.count_tokens,
            lambda fitting: answer_prompt(q, fitting),
        ))  # fmt: skip
    read = yield [ask(answer_prompt(q, ps), how.max_tokens) for ps in shown for _ in range(r)]
    a, b = ([all(judge([x.text for x in xs])) for xs in _by(r, xs)] for xs in (direct, read))
    outcomes = list(zip(a, b, strict=True))
    prompts: dict[str, tuple[str, list[str]]] = {}  # prompt -> whose documents, their ids
    for source, some in zip(("chosen", "rejected"), choose_thoughts(outcomes), strict=True):
        if some:
            at = pick(some, how.seed, q.qid, "documents", source)
            docids = [p.docid for p in shown[at]]
            prompts.setdefault(answer_prompt(q, shown[at]), (source, docids))
    drawn = yield [ask(prompt, how.max_tokens) for prompt in prompts for _ in range(how.samples)]
    answers = []
    for (prompt, (source, docids)), xs in zip(
        prompts.items(), _by(how.samples, drawn), strict=True
    ):
        texts = [x.text for x in xs]
        answers.append(Answers(source, docids, prompt, texts, judge(texts)))
    return Outcome(memory=dumps(Rollout(thoughts, outcomes, answers)))


def answer_prompt(question: Question, passages: Sequence[Passage], thought: str = "") -> str:
    """What serving asks: for a letter where there are options, else for a line."""
    if question.options:
        return letter_prompt(question.text, question.options, passages, thought)
    note = [Passage("", "Thought", thought)] if thought else []
    return rag_prompt(question.text, [*note, *passages])


def is_correct(
    text: str, golds: Sequence[str], options: Sequence[str], correct_f1: float
) -> bool:  # fmt: skip
    """Whether an answer counts as right; of one with options, the option that its letter names."""
    if options:
        at = read_letter(text, len(options))
        return at is not None and bool(exact_match(options[at], golds))
    return bool(exact_match(text, golds)) or token_f1(text, golds) >= correct_f1


def _by(n: int, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[at : at + n] for at in range(0, len(items), n))


def _read(memory: str) -> Rollout:
    thoughts, outcomes, answers = json.loads(memory)
    return Rollout(thoughts, [(a, b) for a, b in outcomes], [Answers(*one) for one in answers])
