"""The flow against plain ``dvc repro``, in seconds from when the Prefect server is up.

On 120 entries in chains of ten, of which 20 have changed, then none: commands do next to nothing,
so what is measured is orchestration. And on the default graph, where the depth of one search has
changed. The flow starts a ``dvc`` process per stage and talks to the server, two stages at a time;
its peer is one process. Standard error also says what a stage costs more in the flow (asked for:
under 2 s) and how long the server takes to start.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import yaml

from benchmarks.harness import compare
from stages.tables import read_table

Run = Callable[[int], list[str]]
Check = Callable[[list[str], list[str]], None]

ROOT = Path(__file__).resolve().parents[1]
ENTRY = "  bm25-semanlink: {strategy: search"  # of params.yaml

N, CHAIN, CHANGED = 120, 10, 20
AT_MOST = 2.0  # seconds that the flow may add to an executed stage
NOTHING = 30.0  # seconds that a flow may take that has nothing to make

DVC_YAML = """
stages:
  step:
    foreach: ${step}
    do:
      cmd: mkdir -p data && echo ${item.text} > data/${key}
      params: ["step.${key}"]
      deps: ["data/${item.reads}"]
      outs: ["data/${key}"]
"""


def write_params(edition: int) -> None:
    """The last two stages of ten of the twelve chains say something new in each edition."""
    entries = {}
    for at in range(N):
        reads = f"e{at - 1:03d}" if at % CHAIN else "none"
        is_changed = at % CHAIN >= CHAIN - 2 and at < CHANGED // 2 * CHAIN
        entries[f"e{at:03d}"] = {"reads": reads, "text": f"{at} {edition if is_changed else 0}"}
    Path("params.yaml").write_text(yaml.safe_dump({"step": entries, "evaluate": {}}))


def outputs(edition: int) -> list[str]:
    """What all stages wrote; the edition reads NEW."""
    texts = [Path(f"data/e{at:03d}").read_text().split() for at in range(N)]
    return [f"{entry} {'NEW' if said == str(edition) else said}" for entry, said in texts]


def by_repro(edition: int) -> list[str]:
    """Plain ``dvc repro``."""
    write_params(edition)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    return outputs(edition)


def by_flow(edition: int) -> list[str]:
    """The flow, which must have run the changed stages and no other."""
    from flows.build import build

    write_params(edition)
    state = build(return_state=True)
    assert state.message == f"{N} stages: {CHANGED} Completed, {N - CHANGED} Unchanged", state
    return outputs(edition)


def assert_equal(ours: list[str], theirs: list[str]) -> None:
    """Both made the same."""
    assert ours == theirs


def assert_same(ours: list[str], theirs: list[str]) -> None:
    """Equal, and the changed stages are among them."""
    assert_equal(ours, theirs)
    assert sum(text.endswith("NEW") for text in ours) == CHANGED


def small_graph() -> None:
    """One JSON line for the 120 entries."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
        Path("dvc.yaml").write_text(DVC_YAML)
        Path("data").mkdir()
        Path("data/none").touch()
        by_repro(0)
        measure(
            f"flow: {CHANGED} changed stages of {N}",
            CHANGED,
            by_repro,
            by_flow,
            assert_same,
        )

        def repro(edition: int) -> list[str]:
            return by_repro(0)

        def flow(edition: int) -> list[str]:
            """The flow, which must have run no stage."""
            from flows.build import build

            state = build(return_state=True)
            assert state.message == f"{N} stages: {N} Unchanged", state
            return outputs(0)

        repro(0)
        measure(f"flow: no changed stage of {N}", 0, repro, flow, assert_equal)


def default_graph() -> None:
    """One JSON line for the default graph, made before: BM25 on Semanlink and what hangs on it.

    In a clone that shares this checkout's cache, the depth of one search is a new one in each
    edition; that runs a search, the fusions that read it and an evaluation.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        subprocess.run(["git", "clone", "-q", str(ROOT), "clone"], check=True)
        os.chdir("clone")
        Path(".dvc/cache").mkdir()  # its own memory of past runs: no edition was run before
        Path(".dvc/cache/files").symlink_to(ROOT / ".dvc/cache/files")
        subprocess.run(
            [sys.executable, "-m", "dvc", "checkout", "-q", "dvc.yaml"],
            check=True, capture_output=True,
        )  # fmt: skip
        before = Path("params.yaml").read_text(encoding="utf-8")
        entry = next(line for line in before.splitlines() if line.startswith(ENTRY))
        assert entry.endswith("k: 100}"), entry

        def change(edition: int) -> None:
            now = entry.replace("k: 100}", f"k: {100 + edition}}}")
            Path("params.yaml").write_text(before.replace(entry, now), encoding="utf-8")

        def made(edition: int) -> list[str]:
            """The first hundred ranks, equal in all editions, and who was evaluated."""
            run = read_table(Path("data/runs/semanlink/bm25-semanlink"), "runs")
            assert max(run["rank"].to_pylist()) == 100 + edition
            first = [str(row) for row in run.to_pylist() if row["rank"] <= 100]
            return [*first, *json.loads(Path("data/evaluate/semanlink/metrics.json").read_text())]

        def repro(edition: int) -> list[str]:
            change(edition)
            subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
            return made(edition)

        def flow(edition: int) -> list[str]:
            from flows.build import build

            change(edition)
            state = build(return_state=True)
            assert f" {executed} Completed" in state.message, state
            return made(edition)

        from flows import dvc

        below = {f"serve@{ENTRY.split(':')[0].strip()}"}  # what is changed, and all that reads it
        for stage in dvc.graph().values():  # upstream first
            if below & {*stage.upstream}:
                below.add(stage.name)
        executed = len(below)
        measure(f"flow: {executed} changed stages of the default graph", executed, repro, flow,
                assert_equal)  # fmt: skip


def measure(name: str, executed: int, repro: Run, flow: Run, check: Check) -> None:
    """Compare the flow with plain ``dvc repro``, with a server that is up."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import ui

    edition = count(1)
    start = time.perf_counter()
    repro(next(edition))
    alone = time.perf_counter() - start
    start = time.perf_counter()
    with ui.serving(pages=False) as url, temporary_settings({PREFECT_API_URL: url}):
        server = time.perf_counter() - start
        line = compare(
            name, peer="dvc repro", unit="s", work=None, check=check,
            aim=round(alone / (alone + AT_MOST * executed if executed else NOTHING), 2),
            ours=lambda: flow(next(edition)), theirs=lambda: repro(next(edition)),
        )  # fmt: skip
    more = {"seconds to start the server": round(server, 1)}
    if executed:
        added = (line["ours"] - line["theirs"]) / executed
        more |= {"seconds added to an executed stage": round(added, 3), "asked for": AT_MOST}
    print(json.dumps(more), file=sys.stderr)


def main() -> None:
    """Print a JSON line for each graph."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--graph", choices=["small", "default"], help="one of the two")
    graph = p.parse_args().graph
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"PREFECT_HOME": home, "PREFECT_LOGGING_LEVEL": "ERROR"}
        if graph != "default":
            small_graph()
        if graph != "small":
            default_graph()


if __name__ == "__main__":
    main()
