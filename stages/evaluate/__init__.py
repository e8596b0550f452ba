"""Evaluation: how good each system is, how sure that is, and what it costs.

Read in this order: ``ranking.py`` (nDCG, R, RR, AP, P, Success as in trec_eval),
``answering.py`` (EM, F1, item recall, support recall), ``rounds.py`` (support by round, how
questions ended), ``statistics.py`` (bootstrap intervals, paired tests, Holm), then the suites, each
with ``evaluate(collection, systems, ...)`` and its ``Params``:

- ``standard.py``  the named systems of a corpus on one split, against a baseline

``__main__.py`` is the shell: it reads the corpus, the runs of ``serve`` and ``fuse``, and
writes metrics, values per query, comparisons and the rows of the plots.
"""

SUITES = {"standard": "standard"}
