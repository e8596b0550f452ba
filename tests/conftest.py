"""Property tests draw the same examples every time, and no time is a failure; who runs what."""

from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("quarry", deadline=None, derandomize=True)
settings.load_profile("quarry")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of the two processes of ``make test`` one has all flows, which share a server, and the other
    what there is besides, file by file."""
    from xdist.scheduler import LoadFileScheduling

    class FlowsTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "flows" if nodeid.startswith("tests/flows/") else super()._split_scope(nodeid)

    return FlowsTogether(config, log)
