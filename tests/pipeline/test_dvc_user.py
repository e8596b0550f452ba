"""What a DVC user types, in a small Git repository with the graph, rooms and plots of this one.

One session, once: repro, commit, look around, repro, an experiment with one value changed, look
again. The tests read what each command said.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from ingest_corpora import write_lines
from rooms import copy_project

COPIED = ["dvc.yaml", "studies/dvc.yaml", ".dvc/config", ".dvc/plots", ".dvcignore", ".gitignore",
          "stages", "versions"]  # fmt: skip
ROOMS = ["ingest", "triples", "pairs", "finetune", "index", "serve", "fuse", "evaluate"]

# Two questions. The first has three relevant documents, which BM25 ranks by their length.
DOCUMENTS = {"a": "amber", "b": "amber birch", "c": "amber birch cedar", "d": "delta fjord"}
QUESTIONS = {"q1": "amber", "q2": "delta"}
JUDGED = [("q1", "a"), ("q1", "b"), ("q1", "c"), ("q2", "d")]

INGEST = {"source": "beir", "path": "corpus"}
SEARCH = {"strategy": "search", "corpus": "notes", "index": "words", "encoder": "none",
          "triples": "none", "model": "none", "facts": "none", "scorer": "none",
          "split": "test"}  # fmt: skip
WORDS = {"kind": "bm25", "corpus": "notes", "model": "none", "centroids": "none",
         "triples": "none"}  # fmt: skip
CATALOGUE = {
    "ingest": {"notes": INGEST},
    "index": {"words": WORDS},
    "serve": {"all": {**SEARCH, "k": 100}, "best": {**SEARCH, "k": 1}},
    "fuse": {"both": {"rule": "rrf", "corpus": "notes", "runs": ["all", "best"], "rrf_k": 60.0}},
    "evaluate": {"notes": {"suite": "standard", "corpus": "notes", "fused": "notes",
                           "split": "test", "runs": ["all", "best", "both"], "baseline": "best"}},
}  # fmt: skip
STAGES = {"ingest@notes", "index@words", "serve@all", "serve@best", "fuse@both", "evaluate@notes"}
METRICS = "data/evaluate/notes/metrics.json"


class Session(NamedTuple):
    """What the commands printed, in the order in which they were typed."""

    folder: Path
    first: str  # dvc repro
    dag: str  # dvc dag --dot
    shown: dict  # dvc metrics show
    plots: str  # dvc plots show: the page
    second: str  # dvc repro
    experiment: str  # dvc exp run -S serve.all.k=2
    changed: dict  # dvc metrics diff
    listed: str  # dvc exp show


def write_project(folder: Path) -> None:
    copy_project(folder, COPIED)
    empty = {room: {} for room in ROOMS}
    study = {**empty, "latency": {}, "ingest": {"heavy": INGEST}}
    params = {**empty, **CATALOGUE, "studies": study}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for room in ("triples", "finetune", "index", "fused"):
        (folder / "data" / room / "none").mkdir(parents=True)
    write_lines(
        folder / "corpus/corpus.jsonl", [{"_id": d, "text": t} for d, t in DOCUMENTS.items()]
    )
    write_lines(
        folder / "corpus/queries.jsonl", [{"_id": q, "text": t} for q, t in QUESTIONS.items()]
    )
    write_lines(
        folder / "corpus/qrels/test.tsv", ["\t".join([*pair, "1"]).encode() for pair in JUDGED]
    )


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("user")
    write_project(folder)
    env = {name: v for name, v in os.environ.items() if not name.startswith(("GIT_", "QUARRY_"))}
    env |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])}
    env |= {"PYTHONPATH": str(folder), "GIT_CONFIG_GLOBAL": os.devnull}

    def say(*argv: str) -> str:
        done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def dvc(*argv: str) -> str:
        return say(sys.executable, "-m", "dvc", *argv)

    say("git", "init", "-q")
    for name in ("name", "email"):
        say("git", "config", f"user.{name}", "user@example.org")
    first = dvc("repro")
    say("git", "add", "-A")
    say("git", "commit", "-qm", "first")
    dag, shown = dvc("dag", "--dot"), json.loads(dvc("metrics", "show", "--json"))
    dvc("plots", "show")
    plots = (folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    shutil.rmtree(folder / "dvc_plots")
    second = dvc("repro")
    experiment = dvc("exp", "run", "-S", "serve.all.k=2")
    changed = json.loads(dvc("metrics", "diff", "--json"))
    listed = dvc("exp", "show", "--csv")
    return Session(folder, first, dag, shown, plots, second, experiment, changed, listed)


def ran(said: str) -> set[str]:
    return set(re.findall(r"^Running stage '(.+)':", said, re.MULTILINE))


def test_repro_runs_every_stage_of_the_root_graph_and_no_study(session: Session) -> None:
    assert ran(session.first) == STAGES


def test_a_second_repro_runs_nothing(session: Session) -> None:
    assert ran(session.second) == set()
    assert set(re.findall("Stage '(.+)' didn't change, skipping", session.second)) == STAGES


def test_dag_has_the_edges_that_the_slots_name(session: Session) -> None:
    edges = set(re.findall(r'"(.+?)" -> "(.+?)"', session.dag))
    assert {e for e in edges if "studies/" not in e[0] + e[1]} == {
        ("ingest@notes", "index@words"),
        ("ingest@notes", "serve@all"), ("ingest@notes", "serve@best"),
        ("index@words", "serve@all"), ("index@words", "serve@best"),
        ("serve@all", "fuse@both"), ("serve@best", "fuse@both"),
        ("ingest@notes", "evaluate@notes"), ("fuse@both", "evaluate@notes"),
        ("serve@all", "evaluate@notes"), ("serve@best", "evaluate@notes"),
    }  # fmt: skip


def test_metrics_show_has_every_system_by_the_fields_names(session: Session) -> None:
    systems = session.shown[""]["data"][METRICS]["data"]
    assert set(systems) == {"all", "best", "both"}
    assert systems["all"]["R@100"] == 1.0 and systems["all"]["n"] == 2
    assert systems["best"]["R@100"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-6)


def test_plots_show_draws_both_plots_with_our_templates(session: Session) -> None:
    for title in ("recall against k (notes)", "quality against tokens per question (notes)"):
        assert f'"text": "{title}"' in session.plots
    assert "<DVC_METRIC" not in session.plots, "every anchor is filled"
    assert '"type": "log"' in session.plots, "system_lines.json, not DVC's own"


def test_an_experiment_with_one_value_runs_what_reads_it_and_nothing_else(session: Session) -> None:
    assert ran(session.experiment) == {"serve@all", "fuse@both", "evaluate@notes"}


def test_metrics_diff_shows_the_changed_measures_and_no_others(session: Session) -> None:
    """The two best of three relevant documents, and of one: (2/3 + 1) / 2."""
    changed = session.changed[METRICS]
    assert changed["all.R@100"]["old"] == 1.0
    assert changed["all.R@100"]["new"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-6)
    assert {name.partition(".")[0] for name in changed} == {"all", "both"}, "best is as it was"


def test_the_experiment_is_listed_beside_its_baseline(session: Session) -> None:
    header, *rows = session.listed.splitlines()
    assert "all.R@100" in header and "serve.all.k" in header
    assert any("0.833333" in row for row in rows) and len(rows) >= 3  # workspace, HEAD, it
