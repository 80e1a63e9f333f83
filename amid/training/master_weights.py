"""AdamW that keeps float32 copies of weights in bfloat16."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw


class AdamWWithMasterWeights(Optimizer):
    """AdamW on float32 copies of the weights, which are rounded to the weights' dtype after each step.

    A weight in bfloat16 has 8 bits: a step of less than about 1/500 of it vanishes. The copy, the master
    weight, adds up such steps. The first master weights are the weights as they are. Weights in float32 have
    no copy: for them this is `torch.optim.AdamW`, to the bit.

    A weight in bfloat16 takes 12 bytes here: 4 for the master weight and 8 for both moments.

    Args:
        params: the weights that are trained.
        lr: the learning rate.
        betas: decay rates of the two running means.
        eps: what is added to the denominator.
        weight_decay: the decay of all weights.
        foreach: as in `torch.optim.AdamW`.
        fused: as in `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "foreach": foreach, "fused": fused})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step with the gradients that the weights have."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            states = [self._state(weight, group["fused"]) for weight in weights]
            masters = [state.get("master", weight) for state, weight in zip(states, weights, strict=True)]
            adamw(
                masters,
                [weight.grad.to(torch.promote_types(weight.dtype, torch.float32)) for weight in weights],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                foreach=group["foreach"],
                fused=group["fused"],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for weight, master in zip(weights, masters, strict=True):
                if master is not weight:
                    weight.copy_(master)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state in its own dtypes; torch alone would round it to the dtype of the weights."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, state in state_dict["state"].items():
            weight = weights[number]
            self.state[weight] |= {
                name: value.to(weight.device, copy=True) for name, value in state.items() if name != "step"
            }

    def _state(self, weight: Tensor, fused: bool | None) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            wide = torch.promote_types(weight.dtype, torch.float32)
            if wide != weight.dtype:
                state["master"] = weight.detach().to(wide)
            state["step"] = torch.zeros((), device=weight.device if fused else None)
            state["exp_avg"] = torch.zeros_like(weight, dtype=wide)
            state["exp_avg_sq"] = torch.zeros_like(weight, dtype=wide)
        return state
