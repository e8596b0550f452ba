"""Who computes what the record store lacks: this process, or the workers of a Ray cluster.

``engine`` of an entry says which; ``local`` where it says nothing. Both run the same function on
the same batches, only the stage's own process writes the store, and the store puts values in
their order by key: outputs are equal byte for byte, and no key or output holds the engine.

``ray`` is Ray Data: batches are blocks, mapped by a fixed pool of workers that each load their
model once. Ray bounds what is in flight, puts a killed worker's batch into the hands of another,
and gives batches back as they are done. The cluster is the one that ``RAY_ADDRESS`` names, else
one on this machine that lives as long as the stage. Workers elsewhere need this checkout and its
data under the same path, the same packages, and the same kind of processor (a vector's last bits).

Moritz et al., Ray: A Distributed Framework for Emerging AI Applications, OSDI 2018.
"""

import logging
import math
import os
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pyarrow as pa

from stages.errors import QuarryError
from stages.records import Apply, Batch, Compute, Engine, Made, apply_here

log = logging.getLogger(__name__)

STORE_BYTES = 200 * 2**20  # of shared memory, on a cluster of our own; what is over goes to disk
IN_FLIGHT = 2  # batches at a worker: one is computed, one waits
RECORDS = pa.schema({"key": pa.string(), "record": pa.list_(pa.large_string())})
VALUES = pa.schema({"key": pa.string(), "value": pa.large_binary(), "error": pa.string()})


def apply_on_ray(fn: Compute, batches: Iterator[Batch], *, cores: int) -> Iterator[Made]:
    """``fn`` on batches of records that are tuples of strings, in the order in which they end.

    ``fn`` travels to the workers: it should load what is heavy when it is first called.

    Raises:
        QuarryError: Ray is not installed; or what ``fn`` raised.
    """
    first = next(batches, None)
    if first is None:
        return
    ray = open_ray()
    blocks = [ray.put(_block(*batch)) for batch in chain([first], batches)]
    widest = max(int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"])
    cores = max(1, min(cores, widest))  # more than a machine has would wait for ever
    workers = min(len(blocks), max(1, math.floor(ray.cluster_resources()["CPU"]) // cores))
    log.info("ray: %d batches to %d workers of %d cores", len(blocks), workers, cores)
    made = ray.data.from_arrow_refs(blocks).map_batches(
        Worker, fn_constructor_args=(fn, os.getcwd()), batch_size=None, batch_format="pyarrow",
        zero_copy_batch=True, num_cpus=cores,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=IN_FLIGHT),
    )  # fmt: skip
    for block in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        if error := block["error"][0].as_py():
            raise QuarryError(error)
        yield block["key"].to_pylist(), block["value"].to_pylist()


ENGINES: dict[Engine, Apply] = {"local": apply_here, "ray": apply_on_ray}


class Worker:
    """One process of the pool; it keeps ``fn`` and what that has loaded."""

    def __init__(self, fn: Compute, folder: str) -> None:
        self.fn = fn
        os.chdir(folder)  # where the stage runs: paths of models are relative

    def __call__(self, block: pa.Table) -> pa.Table:
        """A batch in, its values out; an error for the user as text, for Ray replaces it."""
        keys = block["key"].to_pylist()
        try:
            values = self.fn([tuple(record) for record in block["record"].to_pylist()])
        except QuarryError as e:
            return pa.table([keys, [None] * len(keys), [str(e)] * len(keys)], VALUES)
        return pa.table([keys, values, [None] * len(keys)], VALUES)


def _block(keys: list[str], records: list[Any]) -> pa.Table:
    return pa.table([keys, [list(record) for record in records]], RECORDS)


def open_ray(*, cores: int | None = None, store_bytes: int = STORE_BYTES) -> Any:
    """The module, connected to a cluster; one of our own has ``cores``, or all that are here.

    Without telemetry and dashboard, and workers are as nice as this process: 15 nicer, as Ray has
    it, they wait for everything else that runs here.

    Raises:
        QuarryError: Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
        import ray.data
    except ImportError as e:
        raise QuarryError(
            f"engine: ray needs the extra 'ray' ({e}): pip install -c constraints.txt -e '.[ray]'. "
            f"Or take engine: local."
        ) from None
    if not ray.is_initialized():
        own = {
            "num_cpus": cores or os.cpu_count(), "object_store_memory": store_bytes,
            "include_dashboard": False, "_node_ip_address": "127.0.0.1",
        }  # fmt: skip
        ray.init(logging_level="WARNING", **({} if "RAY_ADDRESS" in os.environ else own))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False  # the store shows its own
    return ray
