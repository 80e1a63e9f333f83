import pytest
import torch

from amid.training.overlap import likeliest, overlap


def by_sorting(student_logits, teacher_logits, k):
    """The same, written plainly: tokens sorted by logit, then by id."""
    shares = []
    for q, p in zip(student_logits.tolist(), teacher_logits.tolist(), strict=True):
        best = [set(sorted(range(len(of)), key=lambda v: (-of[v], v))[:k]) for of in (q, p)]
        shares.append(len(best[0] & best[1]) / min(k, len(q)))
    return torch.tensor(shares, dtype=student_logits.dtype)


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_as_by_sorting_also_with_ties(k, levels):
    """With few levels most of the logits are equal to others."""
    generator = torch.Generator().manual_seed(levels + k)
    q, p = torch.randint(levels, (2, 60, 31), generator=generator).float()
    shares = overlap(q, p, k)
    torch.testing.assert_close(shares, by_sorting(q, p, k), rtol=0, atol=1e-7)
    assert len(set(shares.tolist())) > 1


def test_all_tokens_equal():
    logits = torch.zeros(3, 20)
    assert [sorted(ids) for ids in likeliest(logits, 4).tolist()] == [[0, 1, 2, 3]] * 3
    up = torch.arange(20.0).expand(3, 20)
    assert overlap(logits, up, 4).tolist() == [0.0] * 3


def test_logits_of_minus_infinity_are_equal_too():
    logits = torch.full((1, 6), -torch.inf)
    logits[0, 4] = 0.0
    assert sorted(likeliest(logits, 3)[0].tolist()) == [0, 1, 4]


def test_a_vocabulary_smaller_than_k():
    assert overlap(torch.randn(2, 3), torch.randn(2, 3), 10).tolist() == [1.0, 1.0]


def test_no_position():
    assert overlap(torch.randn(0, 30), torch.randn(0, 30)).shape == (0,)
