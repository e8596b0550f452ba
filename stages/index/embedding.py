"""What the kinds with an encoder share: passages to vectors, and the check that it is the same."""

import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from stages.encoder import DenseEncoder, SparseEncoder, embed, open_encoder
from stages.errors import QuarryError
from stages.index import Inputs
from stages.index.layout import Index, rows

VectorRole = Literal["dense", "sparse"]


class Embedded(NamedTuple):
    """The passages of a corpus, by docid descending."""

    docids: list[str]
    vectors: Any  # (n, d) float32, or CSR
    encoder: dict[str, Any]  # goes to meta.json
    facts: dict[str, float]


def embed_passages(
    passages: pa.Table, inputs: Inputs, role: VectorRole, *, max_tokens: int, threads: int
) -> Embedded:
    """Vectors from the record store; the model reads what is new."""
    docids, texts, _ = rows(passages)
    return embed_texts(docids, texts, inputs, role, max_tokens=max_tokens, threads=threads)


def embed_texts(
    docids: list[str], texts: list[str], inputs: Inputs, role: VectorRole, *, max_tokens: int,
    threads: int,
) -> Embedded:  # fmt: skip
    """The same of any texts, each of a document; equal ones are read once."""
    encoder = open_encoder(inputs.model, role, max_tokens=max_tokens, threads=threads)
    start, known = time.perf_counter(), inputs.store.misses
    vectors = embed(encoder, docids, texts, inputs.store)
    seconds = time.perf_counter() - start
    meta = {
        "name": encoder.name, "role": role, "dim": encoder.dim, "max_tokens": max_tokens,
        "threads": threads, "fingerprint": encoder.fingerprint,
    }  # fmt: skip
    facts = {
        "passages": len(docids), "encoded": inputs.store.misses - known, "embed_seconds": seconds,
    }  # fmt: skip
    return Embedded(docids, vectors, meta, facts)


def encoder_of(index: Index, folder: Path | None) -> DenseEncoder | SparseEncoder:
    """The encoder in ``folder``, which must be the one that made the index.

    Raises:
        QuarryError: none was given, or another.
    """
    made = index.encoder
    if folder is None:
        raise QuarryError(
            f"index '{index.path.name}' was built with {made['name']} (d={made['dim']}) and no "
            f"encoder was given. Say encoder: {made['name']} in the entry that searches it."
        )
    encoder = open_encoder(
        folder, made["role"], max_tokens=made["max_tokens"], threads=made["threads"]
    )
    if encoder.fingerprint != made["fingerprint"]:
        raise QuarryError(
            f"index '{index.path.name}' was built with {made['name']} (d={made['dim']}); the "
            f"encoder is {encoder.name} (d={encoder.dim}, other fingerprint). Say encoder: "
            f"{made['name']} in the entry that searches it, or model: {encoder.name} in the "
            f"index's."
        )
    return encoder
