"""finetune: models, from elsewhere or trained here, each a directory with a fingerprint.

Reads what the entry's slots name (a corpus, preference pairs, an index, an encoder, a model),
writes ``data/finetune/<entry>``: config.json, *.safetensors, the tokenizer, and training.json
(role, fingerprint, what made it). A generator behind an OpenAI-compatible server is a
directory with endpoint.json instead of weights; keys never lie there, only the name of the
environment variable. Nothing is pickled; equal inputs make equal bytes.

Every recipe is one file with ``train(params, inputs, out)``: it fills ``out`` and returns
measurements. A recipe ends by sealing its directory with ``stages.models.write_training``.

Reading order: pretrained.py (a model as it comes), dense.py (contrastive encoder), aligner.py (an
encoder for the next fact of a chain), preference.py (the generator, on preference pairs), judge.py
(whether evidence is complete; judge_pools.py and calibration.py measure it), value.py (whether a
prefix leads to the answer), __main__.py (the shell).
"""

from pathlib import Path
from typing import NamedTuple

RECIPES = {
    "pretrained": "pretrained",
    "preference": "preference",
    "dense": "dense",
    "aligner": "aligner",
    "judge": "judge",
    "value": "value",
}

SHARED = ("preference",)  # recipes whose training several processes can share


class Inputs(NamedTuple):
    """The folders that an entry's slots name; None where a slot says ``none``."""

    corpus: Path | None = None
    pairs: Path | None = None
    index: Path | None = None
    encoder: Path | None = None
    model: Path | None = None
