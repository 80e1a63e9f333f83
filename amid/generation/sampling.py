"""Answers of a model to prompts: batched decoding. Samples depend on the seed and the prompt only."""

import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, cast

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from amid.config.ladders import Rung, rungs_of
from amid.distributed import ranks
from amid.errors import InputError
from amid.generation.decoding import Batch, MixedBatch, holds_keys_and_values, left_padded, padding_mask
from amid.generation.drawing import Warp, check_scores, draw
from amid.generation.parts import Part, groups_of_ranks, parts, rounds
from amid.generation.rows import Beginning, Integers, Rows
from amid.scoring.answers import Answer
from amid.settings import check_arguments, nodes
from amid.settings.together import check_sampling

log = logging.getLogger(__name__)

Texts = dict[tuple[int, ...], tuple[str, bool]]
"""The text of token ids, and whether it ended."""

T = TypeVar("T")
R = TypeVar("R")


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


class Drawn(NamedTuple):
    """A decoded answer: its tokens and their notes, the first `length` of which count."""

    tokens: NDArray[numpy.int32]
    notes: NDArray[numpy.float32]
    length: int

    @property
    def ids(self) -> list[int]:
        """The token ids."""
        ids: list[int] = self.tokens[: self.length].tolist()
        return ids


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
        temperatures: the evaluation sets are also answered at each of these, two or more; None for none.
            A value that equals `temperature` needs no further answers.
        top_ps: the evaluation sets are also answered at each of these top-p, two or more; None for none.
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
    temperatures: Sequence[float] | None = None
    top_ps: Sequence[float] | None = None
    no_repeat_ngram_size: int = 0
    batch_size: int = 64

    _settings: ClassVar[type[nodes.Sampling]] = nodes.Sampling

    def __post_init__(self) -> None:
        check_arguments("generation.", self._settings, vars(self))
        check_sampling(vars(self))

    @property
    def rungs(self) -> list[Rung]:
        """The rungs of the ladders that need answers of their own."""
        return [rung for rung in rungs_of(vars(self)) if rung.value != getattr(self, rung.ladder)]

    def at(self, rung: Rung | None) -> Self:
        """Returns the settings without ladders, at a rung or for None as they are."""
        changed: dict[str, Any] = {} if rung is None else {rung.ladder: rung.value}
        return replace(self, temperatures=None, top_ps=None, **changed)

    @property
    def _warp(self) -> Warp:
        return Warp(float(self.temperature), float(self.top_p), self.top_k)

    def check_installed(self) -> None:
        """Raises InputError if the package that draws the answers is not installed."""

    def answers(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        samples: int | None = None,
        group_size: int | None = None,
    ) -> list[list[Answer]]:
        """Draws `samples` answers (default: the settings' number) to each prompt, in the prompts' order.

        The answers are the sequences of `token_ids` with the tokenizer's vocabulary, as text.
        """
        if not holds_keys_and_values(model):
            drawn = self.token_ids(model, tokenizer, prompts, seed, samples, len(tokenizer))
            return [[as_answer(ids, tokenizer, None) for ids in row] for row in drawn]
        check_prompts(prompts)
        names = streams(prompts, seed, samples or self.samples)
        with _as_is(model):
            batch = Batch(model, len(tokenizer), log_probs=True)
            (rows,) = self._decode(batch, tokenizer, prompts, names, [self._warp], group_size)
        known: Texts = {}
        return [[_noted(drawn, tokenizer, known) for drawn in of_prompt] for of_prompt in rows]

    def answers_to_sets(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sets: Mapping[str, Sequence[Sequence[int]]],
        finished: Callable[[int], None] = report_nothing,
    ) -> Iterator[tuple[str, Rung | None, int, list[list[Answer]]]]:
        """Yields a set's name, a rung, a seed, and the answers to the set's prompts, for every set, rung and
        seed. The rung is None for the answers at the settings' own temperature and top-p.

        The answers equal the answers of `answers` (`at` the rung). All rungs and seeds of a prompt are drawn
        together: the model reads each prompt once for all its answers, and answers share the decoding of the
        tokens that they begin with. `finished` is called with the number of answers that have ended since its
        last call.
        """
        rungs = [None, *self.rungs]
        if not holds_keys_and_values(model):
            for name, prompts in sets.items():
                for rung, seed in product(rungs, self.seeds):
                    of_seed = self.at(rung).answers(model, tokenizer, prompts, seed)
                    finished(len(prompts) * self.samples)
                    yield name, rung, seed, of_seed
            return
        each = self.samples
        for name, rows in self._decode_sets(model, tokenizer, sets, rungs, finished):
            known: Texts = {}
            for number, rung in enumerate(rungs):
                answers = [[_noted(drawn, tokenizer, known) for drawn in of[number]] for of in rows]
                for i, seed in enumerate(self.seeds):
                    yield name, rung, seed, [of_prompt[i * each : (i + 1) * each] for of_prompt in answers]

    def _decode_sets(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sets: Mapping[str, Sequence[Sequence[int]]],
        rungs: Sequence[Rung | None],
        finished: Callable[[int], None],
    ) -> Iterator[tuple[str, list[list[list[Drawn]]]]]:
        """Yields each set's name with all answers to its prompts, [prompts, rungs, seeds * samples].

        Each rank of a run decodes a part of a set at a time. The parts are the same on any number of ranks,
        and no answer of one part changes the arithmetic of another. So the answers and their
        log-probabilities are equal, bit by bit.

        Raises:
            FloatingPointError: on all ranks, if no token can be drawn on one of them.
        """
        warps = [self.at(rung)._warp for rung in rungs]
        each = len(self.seeds) * self.samples
        names: dict[str, list[list[str]]] = {}
        for name, prompts in sets.items():
            check_prompts(prompts)
            of_seeds = zip(*(streams(prompts, seed, self.samples) for seed in self.seeds), strict=True)
            names[name] = [list(chain(*of_prompt)) for of_prompt in of_seeds]
        drawn: dict[str, dict[int, list[list[Drawn]]]] = {name: {} for name in sets}

        def decode(part: Part) -> list[list[list[Drawn]]]:
            given, streams = sets[part.of], names[part.of]
            prompts = [given[i] for i in part.prompts], [streams[i] for i in part.prompts]
            with _as_is(model):
                batch = Batch(model, len(tokenizer), log_probs=True)
                return self._decode_alone(batch, tokenizer, *prompts, warps, finished)

        waiting = deque(sets)
        for at_once in rounds(parts(sets, each * len(warps), self.batch_size), ranks.number()):
            for rank, (part, rows) in enumerate(zip(at_once, _on_each_rank(decode, at_once), strict=True)):
                drawn[part.of] |= zip(part.prompts, map(list, zip(*rows, strict=True)), strict=True)
                if rank != ranks.rank():
                    finished(len(part.prompts) * each * len(warps))
            while waiting and len(drawn[waiting[0]]) == len(sets[waiting[0]]):
                name = waiting.popleft()
                of_set, drawn[name] = drawn[name], {}
                yield name, [of_set[i] for i in range(len(of_set))]

    def token_ids(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        samples: int | None = None,
        vocabulary: int | None = None,
        group_size: int | None = None,
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
        arithmetic is deterministic. Probabilities are rounded to multiples of 2^-30. With `group_size`,
        so many prompts are decoded together on any number of devices: the answers are equal to the bit.

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
                batch = Batch(model, vocabulary)
                (rows,) = self._decode(batch, tokenizer, prompts, names, [self._warp], group_size)
                return [[row.ids for row in of_prompt] for of_prompt in rows]
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
        group_size: int | None = None,
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
            names = streams(prompts, seed, samples=1)
            (rows,) = self._decode(batch, tokenizer, prompts, names, [self._warp], group_size)
        return [MixedAnswer(row.ids, *torch.tensor(row.notes[: row.length]).T.unbind()) for (row,) in rows]

    def _decode(
        self,
        batch: Batch | MixedBatch,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        names: Iterable[Sequence[str]],
        warps: Sequence[Warp],
        group_size: int | None = None,
    ) -> list[list[list[Drawn]]]:
        """Draws an answer with each of `warps` and each of a prompt's `names`: [warps, prompts, names].

        The ranks of a run share the prompts out, and each gets all answers.

        Raises:
            FloatingPointError: on all ranks, if no token can be drawn on one of them.
        """
        names = list(names)

        def decode(mine: Sequence[Sequence[int]]) -> list[list[list[list[Drawn]]]]:
            of_groups = [([prompts[i] for i in group], [names[i] for i in group]) for group in mine]
            return [
                self._decode_alone(batch, tokenizer, *of_group, warps, report_nothing)
                for of_group in of_groups
            ]

        of_ranks = groups_of_ranks(prompts, ranks.number(), group_size)
        answers: list[list[list[Drawn]]] = [[[] for _ in prompts] for _ in warps]
        for groups, of_rank in zip(of_ranks, _on_each_rank(decode, of_ranks), strict=True):
            for numbers, of_group in zip(groups, of_rank, strict=True):
                for of_warp, rows in zip(answers, of_group, strict=True):
                    for i, row in zip(numbers, rows, strict=True):
                        of_warp[i] = row
        return answers

    def _decode_alone(
        self,
        batch: Batch | MixedBatch,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        names: Iterable[Sequence[str]],
        warps: Sequence[Warp],
        finished: Callable[[int], None],
    ) -> list[list[list[Drawn]]]:
        """Draws all answers in this process, see `_decode`.

        The answers to a prompt begin in one place of the batch, up to `batch_size` of them, and share one
        prefill. Answers stay in one place while their tokens are equal; then the place is copied. The next
        prompts, short ones first, take the places of finished answers. Places are freed and filled a quarter
        of the batch at a time, since freeing and filling both copy the cache.
        """
        names = list(names)
        each = len(names[0]) if names else 0
        waiting = deque(_beginnings(prompts, names, len(warps), self.batch_size))
        answers = len(warps) * len(prompts) * each
        rows = Rows(answers, self.max_new_tokens, batch.columns, self.no_repeat_ngram_size)
        while waiting or rows.width:
            new: list[Beginning] = []
            free = self.batch_size - rows.reserved
            enough = 4 * free >= self.batch_size
            while enough and waiting and len(waiting[0].answers) <= free:
                new.append(waiting.popleft())
                free -= len(new[-1].answers)
            if new:
                batch.join([beginning.prompt for beginning in new])
                rows.begin(new)
            if ended := self._draw(batch, rows, warps, rows.answers // (len(prompts) * each), tokenizer):
                finished(ended)
            if copies := rows.move():
                batch.fork(copies)
            if 4 * len(set(rows.places.tolist())) <= 3 * rows.width:
                batch.keep(rows.keep())
            if rows.width:
                batch.step(rows.next_tokens())
        drawn = map(Drawn, rows.tokens, rows.notes, rows.lengths.tolist())
        return [[list(islice(drawn, each)) for _ in prompts] for _ in warps]

    def _draw(
        self,
        batch: Batch | MixedBatch,
        rows: Rows,
        warps: Sequence[Warp],
        warp_of: Integers,
        tokenizer: PreTrainedTokenizerBase,
    ) -> int:
        """Draws the next token of each row, each with its warp. Returns how many rows have ended.

        Rows at one place that have the same warp too draw from one distribution, each with its own random
        number.
        """
        scores = batch.logits.float()
        device = scores.device
        if banned := [(place, token) for place, token in rows.banned() if token < scores.shape[-1]]:
            index = tuple(torch.tensor(banned, device=device).T)
            scores = scores.index_put(index, scores.new_tensor(-torch.inf))
        pairs, pair_of = numpy.unique(rows.places * len(warps) + warp_of, return_inverse=True)
        at, warp = numpy.divmod(pairs, len(warps))
        if len(at) != len(scores) or len(warps) > 1:
            scores = scores[torch.tensor(at, device=device)]
        of, bits = torch.tensor(pair_of, device=device), torch.tensor(rows.bits(), device=device)
        tokens = draw(scores, [warps[i] for i in warp.tolist()], of, bits)
        notes = batch.notes(torch.tensor(rows.places, device=device), tokens)
        return rows.add(tokens.cpu().numpy(), notes.float().cpu().numpy(), tokenizer.eos_token_id)

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
        rows = int(model.config.get_text_config().vocab_size)
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
                output = generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=[_check_logits],
                )
                for row, new in enumerate(output[:, ids.shape[1] :].tolist()):
                    answers[chosen[row // samples]].append(new)
        return answers


def _check_logits(ids: Tensor, scores: Tensor) -> Tensor:
    """A logits processor of transformers that raises FloatingPointError if no token can be drawn."""
    check_scores(scores)
    return scores


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
        with torch.no_grad(), _casting_once(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _casting_once(model: PreTrainedModel) -> Iterator[None]:
    """Under autocast, casts each weight once within the block, not at every token.

    Autocast can keep the casts of weights that ask for a gradient, outside of inference mode; Lightning does
    not let it. They are dropped at the end, as they lead to no gradient.
    """
    device = model.device.type
    if not torch.is_autocast_enabled(device):
        yield
        return
    wide = [w for w in model.parameters() if type(w) is torch.nn.Parameter and w.dtype == torch.float32]
    frozen = [weight for weight in wide if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad = True
        with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()
        for weight in frozen:
            weight.requires_grad = False


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Raises InputError where a prompt has no token."""
    if not all(prompts):
        raise InputError(f"prompt {[len(p) for p in prompts].index(0)} has no token; give it at least one")


def _beginnings(
    prompts: Sequence[Sequence[int]], names: Sequence[Sequence[str]], warps: int, most: int
) -> Iterator[Beginning]:
    """Yields the answers to equal prompts together, but not more than `most` at once; short prompts first.

    Answers are numbered by warp, prompt and name.
    """
    same: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        same.setdefault(tuple(prompt), []).append(i)
    for prompt in sorted(same, key=len):
        answers = [
            ((warp * len(prompts) + i) * len(names[i]) + j, name)
            for i in same[prompt]
            for warp in range(warps)
            for j, name in enumerate(names[i])
        ]
        for start in range(0, len(answers), most):
            numbers, streams = zip(*answers[start : start + most], strict=True)
            yield Beginning(prompt, numbers, streams)


def _on_each_rank(compute: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Returns what `compute` returns for each of `items`, on all ranks; rank i computes item i.

    Raises:
        FloatingPointError: on all ranks, if `compute` raises it on one of them.
    """
    mine: R | FloatingPointError | None = None
    try:
        if ranks.rank() < len(items):
            mine = compute(items[ranks.rank()])
    except FloatingPointError as error:
        mine = error
    of_ranks = ranks.gathered(mine)
    for of_rank in of_ranks:
        if isinstance(of_rank, FloatingPointError):
            raise of_rank
    return cast(list[R], of_ranks[: len(items)])


def _noted(drawn: Drawn, tokenizer: PreTrainedTokenizerBase, known: Texts) -> Answer:
    """The answer of drawn tokens, with their log-probabilities; `known` keeps texts of earlier calls."""
    return as_answer(drawn.ids, tokenizer, drawn.notes[: drawn.length, 0].tolist(), known)


def _cut(ids: list[int], eos: int | None) -> list[int]:
    """`ids` up to the first EOS; all of them where there is none."""
    return ids[: ids.index(eos) + 1] if eos is not None and eos in ids else ids


def as_answer(
    ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    log_probs: list[float] | None,
    known: Texts | None = None,
) -> Answer:
    """The answer of these token ids, EOS included where it ended; `known` keeps texts of earlier calls."""
    known = {} if known is None else known
    key = tuple(ids)
    if key not in known:
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        known[key] = text.strip(), tokenizer.eos_token_id in ids
    text, ended = known[key]
    return Answer(text, len(ids), ended, log_probs)
