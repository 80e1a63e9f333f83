"""Scores of generated text: text in, numbers out.

Quality against references, higher is better, a `Metric` each: `rouge_l`, `rouge_n`, `exact_match`,
`exact_answer` for each answer; `bleu`, `chrf` for a whole set. Diversity among answers, lower is more
diverse: `self_bleu`, `self_bleu_per_prompt`; higher: `distinct_n`. What goes wrong in answers: `repetition`,
`overlong`. All scores are on a scale of 0 to 100. `paired_bootstrap` says whether two systems' scores differ.
"""

from amid.metrics.answers import exact_answer, final_number
from amid.metrics.bootstrap import (
    FEW,
    Comparison,
    Resampled,
    how_tested,
    paired_bootstrap,
    paired_bootstrap_of_sets,
    paired_bootstraps,
    signed,
)
from amid.metrics.diversity import distinct_n, overlong, repetition, self_bleu, self_bleu_per_prompt
from amid.metrics.quality import exact_match, rouge_l, rouge_n
from amid.metrics.scores import Metric, SetScore, set_score, tokenize_of
from amid.metrics.translation import bleu, chrf
from amid.metrics.words import ROUGE_SCORE, unread

__all__ = [
    "FEW",
    "ROUGE_SCORE",
    "Comparison",
    "Metric",
    "Resampled",
    "SetScore",
    "bleu",
    "chrf",
    "distinct_n",
    "exact_answer",
    "exact_match",
    "final_number",
    "how_tested",
    "overlong",
    "paired_bootstrap",
    "paired_bootstrap_of_sets",
    "paired_bootstraps",
    "repetition",
    "rouge_l",
    "rouge_n",
    "self_bleu",
    "self_bleu_per_prompt",
    "set_score",
    "signed",
    "tokenize_of",
    "unread",
]
