"""One file per way to serve a question: ``Params``, ``TRACED`` and ``strategy(...) -> Steps``."""
