"""Answers while they are decoded: their tokens so far, and the places of a batch that they share."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

Integers = NDArray[numpy.int64]


class Beginning(NamedTuple):
    """Answers that begin together: their prompt, their numbers, and the names of their random numbers."""

    prompt: tuple[int, ...]
    answers: Sequence[int]
    streams: Sequence[str]


class Rows:
    """Answers while they are decoded. Answers with equal tokens so far share a place of the batch.

    Args:
        answers: how many there are; they are numbered from 0.
        max_new_tokens: tokens of an answer at most.
        columns: values that are kept beside each token.
        ngram: size of the n-grams that may not occur twice, or 0.
    """

    def __init__(self, answers: int, max_new_tokens: int, columns: int, ngram: int) -> None:
        self.tokens = numpy.zeros((answers, max_new_tokens), numpy.int32)
        self.notes = numpy.zeros((answers, max_new_tokens, columns), numpy.float32)
        self.lengths: Integers = numpy.zeros(answers, numpy.int64)
        self.answers: Integers = numpy.zeros(0, numpy.int64)
        """The numbers of the answers that have begun and not ended: [R]."""
        self.places: Integers = numpy.zeros(0, numpy.int64)
        """The place of each of `answers`: [R]."""
        self.width = 0
        """Places of the batch, with the ones that no answer needs any more."""
        self._random = numpy.zeros((0, max_new_tokens), numpy.uint32)
        self._ngram = ngram
        self._seen: dict[int, _Seen] = {}

    @property
    def reserved(self) -> int:
        """The most places that the answers in the batch can come to need."""
        return len(self.answers) + self.width - len(numpy.unique(self.places))

    def begin(self, beginnings: Sequence[Beginning]) -> None:
        """Adds a place for each of `beginnings`, with its answers."""
        size = 4 * self._random.shape[1]
        random = [
            numpy.frombuffer(hashlib.shake_128(stream.encode()).digest(size), "<u4")
            for beginning in beginnings
            for stream in beginning.streams
        ]
        self._random = numpy.concatenate([self._random, *(row[None] for row in random)])
        for beginning in beginnings:
            self.answers = numpy.concatenate([self.answers, beginning.answers])
            self.places = numpy.concatenate([self.places, [self.width] * len(beginning.answers)])
            if self._ngram:
                self._seen[self.width] = _Seen(self._ngram, beginning.prompt)
            self.width += 1

    def bits(self) -> Integers:
        """Returns the 32 random bits of the next token of each of `answers`: [R]."""
        rows = numpy.arange(len(self.answers))
        return self._random[rows, self.lengths[self.answers]].astype(numpy.int64)

    def banned(self) -> list[tuple[int, int]]:
        """Returns the tokens that would complete an n-gram which occurred before, each after its place."""
        return [(place, token) for place, seen in self._seen.items() for token in seen.followers()]

    def add(self, tokens: Integers, notes: NDArray[numpy.float32], eos: int | None) -> int:
        """Appends a token and its notes to each of `answers`, and takes out the answers that end with it.

        Returns:
            How many have ended.
        """
        at = self.lengths[self.answers]
        self.tokens[self.answers, at] = tokens
        self.notes[self.answers, at] = notes
        self.lengths[self.answers] = at + 1
        live = at + 1 < self.tokens.shape[1]
        if eos is not None:
            live &= tokens != eos
        self.answers, self.places, self._random = self.answers[live], self.places[live], self._random[live]
        return int(len(live) - live.sum())

    def move(self) -> dict[int, int]:
        """Gives each of `answers` a place that it shares with the answers with the same last token.

        Returns:
            The places to copy the sequence of another place to, each with that other place. They are places
            that no answer needs any more, or new ones after the last.
        """
        last = self._last_tokens()
        parts, part_of = numpy.unique(self.places << 32 | last, return_inverse=True)
        sources, tokens = parts >> 32, parts & (2**32 - 1)
        stays = numpy.diff(sources, prepend=-1) > 0
        empty = numpy.setdiff1d(numpy.arange(self.width), sources)
        further = max(int((~stays).sum()) - len(empty), 0)
        targets = sources.copy()
        others = numpy.concatenate([empty, self.width + numpy.arange(further)])
        targets[~stays] = others[: (~stays).sum()]
        self.width += further
        self.places = targets[part_of]
        copies = {int(t): int(s) for t, s in zip(targets[~stays], sources[~stays], strict=True)}
        if self._ngram:
            seen = {int(t): self._seen[int(s)].copy() for t, s in zip(targets, sources, strict=True)}
            for target, token in zip(targets, tokens, strict=True):
                seen[int(target)].add(int(token))
            self._seen = seen
        return copies

    def keep(self) -> list[int]:
        """Numbers the places that answers need anew, in their order; returns their numbers before."""
        live, self.places = numpy.unique(self.places, return_inverse=True)
        self.width = len(live)
        kept: list[int] = live.tolist()
        if self._ngram:
            self._seen = {place: self._seen[before] for place, before in enumerate(kept)}
        return kept

    def next_tokens(self) -> list[int | None]:
        """Returns the last token at each place; None for a place that no answer needs any more."""
        tokens: list[int | None] = [None] * self.width
        for place, token in zip(self.places.tolist(), self._last_tokens().tolist(), strict=True):
            tokens[place] = token
        return tokens

    def _last_tokens(self) -> Integers:
        return self.tokens[self.answers, self.lengths[self.answers] - 1].astype(numpy.int64)


class _Seen:
    """The n-grams of a sequence of tokens."""

    def __init__(self, n: int, prompt: Sequence[int]) -> None:
        self._context = tuple(prompt[max(len(prompt) - n + 1, 0) :])
        self._n = n
        self._of_prompt: Mapping[tuple[int, ...], set[int]] = _followers(n, prompt)
        self._further: dict[tuple[int, ...], set[int]] = {}

    def copy(self) -> "_Seen":
        """Returns a copy that shares what does not change."""
        other = object.__new__(_Seen)
        other._context, other._n, other._of_prompt = self._context, self._n, self._of_prompt
        other._further = dict(self._further)
        return other

    def add(self, token: int) -> None:
        """Appends a token to the sequence."""
        if len(self._context) == self._n - 1:
            self._further[self._context] = self._further.get(self._context, set()) | {token}
        self._context = (*self._context, token)[-self._n + 1 :] if self._n > 1 else ()

    def followers(self) -> Iterable[int]:
        """Returns the tokens that would complete an n-gram of the sequence."""
        if len(self._context) < self._n - 1:
            return ()
        return self._of_prompt.get(self._context, set()) | self._further.get(self._context, set())


def _followers(n: int, tokens: Sequence[int]) -> dict[tuple[int, ...], set[int]]:
    found: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for end in range(n - 1, len(tokens)):
        found[tuple(tokens[end - n + 1 : end])].add(tokens[end])
    return dict(found)
