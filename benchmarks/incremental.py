"""What a rerun costs after 1 % of the documents were added, edited or deleted.

The peer is the same stage on the same edited corpus with an empty record store; ours has the
store of the run before the edit, and is the median of five; the peer, minutes long, runs once.
Same result: the outputs are equal byte for byte, and the parser and the encoder read exactly the
passages whose text is new. The edited documents are drawn by seed from ``--corpus`` (JSON lines
with _id or id, title and text; default: NPL's 11,429 abstracts where they lie beside this
checkout, else Semanlink's documents, as ingested). All of NPL takes an hour: ``--only`` one stage.

Figures are CPU seconds, start-up in and out. In: the stage is a process of its own. Out: it runs
in this process, where everything is imported, less what it takes on a corpus of one document
(loading the model). Building BM25 keeps nothing: its whole run is cheaper than reading records
back (see stages/index/bm25.py).
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stages import shell
from stages.digest import folder_digest
from stages.errors import QuarryError
from stages.tables import read_table

ROOT = Path(__file__).resolve().parents[1]
NPL = ROOT.parent / "shared" / "data" / "npl" / "corpus.jsonl"
SHARE, SEED, AIM = 0.01, 13, 10
STAGES = {  # benchmark -> room, entry
    "incremental-ingest": ("ingest", "c"),
    "incremental-extract": ("triples", "facts"),
    "incremental-embed": ("index", "vectors"),
    "incremental-bm25": ("index", "words"),
}
READS = {"incremental-extract": "computed", "incremental-embed": "encoded"}  # counted by the stage
PARAMS = {
    "ingest": {"c": {"source": "jsonl", "path": "c.jsonl"}},
    "triples": {"facts": {"extractor": "parse", "corpus": "c", "model": "none"}},
    "index": {
        "vectors": {"kind": "flat", "corpus": "c", "model": "minilm", "centroids": "none"},
        "words": {"kind": "bm25", "corpus": "c", "model": "none", "centroids": "none"},
    },
}

Documents = dict[str, dict[str, str]]


def read_documents(path: Path | None) -> Documents:
    """Rows by id."""
    path = path or (NPL if NPL.exists() else None)
    if path:
        rows = [json.loads(line) for line in path.open(encoding="utf-8")]
        return {r.get("_id", r.get("id")): {"title": r["title"], "text": r["text"]} for r in rows}
    folder = ROOT / "data" / "ingest" / "semanlink"
    if not folder.exists():
        raise QuarryError("Run `dvc repro ingest@semanlink` first, or name a --corpus.")
    rows = read_table(folder, "documents").to_pylist()
    return {r["docid"]: {"title": r["title"], "text": r["text"]} for r in rows}


def edit(documents: Documents, kind: str, drawn: list[str]) -> Documents:
    """The corpus after the drawn documents were edited, deleted, or followed by new ones."""
    if kind == "delete":
        return {i: d for i, d in documents.items() if i not in drawn}
    half = {i: documents[i]["text"][: len(documents[i]["text"]) // 2] for i in drawn}
    if kind == "edit":
        return documents | {i: {**documents[i], "text": f"{half[i]} was edited."} for i in drawn}
    return documents | {f"{i}-new": {"title": "New", "text": f"{half[i]} is new."} for i in drawn}


class Cost(NamedTuple):
    """What one run of a stage took and gave."""

    seconds: float
    output: str  # digest
    read: float  # texts that its model read


def run(name: str, store: str, startup: Literal["in", "out"]) -> Cost:
    """One stage of the project in the current folder."""
    room, entry = STAGES[name]
    os.environ["QUARRY_RECORDS"] = store
    out = Path("data") / room / entry
    if startup == "in":
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", f"stages.{room}", entry]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        facts = json.loads(Path(f".quarry/timings/{room}/{entry}.json").read_text())
    else:
        make = import_module(f"stages.{room}.__main__").make
        start = time.process_time()
        with shell.replaced(out) as folder:
            facts = make(shell.Task(room, entry, study=False), folder)
        seconds = time.process_time() - start
    return Cost(seconds, folder_digest(out), facts.get(READS.get(name), 0))


def write(documents: Documents) -> None:
    """The corpus as JSON lines."""
    rows = [{"id": i, **d} for i, d in documents.items()]
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    Path("c.jsonl").write_text(lines, encoding="utf-8")


def hashes() -> set[str]:
    """What the passages' texts are."""
    return set(read_table(Path("data/ingest/c"), "passages")["text_hash"].to_pylist())


def compare(name: str, startup: str, samples: int, known: set[str]) -> tuple[list, list]:
    """CPU seconds with the store of before, and once with an empty one; they give the same."""
    scratch = run(name, "empty", startup)
    shutil.rmtree("empty")
    ours = []
    for _ in range(samples):
        shutil.copytree("before", "kept")
        kept = run(name, "kept", startup)
        shutil.rmtree("kept")
        assert kept.output == scratch.output, f"{name}: outputs differ"
        if name in READS:
            now = hashes()
            assert (kept.read, scratch.read) == (len(now - known), len(now)), (name, kept, scratch)
        ours.append(kept.seconds)
    return ours, [scratch.seconds]


def report(name: str, kind: str, startup: str, ours: list[float], theirs: list[float]) -> None:
    """One JSON line; all samples on standard error."""
    facts = {"benchmark": name, "edit": f"{kind} {SHARE:.0%}", "startup": startup}
    print(json.dumps({**facts, "ours": ours, "theirs": theirs}), file=sys.stderr, flush=True)
    mine = max(statistics.median(ours), 0.01)  # below that the clock decides
    full = max(statistics.median(theirs), 0.01)
    line = {
        **facts, "peer": "empty record store", "unit": "CPU s", "ours": round(mine, 3),
        "theirs": round(full, 3), "ratio": round(full / mine, 2), "aim": AIM,
    }  # fmt: skip
    print(json.dumps(line), flush=True)


def main() -> None:
    """Time every stage after every kind of edit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, help="JSON lines with _id or id, title, text")
    parser.add_argument("--documents", type=int, help="the first so many of the corpus")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--only", choices=STAGES, help="one stage, after ingest")
    args = parser.parse_args()
    documents = dict(list(read_documents(args.corpus).items())[: args.documents])
    drawn = random.Random(SEED).sample(sorted(documents), max(1, round(SHARE * len(documents))))
    names = [n for n in STAGES if args.only in (None, n)]
    os.environ["PYTHONPATH"] = str(ROOT)

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("data/finetune").mkdir(parents=True)
        Path("data/finetune/minilm").symlink_to(ROOT / "data/finetune/minilm")
        Path("params.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")

        write(dict(list(documents.items())[:1]))
        run("incremental-ingest", "one", "out")
        loading = {}
        for name in names:  # the first run of each imports its packages
            once = [run(name, f"one-{i}", "out").seconds for i in range(args.samples + 1)]
            loading[name] = statistics.median(once[1:])

        write(documents)
        for name in dict.fromkeys(["incremental-ingest", *names]):
            run(name, "before", "out")
        known = hashes()
        for kind in ("add", "edit", "delete"):
            write(edit(documents, kind, drawn))
            run("incremental-ingest", "corpus", "out")
            for name in names:
                report(name, kind, "in", *compare(name, "in", args.samples, known))
                ours, theirs = compare(name, "out", args.samples, known)
                less = loading[name]
                report(name, kind, "out", [s - less for s in ours], [s - less for s in theirs])


if __name__ == "__main__":
    main()
