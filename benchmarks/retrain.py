"""What 1 % of changed documents cost a scheduled retraining, beside a build of everything.

In a clone of this checkout with a cache and a record store of its own, and a corpus in BEIR's
format as ``ingest.mine`` (``--corpus``; default: NPL's 11,429 abstracts where they lie beside this
checkout):

* the peer: ``python -m flows.build`` from nothing, every default stage and the corpus;
* a first retraining, which promotes that; then, the Prefect server being up, one that finds
  nothing to do, three times (asked for: 15 s);
* ours: documents of ``corpus.jsonl`` are drawn by seed, one in 300 each is edited, followed by a
  new one, or removed (none that a question has a judgement of); and the whole retraining of that,
  with gate and promotion, must end in production, computing only what is new.

About half an hour on 2 cores, once each: a build from nothing is not repeated.
"""

import argparse
import json
import math
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, scratch_clone
from stages.errors import QuarryError

NPL = ROOT.parent / "shared" / "data" / "npl"
MINE = re.compile(r"^  mine: \{source: .*$", re.MULTILINE)  # the first is that of ingest
ENTRY = "  mine: {source: beir, path: corpora/mine, chunk: {mode: none}, dedup: {mode: mark}}"
ONE_IN, SEED = 300, 13  # of each kind of edit: 1 % in all
FULL_SHARE, NOTHING = 0.1, 15.0  # asked for: of a full build; seconds


def call(*argv: str) -> tuple[float, str]:
    """Seconds and what was printed of a command that must succeed."""
    start = time.perf_counter()
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, file=sys.stderr, flush=True)
    if done.returncode:
        raise QuarryError(f"benchmark: {' '.join(argv)} failed; what it said is above.")
    return time.perf_counter() - start, done.stdout


def commit(message: str) -> None:
    """Everything, as the user of the clone."""
    call("git", "add", "--all")
    user = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    call("git", *user, "commit", "-qm", message)


def retrain(ending: str) -> tuple[float, str]:
    """One retraining that must end so."""
    seconds, said = call(sys.executable, "-m", "flows.retrain")
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"{ending}:"), last
    return seconds, said


def edit(folder: Path) -> dict[str, int]:
    """Change 1 % of a corpus; how many documents were drawn for what."""
    path = folder / "corpus.jsonl"
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    judged = {
        line.split("\t")[1]
        for qrels in (folder / "qrels").glob("*.tsv")
        for line in qrels.read_text(encoding="utf-8").splitlines()
    }
    rng, n = random.Random(SEED), math.ceil(len(rows) / ONE_IN)
    gone = set(rng.sample([i for i, row in enumerate(rows) if row["_id"] not in judged], n))
    drawn = rng.sample([i for i in range(len(rows)) if i not in gone], 2 * n)
    edited, copied = set(drawn[:n]), drawn[n:]
    kept = [
        row | {"text": f"{row['text']} It was edited."} if i in edited else row
        for i, row in enumerate(rows)
        if i not in gone
    ]
    new = [rows[i] | {"_id": f"new-{i}", "text": f"{rows[i]['text']} It is new."} for i in copied]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept + new)
    path.write_text(lines, encoding="utf-8")
    return {"documents": len(rows), "edited": n, "new": n, "gone": n}


def report(name: str, facts: dict[str, Any], ours: float, theirs: float, aim: float) -> None:
    """One JSON line."""
    line = {"benchmark": name, **facts, "unit": "s", "ours": round(ours, 1),
            "theirs": round(theirs, 1), "ratio": round(theirs / ours, 2), "aim": aim}  # fmt: skip
    print(json.dumps(line), flush=True)


def measure(corpus: Path) -> None:
    """In the clone that is the current folder."""
    shutil.copytree(corpus, "corpora/mine")
    text, found = MINE.subn(ENTRY, Path("params.yaml").read_text(encoding="utf-8"), count=1)
    assert found, "params.yaml has no ingest.mine"
    Path("params.yaml").write_text(text, encoding="utf-8")
    full, _ = call(sys.executable, "-m", "flows.build")
    commit("a corpus of one's own")

    from flows import ui

    with ui.serving() as url, ui.announced(url):
        first, _ = retrain("Promoted")
        print(json.dumps({"seconds of the first promotion": round(first, 1)}), file=sys.stderr)
        nothing = [retrain("NothingToDo")[0] for _ in range(3)]
        print(json.dumps({"seconds of nothing to do": nothing}), file=sys.stderr)
        facts: dict[str, Any] = edit(Path("corpora/mine"))
        seconds, said = retrain("Promoted")
        computed = re.findall(r"(\S+)' - \S+ stages\.records: (.*)", said)
        print(json.dumps(computed), file=sys.stderr)
        most = facts["edited"] + facts["new"]
        counts = [int(n) for _, line in computed for n in re.findall(r"(\d+) computed", line)]
        assert counts and max(counts) == most, (counts, most)
    asked = {"peer": "asked for"}
    report("retrain: nothing to do", asked, statistics.median(nothing), NOTHING, 1)
    peer = {"peer": "python -m flows.build, from nothing"}
    report("retrain: 1 % of a corpus", facts | peer, seconds, full, 1 / FULL_SHARE)


def main() -> None:
    """Print two JSON lines."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--corpus", type=Path, default=NPL, help="folder in BEIR's format")
    corpus = p.parse_args().corpus.resolve()
    if not (corpus / "corpus.jsonl").is_file():
        print(f"retrain: {corpus} has no corpus.jsonl; nothing measured", file=sys.stderr)
        return
    with scratch_clone():
        measure(corpus)


if __name__ == "__main__":
    main()
