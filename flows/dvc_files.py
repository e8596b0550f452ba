"""DVC's own files: parsed once, written where they changed, and made whole after a kill.

Run as a script, this is the ``dvc`` command with two differences, which spare every stage
of the default graph 3.5 s of pure Python:

* DVC keeps comments when it rewrites ``dvc.lock``, which has none: it parses all 10,400 lines, and
  writes all of them in place. Here the changed stages are put among the others, byte-equal to what
  DVC writes, and the file is replaced at once.
* It parses ``params.yaml`` anew for each of a stage's looks at it. Here once.
"""

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dvc import dvcfile
from dvc.cli import main
from dvc.dependency import param
from dvc.ignore import DvcIgnoreFilter
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import YAMLFileCorruptedError, dumps_yaml, parse_yaml_for_update
from voluptuous import Invalid

log = logging.getLogger(__name__)

LOCK_FILES = ("dvc.lock", "studies/dvc.lock")
_HEAD = "schema: '2.0'\nstages:\n"
_PLAIN = re.compile(re.escape(_HEAD) + r"((?:  [^?\n].*\n)*)")  # whole stages, nothing else
_BLOCK = re.compile(r"^(?=  [^\s?])", re.MULTILINE)  # where a stage begins


@contextlib.contextmanager
def _standing_in(owner: Any, name: str, other: Callable[..., Any]) -> Iterator[None]:
    """In the block ``other`` is what DVC calls by this name."""
    theirs = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, theirs)


@contextlib.contextmanager
def params_read_once() -> Iterator[None]:
    """In the block DVC parses params.yaml once, not anew for each stage that it looks at."""
    read, known = param.load_path, {}

    def load_path(path: str, fs: Any, **how: Any) -> Any:
        if path not in known:
            known[path] = read(path, fs, **how)
        return known[path]

    with _standing_in(param, "load_path", load_path):
        yield


@contextlib.contextmanager
def studies_left_out() -> Iterator[None]:
    """In the block DVC does not look for stages in ``studies``: four of five, and seldom asked for.

    What is in a folder of that name elsewhere is found.
    """
    walk, name = DvcIgnoreFilter.walk, str(Path(LOCK_FILES[1]).parent)

    def walk_past(self: DvcIgnoreFilter, fs: Any, path: str, **how: Any) -> Iterator[Any]:
        for folder, folders, files in walk(self, fs, path, **how):
            if folder == self.root_dir and isinstance(folders, list):
                folders[:] = [f for f in folders if f != name]
            yield folder, folders, files

    with _standing_in(DvcIgnoreFilter, "walk", walk_past):
        yield


@contextlib.contextmanager
def locks_written_where_they_changed() -> Iterator[None]:
    """In the block DVC changes a lock file stage by stage, and never leaves half of one."""
    write = dvcfile.Lockfile.dump_stages

    def dump_stages(self: dvcfile.Lockfile, stages: list[Any], **how: Any) -> None:
        path = Path(self.path)
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        changes = {name: made for s in stages for name, made in to_lockfile(s, **how).items()}
        after = with_stages(before, changes)
        if after is None:
            write(self, stages, **how)
        elif after != before:
            _replace(path, after)
            self.repo.scm_context.track_file(self.relpath)

    with _standing_in(dvcfile.Lockfile, "dump_stages", dump_stages):
        yield


def with_stages(text: str, stages: Mapping[str, Any]) -> str | None:
    """A lock file's text with these stages in it, as DVC writes it; None if ``text`` is not so.

    A stage that is there keeps its place, a new one comes last. O(length of the text).
    """
    plain = _PLAIN.fullmatch(text or _HEAD)
    if plain is None:
        return None
    blocks = {block.partition("\n")[0]: block for block in _BLOCK.split(plain[1]) if block}
    for name, made in stages.items():
        block = dumps_yaml({"stages": {name: made}}).partition("\n")[2]
        blocks[block.partition("\n")[0]] = block
    return _HEAD + "".join(blocks.values())


def _replace(path: Path, text: str) -> None:
    whole = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    whole.write_text(text, encoding="utf-8")
    whole.replace(path)


def mend(path: Path) -> bool:
    """Whether a lock file was cut off, by a kill or a full disk, and is whole again.

    The stages before the cut stay as they are; those behind it are as in Git's last commit, or
    unknown. DVC's run cache holds what was made of them, and ``repro`` restores it from there.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if text is None or _locked(text) is not None or re.search("^(<<<<<<<|>>>>>>>)", text, re.M):
        return False
    begins = [at.start() for at in _BLOCK.finditer(text)]
    before = _locked(text[: begins[-1]] if len(begins) > 1 else "") or {}
    if len(begins) > 1 and not before:
        return False  # damaged elsewhere than at its end: DVC says where
    argv = ["git", "show", f"HEAD:./{path.name}"]
    shown = subprocess.run(argv, cwd=path.parent, capture_output=True, text=True)
    committed = (_locked(shown.stdout) if shown.returncode == 0 else None) or {}
    _replace(path, dumps_yaml({"schema": "2.0", "stages": {**committed, **before}}))
    log.warning(
        "%s was cut off while DVC wrote it: %d stages were whole, %d are taken from the last "
        "commit. What else was made comes from DVC's run cache.",
        path.name, len(before), len(committed.keys() - before.keys()),
    )  # fmt: skip
    return True


def _locked(text: str) -> dict[str, Any] | None:
    """The stages of a lock file; None if it is none."""
    try:
        return COMPILED_LOCKFILE_SCHEMA(parse_yaml_for_update(text, "dvc.lock")).get("stages", {})
    except (YAMLFileCorruptedError, Invalid):
        return None


if __name__ == "__main__":
    with params_read_once(), locks_written_where_they_changed():
        sys.exit(main(sys.argv[1:]))
