"""Next-token sets of a suffix array against infini-gram's next-token distributions, same tokens.

Work: 512 prefixes of 1 to 8 tokens, cut out of NPL, Cranfield and PubMedQA (the shared
collections, as SmolLM2's tokens) at places where a walk may begin; for each prefix every token
that follows it in the corpus, and how often. Both sides start from the tokens of the prefix. Ours
looks at 32 prefixes in a call, as 16 trees of two beams do in a search; infini-gram (C++, on disk,
Liu et al., COLM 2024) at one. Its support limit is set above every count, so that its
distributions are exact; then once more at its default of 1,000, where it samples frequent prefixes
(ours stays exact).

A walk keeps the rows of its prefix and never looks for it again; that is the third comparison. The
last is the sort of the suffixes alone, one thread (infini-gram's by its own command, with its
start; with two processes it sorted a corpus of 53,000 tokens wrongly). Bytes per token of both go
to standard error.

Same result: the same tokens with the same counts, separators left out; of sampled ones, none that
does not follow.
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pydivsufsort import divsufsort

from benchmarks.harness import compare
from stages.errors import QuarryError
from stages.index import suffixes
from stages.index.suffixes import Children, Suffixes
from stages.walks import passage_text

SHARED = ROOT.parent / "shared" / "data"
COLLECTIONS = ("npl", "cranfield", "pubmedqa")
PREFIXES = 512
SUPPORT = 1_000  # infini-gram's default
LONGEST = 8
CALL = 32
SEED = 13


def corpus_tokens() -> tuple[Suffixes, list[list[int]]]:
    """(the index, the tokens of each passage)."""
    model = ROOT / "data/finetune/smollm2"
    if not SHARED.exists() or not model.exists():
        raise QuarryError(f"Needs {SHARED} and data/finetune/smollm2 (dvc repro finetune@smollm2).")
    tokenizer = suffixes.open_tokenizer(model)
    texts = []
    for name in COLLECTIONS:
        with (SHARED / name / "corpus.jsonl").open(encoding="utf-8") as lines:
            documents = map(json.loads, lines)
            texts += [passage_text(d.get("title", ""), d["text"]) for d in documents]
    docs = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    arrays = suffixes.lay_out(docs, tokenizer.get_vocab_size())
    arrays["sa"] = divsufsort(arrays["tokens"])
    offered, starts = suffixes.offered(tokenizer)
    offered[:-1] = True  # special tokens too: infini-gram counts them
    return Suffixes(**arrays, offered=offered, starts=starts, docids=[]), docs


def cut_prefixes(index: Suffixes, docs: Sequence[Sequence[int]]) -> list[list[int]]:
    random = np.random.default_rng(SEED)
    begins = set(index.roots.token.tolist())
    found: list[list[int]] = []
    while len(found) < PREFIXES:
        doc = docs[random.integers(len(docs))]
        at = int(random.integers(len(doc))) if doc else 0
        n = int(random.integers(1, LONGEST + 1))
        if at + n <= len(doc) and doc[at] in begins:
            found.append(list(doc[at : at + n]))
    return found


def write_peer(docs: Sequence[Sequence[int]], folder: Path) -> None:
    """The corpus as infini-gram lays it out: a separator before each document."""
    separator = np.array([2**16 - 1], np.uint16)
    arrays = [np.r_[separator, np.array(d, np.uint16)] for d in docs]
    (folder / "tokenized.0").write_bytes(np.concatenate(arrays).tobytes())
    starts = np.cumsum([0, *(a.nbytes for a in arrays[:-1])], dtype=np.uint64)
    (folder / "offset.0").write_bytes(starts.tobytes())


def build_peer(folder: Path) -> None:
    """Its own suffix sort."""
    (folder / "table.0").unlink(missing_ok=True)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    subprocess.run(
        [sys.executable, "-m", "infini_gram.indexing", "--data_dir", str(folder), "--save_dir",
         str(folder), "--mem", "4", "--cpus", "1", "--ulimit", str(limit)],
        check=True, capture_output=True,
    )  # fmt: skip


def in_calls(look: Callable[[int, int], Children], size: int) -> list[Children]:
    return [look(at, min(at + size, PREFIXES)) for at in range(0, PREFIXES, size)]


def assert_same(ours: list[Children], theirs: list[dict]) -> None:
    """See above."""
    size = PREFIXES // len(ours)
    for call, part in enumerate(ours):
        ends = np.searchsorted(part.owner, np.arange(size + 1))
        counts = (part.right - part.left).tolist()
        tokens = part.token.tolist()
        for i in range(size):
            mine = dict(
                zip(tokens[ends[i] : ends[i + 1]], counts[ends[i] : ends[i + 1]], strict=True)
            )
            theirs_of = theirs[call * size + i]
            found = {t: r["cont_cnt"] for t, r in theirs_of["result_by_token_id"].items()}
            found = {t: n for t, n in found.items() if t < 2**16 - 1 and n}
            if theirs_of["approx"]:
                assert set(found) - {0} <= set(mine)
                continue
            ended = theirs_of["prompt_cnt"] - sum(mine.values())  # at the end of a passage
            if ended:
                found[0] = found.get(0, 0) - ended
            assert mine == {t: n for t, n in found.items() if n}, (call, i)


def main() -> None:
    """Print one JSON line per comparison."""
    try:
        from infini_gram.engine import InfiniGramEngine
    except ImportError:
        print(json.dumps({"benchmark": "suffixes", "skipped": "infini-gram is not installed"}))
        return
    index, docs = corpus_tokens()
    prefixes = cut_prefixes(index, docs)
    depths = np.array([len(p) for p in prefixes])
    n = len(index.tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_peer(docs, folder)
        build_peer(folder)
        peer = InfiniGramEngine(
            index_dir=str(folder), eos_token_id=0, vocab_size=2**16 - 1, token_dtype="u16",
            max_support=n,
        )  # fmt: skip

        def ask_peer(support: int = n) -> list[dict]:
            return [peer.ntd(prompt_ids=p, max_support=support) for p in prefixes]

        def look_up(a: int, b: int) -> Children:
            left, right = index.find_all(prefixes[a:b])
            return index.children(left, right, depths[a:b])

        left, right = index.find_all(prefixes)
        how = dict(unit="sets/s", aim=1.0, work=PREFIXES, check=assert_same)
        exact = how | {"peer": "infini-gram ntd", "theirs": ask_peer}
        compare("suffixes, next-token sets", ours=lambda: in_calls(look_up, CALL), **exact)
        compare(
            "suffixes, next-token sets", ours=lambda: in_calls(look_up, CALL), **how,
            peer=f"infini-gram ntd, support {SUPPORT}", theirs=lambda: ask_peer(SUPPORT),
        )  # fmt: skip
        compare(
            "suffixes, next-token sets, rows kept as in a walk", **exact,
            ours=lambda: in_calls(
                lambda a, b: index.children(left[a:b], right[a:b], depths[a:b]), CALL
            ),
        )  # fmt: skip
        compare(
            "suffixes, sorting", peer="infini-gram indexing", unit="tokens/s", aim=1.0, work=n,
            ours=lambda: divsufsort(index.tokens), theirs=lambda: build_peer(folder),
            check=lambda a, b: None, samples=3,
        )  # fmt: skip
        theirs = sum((folder / f"{f}.0").stat().st_size for f in ("tokenized", "table", "offset"))
    mine = [a.nbytes for a in (index.tokens, index.sa, index.doc_start, index.first, index.offered)]
    sizes = {"ours": round(sum(mine) / n, 2), "infini-gram": round(theirs / n, 2)}
    print(json.dumps({"tokens": n, "bytes_per_token": sizes}), file=sys.stderr)


if __name__ == "__main__":
    main()
