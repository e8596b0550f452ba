"""The shell of ingestion: an entry's source is read and its tables are written."""

import contextlib
import stat
import time
from pathlib import Path

from stages import ingest
from stages.errors import QuarryError
from stages.ingest import SOURCES
from stages.params import choose, load
from stages.shell import Task, method, run, write_json


def make(task: Task, out: Path) -> dict[str, float]:
    """Fill ``out`` with the tables; what was reused and how fast it went are measurements."""
    from stages.engines import ENGINES
    from stages.ingest.corpus import build_corpus
    from stages.records import RecordStore
    from stages.tables import write_table

    name = choose("ingest", task.entry, "source", SOURCES, study=task.study)
    source = method("stages.ingest", name)
    params = load(source.Params, "ingest", task.entry, study=task.study)
    path = Path(params.path)
    if not path.exists():
        raise QuarryError(
            f"ingest.{task.entry}.path: {path} is not there. Name a file or folder, relative to "
            f"the project's root."
        )
    start, before = time.perf_counter(), _look(path)
    with RecordStore(apply=ENGINES[params.engine]) as store:
        corpus = build_corpus(
            source.read(path, params, store), where=f"ingest.{task.entry} ({path})",
            chunking=params.chunk.model_dump(), deduping=params.dedup.model_dump(),
            max_chars=params.max_chars, keep_empty=params.keep_empty,
            quarantine_max=params.quarantine_max, store=store,
        )  # fmt: skip
        reused, computed = store.hits, store.misses
    if _look(path) != before:  # half of it may be from before, half from after
        raise QuarryError(
            f"ingest.{task.entry}.path: {path} changed while it was read. Nothing was written: "
            f"run it again once that stands still."
        )
    seconds = time.perf_counter() - start
    for kind, table in corpus.tables.items():
        grows = kind in ("documents", "passages")
        write_table(table, out, kind, shards=params.shards if grows else 1)
    write_json(out / "stats.json", corpus.stats)
    passages = corpus.tables["passages"].num_rows
    return {
        "records_reused": reused, "records_computed": computed, "passages": passages,
        "passages_per_s": round(passages / seconds, 1),
    }  # fmt: skip


def _look(path: Path) -> dict[Path, tuple[int, int, int]]:
    """File, size and time of what can be seen of a source, without reading it."""
    found = {}
    for file in [path, *path.rglob("*")]:
        with contextlib.suppress(OSError):  # one that may not be read is set aside by the source
            about = file.stat()
            if stat.S_ISREG(about.st_mode):
                found[file] = (about.st_ino, about.st_size, about.st_mtime_ns)
    return found


if __name__ == "__main__":
    run("ingest", ingest.__doc__ or "", make)
