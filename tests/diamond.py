"""Four stages for scratch projects: one, two that read it, one that reads both."""

DIAMOND = {
    "a": {"text": "A"},
    "b": {"reads": "a", "text": "B"},
    "c": {"reads": "a", "text": "C"},
    "d": {"reads": "b", "also": "c", "text": "D"},
}
