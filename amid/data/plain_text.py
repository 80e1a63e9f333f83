"""Plain text for a language-model loss: documents, packed into sequences of full length."""

from collections.abc import Callable, Iterator, Sequence

_AT_ONCE = 1000
"""Documents that are tokenised at once."""


def packed(
    documents: Sequence[str], encode: Callable[[Sequence[str]], list[list[int]]], eos: int, length: int
) -> Iterator[list[int]]:
    """The token ids of all documents, one after the other with EOS after each, in pieces of `length` tokens.

    The last piece may be shorter; it is left out where it is a single token, from which nothing is predicted.
    """
    rest: list[int] = []
    for start in range(0, len(documents), _AT_ONCE):
        for ids in encode(documents[start : start + _AT_ONCE]):
            rest += [*ids, eos]
        whole = len(rest) // length * length
        yield from (rest[i : i + length] for i in range(0, whole, length))
        rest = rest[whole:]
    if len(rest) > 1:
        yield rest
