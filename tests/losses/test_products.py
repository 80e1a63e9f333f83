"""Products of bfloat16 operands with float32 results, and losses of such products near the teacher."""

import itertools

import pytest
import torch
from torch import Tensor

from amid.losses import KL, AlphaBeta, AlphaMixture, CrossEntropy, Head, Loss, Objective
from amid.losses.products import linear, multiply

LOW = (torch.bfloat16, torch.float16)


def error(x: Tensor, true: Tensor) -> float:
    return float((x.double() - true).norm() / true.norm())


@pytest.fixture(params=["none", "ieee", "bf16"])
def setting(request: pytest.FixtureRequest) -> str:
    """The process's own precision of float32 products, which stays as it is."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = request.param
    yield request.param
    after = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = before
    assert after == request.param


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(("n", "k", "m"), [(1, 8, 3), (5, 64, 4097), (130, 576, 9000)])
def test_results_have_the_digits_of_float32(n: int, k: int, m: int, dtype: torch.dtype, setting: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(n, k).to(dtype), torch.randn(m, k).to(dtype).t()
    out = torch.empty(n, m)
    assert multiply(a, b, out) is out
    assert error(out, a.double() @ b.double()) < 1e-6


def test_a_failing_product_leaves_the_setting_as_it_was(setting: str) -> None:
    with pytest.raises(RuntimeError):
        multiply(torch.zeros(2, 3).bfloat16(), torch.zeros(4, 5).bfloat16(), torch.empty(2, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_and_its_gradient(dtype: torch.dtype, with_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape).to(dtype).requires_grad_() for shape in [(2, 5, 16), (301, 16), (301,)]
    )
    given = (x, weight, bias) if with_bias else (x, weight)
    logits = linear(x, weight, bias if with_bias else None)
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    exact = [value.detach().double().requires_grad_() for value in given]
    true = torch.nn.functional.linear(*exact)
    assert error(logits, true) < 1e-6
    slope = torch.randn_like(true)
    got = torch.autograd.grad(logits, given, slope.to(logits.dtype))
    for ours, theirs in zip(got, torch.autograd.grad(true, exact, slope), strict=True):
        assert ours.dtype == dtype
        assert error(ours, theirs) < (5e-3 if dtype in LOW else 1e-6)


@pytest.mark.parametrize("role", ["states in float32", "states in bfloat16"])
def test_a_heads_logits_under_autocast(role: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 64).bfloat16(), torch.randn(301, 64).bfloat16()
    states = hidden.float() if role == "states in float32" else hidden
    with torch.autocast(hidden.device.type, torch.bfloat16):
        logits = Head(weight.float(), softcap=30.0).logits(states)
    true = 30 * torch.tanh(hidden.double() @ weight.double().T / 30)
    assert logits.dtype == torch.float32
    assert error(logits, true) < 1e-6


def close_pair(distance: float, n: int = 64, n_vocab: int = 4000) -> dict[str, Tensor]:
    """bfloat16 states and heads whose rows share a direction, as those of language models do."""
    torch.manual_seed(0)
    weight = 0.13 * (torch.randn(n_vocab, 96) + 0.7 * torch.randn(96))
    hidden = 4 * torch.randn(n, 96)
    values = {
        "student_hidden": hidden + distance * torch.randn(n, 96),
        "student_weight": weight,
        "teacher_hidden": hidden,
        "teacher_weight": weight,
    }
    return {name: x.bfloat16() for name, x in values.items()}


def exact_gradients(loss: Loss, given: dict[str, Tensor], **more: Tensor) -> tuple[float, list[Tensor]]:
    x = {k: v.double().requires_grad_(k.startswith("student")) for k, v in given.items()}
    logits = {"student_logits": x["student_hidden"] @ x["student_weight"].T}
    if loss.needs_teacher:
        logits["teacher_logits"] = x["teacher_hidden"] @ x["teacher_weight"].T
    value = loss(**logits, **more)
    return float(value.detach()), list(torch.autograd.grad(value, [x["student_hidden"], x["student_weight"]]))


@pytest.mark.parametrize("distance", [2.0, 0.3, 0.07])
@pytest.mark.parametrize("loss", [Objective(KL()), Objective(AlphaBeta(), AlphaMixture(-5, 0.1))], ids=repr)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("chunk_tokens", [17, None])
def test_bfloat16_follows_float64_of_the_same_operands(
    chunk_tokens: int | None, autocast: bool, loss: Loss, distance: float
) -> None:
    given = close_pair(distance)
    true_value, true = exact_gradients(loss, given)
    dtype = torch.float32 if autocast else torch.bfloat16
    x = {k: v.to(dtype).requires_grad_(k.startswith("student")) for k, v in given.items()}
    with torch.autocast(x["student_hidden"].device.type, torch.bfloat16, enabled=autocast):
        value = loss.fused(**x, chunk_tokens=chunk_tokens)
    value.backward()
    assert abs(float(value.detach()) / true_value - 1) < 3e-3
    for name, exact in zip(("student_hidden", "student_weight"), true, strict=True):
        assert error(x[name].grad, exact) < 3e-3, name


@pytest.mark.parametrize("student", [torch.float32, torch.bfloat16])
def test_the_teachers_states_in_bfloat16_beside_any_student(student: torch.dtype) -> None:
    given = close_pair(0.07)
    loss = Objective(KL())
    true_value, true = exact_gradients(loss, given)
    x = {k: v.to(student if k.startswith("student") else v.dtype) for k, v in given.items()}
    hidden = x["student_hidden"].requires_grad_()
    value = loss.fused(**x)
    value.backward()
    assert abs(float(value.detach()) / true_value - 1) < 3e-3
    assert error(hidden.grad, true[0]) < (3e-3 if student == torch.bfloat16 else 1e-4)
    on_logits = loss(
        student_logits=Head(x["student_weight"]).logits(hidden.detach()),
        teacher_logits=Head(x["teacher_weight"]).logits(x["teacher_hidden"]),
    )
    assert abs(float(on_logits) / true_value - 1) < 3e-3


@pytest.mark.parametrize(("dtype", "biased"), list(itertools.product(LOW, [False, True])))
def test_cross_entropy_in_low_precision(dtype: torch.dtype, biased: bool) -> None:
    given = {k: v.float().to(dtype) for k, v in close_pair(0.3).items() if k.startswith("student")}
    bias = torch.linspace(-1, 1, 4000).to(dtype) if biased else None
    labels = torch.arange(64) * 7
    exact = given["student_hidden"].double() @ given["student_weight"].double().T
    exact = exact if bias is None else exact + bias.double()
    value = CrossEntropy().fused(**given, student_bias=bias, labels=labels)
    true = CrossEntropy()(student_logits=exact, labels=labels)
    assert abs(float(value) / float(true) - 1) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize("counted", [0, 1, 64])
@pytest.mark.parametrize("chunk_tokens", [1, None])
def test_gradients_are_written_whole_whatever_stood_there(
    chunk_tokens: int | None, counted: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dirty(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full_like(x, torch.nan, dtype=dtype)

    monkeypatch.setattr(torch, "empty_like", dirty)
    x = {k: v.float().to(dtype).requires_grad_(k.startswith("student")) for k, v in close_pair(2.0).items()}
    bias = torch.zeros(4000, dtype=dtype, requires_grad=True)
    mask = torch.arange(64) < counted
    Objective(KL()).fused(**x, student_bias=bias, mask=mask, chunk_tokens=chunk_tokens).backward()
    for gradient in (x["student_hidden"].grad, x["student_weight"].grad, bias.grad):
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any()) == (counted > 0)
