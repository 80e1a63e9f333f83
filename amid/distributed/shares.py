"""The shares of the ranks in work that is done together."""

from collections.abc import Iterable


def shares(sizes: Iterable[int], n: int) -> list[list[int]]:
    """Shares out items of these sizes among `n` ranks, with sums as equal as a simple rule makes them.

    The largest item comes first, each to the rank with the least so far. Each rank keeps the
    order of its items.

    Returns:
        The numbers of the items of each rank.
    """
    given = list(sizes)
    found: list[list[int]] = [[] for _ in range(n)]
    loads = [0] * n
    for item in sorted(range(len(given)), key=lambda item: -given[item]):
        least = min(range(n), key=lambda of: (loads[of], len(found[of])))
        found[least].append(item)
        loads[least] += given[item]
    return [sorted(items) for items in found]
