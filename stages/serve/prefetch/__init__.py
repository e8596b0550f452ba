"""prefetch: clusters of an index are fetched while the language model generates (TeleRAG).

An inverted file larger than the fast memory lies cluster after cluster in a cold tier (index kind
``clustered``). A guess of the next query says which clusters it will probe; they are copied while
the model writes; a search then reads only what is missing. Results do not depend on the guess.

Reading order: plan.py (what to copy), hotness.py (what to keep), scan.py (faiss's kernel over
chosen lists), pages.py and tiers.py (disk and memory), hybrid.py (search over both), prefetcher.py
(the copying thread), version.py and engine.py (the ``Retriever`` that is told hints), budget.py
(how much to copy), schedule.py (which requests go together), searched.py (what a stage logs),
cuda.py (the other pair of tiers).

Lin et al., TeleRAG: Efficient Retrieval-Augmented Generation Inference with Lookahead Retrieval,
arXiv:2502.20969, MLSys 2026.
"""
