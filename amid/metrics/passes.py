"""The chance that at least one of k answers to a prompt is right."""

from math import comb


def pass_at_k(right: int, answers: int, k: int) -> float:
    """Estimates pass@k of a prompt: the chance, × 100, that at least one of k answers is right.

        100 × (1 - C(n - c, k) / C(n, k))   for c right answers among n

    This is the share of the sets of k answers that hold a right one. Its mean over draws of the n answers is
    pass@k itself, so the estimate is unbiased for every n from k on. pass@1 is the share of right answers.

    Args:
        right: the number c of right answers.
        answers: the number n of answers.
        k: the size of the sets, from 1 to n.

    Returns:
        From 0 (no answer is right) to 100 (at most k - 1 answers are wrong).

    Raises:
        ValueError: if `right` is not from 0 to `answers`, or `k` not from 1 to `answers`.

    Reference: Chen et al. 2021, "Evaluating Large Language Models Trained on Code".
    """
    if not 0 <= right <= answers:
        raise ValueError(f"right must be from 0 to answers={answers}, got {right}")
    if not 1 <= k <= answers:
        raise ValueError(f"k={k} must be from 1 to the {answers} answers to a prompt; draw more, or lower k")
    return 100 * (1 - comb(answers - right, k) / comb(answers, k))
