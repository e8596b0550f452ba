"""The loop engine against the same strategy one question at a time, on four kinds of work.

Both sides run the same generator function on the same model, index and prompts, caches off. The
peer runs each effect when its question asks for it, and forgets a prompt before it reads the
next; it has its best of 1 and all threads. Answers and passages must be equal. Batching pays by
kind of work (one search and one generation a question):

* decode-heavy: prompts of at most 64 tokens, 48 new ones; a step for many rows costs little more
  than for one;
* prefill-heavy: prompts of 500 tokens or more that begin differently, 8 new ones: arithmetic
  binds, batching gives nothing and must cost nothing;
* shared prefix: 60 % of every prompt is the same text; ours reads it once;
* dedupe alone: every question is asked four times, by ids of their own, and ours sends one request
  a call as well: nothing is batched, and the prompts begin differently.

The questions are training questions of FanOutQA, the prompts' text is its facts. About 40 minutes
on 2 idle cores, most of it the peer's; ``--questions 16`` takes a quarter, ``--kind`` runs one.
The second line of a kind is arithmetic, not time: calls of the model against batches of them (of
dedupe alone: a batch is one call, so against the calls that are left).
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.harness import compare
from stages.effects import LLM, Outcome, Question, Search, Steps
from stages.index import open_index
from stages.lm import LocalGenerator, open_generator
from stages.loop import run_loop
from stages.serve.asked import Library, pick_questions
from stages.tables import read_table
from stages.tools import Tools
from stages.types import Passage, Request

MODEL = Path("data/finetune/smollm2")
CORPUS = Path("data/ingest/fanoutqa-leaf")
INDEX = Path("data/index/bm25-fanoutqa-leaf")
THREADS = os.cpu_count() or 1
KINDS = ("decode-heavy", "prefill-heavy", "shared prefix", "dedupe alone")


class Work(NamedTuple):
    """One kind: passages searched, the prompt of a question, tokens written."""

    k: int
    prompt: Callable[[Question, list[Passage]], str]
    new: int
    aim: float
    asked: int = 1  # times that each question is
    batch: int | None = None  # requests of a call; none: all that there are


def main() -> None:
    """Print two JSON lines for each kind of work: wall time, and calls for each batch."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--questions", type=int, default=64)
    p.add_argument("--kind", choices=KINDS)
    args = p.parse_args()
    for needed in (MODEL, CORPUS, INDEX):
        if not needed.exists():
            sys.exit(f"{needed} is missing: dvc repro serve@rag-fanoutqa-leaf makes all three")
    tools = Tools(open_generator(MODEL, threads=THREADS), open_index(INDEX))
    passages = read_table(CORPUS, "passages")
    library = Library(passages, tools.generator.count_tokens)
    questions = pick_questions(read_table(CORPUS, "queries"), "train", args.questions)
    for kind, work in kinds(tools.generator, passages["text"].to_pylist()).items():
        if args.kind in (None, kind):
            measure(kind, work, questions, tools, library)


def kinds(generator: LocalGenerator, facts: list[str]) -> dict[str, Work]:
    """The three kinds of work by name."""

    def cut(text: str, tokens: int) -> str:
        """Its first words, as many as have at most so many tokens."""
        words = text.split()
        while generator.count_tokens([" ".join(words)])[0] > tokens:
            del words[max(1, len(words) * 49 // 50) :]
        return " ".join(words)

    def joined(passages: list[Passage]) -> str:
        return " ".join(f"{p.title}: {p.text}" for p in passages)

    same = cut(" ".join(facts[::61]), 240)
    more = cut(" ".join(facts[::59]), 540)
    return {
        "decode-heavy": Work(
            1, lambda q, found: f"{cut(joined(found), 24)}\n{cut(q.text, 30)}\nAn essay:", 48, 3.0
        ),
        "prefill-heavy": Work(
            60,  # a rare question finds fewer passages: other facts fill its prompt
            lambda q, found: f"{q.text}\n{cut(f'{joined(found)} {more}', 540)}\n{q.text}\nAnswer:",
            8,
            0.95,
        ),
        "shared prefix": Work(
            10, lambda q, found: f"{same}\n{cut(joined(found), 120)}\n{q.text}\nAnswer:", 16, 2.0
        ),
        "dedupe alone": Work(
            10, lambda q, found: f"{q.text}\n{cut(joined(found), 120)}\n{q.text}\nAnswer:", 16, 3.0,
            asked=4, batch=1,
        ),
    }  # fmt: skip


def measure(
    kind: str, work: Work, questions: list[Question], tools: Tools, library: Library
) -> None:
    """Compare on this work; a unit of it is a question."""
    questions = [
        Question(f"{q.qid} {i}", q.text)
        for q in questions[: len(questions) // work.asked]
        for i in range(work.asked)
    ]
    found = tools.retriever.search([q.text for q in questions], work.k)
    prompts = {  # made before: cutting them to length is nobody's time
        q.qid: work.prompt(q, library.passages([h.docid for h in hits]))
        for q, hits in zip(questions, found, strict=True)
    }
    lengths = tools.generator.count_tokens(list(prompts.values()))
    print(f"loop, {kind}: prompts of {min(lengths)} to {max(lengths)} tokens", file=sys.stderr)

    def strategy(question: Question) -> Steps:
        hits = yield Search(question.text, work.k)
        reply = yield LLM(Request(prompts[question.qid], work.new))
        return Outcome(reply.text, docids=[h.docid for h in hits])

    def in_lock_step() -> list[Outcome]:
        torch.set_num_threads(THREADS)
        tools.generator.forget()
        return [a.outcome for a in run_loop(strategy, questions, tools, batch=work.batch).answered]

    def one_at_a_time(threads: int) -> list[Outcome]:
        torch.set_num_threads(threads)
        return [run_alone(strategy(q), tools) for q in questions]

    def assert_same(ours: list[Outcome], theirs: list[Outcome]) -> None:
        assert ours == theirs, next(x for x in zip(ours, theirs, strict=True) if x[0] != x[1])

    n = len(questions)
    compare(
        f"loop: {kind}, {n} questions, {work.new} new tokens", unit="questions/s", aim=work.aim,
        peer="the same strategy, one question at a time", work=n,
        ours=in_lock_step, check=assert_same,
        theirs={f"{t} threads": lambda t=t: one_at_a_time(t) for t in sorted({1, THREADS})},
    )  # fmt: skip
    ticks = run_loop(strategy, questions, tools, batch=work.batch).ticks
    llm = [t for t in ticks if t.kind == "LLM"]
    calls, batches = sum(t.n_requests for t in llm), sum(t.n_batches for t in llm)
    print(json.dumps({
        "benchmark": f"loop: {kind}, {n} questions, calls of the model", "unit": "batches",
        "peer": "the same strategy, one question at a time",
        "ours": batches, "theirs": calls, "ratio": calls / batches,
        "aim": 5.0 if work.batch is None else float(work.asked),
    }), flush=True)  # fmt: skip


def run_alone(steps: Steps, tools: Tools) -> Outcome:
    """One question from its first effect to its last, each run as it is asked for."""
    tools.generator.forget()
    value: Any = None
    try:
        while True:
            effect = steps.send(value)
            if isinstance(effect, LLM):
                value = tools.generator.generate([effect.request])[0]
            else:
                value = tools.retriever.search([effect.query], effect.k)[0]
    except StopIteration as stop:
        return stop.value


if __name__ == "__main__":
    main()
