"""The memory of the process: how freed memory is handed back, and how much was taken at most."""

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> None:
    """Lets this process keep the memory of freed tensors of up to 32 MiB for the next ones.

    By default glibc gives it back to the kernel, which then has to zero every page of it anew: with small
    models that takes up to half of a loss's time. No effect where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def lasting_imports() -> Iterator[None]:
    """Within the block, Python looks for no unused objects: importing torch makes a million that all stay.

    At the end of the first block in a process, Python is also kept from looking through them again and again:
    a run takes its first step after 4.8 s, and not after 5.5. Later blocks leave that out, because a model of
    an earlier run that nobody uses would stay as well.
    """
    collects, first = gc.isenabled(), not gc.get_freeze_count()
    if first:
        gc.collect()  # the configurations of a sweep's runs, which nobody uses, go
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        if collects:
            gc.enable()


def free_gpu_memory() -> None:
    """Frees what earlier runs of this process left on a GPU: their models, and memory held for new tensors.

    A finished trainer and its module refer to each other, so they stay until they are looked for.
    """
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def forget_peak_memory(device: "torch.device") -> None:
    """Resets the count of `peak_memory`, without freed memory that is kept; on a CPU this needs Linux."""
    if device.type == "cuda":
        import torch

        if torch.cuda.is_initialized():  # else it refuses, and there is nothing to forget
            torch.cuda.reset_peak_memory_stats(device)
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory(device: "torch.device") -> int:
    """Returns the peak memory of this process in bytes, on a GPU or in RAM, since `forget_peak_memory`."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
