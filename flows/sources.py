"""What was dropped into the sources since: files brought into the worktree, whole or not at all.

A source is read where the user keeps it (a file or a folder beside the checkout, or the path that
the entry of ``ingest`` names in it) and mirrored to that path in the worktree. What cannot be read
to its end is never taken for a deletion: a folder that is not there, a file that will not open or
that changes while it is read stops the refresh with nothing changed (ingestion card, §6).
"""

import os
import shutil
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from stages.digest import digest, file_digest
from stages.errors import QuarryError

TRIES = 3  # of a file that is being written
PAUSE_SECONDS = 0.5


class Refreshed(NamedTuple):
    """What a refresh did to the mirror of one source."""

    copied: int
    removed: int
    same: int


def find_sources(
    root: Path, entries: Mapping[str, Mapping[str, object]], drop: Mapping[str, str]
) -> dict[str, Path]:
    """Path in the worktree -> where it is read, for the entries of ``ingest`` that have one.

    Raises:
        QuarryError: ``drop`` names no entry, or two entries with one path would be read from two
            places, or a path leads out of the project.
    """
    for name in drop:
        if name not in entries:
            raise QuarryError(
                f"retrain.flow.drop.{name}: no such entry of ingest. "
                f"There are: {', '.join(entries)}."
            )
    found: dict[str, Path] = {}
    for name, values in entries.items():
        path = str(values.get("path", "data/none"))
        if path.startswith("data/"):  # a package's corpus, or what DVC made
            continue
        if Path(path).is_absolute() or ".." in Path(path).parts:
            if name in drop:
                raise QuarryError(f"ingest.{name}.path: {path} is not inside the project.")
            continue  # read in place, by the stage: ``reach_outside``
        source = root / drop.get(name, path)
        if found.setdefault(path, source) != source and name in drop:
            raise QuarryError(f"retrain.flow.drop.{name}: {path} is another entry's path, too.")
    return found


def reach_outside(root: Path, worktree: Path, entries: Mapping[str, Mapping[str, object]]) -> None:
    """Let the worktree's stages find what paths like ``../corpora/mine`` name beside the checkout.

    The same words lead elsewhere from there; where the folder beside the checkout would be, a link
    to it stands.

    Raises:
        QuarryError: a path leads further up, or the link's place is taken.
    """
    for name, values in entries.items():
        path = Path(os.path.normpath(str(values.get("path", "data/none"))))
        if path.is_absolute() or path.parts[:1] != ("..",):
            continue
        beside = path.parts[1:2]
        link, target = worktree.parent.joinpath(*beside), root.joinpath("..", *beside).resolve()
        taken = link.exists() and not link.is_symlink()
        if beside in ((), ("..",)) or taken:
            raise QuarryError(
                f"ingest.{name}.path: {path} cannot be reached from {worktree}: it leads to the "
                f"folder above, further, or to a name that is taken there. Write the absolute path."
            )
        if link.resolve() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def refresh(source: Path, target: Path, *, root: Path | None = None) -> Refreshed:
    """Make ``target`` a mirror of the regular files of ``source`` (a file, or a folder).

    Files whose size and time are as they were copied are not read. Links are not followed, nor one
    on the way from ``root`` to the mirror. New files are complete beside the mirror before the
    first one of it is touched.

    Raises:
        QuarryError: the source is missing or cannot be read, a file of it does not stand still, or
            the way to the mirror leads through a link.
    """
    if not source.exists():
        raise QuarryError(
            f"source {source} is not there. If it is a mount, mount it; if the corpus is to be "
            f"empty, leave an empty folder."
        )
    if target.resolve() == source.resolve():  # a link that Git tracks: it is read in place
        return Refreshed(0, 0, 1 if source.is_file() else len(_files(source)))
    for above in [p for p in target.parents if root in p.parents]:
        if above.is_symlink():
            raise QuarryError(
                f"source {source}: its mirror {target} would lie behind the link {above}, among "
                f"files that are not the mirror's. Name a path without a link as the entry's."
            )
    if target.is_symlink():  # never through it: what is behind is not the mirror's
        target.unlink()
    wanted = {"": source} if source.is_file() else _files(source)
    have = {"": target} if target.is_file() else _files(target) if target.is_dir() else {}
    stage = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        fresh = {}
        for no, (name, path) in enumerate(wanted.items()):
            if name not in have or _look(have[name]) != _look(path):
                fresh[name] = _copy(path, stage / str(no))
        gone = have.keys() - wanted.keys()
        for name in gone:
            have[name].unlink()
        for name, path in fresh.items():
            to = target / name if name else target
            to.parent.mkdir(parents=True, exist_ok=True)
            if to.is_dir() and not to.is_symlink():  # what was in it is gone by now
                shutil.rmtree(to)
            path.rename(to)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise QuarryError(f"source {source} could not be read to its end: {e}") from e
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return Refreshed(len(fresh), len(gone), len(wanted) - len(fresh))


def _files(folder: Path) -> dict[str, Path]:
    """Relative name -> path of the regular files, sorted by name."""

    def fail(error: OSError) -> None:
        raise QuarryError(f"source {folder} could not be listed to its end: {error}")

    paths = [Path(at) / name for at, _, names in os.walk(folder, onerror=fail) for name in names]
    regular = [p for p in paths if stat.S_ISREG(p.lstat().st_mode)]
    return {p.relative_to(folder).as_posix(): p for p in sorted(regular)}


def _look(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _copy(path: Path, to: Path) -> Path:
    """A copy with the source's time, of one state of the file."""
    for _ in range(TRIES):
        before = _look(path)
        shutil.copy2(path, to)
        if before == _look(path) and to.stat().st_size == before[0]:
            return to
        time.sleep(PAUSE_SECONDS)
    raise QuarryError(f"source {path} changes while it is read. It is read at the next run.")


def sources_digest(paths: list[Path]) -> str:
    """A digest of names and bytes of files and folders."""
    fields = []
    for path in paths:
        files = {"": path} if path.is_file() else _files(path)
        fields += [f"{path.name}/{name}\x1f{file_digest(file)}" for name, file in files.items()]
    return digest(*fields)
