"""Spans of characters in a text that a model writes token by token."""

from collections.abc import Iterable

from stages.types import Span


def add_growth(spans: list[Span], before: str, after: str) -> None:
    """Append where ``after`` is longer than ``before``; to the last span, if that touches it.

    A character of several tokens shows as U+FFFD until its last one is there: it belongs to
    each of them.
    """
    start, end = len(before.rstrip("\ufffd")), len(after)
    if start >= end:
        return
    if spans and start <= spans[-1][1]:
        start = spans.pop()[0]
    spans.append((start, end))


def clip_spans(spans: Iterable[Span], start: int, end: int) -> tuple[Span, ...]:
    """What of the spans lies in text[start:end], as spans of that part."""
    clipped = ((max(a, start) - start, min(b, end) - start) for a, b in spans)
    return tuple((a, b) for a, b in clipped if a < b)
