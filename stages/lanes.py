"""Work side by side in threads, each with one torch thread.

A pass of two torch threads waits for the slower one at every product; two passes of one thread
each do not wait. And what a pass of one thread computes does not depend on how many there are.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def open_lanes(n: int, name: str = "lane") -> ThreadPoolExecutor:
    """n threads, in which torch uses one each."""
    return ThreadPoolExecutor(n, name, initializer=_one_torch_thread)


_starting = threading.Lock()


def _one_torch_thread() -> None:
    """Torch on one thread in this thread, on as many as before in those that come later."""
    with _starting:
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # here, and where torch was not used yet
        passing = threading.Thread(target=torch.set_num_threads, args=(before,))
        passing.start()
        passing.join()
