"""Distillation objectives: a divergence between two of teacher, student and assistant."""

import types
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from amid.config.calls import by_name, name_of, takes_names
from amid.losses.assistant import LEAST_SHARE, AlphaMixture, Mixing
from amid.losses.distillation import Distillation, through_softmax
from amid.losses.divergence import KL, Divergence, Pair
from amid.losses.inputs import Stats, Sums
from amid.losses.numerics import entropy, in_float64, log_normalise, softmaxes

_ORDERS = ("pq", "qp", "pr", "rp", "qr", "rq")

_SMALL_LAM = 0.05
"""Below this λ, q and r are so close that a gradient of D(q, r) is computed in float64: it is of second order
in λ, and its parts, of first order, cancel."""


class Objective(Distillation):
    """A divergence between two of teacher, student and assistant, averaged over the counted tokens.

    With the order "pr" it is AMiD's objective D(p ‖ r) (arXiv 2510.15982). Without an assistant it is the
    knowledge distillation loss D(p ‖ q). The gradient reaches the student through q and, unless the
    assistant detaches the student, through r. It never reaches the teacher.

    `return_stats=True` also gives "entropy_r" with an assistant. With an `AlphaMixture` it gives
    "gradient_weight", the mean Σ_v q_v w_v of `gradient_weight` w under q, at each position.

    Args:
        divergence: D, from two [..., V] tensors of log-probabilities to a [...] tensor: one of this
            package or any function, called with `log_a=` and `log_b=`.
        assistant: r, from log p and log q to log r, [..., V] each: an `AlphaMixture` or any function, called
            with `log_p=` and `log_q=`; or None.
        order: first and second argument of D: two different letters of p (teacher), q (student) and r
            (assistant). None means "pr" with an assistant and "pq" without.
        shared_vocab: see `Distillation`.
        fused: see `Distillation`.
        compiled: whether torch.compile compiles the arithmetic between the matrix products of `fused`. This
            saves passes over the logits. It takes some seconds once, and needs a C++ compiler (Triton on a
            GPU). It needs a built-in divergence, without an assistant or with an `AlphaMixture`.

    Raises:
        ValueError: if `order` is not one of these, does not fit the assistant, or leaves no gradient: λ = 1
            with pr or rp (r = p), λ = 0 with qr or rq (r = q), a detached student with pr or rp. A call
            raises the same error if `assistant` was changed to such a value.
    """

    def __init__(
        self,
        divergence: Callable[[Tensor, Tensor], Tensor],
        assistant: Callable[[Tensor, Tensor], Tensor] | None = None,
        order: str | None = None,
        shared_vocab: int | None = None,
        fused: bool = True,
        compiled: bool = False,
    ) -> None:
        super().__init__(shared_vocab, fused)
        self.compiled = compiled
        self._arithmetic = self._block
        if compiled:  # as code of its own: what is kept compiled for one code object is limited
            own = types.FunctionType(Objective._block.__code__.replace(), globals(), "_block")
            self._arithmetic = torch.compile(types.MethodType(own, self), dynamic=True)
        if isinstance(divergence, Mapping):
            raise ValueError(f"divergence={dict(divergence)} has no _target_; name its class there")
        if not callable(divergence):
            raise ValueError(f"divergence={divergence} is none; choose one, or objective=cross_entropy")
        _check_arguments("divergence", divergence, "log_a", "log_b")
        if isinstance(assistant, Mapping):
            raise ValueError(f"assistant={dict(assistant)} has no _target_; name its class there")
        if assistant is not None:
            if not callable(assistant):
                raise ValueError(f"assistant={assistant} is none; choose one, or assistant=none")
            _check_arguments("assistant", assistant, "log_p", "log_q")
        self.divergence = divergence
        self.assistant = assistant
        self.order = order if order is not None else "pq" if assistant is None else "pr"
        self.check()

    def __repr__(self) -> str:
        return (
            f"Objective({self.divergence!r}, assistant={self.assistant!r}, order={self.order!r}, "
            f"shared_vocab={self.shared_vocab!r})"
        )

    def _by_autograd(self, logits_q: Tensor, logits_p: Tensor, with_stats: bool) -> tuple[Tensor, Stats]:
        """Returns the loss at each position [N], differentiable, and the sums to be logged."""
        dtype = logits_q.dtype
        if self._compares_near_models:  # their difference would be lost in log r
            logits_q, logits_p = in_float64(logits_q), in_float64(logits_p)
        log_q, log_p = log_normalise(logits_q), log_normalise(logits_p)
        log_probs = {"p": log_p, "q": log_q}
        if self.assistant is not None:
            log_probs["r"] = by_name(self.assistant, log_p=log_p, log_q=log_q)
        first, second = (log_probs[name] for name in self.order)
        per_token = by_name(self.divergence, log_a=first, log_b=second)
        if per_token.shape != log_q.shape[:-1]:
            raise ValueError(
                f"divergence={name_of(self.divergence)} gives {list(per_token.shape)} for log-probabilities "
                f"{list(log_q.shape)}; it must give one number for each position: sum over the last axis"
            )
        if logits_q.requires_grad and torch.is_grad_enabled() and not per_token.requires_grad:
            raise ValueError(
                f"divergence={name_of(self.divergence)} gives no gradient; compute it with torch from its "
                "arguments, without detach or no_grad"
            )
        stats = self._stats({name: x.detach() for name, x in log_probs.items()}) if with_stats else {}
        return per_token.to(dtype), {name: x.to(dtype) for name, x in stats.items()}

    @property
    def _compares_near_models(self) -> bool:
        """Whether the divergence is between the assistant and a model that has nearly all of it."""
        if not isinstance(self.assistant, AlphaMixture) or "r" not in self.order:
            return False
        share = self.assistant.lam if "q" in self.order else 1 - self.assistant.lam
        return share < _SMALL_LAM

    @property
    def _has_closed_form(self) -> bool:
        """Whether divergence and assistant are built-in ones, or made of them by subclassing."""
        divergence, assistant = self.divergence, self.assistant
        return (
            isinstance(divergence, Divergence)
            and type(divergence).__call__ is Divergence.__call__
            and (
                assistant is None
                or (isinstance(assistant, AlphaMixture) and type(assistant).__call__ is AlphaMixture.__call__)
            )
        )

    def _in_closed_form(
        self, logits_q: Tensor, logits_p: Tensor, with_gradient: bool, with_stats: bool
    ) -> tuple[Sums, Tensor]:
        """Returns the loss in closed form, and where [N] it is exact."""
        assistant, order = self.assistant, self.order
        if isinstance(assistant, AlphaMixture):
            if assistant.lam in (0, 1):
                order = order.replace("r", "p" if assistant.lam == 1 else "q")
            elif min(assistant.lam, 1 - assistant.lam) < LEAST_SHARE:
                return Sums(logits_q.new_zeros(()), None, {}), logits_q.new_zeros(len(logits_q)).bool()
            elif "q" in order and assistant.lam < _SMALL_LAM:
                logits_q, logits_p = in_float64(logits_q), in_float64(logits_p)
        assert isinstance(self.divergence, Divergence)
        if self.divergence.counts_the_unlikely:
            logits_q, logits_p = in_float64(logits_q), in_float64(logits_p)
        mixing = None
        if "r" in order:
            assert isinstance(assistant, AlphaMixture)
            mixing = assistant.mixing(beside=order.replace("r", ""))
        try:
            sums, precise = self._arithmetic(logits_q, logits_p, order, mixing, with_gradient, with_stats)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise RuntimeError(
                f"compiled=True: torch.compile failed ({str(error).strip().splitlines()[0]}); it needs a C++ "
                "compiler such as g++ (on a GPU: Triton), without one choose compiled=False"
            ) from error
        if with_stats and isinstance(assistant, AlphaMixture) and mixing is None:
            stats = sums.stats
            stats["entropy_r"] = stats["entropy_p" if assistant.lam == 1 else "entropy_q"]
            stats["gradient_weight"] = sums.value.new_tensor(len(logits_q) * (1 - assistant.lam))
        return sums, precise

    def _block(
        self,
        logits_q: Tensor,
        logits_p: Tensor,
        order: str,
        mixing: Mixing | None,
        with_gradient: bool,
        with_stats: bool,
    ) -> tuple[Sums, Tensor]:
        """Returns the loss, and the positions at which all of it is finite.

        With g_a, g_b the partials of D and w the assistant's gradient weight,

            h = g_q + w (g_r - r Σ g_r)        ∂L/∂z = h - q Σ h

        where g_q is the partial of the argument that is q, and 0 if no argument is q; likewise g_r for r.
        """
        log_p, p = softmaxes(logits_p)
        log_q, q = softmaxes(logits_q)
        logs, probs = {"p": log_p, "q": log_q}, {"p": p, "q": q}
        weight: Tensor | float = 0.0
        if mixing is not None:
            logs["r"], probs["r"], log_ratio, difference, weight = mixing.mixed(log_p, log_q, p, q)
            if order[1] == "r":
                log_ratio, difference = log_ratio.neg_(), difference.neg_()
        else:
            log_ratio, difference = logs[order[0]] - logs[order[1]], probs[order[0]] - probs[order[1]]
        a, b = order[0], order[1]
        assert isinstance(self.divergence, Divergence)
        value, *partials = self.divergence.value_and_partials(
            Pair(logs[a], logs[b], probs[a], probs[b], log_ratio, difference)
        )
        finite, gradient = torch.isfinite(value), None
        if with_gradient:
            by_name = dict(zip(order, partials, strict=True))
            gradient = by_name.get("q")
            if "r" in order and not (isinstance(weight, float) and weight == 0):
                through_r = by_name["r"]
                through_r = (through_r - probs["r"] * through_r.sum(-1, keepdim=True)) * weight
                gradient = through_r if gradient is None else through_r.add_(gradient)
            assert gradient is not None
            gradient, finite_gradient = through_softmax(gradient, q)
            finite = finite & finite_gradient
        stats: Stats = {}
        if with_stats:
            stats = {f"entropy_{name}": torch.special.entr(probs[name]).sum() for name in logs}
            of_rows = (p * (log_p - log_q)).masked_fill(p == 0, 0).sum(-1)
            stats["kl_pq"] = of_rows.clamp(min=0).sum()
            if mixing is not None:
                stats["gradient_weight"] = (q * weight).sum()
        return Sums(value.sum(), gradient, stats), finite

    def _stats(self, log_probs: dict[str, Tensor]) -> Stats:
        stats = {f"entropy_{name}": entropy(log_probs[name]) for name in sorted(log_probs)}
        log_p, log_q = log_probs["p"], log_probs["q"]
        if isinstance(self.assistant, AlphaMixture):
            stats["gradient_weight"] = (log_q.exp() * self.assistant.gradient_weight(log_p, log_q)).sum()
        stats["kl_pq"] = KL()(log_p, log_q).sum()
        return stats

    def check(self) -> None:
        """Raises a ValueError for an unknown order, a missing assistant, or a loss without a gradient."""
        super().check()
        order, assistant = self.order, self.assistant
        if order not in _ORDERS:
            raise ValueError(
                f"order must be two different letters of p (teacher), q (student) and r (assistant), got "
                f"order={order!r}; choose one of {', '.join(_ORDERS)}"
            )
        if "r" in order and assistant is None:
            raise ValueError(
                f"order={order!r} names the assistant r but assistant=None; give one, or choose pq or qp"
            )
        if "r" not in order and assistant is not None:
            raise ValueError(
                f"order={order!r} does not use the assistant {assistant!r}; leave the assistant out, "
                f"or choose pr, rp, qr or rq"
            )
        if isinstance(assistant, AlphaMixture):
            if "p" in order and assistant.detach_student:
                raise ValueError(
                    f"order={order!r} with detach_student=True has no gradient: the student enters through r "
                    f"alone; choose detach_student=False, or order qr or rq"
                )
            if "p" in order and assistant.lam == 1:
                raise ValueError(
                    f"order={order!r} with lam=1 has no gradient: r = p whatever the student is; "
                    f"choose lam < 1, or order qr or rq"
                )
            if "q" in order and assistant.lam == 0:
                raise ValueError(
                    f"order={order!r} with lam=0 has no gradient: r = q whatever the student is; "
                    f"choose lam > 0, or order pr or rp"
                )


def _check_arguments(what: str, function: Callable[..., Tensor], *names: str) -> None:
    """Raises a ValueError where a divergence or an assistant cannot be called with tensors of these names."""
    try:
        takes_names(function, names)
    except TypeError as error:
        raise ValueError(
            f"{what}={error}; it is called with two tensors of log-probabilities [..., V]"
        ) from error
