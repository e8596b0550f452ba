"""The loop engine against the same strategy one question at a time: batching, and nothing else.

Both sides run the same generator functions on the same model, index and prompts, caches off. The
peer runs every effect when its question asks for it, at its best thread count. Decode-heavy work:
two rounds of ITER-RETGEN (Shao et al., EMNLP 2023) with prompts of at most 64 tokens and 24 new
tokens each. Answers, passages and counts of calls must be equal.

The second line is arithmetic, not time: calls of the model against batches of them. About 40
minutes on 2 idle cores; ``--questions 16`` takes a quarter.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import compare
from stages.effects import LLM, Outcome, Question, Search, Steps
from stages.index import open_index
from stages.lm import open_generator
from stages.loop import run_loop
from stages.serve.asked import Library, pick_questions
from stages.tables import read_table
from stages.tools import Tools
from stages.types import Request

MODEL = Path("data/finetune/smollm2")
CORPUS = Path("data/ingest/fanoutqa-leaf")
INDEX = Path("data/index/bm25-fanoutqa-leaf")
ROUNDS, NEW, PROMPT = 2, 24, 64  # rounds, new tokens in each, most tokens of a prompt


def main() -> None:
    """Print two JSON lines: wall time, and calls for each batch."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--questions", type=int, default=64)
    p.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of ours; 1 if cores are busy"
    )
    args = p.parse_args()
    n = args.questions
    for needed in (MODEL, CORPUS, INDEX):
        if not needed.exists():
            sys.exit(f"{needed} is missing: dvc repro serve@rag-fanoutqa-leaf makes all three")
    tools = Tools(open_generator(MODEL, threads=1), open_index(INDEX))
    library = Library(read_table(CORPUS, "passages"), tools.generator.count_tokens)
    questions = pick_questions(read_table(CORPUS, "queries"), "train", n)

    def iterative(question: Question) -> Steps:
        query, answer, docids = question.text, "", []
        for _ in range(ROUNDS):
            hits = yield Search(query, 1)
            best = library.passages([h.docid for h in hits])
            docids += [p.docid for p in best]
            title = best[0].title if best else ""
            prompt = f"{title}\nQuestion: {question.text}"
            cut = prompt[: 2 * PROMPT]  # characters; a token has two or more
            answer = (yield LLM(Request(f"{cut}\nAnswer:", NEW))).text
            query = f"{question.text} {answer}"
        return Outcome(answer, docids=docids)

    def in_lock_step() -> list[Outcome]:
        torch.set_num_threads(args.threads)
        tools.generator.forget()
        return [a.outcome for a in run_loop(iterative, questions, tools).answered]

    def one_at_a_time(threads: int) -> list[Outcome]:
        torch.set_num_threads(threads)
        tools.generator.forget()
        return [run_alone(iterative(q), tools) for q in questions]

    def assert_same(ours: list[Outcome], theirs: list[Outcome]) -> None:
        assert ours == theirs, next(x for x in zip(ours, theirs, strict=True) if x[0] != x[1])

    compare(
        f"loop: {n} questions, {ROUNDS} rounds of {NEW} new tokens, decode-heavy",
        peer="the same strategy, one question at a time", unit="questions/s", aim=3.0,
        ours=in_lock_step, work=n, check=assert_same,
        theirs={f"{t} threads": lambda t=t: one_at_a_time(t) for t in sorted({1, args.threads})},
    )  # fmt: skip
    llm = [t for t in run_loop(iterative, questions, tools).ticks if t.kind == "LLM"]
    calls, batches = sum(t.n_requests for t in llm), sum(t.n_batches for t in llm)
    print(json.dumps({
        "benchmark": f"loop: {n} questions, batches of LLM calls",
        "peer": "the same strategy, one question at a time", "unit": "batches",
        "ours": batches, "theirs": calls, "ratio": calls / batches, "aim": 5.0,
    }))  # fmt: skip


def run_alone(steps: Steps, tools: Tools) -> Outcome:
    """One question from its first effect to its last, each run as it is asked for."""
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
