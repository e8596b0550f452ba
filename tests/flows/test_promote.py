"""Promotion and rollback in a small Git and DVC repository: tags, trees, and whose branch moved."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flows import dvc, promote, worktree
from flows.worktree import git
from stages.errors import QuarryError

ROOT = Path(__file__).parents[2]
MADE = "mkdir -p data/index data/evaluate/e; cp in data/index/a; cp in data/evaluate/e/metrics.json"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stage, made and committed."""
    folder = tmp_path_factory.mktemp("small")
    git(folder, "init", "-q", "-b", "main")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, check=True)
    outs = ["data/index/a"]
    metrics = [{"data/evaluate/e/metrics.json": {"cache": False}}]
    stage = {"cmd": MADE, "deps": ["in"], "outs": outs, "metrics": metrics}
    model = {"quarry": {"path": "data/index/a", "type": "model"}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"a": stage}, "artifacts": model}))
    (folder / ".gitignore").write_text("/.quarry/\n/data/index/\n")
    (folder / "params.yaml").write_text("{}\n")
    (folder / "in").write_text("1")
    make(folder)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


@pytest.fixture
def repo(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy, which is the working directory."""
    folder = tmp_path / "repo"
    shutil.copytree(small, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def make(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=folder, check=True)


def build(root: Path, text: str, *, inputs: str = "") -> promote.Version:
    """A retraining in short: new input, built in the worktree, promoted."""
    now = promote.current(root)
    folder = worktree.prepare(root, now.version.commit if now else None)
    (folder / "in").write_text(text)
    make(folder)
    return promote.promote(root, folder, why=f"in = {text}", inputs=inputs or text, sources=["in"])


def served(root: Path) -> str:
    return (root / promote.SERVED / "data/index/a").read_text()


def branches(root: Path) -> dict[str, str]:
    return {b: git(root, "rev-parse", b) for b in ("main", worktree.BRANCH)}


def test_a_promotion_is_a_commit_and_two_tags_and_the_users_branch_stays(repo: Path) -> None:
    (repo / "in").write_text("being edited")
    before = git(repo, "rev-parse", "main"), git(repo, "status", "--porcelain")
    first = build(repo, "2")
    assert (git(repo, "rev-parse", "main"), git(repo, "status", "--porcelain")) == before
    assert (repo / "in").read_text() == "being edited"
    assert first.name == "v0.0.1" and first.inputs == "2"
    assert git(repo, "tag", "-l").split() == ["quarry#prod#1", "quarry@v0.0.1"]
    assert git(repo, "rev-parse", worktree.BRANCH) == first.commit
    changed = git(repo, "diff", "--name-only", "main", first.commit).split()
    assert changed == ["data/evaluate/e/metrics.json", "dvc.lock", "in"]
    assert git(repo, "log", "-1", "--format=%an", first.commit) == "quarry"
    assert served(repo) == "2"
    assert promote.current(repo).version == first


def test_worktree_and_checkout_share_one_cache_and_make_nothing_twice(repo: Path) -> None:
    cache = repo / ".dvc/cache/files/md5"
    before = sorted(cache.rglob("*"))
    folder = worktree.prepare(repo, None)
    assert dvc.missing(folder) == []
    dvc.checkout(folder)
    with pytest.MonkeyPatch.context() as at:
        at.chdir(folder)
        assert dvc.status() == {}
    assert (folder / "data/index/a").read_text() == "1"
    assert sorted(cache.rglob("*")) == before and not (folder / ".dvc/cache").exists()


def test_rollback_goes_one_version_down_and_dvc_and_gto_see_it(repo: Path, tmp_path: Path) -> None:
    versions = [build(repo, text) for text in ("2", "3", "4")]
    assert [v.name for v in versions] == ["v0.0.1", "v0.0.2", "v0.0.3"]
    here = branches(repo)
    assert promote.main(["rollback"]) == 0
    assert served(repo) == "3" and promote.current(repo).version == versions[1]
    assert promote.rollback(repo).name == "v0.0.1"
    assert served(repo) == "2"
    assert branches(repo) == here, "a rollback is a tag, not a commit"
    with pytest.raises(QuarryError, match="first version"):
        promote.rollback(repo)
    assert promote.rollback(repo, "v0.0.3").name == "v0.0.3", "forward again"
    promote.rollback(repo, "v0.0.1")
    for argv in (
        ["dvc", "artifacts", "get", str(repo), "quarry", "--stage", "prod", "-o", "got"],
        ["gto", "show", "quarry#prod", "--repo", str(repo), "--json"],
    ):
        run = [sys.executable, "-m", "dvc", *argv[1:]] if argv[0] == "dvc" else [
            sys.executable, "-c", "from gto.cli import app; app()", *argv[1:]
        ]  # fmt: skip
        said = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert (tmp_path / "got").read_text() == "2"
    assert [row["version"] for row in json.loads(said)] == ["v0.0.1"]


def test_what_was_rolled_back_is_known_by_its_inputs(repo: Path) -> None:
    build(repo, "2")
    build(repo, "3")
    assert promote.rolled_back(repo) == {}
    promote.rollback(repo)
    assert promote.rolled_back(repo) == {"3": "v0.0.2"}


def test_rollback_to_a_pruned_version_changes_nothing_and_says_what_is_gone(repo: Path) -> None:
    build(repo, "old")
    build(repo, "new")
    for entry in (repo / ".dvc/cache/files/md5").rglob("*"):
        if entry.is_file() and entry.read_bytes() == b"old":
            entry.unlink()
    tags = git(repo, "tag", "-l")
    with pytest.raises(QuarryError, match="cache does not hold data/index/a"):
        promote.rollback(repo)
    assert git(repo, "tag", "-l") == tags
    assert served(repo) == "new" and promote.current(repo).version.name == "v0.0.2"


def test_a_promotion_killed_between_its_steps_is_finished_and_not_doubled(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(repo, "2")
    for step in ("register", "assign"):
        real = promote._gto

        def killed(do: str, *args, real=real, step=step, **values):
            if do == step:
                raise KeyboardInterrupt
            real(do, *args, **values)

        monkeypatch.setattr(promote, "_gto", killed)
        with pytest.raises(KeyboardInterrupt):
            build(repo, "3")
        monkeypatch.setattr(promote, "_gto", real)
        assert promote.current(repo).version.name == "v0.0.1"
    assert build(repo, "3").name == "v0.0.2"
    assert build(repo, "3").name == "v0.0.2", "in production already"
    assert [a.version.name for a in promote.assignments(repo)] == ["v0.0.1", "v0.0.2"]
    assert git(repo, "rev-list", "--count", f"main..{worktree.BRANCH}") == "2"


def test_a_clock_set_back_promotes_nothing(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(repo, "2")
    real = time.time
    monkeypatch.setattr(promote, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(promote.time, "time", lambda: real() - 86_400)
    with pytest.raises(QuarryError, match="clock is behind"):
        build(repo, "3")
    assert promote.current(repo).version.name == "v0.0.1"
    monkeypatch.undo()
    monkeypatch.chdir(repo)
    assert build(repo, "3").name == "v0.0.2"


def test_the_users_next_commit_reaches_the_worktree_and_its_lock_is_the_promoted_one(
    repo: Path,
) -> None:
    first = build(repo, "2")
    (repo / "new file.md").write_text("é")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "mine")
    folder = worktree.prepare(repo, first.commit)
    assert (folder / "new file.md").read_text() == "é"
    assert (folder / "in").read_text() == "1", "the user's"
    lock = git(repo, "show", f"{first.commit}:dvc.lock")
    assert (folder / "dvc.lock").read_text().strip() == lock.strip()
    assert (folder / "data/evaluate/e/metrics.json").read_text() == "2"
    second = build(repo, "3")
    parents = git(repo, "log", "-1", "--format=%P", second.commit).split()
    assert parents == [first.commit, git(repo, "rev-parse", "main")]
    git(repo, "merge", "-q", worktree.BRANCH)  # the user's act: no conflict
    assert (repo / "in").read_text() == "3"


def test_leftovers_of_a_run_before_are_gone_and_the_paths_to_keep_stay(repo: Path) -> None:
    folder = worktree.prepare(repo, None)
    (folder / "stray").touch()
    (folder / "drop").mkdir()
    (folder / "drop/doc").touch()
    (folder / "in").write_text("half")
    worktree.prepare(repo, None, keep=["drop"])
    assert not (folder / "stray").exists() and (folder / "drop/doc").exists()
    assert (folder / "in").read_text() == "1"
    shutil.rmtree(folder)
    assert (worktree.prepare(repo, None) / "in").read_text() == "1", "made anew"


HOLD = """
import sys, time
from pathlib import Path
from flows.worktree import alone
with alone(Path("."), "a retraining"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_cannot_work_at_once_and_a_killed_one_leaves_no_lock(repo: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", HOLD]
    with subprocess.Popen(argv, cwd=repo, env=env, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            held = pytest.raises(worktree.Overlap, match=f"a retraining .process {other.pid}")
            with held, worktree.alone(repo, "rollback"):
                pytest.fail("both are in")
            assert promote.main(["rollback"]) == 2
            assert f"process {other.pid}" in promote.status_text(repo)
        finally:
            other.send_signal(signal.SIGKILL)
    with worktree.alone(repo, "rollback"):
        assert worktree.holder(repo).startswith("rollback")
    assert worktree.holder(repo) is None
    with (repo / worktree.LOCK).open() as f:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
