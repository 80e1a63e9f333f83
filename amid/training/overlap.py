"""How many of the teacher's likeliest tokens are among the student's."""

from torch import Tensor


def overlap(student_logits: Tensor, teacher_logits: Tensor, k: int = 10) -> Tensor:
    """The share of the teacher's k likeliest tokens that are among the student's k likeliest, [N].

    Of equally likely tokens, the one with the smaller id counts as likelier. Where the vocabulary has fewer
    than k tokens, k is its size, and the share is 1.

    Args:
        student_logits: [N, V].
        teacher_logits: [N, V].
        k: 1 or more.
    """
    k = min(k, student_logits.shape[-1])
    q, p = likeliest(student_logits, k), likeliest(teacher_logits, k)
    shared = (p.unsqueeze(-1) == q.unsqueeze(-2)).any(-1).sum(-1)
    return shared.to(student_logits.dtype) / k


def likeliest(logits: Tensor, k: int) -> Tensor:
    """The ids [N, k] of the k largest logits [N, V], in any order; of equal ones the smaller ids."""
    values, ids = logits.topk(min(k + 1, logits.shape[-1]))
    chosen = ids[:, :k]
    tied = values[:, k - 1] == values[:, -1]  # the first token left out is as likely as the last chosen one
    if values.shape[-1] > k and bool(tied.any()):
        chosen[tied] = logits[tied].sort(descending=True, stable=True).indices[:, :k]
    return chosen
