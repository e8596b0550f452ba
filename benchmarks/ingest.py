"""Ingestion against datatrove: JSON lines to Parquet, with and without near-duplicate removal.

Both sides read the same file, drop near-duplicates by MinHash (5-word shingles, 14 bands of 8)
and write what stays as Parquet. Ours also makes text canonical, checks ids, verifies candidates
by exact Jaccard similarity, writes passages with offsets and hashes, and fills its record store.
Without near-duplicate removal both are bound by JSON and by Parquet's compression, and ours
writes every text twice (document and passage): there the aim is to be no slower.

The work: real sentences (of Semanlink's abstracts and comments) drawn eight at a time; every
tenth document is a copy of another with one word in eighty changed (Jaccard about 0.9). Same
result: every family of copies is there on both sides, and in at most 1 % of them, which the hash
functions of one side missed, does another number stay.
The peer runs its steps in this process without its executor, with spaCy's tokenizer (its default
for English) and with its blank splitter, which after its own normalisation finds the same words.
"""

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import compare
from stages.ingest import jsonl, semanlink
from stages.ingest.corpus import build_corpus
from stages.records import RecordStore
from stages.tables import write_table
from stages.text import canonicalise, split_sentences

Kept = list[str]  # ids that stay; "17" and its copy "17-copy" are a family


def write_work(path: Path, n: int) -> None:
    """n documents as JSON lines, a tenth of them near-copies."""
    rng = random.Random(13)
    source = semanlink.read(Path("none"), semanlink.Params(source="semanlink", path="none"), None)
    bodies = [canonicalise(d.body) for d in source.documents]
    sentences = [text[a:b] for text in bodies for a, b in split_sentences(text)]
    sentences = [x for x in dict.fromkeys(sentences) if 8 <= len(x.split()) <= 60]
    rows = []
    while len(rows) < n:
        text = " ".join(rng.sample(sentences, 8))
        rows.append({"id": str(len(rows)), "text": text})
        if len(rows) % 10 == 9:
            words = text.split(" ")
            for i in rng.sample(range(len(words)), max(1, len(words) // 80)):
                words[i] = "replaced"
            rows.append({"id": f"{rows[-1]['id']}-copy", "text": " ".join(words)})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows[:n]), encoding="utf-8")


def run_ours(path: Path, out: Path, mode: str) -> Kept:
    """Our tables, all of them."""
    params = jsonl.Params(source="jsonl", path=str(path), dedup={"mode": mode})
    with RecordStore(out / "records") as store:
        corpus = build_corpus(
            jsonl.read(path, params, store), where=str(path),
            chunking=params.chunk.model_dump(), deduping=params.dedup.model_dump(),
            max_chars=params.max_chars, keep_empty=False, quarantine_max=None, store=store,
        )  # fmt: skip
    for kind, table in corpus.tables.items():
        write_table(table, out, kind)
    return pq.read_table(out / "passages.parquet", columns=["parent"])["parent"].to_pylist()


def run_theirs(path: Path, out: Path, mode: str, words: str) -> Kept:
    """Their reader, four MinHash stages, and Parquet writer."""
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    def read() -> Iterator:
        return JsonlReader(str(path.parent), glob_pattern=path.name).run()

    pipeline = read()
    if mode == "drop":
        config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
        signatures, buckets, remove = (str(out / d) for d in ("signatures", "buckets", "remove"))
        sign = MinhashDedupSignature(signatures, config)
        if words == "blanks":
            sign.word_tokenizer = WhitespaceTokenizer()
        sign.run(pipeline)
        for rank in range(config.num_buckets):
            bucket = MinhashDedupBuckets(signatures, buckets, config=config, lines_to_buffer=1000)
            bucket.run(rank=rank, world_size=config.num_buckets)
        MinhashDedupCluster(buckets, remove, config).run(None)
        pipeline = MinhashDedupFilter(remove).run(read())
    kept = []
    for document in ParquetWriter(str(out / "kept"), compression="zstd").run(pipeline):
        kept.append(document.id)
    return kept


def check(ours: Kept, theirs: Kept) -> None:
    """Every family is there on both sides; at most 1 % of families differ in how many stay."""

    a, b = (Counter(k.removesuffix("-copy") for k in kept) for kept in (ours, theirs))
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    differ = [f for f in a if a[f] != b[f]]
    assert len(differ) <= 0.01 * len(a), f"{len(differ)} of {len(a)} families: {differ[:5]}"


def main() -> None:
    """Two lines: without and with near-duplicate removal."""
    from datatrove.utils.logging import logger

    logger.remove()  # their progress messages, at every step
    for mode, documents, aim in (("off", 10_000, 1.0), ("drop", 1_000, 2.0)):
        with tempfile.TemporaryDirectory() as tmp:
            path, out = Path(tmp) / "work" / "work.jsonl", Path(tmp) / "out"
            path.parent.mkdir()
            write_work(path, documents)

            def empty(out: Path = out) -> None:
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()

            tokenizers = ("blanks", "spacy") if mode == "drop" else ("blanks",)
            compare(
                "ingest" if mode == "drop" else "ingest, duplicates kept",
                peer="datatrove", unit="docs/s", aim=aim, work=documents, before=empty,
                ours=partial(run_ours, path, out, mode),
                theirs={t: partial(run_theirs, path, out, mode, t) for t in tokenizers},
                check=check,
            )  # fmt: skip


if __name__ == "__main__":
    main()
