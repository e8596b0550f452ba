"""An index that fetches clusters ahead: how a request uses it, and what its timeline shows.

``stages.serve.prefetch`` fetches clusters of an index larger than its fast memory while the
model writes. Here is only what the service needs of it: hints go to ``prefetch``, a request is
told to the engine at its beginning and end, and its copies are read from ``stats()``.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from stages.types import Retriever


@runtime_checkable
class Ahead(Retriever, Protocol):
    """``stages.serve.prefetch.engine.PrefetchEngine``, as far as it is used here."""

    def prefetch(self, query: str) -> None:
        """Start fetching what this guess of a query will need; never blocks, never raises."""
        ...

    def begin(self) -> Any:
        """A request begins."""
        ...

    def end_request(self) -> Any:
        """A request has ended."""
        ...

    def stats(self) -> Any:
        """Counts, and the copies that were made."""
        ...

    def close(self) -> None:
        """End its threads, free its memory."""
        ...


def open_ahead(index: Path, encoder: Path | None, **how: Any) -> Ahead:
    """The engine over an index of kind ``clustered``."""
    from stages.serve.prefetch.engine import open_engine

    return open_engine(index, encoder, **how)
