"""Awkward text for everyone's properties: empty, one token, right-to-left, combining, long."""

from pathlib import Path

import pyarrow as pa
from hypothesis import strategies as st

from stages.digest import digest
from stages.tables import table, write_table

AWKWARD = [
    "",
    " \t\n ",
    "a",
    "|",
    "A | B | C",
    "Pat Burrell is Right.",
    "Marie Curie, the physicist, was born in Warsaw and won the Nobel Prize in 1903.",
    "She was. He is his.",
    "東京は日本の首都です。人口は千三百万人です。",
    "القاهرة هي عاصمة مصر.",
    "ירושלים היא עיר בישראל.",
    "cafe\u0301 and nai\u0308ve e\u0301\u0301\u0301",
    "👩‍👩‍👧‍👦 is a family of 4.",
    "\u202eevil\u202c \u200bzero\u200bwidth\u00a0space",
    "STRASSE Straße İstanbul ﬁne",
    "x" * 3000,
    "the cat of the dog " * 150,
    "\x00\x07 control",
]

awkward = st.sampled_from(AWKWARD) | st.text(max_size=60)
passages = st.lists(st.tuples(awkward, awkward), max_size=6)  # (title, text)
# Documents of several awkward sentences and paragraphs.
long_text = st.lists(awkward, max_size=30).map(" ".join) | st.lists(awkward).map("\n\n".join)


def passages_table(*texts: str) -> pa.Table:
    """A passages table with one passage per text, d0#0, d1#0 ... titled t0, t1 ..."""
    return table(
        "passages",
        [
            {
                "docid": f"d{i}#0", "parent": f"d{i}", "seq": 0, "title": f"t{i}", "text": text,
                "start": 0, "end": len(text), "text_hash": digest(f"t{i}", text),
            }
            for i, text in enumerate(texts)
        ],
    )  # fmt: skip


def write_corpus(folder: Path, *texts: str) -> None:
    """A corpus of these passages, each of a document of its own, as ingest leaves it."""
    passages = passages_table(*texts)
    rows = [
        {"docid": d, "title": "", "text": t, "content_hash": digest(t), "dup_of": "",
         "locator": f"lines:{d}", "meta": "{}"}
        for d, t in zip(passages["parent"].to_pylist(), texts, strict=True)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_table(passages, folder, "passages")
    write_table(table("documents", rows), folder, "documents")
    write_table(table("qrels", []), folder, "qrels")
