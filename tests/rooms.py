"""Running rooms inside a test: a project in the current folder, stages in this process."""

import logging
import shutil
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from stages import shell
from stages.digest import folder_digest

ROOT = Path(__file__).resolve().parents[1]


def write_params(**rooms: dict[str, dict[str, Any]]) -> None:
    """params.yaml of the project in the current folder."""
    Path("params.yaml").write_text(yaml.safe_dump(rooms, sort_keys=False), encoding="utf-8")


def run_room(room: str, entry: str) -> str:
    """``python -m stages.<room> <entry>`` without the process; the digest of its output.

    Raises:
        SystemExit: with status 2, its message on standard error.
    """
    main = import_module(f"stages.{room}.__main__")
    named = {"serve": "run_folder", "fuse": "fused_folder"}.get(room)
    out = getattr(main, named) if named else (lambda task: task.folder(room, entry))
    argv, handlers = sys.argv, logging.getLogger().handlers[:]
    sys.argv = [room, entry]
    try:
        shell.run(room, "", main.make, out=out)
    finally:
        sys.argv = argv
        logging.getLogger().handlers[:] = handlers
    return folder_digest(out(shell.Task(room, entry, study=False)))


def files(folder: Path = Path()) -> list[str]:
    """Names of all files, hidden ones too."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def copy_project(folder: Path, names: Iterable[str]) -> None:
    """These files and folders of the repository, at the same places below ``folder``."""
    for name in names:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
