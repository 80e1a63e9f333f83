"""Published losses, as their authors computed them: ../shared/golden/losses.json beside the repository."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amid.losses import (
    KL,
    AdaptiveKL,
    AlphaBeta,
    AlphaMixture,
    BidirectionalKL,
    Divergence,
    JensenShannon,
    Loss,
    Objective,
    ReverseKL,
    TotalVariation,
)

SHARED = Path(os.environ.get("AMID_SHARED", Path(__file__).parents[3] / "shared"))
GOLDEN = SHARED / "golden" / "losses.json"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no reference values at {GOLDEN}")
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else []

Params = dict[str, Any]


def amid(params: Params) -> Objective:
    divergence: Divergence = KL()
    if params["divergence"] == "ab":
        divergence = AlphaBeta(params["ab_alpha"], params["ab_beta"])
    return Objective(divergence, AlphaMixture(params["alpha"], params["lam"]), params["order"])


def gkd(params: Params) -> Objective:
    ends = {0.0: KL(), 1.0: ReverseKL()}
    beta = float(params["beta"])
    return Objective(ends[beta] if beta in ends else JensenShannon(beta))


def arithmetic(lam: float) -> AlphaMixture:
    return AlphaMixture(alpha=-1, lam=lam)


LOSSES: dict[str, Callable[[Params], Loss]] = {
    "amid": amid,
    "skew_forward_kl": lambda p: Objective(KL(), arithmetic(p["lam"]), "pr"),
    "skew_reverse_kl": lambda p: Objective(KL(), arithmetic(1 - p["lam"]), "qr"),
    "jensen_shannon_distillm": lambda p: Objective(JensenShannon(1 - p["lam"])),
    "forward_kl": lambda p: Objective(KL()),
    "reverse_kl": lambda p: Objective(ReverseKL()),
    "tv_distance": lambda p: Objective(TotalVariation()),
    "alpha_beta_pq": lambda p: Objective(AlphaBeta(p["ab_alpha"], p["ab_beta"])),
    "gkd_generalized_jsd": gkd,
    "taid_cross_entropy": lambda p: Objective(KL(), AlphaMixture(1, p["t"], detach_student=True), "rq"),
    "akl": lambda p: AdaptiveKL(p.get("mu", 0.5)),
    "bdkd": lambda p: BidirectionalKL(),
}
# Published as cross-entropies: the value is larger by the entropy of the target, the gradient the same.
TARGET_ENTROPY = {
    "skew_forward_kl": "entropy_p",
    "forward_kl": "entropy_p",
    "taid_cross_entropy": "entropy_r",
}


def name(case: dict[str, Any]) -> str:
    return "-".join([case["method"], *(f"{key}={value}" for key, value in case["params"].items())])


def test_every_method_is_covered() -> None:
    counts = Counter(case["method"] for case in CASES)
    assert set(counts) == set(LOSSES)
    assert len(CASES) >= 62
    assert counts["amid"] >= 48


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_agrees_with_the_published_loss(case: dict[str, Any], dtype: torch.dtype) -> None:
    def tensor(key: str) -> Tensor:
        return torch.tensor(case[key], dtype=torch.float64)

    student_logits = tensor("student_logits").to(dtype).requires_grad_()
    mask = tensor("mask").bool()
    loss, stats = LOSSES[case["method"]](case["params"])(
        student_logits=student_logits,
        teacher_logits=tensor("teacher_logits").to(dtype),
        mask=mask,
        return_stats=True,
    )
    (grad,) = torch.autograd.grad(loss, student_logits)
    if case["method"] in TARGET_ENTROPY:
        loss = loss + stats[TARGET_ENTROPY[case["method"]]] / mask.sum()
    expected = tensor("grad_student_logits")
    assert loss.item() == pytest.approx(case["loss"], rel=2e-5)
    assert float((grad.double() - expected).norm()) <= 2e-5 * float(expected.norm())
    torch.testing.assert_close(grad.double(), expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))
    assert torch.all(grad[~mask] == 0)
