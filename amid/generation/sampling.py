"""Answers of a model to prompts: batched decoding. Samples depend on the seed and the prompt only."""

import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from amid.errors import InputError
from amid.generation.decoding import Batch, MixedBatch, Row, holds_keys_and_values, left_padded, padding_mask
from amid.scoring.answers import Answer

log = logging.getLogger(__name__)


def report_nothing(answers: int) -> None:
    """Does nothing with the number of finished answers."""


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
    """Sampling of answers by transformers.

    Args:
        max_new_tokens: tokens of an answer at most.
        seeds: the sampling seeds; each gives one set of answers.
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
        if not isinstance(self.seeds, Sequence) or isinstance(self.seeds, str):
            raise InputError(
                f"generation.seeds={self.seeds} must be a list, such as generation.seeds=[{self.seeds}]"
            )
        if not self.seeds:
            raise InputError("generation.seeds=[] is empty; give at least one, such as [10]")
        if any(type(seed) is not int or seed < 0 for seed in self.seeds):  # True is an int
            raise InputError(f"generation.seeds={list(self.seeds)} must be whole numbers, from 0")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"generation.seeds={list(self.seeds)} has a seed twice, whose answers are the same; "
                "give different ones, or generation.samples for several answers with each"
            )
        if self.temperature < 0 or (self.temperature == 0 and self.samples > 1):
            raise InputError(
                f"generation.temperature={self.temperature} with generation.samples={self.samples}: use a "
                "temperature above 0, or 0 (greedy) with one sample"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"generation.top_p={self.top_p} must be in (0, 1]")

    def check_installed(self) -> None:
        """Raises InputError if the package that draws the answers is not installed."""

    def answers(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        samples: int | None = None,
    ) -> list[list[Answer]]:
        """Draws `samples` answers (default: the settings' number) to each prompt, in the prompts' order.

        The answers are the sequences of `token_ids` with the tokenizer's vocabulary, as text.
        """
        if not holds_keys_and_values(model):
            drawn = self.token_ids(model, tokenizer, prompts, seed, samples, len(tokenizer))
            return [[as_answer(ids, tokenizer, None) for ids in row] for row in drawn]
        names = streams(prompts, seed, samples or self.samples)
        return self._noted_answers(model, tokenizer, prompts, names)

    def answers_to_sets(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sets: Mapping[str, Sequence[Sequence[int]]],
        finished: Callable[[int], None] = report_nothing,
    ) -> Iterator[tuple[str, int, list[list[Answer]]]]:
        """Yields a set's name, a seed, and the answers to the set's prompts, for every set and every seed.

        The answers equal the answers of `answers`. All seeds of a set are drawn together: the model reads
        each prompt once for all its answers. `finished` is called with the number of answers that have ended
        since its last call.
        """
        if not holds_keys_and_values(model):
            for name, prompts in sets.items():
                for seed in self.seeds:
                    of_seed = self.answers(model, tokenizer, prompts, seed)
                    finished(len(prompts) * self.samples)
                    yield name, seed, of_seed
            return
        for name, prompts in sets.items():
            of_seeds = zip(*(streams(prompts, seed, self.samples) for seed in self.seeds), strict=True)
            names = [list(chain(*of_prompt)) for of_prompt in of_seeds]
            drawn = self._noted_answers(model, tokenizer, prompts, names, finished)
            for i, seed in enumerate(self.seeds):
                yield name, seed, [row[i * self.samples : (i + 1) * self.samples] for row in drawn]

    def _noted_answers(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        names: Iterable[Sequence[str]],
        finished: Callable[[int], None] = report_nothing,
    ) -> list[list[Answer]]:
        """Returns answers with log-probabilities; `names` holds the names of random numbers, by prompt."""
        check_prompts(prompts)
        with _as_is(model):
            batch = Batch(model, len(tokenizer), log_probs=True)
            rows = self._decode(batch, tokenizer, prompts, names, finished)
        return [
            [as_answer(row.tokens, tokenizer, [note[0] for note in row.notes]) for row in of_prompt]
            for of_prompt in rows
        ]

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

        Each answer has its own random numbers, one per token. They follow from the seed, the prompt's tokens,
        the number of the prompt among equal prompts, and the number of the sample. So an answer does not
        depend on `batch_size`, on the other prompts, on their order, or on the number of samples. A larger
        `max_new_tokens` only makes a cut answer longer.

        This holds up to rounding, because matrix products of other shapes round differently. A token can
        change if its random number lies within the rounding error of the border between two tokens, and then
        the rest of the answer changes too. That happens about once in a million tokens in float32, and more
        often in bfloat16. The same call on the same machine gives the same answers if the model's own
        arithmetic is deterministic. Probabilities are rounded to multiples of 2^-30.

        The global random state is neither used nor changed, and the model stays in its mode. If a model's
        cache holds more than keys and values, `model.generate` runs it, with a warning; there the samples
        depend on the batch as well.

        Raises:
            InputError: if a prompt is empty.
            FloatingPointError: if no token can be drawn from a row of the model's logits, such as NaN.
        """
        check_prompts(prompts)
        with _as_is(model):
            if holds_keys_and_values(model):
                names = streams(prompts, seed, samples or self.samples)
                rows = self._decode(Batch(model, vocabulary), tokenizer, prompts, names)
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
        """Draws an answer to each prompt, each token from q̃ = a p + (1-a) q, a = `teacher_share`.

        This is MiniLLM's teacher-mixed sampling (arXiv 2306.08543). Both models see the tokens drawn so far.
        Ids beyond the tokenizer's vocabulary have no probability in either model. The random numbers are made
        as in `token_ids`.

        Raises:
            InputError: if `teacher_share` is not in [0, 1], a setting changes the models' distributions
                (temperature, top_p, top_k, no_repeat_ngram_size), a model's cache holds more than keys and
                values, or a prompt is empty.
            FloatingPointError: if no token can be drawn from a row of a model's logits, such as NaN.
        """
        check_prompts(prompts)
        if not 0 <= teacher_share <= 1:
            raise InputError(f"teacher_share={teacher_share} must be in [0, 1]; published: 0.2")
        for name, plain in (("temperature", 1), ("top_p", 1), ("top_k", 0), ("no_repeat_ngram_size", 0)):
            if getattr(self, name) != plain:
                raise InputError(
                    f"generation.{name}={getattr(self, name)} must be {plain} where models are mixed"
                )
        for model in (student, teacher):
            if not holds_keys_and_values(model):
                raise InputError(
                    f"{type(model).__name__} cannot be mixed: its cache cannot be divided by rows"
                )
        with _as_is(student), _as_is(teacher):
            batch = MixedBatch(student, teacher, teacher_share, len(tokenizer))
            rows = self._decode(batch, tokenizer, prompts, streams(prompts, seed, samples=1))
        return [MixedAnswer(row.tokens, *torch.tensor(row.notes).T.unbind()) for (row,) in rows]

    def _decode(
        self,
        batch: Batch | MixedBatch,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        names: Iterable[Sequence[str]],
        finished: Callable[[int], None] = report_nothing,
    ) -> list[list[Row]]:
        """Draws an answer for each of the `names` of random numbers of a prompt, as many for each prompt.

        The next prompts, short ones first, take the places of finished answers in the batch. The answers to a
        prompt begin together, if the batch has so many places, and share one prefill. Places are freed and
        filled a quarter of the batch at a time, since freeing and filling both copy the cache.
        """
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [
            [Row(tuple(prompt), name, self.max_new_tokens, self.no_repeat_ngram_size) for name in of_prompt]
            for prompt, of_prompt in zip(prompts, names, strict=True)
        ]
        waiting = deque(row for i in order for row in answers[i])
        together = min(len(answers[0]), self.batch_size) if answers else 1
        rows: list[Row] = []
        while waiting or rows:
            free = self.batch_size - len(rows)
            begin = min(free // together * together, len(waiting))
            if begin and 4 * free >= self.batch_size:
                new = [waiting.popleft() for _ in range(begin)]
                batch.join([row.prompt for row in new])
                rows += new
            tokens = self._draw(batch.logits, rows)
            ended = 0
            for row, token, note in zip(rows, tokens, batch.notes(tokens), strict=True):
                if not row.done:
                    row.add(token, tokenizer.eos_token_id)
                    row.notes.append(note)
                    ended += row.done
            if ended:
                finished(ended)
            live = [i for i, row in enumerate(rows) if not row.done]
            if 4 * len(live) <= 3 * len(rows):
                batch.keep(live)
                rows = [rows[i] for i in live]
            if rows:
                batch.step([None if row.done else row.tokens[-1] for row in rows])
        return answers

    def _draw(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        """Draws the next token of each row from `logits` [rows, V]."""
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
        """Returns the warpers of the settings, in the order of transformers."""
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
                ids, lengths = left_padded([prompts[i] for i in chosen], tokenizer.pad_token_id, model.device)
                mask = padding_mask(lengths, ids.shape[1]).long()
                output = generate(input_ids=ids, attention_mask=mask, generation_config=config)
                for row, new in enumerate(output[:, ids.shape[1] :].tolist()):
                    answers[chosen[row // samples]].append(new)
        return answers


def streams(prompts: Sequence[Sequence[int]], seed: int, samples: int) -> Iterator[list[str]]:
    """Yields for each prompt the names of its answers' random numbers. A name is made of the seed, the
    prompt, the prompt's number among equal prompts, and the sample's number."""
    seen: Counter[tuple[int, ...]] = Counter()
    for prompt in prompts:
        key = tuple(prompt)
        text = " ".join(map(str, key))
        yield [f"{seed} {seen[key]} {sample} {text}" for sample in range(samples)]
        seen[key] += 1


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


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Raises InputError where a prompt has no token."""
    if not all(prompts):
        raise InputError(f"prompt {[len(p) for p in prompts].index(0)} has no token; give it at least one")


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


def as_answer(ids: list[int], tokenizer: PreTrainedTokenizerBase, log_probs: list[float] | None) -> Answer:
    """The answer of these token ids, EOS included where it ended."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    return Answer(text.strip(), len(ids), tokenizer.eos_token_id in ids, log_probs)
