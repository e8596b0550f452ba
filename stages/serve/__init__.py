"""serve: questions in; what a retrieval system found, what it answered, and how, out.

Reads ``data/ingest/<corpus>``, an index, a generator; writes ``data/runs/<corpus>/<entry>``:
runs.parquet (ranked documents), answers.parquet (answer, passages shown, what it cost),
effects.parquet (everything that was asked of a model or an index) and stats.json (counts).
Every strategy is straight-line code for one question; the loop engine (``stages.loop``, a
kernel) batches the questions, caches, keeps budgets, and resumes a killed run.

Reading order: asked.py (what every entry says, which questions it takes, what a strategy may
look up), strategies/search.py (retrieve only), strategies/rag.py (retrieve and answer),
written.py (tables and counts from what the engine gives), __main__.py (the shell).
"""

STRATEGIES = {"search": "strategies.search", "rag": "strategies.rag"}
