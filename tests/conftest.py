"""Property tests draw the same examples every time, and no time is a failure."""

from hypothesis import settings

settings.register_profile("quarry", deadline=None, derandomize=True)
settings.load_profile("quarry")
