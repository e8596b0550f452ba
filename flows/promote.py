"""Which revision is in production, put there by a commit and two GTO tags, and taken back by one.

``quarry@v0.0.3`` registers a commit of ``quarry/retrain`` as a version, ``quarry#prod#5`` assigns a
version to the stage ``prod``; the last assignment holds, so a rollback is one more. Names, tags and
order are GTO's: ``gto show`` and ``dvc artifacts get`` read them. ``.quarry/served`` is a worktree
at what holds, with its outputs checked out: ``stages.serve http``, started there, looks at its
folders every second and opens what was replaced, while questions under way keep what they began
with.

A commit says in its message what its outputs were made from (``inputs``): what was rolled back is
thereby known, and is not promoted again until something else changes.

``python -m flows.promote status``, ``... rollback [VERSION]``, ``... promote`` (by hand, without a
gate: what the last retraining built and the gate refused).
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flows import dvc, worktree
from flows.worktree import alone, git, holder
from stages.errors import QuarryError

ARTIFACT, STAGE = "quarry", "prod"
SERVED = Path(".quarry/served")
PATIENCE_SECONDS = 3  # for the clock to pass the last tag: GTO orders by whole seconds

_TAG = re.compile(rf"{ARTIFACT}(?:@(v\d+\.\d+\.\d+)|#{STAGE}#(\d+))")
_INPUTS = re.compile(r"^Quarry-Inputs: (\w+)$", re.MULTILINE)


class Version(NamedTuple):
    """A registered version."""

    name: str  # v0.0.3
    commit: str
    inputs: str  # digest of what it was made from; empty if its commit does not say


class Assignment(NamedTuple):
    """A version was put into production."""

    no: int  # from 1; the largest one holds
    version: Version
    seconds: int  # of the epoch


def versions(root: Path) -> list[Version]:
    """All registered versions, oldest first."""
    found = [
        Version(match[1], commit, _inputs(root, commit))
        for match, commit, _ in _tags(root)
        if match[1]
    ]
    return sorted(found, key=lambda v: tuple(map(int, v.name[1:].split("."))))


def assignments(root: Path) -> list[Assignment]:
    """What was in production, in order; the last one is."""
    of_commit = {version.commit: version for version in versions(root)}
    found = [
        Assignment(int(match[2]), of_commit[commit], seconds)
        for match, commit, seconds in _tags(root)
        if match[2] and commit in of_commit
    ]
    return sorted(found)


def current(root: Path) -> Assignment | None:
    """What is in production."""
    return next(iter(assignments(root)[::-1]), None)


def rolled_back(root: Path) -> dict[str, str]:
    """Inputs -> version, of the versions above the current one: they were taken back."""
    now = current(root)
    if now is None:
        return {}
    names = [version.name for version in versions(root)]
    above = versions(root)[names.index(now.version.name) + 1 :]
    return {v.inputs: v.name for v in above if v.inputs and v.inputs != now.version.inputs}


def _tags(root: Path) -> list[tuple[re.Match[str], str, int]]:
    """(match of the name, commit, seconds) of the tags that are ours."""
    form = "%(refname:strip=2)\t%(*objectname)\t%(taggerdate:unix)"
    lines = git(root, "for-each-ref", f"--format={form}", "refs/tags").splitlines()
    rows = [line.split("\t") for line in lines]
    return [
        (match, commit, int(seconds))
        for name, commit, seconds in rows
        if (match := _TAG.fullmatch(name)) and commit
    ]


def _inputs(root: Path, commit: str) -> str:
    match = _INPUTS.search(git(root, "log", "-1", "--format=%B", commit))
    return match[1] if match else ""


def promote(
    root: Path, folder: Path, *, why: str, inputs: str, sources: Sequence[str] = ()
) -> Version:
    """Commit what the worktree ``folder`` built, register it, put it into production, serve it.

    What a killed promotion had done already is found and not done twice.

    Raises:
        QuarryError: an output is not whole in the cache, or the clock is behind the last tag.
    """
    _check_whole(folder)
    message = f"retrain: {why}\n\nQuarry-Inputs: {inputs}"
    made = worktree.commit(root, folder, message, sources)
    registered = [version for version in versions(root) if version.commit == made]
    if not registered:
        _gto("register", root, name=ARTIFACT, ref=made)
        registered = [version for version in versions(root) if version.commit == made]
    (version,) = registered
    serve(root, version.commit)
    _assign(root, version)
    return version


def rollback(root: Path, name: str | None = None) -> Version:
    """Put an earlier version into production: the named one, else the one below the current.

    Raises:
        QuarryError: there is none, or its outputs are no longer in the cache. Nothing changed then.
    """
    now = current(root)
    if now is None:
        raise QuarryError("nothing was promoted yet: there is nothing to go back to.")
    once = {assignment.version.name for assignment in assignments(root)}
    known = {version.name: version for version in versions(root) if version.name in once}
    if name is None:
        below = list(known)[: list(known).index(now.version.name)]
        if not below:
            raise QuarryError(f"{now.version.name} is the first version: none is below it.")
        name = below[-1]
    if name not in known:
        raise QuarryError(
            f"version '{name}' was never in production; these were: {', '.join(known)}"
        )
    if name == now.version.name:
        raise QuarryError(f"{name} is in production already.")
    serve(root, known[name].commit)
    _assign(root, known[name])
    return known[name]


def serve(root: Path, commit: str) -> Path:
    """Bring ``.quarry/served`` to a commit; a running service there follows within seconds.

    Raises:
        QuarryError: the cache does not hold all of its outputs; what was served stays.
    """
    folder = worktree.attach(root, SERVED, None)
    before = git(folder, "rev-parse", "HEAD")
    git(folder, "reset", "--hard", "-q")
    git(folder, "checkout", "-q", "--detach", commit)
    try:
        _check_whole(folder)
        dvc.checkout(folder)
    except QuarryError:
        git(folder, "checkout", "-q", "-f", "--detach", before)
        dvc.checkout(folder)
        raise
    return folder


def _check_whole(folder: Path) -> None:
    if lost := dvc.missing(folder):
        raise QuarryError(
            f"the cache does not hold {', '.join(lost)} of {folder}. Get it with: dvc pull there, "
            f"or make it again with: dvc repro there. (dvc gc keeps it with --all-tags.)"
        )


def _assign(root: Path, version: Version) -> None:
    """One more assignment, later than all before it: GTO and DVC go by the time of the tag."""
    last = current(root)
    if last is not None and last.version == version:
        return
    deadline = time.monotonic() + PATIENCE_SECONDS
    while last is not None and time.time() < last.seconds + 1:
        if time.monotonic() > deadline:
            raise QuarryError(
                f"the clock is behind the last promotion ({time.ctime(last.seconds)}). Set it "
                f"right; the next retraining promotes what was built."
            )
        time.sleep(0.1)
    _gto("assign", root, name=ARTIFACT, version=version.name, stage=STAGE, force=True)


def _gto(do: str, root: Path, **values: str | bool) -> None:
    """``gto register`` or ``gto assign``; its errors become ours."""
    from gto import api  # here: half a second
    from gto.exceptions import GTOException

    try:
        getattr(api, do)(str(root), **values, author="quarry", author_email="quarry@localhost")
    except GTOException as e:
        raise QuarryError(f"gto {do}: {e}") from e


def status_text(root: Path) -> str:
    """What is in production, what was, and what is under way."""
    lines = []
    for assignment in assignments(root):
        when = time.strftime("%F %T", time.localtime(assignment.seconds))
        lines.append(f"{when}  {assignment.version.name}  {assignment.version.commit[:12]}")
    lines = [f"{line}  <- in production" if line == lines[-1] else line for line in lines]
    lines.append(f"under way: {holder(root) or 'nothing'}")
    return "\n".join(lines if len(lines) > 1 else ["nothing was promoted yet", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 with a message if it could not be done; nothing changed then."""
    p = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__.split("\n")[0])
    p.add_argument("do", choices=["status", "rollback", "promote"])
    p.add_argument("version", nargs="?", help="of rollback: v0.0.1; default: the one below")
    args = p.parse_args(argv)
    root = Path()
    try:
        if args.do == "status":
            print(status_text(root))
            return 0
        with alone(root, args.do):
            if args.do == "rollback":
                version = rollback(root, args.version)
            else:
                folder = (root / worktree.WORKTREE).resolve()
                if not folder.is_dir():
                    raise QuarryError("nothing was built yet: python -m flows.retrain")
                version = promote(root, folder, why="by hand", inputs="")
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    print(f"{version.name} is in production ({version.commit[:12]}), served from {SERVED}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
