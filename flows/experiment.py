"""A build with other values: in a worktree of its own, kept as an experiment of DVC.

``.quarry/experiment`` has the files of the user's last commit, with the overrides of this run in
its ``params.yaml``, and shares the checkout's cache, record store and sources: what the overrides
do not reach is ``Unchanged``. Nothing of the checkout is touched. What was built is one more
experiment on that commit: ``dvc exp show`` lists it, ``dvc exp apply`` brings it into the checkout.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flows import dvc
from flows.sources import find_sources, reach_outside, refresh
from flows.worktree import alone, at_commit, inside
from stages import params
from stages.errors import QuarryError

PLACE = Path(".quarry/experiment")
LOCK = Path(".quarry/experiment.lock")


@contextlib.contextmanager
def overridden(root: Path, overrides: Sequence[str]) -> Iterator[Path]:
    """The block works in the worktree, under these values.

    Raises:
        QuarryError: an override is not what ``dvc exp run -S`` takes, or another such build is
            under way.
    """
    with alone(root, "a build with overrides", LOCK):
        entries = params.entries("ingest")
        sources = find_sources(root, entries, {})
        folder = at_commit(root, PLACE, keep=list(sources))
        for path, source in sources.items():
            refresh(source, folder / path, root=folder)
        reach_outside(root, folder, entries)
        with inside(folder, root):
            dvc.override(overrides)
            with contextlib.suppress(QuarryError):  # what is not in the cache is made again
                dvc.checkout(folder)
            yield folder


def keep(folder: Path, run: str, stages: Iterable[str]) -> str:
    """Make what was built, these stages, an experiment named after the flow run; its name."""
    name = re.sub(r"[^\w-]+", "-", run).strip("-")
    dvc.save_experiment(folder, name, stages)
    return name
