"""Rank fusion: several runs over the same questions become one.

Read in this order: ``scores.py`` (the columns all rules share: which hits are of the same
document, adding up, normalising), then one file per rule, each with
``fuse(runs, ...) -> run`` and its ``Params``:

- ``rrf.py``      ranks alone, weighted or not; needs no comparable scores
- ``combsum.py``  the sum of normalised scores
- ``combmnz.py``  the same, times the number of runs that found the document

A run that an entry names is ``data/runs/<corpus>/<name>``; the result is
``data/fused/<corpus>/<entry>/runs.parquet``, with answers.parquet beside it: no answers, but
the questions asked and what they cost in all runs together (``costs.py``). ``__main__.py`` is
the shell.
"""

RULES = {"rrf": "rrf", "combsum": "combsum", "combmnz": "combmnz"}
