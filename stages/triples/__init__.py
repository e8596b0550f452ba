"""triples: facts as (subject, relation, object), read out of passages.

Reads ``data/ingest/<corpus>``, writes ``data/triples/<entry>``: triples.parquet (docid is the
passage, seq its n-th fact, text_hash what was read), stats.json (counts, with a reason for
everything dropped) and, where a model wrote them, raw.jsonl (its texts as they came).
Every subject and object occurs in its passage's text or title; a passage without facts has no
rows. What was read from a passage is kept by content: an unchanged passage is not read again.

Reading order: found.py (what extractors share), parse.py (rules on a dependency parse),
llm.py (a language model shown one demonstration), given.py (facts that the corpus brings),
__main__.py (the shell).
"""

EXTRACTORS = {"parse": "parse", "llm": "llm", "given": "given"}
