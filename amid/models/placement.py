"""Where a model's weights are: on one device, or spread over devices, the CPU and the disk by accelerate."""

from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn
from transformers import PreTrainedModel


def is_spread(model: PreTrainedModel) -> bool:
    """Returns whether accelerate brings the model's weights and inputs together, layer by layer."""
    return hasattr(model, "_hf_hook")


def move(model: PreTrainedModel, device: torch.device) -> None:
    """Moves a model's weights to `device`; a model that is spread stays where it is."""
    if not is_spread(model):
        model.to(device)  # type: ignore[arg-type]


def input_device(model: PreTrainedModel) -> torch.device:
    """Returns the device on which the model embeds its input."""
    hook: Any = getattr(model.get_input_embeddings(), "_hf_hook", None)
    return model.device if hook is None else torch.device(hook.execution_device)


def weights_of(layer: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of a layer by name, on the device that computes with them, also if the layer's
    model keeps them on the CPU or the disk."""
    away = has_offloaded_params(layer)
    with align_module_device(layer):
        weights = layer.named_parameters(recurse=False)
        return {name: weight.detach().clone() if away else weight for name, weight in weights}
