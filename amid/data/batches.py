"""The order of rows, and which of them make an optimiser step."""

import functools
import random
from collections.abc import Iterable, Iterator, Sequence

from torch.utils.data import Sampler


class Batches(Sampler[list[int]]):
    """Makes batches of rows in an order that depends on seed and epoch alone.

    Rows are shuffled, cut into pools of `POOL` batches, sorted by length within a pool, cut into
    batches, and the batches shuffled. Random rows are shuffled and cut into batches.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch; the last one may be smaller.
        seed: fixes the order together with the epoch; None keeps the rows' order, sorted by length.
        like_lengths: whether the rows of a batch are of like lengths, or random ones.
        begins_at: an epoch, and how many of its batches are left out; all others are whole.
    """

    POOL = 50

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int | None,
        like_lengths: bool = True,
        begins_at: tuple[int, int] = (0, 0),
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.like_lengths = like_lengths
        self.begins_at = begins_at
        self.epoch = 0
        self.sampler = self  # where Lightning looks for `set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of epoch `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # Made at the first batch: a resumed run chooses its epoch after it has called this.
        rows = list(range(len(self.lengths)))
        if self.seed is None:
            rows.sort(key=self.lengths.__getitem__)
            yield from (rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size))
            return
        rng = random.Random(f"{self.seed}-{self.epoch}")
        rng.shuffle(rows)
        batches: list[list[int]] = []
        pool_rows = self.POOL * self.batch_size
        for start in range(0, len(rows), pool_rows):
            pool = rows[start : start + pool_rows]
            if self.like_lengths:
                pool.sort(key=self.lengths.__getitem__)
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        rng.shuffle(batches)
        epoch, left_out = self.begins_at
        yield from batches[left_out if self.epoch == epoch else 0 :]


def endless(places: Iterable[int], n: int, key: str) -> list[int]:
    """Returns the numbers at `places` of an endless sequence of the numbers below `n`, turn after turn.

    Each turn has every number once, in an order of its own that follows from `key`.
    """
    turns = [divmod(place, n) for place in places]
    return [_order(n, f"{key}-{turn}")[index] for turn, index in turns]


@functools.lru_cache(maxsize=2)  # a batch may reach from one turn into the next
def _order(n: int, key: str) -> list[int]:
    """The numbers below `n`, in an order that follows from `key`."""
    return random.Random(key).sample(range(n), n)
