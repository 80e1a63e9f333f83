"""AdamW with weight decay on some of the weights."""

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.optim import AdamW


def adamw(
    params: Iterable[Tensor],
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> AdamW:
    """torch's AdamW without weight decay on biases and norms: the weights with fewer than two dimensions.

    Args:
        params: the weights that are trained.
        lr: the learning rate.
        betas: decay rates of the two running means.
        eps: what is added to the denominator.
        weight_decay: the decay of weights with two dimensions or more, embeddings and adapters among them.
        amsgrad: as in torch.
        foreach: as in torch.
        fused: as in torch.

    Returns:
        the optimiser, with a group for each of the two kinds of weights that are there, in this order:
        with decay, without.
    """
    weights = list(params)
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=(betas[0], betas[1]),
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        foreach=foreach,
        fused=fused,
    )
