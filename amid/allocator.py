"""How the C library hands freed memory back, which decides much of the speed of arithmetic on a CPU."""

import ctypes

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
