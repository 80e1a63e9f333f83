"""Which prompts are decoded together: the same ones on any number of devices."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from amid.distributed.shares import shares

BATCHES = 8
"""How many times the answers of a part fill the batch, about.

Small parts often leave places of the batch empty at their end. Large parts leave devices idle at the end.
"""


class Part(NamedTuple):
    """Prompts of a set that are decoded together."""

    of: str
    """The name of the set."""
    prompts: list[int]
    """The numbers of the prompts."""


def parts(sets: Mapping[str, Sequence[Sequence[int]]], each: int, batch_size: int) -> list[Part]:
    """Divides the prompts of each set into parts of about `BATCHES` batches, equal in size.

    Prompts of similar length are together, and equal prompts too, as far as the size of a part allows.

    Args:
        sets: token ids of the prompts, by the name of the set.
        each: the answers to a prompt.
        batch_size: the answers of a batch.
    """
    found = []
    for name, prompts in sets.items():
        n = max(1, round(len(prompts) * each / (BATCHES * batch_size)))
        order = _by_length(prompts)
        ends = [len(order) * number // n for number in range(n + 1)]
        found += [Part(name, sorted(order[a:b])) for a, b in pairwise(ends)]
    return found


def groups_of_ranks(
    prompts: Sequence[Sequence[int]], n: int, group_size: int | None
) -> list[list[list[int]]]:
    """The numbers of the prompts that each of `n` ranks decodes together, [ranks, groups, prompts].

    Groups of `group_size` prompts are the same for any `n`. If it is None, each rank has one group.
    """
    if group_size is None:
        return [[numbers] for numbers in shares(map(len, prompts), n)]
    order = _by_length(prompts)
    groups = [sorted(order[start : start + group_size]) for start in range(0, len(order), group_size)]
    of_ranks = shares((sum(len(prompts[i]) for i in group) for group in groups), n)
    return [[groups[number] for number in numbers] for numbers in of_ranks]


def _by_length(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The numbers of the prompts, short ones first, equal ones together."""
    return sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))


def rounds(of: Sequence[Part], n: int) -> Iterator[Sequence[Part]]:
    """Yields `n` parts at a time, in their order."""
    for start in range(0, len(of), n):
        yield of[start : start + n]
