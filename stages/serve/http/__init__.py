"""serve http: the catalogue of ``serve`` behind a port, for programs and for people.

``python -m stages.serve http --port 8000`` opens the entries of params.yaml and answers
``POST /search``, ``POST /answer`` (server-sent events), ``/healthz``, ``/readyz``, ``/metrics``
and a page at ``/``. A request names an entry or an index of the catalogue, never a path.

Requests are batched continuously. One thread per local model runs ``Generator.stream`` for ever,
with an inbox that all requests share; one thread per index collects the searches of a few
milliseconds; each question's strategy is advanced on its own (``stages.asking``) as soon as what
it asked for is there.

Reading order: limits.py, problems.py (what goes wrong, as JSON), generation.py (the model's
thread), searching.py (the index's thread), corpus.py (passages and where they come from),
lookahead.py (an index that fetches ahead), catalogue.py (what can be named, opened and reopened),
driving.py (one question from its first effect to its end), metrics.py, loopback.py, guard.py (who
may ask, how much), app.py (the routes), page/ (the page), command.py (the command line).
"""
