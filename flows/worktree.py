"""Where retraining works: a Git worktree of its own, behind a lock, never the user's branch.

``.quarry/worktree`` is on the branch ``quarry/retrain``. It shares the checkout's DVC cache (by its
own ``.dvc/config.local``) and record store (``QUARRY_RECORDS``), so nothing is computed twice and
nothing the user has lying about is touched. Its files are those of the user's last *commit*, with
``dvc.lock`` and metrics of the promoted revision: what DVC calls changed then is what changed since
the promotion. A commit is made by plumbing, with the user's commit as second parent: no hook runs,
no index is shared, and merging is the user's act.
"""

import contextlib
import fcntl
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows import dvc
from stages.errors import QuarryError

WORKTREE = Path(".quarry/worktree")
LOCK = Path(".quarry/retrain.lock")
BRANCH = "quarry/retrain"
KEPT = re.compile(r"dvc\.lock|data/evaluate/[^/]+/metrics\.json")  # of the promoted revision
WHO = {
    f"GIT_{role}_{part}": value
    for role in ("AUTHOR", "COMMITTER")
    for part, value in (("NAME", "quarry"), ("EMAIL", "quarry@localhost"))
}


class Overlap(QuarryError):
    """Another retraining, promotion or rollback of this checkout is under way."""


def git(folder: Path, *args: str, said: str = "", **env: str) -> str:
    """What ``git`` prints, without the last newline, when it is told ``said``.

    Raises:
        QuarryError: it failed; with what it said.
    """
    clean = {name: v for name, v in os.environ.items() if not name.startswith("GIT_")}
    argv = ["git", "-C", str(folder), *args]
    done = subprocess.run(
        argv, env={**clean, **WHO, **env}, capture_output=True, text=True, input=said
    )
    if done.returncode:
        raise QuarryError(f"git {' '.join(args)} in {folder}: {done.stderr.strip()}")
    return done.stdout.removesuffix("\n")


@contextlib.contextmanager
def alone(root: Path, what: str, lock: Path = LOCK) -> Iterator[None]:
    """The block runs in one process of this checkout at a time; the kernel frees a dead one's lock.

    Raises:
        Overlap: at once, naming who holds it.
    """
    path = root / lock
    path.parent.mkdir(exist_ok=True)
    with path.open("a+", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            raise Overlap(
                f"{f.read().strip() or 'another process'} is under way and holds {path}. "
                f"Wait for its end, or end that process: its lock goes with it."
            ) from None
        f.truncate(0)
        f.write(f"{what} (process {os.getpid()}, since {time.strftime('%F %T')})\n")
        f.flush()
        try:
            yield
        finally:
            f.truncate(0)


def holder(root: Path) -> str | None:
    """Who holds the lock, None if nobody does."""
    try:
        with (root / LOCK).open("r", encoding="utf-8") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f.read().strip()
    except FileNotFoundError:
        pass
    return None


def commit_of(folder: Path, revision: str) -> str | None:
    """The full hash of a revision's commit, None if there is no such revision."""
    with contextlib.suppress(QuarryError):
        return git(folder, "rev-parse", "--verify", "-q", f"{revision}^{{commit}}")
    return None


def prepare(root: Path, promoted: str | None, keep: Sequence[str] = ()) -> Path:
    """The worktree: the user's last commit, with lock and metrics of the ``promoted`` commit.

    It is made if it is not there, and whatever a run before left in it is gone, but for the paths
    in ``keep``. Without a promotion, lock and metrics are the user's.

    Raises:
        QuarryError: no Git repository, or no commit in it.
    """
    user = commit_of(root, "HEAD")
    if user is None:
        raise QuarryError(
            f"{root.resolve()} has no commit. Retraining works from the last one: git commit"
        )
    folder = attach(root, WORKTREE, BRANCH)
    git(folder, "read-tree", "-u", "--reset", _joined_tree(folder, user, promoted or user))
    _clean(folder, keep)
    return folder


def _clean(folder: Path, keep: Sequence[str]) -> None:
    """Remove what Git does not know, but for these paths and what it ignores."""
    spared = [option for path in keep for option in ("-e", f"/{path}")]
    git(folder, "clean", "-fdq", *spared)


def at_commit(root: Path, place: Path, keep: Sequence[str] = ()) -> Path:
    """A worktree on no branch, with the files of the user's last commit.

    Whatever is left in it of a run before is gone, but for the paths in ``keep`` and what Git
    ignores.

    Raises:
        QuarryError: no Git repository, or no commit in it.
    """
    user = commit_of(root, "HEAD")
    if user is None:
        raise QuarryError(f"{root.resolve()} has no commit. This works from the last: git commit")
    folder = attach(root, place, None)
    git(folder, "checkout", "-q", "--force", "--detach", user)
    _clean(folder, keep)
    return folder


@contextlib.contextmanager
def inside(folder: Path, root: Path) -> Iterator[None]:
    """Work in a checkout: its files, its params.yaml, its code in the stages' processes.

    The record store is that of the checkout at ``root``.
    """
    records = root / os.environ.get("QUARRY_RECORDS", ".quarry/records")
    here = {"PYTHONPATH": str(folder), "QUARRY_RECORDS": str(records.resolve())}
    before = {name: os.environ.get(name) for name in here}
    os.environ.update(here)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def attach(root: Path, place: Path, branch: str | None) -> Path:
    """A worktree at ``place`` on ``branch`` (made at HEAD), or on none; shares DVC's cache."""
    folder = (root / place).resolve()
    if not (folder / ".git").is_file():
        if branch is not None and commit_of(root, f"refs/heads/{branch}") is None:
            git(root, "branch", branch, "HEAD")
        on = [str(folder), branch] if branch is not None else ["--detach", str(folder)]
        git(root, "worktree", "add", "-f", "-f", "-q", *on)
    if Path(git(folder, "rev-parse", "--show-toplevel")).resolve() != folder:
        raise QuarryError(f"{folder} is in the way and no worktree: move it elsewhere.")
    dvc.share_cache(root, folder)
    return folder


def _joined_tree(folder: Path, user: str, promoted: str) -> str:
    """The tree of ``user``, with ``KEPT`` as in ``promoted``."""
    if user == promoted:
        return git(folder, "rev-parse", f"{user}^{{tree}}")
    listed = git(folder, "ls-tree", "-r", "-z", promoted, "--", "dvc.lock", "data/evaluate")
    kept = [line for line in listed.split("\0") if KEPT.fullmatch(line.partition("\t")[2])]
    index = git(folder, "rev-parse", "--absolute-git-dir") + "/quarry-index"
    try:
        git(folder, "read-tree", user, GIT_INDEX_FILE=index)
        lines = "".join(f"{line}\0" for line in kept)
        git(folder, "update-index", "-z", "--index-info", said=lines, GIT_INDEX_FILE=index)
        return git(folder, "write-tree", GIT_INDEX_FILE=index)
    finally:
        Path(index).unlink(missing_ok=True)


def commit(root: Path, folder: Path, message: str, sources: Sequence[str] = ()) -> str:
    """A commit of lock, metrics and those ``sources`` that Git tracks on ``BRANCH``; its hash.

    Nothing to commit gives the branch's last one. The branch moves in one step, or not at all.
    """
    tip, user = git(folder, "rev-parse", "HEAD"), git(root, "rev-parse", "HEAD")
    there = [path for path in ("dvc.lock", "data/evaluate") if (folder / path).exists()]
    tracked = [path for path in sources if git(folder, "ls-files", "--", path)]
    git(folder, "add", "-A", "--", *there, *tracked)
    tree = git(folder, "write-tree")
    is_behind = git(folder, "rev-list", "--count", f"{tip}..{user}") != "0"
    if tree == git(folder, "rev-parse", f"{tip}^{{tree}}") and not is_behind:
        return tip
    parents = ["-p", tip, *(["-p", user] if is_behind else [])]
    made = git(folder, "commit-tree", tree, *parents, "-m", message)
    git(folder, "update-ref", f"refs/heads/{BRANCH}", made, tip)
    return made
