"""``engine: ray`` with two workers against ``local``, one process: extraction and embedding.

The passages of Semanlink and FanOutQA's leaves go through the dependency parser and through
MiniLM on one thread; both engines begin with an empty record store and must fill it with the same
bytes. A run on Ray has the cluster up already, as a user's is, but no worker: starting them and
loading their models is in ``whole``. ``steady`` counts from the second batch that is done to the
last, which is what a large corpus sees. Batches are of 64, that two workers end together.

How much two processes get done at all, when something else is running on the cores, is measured
before every run, with two loops that count; it bounds the ratio, and goes to standard error with
the load. ``per_cpu`` is passages per CPU second of the process that computes, from its second
batch on: what does not depend on the load. Needs the extra ``ray``: without it nothing is measured.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from stages import encoder as encoders
from stages.encoder import embed, open_encoder
from stages.engines import apply_on_ray, open_ray
from stages.errors import QuarryError
from stages.records import Apply, Batch, Compute, Made, RecordStore, apply_here
from stages.tables import read_table
from stages.triples import parse

CORPORA = ("semanlink", "fanoutqa-leaf")
WORKERS = 2
BATCH = 64
AIM = 1.5
SPIN = 2  # seconds of counting
COUNT = """
import sys, time
end, n = time.perf_counter() + float(sys.argv[1]), 0
while time.perf_counter() < end:
    n += sum(range(1000)) > 0
print(n)
"""


class Clocked:
    """A function that notes, batch by batch, the CPU seconds of the process that it runs in."""

    def __init__(self, fn: Compute, folder: str) -> None:
        self.fn, self.folder = fn, folder

    def __call__(self, records: list[Any]) -> Sequence[bytes | None]:
        values = self.fn(records)
        with (Path(self.folder) / str(os.getpid())).open("a") as notes:
            notes.write(f"{time.process_time()} {len(records)}\n")
        return values


def per_cpu(folder: Path) -> float:
    """Passages a CPU second, from the second batch of each process on."""
    done = seconds = 0.0
    for notes in folder.iterdir():
        batches = [tuple(map(float, line.split())) for line in notes.read_text().splitlines()]
        done += sum(n for _, n in batches[1:])
        seconds += batches[-1][0] - batches[0][0]
    return done / seconds


class Took(NamedTuple):
    """Passages per second of one run."""

    whole: float
    steady: float
    per_cpu: float  # and CPU second, whatever else runs


def passages() -> pa.Table:
    """Of the corpora that the main job ingests, each text once, by hash: no batch is special."""
    folders = [ROOT / "data" / "ingest" / name for name in CORPORA]
    if missing := [f.name for f in folders if not f.exists()]:
        raise QuarryError(f"Run `dvc repro ingest@{missing[0]} finetune@minilm` first.")
    rows = pa.concat_tables([read_table(f, "passages") for f in folders]).to_pylist()
    unique = {row["text_hash"]: row for row in rows}
    return pa.Table.from_pylist([unique[key] for key in sorted(unique)])


def extract(table: pa.Table, store: RecordStore) -> None:
    """Facts of all passages, by rules on spaCy's parse."""
    values = parse.Params(extractor="parse", corpus="all", model="none")
    parse.extract(table, values, model=None, store=store)


def encode(table: pa.Table, store: RecordStore) -> None:
    """Vectors of all passages, of up to 128 tokens."""
    encoder = open_encoder(ROOT / "data" / "finetune" / "minilm", max_tokens=128, threads=1)
    columns = (table[name].to_pylist() for name in ("title", "text"))
    texts = [f"{title} {text}" for title, text in zip(*columns, strict=True)]
    embed(encoder, table["docid"].to_pylist(), texts, store)


def run(
    work: Callable[[pa.Table, RecordStore], None], table: pa.Table, apply: Apply
) -> tuple[Took, dict[str, bytes]]:
    """The rates from an empty record store, and what it holds then."""
    ends: list[tuple[float, int]] = []

    def timed(fn: Compute, batches: Iterator[Batch], *, cores: int) -> Iterator[Made]:
        for keys, values in apply(Clocked(fn, clocks), batches, cores=cores):
            ends.append((time.perf_counter(), len(keys)))
            yield keys, values

    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as clocks,
        RecordStore(Path(folder), apply=timed) as store,
    ):
        start = time.perf_counter()
        work(table, store)
        seconds = time.perf_counter() - start
        rows = store._db.execute("SELECT key, value FROM records").fetchall()
        cpu = per_cpu(Path(clocks))
    after = ends[WORKERS - 1 :]  # each worker's first batch has its start in it
    steady = sum(n for _, n in after[1:]) / (after[-1][0] - after[0][0])
    return Took(table.num_rows / seconds, steady, cpu), dict(rows)


def count(processes: int) -> int:
    """How far so many loops get together in SPIN seconds."""
    argv = [sys.executable, "-c", COUNT, str(SPIN)]
    loops = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(int(loop.communicate()[0]) for loop in loops)


def main() -> None:
    """Print three JSON lines for each kind of work: whole, steady, per CPU second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--limit", type=int, help="passages, the first so many")
    args = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        print("engines: the extra ray is not installed; nothing measured", file=sys.stderr)
        return
    ray = open_ray(cores=WORKERS)
    table = passages()[: args.limit]
    parse.BATCH = encoders.BATCH = BATCH
    engines = {"local": apply_here, "ray": apply_on_ray}
    for name, work in {"extract": extract, "embed": encode}.items():
        took: dict[str, list[Took]] = {"local": [], "ray": []}
        kept: dict[str, dict[str, bytes]] = {}
        for i in range(args.samples):
            for engine in list(engines)[:: 1 if i % 2 == 0 else -1]:
                two = count(WORKERS) / count(1)
                one, kept[engine] = run(work, table, engines[engine])
                took[engine].append(one)
                detail = {"benchmark": name, "engine": engine, **one._asdict()}
                detail |= {"load": os.getloadavg()[0], "two loops over one": two}
                print(json.dumps({k: _short(v) for k, v in detail.items()}), file=sys.stderr)
            assert kept["local"] == kept["ray"], f"{name}: other bytes"
        for part in Took._fields:
            mid = {e: statistics.median(getattr(t, part) for t in took[e]) for e in took}
            line = {
                "benchmark": f"{name}, 2 workers, {part}", "peer": "local", "unit": "passages/s",
                "ours": _short(mid["ray"]), "theirs": _short(mid["local"]),
                "ratio": round(mid["ray"] / mid["local"], 3),
                "aim": 1.0 if part == "per_cpu" else AIM,
            }  # fmt: skip
            print(json.dumps(line), flush=True)
    ray.shutdown()


def _short(value: float | str) -> float | str:
    """Four significant digits of a number."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
