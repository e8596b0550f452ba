"""The index directory: plain arrays, the docids of its rows, and meta.json, which comes last.

meta.json holds the kind, the settings that searching needs, the encoder that made the vectors,
and a fingerprint over these and the bytes of the other files.
"""

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AfterValidator

from stages.digest import digest, folder_digest
from stages.errors import QuarryError
from stages.params import Entry
from stages.records import Engine
from stages.shell import NONE, write_json

META = "meta.json"


def _named(slot: str) -> str:
    if slot == NONE:
        raise ValueError("this kind needs one: name an entry")
    return slot


Slot = Annotated[str, AfterValidator(_named)]  # a slot that may not say "none"


class KindParams(Entry):
    """What every kind's entry may say."""

    engine: Engine = "local"  # who computes what is new: this process, or a Ray cluster


class Contents(NamedTuple):
    """An index before it is written."""

    docids: list[str]  # of the rows; descending
    arrays: dict[str, npt.NDArray]  # each becomes <name>.npy
    lists: dict[str, list[str]]  # each becomes <name>.json
    settings: dict[str, Any]  # what searching needs
    encoder: dict[str, Any] | None  # name, dim, max_tokens, threads, fingerprint
    facts: dict[str, float]  # counts for the timing file; not written here


class Index(NamedTuple):
    """An index as it was read: arrays are memory-mapped."""

    path: Path
    kind: str
    docids: list[str]
    arrays: dict[str, npt.NDArray]
    lists: dict[str, list[str]]
    settings: dict[str, Any]
    encoder: dict[str, Any] | None
    fingerprint: str


def rows(passages: pa.Table) -> tuple[list[str], list[str], list[str]]:
    """(docids, texts, text hashes) by docid descending; a text is title and text, blank between."""
    columns = [passages[c].to_pylist() for c in ("docid", "title", "text", "text_hash")]
    ordered = sorted(zip(*columns, strict=True), reverse=True)
    texts = [f"{title} {text}" if title else text for _, title, text, _ in ordered]
    return [r[0] for r in ordered], texts, [r[3] for r in ordered]


def write_index(folder: Path, kind: str, contents: Contents) -> None:
    """Fill an empty folder."""
    for name, array in contents.arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    for name, strings in {**contents.lists, "docids": contents.docids}.items():
        text = json.dumps(strings, ensure_ascii=False, indent=0)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    meta = {"kind": kind, "settings": contents.settings, "encoder": contents.encoder}
    made = digest("index", json.dumps(meta, sort_keys=True), folder_digest(folder))
    write_json(folder / META, {**meta, "passages": len(contents.docids), "fingerprint": made})


def read_index(path: Path) -> Index:
    """The index in a directory.

    Raises:
        QuarryError: there is none, or one of its files is missing or unreadable.
    """
    if not (path / META).exists():
        raise QuarryError(
            f"{path}: not an index (no {META}). Build it with: dvc repro index@{path.name}"
        )
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        arrays = {f.stem: np.load(f, mmap_mode="r") for f in sorted(path.glob("*.npy"))}
        names = sorted(f for f in path.glob("*.json") if f.name != META)
        lists = {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in names}
        return Index(
            path, meta["kind"], lists.pop("docids"), arrays, lists,
            meta["settings"], meta["encoder"], meta["fingerprint"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as e:
        raise QuarryError(
            f"{path}: a damaged index ({e!r}). Rebuild it with: dvc repro -f index@{path.name}"
        ) from e
