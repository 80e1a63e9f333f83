"""A function run by several forked processes that are the ranks of one run."""

import multiprocessing
import os
import socket
import traceback

import lightning.fabric.utilities.rank_zero  # noqa: F401  # here, so that not each process imports it

from amid.distributed import ranks


def in_ranks(n, job, *given):
    """Returns what `job(*given)` returns on each of `n` ranks, an exception in its place where it raises one.

    The job is called in `ranks.together`; results are pickled.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    processes = [fork.Process(target=_rank, args=(queue, rank, n, port, job, given)) for rank in range(n)]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(n)]


def _rank(queue, rank, n, port, job, given):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    try:
        with ranks.together(gpus=False):
            result = job(*given)
            ranks.wait_for_all()
    except Exception as error:
        traceback.print_exc()
        result = error
    queue.put((rank, result))
