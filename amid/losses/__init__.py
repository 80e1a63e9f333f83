"""Distillation losses: assistants between teacher and student, divergences, and objectives over them.

The losses are pure torch and work in any training loop. The last dimension of all log-probabilities and
logits is the vocabulary. An objective is a divergence between two of p (teacher), q (student) and r
(assistant), averaged over the counted tokens.
"""

from amid.losses.adaptive_kl import AdaptiveKL
from amid.losses.alphanet import AlphaNet
from amid.losses.assistant import AlphaMixture
from amid.losses.base import Loss
from amid.losses.bidirectional_kl import BidirectionalKL
from amid.losses.cross_entropy import CrossEntropy
from amid.losses.distillation import Distillation
from amid.losses.divergence import (
    KL,
    AlphaBeta,
    AlphaDivergence,
    Divergence,
    JensenShannon,
    ReverseKL,
    TotalVariation,
)
from amid.losses.inputs import FusedInputs, Head
from amid.losses.objective import Objective
from amid.losses.policy_gradient import MiniLLM, long_term_loss, mixed_log_probs, rewards_to_go
from amid.losses.weighted_sum import WeightedSum

__all__ = [
    "KL",
    "AdaptiveKL",
    "AlphaBeta",
    "AlphaDivergence",
    "AlphaMixture",
    "AlphaNet",
    "BidirectionalKL",
    "CrossEntropy",
    "Distillation",
    "Divergence",
    "FusedInputs",
    "Head",
    "JensenShannon",
    "Loss",
    "MiniLLM",
    "Objective",
    "ReverseKL",
    "TotalVariation",
    "WeightedSum",
    "long_term_loss",
    "mixed_log_probs",
    "rewards_to_go",
]
