"""serve http: the catalogue of ``serve`` behind a port, for programs and for people.

``python -m stages.serve http --port 8000`` opens the entries of params.yaml and answers
``POST /search``, ``POST /answer`` (server-sent events), ``/healthz``, ``/readyz``, ``/metrics``
and a page at ``/``. A request names an entry or an index of the catalogue, never a path.

Requests are batched continuously. One thread per local model runs ``Generator.stream`` for ever,
with an inbox that all requests share; one thread per index takes all searches that wait together
(those of a small index in memory are made in the event loop); each question's strategy is advanced
on its own (``stages.asking``) as soon as what it asked for is there.

Reading order: limits.py, problems.py (what goes wrong, as JSON), generation.py (the model's
thread), upstream.py (a remote model's connections), searching.py (the index's thread), corpus.py
(passages and where they come from), lookahead.py (an index that fetches ahead), catalogue.py (what
can be named, opened and reopened), replay.py (two runs of one question that differ in time alone),
driving.py (one question from its first effect to its end), metrics.py, loopback.py, guard.py (who
may ask, how much), direct.py (what is asked most), app.py (the routes), page/ (the page), wire.py
(HTTP), command.py (the command line).
"""
