"""The flow on a real Prefect server: states, limits, failures, artifacts, read back over HTTP."""

import base64
import contextlib
import logging
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml
from diamond import DIAMOND
from prefect.logging.handlers import APILogHandler

from flows import build as building
from flows import dvc
from flows.build import build, plot_images
from flows.page import render_html
from flows.report import Evaluation
from stages.errors import QuarryError


def run(*targets, **options):
    """(final state, outcomes by stage as the server recorded them)."""
    state = build(targets, **options, return_state=True)
    return state, {t["name"]: t["state_name"] for t in task_runs(state)}


def task_runs(state):
    return ask("task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run_id(state)]}}})


def run_id(state) -> str:
    return str(state.state_details.flow_run_id)


def ask(path, body):
    from prefect.settings import get_current_settings

    reply = httpx.post(f"{get_current_settings().api.url}/{path}", json=body, timeout=30)
    reply.raise_for_status()
    return reply.json()


def test_the_flow_mirrors_the_graph_then_finds_nothing_to_do(server, project, monkeypatch):
    project.write(step=DIAMOND)
    state, outcomes = run()
    assert state.is_completed()
    assert outcomes == dict.fromkeys([f"step@{x}" for x in "abcd"], "Completed")
    assert project.text("d") == "A B A C D"
    assert dvc.status() == {}, "a plain dvc repro would do nothing either"

    arrows = {
        (t["name"], upstream["id"])
        for t in task_runs(state)
        for upstream in t["task_inputs"].get("wait_for", [])
    }
    ids = {t["name"]: t["id"] for t in task_runs(state)}
    assert arrows == {(f"step@{down}", ids[f"step@{up}"]) for down, up in ["ba", "ca", "db", "dc"]}

    logs = ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run_id(state)]}}})
    assert "a says hello" in [line["message"] for line in logs]

    monkeypatch.setattr(dvc, "repro", lambda *a, **k: pytest.fail("a process was started"))
    state, outcomes = run()
    assert outcomes == dict.fromkeys([f"step@{x}" for x in "abcd"], "Unchanged")
    assert state.message == "4 stages: 4 Unchanged"


def test_what_an_edit_reaches_is_made_restored_or_left_alone(server, project):
    steps = {**DIAMOND, "e": {"reads": "c", "text": "E"}, "f": {"text": "F"}}
    project.write(step=steps)
    project.repro()
    project.write(step={**steps, "b": {"reads": "a", "text": "new"}})
    project.repro()
    project.calls()
    project.write(step={**steps, "c": {"reads": "a", "text": "C # same bytes"}})
    state, outcomes = run("step@d", "step@e")
    assert outcomes == {
        "step@a": "Unchanged",  # no process
        "step@b": "Restored",  # as it was two runs ago
        "step@c": "Completed",
        "step@d": "Restored",  # behind b
        "step@e": "Unchanged",  # behind c, whose bytes are the same
    }
    assert project.calls() == ["step@c"]
    assert state.message == "5 stages: 1 Completed, 2 Restored, 2 Unchanged"


@pytest.mark.parametrize("by_git", [False, True])
def test_a_checkout_without_a_cache_restores_from_the_remote_and_runs_nothing(
    server, project, tmp_path, by_git
):
    """Nor stages with a file that Git keeps, as metrics, which DVC's run cache knows nothing of."""
    if by_git:
        graph = yaml.safe_load(Path("dvc.yaml").read_text())
        span = {"calls/step-${key}.span": {"cache": False}}
        graph["stages"]["step"]["do"]["outs"].append(span)
        Path("dvc.yaml").write_text(yaml.safe_dump(graph))
    project.write(step=DIAMOND)
    project.repro()
    for argv in (["remote", "add", "-q", "-d", "there", str(tmp_path / "remote")], ["push", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *argv], check=True)
    for made in (".dvc/cache", "data/a", "data/b", "data/c", "data/d"):
        shutil.rmtree(project.folder / made)
    project.calls()
    state, outcomes = run()
    ended = "Unchanged" if by_git else "Restored"
    assert outcomes == dict.fromkeys([f"step@{x}" for x in "abcd"], ended)
    assert project.calls() == [] and project.text("d") == "A B A C D"
    APILogHandler().flush()
    logs = ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run_id(state)]}}})
    said = "from the DVC remote: data/a, data/b, data/c, data/d"
    assert said in [line["message"] for line in logs]


def test_a_failure_takes_down_its_downstream_only_and_tells_the_end_of_its_log(server, project):
    steps = {"a": {"do": "fail:no more milk"}, "b": {"reads": "a"}, "c": {"reads": "b"}, "d": {}}
    project.write(step=steps)
    state, outcomes = run()
    assert state.is_failed()
    assert outcomes == {
        "step@a": "Failed", "step@b": "NotReady", "step@c": "NotReady", "step@d": "Completed",
    }  # fmt: skip
    assert state.message == "failed: step@a; 4 stages: 1 Completed, 1 Failed, 2 not run"
    (message,) = [t["state"]["message"] for t in task_runs(state) if t["name"] == "step@a"]
    assert "the reason: no more milk" in message and "line 49" in message
    assert sorted(project.calls()) == ["step@a", "step@d"]


def test_two_stages_run_at_once_and_one_of_them_with_torch(server, project):
    nap = {"do": "nap:0.5"}
    project.write(
        finetune={"m": {"do": "meet:a"}, "n": nap, "o": nap}, step={"a": {"do": "meet:m"}, "b": nap}
    )
    _, outcomes = run()
    assert set(outcomes.values()) == {"Completed"}, "m and a met: they ran at the same time"
    spans = {
        path.stem: tuple(map(float, path.read_text().split()))
        for path in (project.folder / "calls").glob("*.span")
    }
    assert len(spans) == 5
    torch = sorted(span for name, span in spans.items() if name.startswith("finetune"))
    assert all(before[1] <= after[0] for before, after in pairwise(torch))
    assert all(sum(s <= start < e for s, e in spans.values()) <= 2 for start, _ in spans.values())
    limit = httpx.get(f"{server}/concurrency_limits/tag/gpu", timeout=30).json()
    assert limit["concurrency_limit"] == 1


def test_only_a_server_of_its_own_does_without_the_limit(server, project, monkeypatch):
    """There each place costs a wait, and no other flow can take it."""
    project.write(finetune={"m": {}})

    def tags():
        return [t["tags"] for t in task_runs(build(force=True, return_state=True))]

    with building.on_server():
        assert tags() == [["gpu"]]
    monkeypatch.setattr(building.signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        building, "get_current_settings", lambda: SimpleNamespace(api=SimpleNamespace(url=None))
    )
    monkeypatch.setattr(building.ui, "running", lambda: None)
    monkeypatch.setattr(building.ui, "serving", lambda: contextlib.nullcontext(server))
    with building.on_server():
        assert tags() == [[]]
    assert tags() == [["gpu"]], "it ends with that server"


def test_a_held_lock_is_tried_again_and_a_failure_is_not(server, project, monkeypatch):
    project.write(step={"a": {}})
    errors = [dvc.StageBusy("a is busy"), dvc.StageBusy("a is busy"), None]
    tries: list[bool] = []

    def repro(name, *, force, **options):
        tries.append(force)
        if error := errors.pop(0):
            raise error
        return "Completed"

    monkeypatch.setattr(building, "RETRY_SECONDS", {dvc.StageBusy: (0, 0)})
    monkeypatch.setattr(dvc, "repro", repro)
    assert run()[1] == {"step@a": "Completed"}
    assert tries == [False] * 3

    errors[:] = [dvc.StageFailed("a failed")]
    assert run(force=True)[1] == {"step@a": "Failed"}
    errors[:] = [dvc.StageBusy("a is busy")] * 3
    assert run(force=True)[1] == {"step@a": "Failed"}
    assert errors == [] and tries[3:] == [True] * 4


def test_artifacts_hold_the_leaderboard_the_graph_and_the_progress(server, project, monkeypatch):
    monkeypatch.setattr(building, "PROGRESS_SECONDS", 0)
    project.write(
        step={"a": {"do": "bars"}, "b": {"reads": "a"}}, evaluate={"corpus-x": {"baseline": "bm25"}}
    )
    made = project.folder / "data/evaluate/corpus-x"
    made.mkdir(parents=True)
    (made / "metrics.json").write_text('{"bm25": {"nDCG@10": 0.375, "n": 225}}')
    (made / "recall.json").write_text('[{"system": "bm25", "k": 10, "recall": 0.5}]')
    state, _ = run()
    of_run = {"artifacts": {"flow_run_id": {"any_": [run_id(state)]}}}
    artifacts = {a["key"]: a for a in ask("artifacts/filter", of_run)}
    assert set(artifacts) == {"leaderboard", "plots", "graph", "report", "progress-step-a"}
    assert (
        "bm25" in artifacts["leaderboard"]["data"] and "0.375" in artifacts["leaderboard"]["data"]
    )
    assert artifacts["plots"]["data"].startswith("![recall against k on corpus-x")
    assert 's1["step@b"]:::Completed' in artifacts["graph"]["data"]
    assert "s0 --> s1" in artifacts["graph"]["data"]
    assert artifacts["progress-step-a"]["data"] == 100
    assert "step@a: 100% 4/4" in artifacts["progress-step-a"]["description"]
    page = project.folder / ".quarry/report/index.html"
    assert page.as_uri() in artifacts["report"]["data"]
    assert "step@b" in page.read_text()


def test_the_reports_plots_become_images_that_are_well_formed():
    rows = [{"system": s, "k": k, "recall": k / 10} for s in ("x", "<y>") for k in (1, 5)]
    metrics = {"x": {"nDCG@10": 0.5, "n": 3}, "<y>": {"nDCG@10": 0.4, "n": 3}}
    evaluation = Evaluation("corpus", {"baseline": "x"}, metrics, [], [], rows, [], {})
    (image,) = plot_images(render_html([evaluation], {}, {}))
    assert image.startswith("![recall against k on corpus")
    encoded = image.partition("base64,")[2].removesuffix(")")
    svg = ET.fromstring(base64.b64decode(encoded))
    assert svg.tag == f"{{{building.SVG}}}svg"
    assert len(list(svg.iter(f"{{{building.SVG}}}svg"))) >= 2, "the plot itself is in there"


def test_a_misspelt_target_is_told_before_a_server_is_started(project, monkeypatch, capsys):
    monkeypatch.setattr(building.ui, "serving", lambda: pytest.fail("a server was started"))
    project.write(step=DIAMOND)
    assert building.main(["step@bb"]) == 2
    assert "step@bb" in capsys.readouterr().err


def test_the_bar_is_closed_when_dvc_cannot_say_what_changed(monkeypatch):
    closed = []

    class Bar(building.Terminal):
        def close(self):
            closed.append(self)
            super().close()

    def refuse(targets):
        raise QuarryError("no lock file can be read")

    monkeypatch.setattr(building, "Terminal", Bar)
    monkeypatch.setattr(building, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(dvc, "graph", lambda targets: {})
    monkeypatch.setattr(building, "_fetch", lambda targets, terminal: None)
    monkeypatch.setattr(dvc, "status", refuse)
    with pytest.raises(QuarryError, match="no lock file"):
        building._build([], force=False)
    assert len(closed) == 1


def test_what_is_hidden_leaves_the_bar_at_once():
    terminal = building.Terminal(2)
    terminal.progress("dvc fetch", "50%")
    terminal.progress("index@a", "9%")
    assert terminal._bar.postfix == "dvc fetch 50% | index@a 9%"
    terminal.hide("dvc fetch")
    assert terminal._bar.postfix == "index@a 9%"
    terminal.close()
