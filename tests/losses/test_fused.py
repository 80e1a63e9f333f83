"""The fused loss against the same objective on logits, differentiated by autograd in float64."""

import functools
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_reference import on_default_device
from torch import Tensor

from amid.losses import (
    KL,
    AlphaBeta,
    AlphaDivergence,
    AlphaMixture,
    CrossEntropy,
    Divergence,
    Head,
    JensenShannon,
    Loss,
    Objective,
    ReverseKL,
    TotalVariation,
    WeightedSum,
)
from amid.losses.inputs import Positions

DIVERGENCES: list[Divergence] = [
    KL(),
    ReverseKL(),
    AlphaBeta(0.2, 0.7),
    AlphaBeta(0.5, -0.2),
    AlphaBeta(1.0, 1.0),
    AlphaDivergence(0.3),
    AlphaDivergence(-2.0),
    JensenShannon(0.5),
    JensenShannon(0.1),
    TotalVariation(),
]
ALPHAS = (-5.0, -1.0, 0.0, 0.99, 1.0, 1.0001, 3.0)
LAMS = (0.01, 0.1, 0.5, 0.9, 0.99)


def squared_logs(log_a: Tensor, log_b: Tensor) -> Tensor:
    """A user's own divergence: only its forward."""
    return (log_a.exp() * (log_a - log_b).square()).sum(-1)


def inputs(
    n: int = 7, n_vocab: int = 301, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    values = {
        "student_hidden": torch.randn(n, 24),
        "student_weight": torch.randn(n_vocab, 24) * 0.4,
        "student_bias": torch.randn(n_vocab) * 0.3,
        "teacher_hidden": torch.randn(n, 40),
        "teacher_weight": torch.randn(n_vocab, 40) * 0.4,
        "teacher_bias": torch.randn(n_vocab) * 0.3,
    }
    return {name: value.to(dtype) for name, value in values.items()}


STUDENT = ("student_hidden", "student_weight", "student_bias")


def fused_gradients(loss: Loss, given: dict[str, Tensor], **more: object) -> tuple[Tensor, list[Tensor]]:
    given = {k: v.clone().requires_grad_(k in STUDENT) for k, v in given.items()}
    value = loss.fused(**given, **more)
    value.backward()
    return value.detach(), [given[name].grad for name in STUDENT if name in given]


def reference_gradients(
    loss: Loss, given: dict[str, Tensor], heads: dict[str, float] | None = None, **more: object
) -> tuple[Tensor, list[Tensor]]:
    """The loss on whole logits in float64."""
    given = {k: v.double().requires_grad_(k in STUDENT) for k, v in given.items()}
    logits = {}
    for role in ("student", "teacher"):
        settings_of = {k.split("_")[1]: v for k, v in (heads or {}).items() if k.startswith(role)}
        head = Head(given[f"{role}_weight"], given.get(f"{role}_bias"), **settings_of)
        logits[f"{role}_logits"] = head.logits(given[f"{role}_hidden"])
    if not loss.needs_teacher:
        del logits["teacher_logits"]
    value = loss(**logits, **more)
    value.backward()
    return value.detach(), [given[name].grad for name in STUDENT if name in given]


def check_equal(
    got: tuple[Tensor, list[Tensor]], true: tuple[Tensor, list[Tensor]], tolerance: float
) -> None:
    assert math.isclose(float(got[0]), float(true[0]), rel_tol=tolerance, abs_tol=tolerance * 1e-2)
    for ours, theirs in zip(got[1], true[1], strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-12)
        assert float(error) <= tolerance


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("order", ["pr", "rp", "qr", "rq"])
@pytest.mark.parametrize("crossed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_are_right_for_every_alpha_and_lam(
    crossed: bool, order: str, divergence: Divergence
) -> None:
    given = inputs()
    one_lam_each = zip(ALPHAS, itertools.cycle(LAMS), strict=False)
    for alpha, lam in itertools.product(ALPHAS, LAMS) if crossed else one_lam_each:
        if isinstance(divergence, TotalVariation) and lam == (0.01 if "q" in order else 0.99):
            continue  # its gradient jumps where r = q, within the rounding of float32 logits
        loss = Objective(divergence, AlphaMixture(alpha, lam), order)
        check_equal(fused_gradients(loss, given, chunk_tokens=3), reference_gradients(loss, given), 5e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("order", ["pq", "qp"])
def test_without_assistant(order: str, divergence: Divergence) -> None:
    loss = Objective(divergence, order=order)
    check_equal(fused_gradients(loss, inputs()), reference_gradients(loss, inputs()), 2e-5)


@pytest.mark.parametrize(
    ("assistant", "order"),
    [
        (AlphaMixture(-5, 0), "pr"),
        (AlphaMixture(-5, 1), "qr"),
        (AlphaMixture(1, 0.3, detach_student=True), "rq"),
        (AlphaMixture(-1, 0.3, detach_student=True), "qr"),
        (lambda log_p, log_q: torch.logaddexp(log_p, log_q) - math.log(2), "pr"),
    ],
)
def test_ends_of_lam_detached_students_and_assistants_of_ones_own(
    assistant: AlphaMixture, order: str
) -> None:
    loss = Objective(KL(), assistant, order)
    check_equal(fused_gradients(loss, inputs()), reference_gradients(loss, inputs()), 2e-5)


def test_divergence_of_ones_own_needs_its_forward_only() -> None:
    loss = Objective(squared_logs, AlphaMixture())
    check_equal(fused_gradients(loss, inputs(), chunk_tokens=2), reference_gradients(loss, inputs()), 2e-5)


@pytest.mark.parametrize(
    "heads",
    [
        {"student_softcap": 2.0, "teacher_softcap": 3.0},
        {"student_scale": 0.25, "teacher_scale": 1.5},
        {"student_scale": 2.0, "student_softcap": 1.5},
    ],
)
def test_scaled_and_capped_logits(heads: dict[str, float]) -> None:
    loss = Objective(AlphaBeta(), AlphaMixture())
    check_equal(
        fused_gradients(loss, inputs(), chunk_tokens=4, **heads),
        reference_gradients(loss, inputs(), heads),
        2e-5,
    )


@settings(max_examples=40, deadline=None)
@given(
    n=st.sampled_from([1, 2, 65, 130]),
    n_vocab=st.sampled_from([1, 2, 3, 17, 1000]),
    chunk=st.sampled_from([None, 1, 3, 64, 1000]),
    seed=st.integers(0, 9),
)
def test_odd_shapes_masks_and_chunks(n: int, n_vocab: int, chunk: int | None, seed: int) -> None:
    values = inputs(n, n_vocab, seed=seed)
    mask = torch.rand(n) < 0.6
    loss = Objective(KL(), AlphaMixture(-1, 0.3))
    more = {"mask": mask, "denominator": 11.0}
    value, gradients = fused_gradients(loss, values, chunk_tokens=chunk, **more)
    true_value, true_gradients = reference_gradients(loss, values, **more)
    assert math.isclose(float(value), float(true_value), rel_tol=2e-5, abs_tol=1e-6)
    for ours, theirs in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-6)
        if n_vocab == 1 or not mask.any():
            assert not ours.any()


def test_real_vocabulary_and_leading_dimensions() -> None:
    values = inputs(6, 50_257)
    loss = Objective(AlphaBeta(), AlphaMixture(-5, 0.1))
    check_equal(fused_gradients(loss, values, chunk_tokens=4), reference_gradients(loss, values), 2e-5)
    shaped = {k: v.view(2, 3, -1) if "hidden" in k else v for k, v in values.items()}
    mask = torch.tensor([[True, False, True], [True, True, False]])
    check_equal(fused_gradients(loss, shaped, mask=mask), reference_gradients(loss, shaped, mask=mask), 2e-5)


def test_weighted_sum_shares_one_pass_and_each_term_keeps_its_own_vocabulary() -> None:
    values = inputs()
    values["teacher_weight"] = torch.cat([values["teacher_weight"], torch.randn(5, 40)])
    values["teacher_bias"] = torch.cat([values["teacher_bias"], torch.randn(5)])
    labels = torch.arange(7) * 3
    kd = Objective(KL(), AlphaMixture(-5, 0.1), shared_vocab=290)
    loss = WeightedSum([(0.7, kd), (0.3, CrossEntropy()), (2.0, WeightedSum([(0.5, kd)]))])
    got = fused_gradients(loss, values, labels=labels)
    check_equal(got, reference_gradients(loss, values, labels=labels), 2e-5)


def test_cross_entropy_needs_no_teacher() -> None:
    values = {k: v for k, v in inputs().items() if k in STUDENT}
    labels = torch.arange(7)
    got = fused_gradients(CrossEntropy(), values, labels=labels, chunk_tokens=2)
    check_equal(got, reference_gradients(CrossEntropy(), inputs(), labels=labels), 2e-5)


def test_stats_are_those_of_the_logits() -> None:
    values = inputs()
    loss = Objective(KL(), AlphaMixture(-5, 0.1))
    _, stats = loss.fused(**values, return_stats=True, chunk_tokens=2)
    logits = {
        f"{role}_logits": Head(values[f"{role}_weight"], values[f"{role}_bias"]).logits(
            values[f"{role}_hidden"]
        )
        for role in ("student", "teacher")
    }
    _, expected = loss(**logits, return_stats=True)
    assert stats.keys() == expected.keys()
    for name, value in stats.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 1.0, 3.0])
@pytest.mark.parametrize("order", ["pr", "qr", "rp", "rq"])
@pytest.mark.parametrize("divergence", [AlphaBeta(), JensenShannon(), TotalVariation()], ids=repr)
def test_infinite_logits(divergence: Divergence, order: str, alpha: float) -> None:
    values = inputs()
    values["student_bias"][3] = values["student_bias"][4] = -math.inf
    values["teacher_bias"][4] = values["teacher_bias"][5] = -math.inf
    loss = Objective(divergence, AlphaMixture(alpha, 0.1), order)
    got, true = fused_gradients(loss, values), reference_gradients(loss, values)
    assert math.isfinite(got[0])
    check_equal((got[0], got[1][:2]), (true[0], true[1][:2]), 5e-5)


@pytest.mark.parametrize("assistant", [None, AlphaMixture(-5, 0.1)], ids=repr)
@pytest.mark.parametrize("divergence", [AlphaBeta(), JensenShannon(), TotalVariation()], ids=repr)
def test_stats_where_the_teacher_alone_forbids_a_token(
    divergence: Divergence, assistant: AlphaMixture | None
) -> None:
    values = inputs()
    values["teacher_bias"][3] = -math.inf
    loss = Objective(divergence, assistant)
    _, stats = loss.fused(**values, return_stats=True)
    _, expected = loss(**logits_of(values), return_stats=True)
    for name, value in expected.items():
        assert math.isfinite(value)
        assert math.isclose(stats[name], value, rel_tol=1e-5)


def test_infinite_divergence_and_disjoint_supports_are_as_on_logits() -> None:
    values = inputs()
    values["student_bias"][3] = -math.inf
    assert math.isinf(Objective(KL()).fused(**values))
    half = torch.arange(301) < 150
    values["student_bias"] = torch.where(half, -math.inf, 0.0)
    values["teacher_bias"] = torch.where(half, 0.0, -math.inf)
    with pytest.raises(ValueError, match="disjoint supports"):
        Objective(KL(), AlphaMixture(1, 0.5)).fused(**values)


@pytest.mark.parametrize("order", ["pr", "qr", "pq"])
def test_far_apart_distributions(order: str) -> None:
    values = inputs()
    for scale in (6, 60):
        far = {k: v * scale if "weight" in k else v for k, v in values.items()}
        for divergence, alpha in itertools.product(
            (AlphaBeta(), JensenShannon(), TotalVariation()), (-50.0, -5.0, -1.0)
        ):
            loss = Objective(divergence, None if order == "pq" else AlphaMixture(alpha, 0.1), order)
            (value, got), (true_value, true) = fused_gradients(loss, far), reference_gradients(loss, far)
            assert math.isclose(value, true_value, rel_tol=1e-4)
            assert all(bool(g.isfinite().all()) for g in got)
            if scale == 60:
                continue  # the rounding of the logits themselves is past comparing gradients
            given = {k: v.clone().requires_grad_(k in STUDENT) for k, v in far.items()}
            loss(**logits_of(given)).backward()
            for name, ours, exact in zip(STUDENT, got, true, strict=True):
                grad = given[name].grad
                assert grad is not None
                on_logits = float((grad.double() - exact).norm())
                # the products are rounded in another order, so that the errors are alike and not equal
                assert float((ours.double() - exact).norm()) <= 1.5 * on_logits + 2e-5 * float(exact.norm())


def logits_of(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{role}_logits": Head(given[f"{role}_weight"], given[f"{role}_bias"]).logits(given[f"{role}_hidden"])
        for role in ("student", "teacher")
    }


def test_a_term_of_weight_0_changes_nothing_even_where_it_is_infinite() -> None:
    teacher = torch.tensor([[-math.inf, 1.0, 2.0]])
    student = torch.tensor([[0.3, -0.2, 1.0]], requires_grad=True)
    infinite, one = Objective(KL(), order="qp"), CrossEntropy()
    both = WeightedSum([(0.0, infinite), (1.0, one)])
    labels = torch.tensor([0])
    expected = one(student_logits=student, labels=labels)
    got = both(student_logits=student, teacher_logits=teacher, labels=labels)
    assert float(got) == float(expected)
    (wanted,), (found,) = (torch.autograd.grad(x, [student]) for x in (expected, got))
    assert torch.equal(found, wanted)
    at = Positions(student.detach(), teacher, labels)
    value, gradient, stats = both.value_and_gradient(at, True, True)
    assert float(value) == pytest.approx(float(expected))
    assert gradient is not None
    assert torch.allclose(gradient, wanted)
    assert "kl_pq" in stats
    nothing = WeightedSum([(0.0, infinite)])(student_logits=student, teacher_logits=teacher)
    assert float(nothing) == 0
    nothing.backward()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"softcap": 0.0}, "softcap must be above 0, got softcap=0.0"),
        ({"softcap": -1.0}, "softcap must be above 0"),
        ({"scale": 0.0}, "scale must not be 0"),
        ({"scale": math.inf}, "scale"),
    ],
)
def test_a_head_with_numbers_that_make_no_logits(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Head(torch.ones(3, 2), **given)


@pytest.mark.parametrize("labels", [torch.tensor([0.7]), torch.tensor([True])])
def test_labels_are_integers(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="labels must be integers, got labels of torch"):
        CrossEntropy()(student_logits=torch.zeros(1, 3), labels=labels)


def test_a_shared_vocabulary_is_a_number() -> None:
    with pytest.raises(ValueError, match="shared_vocab must be a positive integer or None"):
        Objective(KL(), order="pq", shared_vocab=True).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_logits_in_it(dtype: torch.dtype) -> None:
    values = inputs(64, 1000, dtype)
    loss = Objective(AlphaBeta(), AlphaMixture(-5, 0.1))
    _, true = reference_gradients(loss, values)
    low = {k: v.clone().requires_grad_(k in STUDENT) for k, v in values.items()}
    loss(
        student_logits=Head(low["student_weight"], low["student_bias"]).logits(low["student_hidden"]),
        teacher_logits=Head(low["teacher_weight"], low["teacher_bias"]).logits(low["teacher_hidden"]),
    ).backward()
    _, ours = fused_gradients(loss, values, chunk_tokens=16)
    for name, got, exact in zip(STUDENT, ours, true, strict=True):
        assert got.dtype == dtype
        grad = low[name].grad
        assert grad is not None
        assert float((got.double() - exact).norm()) <= 1.1 * float((grad.double() - exact).norm())


def test_in_float16_a_large_denominator_leaves_the_gradient_to_the_loss_scale() -> None:
    values = inputs(64, 1000)
    loss = Objective(KL(), AlphaMixture(-1, 0.1))
    _, true = reference_gradients(loss, values)
    given = {k: v.half().requires_grad_(k in STUDENT) for k, v in values.items()}
    value = loss.fused(**given, denominator=65536.0)
    (65536 * value).backward()
    for name, exact in zip(STUDENT, true, strict=True):
        grad = given[name].grad
        assert grad is not None
        assert grad.dtype == torch.float16
        expected = exact * 64  # the mean over 64 positions
        assert float((grad.double() - expected).norm() / expected.norm()) < 2e-2


def test_autocast_takes_products_in_bfloat16_and_keeps_float32_gradients() -> None:
    values = inputs(64, 1000)
    loss = Objective(KL(), AlphaMixture())
    value, true = reference_gradients(loss, values)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        got_value, got = fused_gradients(loss, values)
    assert math.isclose(got_value, value, rel_tol=2e-2)
    assert got_value != loss.fused(**values)
    for ours, theirs in zip(got, true, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 3e-2


def test_teacher_in_another_dtype() -> None:
    values = inputs(64, 1000)
    values |= {k: v.bfloat16() for k, v in values.items() if k.startswith("teacher")}
    loss = Objective(KL(), AlphaMixture())
    check_equal(fused_gradients(loss, values), reference_gradients(loss, values), 2e-2)


def test_frozen_low_rank_and_tied_heads() -> None:
    values = inputs()
    loss = Objective(KL(), AlphaMixture())
    _, (true_hidden, true_weight, _) = reference_gradients(loss, values)
    hidden = values["student_hidden"].clone().requires_grad_()
    loss.fused(**values | {"student_hidden": hidden}).backward()
    torch.testing.assert_close(hidden.grad.double(), true_hidden, rtol=1e-4, atol=1e-6)

    down, up = torch.zeros(4, 24, requires_grad=True), torch.randn(301, 4)
    loss.fused(**values | {"student_weight": values["student_weight"] + up @ down}).backward()
    torch.testing.assert_close(down.grad.double(), up.double().T @ true_weight, rtol=1e-4, atol=1e-5)

    table = values["student_weight"].clone().requires_grad_()
    given_tied = values | {"student_hidden": table[:7] * 2, "student_weight": table}
    loss.fused(**given_tied).backward()
    exact = {k: v.double() for k, v in values.items()}
    table64 = exact["student_weight"].clone().requires_grad_()
    loss(
        student_logits=(table64[:7] * 2) @ table64.T + exact["student_bias"],
        teacher_logits=exact["teacher_hidden"] @ exact["teacher_weight"].T + exact["teacher_bias"],
    ).backward()
    torch.testing.assert_close(table.grad.double(), table64.grad, rtol=1e-4, atol=1e-5)


def test_accumulation_over_parts_and_a_factor_give_the_gradient_of_the_whole() -> None:
    values = inputs(10)
    loss = Objective(KL(), AlphaMixture())
    _, whole = fused_gradients(loss, values)
    weight = values["student_weight"].clone().requires_grad_()
    for part in (slice(0, 4), slice(4, 10)):
        some = {k: v[part] if "hidden" in k else v for k, v in values.items()} | {"student_weight": weight}
        (3 * loss.fused(**some, denominator=10)).backward()
    torch.testing.assert_close(weight.grad, 3 * whole[1], rtol=1e-4, atol=1e-6)


def test_float64_gradients_are_the_differences_of_values() -> None:
    values = inputs(3, 9, torch.float64)
    loss = Objective(AlphaBeta(), AlphaMixture(-5, 0.1))
    _, gradients = fused_gradients(loss, values)
    for name, gradient in zip(STUDENT, gradients, strict=True):
        direction = torch.randn_like(values[name])
        up, down = (loss.fused(**values | {name: values[name] + e * direction}) for e in (1e-6, -1e-6))
        slope = float(up - down) / 2e-6
        assert math.isclose(slope, float((gradient * direction).sum()), rel_tol=1e-6)


def has_compiler() -> bool:
    try:
        return bool(torch._inductor.cpp_builder.get_cpp_compiler())
    except torch._inductor.exc.InvalidCxxCompiler:
        return False


needs_a_compiler = pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")


MOVES = [(-5, 0.1), (-3, 0.2), (0.5, 0.3), (1, 0.3), (1, 0.7), (0.99, 0.9)]
"""Values of alpha and lam, one after the other."""


@pytest.mark.parametrize(
    ("backend", "moves"),
    [
        ("aot_eager", [(-5, 0.1), (-3, 0.2), (1, 0.7)]),
        pytest.param("inductor", MOVES, marks=[pytest.mark.slow, needs_a_compiler]),
    ],
)
def test_compiled_arithmetic_while_alpha_and_lam_move(
    backend: str, moves: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first backend traces the arithmetic and runs it as it is; the second is the one that users have."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    given = inputs()
    loss = Objective(AlphaBeta(), AlphaMixture(-5, 0.1), compiled=True)
    for alpha, lam in moves:
        assert isinstance(loss.assistant, AlphaMixture)
        loss.assistant.alpha, loss.assistant.lam = alpha, lam
        for n in (7, 5):
            some = {k: v[:n] if "hidden" in k else v for k, v in given.items()}
            check_equal(fused_gradients(loss, some), reference_gradients(loss, some), 2e-5)
    both = WeightedSum([(1.0, loss), (0.5, Objective(KL(), compiled=True))])
    assert both.compiled
    check_equal(fused_gradients(both, given), reference_gradients(both, given), 2e-5)


def test_a_failure_to_compile_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no g++\nwhere it was looked for")

    loss = Objective(KL(), compiled=True)
    monkeypatch.setattr(loss, "_arithmetic", failing)
    with pytest.raises(
        RuntimeError, match=r"^compiled=True: torch.compile failed \(no g\+\+\); .*compiled=False$"
    ):
        loss.fused(**inputs())


@pytest.mark.slow
def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    code = """
import torch
from amid.losses import KL, Objective
torch.manual_seed(0)
hidden, weight = torch.randn(3, 4), torch.randn(5, 4)
Objective(KL(), compiled=True).fused(
    student_hidden=hidden, student_weight=weight, teacher_hidden=hidden, teacher_weight=weight)
"""
    environment = os.environ | {"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert "RuntimeError: compiled=True: torch.compile failed" in run.stderr
    assert "compiled=False" in run.stderr


def test_no_gradient_where_none_is_asked_for_and_none_twice() -> None:
    values = inputs()
    loss = Objective(KL())
    with torch.no_grad():
        assert not loss.fused(**values).requires_grad
    values["student_hidden"].requires_grad_()
    value = loss.fused(**values)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="hands its gradients out once"):
        value.backward()


def test_a_setting_changed_in_between_is_refused_in_a_sum_too() -> None:
    assistant = AlphaMixture(-5, 0.1)
    loss = WeightedSum([(1.0, Objective(KL(), assistant))])
    assistant.lam = 1
    with pytest.raises(ValueError, match="lam=1 has no gradient"):
        loss.fused(**inputs())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"teacher_hidden": None}, "teacher_hidden=None"),
        ({"teacher_weight": None}, "teacher_weight=None"),
        ({"teacher_hidden": torch.zeros(6, 40)}, "teacher_hidden must have the leading shape"),
        ({"student_weight": torch.zeros(301, 25)}, r"student_weight must be \[V, 24\]"),
        ({"student_bias": torch.zeros(300)}, r"student_bias must be \[301\]"),
        ({"teacher_weight": torch.zeros(300, 40), "teacher_bias": None}, "shared_vocab"),
        ({"chunk_tokens": 0}, "chunk_tokens=0"),
        ({"denominator": 0.0}, "denominator"),
        ({"mask": torch.ones(7)}, "mask must be boolean"),
    ],
)
def test_wrong_inputs_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(KL()).fused(**inputs() | on_default_device(wrong))


def test_unknown_input_is_named() -> None:
    with pytest.raises(TypeError, match="student_logits"):
        Objective(KL()).fused(**inputs(), student_logits=torch.zeros(7, 301))
