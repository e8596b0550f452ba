"""``retrain:`` in params.yaml, and the parts around the flow: calls, turns, hooks, reports."""

import fcntl
import sys
from pathlib import Path

import numpy as np
import pytest

from flows import deploy, heartbeat, latency, reasons
from flows.drift import Changes, Drift, Shift, Trigger, Verdict
from flows.gate import Decision, Reason
from flows.latency import Call, calls_of, in_turn
from flows.policy import DeployPolicy, read_policy
from stages import params
from stages.errors import QuarryError

ROOT = Path(__file__).parents[2]
SECTION = """
retrain:
  drift: {}
  gate: {primary: {notes: {system: bm25}}}
  flow: {}
  deploy: {}
"""


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return path

    return write


def test_this_projects_section_is_valid_and_names_what_there_is() -> None:
    path = ROOT / "params.yaml"
    policy = read_policy(path)
    evaluations = params.entries("evaluate", path=path)
    catalogue = {room: params.entries(room, path=path) for room in ("serve", "fuse")}
    for name, primary in policy.gate.primary.items():
        assert primary.system in evaluations[name]["runs"]
        assert calls_of(primary.system, catalogue)
    assert policy.flow.encoder.keys() <= params.entries("ingest", path=path).keys()
    assert set(policy.flow.encoder.values()) <= params.entries("finetune", path=path).keys()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  drift: {}", "  drfit: {}", "retrain.drfit: unknown key. Did you mean 'drift'?"),
        ("flow: {}", "flow: {target: [a]}", "unknown key. Did you mean 'targets'?"),
        ("  flow: {}\n", "", "no entry 'flow' under 'retrain'"),
        ("deploy: {}", "deploy: {cron: ['61 * * * *']}", "is no schedule"),
        ("deploy: {}", "deploy: {hook: 'mail x'}", "retrain.deploy.hook: "),  # no shell line
    ],
)
def test_what_is_not_known_is_refused_by_name(written, old, new, said) -> None:
    read_policy(written(SECTION))
    with pytest.raises(QuarryError) as caught:
        read_policy(written(SECTION.replace(old, new)))
    assert said in str(caught.value)


# -- latency ------------------------------------------------------------------------------


def test_a_system_is_asked_as_what_it_is_and_a_fused_one_as_its_runs() -> None:
    catalogue = {
        "serve": {
            "words": {"strategy": "search", "index": "bm25"},
            "reader": {"strategy": "rag", "index": "bm25"},
        },
        "fuse": {"both": {"runs": ["words", "reader"]}, "broken": {"runs": ["gone"]}},
    }
    assert calls_of("words", catalogue) == [Call("words", "bm25")]
    assert calls_of("both", catalogue) == [Call("words", "bm25"), Call("reader", None)]
    for name in ("gone", "broken"):
        with pytest.raises(QuarryError, match="no entry of serve or fuse"):
            calls_of(name, catalogue)


def test_both_are_asked_in_turn_who_is_first_alternates_and_warming_up_does_not_count(
    monkeypatch,
) -> None:
    order: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(next(clock)))
    ask = {
        who: lambda q, who=who: order.append(f"{who[0]}{q}") for who in ("promoted", "candidate")
    }
    samples = in_turn(ask, ["1", "2", "3"])
    assert order == ["p1", "c1", "c2", "p2", "p1", "c1", "c2", "p2", "p3", "c3"]
    assert np.array_equal(samples.promoted, np.ones(3))
    assert np.array_equal(samples.candidate, np.ones(3))


# -- who is told --------------------------------------------------------------------------


def test_the_hook_is_an_argv_list_with_the_facts_in_its_environment(tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = f"import os; open({str(told)!r}, 'w').write(os.environ['QUARRY_STATE'])"
    said = {"QUARRY_STATE": "Refused; $(echo no shell)"}
    assert heartbeat.run_hook([sys.executable, "-c", code], said, seconds=30) == 0
    assert told.read_text() == "Refused; $(echo no shell)"


@pytest.mark.parametrize("argv", [["/no/such/program"], [sys.executable, "-c", "while True: pass"]])
def test_a_hook_that_fails_or_hangs_is_no_failure_of_the_run(argv) -> None:
    assert heartbeat.run_hook(argv, {}, seconds=0.3) is None


def test_a_run_is_dead_when_its_lock_is_free_and_its_file_still_there(tmp_path: Path) -> None:
    assert not heartbeat.is_dead(tmp_path, "of another checkout")
    with heartbeat.beating(tmp_path, "run"):
        assert not heartbeat.is_dead(tmp_path, "run")
    assert not heartbeat.is_dead(tmp_path, "run"), "it ended well"
    path = tmp_path / heartbeat.RUNS / "run"
    path.touch()
    assert heartbeat.is_dead(tmp_path, "run"), "the kernel freed the lock of a killed process"
    with path.open() as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert not heartbeat.is_dead(tmp_path, "run")


def test_a_run_is_never_seen_without_its_lock(tmp_path: Path, monkeypatch) -> None:
    take, seen = fcntl.flock, []

    def look_first(f, how) -> None:
        seen.append((tmp_path / heartbeat.RUNS / "run").exists())
        take(f, how)

    monkeypatch.setattr(heartbeat.fcntl, "flock", look_first)
    with heartbeat.beating(tmp_path, "run"):
        assert seen == [False]
        assert [path.name for path in (tmp_path / heartbeat.RUNS).iterdir()] == ["run"]


# -- on a schedule ------------------------------------------------------------------------


def test_the_deployment_has_the_schedules_the_pool_and_one_run_at_a_time(tmp_path: Path) -> None:
    policy = DeployPolicy(cron=["30 3 * * *", "0 12 * * 1"], timezone="Europe/Paris")
    made = deploy.make_deployment(tmp_path, policy)
    crons = [(s.schedule.cron, s.schedule.timezone) for s in made.schedules]
    assert crons == [("30 3 * * *", "Europe/Paris"), ("0 12 * * 1", "Europe/Paris")]
    assert made.entrypoint == "flows.retrain.retrain"
    assert (made.work_pool_name, made.concurrency_limit) == ("quarry", 1)
    assert made.concurrency_options.collision_strategy.value == "CANCEL_NEW"
    assert made.job_variables["working_dir"] == str(tmp_path)
    assert made.job_variables["env"]["PYTHONPATH"] == str(tmp_path)
    assert {"force", "targets"} <= made._parameter_openapi_schema.properties.keys()


# -- reports ------------------------------------------------------------------------------


def test_reports_name_every_reason_and_nothing_in_them_is_markup() -> None:
    decision = Decision((
        Reason("notes", "R@100", False, "may drop by 0.02", 0.9, 0.5, 0.88),
        Reason("no|tes", "nDCG@10", True, "fine", 0.5, 0.5, 0.05, 0.001),
    ))  # fmt: skip
    text = reasons.decision_markdown(decision)
    assert "### Refused, 1 reasons" in text
    assert "| REFUSED | notes | R@100 | 0.9000 | 0.5000 | 0.8800 | - | may drop by 0.02 |" in text
    assert "no&#124;tes" in text
    said = reasons.decision_text(decision)
    assert said == "notes: R@100: may drop by 0.02 (0.9000 -> 0.5000)"

    drift = Drift(Changes(9, 10, ["<b>"], [], []), Shift(0.1, [("gorse", 0.0, 0.25)]), None)
    verdict = Verdict((Trigger("documents", "notes", True, "1 new"),), ("notes: gone",))
    text = reasons.drift_markdown(verdict, {"notes": drift})
    assert "### Retraining was stopped" in text and "**notes: gone**" in text
    assert "| documents | notes | yes | 1 new |" in text
    assert "1 new: &#60;b&#62;" in text and "| gorse | 0.00000 | 0.25000 |" in text
