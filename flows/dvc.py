"""All that the flows ask of DVC: its graph, what changed, one stage made, its cache checked.

Questions go to DVC's Python API, from the main thread only (a ``Repo`` is not thread-safe).
Work is the ``dvc`` command, a process group per stage. Stages run side by side because DVC gives
its lock back while a stage's command runs; that needs ``--wait-for-lock`` and ``--single-item``.

Plain DVC writes ``dvc.lock`` in place. It is read under DVC's lock, so never while another DVC is
at it, and what a killed one has left of it is made whole again (``mend``).

``python -m flows.dvc verify`` hashes the cache. DVC does not: a checkout delivers a damaged entry
and the status still says that all is up to date.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
from dvc.dvcfile import PROJECT_FILE
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.utils.hydra import apply_overrides
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from flows import dvc_files
from flows.dvc_files import LOCK_FILES, mend, params_read_once, studies_left_out
from flows.process import GRACE_SECONDS, Stopped, run
from stages import params
from stages.errors import QuarryError

UNCHANGED, RESTORED, COMPLETED = "Unchanged", "Restored", "Completed"
TAIL_LINES = 20  # of the log, in the message of a failed stage

# DVC's own words, before the stage can say anything; tests/flows/test_dvc_repro.py pins them.
_SAYS = {
    "Stage '{}' didn't change, skipping": UNCHANGED,
    "Stage '{}' is cached - skipping run, checking out outputs": RESTORED,
    "Running stage '{}':": COMPLETED,
}
_ADVICE = (
    "To track the changes with git, run:", "\tgit add ", "To enable auto staging, run:",
    "\tdvc config core.autostage true", "Use `dvc push` to send your updates",
    "Data and pipelines are up to date.", "Updating lock file", "Generating lock file",
)  # fmt: skip
_FULL = re.compile(r"No space left on device|database or disk is full|Disk quota exceeded")
_ABSENT = re.compile(r"failed to reproduce '[^']*': \[Errno 2\]")  # an input; nothing was run
_BUSY = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
# A key that dvc.yaml reads of each entry, or a block of params.yaml.
_LACKS = re.compile(
    r"failed to parse 'stages\.(?P<room>\w+)(?:@(?P<entry>[\w-]+))?\.\w+' in '"
    r"(?P<study>studies/)?dvc\.yaml': .*Could not find '(?P<item>item\.)?(?P<name>[\w-]+)",
    re.S,
)
_NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|Network is unreachable"
    r"|Connection (reset|refused|timed out|aborted)|(Connect|Read)Timeout|ConnectionError"
    r"|Cannot connect to host|failed to connect to"
)


class Stage(NamedTuple):
    """A node of DVC's graph."""

    name: str  # DVC's address: "serve@bm25-semanlink"
    upstream: tuple[str, ...]  # the stages whose outputs it reads
    reads: tuple[str, ...]  # paths of its deps
    writes: tuple[str, ...]  # paths of its outs


class StageFailed(QuarryError):
    """The stage's process failed; the message ends with the last lines of its log."""


class StageBusy(StageFailed):
    """Another DVC process holds a lock that the stage needs: it works once that has ended."""


class StageOffline(StageFailed):
    """The network failed: the same command may succeed a little later."""


class StageStopped(QuarryError):
    """The stage was stopped by ``stop``; nothing of its process group is left."""


@contextlib.contextmanager
def _opened() -> Iterator[Repo]:
    """The current folder's ``Repo``; DVC's errors become ours."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("DVC's Python API is for the main thread only")
    try:
        with contextlib.closing(Repo(_wait_for_lock=True)) as repo:
            yield repo
    except DvcException as e:
        causes = [str(e)]
        while e.__cause__ is not None:
            e = e.__cause__
            causes.append(str(e))
        said = ": ".join(dict.fromkeys(causes))
        raise QuarryError(_lacking(said) or f"dvc: {said}") from e


def _lacking(said: str) -> str | None:
    """DVC's error about a name that ``params.yaml`` has not, in terms of that file."""
    if not (found := _LACKS.search(said)):
        return None
    room, entry, study, name = found["room"], found["entry"], bool(found["study"]), found["name"]
    try:
        if not found["item"]:
            params.entries(name, study=study)
            return None
        there = list(params.entry_values(room, entry, study=study))
    except QuarryError as e:
        return str(e)
    return (
        f"params.yaml: {'studies.' if study else ''}{room}.{entry} has no key '{name}'. "
        f"Keys there: {', '.join(there) or 'none'}."
    )


@contextlib.contextmanager
def _repo(*, studies: bool) -> Iterator[Repo]:
    """The ``Repo`` under DVC's lock, its lock files whole, its stages read, but for ``studies``."""
    left_out = contextlib.nullcontext() if studies else studies_left_out()
    with left_out, _opened() as repo, lock_repo(repo):
        try:
            _ = repo.index.stages
        except DvcException:
            if not any([mend(Path(repo.root_dir) / name) for name in LOCK_FILES]):
                raise
            repo._reset()
        yield repo


def _names_studies(targets: Iterable[str]) -> bool:
    """Whether a target may be one, or stand on one: it is in another folder."""
    return any("/" in target for target in targets)


def _were_made() -> bool:
    """Whether there is any output of a study, for all that its lock file says."""
    return Path(LOCK_FILES[1]).exists()


def _nodes(repo: Repo, targets: Sequence[str]) -> tuple[nx.DiGraph, list[Any]]:
    """DVC's graph (edges point upstream) and the wanted stages in it, upstream first.

    No targets means every stage of the root ``dvc.yaml``, as for ``dvc repro``: what is in other
    folders (studies) is made only when it is named.
    """
    whole = repo.index.graph
    if targets:
        ends = [stage for target in targets for stage in repo.stage.collect(target)]
    else:
        ends = [s for s in repo.index.stages if s.path_in_repo == PROJECT_FILE]
    wanted = set(ends).union(*(nx.descendants(whole, stage) for stage in ends))
    position = {stage.addressing: at for at, stage in enumerate(repo.index.stages)}
    order = nx.lexicographical_topological_sort(
        whole.subgraph(wanted).reverse(), key=lambda stage: position[stage.addressing]
    )
    return whole, list(order)


def graph(targets: Sequence[str] = ()) -> dict[str, Stage]:
    """The targets (default: the root ``dvc.yaml``) and all they depend on, upstream first.

    A target is what ``dvc repro`` takes: ``serve@rag-mine``, ``serve``, ``studies/dvc.yaml``.
    """
    with _repo(studies=_names_studies(targets)) as repo:
        whole, order = _nodes(repo, targets)
        position = {stage.addressing: at for at, stage in enumerate(order)}
        return {
            stage.addressing: Stage(
                stage.addressing,
                tuple(sorted((s.addressing for s in whole.successors(stage)), key=position.get)),
                tuple(str(dep.def_path) for dep in stage.deps),
                tuple(str(out.def_path) for out in stage.outs),
            )
            for stage in order
        }


def status(targets: Sequence[str] = ()) -> dict[str, list[Any]]:
    """What changed, by stage, as in ``dvc status --json``; unchanged stages are not in it.

    It looks at what lies there now: a stage whose upstream will be made anew may change later. A
    stage that another DVC process is making counts as changed.
    """
    with _repo(studies=_names_studies(targets)) as repo, params_read_once():
        _, order = _nodes(repo, targets)
        found: dict[str, list[Any]] = {}
        for stage in order:
            try:
                found.update(stage.status(check_updates=True))
            except LockError as e:
                found[stage.addressing] = [str(e)]
        return found


def command(*names: str, force: bool = False) -> list[str]:
    """The command that makes these stages in this order, whatever their upstream."""
    dvc = [sys.executable, "-P", dvc_files.__file__]  # -P: our dvc.py is not theirs
    return [*dvc, "--wait-for-lock", "repro", "--single-item", *["--force"] * force, *names]


def repro(
    name: str,
    *,
    force: bool = False,
    env: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
    on_line: Callable[[str], None] = print,
    on_progress: Callable[[str], None] = lambda bar: None,
    grace: float = GRACE_SECONDS,
) -> str:
    """Make one stage in a process group of its own: ``Unchanged``, ``Restored`` or ``Completed``.

    ``on_line`` gets every line of the log as it comes, ``on_progress`` every redraw of a progress
    bar: the process's standard error is a terminal, so bars are drawn. When ``stop`` is set, or
    an exception leaves this function, the whole group gets SIGTERM, and SIGKILL after ``grace``.

    Raises:
        StageFailed: with the end of the log; StageBusy or StageOffline if trying again helps.
        StageStopped: ``stop`` was set.
    """
    outcome: str | None = None
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    said = {text.format(name): word for text, word in _SAYS.items()}

    def take(line: str) -> None:
        nonlocal outcome
        if outcome is None:
            outcome = said.get(line)
        if line.strip() and not line.startswith(_ADVICE):
            tail.append(line)
            on_line(line)

    try:
        status = run(
            command(name, force=force), env=environment(env), stop=stop, on_line=take,
            on_progress=on_progress, grace=grace,
        )  # fmt: skip
    except Stopped:
        raise StageStopped(f"{name} was stopped; dvc repro {name} makes it again.") from None
    if status:
        end = "\n".join(f"  {line}" for line in tail)
        kind = StageFailed
        if _NETWORK.search(end):
            kind = StageOffline
        if _BUSY.search(end):
            kind = StageBusy
        raise kind(
            f"{name} failed with exit status {status}. It alone: "
            f"dvc repro --single-item {name}. The end of its log:\n{end}"
            + (_free_space() if _FULL.search(end) else "")
            + ("\nPut it there, or correct the path in params.yaml." if _ABSENT.search(end) else "")
        )
    return outcome or COMPLETED  # a DVC with other words: when in doubt, it ran


def _free_space() -> str:
    """Where stages write, and what is left there."""
    places = {
        "outputs": Path("data"), "the cache": Path(".dvc/cache"),
        "records": Path(os.environ.get("QUARRY_RECORDS", ".quarry/records")),
    }  # fmt: skip
    left = [
        f"{what} ({path.resolve()}): {shutil.disk_usage(path).free / 2**20:.0f} MiB"
        for what, path in places.items()
        if path.exists()
    ]
    return f"\nA disk is full. Make room and run it again. Free: {', '.join(left)}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with its own python first on the path and no output held back."""
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join([here, os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **(extra or {})}


_COLOURS = {
    UNCHANGED: "fill:#eceff1,color:#546e7a", RESTORED: "fill:#e3f2fd,color:#0d47a1",
    COMPLETED: "fill:#e8f5e9,color:#1b5e20", "Failed": "fill:#ffebee,color:#b71c1c",
}  # fmt: skip


def mermaid(stages: Mapping[str, Stage], outcomes: Mapping[str, str] | None = None) -> str:
    """The graph as a mermaid flow chart, coloured by outcome where there is one."""
    ids = {name: f"s{at}" for at, name in enumerate(stages)}
    outcomes = outcomes or {}
    lines = ["flowchart LR"]
    for name, node in ids.items():
        colour = f":::{outcomes[name]}" if outcomes.get(name) in _COLOURS else ""
        lines.append(f'  {node}["{name}"]{colour}')
    lines += [f"  {ids[u]} --> {ids[s.name]}" for s in stages.values() for u in s.upstream]
    lines += [
        f"  classDef {word} {_COLOURS[word]}"
        for word in sorted(_COLOURS.keys() & {*outcomes.values()})
    ]
    return "\n".join(lines) + "\n"


def share_cache(root: Path, other: Path) -> None:
    """Let the checkout ``other`` use the cache (and the local settings) of the one at ``root``."""
    with contextlib.chdir(root), _opened() as repo:
        place = str(Path(repo.cache.local.path).parents[1])  # files/md5 below it
    ours, theirs = (folder / ".dvc/config.local" for folder in (root, other))
    is_new = theirs.is_file() and not (ours.is_file() and _mtime(ours) > _mtime(theirs))
    if is_new and place in theirs.read_text(encoding="utf-8"):
        return
    theirs.write_bytes(ours.read_bytes() if ours.is_file() else b"")
    _tell("config", "--local", "cache.dir", place, folder=other)


def _mtime(path: Path) -> int:
    return path.stat().st_mtime_ns


def _tell(*args: str, folder: Path) -> None:
    """Run ``dvc`` in a folder; what it says when it fails becomes our error."""
    argv = [sys.executable, "-m", "dvc", *args]
    done = subprocess.run(argv, cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise QuarryError(f"dvc {' '.join(args)} in {folder}: {done.stderr.strip()}")


def checkout(folder: Path, *, relink: bool = False) -> None:
    """Bring the outputs below ``folder`` to what its lock file says; only what differs moves.

    What was never made, as most studies, or is not in the cache is not there afterwards:
    ``missing`` names the latter. With ``relink`` everything is linked anew, whatever DVC believes
    to know of it.

    Raises:
        QuarryError: an output is in the way.
    """
    with contextlib.chdir(folder), _repo(studies=_were_made()) as repo, _without_bars():
        repo.checkout(force=True, allow_missing=True, relink=relink)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """DVC draws none in the block: the flow's own is on that terminal."""
    theirs = logging.getLogger("dvc")
    before = theirs.level
    theirs.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        theirs.setLevel(before)


def missing(folder: Path) -> list[str]:
    """The outputs below ``folder`` that its lock file names and the cache does not hold whole."""
    with contextlib.chdir(folder), _repo(studies=False) as repo:
        return sorted({output for _, output in _missing(repo, ())})


def _missing(repo: Repo, targets: Sequence[str]) -> list[tuple[str, str]]:
    """(stage, output) of what the lock file names and the cache does not hold whole."""
    cache = repo.cache.local
    return [
        (stage.addressing, str(out.def_path))
        for stage in _nodes(repo, targets)[1]
        for out in stage.outs
        if out.use_cache and out.hash_info
        if not all(
            Path(cache.oid_to_path(oid)).is_file()
            for oid, _ in _objects(cache, out.hash_info.value)
        )
    ]


def override(overrides: Sequence[str], path: Path = Path("params.yaml")) -> None:
    """Set values in ``params.yaml`` as ``dvc exp run -S`` does: ``serve.mine.k=5``.

    Raises:
        QuarryError: one is not of that form, or names what is not there.
    """
    if asked := [o for o in overrides if "${" in o]:
        raise QuarryError(f"override {asked[0]}: a value may not refer to another (${{...}}).")
    try:
        apply_overrides(path, list(overrides))
    except (DvcException, OmegaConfBaseException) as e:
        cause = str(e.__cause__ or e).splitlines()[0]
        raise QuarryError(
            f"overrides {', '.join(overrides)}: {cause}. Write serve.ENTRY.KEY=VALUE for what "
            f"params.yaml has, +serve.ENTRY.KEY=VALUE for what it has not."
        ) from e


def save_experiment(folder: Path, name: str, stages: Iterable[str]) -> None:
    """Make the state of a checkout an experiment of its commit, as ``dvc exp save`` does.

    Outputs of other stages than these need not be there.

    Raises:
        QuarryError: there is one of that name, or DVC says something else.
    """
    _tell("exp", "save", "-n", name, *stages, folder=folder)


class Fetched(NamedTuple):
    """Outputs that the cache did not hold, as their stages' lock entries name them."""

    brought: list[str]
    lacking: list[str]  # neither here nor there: their stages are made again
    said: str = ""  # by DVC, where it failed


def fetch(
    targets: Sequence[str] = (),
    *,
    on_start: Callable[[list[str]], None] = lambda stages: None,
    on_progress: Callable[[str], None] = lambda bar: None,
) -> Fetched:
    """Bring into the cache what the lock file names and only the default remote has.

    ``on_start`` gets the stages whose outputs are asked for, ``on_progress`` DVC's bars.

    Nothing is asked of the remote where the cache holds all, and nothing where there is no remote.
    ``repro`` then restores a stage instead of running it, but for one with an output that is not
    cached (metrics, which Git keeps): of such a stage what is not in the workspace is put there.
    """
    studies = _names_studies(targets)
    with _repo(studies=studies) as repo:
        wanted = _missing(repo, targets) if repo.config["core"].get("remote") else []
    if not wanted:
        return Fetched([], [])
    stages, said = list(dict(wanted)), deque[str](maxlen=TAIL_LINES)
    on_start(stages)
    failed = run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "fetch", *stages], env=environment(),
        stop=None, on_line=said.append, on_progress=on_progress,
    )  # fmt: skip
    with _repo(studies=studies) as repo, _without_bars():
        lacking = sorted({output for _, output in _missing(repo, targets)})
        if absent := [
            str(out.fs_path)
            for stage in _nodes(repo, targets)[1]
            if not all(out.use_cache for out in stage.outs)
            for out in stage.outs
            if out.use_cache and not out.exists and str(out.def_path) not in lacking
        ]:
            repo.checkout(targets=absent, force=True)
    brought = sorted({output for _, output in wanted} - {*lacking})
    return Fetched(brought, lacking, "\n".join(said) if failed else "")


class Damaged(NamedTuple):
    """A cache entry whose bytes are not what its name says."""

    output: str  # the output that it belongs to
    entry: Path


def verify(*, repair: bool = False, checkouts: Sequence[Path] = ()) -> list[Damaged]:
    """Hash every cache entry that the lock files name; the damaged ones, removed with ``repair``.

    Files of the workspace, and of other ``checkouts`` with this cache, that are hard links to a
    damaged entry are removed with it: they are the same bytes. The next ``dvc repro`` restores or
    makes what is gone. An entry that is not in the cache (never pulled, or not cached by choice) is
    not damaged.
    """
    copies: dict[Path, list[Path]] = {}  # of an entry: several outputs may hold the same file
    with _repo(studies=_were_made()) as repo:
        cache = repo.cache.local
        entries = {}
        for out in repo.index.outs:
            if out.hash_info and out.hash_info.name == "md5" and out.use_cache:
                place = Path(out.fs_path).relative_to(repo.root_dir)
                for oid, inside in _objects(cache, out.hash_info.value):
                    entry = Path(cache.oid_to_path(oid))
                    entries[entry] = oid, out.def_path
                    copies.setdefault(entry, []).extend(
                        folder / place / inside for folder in (Path(repo.root_dir), *checkouts)
                    )
    there = {path: named for path, named in entries.items() if path.is_file()}
    damaged = []
    total = sum(path.stat().st_size for path in there)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, delay=2) as bar:
        for path, (oid, output) in there.items():
            bar.update(path.stat().st_size)
            with path.open("rb") as f:
                found = hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False))
            if found.hexdigest() != oid.removesuffix(".dir"):
                damaged.append(Damaged(str(output), path))
                if repair:
                    for copy in copies[path]:
                        if copy.is_file() and copy.samefile(path):
                            copy.unlink()
                    path.unlink()
    return damaged


def _objects(cache: Any, oid: str) -> Iterator[tuple[str, str]]:
    """(object id, path inside the output) of an output: itself, and a folder's files."""
    yield oid, ""
    listing = Path(cache.oid_to_path(oid))
    if oid.endswith(".dir") and listing.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: its own hash says so
            for file in json.loads(listing.read_bytes()):
                yield file["md5"], file["relpath"]


def main(argv: Sequence[str] | None = None) -> int:
    """``verify``: exit status 1 if entries are damaged, also when they were removed, else 0."""
    p = argparse.ArgumentParser(prog="python -m flows.dvc", description=verify.__doc__)
    p.add_argument("do", choices=["verify"])
    p.add_argument("--repair", action="store_true", help="remove the damaged entries")
    args = p.parse_args(argv)
    try:
        damaged = verify(repair=args.repair)
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    for entry in damaged:
        print(f"damaged{', removed' * args.repair}: {entry.entry} (of {entry.output})")
    if damaged and args.repair:
        print(f"{len(damaged)} removed. Restore or rebuild them with: dvc pull, or dvc repro")
    elif damaged:
        print(f"{len(damaged)} damaged. Remove them with: python -m flows.dvc verify --repair")
    else:
        print("cache: every entry of the lock files is what its name says")
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
