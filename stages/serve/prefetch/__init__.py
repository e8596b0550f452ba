"""prefetch: clusters of an index are fetched while the language model generates."""
