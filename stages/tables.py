"""The contract of the tables: one Arrow schema per kind, checked on reading and on writing.

Row order is part of the contract: ``write_table`` sorts by the schema's key, so equal rows
make equal bytes whatever order they were computed in. An empty table is a legal table.

A table is one file, ``<kind>.parquet``, or, where its entry says ``shards: n``, n files in the
folder ``<kind>``. The hash of a row's first key says in which: it moves only when n changes. A
reader sees the same table either way.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stages.errors import QuarryError

ROW_GROUP = 32_768  # rows; fixed, since it shows in the file's bytes

text, ids, strings = pa.large_string(), pa.string(), pa.list_(pa.string())


class Kind(NamedTuple):
    """A table's schema, and the columns that order its rows (and name one of them)."""

    schema: pa.Schema
    key: tuple[str, ...]


def _kind(key: str, /, **columns: pa.DataType) -> Kind:
    return Kind(pa.schema([pa.field(n, t) for n, t in columns.items()]), tuple(key.split()))


# fmt: off
TABLES: dict[str, Kind] = {
    # -- ingest ---------------------------------------------------------------------------
    # content_hash = digest("doc", version, title, text): the key for reuse; docid is the source's.
    "documents": _kind(
        "docid", docid=ids, title=text, text=text, content_hash=ids,
        dup_of=ids,  # docid of the representative that this one repeats, else ""
        locator=ids,  # where in the source: file:line, file#page, URL
        meta=text,  # canonical JSON of what nobody queries
    ),
    # docid = parent#seq; document.text[start:end] == text; text_hash = digest(title, text).
    "passages": _kind(
        "parent seq", docid=ids, parent=ids, seq=pa.int32(), title=text, text=text,
        start=pa.int32(), end=pa.int32(), text_hash=ids,
    ),
    "queries": _kind(
        "qid", qid=ids, text=text, split=ids, answers=strings, options=strings, meta=text,
    ),
    "qrels": _kind("qid docid", qid=ids, docid=ids, rel=pa.int32()),
    "quarantine": _kind(
        "locator code", locator=ids, code=ids, detail=text, raw_sha256=ids, raw=pa.binary(),
    ),
    # -- triples: docid is the passage, text_hash what was read ---------------------------
    "triples": _kind(
        "docid seq", docid=ids, seq=pa.int32(), subj=text, rel=text, obj=text, text_hash=ids,
    ),
    # -- pairs: see the preference-training card ------------------------------------------
    "pref_groups": _kind(
        "group_id", group_id=ids, method=ids, kind=ids, qid=ids, split=ids, prompt=text,
        context=text, docids=strings, retrieval_sign=pa.int8(), iteration=pa.int16(),
        weight=pa.float32(), meta=text,
    ),
    "pref_candidates": _kind(
        "group_id rank cand_id", group_id=ids, cand_id=ids, text=text, score=pa.float32(),
        rank=pa.int16(), label=pa.int8(), n_trials=pa.int16(), n_success=pa.int16(),
        temperature=pa.float32(), gen_iteration=pa.int16(), model=ids, n_tokens=pa.int32(),
    ),
    # -- serve and fuse -------------------------------------------------------------------
    "runs": _kind("qid rank", qid=ids, docid=ids, rank=pa.int32(), score=pa.float64()),
    "answers": _kind(
        "qid", qid=ids, answer=text, memory=text, docids=strings, rounds=pa.int16(),
        llm_calls=pa.int32(), searches=pa.int32(), tokens_in=pa.int64(), tokens_out=pa.int64(),
        stop_reason=ids, error=text,
    ),
    # one row per effect of the loop engine: what was asked and what came back, both as JSON
    "effects": _kind(
        "qid effect_no", qid=ids, effect_no=pa.int32(), turn=pa.int32(), kind=ids, key=ids,
        request=text, result=text, tokens_in=pa.int32(), tokens_out=pa.int32(),
    ),
    # -- evaluate -------------------------------------------------------------------------
    "per_query": _kind(
        "system measure qid", system=ids, measure=ids, qid=ids, value=pa.float64(),
    ),
}
# fmt: on


def empty_table(kind: str) -> pa.Table:
    """A table of this kind without rows."""
    return TABLES[kind].schema.empty_table()


def table(kind: str, rows: list[dict]) -> pa.Table:
    """Rows as a checked table of this kind; a missing or unknown column is an error."""
    schema = TABLES[kind].schema
    for row in rows:
        if row.keys() != set(schema.names):
            raise QuarryError(f"table {kind}: expected columns {schema.names}, got {sorted(row)}")
    return pa.Table.from_pylist(rows, schema=schema)


def check_table(t: pa.Table, kind: str, *, where: str) -> pa.Table:
    """``t`` with its columns in the contract's order, or an error naming the first difference."""
    schema = TABLES[kind].schema
    for field in schema:
        if field.name not in t.schema.names:
            raise QuarryError(
                f"{where}: table {kind} has no column '{field.name}' ({field.type}); "
                f"columns there: {', '.join(t.schema.names) or 'none'}. "
                f"Rebuild it with the stage that writes it."
            )
        found = t.schema.field(field.name).type
        if found != field.type:
            raise QuarryError(
                f"{where}: table {kind}, column '{field.name}' is {found}, expected {field.type}. "
                f"Rebuild it with the stage that writes it."
            )
    extra = [n for n in t.schema.names if n not in schema.names]
    if extra:
        raise QuarryError(
            f"{where}: table {kind} has columns that the contract does not know: "
            f"{', '.join(extra)}; expected {', '.join(schema.names)}."
        )
    for name in TABLES[kind].key:
        if t[name].null_count:
            raise QuarryError(f"{where}: table {kind}, column '{name}' has an empty cell (null).")
    for field in schema:
        if pa.types.is_floating(field.type):
            import pyarrow.compute as pc  # here, and not where --help waits for it

            bad = pc.is_nan(t[field.name]).index(True).as_py()
            if bad >= 0:
                raise QuarryError(
                    f"{where}: table {kind}, column '{field.name}' is NaN in row {bad}. "
                    f"Look at what computed it; a value that is not known is null."
                )
    return t.select(schema.names).replace_schema_metadata(None)


def has_table(folder: Path, kind: str) -> bool:
    """Whether the table lies there, as a file or in shards."""
    return (folder / f"{kind}.parquet").is_file() or (folder / kind).is_dir()


def read_table(folder: Path, kind: str) -> pa.Table:
    """The table ``kind`` of a folder, checked.

    Raises:
        QuarryError: it or a shard of it is missing, not Parquet, or has another schema.
    """
    path = folder / f"{kind}.parquet"
    if not has_table(folder, kind):
        raise QuarryError(
            f"{path}: table {kind} is missing. Run the stage that writes {folder} first: "
            f"dvc repro (dvc dag shows which)."
        )
    if path.is_file():
        return _read(path, kind)
    there = sorted((folder / kind).iterdir())
    if not there or there != _shard_paths(folder, kind, len(there)):
        raise QuarryError(
            f"{folder / kind}: a shard of table {kind} is missing, or something else lies there: "
            f"{', '.join(p.name for p in there[:3]) or 'nothing'}. Rebuild it."
        )
    return sort_table(pa.concat_tables([_read(p, kind) for p in there]), kind)


def _read(path: Path, kind: str) -> pa.Table:
    import pyarrow.parquet as pq

    try:
        t = pq.read_table(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as e:
        raise QuarryError(f"{path}: not a readable Parquet file ({e}). Rebuild it.") from e
    return check_table(t, kind, where=str(path))


def sort_table(t: pa.Table, kind: str) -> pa.Table:
    """``t`` in the contract's order; equal keys keep the order they came in."""
    keys = [(k, "ascending") for k in TABLES[kind].key]
    return t.sort_by(keys) if t.num_rows > 1 else t


def write_table(t: pa.Table, folder: Path, kind: str, *, shards: int = 1) -> Path:
    """Check, sort and write ``folder/<kind>.parquet``, or its shards; equal rows, equal bytes."""
    path = folder / f"{kind}.parquet"
    t = sort_table(check_table(t, kind, where=str(path)), kind).combine_chunks()
    if shards == 1:
        return _write(t, path)
    (folder / kind).mkdir()
    place = np.array([_shard(key, shards) for key in t[TABLES[kind].key[0]].to_pylist()], int)
    for i, shard in enumerate(_shard_paths(folder, kind, shards)):
        _write(t.filter(place == i).combine_chunks(), shard)
    return folder / kind


def _shard(key: str, shards: int) -> int:
    """Which shard the rows of a key belong to, from its hash alone."""
    hashed = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(hashed, "big") % shards


def _shard_paths(folder: Path, kind: str, shards: int) -> list[Path]:
    return [folder / kind / f"{i:05d}-of-{shards:05d}.parquet" for i in range(shards)]


def _write(t: pa.Table, path: Path) -> Path:
    import pyarrow.parquet as pq

    pq.write_table(
        t, path, compression="zstd", compression_level=3, row_group_size=ROW_GROUP,
        use_dictionary=False, write_statistics=True, store_schema=True, version="2.6",
    )  # fmt: skip
    return path
