"""The larger of two α-divergences (AlphaNet, arXiv 2102.07954)."""

import copy
from typing import Literal

import torch
from torch import Tensor

from amid.losses.base import Loss
from amid.losses.divergence import AlphaBeta, Pair
from amid.losses.inputs import FusedInputs
from amid.losses.weighted_divergences import WeightedDivergences


class AlphaNet(WeightedDivergences):
    """The larger of two divergences D_AB(p ‖ q) with A + B = 1 (AlphaNet, arXiv 2102.07954).

        max(αβ(a, 1-a), αβ(b, 1-b)),    αβ(A, B) = `AlphaBeta(A, B)`

    A small exponent punishes a student that is surer than its teacher. A large exponent punishes a student
    that is less sure. The larger divergence is the one that the student fails at. AlphaNet's α-divergence
    with the parameter α is αβ(α, 1-α). AlphaNet uses α = -1 and α = 1 and clips importance weights; this
    class does not clip. ABKD (arXiv 2505.04560) uses it as a baseline for language models with a in {0.1,
    0.2, 0.3} and b in {0.9, 0.8, 0.7}.

    `return_stats=True` also gives "weight_a" and "weight_b" (positions at which either is the larger),
    "divergence_a" and "divergence_b".

    Args:
        a: the first exponent; any finite real number.
        b: the second exponent; any finite real number.
        maximum: "batch" chooses the larger divergence once for all counted tokens of a call, as in ABKD's
            script. "token" chooses it for each token, as AlphaNet itself does with its samples. A training
            step calls the loss for each micro-batch. So with "batch" the cut into micro-batches changes the
            loss; with "token" it does not. `fused` with "batch" takes one more pass over the heads, without
            gradients.
        shared_vocab: see `Distillation`.
        fused: see `Distillation`.

    Raises:
        ValueError: if an exponent is not a finite number, or `maximum` neither of the two.
    """

    def __init__(
        self,
        a: float = 0.2,
        b: float = 0.8,
        maximum: Literal["batch", "token"] = "batch",
        shared_vocab: int | None = None,
        fused: bool = True,
    ) -> None:
        if maximum not in ("batch", "token"):
            raise ValueError(f"maximum must be 'batch' or 'token', got maximum={maximum!r}; choose one")
        self.a, self.b, self.maximum = a, b, maximum
        self._b_is_larger: bool | None = None
        super().__init__({"a": AlphaBeta(a, 1 - a), "b": AlphaBeta(b, 1 - b)}, shared_vocab, fused)

    def __repr__(self) -> str:
        return (
            f"AlphaNet(a={self.a}, b={self.b}, maximum={self.maximum!r}, shared_vocab={self.shared_vocab!r})"
        )

    @property
    def additive(self) -> bool:
        """Whether each token has a choice of its own."""
        return self.maximum == "token"

    def weights(self, pair: Pair, values: Tensor) -> Tensor:
        """Returns 1 for the larger divergence and 0 for the other, [2, N]."""
        if self.maximum == "token":
            b_is_larger = values[1] > values[0]
        else:
            larger = self._b_is_larger
            if larger is None:
                larger = bool(values[1].sum() > values[0].sum())
            b_is_larger = torch.full_like(values[0], larger, dtype=torch.bool)
        return torch.stack([~b_is_larger, b_is_larger]).to(values.dtype)

    def on_batch(self, inputs: FusedInputs) -> Loss:
        """Returns the loss with one choice for the whole batch, so that micro-batches can be summed."""
        if self.maximum == "token" or self._b_is_larger is not None:
            return self
        parts = AlphaNet(self.a, self.b, "token", self.shared_vocab)
        with torch.no_grad():
            _, stats = parts.fused(**inputs, return_stats=True)
        chosen = copy.copy(self)
        chosen._b_is_larger = bool(stats["divergence_b"] > stats["divergence_a"]) if stats else False
        return chosen
