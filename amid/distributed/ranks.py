"""What the ranks of a run say to each other. With a single process, every function here does nothing."""

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from amid.errors import InputError, in_one_line

if TYPE_CHECKING:  # torch takes seconds to import
    import torch
    from torch import Tensor, nn

MEET_WITHIN = timedelta(minutes=5)
"""The longest that a rank waits for the others at the start."""

ANSWER_WITHIN = timedelta(minutes=30)
"""The longest that a rank waits for the others in a step, or where they exchange results."""

_LONGEST_PAUSE = 0.2
"""Seconds between two looks for a value of the first rank, at most."""

_BUCKET = 2**25
"""Bytes of gradients that are summed at once."""

T = TypeVar("T")


class LostContact(ConnectionError):
    """Another rank of the run has ended, or does not answer."""

    def __init__(self, said: str | None = None) -> None:  # with the text where it is unpickled
        super().__init__(
            said
            or f"rank {rank()} of {number()} has lost contact with another rank, which ended or did not "
            f"answer within {ANSWER_WITHIN}; the same command goes on from the last checkpoint"
        )


class _Place:
    """The place of this process among the ranks of its run."""

    rank = 0
    number = 1
    runs = 0
    """Runs that this process has been a rank of."""
    asked = 0
    """Values that this run has had from its first rank."""


def rank() -> int:
    """The number of this process among the processes of its run, from 0."""
    return _Place.rank


def number() -> int:
    """The number of processes of this run."""
    return _Place.number


def is_first() -> bool:
    """Whether this process writes the files of its run, and prints."""
    return rank() == 0


@contextlib.contextmanager
def together(gpus: bool) -> Iterator[None]:
    """Within the block this process is one of the ranks of a run.

    The environment has its RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them.

    Args:
        gpus: whether the ranks have GPUs; they then exchange tensors by NCCL, otherwise by gloo.

    Raises:
        InputError: if the ranks do not meet in time.
    """
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    dist = _dist()
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    _Place.runs, _Place.asked = _Place.runs + 1, 0
    if dist.is_initialized():  # by a run that failed
        dist.distributed_c10d._abort_process_group()
    me, all_of_us = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        store, *_ = next(iter(dist.rendezvous("env://", timeout=MEET_WITHIN)))
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=me, world_size=all_of_us, timeout=ANSWER_WITHIN)
        dist.barrier()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"rank {me} of {all_of_us} did not meet the others at MASTER_ADDR:MASTER_PORT={place} within "
            f"{MEET_WITHIN}: {str(error).strip().splitlines()[0]}; check the address, the port and a "
            "firewall, and that all ranks were started"
        ) from error
    before = getattr(rank_zero_only, "rank", 0)
    rank_zero_only.rank = _Place.rank = me  # type: ignore[attr-defined]
    _Place.number = all_of_us
    failed = True
    try:
        yield
        failed = False
    except Exception:
        if me == 0:
            with contextlib.suppress(RuntimeError):  # of a store that is gone: the others notice that
                _store().set(_key_of_failure(), "failed")
        raise
    finally:
        _Place.rank, _Place.number = 0, 1
        rank_zero_only.rank = before  # type: ignore[attr-defined]
        if not (failed and gpus):  # NCCL would wait for the others, which may be waiting for this rank
            dist.destroy_process_group()


def from_first(make: Callable[[], T]) -> T:
    """Returns what `make` returns on the first rank, on all ranks; raises there what it raises.

    The other ranks wait as long as it takes, such as for the lock of a file.
    """
    if number() == 1:
        return make()
    key = _next_key()
    made: list[Any] = [None, None]
    if is_first():
        try:
            made[0] = make()
        except Exception as error:
            made[1] = that_can_be_sent(error)
        _store().set(key, "made")
    else:
        _wait_for(key)
    with _contact():
        _dist().broadcast_object_list(made, 0)
    if made[1] is not None:
        if not is_first():
            made[1].of_first_rank = True
        raise made[1]
    result: T = made[0]
    return result


@contextlib.contextmanager
def first_in(block: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enters a context on the first rank alone, such as a lock; the others wait until it is entered."""
    if number() == 1:
        with block():
            yield
        return
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(block())

        from_first(enter)
        yield


def gathered(value: T) -> list[T]:
    """Returns the value of each rank, on all ranks."""
    if number() == 1:
        return [value]
    values: list[Any] = [None] * number()
    with _contact():
        _dist().all_gather_object(values, value)
    return values


def any_of(flags: Iterable[bool]) -> list[bool]:
    """Returns for each flag whether it is set on some rank."""
    flags = list(flags)
    if number() == 1:
        return flags
    return [any(of_ranks) for of_ranks in zip(*gathered(flags), strict=True)]


def totals(sums: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Returns the sums over the ranks in float32, by name: scalars, added in float64 on the CPU.

    A rank may lack a name: its sum is 0. The result is on the device of the first of its own tensors.
    """
    if number() == 1:
        return {name: value.float() for name, value in sums.items()}
    import torch

    of_ranks = gathered({name: float(value) for name, value in sums.items()})
    device = next((value.device for value in sums.values()), torch.device("cpu"))
    names = dict.fromkeys(name for of_rank in of_ranks for name in of_rank)
    return {
        name: torch.tensor(sum(of.get(name, 0.0) for of in of_ranks), dtype=torch.float32, device=device)
        for name in names
    }


def sum_gradients(parameters: Iterable["nn.Parameter"]) -> None:
    """Replaces each gradient by its sum over the ranks, the same on all of them to the last bit.

    A gradient that only some ranks have is 0 on the others. One that no rank has stays None.
    """
    if number() > 1:
        trained = [weight for weight in parameters if weight.requires_grad]
        gradients = summed([weight.grad for weight in trained], trained)
        for weight, gradient in zip(trained, gradients, strict=True):
            weight.grad = gradient


def summed(
    own: Sequence["Tensor | None"], of: Sequence["Tensor"], dtype: "torch.dtype | None" = None
) -> list["Tensor | None"]:
    """Returns the sums over the ranks of this rank's tensors, the same on all ranks to the last bit.

    Args:
        own: the tensors, which the sums replace; None for one that this rank has not. It stays None if no
            rank has it.
        of: for each one a tensor of its shape, and of its dtype if `dtype` is None.
        dtype: the dtype of all of them.
    """
    if number() == 1:
        return list(own)
    import torch

    somewhere = any_of(tensor is not None for tensor in own)
    sums = [
        torch.zeros_like(like, dtype=dtype) if known and tensor is None else tensor
        for tensor, like, known in zip(own, of, somewhere, strict=True)
    ]
    with _contact():
        for bucket in _buckets(tensor for tensor in sums if tensor is not None):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            _dist().all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
    return sums


def clip_gradients(parameters: Iterable["nn.Parameter"], largest: float) -> "Tensor":
    """Scales gradients down to the norm `largest` over all weights, spread ones too; returns their norm."""
    from torch import nn
    from torch.distributed.tensor import DTensor

    trained = list(parameters)
    norm = nn.utils.get_total_norm([weight.grad for weight in trained if weight.grad is not None])
    if isinstance(norm, DTensor):
        with exchanging():
            norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(trained, largest, norm)
    return norm


def same_weights(parameters: Iterable["Tensor"]) -> None:
    """Gives all ranks the weights of the first one."""
    if number() > 1:
        with _contact():
            for weight in parameters:
                _dist().broadcast(weight.data, 0)


def of_first(value: "Tensor", device: "torch.device") -> "Tensor":
    """Returns the first rank's tensor on `device`; on other ranks `value` gives its shape and type alone."""
    import torch

    found = value.to(device) if is_first() else torch.empty_like(value, device=device)
    if number() > 1:
        with _contact():
            _dist().broadcast(found, 0)
    return found


def wait_for_all() -> None:
    """Waits until all ranks are here."""
    if number() > 1:
        with _contact():
            _dist().barrier()


def _buckets(tensors: Iterable["Tensor"]) -> Iterator[list["Tensor"]]:
    """Yields tensors of one type and device together, up to `_BUCKET` bytes."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        other = bucket and (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
        if bucket and (other or size + tensor.nbytes > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


@contextlib.contextmanager
def _contact() -> Iterator[None]:
    """Turns the errors of a broken connection into `LostContact`."""
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL
        raise LostContact from error


@contextlib.contextmanager
def exchanging() -> Iterator[None]:
    """Turns errors of the exchange between ranks into `LostContact`, in a block that may raise others too."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, _dist().DistError) or "gloo/" in str(error):
            raise LostContact from error
        raise


def _dist() -> Any:
    import torch.distributed

    return torch.distributed


def _next_key() -> str:
    """Returns the key of the next value from the first rank: all ranks ask for the same values in turn.

    torchrun keeps the store of one run for the next.
    """
    _Place.asked += 1
    return f"amid-{_Place.runs}-{_Place.asked}"


def _key_of_failure() -> str:
    """Returns the key by which the first rank says that it has failed in this run."""
    return f"amid-{_Place.runs}-failed"


def _store() -> Any:
    return _dist().distributed_c10d._get_default_store()


def _wait_for(key: str) -> None:
    """Waits until a key is in the store; signals are heeded meanwhile.

    Raises:
        LostContact: if the first rank, which sets the key, has failed. torchrun's store outlives it.
    """
    pause = 0.001
    with _contact():
        while not _store().check([key]):
            failed = _store().check([_key_of_failure()])
            if failed and not _store().check([key]):  # a key that was set before the failure counts
                raise LostContact
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def that_can_be_sent(error: Exception) -> Exception:
    """Returns an error, or where it cannot be pickled an error with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of whatever an error holds
        return RuntimeError(in_one_line(error))
    return error
