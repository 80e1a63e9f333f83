"""Where a model's weights are: on one device, or spread over devices, the CPU and the disk by accelerate."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn
from transformers import PreTrainedModel

from amid.errors import InputError, first_line, nearest


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


def check_device_map(model: PreTrainedModel, device_map: Mapping[str, Any]) -> None:
    """Checks that a mapping gives each weight of a model, perhaps without values, one device.

    Raises:
        InputError: naming a module that there is not, that is in another module of the mapping, or that has
            no device.
    """
    names = [name for name, _ in model.named_modules()]
    for name, device in device_map.items():
        given = f"model device_map.{name}={device}"
        if name not in names:
            near = nearest(name, names)
            raise InputError(
                f"{given}: {type(model).__name__} has no such module{near}{'?' if near else '; name one'}"
            )
        around = [of for of in device_map if of != name and (not of or name.startswith(f"{of}."))]
        if around:
            raise InputError(
                f"{given}: {around[0] or 'the model'} has a device too, and {name} is in it; name modules "
                "that are apart"
            )
    for name, _ in model.named_parameters(remove_duplicate=False):
        if not any(not module or name.startswith(f"{module}.") for module in device_map):
            module = name.rpartition(".")[0]
            raise InputError(f"model device_map={dict(device_map)} has no device for {module}; add it")


def check_devices(device_map: Mapping[str, Any]) -> None:
    """Checks that this machine has the devices of a mapping.

    Raises:
        InputError: naming a device that there is not.
    """
    for name, device in device_map.items():
        if device == "disk":
            continue
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # a build of torch without CUDA asserts
            raise InputError(
                f"model device_map.{name}={device}: this machine does not have this device "
                f"({first_line(error)}); use auto, or a device that there is"
            ) from error


def bytes_on_a_device(model: PreTrainedModel, device_map: str | Mapping[str, Any] | None) -> int:
    """Returns the most bytes of a model's weights that are on one device, or in the CPU's memory.

    Args:
        model: the model, perhaps without values.
        device_map: `ModelSource.device_map`. With a name, such as `auto`, each GPU of this machine is taken
            to hold an equal share.
    """
    if not isinstance(device_map, Mapping):
        parts = 1 if device_map is None else max(1, torch.cuda.device_count())
        return -(-sum(weight.nbytes for weight in model.parameters()) // parts)
    held: dict[Any, int] = defaultdict(int)
    for name, weight in model.named_parameters():
        inside = next(module for module in device_map if not module or name.startswith(f"{module}."))
        held[device_map[inside]] += weight.nbytes
    return max((size for device, size in held.items() if device != "disk"), default=0)


def weights_of(layer: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of a layer by name, on the device that computes with them, also if the layer's
    model keeps them on the CPU or the disk."""
    away = has_offloaded_params(layer)
    with align_module_device(layer):
        weights = layer.named_parameters(recurse=False)
        return {name: weight.detach().clone() if away else weight for name, weight in weights}
