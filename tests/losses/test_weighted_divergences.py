"""AdaptiveKL, BidirectionalKL and AlphaNet against their formulas, written out position by position."""

import math
from collections.abc import Callable
from typing import Any

import losses_reference as reference
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amid.losses import (
    KL,
    AdaptiveKL,
    AlphaBeta,
    AlphaNet,
    BidirectionalKL,
    CrossEntropy,
    Loss,
    Objective,
    ReverseKL,
    WeightedSum,
)

RKL = Objective(ReverseKL())
Brute = Callable[[Tensor, Tensor], Tensor]


def brute_adaptive(log_p: Tensor, log_q: Tensor, head_mass: float = 0.5) -> Tensor:
    """One position at a time, the head gathered in a loop."""
    losses = []
    for of_p, of_q in zip(log_p, log_q, strict=True):
        gaps = (of_p.exp() - of_q.exp()).abs().detach()
        head, mass = [], 0.0
        for token in sorted(range(len(of_p)), key=lambda v: -of_p[v].item()):
            mass += of_p[token].exp().item()
            if head and mass > head_mass:
                break
            head.append(token)
            if mass > head_mass:
                break
        share = gaps[head].sum() / gaps.sum()
        losses.append(share * reference.kl(of_p, of_q) + (1 - share) * reference.kl(of_q, of_p))
    return torch.stack(losses)


def brute_swapped(log_p: Tensor, log_q: Tensor) -> Tensor:
    """As the published scripts call it, with p in q's place; nothing is detached but the teacher."""
    p, q = log_p.exp(), log_q.exp()
    ordered, index = q.sort(-1, descending=True)
    gaps = (ordered - p.gather(-1, index)).abs()
    tail = ordered.cumsum(-1) > 0.5
    tail[:, 0] = False
    of_head, of_tail = gaps.masked_fill(tail, 0).sum(-1), gaps.masked_fill(~tail, 0).sum(-1)
    forward, backward = reference.kl(log_q, log_p), reference.kl(log_p, log_q)
    return (of_head * forward + of_tail * backward) / (of_head + of_tail)


def brute_bidirectional(log_p: Tensor, log_q: Tensor, weight: float = 2.0) -> Tensor:
    entropy_p, entropy_q = (-(x.exp() * x).sum(-1).detach() for x in (log_p, log_q))
    of_p, of_q = torch.ones_like(entropy_p), torch.ones_like(entropy_q)
    of_p[entropy_p > entropy_q] = weight
    of_q[entropy_q > entropy_p] = weight
    return -of_p * (log_p.exp() * log_q).sum(-1) + of_q * reference.kl(log_q, log_p)


def of_alphanet(a: float, b: float) -> Brute:
    def brute(log_p: Tensor, log_q: Tensor) -> Tensor:
        one, other = (reference.alpha_beta(log_p, log_q, x, 1 - x) for x in (a, b))
        return one if one.sum() > other.sum() else other

    return brute


def of_alphanet_tokens(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.maximum(*(reference.alpha_beta(log_p, log_q, x, 1 - x) for x in (0.2, 0.8)))


LOSSES: list[tuple[Loss, Brute]] = [
    (AdaptiveKL(), brute_adaptive),
    (AdaptiveKL(0.8), lambda log_p, log_q: brute_adaptive(log_p, log_q, 0.8)),
    (AdaptiveKL(swapped=True), brute_swapped),
    (BidirectionalKL(), brute_bidirectional),
    (BidirectionalKL(3), lambda log_p, log_q: brute_bidirectional(log_p, log_q, 3.0)),
    (AlphaNet(), of_alphanet(0.2, 0.8)),
    (AlphaNet(0.9, 0.1), of_alphanet(0.9, 0.1)),
    (AlphaNet(-1, 1), of_alphanet(-1, 1)),
    (AlphaNet(maximum="token"), of_alphanet_tokens),
]
IDS = [repr(loss) for loss, _ in LOSSES]
every_loss = pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=IDS)


def logits(seed: int, n: int = 40, n_vocab: int = 17) -> tuple[Tensor, Tensor]:
    """Student's and teacher's, with positions where either is the surer one, and p near q at some."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    student, teacher = torch.randn(2, n, n_vocab, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.2, 4, n, dtype=torch.float64).unsqueeze(-1)
    student, teacher = student * scale.flip(0), teacher * scale
    student[:5] = teacher[:5] + 1e-3 * student[:5]
    return student, teacher


def loss_and_gradient(loss: Any, student: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    value = loss(student_logits=student, **inputs)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def fused_on_logits(loss: Loss) -> Callable[..., Tensor]:
    """The fused loss, its hidden states being logits and its heads the identity."""

    def fused(student_logits: Tensor, teacher_logits: Tensor, **more: Any) -> Tensor:
        identity = torch.eye(student_logits.shape[-1], dtype=student_logits.dtype)
        return loss.fused(
            student_hidden=student_logits,
            student_weight=identity,
            teacher_hidden=teacher_logits,
            teacher_weight=identity.to(teacher_logits.dtype),
            **more,
        )

    return fused


@pytest.mark.parametrize(("loss", "brute"), LOSSES, ids=IDS)
def test_matches_brute_force_on_logits_and_fused(loss: Loss, brute: Brute) -> None:
    for seed, n_vocab in ((0, 17), (1, 3), (2, 200)):
        student, teacher = logits(seed, n_vocab=n_vocab)
        mask = torch.arange(40) % 3 > 0
        leaf = student.clone().requires_grad_()
        expected = brute(teacher[mask].log_softmax(-1), leaf[mask].log_softmax(-1)).mean()
        (gradient,) = torch.autograd.grad(expected, leaf)
        got = loss_and_gradient(loss, student, teacher_logits=teacher, mask=mask)
        torch.testing.assert_close(got, (expected.detach(), gradient), rtol=1e-9, atol=1e-12)
        for chunk_tokens in (None, 7):
            got = loss_and_gradient(
                fused_on_logits(loss), student, teacher_logits=teacher, mask=mask, chunk_tokens=chunk_tokens
            )
            torch.testing.assert_close(got, (expected.detach(), gradient), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("loss", [AlphaNet(), AlphaNet(maximum="token")], ids=repr)
def test_gradcheck(loss: Loss) -> None:
    student, teacher = logits(3, n=3, n_vocab=5)
    assert torch.autograd.gradcheck(
        lambda z: loss(student_logits=z, teacher_logits=teacher), student.requires_grad_()
    )


def test_gradcheck_with_the_weights_held() -> None:
    """The weights are constants: the derivative is that of the divergences alone."""
    student, teacher = logits(4, n=4, n_vocab=5)
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    for loss in (AdaptiveKL(), BidirectionalKL()):
        _, gradient = loss_and_gradient(loss, student, teacher_logits=teacher)
        for i in range(4):
            _, stats = loss(student_logits=student[i], teacher_logits=teacher[i], return_stats=True)
            forward = next(stats[name] for name in ("weight_kl", "weight_cross_entropy") if name in stats)
            held = WeightedSum([(float(forward), Objective(KL())), (float(stats["weight_reverse_kl"]), RKL)])
            _, expected = loss_and_gradient(held, student[i], teacher_logits=teacher[i])
            torch.testing.assert_close(gradient[i] * 4, expected)
    assert torch.all(reference.kl(log_p, log_q) > 0)


@given(seed=st.integers(0, 10_000), head_mass=st.floats(0.01, 0.99), n_vocab=st.integers(1, 90))
def test_adaptive_kl_lies_between_the_two_and_its_shares_sum_to_one(
    seed: int, head_mass: float, n_vocab: int
) -> None:
    student, teacher = logits(seed, n=1, n_vocab=n_vocab)
    given = {"student_logits": student, "teacher_logits": teacher}
    value, stats = AdaptiveKL(head_mass)(**given, return_stats=True)
    ends = sorted([float(Objective(KL())(**given)), float(RKL(**given))])
    assert ends[0] - 1e-12 <= float(value) <= ends[1] + 1e-12
    assert math.isclose(stats["weight_kl"] + stats["weight_reverse_kl"], 1)
    assert min(stats["weight_kl"], stats["weight_reverse_kl"]) >= 0


@pytest.mark.parametrize(
    ("p", "head"),
    [
        ([0.4, 0.3, 0.15, 0.1, 0.05], [0]),  # 0.4 + 0.3 crosses a half: the second token is the tail's
        ([0.1, 0.6, 0.1, 0.1, 0.1], [1]),  # the first crosses it itself
        ([0.17, 0.2, 0.18, 0.17, 0.28], [4, 1]),  # 0.28 + 0.2 does not, with 0.18 it does
    ],
)
def test_the_head_of_the_adaptive_kl(p: list[float], head: list[int]) -> None:
    teacher = torch.tensor(p, dtype=torch.float64)
    q = torch.tensor([0.15, 0.25, 0.3, 0.19, 0.11], dtype=torch.float64)
    _, stats = AdaptiveKL()(student_logits=q.log(), teacher_logits=teacher.log(), return_stats=True)
    gaps = (teacher - q).abs()
    assert math.isclose(stats["weight_kl"], gaps[head].sum() / gaps.sum(), rel_tol=1e-9)


def test_limits_of_the_adaptive_kl() -> None:
    student, teacher = logits(5)
    given = {"student_logits": student, "teacher_logits": teacher}
    # Of two tokens, the likelier one is the head and both gaps are the same.
    two = {name: x[:, :2] for name, x in given.items()}
    half = WeightedSum([(0.5, Objective(KL())), (0.5, RKL)])
    torch.testing.assert_close(AdaptiveKL()(**two), half(**two))
    # A head of all but the last token leaves almost nothing to the tail.
    _, stats = AdaptiveKL(1 - 1e-9)(**given, return_stats=True)
    assert stats["weight_kl"] > 0.9 * 40
    # Where p = q there is nothing to weigh.
    same, gradient = loss_and_gradient(AdaptiveKL(), teacher, teacher_logits=teacher)
    assert same == 0
    assert gradient.abs().max() < 1e-12
    swapped, gradient = loss_and_gradient(AdaptiveKL(swapped=True), teacher, teacher_logits=teacher)
    assert swapped == 0
    assert torch.isfinite(gradient).all()


def test_swapped_exchanges_teacher_and_student() -> None:
    student, teacher = logits(6)
    swapped = AdaptiveKL(swapped=True)(student_logits=student, teacher_logits=teacher)
    exchanged = AdaptiveKL()(student_logits=teacher, teacher_logits=student)
    torch.testing.assert_close(swapped, exchanged)


def test_a_head_of_many_tokens_is_found() -> None:
    teacher = torch.zeros(2, 1000, dtype=torch.float64)
    teacher[0, :300] = 0.1
    teacher[1, 7] = 9.0
    student = torch.randn(2, 1000, dtype=torch.float64)
    torch.testing.assert_close(
        AdaptiveKL()(student_logits=student[1:], teacher_logits=teacher[1:]),
        brute_adaptive(teacher[1:].log_softmax(-1), student[1:].log_softmax(-1)).mean(),
    )
    _, stats = AdaptiveKL(0.30)(student_logits=student, teacher_logits=teacher, return_stats=True)
    p, q = teacher.softmax(-1), student.softmax(-1)
    gaps = (p - q).abs()
    # 0.30 of the first position is reached within its 300 likeliest tokens, which are alike.
    n_head = int(0.30 / p[0, 0])
    assert n_head < 300
    smallest, largest = (
        gaps[0, :300].sort().values[:n_head].sum(),
        gaps[0, :300].sort().values[-n_head:].sum(),
    )
    share = float(stats["weight_kl"]) - float(gaps[1, 7] / gaps[1].sum())
    assert float(smallest / gaps[0].sum()) <= share <= float(largest / gaps[0].sum())


def test_bidirectional_kl_weighs_the_direction_from_the_less_sure_side() -> None:
    sure, unsure = torch.tensor([[4.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    loss = BidirectionalKL(5)
    for student, teacher, of_p, of_q in ((sure, unsure, 5, 1), (unsure, sure, 1, 5), (sure, sure, 1, 1)):
        value, stats = loss(student_logits=student, teacher_logits=teacher, return_stats=True)
        assert (stats["weight_cross_entropy"], stats["weight_reverse_kl"]) == (of_p, of_q)
        kl, rkl = stats["kl_pq"], stats["divergence_reverse_kl"]
        torch.testing.assert_close(value, of_p * (kl + stats["entropy_p"]) + of_q * rkl)
    assert BidirectionalKL(1).weight == 1
    _, gradient = loss_and_gradient(loss, sure, teacher_logits=sure)
    assert gradient.abs().max() < 1e-6


def test_entropies_are_taken_in_float32() -> None:
    """In float16, log(p + 1e-9) of the published code is -inf at p = 0, and so all weights are 1."""
    student = torch.tensor([[0.0, 0.0, -40.0]], dtype=torch.float16)
    teacher = torch.tensor([[0.0, 9.0, -40.0]], dtype=torch.float16)
    _, stats = BidirectionalKL()(student_logits=student, teacher_logits=teacher, return_stats=True)
    assert (stats["weight_cross_entropy"], stats["weight_reverse_kl"]) == (1, 2)


def test_alphanet_takes_the_larger_over_the_batch_or_at_each_token() -> None:
    student, teacher = logits(7)
    given = {"student_logits": student, "teacher_logits": teacher}
    small, large = Objective(AlphaBeta(0.2, 0.8)), Objective(AlphaBeta(0.8, 1 - 0.8))
    batch, stats = AlphaNet()(**given, return_stats=True)
    torch.testing.assert_close(batch, torch.maximum(small(**given), large(**given)))
    assert {float(stats["weight_a"]), float(stats["weight_b"])} == {0, 40}
    torch.testing.assert_close(stats["divergence_a"], 40 * small(**given))
    token, stats = AlphaNet(maximum="token")(**given, return_stats=True)
    assert stats["weight_a"] + stats["weight_b"] == 40
    assert min(stats["weight_a"], stats["weight_b"]) > 0
    assert token > batch
    same = AlphaNet(0.3, 0.3)(**given)
    torch.testing.assert_close(same, Objective(AlphaBeta(0.3, 0.7))(**given))


ADDITIVE = [loss for loss, _ in LOSSES if getattr(loss, "maximum", "token") == "token"]


@pytest.mark.parametrize("loss", ADDITIVE, ids=repr)
def test_micro_batches_add_up_to_the_batch(loss: Loss) -> None:
    student, teacher = logits(8)
    for call in (loss, fused_on_logits(loss)):
        whole, gradient = loss_and_gradient(call, student, teacher_logits=teacher)
        parts = [
            loss_and_gradient(call, student[part], teacher_logits=teacher[part], denominator=40)
            for part in (slice(0, 13), slice(13, 40))
        ]
        torch.testing.assert_close(torch.stack([value for value, _ in parts]).sum(), whole)
        torch.testing.assert_close(torch.cat([part for _, part in parts]), gradient)


def test_the_maximum_over_a_batch_depends_on_what_the_batch_is() -> None:
    """The exception: each part takes its own maximum, so the sum of parts is at least the whole."""
    student, teacher = logits(8)
    loss = AlphaNet()
    whole = loss(student_logits=student, teacher_logits=teacher)
    parts = sum(
        loss(student_logits=student[part], teacher_logits=teacher[part], denominator=40)
        for part in (slice(0, 20), slice(20, 40))
    )
    assert parts > whole * (1 + 1e-6)


def test_in_a_weighted_sum() -> None:
    student, teacher = logits(9)
    labels = torch.arange(40) % 17
    terms = [(0.7, AlphaNet()), (0.2, CrossEntropy()), (0.4, AdaptiveKL()), (0.1, BidirectionalKL())]
    loss = WeightedSum(terms)
    given = {"teacher_logits": teacher, "labels": labels}
    expected = loss_and_gradient(loss, student, **given)
    got = loss_and_gradient(fused_on_logits(loss), student, **given, chunk_tokens=3)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


@every_loss
def test_float32_is_accurate(loss: Loss) -> None:
    student, teacher = logits(10, n_vocab=400)
    student, teacher = student[5:].float(), teacher[5:].float()
    exact = loss_and_gradient(loss, student.double(), teacher_logits=teacher.double())
    for call in (loss, fused_on_logits(loss)):
        value, gradient = loss_and_gradient(call, student, teacher_logits=teacher)
        assert value.dtype == torch.float32
        assert reference.relative_error(value, exact[0]) < 2e-6
        assert reference.relative_error(gradient, exact[1]) < 1e-5


@every_loss
def test_infinite_logits(loss: Loss) -> None:
    student, teacher = logits(11, n=6, n_vocab=9)
    cut = loss_and_gradient(loss, student[:, :7], teacher_logits=teacher[:, :7])
    student[:, 7:] = teacher[:, 7:] = -math.inf
    # A head of the identity would multiply inf by 0, hence a bias that forbids the tokens.
    bias = torch.tensor([0.0] * 7 + [-math.inf] * 2, dtype=torch.float64)
    forbidden = {"student_bias": bias, "teacher_bias": bias}

    def fused(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        finite = (x.nan_to_num(neginf=0) for x in (student_logits, teacher_logits))
        return fused_on_logits(loss)(*finite, **forbidden)

    for call in (loss, fused):
        value, gradient = loss_and_gradient(call, student, teacher_logits=teacher)
        torch.testing.assert_close(value, cut[0])
        torch.testing.assert_close(gradient[:, :7], cut[1])
        assert torch.all(gradient[:, 7:] == 0)
    # A token that the student alone forbids makes KL(p ‖ q) infinite, and nothing NaN.
    student[:, 6] = -math.inf
    assert not loss(student_logits=student, teacher_logits=teacher).isnan()


def test_one_weight_is_zero_where_the_other_divergence_is_infinite() -> None:
    student, teacher = torch.tensor([[0.0, 1.0, -math.inf]]), torch.tensor([[1.0, 0.0, 0.5]])
    assert AdaptiveKL()(student_logits=student, teacher_logits=teacher) == math.inf
    # αβ(1, 0) = KL(p ‖ q) = inf is taken, αβ(0, 1) = KL(q ‖ p), finite, is not.
    assert AlphaNet(0, 1)(student_logits=student, teacher_logits=teacher) == math.inf
    for maximum in ("batch", "token"):
        loss = AlphaNet(0.2, 0.8, maximum)  # type: ignore[arg-type]
        value, gradient = loss_and_gradient(loss, student, teacher_logits=teacher)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@every_loss
def test_no_counted_token_and_what_stands_where_none_counts(loss: Loss) -> None:
    student, teacher = logits(12, n=6)
    mask = torch.zeros(6, dtype=torch.bool)
    for call in (loss, fused_on_logits(loss)):
        value, gradient = loss_and_gradient(call, student, teacher_logits=teacher, mask=mask)
        assert value == 0
        assert torch.equal(gradient, torch.zeros_like(student))
    mask[2:] = True
    clean = loss_and_gradient(loss, student, teacher_logits=teacher, mask=mask)
    student[:2], teacher[:2] = math.nan, math.inf
    dirty = loss_and_gradient(loss, student, teacher_logits=teacher, mask=mask)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])


@every_loss
def test_stats_of_both_paths(loss: Loss) -> None:
    student, teacher = logits(13)
    _, expected = loss(student_logits=student, teacher_logits=teacher, return_stats=True)
    _, got = fused_on_logits(loss)(student, teacher, return_stats=True, chunk_tokens=9)  # type: ignore[misc]
    assert got.keys() == expected.keys()
    assert {"entropy_p", "entropy_q", "kl_pq"} < got.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name])


@every_loss
def test_shared_vocabulary(loss: Loss) -> None:
    student, teacher = logits(14)
    whole = loss_and_gradient(loss, student[:, :12], teacher_logits=teacher[:, :12])
    again = type(loss)(**{k: v for k, v in vars(loss).items() if k in SETTINGS}, shared_vocab=12)
    for call in (again, fused_on_logits(again)):
        value, gradient = loss_and_gradient(call, student, teacher_logits=teacher)
        torch.testing.assert_close(value, whole[0])
        torch.testing.assert_close(gradient[:, :12], whole[1])
        assert torch.all(gradient[:, 12:] == 0)


SETTINGS = ("head_mass", "swapped", "weight", "a", "b", "maximum")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveKL(0), "head_mass must lie in .0, 1., got head_mass=0; choose"),
        (lambda: AdaptiveKL(1), "head_mass=1"),
        (lambda: AdaptiveKL(math.nan), "head_mass must be a finite number"),
        (lambda: BidirectionalKL(0.5), "weight must be at least 1, got weight=0.5; choose"),
        (lambda: AlphaNet(a=math.inf), "alpha must be a finite number"),
        (lambda: AlphaNet(maximum="all"), "maximum must be 'batch' or 'token', got maximum='all'"),  # type: ignore[arg-type]
        (lambda: AdaptiveKL(shared_vocab=0), "shared_vocab=0"),
    ],
)
def test_wrong_settings_are_named(make: Callable[[], Loss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_each_shows_its_settings() -> None:
    assert len(set(IDS)) == len(IDS)
    assert IDS[1] == "AdaptiveKL(head_mass=0.8, swapped=False, shared_vocab=None)"
