"""A repository for killing things in: this one's graph and rooms over tiny models and two corpora.

``undisturbed`` makes all of its results in this process, with a record store of its own and neither
DVC nor Prefect: what a disturbed flow must end with, and which records belong to which stage.

``Flow`` is ``python -m flows.build`` as a process, with eyes on the stage that is to be caught. It
lets that stage run for 20 ms at a time, and looks at what it has kept in between: it is never
missed, however busy the machine. No code of the product knows of it.
"""

import contextlib
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from encoders import tiny_bert
from ingest_corpora import write_lines
from language_models import tiny_lm
from retrain_worlds import COPIED, ROOMS, SLOTS
from rooms import copy_project, run_room
from safetensors import safe_open

from flows.worktree import git

Entry = dict[str, object]
NONE = dict.fromkeys(["corpus", "pairs", "index", "encoder", "model"], "none")
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "joist"]
TRAIN, ASKED = 24, 36  # questions: the first 24 are of split train, the rest of test
RECORDS = Path(".quarry/records")


def _index(kind: str, model: str = "none", **more: object) -> Entry:
    slots = {"corpus": "leaf", "model": model, "centroids": "none", "triples": "none"}
    return {"kind": kind, **slots, **more}


def _serve(
    strategy: str, index: str, encoder: str, model: str, **more: object
) -> dict[str, object]:
    slots = {"triples": "none", "facts": "none", "scorer": "none", "split": "test"}
    named = {"corpus": "leaf", "index": index, "encoder": encoder, "model": model}
    return {"strategy": strategy, **named, **slots, **more}


READS = {"passages": 2, "passage_tokens": 40, "max_tokens": 16}
# Every room, and every kind of edge between two rooms that the default catalogue has.
CATALOGUE: dict[str, dict[str, Entry]] = {
    "ingest": {
        "leaf": {"source": "beir", "path": "sources/leaf"},
        "mine": {"source": "jsonl", "path": "sources/mine.jsonl",
                 "chunk": {"mode": "cdc", "lo": 8, "hi": 32, "m": 4}},
    },
    "triples": {
        "llm": {"extractor": "llm", "corpus": "leaf", "model": "lm", "limit": 96, "max_tokens": 16,
                "passage_words": 4, "max_malformed": 1.0},
    },
    "finetune": {
        "lm": {**NONE, "recipe": "pretrained", "role": "generator", "from": "dir:models/lm"},
        "bert": {**NONE, "recipe": "pretrained", "role": "dense", "from": "dir:models/bert"},
        "dpo": {**NONE, "recipe": "preference", "pairs": "answers", "model": "lm", "loss": "dpo",
                "lr": 1e-3, "steps": 40, "seed": 1},
        "tuned": {**NONE, "recipe": "dense", "corpus": "leaf", "index": "bm25", "model": "bert",
                  "steps": 80, "batch": 4, "skip": 0, "seed": 1},
    },
    "index": {
        "bm25": _index("bm25"),
        "bm25-mine": _index("bm25", corpus="mine"),
        "flat": _index("flat", "bert"),
        "flat-tuned": _index("flat", "tuned"),
    },
    "pairs": {
        "answers": {"recipe": "answers", "corpus": "leaf", "index": "bm25", "encoder": "none",
                    "model": "lm", "triples": "none", "run": "none", "questions": 16,
                    "dev_questions": 1, "samples": 2, "passage_tokens": 40, "seed": 1},
    },
    "serve": {
        "bm25": _serve("search", "bm25", "none", "none", k=20),
        "flat": _serve("search", "flat", "bert", "none", k=20),
        "rag": _serve("rag", "bm25", "none", "dpo", split="all", **READS),
    },
    "fuse": {"rrf": {"rule": "rrf", "corpus": "leaf", "runs": ["bm25", "flat"]}},
    "evaluate": {
        "leaf": {"suite": "standard", "corpus": "leaf", "fused": "leaf", "split": "test",
                 "baseline": "bm25", "runs": ["bm25", "flat", "rag", "rrf"]},
    },
}  # fmt: skip


# They keep records, or checkpoints, while they run.
LONG = ["ingest@leaf", "ingest@mine", "triples@llm", "pairs@answers", "finetune@dpo",
        "finetune@tuned", "index@flat", "index@flat-tuned", "serve@rag"]  # fmt: skip
SLICE_SECONDS = 0.02


def plumbing(folder: Path) -> Path:
    """The repository, committed on main, with nothing made."""
    copy_project(folder, COPIED)
    for room in (*SLOTS, ""):
        (folder / "data" / room / "none").mkdir(parents=True)
        (folder / "data" / room / "none/.gitkeep").touch()
    studies = {room: {} for room in (*ROOMS, "latency")}
    (folder / "params.yaml").write_text(yaml.safe_dump({**CATALOGUE, "studies": studies}))
    _write_sources(folder / "sources")
    tiny_lm(folder / "models/lm", context=1024)
    tiny_bert(folder / "models/bert")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "nothing made")
    return folder


def _write_sources(folder: Path) -> None:
    rng = random.Random(5)
    texts = [f"No {i} is {' of '.join(rng.choices(WORDS, k=8))}." for i in range(900)]
    leaf = [{"_id": f"d{i}", "title": f"t{i}", "text": t} for i, t in enumerate(texts)]
    write_lines(folder / "leaf/corpus.jsonl", leaf)
    write_lines(
        folder / "leaf/queries.jsonl",
        [
            {"_id": f"q{i}", "text": f"What is No {i}?", "answers": [f"No {i}"]}
            for i in range(ASKED)
        ],
    )
    for split, of in (("train", range(TRAIN)), ("test", range(TRAIN, ASKED))):
        judged = [f"q{i}\td{i}\t1".encode() for i in of]
        write_lines(folder / f"leaf/qrels/{split}.tsv", [b"query-id\tcorpus-id\tscore", *judged])
    rows = [{"id": str(i), "text": " ".join(rng.sample(texts, 8))} for i in range(1500)]
    write_lines(folder / "mine.jsonl", rows)


class Expected(NamedTuple):
    """What an undisturbed run leaves."""

    manifest: dict[str, str]  # path of a result -> its SHA-256
    keys: dict[str, frozenset[str]]  # stage -> the records that it alone keeps


def undisturbed(folder: Path, order: Sequence[str]) -> Expected:
    """Make the stages one after the other in this process, which is in the folder."""
    keys: dict[str, frozenset[str]] = {}
    for name in order:
        room, entry = name.split("@")
        run_room(room, entry)
        keys[name] = frozenset(rows(folder / RECORDS)).difference(*keys.values())
    return Expected(manifest(folder), keys)


def manifest(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of all that stages wrote, hidden leftovers too."""
    found = sorted(p for p in (folder / "data").rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in found
        if p.name not in (".gitkeep", ".gitignore")
    }


def rows(store: Path) -> dict[str, int]:
    """Key -> row of all records of a store. A record that is written again gets another row."""
    path = store / "records.sqlite"
    if not path.exists():
        return {}
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as db:
        try:
            return dict(db.execute("SELECT key, rowid FROM records"))
        except sqlite3.OperationalError:  # the table is not there yet
            return {}


class Caught(NamedTuple):
    """What a stage had kept when something was killed."""

    victim: str  # the stage, the flow, the server
    stage: str
    kept: int  # records; steps of a training
    total: int
    rows: dict[str, int]  # of the whole store

    @property
    def counts(self) -> bool:
        return 0 < self.kept < self.total


class Flow:
    """``python -m flows.build`` in a folder, on a server or with one of its own."""

    def __init__(self, folder: Path, server: tuple[str, Path] | None, *targets: str) -> None:
        self.folder, self.has_server = folder, server is None
        api_url, home = server or (None, folder / ".quarry/prefect")
        env = {
            k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "QUARRY_RECORDS")
        }
        env |= {"PYTHONPATH": str(folder), "PREFECT_HOME": str(home)}
        env |= {"PREFECT_API_URL": api_url} if api_url else {}
        self.log = folder / ".quarry/flow.log"
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.build", *targets], cwd=folder, env=env,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def end(self) -> int:
        """Its exit status, once it has ended."""
        try:
            return self.process.wait(timeout=180)
        finally:
            self.process.kill()

    def find(self, stages: Collection[str]) -> tuple[str, int] | None:
        """A stage of these that runs now, and its process; None once the flow has ended."""
        while self.process.poll() is None:
            for pid, words in _pythons(self.folder):
                if words[1:2] == ["-m"] and words[2].startswith("stages."):
                    stage = f"{words[2].removeprefix('stages.')}@{words[3]}"
                    if stage in stages:
                        return stage, pid
            time.sleep(SLICE_SECONDS)
        return None

    def kill(
        self, victim: str, stage: str, pid: int, share: float, expected: Expected
    ) -> Caught | None:
        """SIGKILL to the victim once the stage has kept that share; None if it ends before."""
        seen = time.time()
        try:
            while True:
                os.kill(pid, signal.SIGSTOP)
                kept, total = progress(self.folder, stage, expected, since=seen)
                if kept > share * total:
                    break
                os.kill(pid, signal.SIGCONT)
                time.sleep(SLICE_SECONDS)
            if not _is_alive(pid):
                return None
            caught = Caught(victim, stage, kept, total, rows(self.folder / RECORDS))
            killed = {"stage": pid, "flow": self.process.pid, "server": 0}[victim]
            os.kill(killed or self._server(), signal.SIGKILL)
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:  # it came to its end
            return None
        return caught

    def _server(self) -> int:
        (pid,) = [
            pid for pid, words in _pythons(self.folder) if words[2:4] == ["prefect", "server"]
        ]
        return pid


def progress(folder: Path, stage: str, expected: Expected, *, since: float) -> tuple[int, int]:
    """(what the stage has kept, what it will have kept at its end): records, or steps.

    A checkpoint counts if it is no older than ``since``: another training may have left it.
    """
    room, entry = stage.split("@")
    if room != "finetune":
        kept = expected.keys[stage] & rows(folder / RECORDS).keys()
        return len(kept), len(expected.keys[stage])
    steps = 0
    for path in (folder / ".quarry/checkpoints").glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:
                with safe_open(path, framework="np") as f:
                    steps = max(steps, int(f.metadata()["step"]))
    return steps, CATALOGUE["finetune"][entry]["steps"]


def _is_alive(pid: int) -> bool:
    """Whether a process runs, or could: a zombie cannot."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _pythons(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """(process, command line) of the Pythons that run in a folder."""
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "python" in words[0] and (proc / "cwd").readlink() == folder:
                yield int(proc.name), words
