"""The fused arithmetic in float32 against float64 on logits: far-apart and nearly equal models, ends of λ."""

import math
import random

import pytest
import torch
from torch import Tensor

from amid.losses import (
    KL,
    AdaptiveKL,
    AlphaBeta,
    AlphaDivergence,
    AlphaMixture,
    AlphaNet,
    BidirectionalKL,
    CrossEntropy,
    Divergence,
    JensenShannon,
    Loss,
    MiniLLM,
    Objective,
    ReverseKL,
    TotalVariation,
    WeightedSum,
)
from amid.losses.inputs import Positions
from amid.losses.numerics import log_mean_exp, log_normalise

DIVERGENCES: list[Divergence] = [
    KL(),
    ReverseKL(),
    AlphaBeta(0.2, 0.7),
    AlphaBeta(1.0, 1.0),
    AlphaBeta(0.5, -0.2),
    AlphaDivergence(0.3),
    AlphaDivergence(-2.0),
    JensenShannon(0.5),
    JensenShannon(0.1),
    JensenShannon(0.999),
    JensenShannon(0.99999),
    TotalVariation(),
]
ORDERS = ("pr", "rp", "qr", "rq")
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
draws = pytest.mark.parametrize("n", [5, pytest.param(40, marks=pytest.mark.slow)])
"""How many pairs of models are drawn: the first ones, or many."""


def in_float32(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    value, gradient, _ = loss.value_and_gradient(Positions(student, teacher), True, False)
    assert gradient is not None
    return float(value), gradient.double()


def in_float64(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    student = student.double().requires_grad_()
    value = loss(student_logits=student, teacher_logits=teacher.double(), denominator=1)
    (gradient,) = torch.autograd.grad(value, student)
    return float(value.detach()), gradient


def at_a_kink(loss: Loss, student: Tensor, teacher: Tensor) -> bool:
    """Whether a total variation is of probabilities, not both negligible, that float32 cannot tell apart."""
    if not isinstance(loss, Objective) or not isinstance(loss.divergence, TotalVariation):
        return False
    assert loss.assistant is not None
    log_p, log_q = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    given = {"p": log_p, "q": log_q, "r": loss.assistant(log_p, log_q)}
    first, second = (given[name].exp() for name in loss.order)
    larger = torch.maximum(first, second)
    return bool(((larger > 1e-6) & ((first - second).abs() < 1e-6 * larger)).any())


def check(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    """Rounding of float32 aside, which in the gradient is one of its parts, as large as the value."""
    value, gradient = in_float32(loss, student, teacher)
    true_value, true = in_float64(loss, student, teacher)
    about = f"{loss!r}, teacher {teacher.tolist()}, student {student.tolist()}"
    if true_value > 1e37 * len(student):  # beyond what float32 has
        return
    assert value >= 0, about
    assert math.isclose(value, true_value, rel_tol=2e-3, abs_tol=1e-6), (about, value, true_value)
    if at_a_kink(loss, student, teacher):  # where a gradient may be any of several
        return
    error = float((gradient - true).norm())
    assert error <= 2e-3 * float(true.norm()) + 1e-6 * max(true_value, 1), (about, gradient, true)


def logits(draw: random.Random, gap: float) -> Tensor:
    """Of one position: tokens at the ends of the gap, and between them."""
    n = draw.choice([2, 3, 7])
    spread = [draw.choice([0.0, -gap, -gap * draw.random(), -draw.random()]) for _ in range(n)]
    return torch.tensor([spread])


def pairs(draw: random.Random, n: int, least: float, most: float) -> list[tuple[Tensor, Tensor]]:
    made = []
    while len(made) < n:
        gap = draw.uniform(least, most)
        student = logits(draw, gap)
        shuffled = student[:, torch.randperm(student.shape[1])]
        other = logits(draw, gap)
        made.append((student, other if other.shape == student.shape else shuffled))
    return made


@pytest.mark.parametrize("order", ORDERS)
@each_divergence
@pytest.mark.parametrize("gaps", [(80.0, 120.0), (180.0, 260.0)])
@draws
def test_far_apart_models(n: int, gaps: tuple[float, float], divergence: Divergence, order: str) -> None:
    torch.manual_seed(0)
    draw = random.Random(f"{gaps} {divergence} {order}")
    for student, teacher in pairs(draw, n, *gaps):
        alpha = draw.choice([-5.0, -1.0, 0.0, 0.99, 1.0, 1.0001, 3.0, draw.uniform(-50, 50)])
        lam = draw.choice([0.01, 0.1, 0.5, 0.9, 0.99])
        check(Objective(divergence, AlphaMixture(alpha, lam), order), student, teacher)


@pytest.mark.parametrize(
    ("divergence", "order", "alpha", "lam", "teacher", "student", "value"),
    [
        (TotalVariation(), "qr", -1, 0.1, [0, -40], [-95, 0], 0.1),
        (AlphaBeta(), "qr", -5, 0.1, [0, -40], [-95, 0], 2.08113),
        (KL(), "pr", 1, 0.5, [0, -206], [-208, 0], 1.31326),
    ],
)
def test_known_values_far_apart(
    divergence: Divergence,
    order: str,
    alpha: float,
    lam: float,
    teacher: list[float],
    student: list[float],
    value: float,
) -> None:
    loss = Objective(divergence, AlphaMixture(alpha, lam), order)
    got, _ = in_float32(loss, torch.tensor([student]).float(), torch.tensor([teacher]).float())
    assert math.isclose(got, value, rel_tol=1e-5)


def test_one_far_position_among_others_leaves_them_as_they_are() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7)
    student[3], teacher[3] = torch.tensor([-95.0, 0, 0, 0, 0, 0, 0]), torch.tensor([0.0, -40, 0, 0, 0, 0, 0])
    loss = Objective(KL(), AlphaMixture(-1, 0.1), "qr")
    _, gradient, stats = loss.value_and_gradient(Positions(student, teacher), True, True)
    check(loss, student, teacher)
    others = torch.tensor([0, 1, 2, 4])
    _, alone, _ = loss.value_and_gradient(Positions(student[others], teacher[others]), True, False)
    assert torch.equal(gradient[others].to(alone.dtype), alone)
    _, expected = loss(student_logits=student.double(), teacher_logits=teacher.double(), return_stats=True)
    assert stats.keys() == expected.keys()
    for name, x in expected.items():
        assert math.isclose(float(stats[name]), float(x), rel_tol=1e-5), name


@pytest.mark.parametrize("order", ORDERS)
@each_divergence
@draws
def test_lam_beyond_the_range_of_float32(n: int, divergence: Divergence, order: str) -> None:
    torch.manual_seed(0)
    draw = random.Random(f"{divergence} {order}")
    for student, teacher in pairs(draw, n, 1.0, 250.0):
        lam = draw.choice([10 ** draw.uniform(-320, -1), 1 - 10 ** draw.uniform(-16, -1)])
        check(Objective(divergence, AlphaMixture(draw.uniform(-6, 6), lam), order), student, teacher)


@pytest.mark.parametrize("lam", [5e-324, 1e-200, 1e-46, 1e-30, 1 - 1e-16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_a_weight_below_the_range_of_the_dtype(dtype: torch.dtype, lam: float) -> None:
    x = torch.tensor([-math.inf, -800, -90, -1, 0, 1, 90, 200, 800, math.inf], dtype=dtype)
    smaller, larger = math.log1p(-lam), math.log(lam)
    mean = [
        max(smaller, larger + v) + math.log1p(math.exp(-abs(smaller - larger - v))) for v in x.tolist()[:-1]
    ]
    expected = [m - max(v, 0) for m, v in zip(mean, x.tolist()[:-1], strict=True)] + [larger]
    torch.testing.assert_close(
        log_mean_exp(x, lam), torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=1e-7
    )


@each_divergence
@pytest.mark.parametrize("order", ["pq", "qp", *ORDERS])
def test_nearly_equal_models_give_small_positive_values(order: str, divergence: Divergence) -> None:
    torch.manual_seed(0)
    teacher = 3 * torch.randn(4, 2000)
    for distance in (1e-2, 1e-3, 1e-4, 1e-5):
        student = teacher + distance * torch.randn(4, 2000)
        loss = Objective(divergence, AlphaMixture(-3, 0.3) if "r" in order else None, order)
        value, gradient = in_float32(loss, student, teacher)
        true_value, true = in_float64(loss, student, teacher)
        assert value > 0
        assert math.isclose(value, true_value, rel_tol=2e-3)
        assert float((gradient - true).norm() / true.norm()) < 2e-3
    value, gradient = in_float32(loss, teacher, teacher)
    assert 0 <= value < 1e-15
    assert float(gradient.norm()) < 1e-7


@pytest.mark.parametrize("loss", [AdaptiveKL(), AlphaNet(maximum="token")], ids=repr)
def test_weighted_divergences_near_the_teacher(loss: Loss) -> None:
    torch.manual_seed(0)
    teacher = 3 * torch.randn(4, 2000)
    for distance in (1e-2, 1e-3, 1e-4):
        check(loss, teacher + distance * torch.randn(4, 2000), teacher)


@pytest.mark.parametrize("n_vocab", [3, 50, 1000, 50_257])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_tied_entropies_have_the_weight_one(scale: float, n_vocab: int) -> None:
    torch.manual_seed(0)
    teacher = scale * torch.randn(8, n_vocab)
    student = teacher[:, torch.randperm(n_vocab)]
    for dtype in (torch.float32, torch.float64):
        at = Positions(student.to(dtype), teacher.to(dtype))
        for stats in (
            BidirectionalKL(3)(
                student_logits=at.student_logits, teacher_logits=at.teacher_logits, return_stats=True
            )[1],
            BidirectionalKL(3).value_and_gradient(at, True, True).stats,
        ):
            assert stats["weight_cross_entropy"] == stats["weight_reverse_kl"] == 8


def test_equal_models_have_equal_shares_and_equal_tokens_make_a_whole_head() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(8, 1000)
    student = teacher.flip(-1).flip(-1) + 2.0  # exact: the offset alone differs, and rounding of the softmax
    _, stats = AdaptiveKL()(student_logits=student, teacher_logits=student - 2.0, return_stats=True)
    assert stats["weight_kl"] == 4
    alike = torch.zeros(1, 10)  # 5 x 0.1 is the head's mass, 0.5
    student = torch.tensor([[1.0] * 5 + [0.0] * 5])
    for dtype in (torch.float32, torch.float64):
        loss = AdaptiveKL()
        _, stats = loss(student_logits=student.to(dtype), teacher_logits=alike.to(dtype), return_stats=True)
        assert math.isclose(stats["weight_kl"], 0.5, rel_tol=1e-5)


@pytest.mark.parametrize("offset", [-1e3, 1e3, 1e5])
def test_an_offset_of_all_logits_costs_no_digits(offset: float) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(4, 1000) + offset).requires_grad_()
    exact = x.detach().double().log_softmax(-1)
    log_x = log_normalise(x)
    assert float((log_x.detach() - exact).abs().max()) < 2e-6
    (gradient,) = torch.autograd.grad(log_x[:, 0].sum(), x)
    expected = -exact.exp()
    expected[:, 0] += 1
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("order", ["pq", "qp", *ORDERS])
@pytest.mark.parametrize("exponents", [(-1.0, -1.0), (0.5, -0.2), (0.0, 0.0), (1.0, -1.0), (0.1, 0.1)])
def test_divergences_of_unlikely_tokens_near_the_teacher(exponents: tuple[float, float], order: str) -> None:
    torch.manual_seed(0)
    loss = Objective(AlphaBeta(*exponents), AlphaMixture(-3, 0.9) if "r" in order else None, order)
    teacher = 3 * torch.randn(4, 2000)
    for distance in (1e-2, 1e-3, 1e-4, 1e-5):
        student = teacher + distance * torch.randn(4, 2000)
        (value, gradient), (true_value, true) = (f(loss, student, teacher) for f in (in_float32, in_float64))
        assert math.isclose(value, true_value, rel_tol=1e-4)
        assert float((gradient - true).norm() / true.norm()) < 1e-4


@pytest.mark.parametrize("zero", ["teacher", "student", "both"])
@pytest.mark.parametrize("alpha", [-3.0, 1.0, 3.0])
@pytest.mark.parametrize("order", ORDERS)
def test_the_gradient_of_total_variation_where_a_token_is_impossible(
    order: str, alpha: float, zero: str
) -> None:
    """Against differences of the value, at a token that only one of the two distributions has."""
    teacher, student = torch.tensor([[0.3, -1.0, 0.2, 0.9]]), torch.tensor([[-0.5, 0.4, 1.1, 0.7]])
    if zero != "student":
        teacher[0, 1] = -math.inf
    if zero != "teacher":
        student[0, 2] = -math.inf
    loss = Objective(TotalVariation(), AlphaMixture(alpha, 0.3), order)
    for get in (in_float32, in_float64):
        _, gradient = get(loss, student, teacher)
        for token in range(4):
            step = torch.zeros(1, 4, dtype=torch.float64)
            step[0, token] = 1e-5
            above, below = (in_float64(loss, student.double() + s, teacher)[0] for s in (step, -step))
            assert math.isclose(gradient[0, token], (above - below) / 2e-5, abs_tol=1e-6), token


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_impossible_token_is_infinite_however_unlikely_it_is_to_the_other(dtype: torch.dtype) -> None:
    student, teacher = torch.tensor([[0.0, -900.0]], dtype=dtype), torch.tensor([[0.0, -math.inf]])
    loss = Objective(KL(), order="qp")
    on_logits = loss(student_logits=student, teacher_logits=teacher)
    closed, _, _ = loss.value_and_gradient(Positions(student, teacher), False, False)
    assert on_logits == closed == math.inf


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["alone", "in a sum"])
@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3, 1.0, 300.0])
def test_minillm_at_any_distance_from_the_teacher(distance: float, loss: str, weighted: bool) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(5, 50)
    student = teacher + distance * torch.randn(5, 50)
    labels, sampling = student.argmax(-1), torch.stack([-torch.rand(5), torch.randn(5)], -1)
    of: Loss = MiniLLM(weighted_single_step=weighted)
    of = WeightedSum([(0.5, of), (0.5, CrossEntropy())]) if loss == "in a sum" else of
    value, gradient, _ = of.value_and_gradient(Positions(student, teacher, labels, sampling), True, False)
    exact = student.double().requires_grad_()
    true = of(
        student_logits=exact,
        teacher_logits=teacher.double(),
        labels=labels,
        sampling=sampling.double(),
        denominator=1,
    )
    (true_gradient,) = torch.autograd.grad(true, exact)
    assert gradient is not None
    assert math.isclose(value, true, rel_tol=1e-4, abs_tol=1e-5)
    assert float((gradient - true_gradient).norm()) < 1e-4 * float(true_gradient.norm()) + 1e-6


@pytest.mark.parametrize("gap", [18.0, 20.0, 25.0, 60.0])
def test_entropies_next_to_0_are_tied_in_all_precisions(gap: float) -> None:
    student, teacher = torch.tensor([[0.0, -gap]]), torch.tensor([[0.0, -gap - 3]])
    loss = BidirectionalKL(3)
    value, gradient = in_float32(loss, student, teacher)
    true_value, true = in_float64(loss, student, teacher)
    assert math.isclose(value, true_value, rel_tol=1e-3)
    assert float((gradient - true).norm()) < 1e-9


@pytest.mark.parametrize("divergence", [KL(), TotalVariation(), JensenShannon(0.5)], ids=repr)
@pytest.mark.parametrize(("order", "lam"), [("qr", 1e-4), ("rq", 1e-6), ("pr", 1 - 1e-4), ("rp", 1 - 1e-6)])
def test_an_assistant_near_a_model_on_logits_in_float32(divergence, order, lam):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(4, 1000, generator=generator) for _ in range(2))
    loss = Objective(divergence, AlphaMixture(-1.0, lam), order)
    expected, true = in_float64(loss, student, teacher)
    given = student.clone().requires_grad_()
    value = loss(student_logits=given, teacher_logits=teacher, denominator=1)
    assert value.dtype == torch.float32
    (gradient,) = torch.autograd.grad(value, given)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    assert float((gradient.double() - true).norm() / true.norm()) < 1e-5
