"""Which requests go together, and on which device: so that their clusters overlap.

Micro-batches: the request with the largest summed similarity to the rest, and its g - 1 nearest;
again with what is left. Devices: pairs of micro-batch and device by how many of the clusters that
the one needs the other has cached, most first, up to a quota.

The official scheduler multiplies a list of lists, so that all devices share one row; and it wants
the number of micro-batches to be a multiple of that of devices. Here every device has its own row,
and quotas are ceil(M / J).

No command starts several engines and routes between them: ``overlap`` and ``assign`` are for who
does, and are tested with simulated devices.

Lin et al., TeleRAG, arXiv:2502.20969, §3.6 and §3.7.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.clusters import Floats, Ints
from stages.errors import QuarryError

GROUP = 4


def arrival_batches(n: int, g: int = GROUP) -> list[list[int]]:
    """Requests 0 to n - 1 in the order they came, g at a time: what grouping is compared with."""
    return [list(range(at, min(n, at + g))) for at in range(0, n, g)]


def micro_batches(queries: Floats, g: int = GROUP) -> list[list[int]]:
    """Requests (n, d) in groups of at most g, each request in one group. O(n² d / g).

    Ties go to the request that came first. Equal queries stay together: where not all of them fit
    into a group the next nearest that do are taken, so a group may have fewer than g. More than g
    equal ones fill groups of their own.
    """
    units = _units(queries, g)
    vectors = queries[[u[0] for u in units]].astype(np.float64)
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    cosine = (vectors / lengths) @ (vectors / lengths).T
    sizes = np.array([len(u) for u in units])
    left = np.arange(len(units))
    groups = []
    while len(left):
        near = cosine[np.ix_(left, left)]
        # A unit's similarity to its own other members counts: they are requests like any other.
        summed = near @ sizes[left]
        seed = int(np.argmax(np.round(summed - 1, 9)))
        order = np.argsort(-np.round(near[seed], 9), kind="stable")
        order = np.concatenate([[seed], order[order != seed]])
        taken, room = [], g
        for i in order:
            if sizes[left[i]] <= room:
                taken.append(i)
                room -= sizes[left[i]]
        groups.append(sorted(r for i in taken for r in units[left[i]]))
        left = np.delete(left, taken)
    return groups


def _units(queries: Floats, g: int) -> list[list[int]]:
    """Equal requests together, at most g of them; by the first of each."""
    same: dict[bytes, list[int]] = {}
    for i, query in enumerate(np.ascontiguousarray(queries)):
        same.setdefault(query.tobytes(), []).append(i)
    units = [own[at : at + g] for own in same.values() for at in range(0, len(own), g)]
    return sorted(units)


def overlap(needed: Sequence[Ints], cached: npt.NDArray[np.bool_]) -> Ints:
    """(M, J) how many distinct clusters of micro-batch m device j has; ``cached`` (J, nlist)."""
    return np.array([cached[:, np.unique(own)].sum(1) for own in needed], dtype=np.int64).reshape(
        len(needed), len(cached)
    )


def assign(shared: Ints, quota: int | None = None) -> list[list[int]]:
    """The micro-batches of each device, from their overlaps (M, J); J lists, most overlap first.

    Ties: the micro-batch that came first, then the device of smaller number.

    Raises:
        QuarryError: the quotas have no room for all micro-batches.
    """
    m, j = shared.shape
    quota = -(-m // j) if quota is None else quota
    if quota * j < m:
        raise QuarryError(
            f"schedule: {m} micro-batches do not go on {j} devices with a quota of {quota}. Give "
            f"them a quota of {-(-m // j)}."
        )
    devices: list[list[int]] = [[] for _ in range(j)]
    batch, device = (a.ravel() for a in np.indices(shared.shape))
    todo = np.ones(m, dtype=bool)
    for i in np.lexsort((device, batch, -shared.ravel())):
        if todo[batch[i]] and len(devices[device[i]]) < quota:
            devices[device[i]].append(int(batch[i]))
            todo[batch[i]] = False
    return devices
