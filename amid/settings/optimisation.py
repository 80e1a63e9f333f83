"""The settings of optimisers, learning-rate schedules and callbacks, as models of their nodes."""

from typing import Annotated, Literal

from pydantic import Field

from amid.settings.types import (
    Betas,
    Count,
    Flag,
    FlagOrNone,
    Natural,
    Node,
    NotNegative,
    NumberOrNone,
    Positive,
    Share,
    Text,
    Warmup,
)


class _AdamW(Node):
    """The settings that every AdamW has."""

    lr: NotNegative = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 1e-2


class EightBitAdamW(_AdamW):
    """`amid.training.low_bit.adamw_8bit`."""


class GroupedAdamW(_AdamW):
    """`amid.training.parameter_groups.adamw`."""

    amsgrad: Flag = False
    foreach: FlagOrNone = None
    fused: FlagOrNone = None


class AdamWWithMasterWeights(_AdamW):
    """`amid.training.master_weights.AdamWWithMasterWeights`."""

    foreach: FlagOrNone = None
    fused: FlagOrNone = None


class AdamW(_AdamW):
    """`torch.optim.AdamW`."""

    amsgrad: Flag = False
    maximize: Annotated[Literal[False], Field(description="false: a loss is minimised")] = False
    foreach: FlagOrNone = None
    capturable: Flag = False
    differentiable: Annotated[Literal[False], Field(description="false")] = False
    fused: FlagOrNone = None


class WithWarmup(Node):
    """`amid.training.learning_rate.linear` and `.constant`."""

    warmup: Warmup = 0


class Cosine(WithWarmup):
    """`amid.training.learning_rate.cosine`."""

    eta_min: NotNegative = 0.0


class CosineWithRestarts(WithWarmup):
    """`amid.training.learning_rate.cosine_with_restarts`."""

    num_cycles: Count = 1


class Polynomial(WithWarmup):
    """`amid.training.learning_rate.polynomial`."""

    lr_end: NotNegative = 1e-7
    power: Positive = 1.0


class InverseSqrt(WithWarmup):
    """`amid.training.learning_rate.inverse_sqrt`."""

    timescale: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(description="a whole number of steps from 1, or null for the warm-up's, 10,000 without one"),
    ] = None


class WarmupStableDecay(WithWarmup):
    """`amid.training.learning_rate.warmup_stable_decay`."""

    decay: Warmup = 0.1
    warmup_type: Literal["linear", "cosine", "1-sqrt"] = "linear"
    decay_type: Literal["linear", "cosine", "1-sqrt"] = "cosine"
    min_lr_ratio: Share = 0.0
    num_cycles: Positive = 0.5


class CosineWithMinLR(WithWarmup):
    """`amid.training.learning_rate.cosine_with_min_lr`."""

    min_lr: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
        Field(description="a finite number from 0, or null if scheduler.min_lr_rate is set"),
    ] = None
    min_lr_rate: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        Field(description="a number from 0 to 1, or null if scheduler.min_lr is set"),
    ] = None
    num_cycles: Positive = 0.5


class CosineWarmupWithMinLR(CosineWithMinLR):
    """`amid.training.learning_rate.cosine_warmup_with_min_lr`."""

    warmup_lr_rate: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        Field(description="a number from 0 to 1, or null for 1 / the steps of the warm-up"),
    ] = None


class AverageWeights(Node):
    """`amid.training.averaging.AverageWeights`."""

    decay: Annotated[
        Annotated[float, Field(ge=0, lt=1)] | None,
        Field(description="a number from 0 and below 1, or null for the mean of all steps"),
    ] = 0.999
    start: Warmup = 0


class EarlyStopping(Node):
    """`lightning.pytorch.callbacks.EarlyStopping`."""

    monitor: Text
    min_delta: NotNegative = 0.0
    patience: Natural = 3
    verbose: Flag = False
    mode: Literal["min", "max"] = "min"
    strict: Flag = True
    check_finite: Flag = True
    stopping_threshold: NumberOrNone = None
    divergence_threshold: NumberOrNone = None
    check_on_train_epoch_end: Annotated[
        Literal[False] | None, Field(description="false or null: validations are checked")
    ] = None
    log_rank_zero_only: Flag = False


class DeviceStatsMonitor(Node):
    """`lightning.pytorch.callbacks.DeviceStatsMonitor`."""

    cpu_stats: FlagOrNone = None
