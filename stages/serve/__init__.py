"""serve: questions in; what a retrieval system found, what it answered, and how, out.

Reads ``data/ingest/<corpus>``, an index, a generator; writes ``data/runs/<corpus>/<entry>``:
runs.parquet (ranked documents), answers.parquet (answer, passages shown, what it cost),
effects.parquet (everything that was asked of a model or an index) and stats.json (counts).
Every strategy is straight-line code for one question; the loop engine (``stages.loop``, a
kernel) batches the questions, caches, keeps budgets, and resumes a killed run.

Reading order: asked.py (what every entry says, which questions it takes, what a strategy may
look up), strategies/search.py (retrieve only), reading.py (what strategies with a reader share),
strategies/rag.py (retrieve and answer), the loops beside it, traverse/ (a retriever that is the
generator itself, for strategies/freeson.py), written.py (tables and counts from
what the engine gives), __main__.py (the shell). ``python -m stages.serve http`` serves the entries
over HTTP (http/).
"""

STRATEGIES = {
    "search": "strategies.search",
    "rag": "strategies.rag",
    "hyde": "strategies.hyde",
    "subquestions": "strategies.subquestions",
    "iterative": "strategies.iterative",
    "iter_retgen": "strategies.iter_retgen",
    "flare": "strategies.flare",
    "self_rag": "strategies.self_rag",
    "ircot": "strategies.ircot",
    "kirag": "strategies.kirag",
    "adaptive_note": "strategies.adaptive_note",
    "rar2": "strategies.rar2",
    "rfm_rag": "strategies.rfm_rag",
    "freeson": "strategies.freeson",
}
