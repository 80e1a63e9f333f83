import math
from collections.abc import Callable

import losses_reference as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_reference import NEG_INF, decimal_alpha_beta, log_probs, pair, relative_error
from torch import Tensor

from amid.losses import (
    KL,
    AlphaBeta,
    AlphaDivergence,
    AlphaMixture,
    Divergence,
    JensenShannon,
    ReverseKL,
    TotalVariation,
)

EXPONENTS = [
    (0.2, 0.7),
    (1.0, 1.0),
    (0.0, 0.7),
    (0.2, 0.0),
    (0.5, -0.5),
    (-0.5, 0.5),
    (0.0, 0.0),
    (1.5, -0.5),
    (-0.5, 1.5),
    (0.3, -0.9),
    (-0.9, 0.3),
    (-0.4, -0.3),
    (2.0, 3.0),
]
CASES: list[tuple[Divergence, Callable[[Tensor, Tensor], Tensor]]] = [
    (KL(), reference.kl),
    (ReverseKL(), reference.reverse_kl),
    (TotalVariation(), reference.total_variation),
    *[(AlphaBeta(a, b), lambda x, y, a=a, b=b: reference.alpha_beta(x, y, a, b)) for a, b in EXPONENTS],
    *[
        (AlphaDivergence(alpha), lambda x, y, alpha=alpha: reference.alpha_divergence(x, y, alpha))
        for alpha in (-5.0, -1.0, -0.5, 0.0, 0.9, 1.0, 3.0)
    ],
    *[
        (JensenShannon(beta), lambda x, y, beta=beta: reference.jensen_shannon(x, y, beta))
        for beta in (0.01, 0.5, 0.9)
    ],
]
DIVERGENCES = [divergence for divergence, _ in CASES]
FINITE_EVERYWHERE = [
    AlphaBeta(0.2, 0.7),
    AlphaBeta(2, 3),
    AlphaDivergence(0),
    JensenShannon(0.3),
    TotalVariation(),
]

rows = st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=1, max_size=6)


def split(values: list[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    x = torch.tensor(values, dtype=torch.float64)
    return torch.log_softmax(x[:, 0], -1), torch.log_softmax(x[:, 1], -1)


def value_and_gradients(
    divergence: Callable[[Tensor, Tensor], Tensor], z_a: Tensor, z_b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    z_a, z_b = z_a.detach().clone().requires_grad_(), z_b.detach().clone().requires_grad_()
    value = divergence(torch.log_softmax(z_a, -1), torch.log_softmax(z_b, -1))
    grad_a, grad_b = torch.autograd.grad(value.sum(), (z_a, z_b))
    return value.detach(), grad_a, grad_b


@pytest.mark.parametrize(("divergence", "naive"), CASES, ids=[repr(divergence) for divergence in DIVERGENCES])
def test_value_and_gradient_match_the_published_form(
    divergence: Divergence, naive: Callable[[Tensor, Tensor], Tensor]
) -> None:
    z_a, z_b = pair(0, 2, 3, 11, scale=1.5)
    expected = value_and_gradients(naive, z_a, z_b)
    assert expected[0].shape == (2, 3)
    for actual, truth in zip(value_and_gradients(divergence, z_a, z_b), expected, strict=True):
        torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-11)
    single = value_and_gradients(divergence, z_a.float(), z_b.float())
    for actual, truth in zip(single, expected, strict=True):
        assert actual.dtype == torch.float32
        assert relative_error(actual, truth) < 5e-6


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_gradcheck(divergence: Divergence) -> None:
    z = [log_probs(seed, 2, 5, scale=1.0).requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(
        lambda x, y: divergence(torch.log_softmax(x, -1), torch.log_softmax(y, -1)), z
    )


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@settings(deadline=None, max_examples=15)  # for each of 26 divergences
@given(rows)
def test_non_negative_and_zero_where_equal(divergence: Divergence, values: list[tuple[float, float]]) -> None:
    log_a, log_b = split(values)
    value = divergence(log_a, log_b)
    assert value >= 0
    assert divergence(log_a, log_a) == 0
    assert divergence(log_a.float(), log_b.float()) >= 0
    if float((log_a - log_b).abs().max()) > 1e-3:
        assert value > 0


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@settings(deadline=None, max_examples=15)  # for each of 26 divergences
@given(rows, st.randoms(use_true_random=False))
def test_permutation_invariant(
    divergence: Divergence, values: list[tuple[float, float]], random: object
) -> None:
    log_a, log_b = split(values)
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    torch.testing.assert_close(divergence(log_a[order], log_b[order]), divergence(log_a, log_b))


@settings(deadline=None)
@given(rows, st.floats(0.05, 0.95), st.floats(-3, 3), st.floats(-3, 3))
def test_equalities_between_divergences(
    values: list[tuple[float, float]], beta: float, x: float, y: float
) -> None:
    a, b = split(values)
    same = torch.testing.assert_close
    torch.testing.assert_close(KL()(a, b), ReverseKL()(b, a))
    same(AlphaBeta(1, 0)(a, b), KL()(a, b))
    same(AlphaBeta(0, 1)(a, b), ReverseKL()(a, b))
    same(AlphaBeta(x, y)(a, b), AlphaBeta(y, x)(b, a))
    same(AlphaDivergence(x)(a, b), AlphaBeta((1 - x) / 2, (1 + x) / 2)(a, b))
    same(AlphaDivergence(x)(a, b), AlphaDivergence(-x)(b, a))
    same(AlphaDivergence(-1)(a, b), KL()(a, b))
    same(AlphaDivergence(1)(a, b), ReverseKL()(a, b))
    hellinger = 2 * ((a / 2).exp() - (b / 2).exp()).square().sum()
    same(AlphaDivergence(0)(a, b), hellinger, rtol=1e-6, atol=1e-14)
    same(AlphaBeta(1, 1)(a, b), 0.5 * (a.exp() - b.exp()).square().sum(), rtol=1e-6, atol=1e-14)
    m = AlphaMixture(-1, beta)(a, b)
    same(JensenShannon(beta)(a, b), beta * KL()(a, m) + (1 - beta) * KL()(b, m), rtol=1e-6, atol=1e-14)
    same(JensenShannon(beta)(a, b), JensenShannon(1 - beta)(b, a))
    same(TotalVariation()(a, b), TotalVariation()(b, a))


@settings(deadline=None)
@given(rows, st.floats(0.05, 0.95))
def test_bounds(values: list[tuple[float, float]], beta: float) -> None:
    a, b = split(values)
    assert TotalVariation()(a, b) <= 1 + 1e-12
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert JensenShannon(beta)(a, b) <= entropy + 1e-12
    assert 2 * TotalVariation()(a, b) ** 2 <= KL()(a, b) + 1e-12  # Pinsker


@pytest.mark.parametrize("tiny", [1e-3, 1e-6, 1e-9, 1e-12, -1e-9])
@pytest.mark.parametrize(
    ("alpha", "beta", "direction"),
    [(0.2, 0.0, "beta"), (0.0, 0.7, "alpha"), (0.5, -0.5, "beta"), (-0.5, 0.5, "alpha"), (0.0, 0.0, "both")],
)
def test_well_conditioned_near_the_limits(tiny: float, alpha: float, beta: float, direction: str) -> None:
    log_a, log_b = pair(3, 6)
    limit = AlphaBeta(alpha, beta)(log_a, log_b)
    near = (
        alpha + (tiny if direction != "beta" else 0.0),
        beta + (2 * tiny if direction == "both" else tiny if direction == "beta" else 0.0),
    )
    truth = torch.tensor(decimal_alpha_beta(log_a, log_b, *near), dtype=torch.float64)
    torch.testing.assert_close(AlphaBeta(*near)(log_a, log_b), truth, rtol=1e-12, atol=0)
    single = AlphaBeta(*near)(log_a.float(), log_b.float())
    assert relative_error(single, truth) < 3e-6
    assert relative_error(limit, truth) < 100 * abs(tiny)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("alpha", [-1.0, 1.0])
def test_alpha_divergence_near_its_limits(alpha: float, sign: int) -> None:
    log_a, log_b = pair(4, 6)
    near = AlphaDivergence(alpha + sign * 1e-9)
    torch.testing.assert_close(near(log_a, log_b), AlphaDivergence(alpha)(log_a, log_b), rtol=1e-7, atol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
def test_float32_keeps_the_digits_of_close_distributions(divergence: Divergence, distance: float) -> None:
    z_a = log_probs(5, 16, 500)
    z_b = z_a + distance * log_probs(6, 16, 500, scale=1.0)
    z_a, z_b = z_a.float(), z_b.float()
    truth = value_and_gradients(divergence, z_a.double(), z_b.double())
    actual = value_and_gradients(divergence, z_a, z_b)
    if divergence == TotalVariation():
        truth, actual = truth[:1], actual[:1]  # its gradient jumps where a = b, within their rounding
    for x, y in zip(actual, truth, strict=True):
        # What is left is the rounding of the log-probabilities themselves.
        assert relative_error(x, y) < 2e-6 / distance


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_nan_with_huge_gaps(divergence: Divergence, dtype: torch.dtype) -> None:
    z_a = torch.tensor([[1e4, 0.0, -1e4, 5.0], [1.0, 2.0, 3.0, 4.0]], dtype=dtype).requires_grad_()
    z_b = torch.tensor([[-1e4, 3.0, 1e4, 5.0], [1.0, 2.0, 3.0, 4.0]], dtype=dtype).requires_grad_()
    value = divergence(torch.log_softmax(z_a, -1), torch.log_softmax(z_b, -1))
    assert not torch.isnan(value).any()
    assert (value >= 0).all()
    assert value[1] == 0
    for grad in torch.autograd.grad(value[torch.isfinite(value)].sum(), (z_a, z_b)):
        assert torch.isfinite(grad).all()
    if divergence in (KL(), ReverseKL()):
        assert torch.isfinite(value).all()
        assert value[0].item() == pytest.approx(2e4, rel=1e-2)


def test_infinite_where_the_definition_is() -> None:
    half = math.log(0.5)
    log_a, log_b = torch.tensor([half, half, NEG_INF]), torch.tensor([0.0, NEG_INF, NEG_INF])
    assert KL()(log_a, log_b) == math.inf
    assert KL()(log_b, log_a).item() == pytest.approx(math.log(2))
    assert ReverseKL()(log_a, log_b).item() == pytest.approx(math.log(2))
    assert ReverseKL()(log_b, log_a) == math.inf
    for alpha, beta in ((0.5, -0.5), (0.5, 0.0), (0.0, 0.0), (1.5, -0.5), (-0.3, -0.4), (0.3, -0.9)):
        assert AlphaBeta(alpha, beta)(log_a, log_b) == math.inf
        assert AlphaBeta(beta, alpha)(log_b, log_a) == math.inf
    assert TotalVariation()(log_a, log_b) == 0.5


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_probabilities(divergence: Divergence, dtype: torch.dtype) -> None:
    """Tokens that nobody has change nothing; a finite value has a finite gradient."""
    z_a = torch.tensor([[1.0, 2.0, NEG_INF], [1.0, NEG_INF, 0.0], [1.0, 2.0, 0.0]], dtype=dtype)
    z_b = torch.tensor([[2.0, 1.0, NEG_INF], [2.0, 1.0, 0.0], [2.0, NEG_INF, 0.0]], dtype=dtype)
    value, *grads = value_and_gradients(divergence, z_a, z_b)
    assert not torch.isnan(value).any()
    finite = torch.isfinite(value)
    short, *short_grads = value_and_gradients(divergence, z_a[:1, :2], z_b[:1, :2])
    torch.testing.assert_close(value[:1], short)
    for grad, short_grad in zip(grads, short_grads, strict=True):
        assert torch.isfinite(grad[finite]).all()
        torch.testing.assert_close(grad[:1], torch.nn.functional.pad(short_grad, (0, 1)))
    if divergence in FINITE_EVERYWHERE:
        assert finite.all()


@pytest.mark.parametrize("divergence", FINITE_EVERYWHERE, ids=repr)
def test_disjoint_supports(divergence: Divergence) -> None:
    log_a, log_b = torch.tensor([0.0, NEG_INF]), torch.tensor([NEG_INF, 0.0])
    value, *grads = value_and_gradients(divergence, log_a, log_b)
    assert 0 < value < math.inf
    assert all(torch.isfinite(grad).all() for grad in grads)
    if divergence == TotalVariation():
        assert value == 1
    if divergence == JensenShannon(0.3):
        assert value.item() == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7))


def test_overflowing_powers_of_equal_tokens() -> None:
    z = torch.tensor([0.0, -300.0, -5.0])
    value, *grads = value_and_gradients(AlphaBeta(-0.5, -0.5), z, z)
    assert value == 0
    assert all(torch.equal(grad, torch.zeros(3)) for grad in grads)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_one_token(divergence: Divergence) -> None:
    value, *grads = value_and_gradients(divergence, torch.zeros(2, 1), torch.zeros(2, 1))
    assert torch.equal(value, torch.zeros(2))
    assert all(torch.equal(grad, torch.zeros(2, 1)) for grad in grads)


def test_low_precision_is_computed_in_float32() -> None:
    log_a, log_b = (x.to(torch.bfloat16) for x in pair(7, 3, 50))
    for divergence in DIVERGENCES:
        value = divergence(log_a, log_b)
        assert value.dtype == torch.float32
        assert torch.equal(value, divergence(log_a.float(), log_b.float()))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_second_derivatives(divergence: Divergence) -> None:
    z_a, z_b = (log_probs(seed, 2, 4, scale=1.0) for seed in (8, 9))
    if divergence != TotalVariation():
        z_b[0] = z_a[0]  # the Fisher information of a divergence lies in its second derivative there
    assert torch.autograd.gradgradcheck(
        lambda x, y: divergence(torch.log_softmax(x, -1), torch.log_softmax(y, -1)),
        (z_a.requires_grad_(), z_b.requires_grad_()),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, "x", None])
def test_parameters_are_checked(bad: object) -> None:
    with pytest.raises(ValueError, match=rf"alpha must be a finite number, got alpha={bad!r}; choose"):
        AlphaBeta(bad, 0.7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"beta must be a finite number, got beta={bad!r}; choose"):
        AlphaBeta(0.2, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"alpha must be a finite number, got alpha={bad!r}; choose"):
        AlphaDivergence(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"beta must be a finite number, got beta={bad!r}; choose"):
        JensenShannon(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0, 1, -0.2, 1.5])
def test_jensen_shannon_refuses_its_ends(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"between 0 and 1, got beta={bad}; .*KL\(\) and ReverseKL\(\)"):
        JensenShannon(bad)


def test_defaults_and_representation() -> None:
    assert AlphaBeta() == AlphaBeta(alpha=0.2, beta=0.7)
    assert JensenShannon() == JensenShannon(0.5)
    assert repr(AlphaBeta()) == "AlphaBeta(alpha=0.2, beta=0.7)"
    assert repr(KL()) == "KL()"
