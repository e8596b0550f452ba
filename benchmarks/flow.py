"""The flow against plain ``dvc repro``: 120 entries in chains of ten, of which 20 have changed.

Seconds from the moment at which the Prefect server is up. Commands do next to nothing, so what is
measured is orchestration: the flow starts a ``dvc`` process per stage and talks to the server, two
stages at a time; its peer is one process. Standard error also says what a stage costs more in the
flow (asked for: under 2 s) and how long the server takes to start.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import yaml

from benchmarks.harness import compare

N, CHAIN, CHANGED = 120, 10, 20
AT_MOST = 2.0  # seconds that the flow may add to an executed stage

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


def assert_same(ours: list[str], theirs: list[str]) -> None:
    """Equal, and the changed stages are among them."""
    assert ours == theirs
    assert sum(text.endswith("NEW") for text in ours) == CHANGED


def main() -> None:
    """Print one JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from flows import ui

        subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
        Path("dvc.yaml").write_text(DVC_YAML)
        Path("data").mkdir()
        Path("data/none").touch()
        by_repro(0)
        start = time.perf_counter()
        by_repro(1)
        alone = time.perf_counter() - start
        start = time.perf_counter()
        with ui.serving(pages=False) as url, temporary_settings({PREFECT_API_URL: url}):
            server = time.perf_counter() - start
            edition = count(2)
            line = compare(
                f"flow: {CHANGED} changed stages of {N}",
                peer="dvc repro",
                unit="s",
                aim=round(alone / (alone + AT_MOST * CHANGED), 2),
                ours=lambda: by_flow(next(edition)),
                theirs=lambda: by_repro(next(edition)),
                work=None,
                check=assert_same,
            )
        added = (line["ours"] - line["theirs"]) / CHANGED
        more = {
            "seconds added to an executed stage": round(added, 3), "asked for": AT_MOST,
            "seconds to start the server": round(server, 1),
        }  # fmt: skip
        print(json.dumps(more), file=sys.stderr)


if __name__ == "__main__":
    main()
