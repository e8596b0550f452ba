"""What one request may ask for, and how many may ask at once."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Defaults suit one machine; the command line changes the ones that depend on it."""

    body_bytes: int = 65_536  # 413 beyond
    body_seconds: float = 10.0  # for the body to arrive; 408 beyond
    query_chars: int = 4_000  # 422 beyond, as the next four
    k: int = 1_000  # hits of a search
    max_tokens: int = 512  # of a generation, where a request sets it
    options: int = 32  # among which an answer is chosen
    option_chars: int = 1_000
    searches: int = 64  # in flight; 429 beyond
    answers: int = 32  # in flight; 429 beyond
    search_seconds: float = 10.0  # 504 beyond
    answer_seconds: float = 120.0  # 504 beyond, or an error event once the answer has begun
    connections: int = 608  # open at once, idle ones with them; 503 beyond
    retry_seconds: int = 1  # what a 429, and this 503, says in Retry-After
