"""Encoding against SentenceTransformer.encode: same weights, float32, one thread, 128 tokens.

Two kinds of text, all distinct: Semanlink's passages (long) and its questions (short). Ours pads
to fixed shapes, so that a vector depends on its text alone; the peer pads to the longest text of
its batch, at its best of three batch sizes. Same result: vectors equal to 1e-5.

Reuse is shown apart, in records encoded: the same passages with one in a hundred edited.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import compare
from stages.encoder import embed, open_encoder
from stages.errors import QuarryError
from stages.records import RecordStore
from stages.tables import read_table

LONG, SHORT = 256, 512  # fewer leave rows of the fixed shapes empty


def texts() -> dict[str, list[str]]:
    """Distinct texts, drawn by hash of the passage, and in order of the question."""
    folder = ROOT / "data" / "ingest" / "semanlink"
    if not folder.exists():
        raise QuarryError("Run `dvc repro ingest@semanlink finetune@minilm` first.")
    passages = read_table(folder, "passages").sort_by("text_hash").to_pylist()
    questions = read_table(folder, "queries")["text"].to_pylist()
    return {
        "passages": [f"{p['title']} {p['text']}" for p in passages[:LONG]],
        "questions": list(dict.fromkeys(questions))[:SHORT],
    }


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Every component to 1e-5."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def main() -> None:
    """Print one JSON line per kind of text, and one for reuse."""
    torch.set_num_threads(1)
    model = ROOT / "data" / "finetune" / "minilm"
    work = texts()
    encoder = open_encoder(model, max_tokens=128, threads=1)
    peer = SentenceTransformer(str(model), device="cpu")
    peer.max_seq_length = 128
    for kind, of_kind in work.items():

        def encode_peer(batch: int, of_kind: list[str] = of_kind) -> np.ndarray:
            return peer.encode(of_kind, batch_size=batch, normalize_embeddings=True)

        compare(
            f"encode {kind}", peer="sentence-transformers", unit="texts/s", aim=0.95,
            work=len(of_kind), check=assert_same,
            ours=lambda of_kind=of_kind: encoder.encode(of_kind, "passage"),
            theirs={f"batch {b}": lambda b=b, f=encode_peer: f(b) for b in (8, 16, 32)},
        )  # fmt: skip

    passages = work["passages"]
    names = [str(i) for i in range(len(passages))]
    edited = [p + " Edited." if i % 100 == 0 else p for i, p in enumerate(passages)]
    with tempfile.TemporaryDirectory() as folder, RecordStore(Path(folder)) as store:
        embed(encoder, names, passages, store)
        before = encoder.model.encoded
        embed(encoder, names, edited, store)
    new = len(set(edited) - set(passages))
    line = {
        "benchmark": "encode after editing 1 %", "peer": "encoding everything", "unit": "records",
        "ours": encoder.model.encoded - before, "theirs": len(edited), "aim": len(edited) / new,
        "ratio": len(edited) / (encoder.model.encoded - before),
    }  # fmt: skip
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
