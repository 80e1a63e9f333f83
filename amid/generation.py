"""Answers of a model to prompts: batched decoding, whose samples depend on the seed and the prompt only."""

import contextlib
import hashlib
import inspect
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from amid.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text, its tokens (EOS included), and whether it ended with EOS."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class MixedAnswer:
    """An answer drawn from a mixture of teacher and student: its token ids, EOS included where it ended, and
    the log-probabilities of these tokens under the mixture q̃, the teacher p and the student q, [tokens] each.
    """

    tokens: list[int]
    log_mixed: Tensor
    log_teacher: Tensor
    log_student: Tensor


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Args:
        max_new_tokens: tokens of an answer at most.
        seeds: one set of answers is drawn for each.
        samples: answers to each prompt in each set.
        temperature: 0 for greedy decoding; then `samples` must be 1.
        top_p: in (0, 1]; 1 keeps all tokens.
        top_k: 0 keeps all tokens.
        no_repeat_ngram_size: no n-gram of this size occurs twice, the prompt included; 0 for no such rule.
        batch_size: answers drawn at once, at most.

    Raises:
        InputError: for a value outside its range.
    """

    max_new_tokens: int
    seeds: Sequence[int] = (10, 20, 30, 40, 50)
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram_size: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name, least in (
            ("max_new_tokens", 1),
            ("samples", 1),
            ("batch_size", 1),
            ("top_k", 0),
            ("no_repeat_ngram_size", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"generation.{name}={getattr(self, name)} must be at least {least}")
        if not self.seeds:
            raise InputError("generation.seeds=[] is empty; give at least one, such as [10]")
        if self.temperature < 0 or (self.temperature == 0 and self.samples > 1):
            raise InputError(
                f"generation.temperature={self.temperature} with generation.samples={self.samples}: use a "
                "temperature above 0, or 0 (greedy) with one sample"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"generation.top_p={self.top_p} must be in (0, 1]")

    def answers(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        samples: int | None = None,
    ) -> list[list[Answer]]:
        """`samples` answers (by default those of the settings) to each prompt, in the prompts' order.

        They are those of `token_ids`, as text.
        """
        drawn = self.token_ids(model, tokenizer, prompts, seed, samples)
        return [[_answer(ids, tokenizer) for ids in row] for row in drawn]

    def token_ids(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        samples: int | None = None,
        vocabulary: int | None = None,
    ) -> list[list[list[int]]]:
        """The token ids of `samples` answers to each prompt: EOS is the last, unless the answer was cut.

        Tokens from `vocabulary` on are never drawn: rows of a padded embedding, which stand for no token.

        Each answer has its own random numbers, one a token, made from the seed, the prompt's tokens, which
        of the equal prompts and which of its samples it is. So an answer does not depend on `batch_size`,
        on the other prompts, on their order, or on how many samples are drawn; a larger `max_new_tokens`
        only lets it go on. This holds up to rounding: matrix products of other shapes round otherwise,
        which can turn a token whose random number falls within that error of a border between two tokens,
        and with it the rest of the answer (in the order of once in a million tokens in float32, more often
        in bfloat16). The same call on the same machine gives the same answers as far as the model's own
        arithmetic does. Probabilities are rounded to multiples of 2^-30.

        The global random state is neither used nor changed, and the model is left in the mode it was in. A
        model whose cache holds more than keys and values is run by `model.generate`, with a warning;
        there the samples depend on the batch as well.

        Raises:
            InputError: if a prompt is empty.
            FloatingPointError: if the model gives a row of logits none of which can be drawn, such as NaN.
        """
        _check_prompts(prompts)
        with _as_is(model):
            if _holds_keys_and_values(model):
                batch, n = _Batch(model, vocabulary), samples or self.samples
                rows = self._decode(batch, tokenizer, prompts, seed, n)
                return [[row.tokens for row in of_prompt] for of_prompt in rows]
            drawn = self._generate(model, tokenizer, prompts, seed, samples or self.samples, vocabulary)
        return [[_cut(ids, tokenizer.eos_token_id) for ids in row] for row in drawn]

    def mixed(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        teacher_share: float = 0.2,
    ) -> list[MixedAnswer]:
        """An answer to each prompt, each token drawn from q̃ = a p + (1-a) q, a = `teacher_share`.

        MiniLLM's teacher-mixed sampling (arXiv 2306.08543). Both models see what was drawn so far; tokens
        beyond the tokenizer's have no probability in either. The random numbers are those of `token_ids`.

        Raises:
            InputError: if `teacher_share` is not in [0, 1], a setting changes the models' distributions
                (temperature, top_p, top_k, no_repeat_ngram_size), a model's cache holds more than keys and
                values, or a prompt is empty.
            FloatingPointError: if a model gives a row of logits none of which can be drawn, such as NaN.
        """
        _check_prompts(prompts)
        if not 0 <= teacher_share <= 1:
            raise InputError(f"teacher_share={teacher_share} must be in [0, 1]; published: 0.2")
        for name, plain in (("temperature", 1), ("top_p", 1), ("top_k", 0), ("no_repeat_ngram_size", 0)):
            if getattr(self, name) != plain:
                raise InputError(
                    f"generation.{name}={getattr(self, name)} must be {plain} where models are mixed"
                )
        for model in (student, teacher):
            if not _holds_keys_and_values(model):
                raise InputError(
                    f"{type(model).__name__} cannot be mixed: its cache cannot be divided by rows"
                )
        with _as_is(student), _as_is(teacher):
            batch = _MixedBatch(student, teacher, teacher_share, len(tokenizer))
            rows = self._decode(batch, tokenizer, prompts, seed, samples=1)
        return [MixedAnswer(row.tokens, *torch.tensor(row.notes).T.unbind()) for (row,) in rows]

    def _decode(
        self,
        batch: "_Batch | _MixedBatch",
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        samples: int,
    ) -> list[list["_Row"]]:
        """The answers: places of finished ones in the batch are given to the next prompts, short ones first.

        The samples of a prompt begin together, if the batch has so many places, and share one prefill.
        Places are freed and given anew a quarter of the batch at a time, since both copy the cache.
        """
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        seen: Counter[tuple[int, ...]] = Counter()
        answers: list[list[_Row]] = [[] for _ in prompts]
        for i, prompt in enumerate(prompts):
            key = tuple(prompt)
            for sample in range(samples):
                stream = f"{seed} {seen[key]} {sample} {' '.join(map(str, key))}"
                answers[i].append(_Row(key, stream, self.max_new_tokens, self.no_repeat_ngram_size))
            seen[key] += 1
        waiting = deque(row for i in order for row in answers[i])
        together = min(samples, self.batch_size)
        rows: list[_Row] = []
        while waiting or rows:
            free = self.batch_size - len(rows)
            begin = min(free // together * together, len(waiting))
            if begin and 4 * free >= self.batch_size:
                new = [waiting.popleft() for _ in range(begin)]
                batch.join([row.prompt for row in new])
                rows += new
            tokens = self._draw(batch.logits, rows)
            for row, token, note in zip(rows, tokens, batch.notes(tokens), strict=True):
                if not row.done:
                    row.add(token, tokenizer.eos_token_id)
                    row.notes.append(note)
            live = [i for i, row in enumerate(rows) if not row.done]
            if 4 * len(live) <= 3 * len(rows):
                batch.keep(live)
                rows = [rows[i] for i in live]
            if rows:
                batch.step([None if row.done else row.tokens[-1] for row in rows])
        return answers

    def _draw(self, logits: Tensor, rows: Sequence["_Row"]) -> list[int]:
        """The next token of each row, from `logits` [rows, V]."""
        scores = logits.float()
        banned = [(i, t) for i, row in enumerate(rows) for t in row.banned() if t < scores.shape[-1]]
        if banned:
            scores = scores.index_put(
                tuple(torch.tensor(banned, device=scores.device).T), scores.new_tensor(-torch.inf)
            )
        if self.temperature:
            for warper in self._warpers():
                scores = warper(None, scores)
            tokens = _inverse_cdf(scores, torch.tensor([row.bits() for row in rows], device=scores.device))
        else:
            tokens = scores.argmax(-1)
        drawn: list[int] = torch.where(scores.amax(-1).isfinite(), tokens, -1).tolist()
        if any(token < 0 and not row.done for token, row in zip(drawn, rows, strict=True)):
            raise FloatingPointError("generation: the model's logits are not finite, or no token is left")
        return drawn

    def _warpers(self) -> list[Any]:
        """In the order of transformers."""
        warpers: list[Any] = []
        if self.temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers

    def _generate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        samples: int,
        vocabulary: int | None,
    ) -> list[list[list[int]]]:
        """The tokens of each answer, by transformers, in fixed batches of prompts of similar length."""
        log.warning(
            "%s: its cache cannot be divided by rows; answers come from transformers' generate, and their "
            "samples depend on generation.batch_size too",
            type(model).__name__,
        )
        rows = int(model.config.vocab_size)
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            num_return_sequences=samples,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=list(range(vocabulary or rows, rows)) or None,
            **(
                {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
                if self.temperature
                else {}
            ),
        )
        generate: Any = model.generate
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        at_once = max(1, self.batch_size // samples)
        answers: list[list[list[int]]] = [[] for _ in prompts]
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(order), at_once):
                chosen = order[start : start + at_once]
                ids, lengths = _left_padded(
                    [prompts[i] for i in chosen], tokenizer.pad_token_id, model.device
                )
                mask = _mask(lengths, ids.shape[1]).long()
                output = generate(input_ids=ids, attention_mask=mask, generation_config=config)
                for row, new in enumerate(output[:, ids.shape[1] :].tolist()):
                    answers[chosen[row // samples]].append(new)
        return answers


class _Row:
    """An answer while it is decoded.

    Args:
        prompt: its token ids.
        stream: names its random numbers.
        max_new_tokens: tokens of the answer at most.
        ngram: size of the n-grams that may not occur twice, or 0.
    """

    def __init__(self, prompt: tuple[int, ...], stream: str, max_new_tokens: int, ngram: int) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.notes: list[tuple[float, ...]] = []
        self.done = False
        self._limit, self._ngram = max_new_tokens, ngram
        self._random = hashlib.shake_128(stream.encode()).digest(4 * max_new_tokens)
        self._followers: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self._recent: deque[int] = deque(maxlen=max(ngram, 1))
        if ngram:
            self._note(prompt)

    def add(self, token: int, eos: int | None) -> None:
        """Appends a token."""
        self.tokens.append(token)
        self.done = token == eos or len(self.tokens) == self._limit
        if self._ngram:
            self._note([token])

    def bits(self) -> int:
        """The 32 random bits of the next token."""
        at = 4 * len(self.tokens)
        return int.from_bytes(self._random[at : at + 4], "little")

    def banned(self) -> Iterable[int]:
        """The tokens that would complete an n-gram which occurred before."""
        if not self._ngram or self.done:
            return ()
        recent = tuple(self._recent)
        return self._followers.get(recent[len(recent) - self._ngram + 1 :], ())

    def _note(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._recent.append(token)
            if len(self._recent) == self._ngram:
                *context, last = self._recent
                self._followers[tuple(context)].add(last)


class _Batch:
    """Rows that a model decodes together: one cache for all, padded on the left to the longest row.

    Args:
        model: in eval mode.
        vocabulary: the logits are cut to the first so many; None for all.
    """

    logits: Tensor
    """Of the next token of each row: [rows, V]."""

    def __init__(self, model: PreTrainedModel, vocabulary: int | None = None) -> None:
        self._model: Any = model
        self._vocabulary = vocabulary
        self._accepted = inspect.signature(model.forward).parameters
        self._empty()

    def _empty(self) -> None:
        self._cache: DynamicCache | None = None
        self._lengths: list[int] = []
        self._width = 0

    def join(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Adds a row for each prompt; equal prompts are run once."""
        unique = list(dict.fromkeys(prompts))
        ids, lengths = _left_padded(unique, 0, self._model.device)
        cache = DynamicCache(config=self._model.config)
        logits = self._forward(ids, lengths, ids.shape[1], cache)
        if len(unique) < len(prompts):
            place = {prompt: i for i, prompt in enumerate(unique)}
            copies = torch.tensor([place[prompt] for prompt in prompts], device=logits.device)
            cache.batch_select_indices(copies)
            logits = logits[copies]
        width = max(self._width, ids.shape[1])
        if self._cache is None:
            self._cache, self.logits = cache, logits
        else:
            for layer, other in zip(self._cache.layers, cache.layers, strict=True):
                _join_layers(layer, other, width)
            self.logits = torch.cat([self.logits, logits])
        self._width = width
        self._lengths += [len(prompt) for prompt in prompts]

    def step(self, tokens: Sequence[int | None]) -> None:
        """Appends a token to each row; None to a row whose logits are of no more interest."""
        self._lengths = [
            1 if token is None else length + 1 for token, length in zip(tokens, self._lengths, strict=True)
        ]
        self._width += 1
        device = self._model.device
        ids = torch.tensor([[token or 0] for token in tokens], device=device)
        assert self._cache is not None
        self.logits = self._forward(ids, torch.tensor(self._lengths, device=device), self._width, self._cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these, and the positions that are padding in all that stay."""
        if not rows:
            self._empty()
            return
        assert self._cache is not None
        index = torch.tensor(rows, device=self.logits.device)
        self.logits = self.logits[index]
        self._lengths = [self._lengths[i] for i in rows]
        self._width = max(self._lengths)
        self._cache.batch_select_indices(index)
        for layer in self._cache.layers:
            _trim(layer, self._width)

    def _forward(self, ids: Tensor, lengths: Tensor, width: int, cache: DynamicCache) -> Tensor:
        """Runs `ids`, the last columns of rows `width` wide, and returns the last logits."""
        positions = torch.arange(width - ids.shape[1], width, device=ids.device) - (width - lengths[:, None])
        inputs = {
            "attention_mask": _mask(lengths, width).long(),
            "position_ids": positions.clamp(min=0),
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        known = {name: value for name, value in inputs.items() if name in self._accepted}
        logits: Tensor = self._model(input_ids=ids, **known).logits[:, -1, : self._vocabulary]
        return logits

    def notes(self, tokens: Sequence[int]) -> list[tuple[float, ...]]:
        """What is kept of the next token of each row besides the token: nothing."""
        return [()] * len(tokens)


class _MixedBatch:
    """Rows that two models decode together by the mixture of their distributions."""

    logits: Tensor
    """The logarithm of the mixture over the next token of each row: [rows, V]."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, teacher_share: float, vocabulary: int
    ) -> None:
        self._batches = (_Batch(teacher, vocabulary), _Batch(student, vocabulary))
        self._shares = torch.tensor([teacher_share, 1 - teacher_share]).log().tolist()
        self._parts: list[Tensor] = []

    def join(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """As `_Batch` does."""
        for batch in self._batches:
            batch.join(prompts)
        self._mix()

    def step(self, tokens: Sequence[int | None]) -> None:
        """As `_Batch` does."""
        for batch in self._batches:
            batch.step(tokens)
        self._mix()

    def keep(self, rows: Sequence[int]) -> None:
        """As `_Batch` does."""
        for batch in self._batches:
            batch.keep(rows)

    def notes(self, tokens: Sequence[int]) -> list[tuple[float, ...]]:
        """The log-probabilities of the next token of each row under mixture, teacher and student."""
        index = torch.tensor(tokens, device=self.logits.device).clamp(min=0).unsqueeze(1)
        columns = [part.gather(1, index) for part in (self.logits, *self._parts)]
        return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]

    def _mix(self) -> None:
        self._parts = [batch.logits.float().log_softmax(-1) for batch in self._batches]
        log_p, log_q = (part + share for part, share in zip(self._parts, self._shares, strict=True))
        self.logits = torch.logaddexp(log_p, log_q)


@contextlib.contextmanager
def _as_is(model: PreTrainedModel) -> Iterator[None]:
    """Runs a model in eval mode and without gradients, and leaves it in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    if not all(prompts):
        raise InputError(f"prompt {[len(p) for p in prompts].index(0)} has no token; give it at least one")


def _holds_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether the model's cache is keys and values only, so that rows can be taken out and put in."""
    layers = DynamicCache(config=model.config).layers
    return (
        "past_key_values" in inspect.signature(model.forward).parameters
        and bool(layers)
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    )


def _trim(layer: Any, width: int) -> None:
    """Keeps the last `width` positions of a layer's cache."""
    layer.keys, layer.values = layer.keys[:, :, -width:], layer.values[:, :, -width:]
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = width


def _join_layers(layer: Any, other: Any, width: int) -> None:
    """Adds the rows of `other` to `layer`, both padded on the left to `width` positions.

    A sliding layer holds the last positions only, as many as its window needs.
    """
    held = max(layer.keys.shape[-2], other.keys.shape[-2])
    for name in ("keys", "values"):
        parts = (getattr(layer, name), getattr(other, name))
        padded = [F.pad(part, (0, 0, held - part.shape[-2], 0)) for part in parts]
        setattr(layer, name, torch.cat(padded))
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = width


def _left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [rows, longest], and lengths [rows]."""
    lengths = [len(prompt) for prompt in prompts]
    ids = [[pad] * (max(lengths) - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(lengths, device=device)


def _mask(lengths: Tensor, width: int) -> Tensor:
    """True on the last `lengths` of `width` positions: [rows, width]."""
    return torch.arange(width, device=lengths.device) >= width - lengths[:, None]


def _inverse_cdf(scores: Tensor, bits: Tensor) -> Tensor:
    """The token of each row at which the cumulated softmax of `scores` [rows, V] exceeds bits / 2^32.

    `bits` [rows] are integers from 0 to 2^32 - 1. All sums are of integers, thus exact on every device.
    """
    shares = (scores.softmax(-1) * 2**30).round().long()
    sums = shares.cumsum(-1)
    return torch.searchsorted(sums, bits[:, None] * sums[:, -1:] >> 32, right=True).squeeze(-1)


def _cut(ids: list[int], eos: int | None) -> list[int]:
    """`ids` up to the first EOS; all of them where there is none."""
    return ids[: ids.index(eos) + 1] if eos is not None and eos in ids else ids


def _answer(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    return Answer(text.strip(), len(ids), tokenizer.eos_token_id in ids)
