"""Rules that move settings of the assistant during training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from amid.errors import InputError
from amid.losses import Loss
from amid.settings import check_arguments, nodes
from amid.settings.together import check_ends

Values = dict[str, float]


class Schedule(ABC):
    """A rule that sets attributes of an objective's assistant, such as `lam`, before each optimiser step."""

    needs: ClassVar[Sequence[str]] = ()
    """The sums of `return_stats=True` that `update` needs the means of."""

    @property
    @abstractmethod
    def values(self) -> Values:
        """The attributes of the assistant, with their values at the next step."""

    @property
    @abstractmethod
    def ends(self) -> Sequence[Values]:
        """The extreme values, which an objective must allow before training begins."""

    @abstractmethod
    def update(self, step: int, steps: int, means: Mapping[str, float]) -> None:
        """Computes the next values, after an optimiser step.

        Args:
            step: the number of optimiser steps before this step, from 0.
            steps: optimiser steps of the whole training.
            means: means over all counted tokens of the step: "loss" and the sums that the schedule `needs`.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, float | None]:
        """Returns the numbers that a resumed run continues from."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Continues from a stored state."""

    def apply(self, objective: Loss) -> None:
        """Sets the assistant of `objective` to `values`."""
        assistant = getattr(objective, "assistant", None)
        for name, value in self.values.items():
            setattr(assistant, name, value)

    def begin(self, objective: Loss) -> None:
        """Sets the assistant of `objective` to the first values.

        Raises:
            InputError: if it has no such assistant, or refuses the values at either end.
        """
        name, assistant = type(self).__name__, getattr(objective, "assistant", None)
        for attribute in self.values:
            if not hasattr(assistant, attribute):
                raise InputError(
                    f"schedule {name} moves {attribute} of an assistant, but {objective!r} has none; "
                    "choose schedule=none, or assistant=alpha_mixture and an order with r"
                )
        try:
            for values in self.ends:
                for attribute, value in values.items():
                    setattr(assistant, attribute, value)
                objective.check()
        except ValueError as error:
            raise InputError(f"schedule {name} ends where the objective cannot: {error}") from error
        self.apply(objective)


class TAID(Schedule):
    """TAID's rule for λ (arXiv 2501.16937): faster than linear, and faster still while L falls quickly.

        Δ = (L_before - L) / (L_before + 1e-15)
        m ← momentum m + (1 - momentum) Δ
        λ ← min(end, max(start + (end - start) step/steps, λ + rate sigmoid(m) (1 - λ)))

    after each optimiser step except the first, which only gives L. m begins at 0. L is the mean loss plus the
    mean entropy of the assistant: with TAID's objective KL(r ‖ q) the cross-entropy -Σ r log q.

    The validation loss uses the current λ. So the validation losses of two epochs have different objectives.

    Args:
        start: λ at the first step, 0 ≤ start ≤ end; published: 0.2 to 0.4.
        end: the largest λ, at most 1.
        rate: the step size, at least 0 (the paper's α).
        momentum: the share of m that is kept, 0 ≤ momentum < 1 (the paper's β).

    Raises:
        InputError: if one of them is out of range.
    """

    needs = ("entropy_r",)

    def __init__(
        self, start: float = 0.4, end: float = 1.0, rate: float = 5e-4, momentum: float = 0.99
    ) -> None:
        check_arguments("schedule.", nodes.TAID, locals())
        check_ends(start, end)
        self.start, self.end, self.rate, self.momentum = float(start), float(end), rate, momentum
        self._lam = self.start
        self._trend = 0.0
        self._loss: float | None = None

    @property
    def values(self) -> Values:
        """λ."""
        return {"lam": self._lam}

    @property
    def ends(self) -> Sequence[Values]:
        """λ at `start` and at `end`."""
        return [{"lam": self.start}, {"lam": self.end}]

    def update(self, step: int, steps: int, means: Mapping[str, float]) -> None:
        """Sets λ for the next step by the rule that the class describes."""
        before, self._loss = self._loss, means["loss"] + means["entropy_r"]
        if before is None:
            return
        change = (before - self._loss) / (before + 1e-15)
        self._trend = self.momentum * self._trend + (1 - self.momentum) * change
        sigmoid = 0.5 * (1 + math.tanh(self._trend / 2))
        linear = self.start + (self.end - self.start) * step / steps
        faster = self._lam + self.rate * sigmoid * (1 - self._lam)
        self._lam = min(self.end, max(linear, faster))

    def state_dict(self) -> dict[str, float | None]:
        """λ, m and L."""
        return {"lam": self._lam, "trend": self._trend, "loss": self._loss}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Continues from a stored λ, m and L."""
        lam, trend = state["lam"], state["trend"]
        assert lam is not None
        assert trend is not None
        self._lam, self._trend, self._loss = lam, trend, state["loss"]
