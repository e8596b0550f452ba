"""Ingestion: any source becomes the same five tables.

Reads what an entry names (``source``, ``path``) and writes ``documents``, ``passages``,
``queries``, ``qrels`` and ``quarantine`` as Parquet, and ``stats.json``. Every row read is kept
or set aside with its reason; one bad row stops nothing. Text is made canonical in one place
(``stages.text``), ids are the source's own, and passages are spans of their document.

Reading order: ``source`` (what a source yields), ``beir`` (the plainest one; ``lines`` reads its
rows), then its siblings ``multihop``, ``jsonl``, ``parquet``, ``files`` (txt, md, html, pdf),
``semanlink``, ``fanoutqa`` (with ``statement``), ``fanoutqa_leaf`` and ``world`` (made by a seed
from ``world_words``); ``corpus`` (how the tables are made), ``chunk`` (passages), ``dedup``
(near-duplicates).
"""

# source in params.yaml -> file of this room
SOURCES = {
    "beir": "beir",
    "multihop": "multihop",
    "jsonl": "jsonl",
    "parquet": "parquet",
    "files": "files",
    "semanlink": "semanlink",
    "fanoutqa": "fanoutqa",
    "fanoutqa_leaf": "fanoutqa_leaf",
    "world": "world",
}
