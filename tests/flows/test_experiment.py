"""Builds with other values: what they make, what they leave alone, what they refuse."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import dvc, experiment
from flows.build import build
from flows.worktree import Overlap, alone, git
from stages.errors import QuarryError


def states_of(flow_run_id) -> dict[str, str]:
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        return {t.name: t.state.name for t in client.read_task_runs(flow_run_filter=of_run)}


def test_other_values_make_an_experiment_and_leave_the_checkout_alone(world, server) -> None:
    values, lock = Path("params.yaml").read_bytes(), Path("dvc.lock").read_bytes()
    state = build(["evaluate@notes"], overrides=["serve.bm25.k=3"], return_state=True)
    assert state.is_completed(), state.message
    assert states_of(state.state_details.flow_run_id) == {
        "ingest@notes": "Unchanged", "index@words": "Unchanged",
        "serve@bm25": "Completed", "evaluate@notes": "Unchanged",
    }, "each question has one hit, so three give the bytes of ten"  # fmt: skip
    assert git(world.folder, "status", "--porcelain") == ""
    assert (Path("params.yaml").read_bytes(), Path("dvc.lock").read_bytes()) == (values, lock)

    name = state.message.rpartition("dvc exp apply ")[2]
    tell = [sys.executable, "-m", "dvc", "exp"]
    # It ends with an error that names the study: DVC looks for outputs that were never made.
    subprocess.run([*tell, "apply", name], capture_output=True)
    dvc.checkout(world.folder)
    assert yaml.safe_load(Path("params.yaml").read_text())["serve"]["bm25"]["k"] == 3
    assert dvc.status(["evaluate@notes"]) == {}, "what was built is what the checkout has now"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("serve.bm25.kk=3", r"kk.*\+serve\.ENTRY\.KEY=VALUE"),
        ("serve.bm25.k", "serve.bm25.k"),
        ("serve.bm25.k=${oc.env:HOME}", "may not refer to another"),
    ],
)
def test_an_override_that_says_nothing_is_named_and_nothing_is_built(world, asked, message) -> None:
    with (
        pytest.raises(QuarryError, match=f"(?s){message}"),
        experiment.overridden(world.folder, [asked]),
    ):
        raise AssertionError("not reached")
    assert git(world.folder, "status", "--porcelain") == ""


def test_two_at_once_are_one_and_a_refusal(world) -> None:
    with (
        alone(world.folder, "another", experiment.LOCK),
        pytest.raises(Overlap, match="another"),
        experiment.overridden(world.folder, ["serve.bm25.k=3"]),
    ):
        raise AssertionError("not reached")
