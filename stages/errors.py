"""The exceptions that a user sees as a message instead of a traceback."""


class QuarryError(Exception):
    """Something outside the code is wrong. The text says what, where, and what to do."""


class Refused(QuarryError):
    """A model's server will not answer this one request, however often it is asked; others, it may.

    A prompt longer than its context, say. A stream gives it in place of a generation, and the
    loop engine throws it into the question that asked.
    """
