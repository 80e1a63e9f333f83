"""Scores of generated text: text in, numbers out.

Quality against references: `rouge_l`, `rouge_n`, `exact_match` and `exact_answer` score each answer, `bleu`
and `chrf` score a whole set. Each is a `Metric`, and higher is better.
Diversity among answers: lower `self_bleu` and `self_bleu_per_prompt` are more diverse, and so is a higher
`distinct_n`. `pass_at_k` is the chance that one of k answers is right. Faults of answers: `repetition`,
`overlong`, `unparsable`.
All scores are on a scale of 0 to 100. `paired_bootstrap` tests whether the scores of two systems differ,
`compare_at` and `compare_areas` whether they differ at equal diversity.
"""

from amid.metrics.answers import exact_answer, final_number, unparsable
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
from amid.metrics.diversity import (
    distinct_n,
    overlong,
    repetition,
    self_bleu,
    self_bleu_per_prompt,
    self_bleus,
)
from amid.metrics.fronts import Front, System, compare_areas, compare_at, over_sets, quality_at
from amid.metrics.passes import pass_at_k
from amid.metrics.quality import exact_match, rouge_l, rouge_n
from amid.metrics.scores import Metric, SetScore, set_score, tokenize_of
from amid.metrics.translation import bleu, chrf
from amid.metrics.words import ROUGE_SCORE, unread

__all__ = [
    "FEW",
    "ROUGE_SCORE",
    "Comparison",
    "Front",
    "Metric",
    "Resampled",
    "SetScore",
    "System",
    "bleu",
    "chrf",
    "compare_areas",
    "compare_at",
    "distinct_n",
    "exact_answer",
    "exact_match",
    "final_number",
    "how_tested",
    "over_sets",
    "overlong",
    "paired_bootstrap",
    "paired_bootstrap_of_sets",
    "paired_bootstraps",
    "pass_at_k",
    "quality_at",
    "repetition",
    "rouge_l",
    "rouge_n",
    "self_bleu",
    "self_bleu_per_prompt",
    "self_bleus",
    "set_score",
    "signed",
    "tokenize_of",
    "unparsable",
    "unread",
]
