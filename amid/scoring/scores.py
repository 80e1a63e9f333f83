"""Scores of answers to the prompts of a set, in memory and as files. It does not import torch."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy
from numpy.typing import NDArray

from amid.config.calls import by_name
from amid.measures import RIGHT_OR_WRONG, measure_of, pass_name
from amid.metrics import (
    ROUGE_SCORE,
    Metric,
    Resampled,
    SetScore,
    distinct_n,
    overlong,
    pass_at_k,
    repetition,
    self_bleu,
    self_bleus,
    tokenize_of,
    unparsable,
    unread,
)
from amid.results import Score
from amid.scoring.answers import Answer, Answered

LEAST_UNREAD = 1.0
"""Unread text below this percentage of the characters is not reported."""

OF_WORDS = ("self_bleu", "corpus_self_bleu", "distinct_1", "distinct_2", "repetition")
"""The scores of the answers alone that count words."""

Given = Sequence[Sequence[float] | SetScore]
"""The result of a metric for the answers of each seed: a score for each answer in order, or one for all."""


def metric_values(metrics: Mapping[str, Metric], by_seed: Sequence[Sequence[Answered]]) -> dict[str, Given]:
    """Computes the result of each of `metrics` for the answers of each seed, once for all later uses.

    Raises:
        ValueError: if a metric refuses the answers, or does not give a score for each of them.
    """
    answers = [_flat(answered) for answered in by_seed]
    found: dict[str, Given] = {}
    for name, metric in metrics.items():
        given = [by_name(metric, predictions=texts, references=references) for texts, references in answers]
        for scores, (texts, _) in zip(given, answers, strict=True):
            if not isinstance(scores, SetScore) and len(scores) != len(texts):
                raise ValueError(
                    f"metric {name} gave {len(scores)} scores for {len(texts)} answers; return one for each, "
                    "or a SetScore"
                )
        found[name] = given
    return found


def _flat(answered: Sequence[Answered]) -> tuple[list[str], list[list[str]]]:
    """Returns the texts of all answers, and the references of each answer."""
    texts = [answer.text for row in answered for answer in row.answers]
    return texts, [list(row.references) for row in answered for _ in row.answers]


def set_scores(given: Mapping[str, Given], metrics: Mapping[str, Metric]) -> dict[str, Score]:
    """Returns each metric's score over all answers of a seed: its score of the set, or the mean over answers.

    The signature is the metric's own. The signature of a mean is its tokenisation, if that is not the
    published one.
    """
    found = {}
    for name, of_seeds in given.items():
        tokenize = tokenize_of(metrics[name])
        own = None if tokenize in (None, ROUGE_SCORE) else f"tokenize={tokenize}"
        whole = [
            scores if isinstance(scores, SetScore) else SetScore(_mean(scores), own) for scores in of_seeds
        ]
        found[name] = Score.over_seeds([score.value for score in whole], whole[-1].signature)
    return found


def tokenize_for_answers(metrics: Mapping[str, Metric]) -> str:
    """Returns the tokeniser that splits answers into words when answers are compared with each other.

    It is the first sacrebleu tokeniser among the settings of the metrics; the default is 13a.
    """
    own = [tokenize for metric in metrics.values() if (tokenize := tokenize_of(metric))]
    return next((tokenize for tokenize in own if tokenize != ROUGE_SCORE), "13a")


def unread_by(
    metrics: Mapping[str, Metric], by_seed: Sequence[Sequence[Answered]], tokenize: str = "13a"
) -> dict[str, float]:
    """Returns the share of characters, × 100, that a score cannot read, for each score that needs a warning.

    A score needs a warning if it drops or does not split `LEAST_UNREAD` % of the characters of answers and
    references (`amid.metrics.unread`), or all characters of the references of a prompt. The scores
    `OF_WORDS`, with `tokenize`, read the answers alone.
    """
    answers = [answer.text for answered in by_seed for row in answered for answer in row.answers]
    prompts = by_seed[0] if by_seed else []
    references = [text for row in prompts for text in row.references]
    found: dict[str, float] = {}
    for name, of in [*((n, t) for n, m in metrics.items() if (t := tokenize_of(m))), ("", tokenize)]:
        share = unread(of, [*answers, *references] if name else answers)
        hidden = name and any(unread(of, row.references) == 100 for row in prompts)
        if share >= LEAST_UNREAD or hidden:
            found |= dict.fromkeys([name] if name else OF_WORDS, share)
    return found


def unread_in_words(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Describes what scores cannot read, given each set's or system's shares by score; empty for nothing."""
    by_scores: dict[tuple[str, ...], list[str]] = {}
    for of, by in shares.items():
        for share in dict.fromkeys(by.values()):
            names = tuple(measure_of(name).title for name in by if by[name] == share)
            by_scores.setdefault(names, []).append(f"{share:.3g}% of the characters of {of}")
    return "; ".join(
        f"{', '.join(names)} cannot read or split {', '.join(of)}" for names, of in by_scores.items()
    )


def score_answers(
    by_seed: Sequence[Sequence[Answered]],
    metrics: Mapping[str, Metric],
    tokenize: str = "13a",
    pass_at: Sequence[int] = (),
    given: Mapping[str, Given] | None = None,
    alike: Sequence[Sequence[float]] | None = None,
) -> dict[str, Score]:
    """Computes the scores of several answers to each prompt, drawn with several seeds.

    Args:
        by_seed: for each seed the same prompts, with equally many answers to each.
        metrics: the metrics that score answers against references, by name.
        tokenize: the tokeniser of Self-BLEU, distinct-n and repetition, as in `amid.metrics.self_bleu`.
        pass_at: each k of pass@k; `metrics` must then have one of `RIGHT_OR_WRONG`.
        given: the results of `metrics` (`metric_values`), if they were computed before.
        alike: the Self-BLEU of each prompt (`self_bleus_by_seed`), if it is known already.

    Returns:
        Each of `metrics`, over all answers of a seed (`set_scores`).
        pass@k for each of `pass_at` (`passes`): the mean over the prompts, a single value. Its signature says
        which metric decides whether an answer is right.
        As means over these answers: eos_share (0..100), length (tokens) and log_prob (nats a token), each
        left out if an answer lacks the value; repetition and overlong (0..100, see `amid.metrics`), and with
        exact_answer among `metrics` unparsable (0..100).
        distinct_1 and distinct_2 (0..100), over all answers of a seed.
        corpus_self_bleu (0..100): Self-BLEU over all answers of a seed.
        self_bleu (0..100): Self-BLEU among the answers to one prompt, mean over the prompts. With one sample
        a seed, it is taken among the answers of all seeds, and is a single value without a deviation. It is
        left out if there is only one answer.
        The signature of both says among how many answers Self-BLEU was computed, because values for different
        numbers cannot be compared. It also says `tokenize` if that is not 13a.

    Raises:
        ValueError: if a metric refuses the answers, or a k is above the number of answers to a prompt.
    """
    given = metric_values(metrics, by_seed) if given is None else given
    values: dict[str, list[float]] = {}
    signatures: dict[str, str] = {}
    by = "" if tokenize == "13a" else f", tokenize={tokenize}"

    def add(name: str, value: float) -> None:
        values.setdefault(name, []).append(value)

    for answered in by_seed:
        for name, value in _of_a_seed(answered, tokenize, parsed="exact_answer" in metrics).items():
            add(name, value)
        n = sum(len(row.answers) for row in answered)
        signatures["corpus_self_bleu"] = f"among {n} answers{by}"
    for of_seed in self_bleus_by_seed(by_seed, tokenize) if alike is None else alike:
        add("self_bleu", _mean(of_seed))
        numbers = sorted({len(group) for group in _groups(by_seed)[-1]})
        signatures["self_bleu"] = f"among {'/'.join(map(str, numbers))} answers to a prompt{by}"
    passed = {
        name: Score.over_seeds([_mean(of_prompts)], f"right by {right_by(given)}")
        for name, of_prompts in passes(given, by_seed, pass_at).items()
    }
    of_answers = {name: Score.over_seeds(each, signatures.get(name)) for name, each in values.items()}
    return set_scores(given, metrics) | passed | of_answers


def _of_a_seed(answered: Sequence[Answered], tokenize: str, parsed: bool) -> dict[str, float]:
    """Returns the scores of the answers of one seed that need no metric; unparsable only if `parsed`."""
    texts, targets = _flat(answered)
    means = {
        name: _mean_if_known(told(answer) for row in answered for answer in row.answers)
        for name, told in _TOLD.items()
    }
    found = {name: mean for name, mean in means.items() if mean is not None}
    found["repetition"] = _mean(repetition(texts, tokenize=tokenize))
    found["overlong"] = _mean(overlong(texts, targets))
    if parsed:
        found["unparsable"] = _mean(unparsable(texts))
    for n in (1, 2):
        found[f"distinct_{n}"] = distinct_n(texts, n=n, tokenize=tokenize)
    if len(texts) > 1:
        found["corpus_self_bleu"] = self_bleu(texts, tokenize=tokenize)
    return found


_TOLD: dict[str, Callable[[Answer], float | None]] = {
    "eos_share": lambda answer: None if answer.ended is None else 100.0 * answer.ended,
    "length": lambda answer: answer.tokens,
    "log_prob": lambda answer: _mean(answer.log_probs) if answer.log_probs else None,
}


def self_bleus_by_seed(by_seed: Sequence[Sequence[Answered]], tokenize: str = "13a") -> list[list[float]]:
    """Returns the Self-BLEU among the answers to each prompt, for each seed: [seeds, prompts].

    With one sample a seed, it is computed once, among the answers of all seeds: [1, prompts]. Empty if there
    is only one answer.
    """
    groups = _groups(by_seed)
    return [self_bleus(of_seed, tokenize=tokenize) for of_seed in groups if all(len(g) > 1 for g in of_seed)]


def diversity_per_prompt(
    by_seed: Sequence[Sequence[Answered]], alike: Sequence[Sequence[float]], tokenize: str = "13a"
) -> dict[str, list[float]]:
    """Returns the diversity of the answers to each prompt, by score: the mean over the seeds.

    self_bleu is the mean of `alike` (`self_bleus_by_seed`); its mean over the prompts is the self_bleu of
    `score_answers`. distinct_1 and distinct_2 are computed among the same answers. They are 0 for a prompt
    whose answers have no n words in a row. With a single answer to a prompt there is no self_bleu.
    """

    def share(texts: Sequence[str], n: int) -> float:
        found = distinct_n(texts, n=n, tokenize=tokenize)
        return 0.0 if math.isnan(found) else found

    found = {"self_bleu": alike} if alike else {}
    for n in (1, 2):
        found[f"distinct_{n}"] = [[share(group, n) for group in of_seed] for of_seed in _groups(by_seed)]
    return {name: list(map(_mean, zip(*values, strict=True))) for name, values in found.items()}


def _groups(by_seed: Sequence[Sequence[Answered]]) -> list[list[list[str]]]:
    """Returns the answers to each prompt that are compared with each other: [seeds, prompts, answers].

    These are the answers of a seed if it drew several to each prompt, else the answers of all seeds.
    """
    several = [answered for answered in by_seed if all(len(row.answers) > 1 for row in answered)]
    if several:
        return [[[answer.text for answer in row.answers] for row in answered] for answered in several]
    every = zip(*by_seed, strict=True)
    return [[[answer.text for row in rows for answer in row.answers] for rows in every]]


def per_prompt(given: Given, by_seed: Sequence[Sequence[Answered]]) -> list[float] | None:
    """Returns the mean score of all answers to each prompt, from a metric's results (`metric_values`).

    None for a metric of whole sets.
    """
    found = _of_answers(given, by_seed)
    return None if found is None else [_mean(scores) for scores in found]


def _of_answers(given: Given, by_seed: Sequence[Sequence[Answered]]) -> list[list[float]] | None:
    """Returns the scores of all answers to each prompt; None for a metric of whole sets."""
    waiting = [iter(scores) for scores in given if not isinstance(scores, SetScore)]
    if len(waiting) < len(given):
        return None
    return [
        [next(scores) for one, scores in zip(row, waiting, strict=True) for _ in one.answers]
        for row in zip(*by_seed, strict=True)
    ]


def right_by(metrics: Iterable[str]) -> str | None:
    """Returns the metric of a set that says which answers are right for pass@k; None if there is none."""
    known = set(metrics)
    return next((name for name in RIGHT_OR_WRONG if name in known), None)


def passes(
    given: Mapping[str, Given], by_seed: Sequence[Sequence[Answered]], pass_at: Sequence[int]
) -> dict[str, list[float]]:
    """Returns pass@k of each prompt, from all its answers over the seeds, by the name of the score.

    An answer is right if the metric `right_by` gives it 100.

    Args:
        given: the result of each metric (`metric_values`).
        by_seed: for each seed the same prompts with their answers.
        pass_at: each k.

    Raises:
        ValueError: if no metric says which answers are right, or a k is above the number of answers to a
            prompt.
    """
    if not pass_at:
        return {}
    name = right_by(given)
    scores = None if name is None else _of_answers(given[name], by_seed)
    if scores is None:
        raise ValueError(f"pass@k needs one of {', '.join(RIGHT_OR_WRONG)}, got {', '.join(given)}")
    right = [sum(score == 100 for score in of_prompt) for of_prompt in scores]
    return {
        pass_name(k): [pass_at_k(c, len(of_prompt), k) for c, of_prompt in zip(right, scores, strict=True)]
        for k in pass_at
    }


def resampled(given: Given, by_seed: Sequence[Sequence[Answered]]) -> Resampled | None:
    """Returns a function from how often each prompt is drawn to the mean over seeds of a whole-set score.

    None for a metric of single answers (see `per_prompt`), or one that cannot score drawn prompts.
    """
    sets = []
    for score, answered in zip(given, by_seed, strict=True):
        numbers = [len(row.answers) for row in answered]
        if not isinstance(score, SetScore) or score.resampled is None:
            return None
        sets.append((score.resampled, numbers))

    def of_draws(draws: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        scores = [score(draws.repeat(numbers, axis=1)) for score, numbers in sets]
        mean: NDArray[numpy.float64] = numpy.mean(scores, axis=0)
        return mean

    return of_draws


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _mean_if_known(values: Iterable[float | None]) -> float | None:
    known = list(values)
    numbers = [float(value) for value in known if value is not None]
    return _mean(numbers) if numbers and len(numbers) == len(known) else None
