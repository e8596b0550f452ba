"""Several processes that train one model together, as accelerate launch or torchrun start them.

Every process draws the same batch, computes the loss of its own share and adds up gradients with
the others: a step is that of one process, but for the order of float sums. Processes find each
other by the environment that their launcher sets (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:  # torch takes seconds, and a shell only asks for its rank
    from torch import Tensor

PATIENCE = timedelta(days=1)  # for a process that is still at work
T = TypeVar("T")


class Ranks(NamedTuple):
    """Which of how many processes this one is; the first, 0, writes what is written."""

    rank: int
    size: int

    def share(self, batch: Sequence[T]) -> Sequence[T]:
        """What of a batch this process computes; nothing, if it is smaller than they are many."""
        return batch[self.rank :: self.size]

    def add_up(self, tensors: Sequence["Tensor"]) -> None:
        """Each becomes its sum over all processes, in place: one message for all."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """The first process goes in and comes out before the others go in."""
        import torch.distributed as dist

        if self.rank > 0:
            dist.barrier()
        yield
        if self.rank == 0 and self.size > 1:
            dist.barrier()


ALONE = Ranks(0, 1)


def launched() -> Ranks:
    """What the launcher says; one process alone where there is none."""
    return Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextlib.contextmanager
def together() -> Iterator[Ranks]:
    """The processes, connected as long as the block lasts (gloo: CPUs)."""
    ranks = launched()
    if ranks.size == 1:
        yield ranks
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
