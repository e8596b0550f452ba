"""kill -9 in the middle of a flow: run again, it ends with the bytes of a run never disturbed.

A chain is one flow from nothing made to the end, with a kill in each of its long stages: at a
random point, of the stage's process, of the flow, or of the Prefect server. After every kill the
flow is started again. A kill counts if the stage had kept some of its records and not all. Nothing
that was kept is computed again, and the end is compared with an undisturbed run, file by file.
"""

import logging
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from fault_worlds import (
    LONG,
    RECORDS,
    Caught,
    Expected,
    Flow,
    manifest,
    plumbing,
    rows,
    undisturbed,
)

from flows import dvc
from flows.plan import TORCH_TAG

log = logging.getLogger(__name__)
FEW = ["evaluate@leaf"]  # one corpus, no triples, nothing of a tuned encoder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plumbing(tmp_path_factory.mktemp("plumbing") / "world")


@pytest.fixture(scope="module")
def expected(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Of the few stages, which five kills are for."""
    return _undisturbed(world, tmp_path_factory.mktemp("undisturbed") / "world", FEW)


def _undisturbed(world: Path, folder: Path, targets: Sequence[str]) -> Expected:
    shutil.copytree(world, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("QUARRY_RECORDS", str(folder / RECORDS))
        return undisturbed(folder, list(dvc.graph(targets)))


@pytest.fixture
def server(server_process: tuple[str, Path]) -> Iterator[tuple[str, Path]]:
    """With room for many torch stages: a killed flow's place is free only after a minute."""
    limit = f"{server_process[0]}/concurrency_limits/"
    httpx.post(limit, json={"tag": TORCH_TAG, "concurrency_limit": 99}, timeout=30)
    yield server_process
    httpx.delete(f"{limit}tag/{TORCH_TAG}", timeout=30)


def chain(
    folder: Path, server: tuple[str, Path], victims: Iterable[str], expected: Expected,
    rng: random.Random, targets: Sequence[str] = (),
) -> list[Caught]:  # fmt: skip
    """Kill in every long stage the next victim, run to the end, compare; what was caught."""
    caught: list[Caught] = []
    flow: Flow | None = None
    left = set(LONG) & expected.keys.keys()
    for victim in victims:
        if not left:
            break
        if flow and (flow.process.poll() is not None or flow.has_server != (victim == "server")):
            flow = log.warning("the flow ended with %d", flow.end())
        flow = flow or Flow(folder, None if victim == "server" else server, *targets)
        found = flow.find(left)
        if found is None:
            assert flow.end() != 0, f"it ended without {left}"
            continue
        left.remove(found[0])
        trial = flow.kill(victim, *found, rng.uniform(0, 0.6), expected)
        if trial is None:
            log.warning("%s: not caught", found[0])
            continue
        what = (trial.stage, trial.kept, trial.total, victim)
        log.warning("%s: %d of %d kept, SIGKILL to the %s", *what)
        caught.append(trial)
        if victim != "stage":
            flow = log.warning("the flow ended with %d", flow.end())
    if flow:
        flow.end()
    assert Flow(folder, server, *targets).end() == 0, end_of_log(folder)
    kept = rows(folder / RECORDS)
    for trial in caught:
        assert trial.rows.items() <= kept.items(), f"{trial.stage}: records were computed again"
    assert kept.keys() == frozenset().union(*expected.keys.values())
    assert manifest(folder) == expected.manifest
    return caught


def end_of_log(folder: Path) -> str:
    return (folder / ".quarry/flow.log").read_text(errors="replace")[-3000:]


def test_five_kills_lose_nothing(world, expected, server, tmp_path) -> None:
    shutil.copytree(world, tmp_path / "world")
    victims = ["flow", "stage", "flow", "server", "stage"]
    caught = chain(tmp_path / "world", server, victims, expected, random.Random(1), targets=FEW)
    # All of them are compared; a busy machine may let a stage end before its kill.
    assert sum(c.counts for c in caught) >= 3, caught


@pytest.mark.slow
def test_fifty_kills_lose_nothing(world, server, tmp_path) -> None:
    """Of the whole graph, chain after chain; ``QUARRY_TRIALS`` sets how many kills."""
    trials = int(os.environ.get("QUARRY_TRIALS", "50"))
    expected = _undisturbed(world, tmp_path / "undisturbed", [])
    caught: list[Caught] = []
    for seed in range(trials):
        rng = random.Random(seed)
        victims = ["server", *(rng.choice(["stage", "flow"]) for _ in LONG), *["stage"] * 9]
        shutil.copytree(world, folder := tmp_path / f"chain-{seed}")
        caught += [c for c in chain(folder, server, victims, expected, rng) if c.counts]
        shutil.rmtree(folder)
        kinds = Counter(c.stage.split("@")[0] for c in caught)
        log.warning("%d counted: %s, %s", len(caught), kinds, Counter(c.victim for c in caught))
        if len(caught) >= trials:
            break
    assert len(caught) >= trials
    assert trials < 50 or (len(kinds) == 6 and min(kinds.values()) >= 3)
