"""A retraining from the dropped document to what is served, over this repository's own rooms.

The first tests take Prefect's place (``flowless``); the last one runs the flow on a real server,
with the latency of both revisions measured over HTTP.
"""

import hashlib
import logging
import os
import shutil
import sys
import time

import pytest
from prefect.states import Completed, Failed
from retrain_worlds import DOCUMENTS, QUESTIONS, World

from flows import deploy, dvc, heartbeat, promote, worktree
from flows import retrain as retraining
from flows.policy import DeployPolicy, read_policy
from flows.worktree import BRANCH, git

MANY = {f"n{i:02}": f"gorse n{i}" for i in range(3)}


@pytest.fixture
def flowless(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Artifacts by key; stages are made one by one, and ``built`` lists those that were made."""
    shown: dict[str, str] = {"built": ""}

    def build(targets, return_state):
        for name in dvc.graph(targets):
            try:
                outcome = dvc.repro(name, on_line=lambda line: None)
            except dvc.StageFailed as e:
                return Failed(message=str(e))
            if outcome != dvc.UNCHANGED:
                shown["built"] += f"{name} "
        return Completed()

    monkeypatch.setattr(retraining.building, "build", build)
    monkeypatch.setattr(retraining, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(
        retraining, "create_markdown_artifact", lambda text, key: shown.update({key: text})
    )
    return shown


def run(world: World, shown: dict[str, str], *, force: bool = False):
    """(name of the state, message, stages that were made)."""
    shown["built"] = ""
    policy = read_policy()
    with worktree.alone(world.folder, "a retraining"):
        state = retraining._retrain(world.folder, policy, force, policy.flow.targets)
    return state.name, state.message, shown["built"].split()


def served_documents(world: World) -> set[str]:
    from stages.tables import read_table

    folder = world.folder / promote.SERVED / "data/ingest/notes"
    return set(read_table(folder, "documents")["docid"].to_pylist())


def test_new_documents_go_through_to_production_and_nothing_else_is_touched(
    world, flowless
) -> None:
    name, message, built = run(world, flowless)
    assert (name, built) == ("Promoted", []), "what the user had made is taken from the cache"
    assert message.startswith("v0.0.1: promotion (nothing was promoted yet);")
    assert run(world, flowless)[0] == "NothingToDo"

    user = git(world.folder, "rev-parse", "main")
    world.write_corpus({**DOCUMENTS, **MANY})  # dropped, not committed
    before = git(world.folder, "status", "--porcelain")
    name, message, built = run(world, flowless)
    assert name == "Promoted"
    assert built == ["ingest@notes", "index@words", "serve@bm25", "evaluate@notes"]
    assert served_documents(world) == {*DOCUMENTS, *MANY}
    assert "3 new, 0 removed, 0 edited of 12" in flowless["drift"]
    assert "gorse" in flowless["drift"] and "### Accepted" in flowless["gate"]
    assert flowless["drift"].count("](data:image/svg+xml;base64,") == 3, "limits, documents, words"
    assert git(world.folder, "rev-parse", "main") == user
    assert git(world.folder, "status", "--porcelain") == before
    assert not (world.folder / worktree.WORKTREE / ".quarry/records").exists(), "shared"
    assert run(world, flowless) == ("NothingToDo", "v0.0.2 is up to date", [])

    said = [line["outcome"] for line in retraining.journal(world.folder)]
    assert said == ["promoted", "promoted"]


def test_too_little_is_not_worth_it_until_forced(world, flowless) -> None:
    world.write_params(drift={"changed": 0.5, "vocabulary": 1.0})
    world.commit()
    run(world, flowless)
    world.write_corpus({**DOCUMENTS, **MANY})
    name, message, built = run(world, flowless)
    assert (name, built) == ("NotWorthIt", ["ingest@notes"])
    assert "0.2500, limit 0.5" in message
    assert promote.current(world.folder).version.name == "v0.0.1"
    assert run(world, flowless, force=True)[0] == "Promoted"


def test_a_worse_candidate_is_refused_with_all_reasons_and_not_built_again(world, flowless) -> None:
    run(world, flowless)
    texts = list(DOCUMENTS.values())
    world.write_corpus(dict(zip(DOCUMENTS, texts[1:] + texts[:1], strict=True)))  # all judged wrong
    name, message, built = run(world, flowless)
    assert name == "Refused" and "evaluate@notes" in built
    assert "notes: nDCG@10 of bm25: not shown to be non-inferior" in message
    assert "notes: R@100" in message
    assert flowless["gate"].count("REFUSED") == 2
    assert promote.current(world.folder).version.name == "v0.0.1"
    assert served_documents(world) == set(DOCUMENTS)

    name, message, built = run(world, flowless)
    assert (name, built) == ("NothingToDo", []) and "the same was refused" in message
    world.write_corpus(DOCUMENTS)
    assert run(world, flowless)[::2] == ("NothingToDo", []), "back to what is in production"


def test_what_was_rolled_back_is_not_promoted_again_by_the_next_night(world, flowless) -> None:
    run(world, flowless)
    world.write_corpus({**DOCUMENTS, **MANY})
    assert run(world, flowless)[0] == "Promoted"
    assert promote.rollback(world.folder).name == "v0.0.1"
    assert served_documents(world) == set(DOCUMENTS)
    name, message, built = run(world, flowless)
    assert (name, built) == ("NothingToDo", []) and "v0.0.2, which was rolled back" in message
    world.write_corpus({**DOCUMENTS, **MANY, "n99": "hazel"})
    assert run(world, flowless)[0] == "Promoted"
    assert promote.current(world.folder).version.name == "v0.0.3"


def test_a_half_read_source_stops_it_and_production_stays(world, flowless) -> None:
    run(world, flowless)
    world.write_corpus(dict(list(DOCUMENTS.items())[:8]))  # 4 of 12 are gone
    name, message, built = run(world, flowless)
    assert (name, built) == ("Stopped", ["ingest@notes"])
    assert "4 of 12 documents are gone" in message
    assert served_documents(world) == set(DOCUMENTS)
    shutil.rmtree(world.folder / "corpus")
    with pytest.raises(retraining.QuarryError, match="source .*corpus is not there"):
        run(world, flowless)


@pytest.mark.parametrize("how", ["damaged", "pruned"])
def test_a_cache_that_lost_what_is_served_is_made_whole_before_it_is_compared(
    world, flowless, how
) -> None:
    run(world, flowless)
    path = world.folder / promote.SERVED / "data/index/words/docids.json"
    sound = path.read_bytes()
    digest = hashlib.md5(sound, usedforsecurity=False).hexdigest()
    entry = world.folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    if how == "damaged":
        before = entry.stat()
        entry.chmod(0o644)
        entry.write_bytes(b"[" + sound[1:].swapcase())
        os.utime(entry, ns=(before.st_atime_ns, before.st_mtime_ns))
        entry.chmod(0o444)  # as a disk error leaves it
        assert path.read_bytes() != sound, "a hard link shares the damage"
    else:
        entry.unlink()
        shutil.rmtree(path.parent)
        shutil.rmtree(world.folder / worktree.WORKTREE / "data/index/words")
    name, message, built = run(world, flowless, force=how == "pruned")  # damage is a reason
    assert (name, message[:7]) == ("Promoted", "v0.0.1:"), "nothing else changed"
    assert "index@words" in built
    assert path.read_bytes() == entry.read_bytes() == sound


def test_other_questions_cannot_be_compared(world, flowless) -> None:
    run(world, flowless)
    world.write_corpus({**DOCUMENTS, **MANY}, {**QUESTIONS, "q00": "birch"})
    name, message, _ = run(world, flowless)
    assert name == "Refused" and "other questions" in message
    assert promote.main(["promote"]) == 0, "by hand"
    assert served_documents(world) == {*DOCUMENTS, *MANY}


def test_a_drop_folder_outside_git_takes_the_place_of_an_entrys_path(world, flowless) -> None:
    run(world, flowless)
    world.write_corpus({**DOCUMENTS, **MANY})
    inbox = world.folder / ".quarry/inbox"
    shutil.move(world.folder / "corpus", inbox)
    git(world.folder, "checkout", "-q", "--", "corpus")
    world.write_params(flow={"drop": {"notes": ".quarry/inbox"}})
    assert run(world, flowless)[0] == "Promoted"
    assert served_documents(world) == {*DOCUMENTS, *MANY}
    tracked = [git(world.folder, "rev-parse", f"{at}:corpus") for at in (BRANCH, "HEAD")]
    assert tracked[0] == tracked[1], "a merge must not change the files of the user's own path"


def test_a_flow_on_a_server_shows_its_reasons_measures_latency_and_tells_the_hook(
    world, server, capfd
) -> None:
    import httpx

    hook = "import os, pathlib; pathlib.Path('told').open('a').write("
    hook += "os.environ['QUARRY_STATE'] + ': ' + os.environ['QUARRY_MESSAGE'])"
    told = {"hook": [sys.executable, "-c", hook]}
    world.write_params(deploy=told)
    state = retraining.retrain(return_state=True)
    assert state.name == "Promoted", state.message

    world.write_params(deploy=told, gate={"latency": 1e-9})  # nothing can be as fast as that
    world.write_corpus({**DOCUMENTS, **MANY})
    state = retraining.retrain(return_state=True)
    assert state.name == "Refused" and state.is_failed(), state.message
    assert "notes: latency: p95 in seconds of 12 questions" in state.message
    assert (world.folder / "told").read_text() == f"Refused: {state.message}"

    run_id = str(state.state_details.flow_run_id)
    body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    shown = httpx.post(f"{server}/artifacts/filter", json=body, timeout=30).json()
    artifacts = {a["key"]: a["data"] for a in shown}
    assert "### Retraining is worth it" in artifacts["drift"]
    assert "### Refused, 1 reasons" in artifacts["gate"]

    with worktree.alone(world.folder, "rollback"):
        assert retraining.retrain(return_state=True).name == "Busy"

    # A run that was killed: the server has it Running, nobody holds its lock.
    from prefect import get_client
    from prefect.states import Running

    with get_client(sync_client=True) as client:
        alive, dead = (client.create_flow_run(retraining.retrain, state=Running()) for _ in "ab")
        left = world.folder / heartbeat.RUNS / str(dead.id)
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_text("1\n")
        (left.parent / "whose worker told the server").touch()
        with heartbeat.beating(world.folder, str(alive.id)):
            assert heartbeat.sweep(world.folder, client) == [str(dead.id)]
            assert [path.name for path in left.parent.iterdir()] == [str(alive.id)]
            assert heartbeat.sweep(world.folder, client) == []
        states = [client.read_flow_run(run.id).state_type.value for run in (alive, dead)]
    assert states == ["RUNNING", "CRASHED"]
    assert "Crashed: its process is gone" in (world.folder / "told").read_text()


def test_a_worker_of_the_pool_runs_the_deployment_in_this_checkout(
    world, server, server_process, monkeypatch
) -> None:
    from prefect import get_client

    monkeypatch.setenv("PREFECT_HOME", str(server_process[1]))
    policy = DeployPolicy(cron=["30 3 1 1 *"], at_once=1)
    made, form = deploy.deploy(world.folder, policy)
    assert deploy.deploy(world.folder, policy) == (made, form), "deployed again, it is the same"
    with get_client(sync_client=True) as client:
        assert client.read_work_pool(deploy.POOL).concurrency_limit == 1
        found = client.read_deployment(made)
        assert [s.schedule.cron for s in found.schedules] == ["30 3 1 1 *"]
        run_ = client.create_flow_run_from_deployment(found.id)
        with deploy.working(server) as worker:
            deadline = time.monotonic() + 180
            while not (state := client.read_flow_run(run_.id).state).is_final():
                assert worker.poll() is None and time.monotonic() < deadline, state
                time.sleep(1)
    assert state.name == "Promoted", state.message
    assert promote.current(world.folder).version.name == "v0.0.1"
    assert worker.poll() is not None
