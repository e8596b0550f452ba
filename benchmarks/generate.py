"""Generation against one question at a time: transformers' ``generate``, greedy, same texts.

Three kinds of work, since batching pays by kind:

* decode-heavy: short prompts, 64 new tokens; a step for many rows costs little more than for one;
* prefill-heavy: prompts of 500 tokens or more with nothing in common, 8 new tokens: arithmetic
  binds, batching gives nothing, and must cost nothing;
* shared prefix: the first 60 % of each prompt is the same; ours reads it once.

The generator itself is measured, as the loop engine calls it with its cache off. Ours uses as
many threads as the machine has cores; the peer runs at its best thread count of 1 and that.
The prompts are questions and facts of FanOutQA. All of it takes about an hour on 2 cores, most of
it the peer's; ``--share 0.125`` measures an eighth of the prompts of each kind.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness import compare
from stages.lm import LocalGenerator, open_generator
from stages.tables import read_table
from stages.types import Request

MODEL = Path("data/finetune/smollm2")
CORPUS = Path("data/ingest/fanoutqa-leaf")
THREADS = os.cpu_count() or 1


def main() -> None:
    """Print one JSON line for each kind of work."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--share", type=float, default=1.0, help="of the prompts of each kind")
    share = p.parse_args().share
    for needed in (MODEL, CORPUS):
        if not needed.exists():
            sys.exit(f"{needed} is missing: dvc repro finetune@smollm2 ingest@fanoutqa-leaf")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    questions = read_table(CORPUS, "queries")["text"].to_pylist()
    facts = read_table(CORPUS, "passages")["text"].to_pylist()

    def passage(seed: int, tokens: int) -> str:
        """Facts ``seed``, ``seed + 61``, ... cut to so many tokens."""
        return tokenizer.decode(tokenizer(" ".join(facts[seed::61])).input_ids[:tokens])

    n = max(2, round(64 * share))
    short = [f"Here is an essay on the question: {q}\n\nFirst," for q in questions[:n]]
    measure(f"decode-heavy: {n} questions, 48 new tokens", short, 48, aim=3.0)

    n = max(2, round(16 * share))
    long = [f"{passage(i, 520)}\nQuestion: {questions[i]}\nAnswer:" for i in range(n)]
    measure(f"prefill-heavy: {n} prompts, 8 new tokens", long, 8, aim=0.95)

    n = max(4, round(32 * share))
    shared = [
        f"{passage(0, 240)}\n{passage(i + 1, 130)}\nQuestion: {questions[i]}\nAnswer:"
        for i in range(n)
    ]
    measure(f"60 % shared prefix: {n} prompts, 16 new tokens", shared, 16, aim=2.0)


def measure(name: str, prompts: Sequence[str], new: int, *, aim: float) -> None:
    """Compare on these prompts; a unit of work is a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lengths = [len(ids) for ids in tokenizer(list(prompts)).input_ids]
    print(f"{name}: prompts of {min(lengths)} to {max(lengths)} tokens", file=sys.stderr)
    ours: LocalGenerator = open_generator(MODEL, threads=THREADS)
    peer = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    requests = [Request(p, new) for p in prompts]

    def batched() -> list[str]:
        torch.set_num_threads(THREADS)
        ours.forget()
        return [g.text for g in ours.generate(requests)]

    def one_at_a_time(threads: int) -> list[str]:
        torch.set_num_threads(threads)
        texts = []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            out = peer.generate(ids, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :]
            texts.append(tokenizer.decode(out, skip_special_tokens=True))
        return texts

    def assert_same(a: list[str], b: list[str]) -> None:
        assert a == b, next((x, y) for x, y in zip(a, b, strict=True) if x != y)

    compare(
        f"generate: {name}", peer="transformers generate, one at a time", unit="prompts/s",
        aim=aim, ours=batched, work=len(prompts), check=assert_same,
        theirs={f"{t} threads": lambda t=t: one_at_a_time(t) for t in sorted({1, THREADS})},
    )  # fmt: skip


if __name__ == "__main__":
    main()
