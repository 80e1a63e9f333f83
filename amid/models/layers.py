"""The decoder layers of a model, and a student made of some of them."""

from collections.abc import Sequence

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel

from amid.errors import InputError


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Returns the decoder layers of a model.

    Raises:
        InputError: if they cannot be found.
    """
    _, _, stack = _stack(model)
    if stack is None:
        raise InputError(
            f"trainer.strategy=fsdp: the decoder layers of {type(model).__name__} were not found; use "
            "trainer.strategy=ddp"
        )
    return stack


def _stack(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList | None]:
    """Returns the module that holds the decoder layers, their name in it, and the layers if there are any."""
    n = model.config.get_text_config().num_hidden_layers
    for parent in model.base_model.modules():
        for name, module in parent.named_children():
            if isinstance(module, nn.ModuleList) and len(module) == n:
                return parent, name, module
    return model, "", None


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Keeps only the transformer layers with these indices, in this order (in place).

    Raises:
        InputError: if an index is out of range, the model's layers cannot be found, or no configuration says
            which of them are left.
    """
    config = model.config.get_text_config()
    parent, name, stack = _stack(model)
    if stack is None:
        raise InputError(
            f"model.student.layers: the layers of {type(model).__name__} were not found; use null"
        )
    if not layers or not all(0 <= i < len(stack) for i in layers):
        raise InputError(
            f"model.student.layers={list(layers)}: choose indices from 0 to {len(stack) - 1}, at least one"
        )
    kept = nn.ModuleList([stack[i] for i in layers])
    for position, layer in enumerate(kept):
        for module in layer.modules():
            for number in ("layer_idx", "layer_id"):
                if hasattr(module, number):
                    setattr(module, number, position)
    setattr(parent, name, kept)
    for field, of_layers in list(vars(config).items()):  # such as layer_types
        if isinstance(of_layers, list) and len(of_layers) == len(stack):
            setattr(config, field, [of_layers[i] for i in layers])
    if hasattr(config, "attention_types"):  # GPT-Neo's, from which it makes attention_layers
        config.attention_types = [[list(config.attention_layers), 1]]
    config.num_hidden_layers = len(kept)
    _check_configuration(model, layers)


def _check_configuration(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raises InputError if the configuration does not describe this model of some layers only."""
    try:
        with torch.device("meta"):
            again = type(model)(type(model.config).from_dict(model.config.to_dict()))
        said = {name: tuple(weight.shape) for name, weight in again.named_parameters()}
        is_told = said == {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    except (TypeError, ValueError, LookupError, StrictDataclassError):
        is_told = False
    if not is_told:
        raise InputError(
            f"model.student.layers={list(layers)}: the configuration of {model.config.model_type} cannot say "
            "which layers are left, so that no other program could load the student; use null"
        )
