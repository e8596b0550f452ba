"""A Git and DVC repository with this one's graph and rooms, a corpus of a few words and a gate."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from ingest_corpora import write_lines
from rooms import copy_project

from flows.worktree import git

COPIED = ["dvc.yaml", "studies/dvc.yaml", ".dvc/config", ".dvc/plots", ".dvcignore", ".gitignore",
          "flows", "stages", "versions"]  # fmt: skip
ROOMS = ["ingest", "triples", "pairs", "finetune", "index", "serve", "fuse", "evaluate"]
SLOTS = ["triples", "finetune", "index", "fused", "runs", "ingest", "pairs"]

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "joist",
         "kelp", "larch"]  # fmt: skip
DOCUMENTS = {f"d{i:02}": f"{name} common" for i, name in enumerate(WORDS)}
QUESTIONS = {f"q{i:02}": text.split()[0] for i, text in enumerate(DOCUMENTS.values())}

SEARCH = {"strategy": "search", "corpus": "notes", "index": "words", "encoder": "none",
          "triples": "none", "model": "none", "facts": "none", "scorer": "none", "split": "test",
          "k": 10}  # fmt: skip
CATALOGUE = {
    "ingest": {"notes": {"source": "beir", "path": "corpus"}},
    "index": {"words": {"kind": "bm25", "corpus": "notes", "model": "none", "centroids": "none",
                        "triples": "none"}},
    "serve": {"bm25": SEARCH},
    "evaluate": {"notes": {"suite": "standard", "corpus": "notes", "fused": "none",
                           "split": "test", "runs": ["bm25"], "baseline": "none"}},
}  # fmt: skip
NEVER_MADE = {"study": {"source": "beir", "path": "corpus"}}
POLICY: dict[str, Any] = {
    "drift": {"changed": 0.01, "deletions": 0.2},
    "gate": {"primary": {"notes": {"system": "bm25"}}, "margin": 0.05, "latency": None,
             "guards": {"R@100": {"drop": 0.05}}},
    "flow": {},
    "deploy": {"cron": ["30 3 * * *"]},
}  # fmt: skip


class World:
    """The repository; its files are the user's checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_params(self, **changed: dict[str, Any]) -> None:
        """params.yaml, with entries of a room, or keys of a section of ``retrain``, replaced."""
        rooms = {**{room: {} for room in ROOMS}, **CATALOGUE}
        rooms |= {room: {**rooms[room], **e} for room, e in changed.items() if room in rooms}
        policy = {name: {**POLICY[name], **changed.get(name, {})} for name in POLICY}
        studies = {room: {} for room in (*ROOMS, "latency")} | {"ingest": NEVER_MADE}
        params = {**rooms, "studies": studies, "retrain": policy}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def write_corpus(
        self, documents: dict[str, str], questions: dict[str, str] = QUESTIONS
    ) -> None:
        """The source, in BEIR's format; a question's document has its number."""
        corpus = self.folder / "corpus"
        lines = [{"_id": d, "text": t} for d, t in documents.items()]
        write_lines(corpus / "corpus.jsonl", lines)
        write_lines(corpus / "queries.jsonl", [{"_id": q, "text": t} for q, t in questions.items()])
        judged = [f"{q}\td{q[1:]}\t1".encode() for q in questions if f"d{q[1:]}" in documents]
        write_lines(corpus / "qrels/test.tsv", [b"query-id\tcorpus-id\tscore", *judged])

    def commit(self, message: str = "mine") -> str:
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-qm", message)
        return git(self.folder, "rev-parse", "HEAD")

    def repro(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(self.folder)}
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
        argv = [sys.executable, "-m", "dvc", "repro", "-q"]
        subprocess.run(argv, cwd=self.folder, env=env, check=True)


def write_world(folder: Path) -> World:
    """The repository, with everything made and committed on main."""
    copy_project(folder, COPIED)
    for room in SLOTS:
        (folder / "data" / room / "none").mkdir(parents=True)
        (folder / "data" / room / "none/.gitkeep").touch()
    (folder / "data/none").mkdir()
    (folder / "data/none/.gitkeep").touch()
    world = World(folder)
    git(folder, "init", "-q", "-b", "main")
    world.write_params()
    world.write_corpus(DOCUMENTS)
    world.repro()
    world.commit("first")
    return world
