"""The plan for a corpus of 10^9 passages and 10^3 queries a second, from rates measured here.

``python tools/scale.py`` prints the tables of docs/scale.md; ``--write`` puts them there. Every
figure is arithmetic on MEASURED (what a committed command printed, and where that is said) and on a
Wish (what is wanted, and prices, which are assumed). A rate is taken per core and carried over
linearly: right for work that maps over passages. What grows otherwise says so in its derivation.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- python tools/scale.py --write -->\n", "<!-- end -->\n"
HOUR, MONTH = 3600, 730  # seconds; hours


class Measured(NamedTuple):
    """A figure that a command printed."""

    value: float
    unit: str
    what: str
    page: str  # below docs/; the file of `make run`, or the command, from which it comes
    row: str = ""  # how the line of the table begins that says it
    cell: int = 3  # of that line


TIMINGS, BENCH = ".quarry/timings", "benchmarks.md"
MEASURED: dict[str, Measured] = {
    "ingest": Measured(8_099, "passages/s", "ingestion, near-duplicates removed, eight sentences "
                       "each, 2 cores", BENCH, "| `ingest` |"),
    "encode": Measured(30.3, "texts/s", "MiniLM, passages of up to 128 tokens, 1 core", BENCH,
                       "| `encode` passages |"),
    "encode_question": Measured(361, "texts/s", "MiniLM, questions, 1 core", BENCH,
                                "| `encode` questions |"),
    "bm25_build": Measured(48_000, "passages/s", "BM25 index, 1 core", BENCH, "| `bm25` index |"),
    "bm25_search": Measured(25_480, "queries/s", "BM25 over 11,429 abstracts, k = 100, 1 core",
                            BENCH, "| `bm25` search, k=100 | bm25s, numpy"),
    "ivf_search": Measured(1_221, "queries/s", "clusters in memory, 200,000 vectors, 32 of 512 "
                           "lists, fp32, 2 cores", BENCH, "| `prefetch`: batch of 256"),
    "fuse": Measured(844, "queries/s", "RRF of 4 runs of 1,000, 2 cores", BENCH, "| `fuse`: RRF"),
    "evaluate": Measured(15_220, "queries/s", "5 measures, 4 runs of 1,000, 2 cores", BENCH,
                         "| `evaluate`: 5 measures"),
    "read": Measured(0.95, "questions/s", "SmolLM2-135M, prompts of 600 tokens, 8 new ones, 2 "
                     "cores", BENCH, "| `loop`: prefill-heavy"),
    "write": Measured(3.43, "questions/s", "SmolLM2-135M, 48 new tokens, 2 cores", BENCH,
                      "| `loop`: decode-heavy"),
    "http": Measured(0.23, "ms of CPU", "a request of the service, a search of a small BM25 index "
                     "in it", "benchmarks/serve.py --seconds 5 --part search"),
    "stage": Measured(1.23, "s", "what the flow adds to an executed stage", BENCH,
                      "| `flow`: 6 changed stages", cell=7),
    "triples": Measured(17_800, "characters/s", "dependency parse, 2,124 passages of 69 in 8.3 s, "
                        "2 cores", f"{TIMINGS}/triples/spacy-fanoutqa-leaf.json"),
    "postings": Measured(58.4, "postings", "of a passage of 724 characters (64,482 of 1,104)",
                         f"{TIMINGS}/index/bm25-semanlink.json"),
    "text": Measured(356, "bytes", "of a passage in Parquet (393,265 of 1,104)",
                     "data/ingest/semanlink/passages.parquet"),
    "name": Measured(67, "bytes", "of a passage's address in an index (74,252 of 1,104)",
                     "data/index/flat-semanlink/docids.json"),
}  # fmt: skip

BM25_CORPUS = 11_429  # passages, in benchmarks/bm25.py
VECTORS, LISTS, PROBES, D = 200_000, 512, 32, 384  # in benchmarks/prefetch.py
CHARACTERS = 724  # of a passage of Semanlink: the postings and bytes above are its
STORE_BYTES = 8 * 2**30  # QUARRY_RECORDS_BYTES, docs/incremental.md


class Wish(NamedTuple):
    """What is wanted, choices, and prices in dollars; none of it is measured."""

    passages: float = 1e9
    queries: float = 1e3  # a second
    shard: float = 1e6  # passages of a shard of stored tables
    answered: float = 0.1  # share of the queries that want a written answer
    asked: float = 1e5  # questions of an evaluation
    changed: float = 0.01  # share of the passages that is new each day
    load: float = 0.5  # of a standing core: one of two copies may fail
    copies: float = 2  # of an index in memory
    centroids: float = 65_536
    machine_gb: float = 64  # memory that a machine gives to an index
    build_cores: float = 1_000
    core_hour: float = 0.05
    gb_hour: float = 0.005  # memory beyond what comes with a core
    gb_month: float = 0.023  # object storage


class Need(NamedTuple):
    """What a room asks for, and how each figure comes about."""

    room: str
    engine: str
    how: tuple[str, ...]
    shards: float = 1
    gb: float = 0  # stored
    core_hours: float = 0  # once, for the whole corpus
    cores: float = 0  # standing
    ram_gb: float = 0  # standing

    def once(self, wish: Wish) -> float:
        """Dollars to build it."""
        return self.core_hours * wish.core_hour

    def month(self, wish: Wish) -> float:
        """Dollars a month to keep it."""
        standing = self.cores * wish.core_hour + self.ram_gb * wish.gb_hour
        return standing * MONTH + self.gb * wish.gb_month


Rates = Mapping[str, float]


def ingest(r: Rates, w: Wish) -> Need:
    hours, gb = 2 * w.passages / r["ingest"] / HOUR, w.passages * r["text"] / 1e9
    return Need(
        "ingest", "a stage per shard (by hash of the document's id); duplicates within a shard",
        (f"2 cores x {n(w.passages)} / {n(r['ingest'])} passages/s = {n(hours)} core-hours",
         f"{n(w.passages)} passages x {n(r['text'])} bytes = {n(gb)} GB"),
        shards=w.passages / w.shard, gb=gb, core_hours=hours)  # fmt: skip


def triples(r: Rates, w: Wish) -> Need:
    hours = 2 * w.passages * CHARACTERS / r["triples"] / HOUR
    return Need(
        "triples", "a stage per shard; the parser, not a language model",
        (f"2 cores x {n(w.passages)} passages x {CHARACTERS} characters / {n(r['triples'])} "
         f"characters/s = {n(hours)} core-hours",),
        shards=w.passages / w.shard, core_hours=hours)  # fmt: skip


def words(r: Rates, w: Wish) -> Need:
    """BM25 as it is here: a query reads all postings of its words."""
    postings = w.passages * r["postings"]
    gb = (postings * 8 + w.passages * r["name"]) / 1e9
    shards = max(-(-postings // 2**31), -(-gb // w.machine_gb))
    seconds = w.passages / BM25_CORPUS / r["bm25_search"]
    cores = w.queries * seconds / w.load
    hours = w.passages / r["bm25_build"] / HOUR
    share = vectors(r, w).cores / cores
    return Need(
        "index: words", "ours reads every posting: one that skips is needed (below)",
        (f"{n(w.passages)} / {n(r['bm25_build'])} passages/s = {n(hours)} core-hours",
         f"{n(w.passages)} x ({r['postings']:g} postings x 8 bytes + {n(r['name'])} bytes of name) "
         f"= {n(gb)} GB; {n(postings)} postings / 2^31 and {n(gb)} GB / {n(w.machine_gb)} GB: "
         f"{n(shards)} shards",
         f"a query: {n(w.passages)} / {n(BM25_CORPUS)} passages / {n(r['bm25_search'])} queries/s "
         f"= {n(seconds)} core-seconds; x {n(w.queries)} / {w.load:g} = "
         f"{n(cores)} cores",
         f"to need no more cores than the vectors, a query may read {n(100 * share)} % of them"),
        shards=shards, gb=gb, core_hours=hours, cores=cores, ram_gb=w.copies * gb)  # fmt: skip


def vectors(r: Rates, w: Wish) -> Need:
    """Clusters of int8 codes in memory; a shard holds whole clusters, not a slice of the corpus."""
    encoding = w.passages / r["encode"] / HOUR
    speed = r["ivf_search"] * (VECTORS * PROBES / LISTS + LISTS) / 2  # a second, one core
    assigning = w.passages * w.centroids / speed / HOUR
    gb = w.passages * (D + r["name"]) / 1e9
    shards = -(-gb // w.machine_gb)
    read = w.passages * PROBES / w.centroids + w.centroids
    seconds = read / speed
    question = 1 / r["encode_question"]
    cores = w.queries * (seconds + question) / w.load
    disk = w.queries * w.passages * PROBES / w.centroids * D / 1e9
    return Need(
        "index: vectors", "clustered, int8, in memory; clusters placed by hash",
        (f"encoding: {n(w.passages)} passages / {r['encode']:g} texts/s = {n(encoding)} core-hours",
         f"a core compares {n(r['ivf_search'])} queries/s x ({n(VECTORS)} x {PROBES} / {LISTS} + "
         f"{LISTS}) vectors / 2 cores = {n(speed)} vectors/s",
         f"assigning: {n(w.passages)} x {n(w.centroids)} centroids / {n(speed)} vectors/s = "
         f"{n(assigning)} core-hours",
         f"{n(w.passages)} x ({D} bytes of int8 + {n(r['name'])} bytes of name) = {n(gb)} GB; "
         f"/ {n(w.machine_gb)} GB = {n(shards)} shards",
         f"a query: {n(w.passages)} x {PROBES} / {n(w.centroids)} + {n(w.centroids)} = {n(read)} "
         f"vectors = {n(1e3 * seconds)} ms, and {n(1e3 * question)} ms to encode it; x "
         f"{n(w.queries)} / {w.load:g} = {n(cores)} cores",
         f"from a disk the same queries would read {n(disk)} GB/s: hence memory"),
        shards=shards, gb=gb, core_hours=encoding + assigning, cores=cores,
        ram_gb=w.copies * gb)  # fmt: skip


def http(r: Rates, w: Wish) -> Need:
    cores = w.queries * r["http"] / 1e3 / w.load
    return Need(
        "serve: HTTP", "the service as it is, behind a load balancer",
        (f"{n(w.queries)} queries/s x {r['http']:g} ms / {w.load:g} = "
         f"{n(cores)} cores",),
        shards=w.copies, cores=cores)  # fmt: skip


def answers(r: Rates, w: Wish) -> Need:
    seconds = 2 / r["read"] + 2 / r["write"]
    cores = w.queries * w.answered * seconds / w.load
    return Need(
        "serve: answers", "an OpenAI-compatible server on GPUs (not measured); here: CPU",
        (f"an answer: 2 cores / {r['read']:g} questions/s (600 tokens read) + 2 cores / "
         f"{r['write']:g} questions/s (48 written) = {n(seconds)} core-seconds",
         f"{n(w.queries)} x {w.answered:g} answered / {w.load:g} = "
         f"{n(cores)} cores"),
        shards=w.copies, cores=cores)  # fmt: skip


def fuse(r: Rates, w: Wish) -> Need:
    cores = 2 * w.queries / r["fuse"] / w.load
    return Need(
        "fuse", "inside the service, on merged results of the shards",
        (f"2 cores x {n(w.queries)} / {n(r['fuse'])} queries/s / {w.load:g} = {n(cores)} cores",),
        cores=cores)  # fmt: skip


def evaluate(r: Rates, w: Wish) -> Need:
    hours = 2 * w.asked / r["evaluate"] / HOUR
    return Need(
        "pairs, finetune, evaluate", "as they are: they grow with questions, not with passages",
        (f"evaluating {n(w.asked)} questions: 2 cores / {n(r['evaluate'])} queries/s = "
         f"{n(hours)} core-hours",),
        core_hours=hours)  # fmt: skip


def a_day(r: Rates, w: Wish) -> Need:
    new = w.passages * w.changed
    words = w.passages / r["bm25_build"] / HOUR
    hours = new / r["encode"] / HOUR + words
    store = w.passages * D * 4
    return Need(
        "each day", "record store beside each shard",
        (f"{n(new)} new passages / {r['encode']:g} texts/s, and the BM25 index whole = {n(hours)} "
         "core-hours a day",
         f"vectors in the record store: {n(w.passages)} x {D} x 4 bytes = {n(store / 1e9)} GB, "
         f"{n(store / STORE_BYTES)} times its bound: one store a shard"),
        gb=store / 1e9, cores=hours / 24, shards=w.passages / w.shard)  # fmt: skip


def flow(r: Rates, w: Wish) -> Need:
    stages = 3 * w.passages / w.shard
    hours = stages * r["stage"] / HOUR
    return Need(
        "flow", "a deployment of the build per pool, targets by shard",
        (f"3 rooms x {n(w.passages / w.shard)} shards x {r['stage']:g} s = {n(hours)} hours, one "
         "after another",),
        core_hours=hours)  # fmt: skip


ROOMS: tuple[Callable[[Rates, Wish], Need], ...] = (
    ingest, triples, vectors, words, http, answers, fuse, evaluate, a_day, flow
)  # fmt: skip


def plan(wish: Wish, rates: Rates | None = None) -> list[Need]:
    """What each room needs; ``rates`` in the place of what was measured."""
    rates = rates or {name: m.value for name, m in MEASURED.items()}
    return [room(rates, wish) for room in ROOMS]


def n(value: float) -> str:
    """Three digits, grouped; powers of ten from 10 million on."""
    if 0 < value < 0.01:
        return "< 0.01"
    if value >= 1e7:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


HEAD = ("room", "becomes", "shards", "GB", "core-hours, once", "hours", "cores, standing",
        "GB of memory", "$ once", "$ a month")  # fmt: skip


def tables(wish: Wish) -> str:
    """Measured, assumed, the plan and its derivations, as Markdown."""
    needs = plan(wish)
    rows = [("measured", "figure", "where"), ("---",) * 3]
    rows += [(m.what, f"{n(m.value)} {m.unit}", f"`{m.page}`") for m in MEASURED.values()]
    rows += [(), ("assumed", "value"), ("---",) * 2]
    rows += [(f"`{name}`", f"{value:,g}") for name, value in wish._asdict().items()]
    rows += [(), HEAD, ("---",) * len(HEAD)]
    for need in needs:
        figures = [need.shards, need.gb, need.core_hours, need.core_hours / wish.build_cores,
                   need.cores, need.ram_gb, need.once(wish), need.month(wish)]  # fmt: skip
        rows.append((need.room, need.engine, *(n(c) if c else "-" for c in figures)))
    for title, of in (("all", needs), ("all but words", [x for x in needs if "words" not in x[0]])):
        sums = (n(sum(money(need, wish) for need in of)) for money in (Need.once, Need.month))
        rows.append((f"**{title}**", *[""] * (len(HEAD) - 3), *sums))
    lines = [f"| {' | '.join(row)} |" if row else "" for row in rows]
    lines += ["", "`hours` are those on `build_cores` cores. How each figure comes about:", ""]
    for need in needs:
        lines += [f"- {need.room}", *(f"  - {line}" for line in need.how)]
    return "\n".join(lines) + "\n"


def page_with(text: str, printed: str) -> str:
    """The page's text with the tables in their place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + printed + END + after


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or write them to the page."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--write", action="store_true", help="into docs/scale.md, by the values there")
    for name, value in Wish()._asdict().items():
        p.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=value, metavar=f"{value:g}"
        )
    args = vars(p.parse_args(argv))
    if args.pop("write"):
        PAGE.write_text(page_with(PAGE.read_text("utf-8"), tables(Wish())), encoding="utf-8")
    else:
        print(tables(Wish(**args)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
