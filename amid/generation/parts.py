"""The parts of evaluation sets that are decoded apart: the same ones on any number of devices."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

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
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
        ends = [len(order) * number // n for number in range(n + 1)]
        found += [Part(name, sorted(order[a:b])) for a, b in pairwise(ends)]
    return found


def rounds(of: Sequence[Part], n: int) -> Iterator[Sequence[Part]]:
    """Yields `n` parts at a time, in their order."""
    for start in range(0, len(of), n):
        yield of[start : start + n]
