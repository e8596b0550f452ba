"""What every room's ``__main__`` shares: arguments, folders, the atomic write, timings.

Folders: an entry of a room writes ``data/<room>/<entry>``, a run of ``serve`` or ``fuse``
``data/runs|fused/<corpus>/<entry>``; with ``--study`` the same below ``data/studies``.
"""

import argparse
import contextlib
import importlib
import json
import logging
import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from stages.digest import folder_digest
from stages.errors import QuarryError

log = logging.getLogger("quarry")

NONE = "none"  # a slot that an entry does not need says this


class Task(NamedTuple):
    """Which entry of which room is being made."""

    room: str
    entry: str
    study: bool

    def folder(self, room: str, name: str) -> Path:
        """Where the output ``name`` of ``room`` lies, as seen from this task."""
        return Path("data/studies" if self.study else "data") / room / name

    def slot(self, room: str, name: str) -> Path | None:
        """The folder that a slot names, None for ``none``; an error if it is not there."""
        if name == NONE:
            return None
        path = self.folder(room, name)
        if not path.is_dir():
            raise QuarryError(
                f"{self.room}.{self.entry}: input {path} is missing. "
                f"Make it with: dvc repro {room}@{name}"
            )
        return path


def method(package: str, module: str) -> ModuleType:
    """The file that an entry names, imported only now: help and errors stay fast."""
    return importlib.import_module(f"{package}.{module}")


@contextlib.contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A fresh sibling of ``out`` to write into; it takes ``out``'s place only if all went well.

    A killed stage leaves a ``.<name>.<pid>.tmp`` folder, which the next run of it removes.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    leftover = re.compile(rf"\.{re.escape(out.name)}\.\d+\.(old\.)?tmp")
    for stale in [p for p in out.parent.iterdir() if leftover.fullmatch(p.name)]:
        shutil.rmtree(stale)
    tmp = out.parent / f".{out.name}.{os.getpid()}.tmp"
    tmp.mkdir()
    try:
        yield tmp
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    for path in tmp.rglob("*"):
        if path.is_file():
            with path.open("rb") as f:
                os.fsync(f.fileno())
    old = out.parent / f".{out.name}.{os.getpid()}.old.tmp"
    if out.exists():
        out.rename(old)  # whole, or not there: a kill while removing must not leave half of it
    tmp.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Canonical JSON: sorted keys, a newline at the end, no NaN."""
    path.write_text(
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
        encoding="utf-8",
    )


def write_timing(task: Task, out: Path, seconds: float, facts: dict[str, float]) -> None:
    """Measurements, beside the results and never among them.

    They hold for the outputs with this digest: a report shows them only while those lie there.
    """
    path = Path(".quarry/timings") / task.folder(task.room, task.entry).relative_to("data")
    path = path.with_name(f"{path.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    timing = {
        "seconds": round(seconds, 3),
        "peak_mib": round(peak),
        "host": platform.node(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "outputs": folder_digest(out),
        **facts,
    }
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write_json(tmp, timing)
    tmp.rename(path)


def parse(room: str, doc: str, argv: list[str] | None = None) -> Task:
    """The task named on the command line."""
    p = argparse.ArgumentParser(
        prog=f"python -m stages.{room}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("entry", help=f"an entry under '{room}' in params.yaml")
    p.add_argument(
        "--study", action="store_true", help="take it from 'studies', write below data/studies"
    )
    args = p.parse_args(argv)
    return Task(room, args.entry, args.study)


def run(
    room: str,
    doc: str,
    make: Callable[[Task, Path], dict[str, float] | None],
    *,
    out: Callable[[Task], Path] | None = None,
) -> None:
    """Run a room's shell: ``make(task, folder)`` fills the folder, which then becomes the output.

    ``make`` may return measurements (seconds of a part, rates) for the timing file.
    A ``QuarryError`` is printed as one message; exit status 2, nothing written.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    for noisy in ("httpx", "bm25s", "sentence_transformers", "faiss", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    task = parse(room, doc)
    start = time.perf_counter()
    try:
        target = out(task) if out else task.folder(room, task.entry)
        with replaced(target) as folder:
            facts = make(task, folder) or {}
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        sys.exit(2)
    seconds = time.perf_counter() - start
    write_timing(task, target, seconds, facts)
    log.info("%s@%s: %.1f s -> %s", room, task.entry, seconds, target)
