"""Lookahead against reading clusters when the query is known: the same requests, tier by tier.

A store of real passages and Gaussian-perturbed copies of their vectors lies cluster by cluster on
the cold tier, whose speed is set so that fetching a query's clusters takes about as long as the
window in which the model writes (``--ratio`` F/W = 1). A request is that of HyDE: the model writes
a made-up passage (the window W; the question is the hint), the mean of both is searched (the wait
F), the model answers (A). Texts are recorded once; every condition replays the same prompts to the
same numbers of tokens, so only time differs. With 32-bit codes the results must be equal in all
conditions of a workload, document for document; for fp16 and int8 the share of equal results is
printed, and R@10 of an exhaustive search for all three. Conditions:

* ``none``, ``lookahead``, ``runtime`` (copies when the query is known: the negative control),
  ``shuffled`` (the hint is another question's), lookahead with fp16 and with int8 codes;
* ``repeating``: as many requests, of ten questions, with and without a cache between requests;
* ``bare disk``: no throttle; before each request the file's pages leave the system's memory.

Then a sweep: at every F/W of ``--sweep`` the second half of the questions is replayed with and
without lookahead, and the latency model, fitted on the first half at one ratio, predicts both.

Lin et al., TeleRAG, arXiv:2502.20969. About 40 minutes on 2 idle cores with 100 questions, half of
them for the sweep. ``--tier cuda`` is the same between pinned memory and a GPU, whose copies are
as fast as they are. Writes results.json and sweep.svg below measured/telerag.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from stages.clusters import WIDTH, ClusterFile
from stages.encoder import embed, open_encoder
from stages.index import clustered, layout
from stages.index.lists import assign
from stages.lm import LocalGenerator, open_generator
from stages.prompts import STOP, hypothesis_prompt, rag_prompt
from stages.records import RecordStore
from stages.serve.asked import pick_questions
from stages.serve.prefetch.budget import LatencyModel, fit
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
AGAIN = 10  # questions of the repeating workload


class Condition(NamedTuple):
    """What differs from "none"."""

    base: str = "none"  # what it is compared with
    strategy: str = "gradual"
    codec: str = "fp32"
    shuffled: bool = False
    throttled: bool = True
    cache_fraction: float = 0.0
    repeating: bool = False


BARE, AGAIN_NAME = "none, bare disk", "lookahead, repeating"
CONDITIONS = {
    "none": Condition(strategy="none"),
    "lookahead": Condition(),
    "runtime": Condition(strategy="runtime"),
    "shuffled": Condition(shuffled=True),
    "lookahead, fp16": Condition(codec="fp16"),
    "lookahead, int8": Condition(codec="int8"),
    AGAIN_NAME: Condition(AGAIN_NAME, repeating=True),
    "lookahead, repeating, cache": Condition(AGAIN_NAME, repeating=True, cache_fraction=0.5),
    BARE: Condition(BARE, strategy="none", throttled=False),
    "lookahead, bare disk": Condition(BARE, throttled=False),
}


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
    """The requests one after another; on a bare disk the system's memory is no help."""
    for trace, hint in zip(traces, hints, strict=True):
        if engine.settings.throttle is None:
            engine.forget()
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
    engine = open_engine(index, ENCODER, **settings)
    try:
        engine.search(["warm up"], K)
        yield engine
    finally:
        engine.close()


class Ran(NamedTuple):
    """All requests under one condition."""

    timed: list[Timed]
    seen: list[Observed]  # their searches
    copied: float  # bytes that a request copied ahead
    missed: float  # bytes that its search read
    plan_s: float  # seconds of planning copies, of a request
    copy_s: float  # seconds that copying a window's whole budget takes

    def means(self) -> dict[str, float]:
        """Mean seconds, and the hit rate."""
        fields = ("window", "wait", "answer", "total", "hit_rate")
        return {f: statistics.fmean(getattr(t, f) for t in self.timed) for f in fields}


class Bench(NamedTuple):
    """What all conditions share."""

    index: Path
    generator: LocalGenerator
    hot_bytes: int
    tier: str

    def run(
        self, name: str, traces: list[Trace], condition: Condition, *, budget: int,
        throttle: tuple[float, float] | None, copy_s: float = 0.0,
    ) -> Ran:  # fmt: skip
        """The requests of a workload under one condition."""
        hints = [t.question for t in traces]
        if condition.shuffled:
            hints = hints[len(hints) // 2 :] + hints[: len(hints) // 2]
        with opened(
            self.index, hot_bytes=self.hot_bytes, budget=budget, strategy=condition.strategy,
            tier=self.tier, throttle=throttle, codec=condition.codec,
            cache_fraction=condition.cache_fraction,
        ) as engine:  # fmt: skip
            before = engine.stats()  # the warm-up's
            timed = replay(engine, self.generator, traces, hints)
            done = list(tqdm(timed, total=len(traces), desc=name, unit="request", disable=None))
            after = engine.stats()
            each = [
                (after[key] - before[key]) / len(traces)
                for key in ("copied_bytes", "missed_bytes", "plan_s")
            ]
            return Ran(done, list(engine.observed)[1:], *each, copy_s)

    def bandwidth(self, traces: list[Trace]) -> float:
        """Bytes per second that copies take from the cold tier as it is."""
        ran = self.run("bandwidth", traces, Condition(), budget=self.hot_bytes, throttle=None)
        copies = [(o.copied_bytes, o.copy_s) for o in ran.seen]
        return sum(nbytes for nbytes, _ in copies) / sum(s for _, s in copies)


def repeating(traces: Sequence[Trace]) -> list[Trace]:
    """As many requests, each of one of the first ``AGAIN`` questions, drawn at random."""
    return random.Random(SEED).choices(traces[:AGAIN], k=len(traces))


def main() -> None:
    """Print one JSON line per condition, per codec and per ratio."""
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
    again = repeating(traces)
    size = (index / "codes.npy").stat().st_size
    fetched = size * args.nprobe / args.nlist  # bytes of a query's clusters, about
    window = statistics.fmean(write(generator, t.prompt, WRITTEN) for t in traces[:10])
    bench = Bench(index, generator, hot_bytes=size // 4, tier=args.tier)
    bare = bench.bandwidth(traces[:10])
    results: dict[str, Any] = {
        "questions": len(traces), "vectors": args.size, "sigma": SIGMA, "bare bandwidth": bare,
        "window": window, "bandwidth": fetched / (args.ratio * window),
    }  # fmt: skip

    def run(name: str, condition: Condition, ratio: float, asked: list[Trace]) -> Ran:
        throttled = condition.throttled and args.tier == "ram"
        speed = fetched / (ratio * window) if throttled else bare
        budget = 0 if condition.strategy == "none" else int(min(speed * window, bench.hot_bytes))
        throttle = (speed, 0.0) if throttled else None
        how = {"budget": budget, "throttle": throttle, "copy_s": budget / speed}
        return bench.run(name, asked, condition, **how)

    wanted = {"none", "lookahead"}
    for name in args.conditions:
        if CONDITIONS[name].throttled or args.tier == "ram":  # else it is there already
            wanted |= {CONDITIONS[name].base, name}
    ran: dict[str, Ran] = {}
    for name in sorted(wanted, key=[*CONDITIONS].index):
        condition = CONDITIONS[name]
        ran[name] = run(name, condition, args.ratio, again if condition.repeating else traces)
        base = ran[condition.base]
        same = [a.docids == b.docids for a, b in zip(base.timed, ran[name].timed, strict=True)]
        assert all(same) or condition.codec != "fp32", f"{name}: other results"
        results[name] = report(name, base, ran[name], sum(same) / len(same))
    results["codecs"] = compare_codecs(index, traces)
    if args.sweep and args.tier == "ram":  # a GPU's copies are not slowed down
        half = len(traces) // 2
        known = ran["lookahead"]
        fitted = fit([trace_of(o, ClusterFile(index)) for o in known.seen[:half]])
        answer = statistics.fmean(t.answer for t in known.timed[:half])
        points = [
            sweep_point(ratio, fetched / (ratio * window), fitted, answer, bench,
                        partial(run, ratio=ratio, asked=traces[half:]))
            for ratio in args.sweep
        ]  # fmt: skip
        results["sweep"] = points
        draw_sweep(points)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def report(name: str, base: Ran, own: Ran, same: float) -> dict[str, Any]:
    """A printed line: how much faster a request ends, and what the arithmetic of W, F, A allows.

    ``possible``: (W + F + A) / (max(W, b/B) + (1 - h) F + A), where nothing is fetched ahead in
    what it is compared with.
    """
    without, means = base.means(), own.means()
    w, f, a, h = without["window"], without["wait"], without["answer"], means["hit_rate"]
    line = {
        "benchmark": f"telerag: {name}", "peer": CONDITIONS[name].base, "unit": "s/request",
        "ours": round(means["total"], 4), "theirs": round(without["total"], 4),
        "ratio": round(without["total"] / means["total"], 3),
        "W": round(means["window"], 4), "F": round(f, 4), "wait": round(means["wait"], 4),
        "A": round(means["answer"], 4), "hit_rate": round(h, 4),
        "wait_ratio": round(f / means["wait"], 2),
        "copied_mb": round(own.copied / 1e6, 2), "missed_mb": round(own.missed / 1e6, 2),
        "planning": round(own.plan_s / means["total"], 6), "equal": same,
    }  # fmt: skip
    if CONDITIONS[CONDITIONS[name].base].strategy == "none":
        line["possible"] = round((w + f + a) / (max(w, own.copy_s) + (1 - h) * f + a), 3)
    print(json.dumps(line), flush=True)
    return line


def compare_codecs(index: Path, traces: list[Trace]) -> list[dict[str, Any]]:
    """R@10 of an exhaustive search with 32-bit codes, and the bytes of a vector, for each codec."""
    queries = [t.query for t in traces]
    common = {"hot_bytes": 0, "budget": 0, "strategy": "none"}
    with opened(index, nprobe=len(ClusterFile(index).sizes), **common) as engine:
        exact = engine.search(queries, 10)
    lines = []
    for codec, width in WIDTH.items():
        with opened(index, codec=codec, **common) as engine:
            before = engine.stats()["missed_bytes"]
            found = [engine.search([query], 10)[0] for query in queries]
            nbytes = engine.stats()["missed_bytes"] - before
            dim = engine.file.dim
        recall = [
            len({h.docid for h in a} & {h.docid for h in b}) / len(b)
            for a, b in zip(found, exact, strict=True)
        ]
        lines.append(
            {"benchmark": f"telerag: {codec} codes", "R@10": round(statistics.fmean(recall), 4),
             "bytes a vector": width * dim, "mb a query": round(nbytes / len(queries) / 1e6, 2)}
        )  # fmt: skip
        print(json.dumps(lines[-1]), flush=True)
    return lines


def sweep_point(
    ratio: float, bandwidth: float, fitted: LatencyModel, answer: float, bench: Bench,
    run: Callable[..., Ran],
) -> dict[str, float]:  # fmt: skip
    """Measured and predicted seconds of a request at another speed of the cold tier.

    ``fitted`` knows other questions at one speed. Another speed changes what a byte takes, to copy
    it and to read it when it was missed.
    """
    cluster = float(ClusterFile(bench.index).nbytes.mean())
    slower = cluster * (1 / bandwidth - 1 / fitted.bandwidth)
    model = fitted._replace(bandwidth=bandwidth, t_cc=fitted.t_cc + slower)
    budgets = {"none": 0, "lookahead": min(bandwidth * fitted.t_llm, bench.hot_bytes)}
    row: dict[str, float] = {"F/W": ratio}
    for name, b in budgets.items():
        got = run(f"{name} at F/W {ratio}", CONDITIONS[name]).means()
        expected = model.seconds(b, waits=False) + answer
        row |= {
            f"{name} s": round(got["total"], 4), f"{name} predicted": round(expected, 4),
            f"{name} error": round(expected / got["total"] - 1, 4),
            f"{name} hit_rate": round(got["hit_rate"], 4),
        }  # fmt: skip
    print(json.dumps({"benchmark": "telerag: sweep"} | row), flush=True)
    return row


def draw_sweep(points: Sequence[dict[str, float]]) -> None:
    """Seconds of a request against F/W: dots are measured, lines predicted."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    ratios = [row["F/W"] for row in points]
    for name, colour in (("none", "#b3541e"), ("lookahead", "#1f5fa8")):
        label = {"none": "nothing ahead", "lookahead": "lookahead"}[name]
        axes.plot(ratios, [row[f"{name} predicted"] for row in points], color=colour,
                  label=f"{label}, predicted")  # fmt: skip
        axes.plot(ratios, [row[f"{name} s"] for row in points], "o", color=colour,
                  label=f"{label}, measured")  # fmt: skip
    axes.set(xlabel="time of fetching over time of writing, F/W", ylabel="seconds per request",
             xlim=(0, None), ylim=(0, None))  # fmt: skip
    axes.legend(frameon=False)
    OUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT / "sweep.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
