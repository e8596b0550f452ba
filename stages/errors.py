"""The one exception that a user sees as a message instead of a traceback."""


class QuarryError(Exception):
    """Something outside the code is wrong. The text says what, where, and what to do."""
