"""Scores of generated text: text in, numbers out.

Quality against references: `rouge_l`, `exact_match`. Diversity among answers, lower is more diverse:
`self_bleu`, `self_bleu_per_prompt`. All scores are on a scale of 0 to 100.
"""

from amid.metrics.diversity import self_bleu, self_bleu_per_prompt
from amid.metrics.quality import exact_match, rouge_l

__all__ = ["exact_match", "rouge_l", "self_bleu", "self_bleu_per_prompt"]
