import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_reference import NEG_INF, decimal_mixture, log_probs, mixture, pair

from amid.losses import AlphaMixture

ALPHAS = [-50.0, -5.0, -1.0, 0.0, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 1.5, 3.0, 50.0]
LAMBDAS = [1e-6, 0.01, 0.1, 0.5, 0.9, 0.99, 1 - 1e-6]

alphas = st.one_of(st.floats(-50, 50), st.sampled_from(ALPHAS))
lams = st.floats(0, 1)
logits = st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=2, max_size=6)


def split(rows: list[tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor(rows, dtype=torch.float64)
    return torch.log_softmax(x[:, 0], -1), torch.log_softmax(x[:, 1], -1)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("lam", LAMBDAS)
def test_matches_the_definition_in_80_digits(alpha: float, lam: float) -> None:
    log_p, log_q = pair(0, 6, scale=4.0)
    truth = decimal_mixture(log_p, log_q, alpha, lam)
    torch.testing.assert_close(AlphaMixture(alpha, lam)(log_p, log_q), truth, rtol=1e-13, atol=1e-13)
    log_r32 = AlphaMixture(alpha, lam)(log_p.float(), log_q.float())
    assert log_r32.dtype == torch.float32
    torch.testing.assert_close(log_r32.double(), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lam", [0.01, 0.3, 0.99])
def test_known_means(lam: float) -> None:
    log_p, log_q = pair(1, 3, 7)
    p, q = log_p.exp(), log_q.exp()
    arithmetic = lam * p + (1 - lam) * q
    geometric = p**lam * q ** (1 - lam)
    harmonic = 1 / (lam / p + (1 - lam) / q)
    for alpha, mean in ((-1, arithmetic), (1, geometric), (3, harmonic)):
        r = AlphaMixture(alpha, lam)(log_p, log_q).exp()
        torch.testing.assert_close(r, mean / mean.sum(-1, keepdim=True), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_ends_of_lambda_are_exact(alpha: float) -> None:
    log_p, log_q = pair(2, 2, 5)
    assert torch.equal(AlphaMixture(alpha, 0)(log_p, log_q), log_q)
    assert torch.equal(AlphaMixture(alpha, 1)(log_p, log_q), log_p)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_continuous_at_the_ends_of_lambda(alpha: float) -> None:
    log_p, log_q = pair(3, 5, scale=0.5)
    for lam in (1e-300, 1e-100, 1e-15, 1 - 2**-53):
        log_r = AlphaMixture(alpha, lam)(log_p, log_q)
        torch.testing.assert_close(log_r, decimal_mixture(log_p, log_q, alpha, lam), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(AlphaMixture(alpha, 1e-100)(log_p, log_q), log_q, rtol=0, atol=1e-12)
    if abs(alpha) <= 5:
        torch.testing.assert_close(AlphaMixture(alpha, 1 - 2**-53)(log_p, log_q), log_p, rtol=0, atol=1e-12)


def test_smooth_through_alpha_one() -> None:
    log_p, log_q = pair(4, 9)
    middle = AlphaMixture(1, 0.3)(log_p, log_q)
    slopes = []
    for h in (1e-3, 1e-5, 1e-7):
        below, above = (AlphaMixture(1 + sign * h, 0.3)(log_p, log_q) for sign in (-1, 1))
        torch.testing.assert_close(0.5 * (below + above), middle, rtol=0, atol=10 * h * h + 1e-13)
        slopes.append((above - below) / (2 * h))
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slopes[2], slopes[1], rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(logits, alphas, lams)
def test_normalised_and_a_mean_up_to_normalisation(
    rows: list[tuple[float, float]], alpha: float, lam: float
) -> None:
    log_p, log_q = split(rows)
    log_r = AlphaMixture(alpha, lam)(log_p, log_q)
    assert abs(float(log_r.logsumexp(-1))) < 1e-12
    # r̃ = Z r lies between p and q for one and the same Z.
    low, high = torch.minimum(log_p, log_q), torch.maximum(log_p, log_q)
    assert float((log_r - high).max()) <= float((log_r - low).min()) + 1e-9


@settings(deadline=None)
@given(logits, alphas, st.floats(0.001, 0.999), st.randoms(use_true_random=False))
def test_symmetries(rows: list[tuple[float, float]], alpha: float, lam: float, random: object) -> None:
    log_p, log_q = split(rows)
    log_r = AlphaMixture(alpha, lam)(log_p, log_q)
    torch.testing.assert_close(log_r, AlphaMixture(alpha, 1 - lam)(log_q, log_p), rtol=1e-9, atol=1e-9)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    torch.testing.assert_close(log_r[order], AlphaMixture(alpha, lam)(log_p[order], log_q[order]))


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 3.0, 50.0])
@pytest.mark.parametrize("lam", [0.01, 0.5, 0.99])
def test_gradcheck(alpha: float, lam: float) -> None:
    x, y = (log_probs(seed, 2, 4, scale=0.7).requires_grad_() for seed in (5, 6))
    mix = AlphaMixture(alpha, lam)
    assert torch.autograd.gradcheck(mix, (x, y))
    weights = torch.arange(4.0, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda a, b: (mix(a, b) * weights).sum(), (x, y))


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("lam", [0.0, 0.01, 0.5, 1.0])
def test_gradient_weight_is_proposition_3_5(alpha: float, lam: float) -> None:
    log_p, log_q = pair(7, 3, 5)
    log_q.requires_grad_()
    s = (1 - alpha) / 2
    if s:
        log_r = torch.log(lam * torch.exp(s * log_p) + (1 - lam) * torch.exp(s * log_q)) / s
    else:
        log_r = lam * log_p + (1 - lam) * log_q
    (expected,) = torch.autograd.grad(log_r.sum(), log_q)
    w = AlphaMixture(alpha, lam).gradient_weight(log_p, log_q)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-10, atol=1e-12)


def test_gradient_weight_properties() -> None:
    log_p, log_q = pair(8, 3, 50)
    geometric = AlphaMixture(1, 0.25).gradient_weight(log_p, log_q)
    torch.testing.assert_close(geometric, torch.full_like(geometric, 0.75))
    assert torch.all(AlphaMixture(-5, 0.25, detach_student=True).gradient_weight(log_p, log_q) == 0)
    weights = [AlphaMixture(alpha, 0.25).gradient_weight(log_p, log_q) for alpha in (-5, -1, 0, 1, 3)]
    for smaller, larger in itertools.pairwise(weights):
        rises = larger >= smaller
        assert torch.equal(rises, log_p > log_q)


def test_detached_student_stops_the_gradient() -> None:
    log_p, log_q = pair(9, 4)
    log_q.requires_grad_()
    log_r = AlphaMixture(1, 0.4, detach_student=True)(log_p, log_q)
    assert not log_r.requires_grad
    assert torch.equal(log_r, AlphaMixture(1, 0.4)(log_p, log_q.detach()))


# p has tokens 0, 1; q has tokens 1, 2; nobody has token 3.
P_SUPPORT = torch.tensor([0.0, 1.0, NEG_INF, NEG_INF], dtype=torch.float64)
Q_SUPPORT = torch.tensor([NEG_INF, 0.5, 0.0, NEG_INF], dtype=torch.float64)


@pytest.mark.parametrize("alpha", [-50.0, -5.0, -1.0, 0.5, 0.999, 1.0, 1.001, 3.0, 50.0])
@pytest.mark.parametrize("lam", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_support(alpha: float, lam: float, dtype: torch.dtype) -> None:
    z_p, z_q = P_SUPPORT.to(dtype).requires_grad_(), Q_SUPPORT.to(dtype).requires_grad_()
    mix = AlphaMixture(alpha, lam)
    log_p, log_q = torch.log_softmax(z_p, -1), torch.log_softmax(z_q, -1)
    log_r = mix(log_p, log_q)
    expected = [True, True, True, False] if alpha < 1 else [False, True, False, False]
    assert (log_r > NEG_INF).tolist() == expected
    assert torch.isclose(log_r.logsumexp(-1), log_r.new_zeros(()), atol=1e-5)
    if alpha < 1:
        s = (1 - alpha) / 2
        only_p, only_q = log_p[0] + math.log(lam) / s, log_q[2] + math.log(1 - lam) / s
        assert torch.isclose(log_r[0] - log_r[2], only_p - only_q, rtol=1e-4)
    value = log_r[torch.isfinite(log_r)].sum() if alpha < 1 else log_r[1]
    grads = torch.autograd.grad(value, (z_p, z_q), retain_graph=True)
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert all(grad[3] == 0 for grad in grads)
    w = mix.gradient_weight(log_p, log_q)
    assert torch.isfinite(w).all()
    assert w[3] == 0


@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-9, 3.0, 50.0])
def test_disjoint_supports_are_an_error(alpha: float) -> None:
    log_p = torch.tensor([[0.0, NEG_INF], [0.0, NEG_INF]])
    log_q = torch.tensor([[0.0, NEG_INF], [NEG_INF, 0.0]])
    with pytest.raises(ValueError, match=r"disjoint supports.*choose alpha < 1"):
        AlphaMixture(alpha, 0.5)(log_p, log_q)
    assert torch.isfinite(AlphaMixture(0.9, 0.5)(log_p, log_q)[1]).all()


@pytest.mark.parametrize("alpha", [*ALPHAS, 1e6, -1e6])
@pytest.mark.parametrize("lam", [0.0, 1e-6, 0.1, 0.999999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_nan_with_huge_gaps(alpha: float, lam: float, dtype: torch.dtype) -> None:
    z_p = torch.tensor([[1e4, 0.0, -1e4, 5.0]], dtype=dtype).requires_grad_()
    z_q = torch.tensor([[-1e4, 3.0, 1e4, 5.0]], dtype=dtype).requires_grad_()
    log_r = AlphaMixture(alpha, lam)(torch.log_softmax(z_p, -1), torch.log_softmax(z_q, -1))
    assert torch.isfinite(log_r).all()
    assert abs(float(log_r.detach().logsumexp(-1))) < 1e-3
    grads = torch.autograd.grad(log_r.sum(), (z_p, z_q), allow_unused=True)
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)


def test_low_precision_is_computed_in_float32() -> None:
    log_p, log_q = (x.to(torch.bfloat16) for x in pair(10, 3, 50))
    for mix in (AlphaMixture(0.999, 0.1), AlphaMixture(-5, 0.0), AlphaMixture(-5, 1.0)):
        log_r = mix(log_p, log_q)
        assert log_r.dtype == torch.float32
        assert torch.equal(log_r, mix(log_p.float(), log_q.float()))


def test_one_token() -> None:
    zero = torch.zeros(3, 1)
    for alpha in ALPHAS:
        assert torch.equal(AlphaMixture(alpha, 0.3)(zero, zero), zero)


def test_parameters_can_be_set_and_are_checked() -> None:
    mix = AlphaMixture()
    assert (mix.alpha, mix.lam, mix.detach_student) == (-5.0, 0.1, False)
    log_p, log_q = pair(11, 4)
    mix.alpha, mix.lam = 0.5, 0.7
    assert torch.equal(mix(log_p, log_q), AlphaMixture(0.5, 0.7)(log_p, log_q))
    assert repr(mix) == "AlphaMixture(alpha=0.5, lam=0.7, detach_student=False)"
    for bad in (math.nan, math.inf, "five", None):
        with pytest.raises(ValueError, match=rf"alpha must be a finite number, got alpha={bad!r}; choose"):
            mix.alpha = bad  # type: ignore[assignment]
        with pytest.raises(ValueError, match=rf"lam must be a finite number, got lam={bad!r}; choose"):
            AlphaMixture(lam=bad)  # type: ignore[arg-type]
    for bad_lam in (-0.1, 1.0001):
        with pytest.raises(ValueError, match=rf"lam must lie in \[0, 1\], got lam={bad_lam}; choose"):
            mix.lam = bad_lam
    assert (mix.alpha, mix.lam) == (0.5, 0.7)


def test_matches_brute_force_over_a_batch() -> None:
    log_p, log_q = pair(12, 2, 3, 40)
    for alpha in (-5.0, -1.0, 0.5, 1.0, 3.0):
        expected = mixture(log_p, log_q, alpha, 0.1)
        torch.testing.assert_close(AlphaMixture(alpha, 0.1)(log_p, log_q), expected, rtol=1e-11, atol=1e-11)
