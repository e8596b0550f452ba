"""One file per way to serve a question: ``Params``, ``WRITES`` and ``strategy(...) -> Steps``."""
