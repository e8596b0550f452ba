"""Lookahead against reading clusters when the query is known: the same requests, tier by tier.

A store of real passages and Gaussian-perturbed copies of their vectors lies cluster by cluster on
the cold tier, whose speed is set so that fetching a query's clusters takes about as long as the
window in which the model writes (``--ratio`` F/W = 1). A request is that of HyDE: the model writes
a made-up passage (the window W; the question is the hint), the mean of both is searched (the wait
F), the model answers (A). Texts are recorded once; every condition replays the same prompts to the
same numbers of tokens, so only time differs. Conditions: ``none``, ``lookahead``, ``runtime``
(copies when the query is known: the negative control), ``shuffled`` (the hint is another
question's), and lookahead with fp16 codes. With 32-bit codes the results must be equal in all of
them, document for document; for fp16 the share of equal results is printed.

Then a sweep: at every F/W of ``--sweep`` the second half of the questions is replayed with and
without lookahead, and the latency model, fitted on the first half at one ratio, predicts both.

Lin et al., TeleRAG, arXiv:2502.20969. About half an hour on 2 cores with 100 questions; ``--tier
cuda`` is the same between pinned memory and a GPU. Writes measured/telerag/results.json.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from tqdm import tqdm

from stages.clusters import ClusterFile
from stages.encoder import embed, open_encoder
from stages.index import clustered, layout
from stages.index.lists import assign
from stages.lm import LocalGenerator, open_generator
from stages.prompts import STOP, hypothesis_prompt, rag_prompt
from stages.records import RecordStore
from stages.serve.asked import pick_questions
from stages.serve.prefetch.budget import fit
from stages.serve.prefetch.engine import Observed, PrefetchEngine, open_engine, trace_of
from stages.serve.prefetch.replaying import rewrite
from stages.tables import read_table
from stages.types import Passage, Request

ROOT = Path(__file__).resolve().parents[1]
MODEL, ENCODER = Path("data/finetune/smollm2"), Path("data/finetune/minilm")
CORPUS = Path("data/ingest/fanoutqa-leaf")
SHARED = ROOT.parent / "shared" / "data"
OUT = Path("measured/telerag")

SIGMA = 0.6  # length of the noise that is added to a unit vector to make another
SEED = 13
WRITTEN, ANSWERED = 12, 4  # tokens of the made-up passage and of the answer
K = 3
SWEEP = (0.2, 0.5, 2.0, 3.0)
CONDITIONS: dict[str, dict[str, Any]] = {
    "none": {"strategy": "none"}, "lookahead": {}, "runtime": {"strategy": "runtime"},
    "shuffled": {}, "lookahead, fp16": {"codec": "fp16"},
}  # fmt: skip


class Trace(NamedTuple):
    """A recorded request."""

    question: str
    prompt: str
    made_up: str

    @property
    def query(self) -> tuple[str, ...]:
        """What is searched: the mean of the two vectors."""
        return (self.question, self.made_up) if self.made_up else (self.question,)


class Timed(NamedTuple):
    """One replayed request, in seconds."""

    window: float  # W
    wait: float  # from the query to its passages
    answer: float  # A
    hit_rate: float
    docids: tuple[str, ...]

    @property
    def total(self) -> float:
        return self.window + self.wait + self.answer


# -- the store ------------------------------------------------------------------------------


def real_texts() -> list[str]:
    """Every distinct passage at hand: of the ingested corpora, and of the shared collections."""
    texts: list[str] = []
    for folder in sorted(Path("data/ingest").glob("*/passages.parquet")):
        rows = read_table(folder.parent, "passages")
        pairs = zip(rows["title"].to_pylist(), rows["text"].to_pylist(), strict=True)
        texts += [f"{title} {text}" for title, text in pairs]
    for file in sorted(SHARED.glob("*/corpus.jsonl")) if SHARED.exists() else []:
        rows = [json.loads(line) for line in file.open(encoding="utf-8")]
        texts += [f"{r.get('title', '')} {r['text']}".strip() for r in rows]
    return list(dict.fromkeys(texts))


def make_store(size: int, nlist: int, nprobe: int) -> Path:
    """An index of kind clustered with ``size`` vectors; made once."""
    folder = OUT / f"index-{size}-{nlist}"
    if (folder / "meta.json").exists():
        return folder
    encoder = open_encoder(ENCODER, max_tokens=128, threads=os.cpu_count() or 1)
    texts = real_texts()
    with RecordStore() as store:
        real = embed(encoder, [str(i) for i in range(len(texts))], texts, store)
    rng = np.random.default_rng(SEED)
    vectors = real[np.arange(size) % len(real)]
    noise = rng.standard_normal((size - len(real), real.shape[1]), dtype=np.float32)
    vectors[len(real) :] += SIGMA / np.sqrt(real.shape[1]) * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kmeans = faiss.Kmeans(real.shape[1], nlist, niter=5, seed=SEED, spherical=True)
    kmeans.train(vectors[rng.permutation(size)[: 50 * nlist]])
    lists = assign(vectors, kmeans.centroids, threads=os.cpu_count() or 1)
    arrays = clustered.cluster_arrays(vectors, lists, kmeans.centroids, ["fp16", "int8"])
    docids = [f"{size - i:07d}" for i in range(size)]  # rows lie by docid descending
    meta = {
        "name": encoder.name, "role": "dense", "dim": encoder.dim, "max_tokens": 128,
        "threads": os.cpu_count() or 1, "fingerprint": encoder.fingerprint,
    }  # fmt: skip
    folder.mkdir(parents=True)
    contents = layout.Contents(docids, arrays, {}, {"nprobe": nprobe}, meta, {})
    layout.write_index(folder, "clustered", contents)
    print(f"store: {len(real)} real passages, {size} vectors, {nlist} clusters", file=sys.stderr)
    return folder


# -- requests -------------------------------------------------------------------------------


def record(generator: LocalGenerator, n: int) -> list[Trace]:
    """What the model makes up for n training questions."""
    questions = pick_questions(read_table(CORPUS, "queries"), "train", n)
    prompts = [hypothesis_prompt(q.text) for q in questions]
    replies = generator.generate([Request(p, WRITTEN, STOP) for p in prompts])
    return [
        Trace(q.text, prompt, reply.text.strip())
        for q, prompt, reply in zip(questions, prompts, replies, strict=True)
    ]


def write(generator: LocalGenerator, prompt: str, tokens: int) -> float:
    """Seconds that the model takes to read the prompt and write so many tokens."""
    start = time.perf_counter()
    rewrite(generator, [Request(prompt, tokens, STOP)])
    return time.perf_counter() - start


def replay(
    engine: PrefetchEngine, generator: LocalGenerator, traces: Iterable[Trace], hints: Iterable[str]
) -> Iterator[Timed]:
    """The requests one after another; nothing that one of them fetched is there for the next."""
    for trace, hint in zip(traces, hints, strict=True):
        engine.begin()
        if hint:
            engine.prefetch(hint)
        window = write(generator, trace.prompt, WRITTEN)
        start = time.perf_counter()
        (hits,) = engine.search([trace.query], K)
        wait = time.perf_counter() - start
        passages = [Passage(h.docid, "", trace.made_up) for h in hits]
        answer = write(generator, rag_prompt(trace.question, passages), ANSWERED)
        seen = engine.observed[-1].stats
        engine.end_request()
        probed = seen.hits.sum() + seen.misses.sum()
        yield Timed(
            window, wait, answer, float(seen.hits.sum() / probed), tuple(h.docid for h in hits)
        )


@contextlib.contextmanager
def opened(index: Path, **settings: Any) -> Iterator[PrefetchEngine]:
    """An engine, warm: what it loads at its first query is nobody's time."""
    engine = open_engine(index, ENCODER, cache_fraction=0.0, **settings)
    try:
        engine.search(["warm up"], K)
        yield engine
    finally:
        engine.close()


class Bench(NamedTuple):
    """What all conditions share."""

    index: Path
    generator: LocalGenerator
    hot_bytes: int
    tier: str

    def run(
        self, name: str, traces: list[Trace], *, throttle: tuple[float, float] | None,
        budget: int, strategy: str = "gradual", hints: list[str] | None = None,
        codec: str = "fp32",
    ) -> tuple[list[Timed], list[Observed]]:  # fmt: skip
        """All requests under one condition, and what the engine saw of their searches."""
        with opened(
            self.index, hot_bytes=self.hot_bytes, budget=budget, strategy=strategy, tier=self.tier,
            throttle=throttle, codec=codec,
        ) as engine:  # fmt: skip
            own = [t.question for t in traces] if hints is None else hints
            timed = replay(engine, self.generator, traces, own)
            done = list(tqdm(timed, total=len(traces), desc=name, unit="request", disable=None))
            return done, list(engine.observed)[1:]  # the first was the warm-up


def means(timed: list[Timed]) -> dict[str, float]:
    """Mean seconds, and the hit rate."""
    fields = ("window", "wait", "answer", "total", "hit_rate")
    return {f: statistics.fmean(getattr(t, f) for t in timed) for f in fields}


def main() -> None:
    """Print one JSON line per condition and per ratio."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--questions", type=int, default=100)
    p.add_argument("--size", type=int, default=500_000, help="vectors in the store")
    p.add_argument("--nlist", type=int, default=1024)
    p.add_argument("--nprobe", type=int, default=64)
    p.add_argument("--ratio", type=float, default=1.0, help="F/W that the throttle is set for")
    p.add_argument("--tier", choices=["ram", "cuda"], default="ram")
    p.add_argument("--conditions", nargs="+", default=[*CONDITIONS], choices=[*CONDITIONS],
                   help="'none' and 'lookahead' are always among them")  # fmt: skip
    p.add_argument("--sweep", nargs="*", type=float, default=SWEEP, help="F/W (none: no sweep)")
    args = p.parse_args()
    index = make_store(args.size, args.nlist, args.nprobe)
    generator = open_generator(MODEL, threads=1)  # the other core copies
    torch.set_num_threads(1)
    traces = record(generator, args.questions)
    size = (index / "codes.npy").stat().st_size
    fetched = size * args.nprobe / args.nlist  # bytes of a query's clusters, about
    window = statistics.fmean(write(generator, t.prompt, WRITTEN) for t in traces[:10])
    bench = Bench(index, generator, hot_bytes=size // 4, tier=args.tier)

    def speed(ratio: float) -> tuple[float, float]:
        return fetched / (ratio * window), 0.0

    rng = random.Random(SEED)
    others = [t.question for t in traces]
    others = others[1:] + others[:1]
    rng.shuffle(others)
    throttle = speed(args.ratio)
    per_window = int(throttle[0] * window)
    results: dict[str, Any] = {"questions": len(traces), "vectors": args.size, "sigma": SIGMA,
                               "bandwidth": throttle[0], "budget": per_window}  # fmt: skip
    asked = {"none", "lookahead", *args.conditions}
    conditions = {name: dict(how) for name, how in CONDITIONS.items() if name in asked}
    if "shuffled" in conditions:
        conditions["shuffled"]["hints"] = others
    timed, seen = {}, {}
    for name, settings in conditions.items():
        timed[name], seen[name] = bench.run(
            name, traces, throttle=throttle, budget=per_window, **settings
        )
    base = means(timed["none"])
    for name, settings in conditions.items():
        same = [a.docids == b.docids for a, b in zip(timed["none"], timed[name], strict=True)]
        assert all(same) or "codec" in settings, f"{name}: other results"
        line = report(name, base, means(timed[name]), per_window / throttle[0])
        results[name] = line | {"equal results": sum(same) / len(same)}
    if args.sweep:
        half = len(traces) // 2
        known = timed["lookahead"][:half], seen["lookahead"][:half]
        results["sweep"] = sweep(bench, traces, speed, args.sweep, *known)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def report(name: str, base: dict[str, float], own: dict[str, float], copy_s: float) -> dict:
    """A printed line: how much faster a request ends, and what the arithmetic of W, F, A allows."""
    w, f, a, h = base["window"], base["wait"], base["answer"], own["hit_rate"]
    line = {
        "benchmark": f"telerag: {name}", "peer": "no lookahead", "unit": "s/request",
        "ours": round(own["total"], 4), "theirs": round(base["total"], 4),
        "ratio": round(base["total"] / own["total"], 3),
        "possible": round((w + f + a) / (max(w, copy_s) + (1 - h) * f + a), 3),
        "W": round(own["window"], 4), "F": round(f, 4), "wait": round(own["wait"], 4),
        "A": round(own["answer"], 4), "hit_rate": round(h, 4),
        "wait_ratio": round(f / own["wait"], 2),
    }  # fmt: skip
    print(json.dumps(line), flush=True)
    return line


def sweep(
    bench: Bench,
    traces: list[Trace],
    speed: Any,
    ratios: Sequence[float],
    half: list[Timed],
    seen: list[Observed],
) -> list[dict[str, float]]:
    """Measured and predicted seconds of a request at other speeds of the cold tier.

    The model knows the first ``half`` of the questions at one speed: ``seen`` are their searches.
    Another speed changes what a byte takes, to copy it and to read it when it was missed.
    """
    file = ClusterFile(bench.index)
    fitted = fit([trace_of(o, file) for o in seen])
    answer = statistics.fmean(t.answer for t in half)
    cluster = float(file.nbytes.mean())
    points = []
    for ratio in ratios:
        bandwidth = speed(ratio)[0]
        slower = cluster * (1 / bandwidth - 1 / fitted.bandwidth)
        model = fitted._replace(bandwidth=bandwidth, t_cc=fitted.t_cc + slower)
        budget = int(bandwidth * fitted.t_llm)
        row: dict[str, float] = {"F/W": ratio}
        for name, strategy, b in (("none", "none", 0), ("lookahead", "gradual", budget)):
            timed, _ = bench.run(
                f"{name} at F/W {ratio}", traces[len(half) :], throttle=speed(ratio),
                budget=budget, strategy=strategy,
            )  # fmt: skip
            got, expected = means(timed), model.seconds(b, waits=False) + answer
            row |= {
                f"{name} s": round(got["total"], 4), f"{name} predicted": round(expected, 4),
                f"{name} error": round(expected / got["total"] - 1, 4),
                f"{name} hit_rate": round(got["hit_rate"], 4),
            }  # fmt: skip
        print(json.dumps({"benchmark": "telerag: sweep"} | row), flush=True)
        points.append(row)
    return points


if __name__ == "__main__":
    main()
