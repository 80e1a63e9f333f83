import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import losses_reference as reference
import pytest
import torch
from losses_reference import relative_error
from torch import Tensor

from amid.losses import (
    KL,
    AlphaBeta,
    AlphaDivergence,
    AlphaMixture,
    CrossEntropy,
    Divergence,
    JensenShannon,
    Objective,
    ReverseKL,
    TotalVariation,
    WeightedSum,
)

ORDERS = ["pr", "rp", "qr", "rq"]
DIVERGENCES: list[tuple[Divergence, Callable[[Tensor, Tensor], Tensor]]] = [
    (KL(), reference.kl),
    (ReverseKL(), reference.reverse_kl),
    (AlphaBeta(0.2, 0.7), lambda a, b: reference.alpha_beta(a, b, 0.2, 0.7)),
    (AlphaDivergence(0.5), lambda a, b: reference.alpha_divergence(a, b, 0.5)),
    (JensenShannon(0.3), lambda a, b: reference.jensen_shannon(a, b, 0.3)),
    (TotalVariation(), reference.total_variation),
]


def random_logits(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def loss_and_gradient(objective: Any, student_logits: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    student_logits = student_logits.detach().clone().requires_grad_()
    loss = objective(student_logits=student_logits, **inputs)
    (grad,) = torch.autograd.grad(loss, student_logits)
    return loss.detach(), grad


@pytest.mark.parametrize("order", ["pq", "qp", *ORDERS])
@pytest.mark.parametrize(
    ("divergence", "naive"), DIVERGENCES, ids=[repr(divergence) for divergence, _ in DIVERGENCES]
)
def test_matches_brute_force(
    order: str, divergence: Divergence, naive: Callable[[Tensor, Tensor], Tensor]
) -> None:
    student, teacher = random_logits(0, 2, 3, 9), random_logits(1, 2, 3, 9)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    for alpha, lam in [(-5.0, 0.1), (1.0, 0.5), (3.0, 0.9)]:

        def direct(
            student_logits: Tensor, teacher_logits: Tensor, alpha: float = alpha, lam: float = lam
        ) -> Tensor:
            log_p, log_q = torch.log_softmax(teacher_logits, -1), torch.log_softmax(student_logits, -1)
            named = {"p": log_p, "q": log_q, "r": reference.mixture(log_p, log_q, alpha, lam)}
            return naive(named[order[0]], named[order[1]])[mask].mean()

        assistant = AlphaMixture(alpha, lam) if "r" in order else None
        actual = loss_and_gradient(
            Objective(divergence, assistant, order), student, teacher_logits=teacher, mask=mask
        )
        expected = loss_and_gradient(direct, student, teacher_logits=teacher)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", ["pq", "qp", *ORDERS])
@pytest.mark.parametrize("divergence", [divergence for divergence, _ in DIVERGENCES], ids=repr)
def test_gradcheck(order: str, divergence: Divergence) -> None:
    student, teacher = random_logits(2, 2, 5, scale=1.0), random_logits(3, 2, 5, scale=1.0)
    for alpha in (-5.0, 1.0, 3.0) if "r" in order else (1.0,):  # of the assistant
        objective = Objective(divergence, AlphaMixture(alpha, 0.3) if "r" in order else None, order)
        assert torch.autograd.gradcheck(
            lambda z, objective=objective: objective(student_logits=z, teacher_logits=teacher),
            student.requires_grad_(),
        )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("divergence", [divergence for divergence, _ in DIVERGENCES], ids=repr)
def test_float32_accuracy(order: str, divergence: Divergence) -> None:
    """Worst where r is close to the other argument: there only the inputs' rounding is left."""
    teacher = random_logits(4, 4, 400, scale=3.0).float()
    student = (0.7 * teacher + random_logits(5, 4, 400, scale=1.0)).float()
    for alpha, lam in itertools.product([-50.0, -5.0, -1.0, 0.0, 1.0, 3.0, 50.0], [0.01, 0.1, 0.5, 0.99]):
        objective = Objective(divergence, AlphaMixture(alpha, lam), order)
        value, grad = loss_and_gradient(objective, student, teacher_logits=teacher)
        true_value, true_grad = loss_and_gradient(
            objective, student.double(), teacher_logits=teacher.double()
        )
        closeness = lam if "q" in order else 1 - lam
        assert relative_error(value, true_value) < 2e-7 / closeness + 1e-6
        # The sign in the total variation makes single tokens flip where both sides agree to rounding.
        if divergence != TotalVariation():
            assert relative_error(grad, true_grad) < 5e-7 / closeness + 1e-6


def test_known_losses() -> None:
    student, teacher = random_logits(6, 4, 9), random_logits(7, 4, 9)
    log_p, log_q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    p, q = log_p.exp(), log_q.exp()

    def loss(*args: Any) -> Tensor:
        return Objective(*args)(student_logits=student, teacher_logits=teacher)

    # DistiLLM's skew KL, KL(p ‖ λ p + (1-λ) q), and skew reverse KL with the teacher's weight 0.9.
    skew = reference.kl(log_p, torch.log(0.1 * p + 0.9 * q)).mean()
    torch.testing.assert_close(loss(KL(), AlphaMixture(-1, 0.1)), skew)
    skew_reverse = reference.kl(log_q, torch.log(0.9 * p + 0.1 * q)).mean()
    torch.testing.assert_close(loss(KL(), AlphaMixture(-1, 0.9), "qr"), skew_reverse)
    # GKD's generalised Jensen-Shannon divergence from two KL divergences to the α = -1 mixture.
    jsd = 0.3 * loss(KL(), AlphaMixture(-1, 0.3), "pr") + 0.7 * loss(KL(), AlphaMixture(-1, 0.3), "qr")
    torch.testing.assert_close(loss(JensenShannon(0.3)), jsd)
    # ABKD's loss; KD; reverse KD as two orders.
    torch.testing.assert_close(loss(AlphaBeta()), reference.alpha_beta(log_p, log_q, 0.2, 0.7).mean())
    torch.testing.assert_close(loss(KL()), reference.kl(log_p, log_q).mean())
    torch.testing.assert_close(loss(ReverseKL()), loss(KL(), None, "qp"))
    # The ends of λ are the divergences between teacher and student.
    torch.testing.assert_close(loss(KL(), AlphaMixture(-5, 0.0), "pr"), loss(KL()))
    torch.testing.assert_close(loss(KL(), AlphaMixture(-5, 1.0), "rq"), loss(KL()))


def test_gradient_goes_to_zero_with_the_distance() -> None:
    teacher = random_logits(8, 3, 9)
    for order, alpha in itertools.product(ORDERS, (-5.0, 1.0, 3.0)):
        objective = Objective(AlphaBeta(), AlphaMixture(alpha, 0.1), order)
        value, grad = loss_and_gradient(objective, teacher, teacher_logits=teacher)
        assert abs(value) < 1e-12
        assert grad.norm() < 1e-12


def test_reverse_kl_of_the_geometric_mean_near_the_teacher_is_a_variance() -> None:
    # For λ -> 1 and α = 1, KL(r || p) / (1-λ)² -> Var_p[log q/p] / 2.
    # It does not see what q gives to tokens that the teacher denies, where p is about 0.
    distance = 1e-4
    student, teacher = random_logits(16, 5, 9), random_logits(17, 5, 9)
    teacher[:, 0] = -60
    objective = Objective(ReverseKL(), AlphaMixture(1.0, 1 - distance), "pr")

    def half_variance(student: Tensor) -> Tensor:
        log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
        ratio, p = log_q - log_p, log_p.exp()
        mean = (p * ratio).sum(-1, keepdim=True)
        return ((p * (ratio - mean) ** 2).sum(-1) / 2).mean()

    def limit(student: Tensor) -> Tensor:
        return objective(student_logits=student, teacher_logits=teacher) / distance**2

    torch.testing.assert_close(limit(student), half_variance(student), rtol=1e-3, atol=0)
    escaped = student.clone()
    escaped[:, 0] += 20  # nearly all of q on the denied token
    assert escaped.softmax(-1)[:, 0].min() > 0.999
    torch.testing.assert_close(limit(escaped), limit(student), rtol=1e-3, atol=0)


def test_detached_student_is_taid() -> None:
    student, teacher = random_logits(9, 4, 9), random_logits(10, 4, 9)
    objective = Objective(KL(), AlphaMixture(1, 0.4, detach_student=True), "rq")

    def taid(*, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        target = torch.softmax(0.6 * student_logits.detach() + 0.4 * teacher_logits, -1)
        return -(target * torch.log_softmax(student_logits, -1)).sum(-1).mean()

    _, grad = loss_and_gradient(objective, student, teacher_logits=teacher)
    _, expected = loss_and_gradient(taid, student, teacher_logits=teacher)
    torch.testing.assert_close(grad, expected)


def test_teacher_gets_no_gradient() -> None:
    student, teacher = random_logits(11, 4, 9).requires_grad_(), random_logits(12, 4, 9).requires_grad_()
    for order in ORDERS:
        objective = Objective(KL(), AlphaMixture(), order)
        objective(student_logits=student, teacher_logits=teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_positions_left_out_do_not_matter(bad: float) -> None:
    student, teacher = random_logits(13, 2, 3, 9), random_logits(14, 2, 3, 9)
    labels = torch.randint(0, 9, (2, 3))
    mask = torch.tensor([[True, False, True], [True, True, False]])
    objective = WeightedSum([(1.0, Objective(KL(), AlphaMixture())), (0.5, CrossEntropy())])
    clean = loss_and_gradient(objective, student, teacher_logits=teacher, labels=labels, mask=mask)
    student[~mask], teacher[~mask], labels[~mask] = bad, bad, -100
    dirty = loss_and_gradient(objective, student, teacher_logits=teacher, labels=labels, mask=mask)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    assert torch.all(dirty[1][~mask] == 0)


@pytest.mark.parametrize("alpha", [-5.0, 1.0, 3.0])
def test_no_counted_token(alpha: float) -> None:
    student, teacher = random_logits(15, 2, 3, 9), random_logits(16, 2, 3, 9)
    labels, mask = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool)
    for objective in (
        Objective(AlphaBeta(), AlphaMixture(alpha)),
        CrossEntropy(),
        WeightedSum([(1, Objective(KL())), (1, CrossEntropy())]),
    ):
        inputs: dict[str, Any] = {"mask": mask}
        if objective.needs_teacher:
            inputs["teacher_logits"] = teacher
        if objective.needs_labels:
            inputs["labels"] = labels
        for denominator in (None, 7.0):
            loss, grad = loss_and_gradient(objective, student, denominator=denominator, **inputs)
            assert loss == 0
            assert torch.equal(grad, torch.zeros_like(student))
        _, stats = objective(student_logits=student, return_stats=True, **inputs)
        assert all(value == 0 for value in stats.values())


def test_denominator_makes_parts_add_up() -> None:
    student, teacher = random_logits(17, 6, 9), random_logits(18, 6, 9)
    mask = torch.tensor([True, True, False, True, True, True])
    objective = Objective(AlphaBeta(), AlphaMixture())
    whole, grad = loss_and_gradient(objective, student, teacher_logits=teacher, mask=mask)
    for denominator in (5, 5.0, torch.tensor(5)):
        parts = [
            loss_and_gradient(
                objective,
                student[part],
                teacher_logits=teacher[part],
                mask=mask[part],
                denominator=denominator,
            )
            for part in (slice(0, 2), slice(2, 3), slice(3, 6))
        ]
        torch.testing.assert_close(torch.stack([value for value, _ in parts]).sum(), whole)
        torch.testing.assert_close(torch.cat([part_grad for _, part_grad in parts]), grad)


def test_shapes() -> None:
    student, teacher = random_logits(19, 2, 3, 9), random_logits(20, 2, 3, 9)
    objective = Objective(KL(), AlphaMixture())
    each = [
        objective(student_logits=student[i, j], teacher_logits=teacher[i, j])
        for i, j in itertools.product(range(2), range(3))
    ]
    torch.testing.assert_close(
        objective(student_logits=student, teacher_logits=teacher), torch.stack(each).mean()
    )
    one_token = objective(student_logits=student[..., :1], teacher_logits=teacher[..., :1])
    assert one_token == 0


def test_shared_vocabulary() -> None:
    student, teacher = random_logits(21, 4, 12), random_logits(22, 4, 10)
    teacher[:, 9:] = math.nan
    objective = Objective(KL(), AlphaMixture(), shared_vocab=9)
    loss, grad = loss_and_gradient(objective, student, teacher_logits=teacher)
    cut = Objective(KL(), AlphaMixture())(student_logits=student[:, :9], teacher_logits=teacher[:, :9])
    assert torch.equal(loss, cut)
    assert torch.all(grad[:, 9:] == 0)
    with pytest.raises(
        ValueError, match=r"student_logits have 12 tokens and teacher_logits 10; .*shared_vocab"
    ):
        Objective(KL())(student_logits=student, teacher_logits=teacher)
    with pytest.raises(ValueError, match=r"shared_vocab=11 exceeds the logits.*choose at most 10"):
        Objective(KL(), shared_vocab=11)(student_logits=student, teacher_logits=teacher)
    for bad in (0, -1, 2.5):
        with pytest.raises(ValueError, match=rf"positive integer or None, got shared_vocab={bad}; give"):
            Objective(KL(), shared_vocab=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["pq", "qp", *ORDERS])
@pytest.mark.parametrize("alpha", [-50.0, -5.0, -1.0, 0.999, 1.0, 3.0, 50.0])
def test_low_precision_logits(order: str, alpha: float) -> None:
    """bfloat16 logits cost no more than their own rounding; gaps of 1e4 give no NaN."""
    student, teacher = random_logits(23, 4, 50), random_logits(24, 4, 50)
    for dtype in (torch.bfloat16, torch.float16):
        objective = Objective(KL(), AlphaMixture(alpha) if "r" in order else None, order)
        x, y = student.to(dtype), teacher.to(dtype)
        loss, grad = loss_and_gradient(objective, x, teacher_logits=y)
        assert loss.dtype == torch.float32
        assert grad.dtype == dtype
        truth, true_grad = loss_and_gradient(objective, x.double(), teacher_logits=y.double())
        assert relative_error(loss, truth) < 1e-5
        assert relative_error(grad, true_grad) < 1e-2
        same, zero = loss_and_gradient(objective, x, teacher_logits=x)
        assert 0 <= same < 1e-9
        assert zero.abs().max() < 1e-3
        x[0, 0], y[0, 1] = 1e4, 1e4
        loss, grad = loss_and_gradient(objective, x, teacher_logits=y)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("order", ["pq", "qp", *ORDERS])
@pytest.mark.parametrize("divergence", [divergence for divergence, _ in DIVERGENCES], ids=repr)
def test_tokens_that_both_sides_forbid(order: str, divergence: Divergence) -> None:
    student, teacher = random_logits(25, 3, 9), random_logits(26, 3, 9)
    for alpha in (-5.0, 1.0, 3.0):
        objective = Objective(divergence, AlphaMixture(alpha) if "r" in order else None, order)
        short = loss_and_gradient(objective, student[:, :7], teacher_logits=teacher[:, :7])
        x, y = student.clone(), teacher.clone()
        x[:, 7:], y[:, 7:] = -math.inf, -math.inf
        loss, grad = loss_and_gradient(objective, x, teacher_logits=y)
        torch.testing.assert_close(loss, short[0])
        torch.testing.assert_close(grad[:, :7], short[1])
        assert torch.all(grad[:, 7:] == 0)


def test_stats() -> None:
    student, teacher = random_logits(27, 2, 3, 9).requires_grad_(), random_logits(28, 2, 3, 9)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assistant = AlphaMixture(-3, 0.2)
    objective = Objective(KL(), assistant)
    loss, stats = objective(student_logits=student, teacher_logits=teacher, mask=mask, return_stats=True)
    assert torch.equal(loss, objective(student_logits=student, teacher_logits=teacher, mask=mask))
    log_p, log_q = torch.log_softmax(teacher[mask], -1), torch.log_softmax(student.detach()[mask], -1)
    log_r = assistant(log_p, log_q)
    w = assistant.gradient_weight(log_p, log_q)
    expected = {
        "entropy_p": -(log_p.exp() * log_p).sum(),
        "entropy_q": -(log_q.exp() * log_q).sum(),
        "entropy_r": -(log_r.exp() * log_r).sum(),
        "gradient_weight": (log_q.exp() * w).sum(),
        "kl_pq": reference.kl(log_p, log_q).sum(),
        "same_top": (log_p.argmax(-1) == log_q.argmax(-1)).to(log_q.dtype).sum(),
    }
    assert set(stats) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(stats[key], value)
        assert not stats[key].requires_grad
    _, without = Objective(KL())(student_logits=student, teacher_logits=teacher, return_stats=True)
    assert set(without) == {"entropy_p", "entropy_q", "kl_pq", "same_top"}
    student = student.detach()
    student[..., 0] = teacher[..., 0] = -math.inf
    _, stats = objective(student_logits=student, teacher_logits=teacher, return_stats=True)
    assert all(torch.isfinite(value) for value in stats.values())


def test_users_own_divergence_and_assistant() -> None:
    student, teacher = random_logits(29, 4, 9), random_logits(30, 4, 9)

    def squared(log_a: Tensor, log_b: Tensor) -> Tensor:
        return 0.5 * (log_a.exp() - log_b.exp()).square().sum(-1)

    def arithmetic(log_p: Tensor, log_q: Tensor) -> Tensor:
        return torch.log(0.5 * log_p.exp() + 0.5 * log_q.exp())

    own = loss_and_gradient(Objective(squared, arithmetic), student, teacher_logits=teacher)
    ours = loss_and_gradient(
        Objective(AlphaBeta(1, 1), AlphaMixture(-1, 0.5)), student, teacher_logits=teacher
    )
    torch.testing.assert_close(own, ours)
    _, stats = Objective(squared, arithmetic)(
        student_logits=student, teacher_logits=teacher, return_stats=True
    )
    assert set(stats) == {"entropy_p", "entropy_q", "entropy_r", "kl_pq", "same_top"}


def test_a_divergence_that_does_not_sum_is_refused() -> None:
    student, teacher = random_logits(29, 4, 9), random_logits(30, 4, 9)
    with pytest.raises(ValueError, match=r"gives \[4, 9\] .* sum over the last axis"):
        Objective(lambda a, b: (a.exp() - b.exp()).abs())(student_logits=student, teacher_logits=teacher)


def test_a_divergence_of_one_argument_is_refused() -> None:
    with pytest.raises(ValueError, match=r"divergence=<lambda>\(a\) must take log_a and log_b, by these"):
        Objective(lambda a: a.sum(-1))


def test_a_divergence_without_a_gradient_is_refused() -> None:
    student, teacher = random_logits(29, 4, 9).requires_grad_(), random_logits(30, 4, 9)
    with pytest.raises(ValueError, match="divergence=<lambda> gives no gradient"):
        Objective(lambda a, b: (a - b).detach().abs().sum(-1))(student_logits=student, teacher_logits=teacher)


def test_order_defaults() -> None:
    assert Objective(KL()).order == "pq"
    assert Objective(KL(), AlphaMixture()).order == "pr"
    assert repr(Objective(KL())) == "Objective(KL(), assistant=None, order='pq', shared_vocab=None)"


@pytest.mark.parametrize("order", ["pp", "qq", "rr", "px", "p", "", "pqr", "PQ"])
def test_orders_refused(order: str) -> None:
    for assistant in (None, AlphaMixture()):
        with pytest.raises(ValueError, match=rf"order='{order}'; choose one of pq, qp, pr, rp, qr, rq"):
            Objective(KL(), assistant, order)


def test_assistant_and_order_must_fit() -> None:
    for order in ORDERS:
        with pytest.raises(ValueError, match=rf"order='{order}' names the assistant r but assistant=None"):
            Objective(KL(), None, order)
    for order in ("pq", "qp"):
        with pytest.raises(ValueError, match=rf"order='{order}' does not use the assistant AlphaMixture"):
            Objective(KL(), AlphaMixture(), order)


@pytest.mark.parametrize("order", ORDERS)
def test_settings_without_a_gradient_are_refused(order: str) -> None:
    student, teacher = random_logits(31, 4, 9), random_logits(32, 4, 9)
    bad_lam = 1 if "p" in order else 0
    message = rf"order='{order}' with lam={bad_lam} has no gradient: .*; choose lam"
    with pytest.raises(ValueError, match=message):
        Objective(KL(), AlphaMixture(lam=bad_lam), order)
    Objective(KL(), AlphaMixture(lam=1 - bad_lam), order)
    objective = Objective(KL(), AlphaMixture(), order)
    objective.assistant.lam = bad_lam  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=message):
        objective(student_logits=student, teacher_logits=teacher)
    if "p" in order:
        with pytest.raises(ValueError, match=rf"order='{order}' with detach_student=True has no gradient"):
            Objective(KL(), AlphaMixture(detach_student=True), order)
    else:
        Objective(KL(), AlphaMixture(detach_student=True), order)


def test_inputs_are_checked() -> None:
    student, teacher = random_logits(33, 2, 3, 9), random_logits(34, 2, 3, 9)
    objective = Objective(KL())

    def call(**inputs: Any) -> None:
        objective(**({"student_logits": student, "teacher_logits": teacher} | inputs))

    with pytest.raises(ValueError, match=r"mask must be boolean, got dtype torch.int64; pass mask.bool\(\)"):
        call(mask=torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"mask must have the leading shape .* \(2, 3\), got \(3, 2\)"):
        call(mask=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"teacher_logits must have the leading shape .*\(2, 3\), got \(2,\)"
    ):
        call(teacher_logits=teacher[:, 0])
    for bad in (0, -1.0, math.nan, math.inf):
        with pytest.raises(
            ValueError, match=rf"denominator must be a positive number, got denominator={bad}"
        ):
            call(denominator=bad)
    with pytest.raises(TypeError):
        objective(student, teacher)  # type: ignore[call-overload]


def test_cross_entropy() -> None:
    student = random_logits(35, 2, 3, 9)
    labels = torch.randint(0, 9, (2, 3))
    mask = torch.tensor([[True, False, True], [True, True, False]])
    objective = CrossEntropy()
    assert (objective.needs_teacher, objective.needs_labels) == (False, True)
    loss, grad = loss_and_gradient(objective, student, labels=labels, mask=mask)
    ignored = labels.masked_fill(~mask, -100)

    def torch_loss(student_logits: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(student_logits.flatten(0, 1), ignored.flatten())

    torch.testing.assert_close((loss, grad), loss_and_gradient(torch_loss, student))
    torch.testing.assert_close(loss_and_gradient(objective, student, labels=ignored, mask=mask)[1], grad)
    half = objective(student_logits=student.to(torch.bfloat16), labels=labels.int(), mask=mask)
    assert half.dtype == torch.float32
    _, stats = objective(student_logits=student, labels=labels, mask=mask, return_stats=True)
    log_q = torch.log_softmax(student[mask], -1)
    assert set(stats) == {"entropy_q"}
    torch.testing.assert_close(stats["entropy_q"], -(log_q.exp() * log_q).sum())
    with pytest.raises(
        ValueError, match=r"must lie in \[0, 9\), got values from -100 to .*set mask to False"
    ):
        objective(student_logits=student, labels=ignored)
    with pytest.raises(ValueError, match=r"labels must have the leading shape"):
        objective(student_logits=student, labels=labels[:, :2])


def test_weighted_sum() -> None:
    student, teacher = random_logits(36, 2, 3, 9), random_logits(37, 2, 3, 9)
    labels = torch.randint(0, 9, (2, 3))
    mask = torch.tensor([[True, False, True], [True, True, False]])
    distil, ce = Objective(AlphaBeta(), AlphaMixture()), CrossEntropy()
    both = WeightedSum([(2.0, distil), (0.5, ce)])
    assert (both.needs_teacher, both.needs_labels) == (True, True)
    assert not WeightedSum([(1.0, ce)]).needs_teacher
    assert not WeightedSum([(1.0, distil)]).needs_labels
    inputs: dict[str, Any] = {"student_logits": student, "mask": mask, "denominator": 3}
    expected = 2 * distil(teacher_logits=teacher, **inputs) + 0.5 * ce(labels=labels, **inputs)
    loss, stats = both(teacher_logits=teacher, labels=labels, return_stats=True, **inputs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(both(teacher_logits=teacher, labels=labels, **inputs), expected)
    nested = WeightedSum([(1.0, both), (1.0, WeightedSum([(1.0, ce)]))])
    torch.testing.assert_close(
        nested(teacher_logits=teacher, labels=labels, **inputs), expected + ce(labels=labels, **inputs)
    )
    _, first = distil(teacher_logits=teacher, return_stats=True, **inputs)
    assert set(stats) == set(first)
    assert all(torch.equal(stats[key], first[key]) for key in first)
    reordered = WeightedSum([(0.5, Objective(KL())), (2.0, distil)])
    assert set(reordered(teacher_logits=teacher, return_stats=True, **inputs)[1]) == set(first)


def test_weighted_sum_is_checked() -> None:
    student = random_logits(38, 4, 9)
    with pytest.raises(ValueError, match=r"at least one pair \(weight, objective\)"):
        WeightedSum([])
    for bad in (math.nan, math.inf, "x"):
        with pytest.raises(ValueError, match=rf"weight 1 must be a finite number, got weight 1={bad!r}"):
            WeightedSum([(1.0, CrossEntropy()), (bad, CrossEntropy())])  # type: ignore[list-item]
    both = WeightedSum([(1.0, Objective(KL())), (1.0, CrossEntropy())])
    with pytest.raises(ValueError, match="teacher_logits=None but the loss needs it; pass teacher_logits"):
        both(student_logits=student, labels=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="labels=None but the loss needs it; pass labels"):
        both(student_logits=student, teacher_logits=student)


def test_setting_alpha_and_lam_between_steps() -> None:
    student, teacher = random_logits(39, 4, 9), random_logits(40, 4, 9)
    assistant = AlphaMixture(-5, 0.1)
    objective = Objective(KL(), assistant)
    assistant.alpha, assistant.lam = 1, 0.6
    changed = objective(student_logits=student, teacher_logits=teacher)
    fresh = Objective(KL(), AlphaMixture(1, 0.6))(student_logits=student, teacher_logits=teacher)
    assert torch.equal(changed, fresh)


def test_disjoint_supports_raise_through_the_objective() -> None:
    student, teacher = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    with pytest.raises(ValueError, match="disjoint supports"):
        Objective(KL(), AlphaMixture(1, 0.5), "rq")(student_logits=student, teacher_logits=teacher)


def test_imports_nothing_but_torch() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import amid.losses; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'torch', 'amid'}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
