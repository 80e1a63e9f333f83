"""A student with its weights spread over the ranks of a run: FSDP2 of torch."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from amid.distributed import ranks
from amid.errors import InputError
from amid.models.counted_states import forward_replaced
from amid.models.layers import decoder_layers

T = TypeVar("T")


class ShardedStudent:
    """Spreads the weights of a model over the ranks (in place): each rank keeps its part of every weight.

    A forward pass gathers the weights of one decoder layer at a time, and a backward pass gathers them again
    and leaves each rank its part of the summed gradient. Embeddings and head are gathered together. All ranks
    must make equally many passes.

    Args:
        model: the student; all ranks get the weights of the first one, one at a time. On other ranks it may
            have no values, on the meta device.
        device: the device of this rank.

    Raises:
        InputError: if the model's decoder layers cannot be found, or torch is too old.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        layers = decoder_layers(model)
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise InputError(
                f"trainer.strategy=fsdp: torch {torch.__version__} is too old to sum spread gradients; "
                "install a newer torch, or use trainer.strategy=ddp"
            )
        values = model.state_dict() if ranks.is_first() else {}
        fixed = [place[name] for place, name in _fixed_tensors(model)]
        _forget_weights(model)
        self._shell = _without_weights(model, device)
        mesh = init_device_mesh(device.type, (ranks.number(),))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        root: Any = fully_shard(model, mesh=mesh)
        root.to_empty(device=device)
        with ranks.exchanging():
            set_model_state_dict(root, values, options=_FROM_FIRST)
        places = zip(_fixed_tensors(root), _fixed_tensors(self._shell), fixed, strict=True)
        for (place, name), (in_shell, _), value in places:
            place[name] = ranks.of_first(value, device)
            in_shell[name] = place[name].clone()
        self._root, self._device = root, device
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # gradients are sums over the ranks
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def compute(self, loss: Callable[[], T]) -> T:
        """Returns what `loss` returns, called as the forward pass of the student.

        So body and head, which `loss` calls apart, have their weights.
        """
        with (
            ranks.exchanging(),
            self._without_cached_casts(),
            forward_replaced(self._root, lambda *_: loss()),
        ):
            computed: T = self._root(None)
        self._after_pass()
        return computed

    def idle(self) -> Tensor:
        """Returns 0, with a gradient of 0: a pass of a rank that has no rows while others have some."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        with ranks.exchanging():
            logits = self._root(input_ids=token, use_cache=False).logits
        self._after_pass()
        nothing: Tensor = 0 * logits.float().sum()
        return nothing

    def begin_pass(self, last: bool) -> None:
        """Says whether the next backward pass is the last one of a loss.

        Only the last pass sums the gradient of embeddings and head over the ranks. These weights stay
        gathered until then, so that they are exchanged once for all micro-batches.
        """
        self._root.set_requires_gradient_sync(last, recurse=False)
        self._root.set_reshard_after_backward(last, recurse=False)

    @contextlib.contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """Within the block each rank has a plain model with the present weights, on its device."""
        self._fill()
        try:
            yield self._shell
        finally:
            for weight in self._shell.parameters():
                weight.data = weight.data.new_empty(0)

    def gathered(self) -> PreTrainedModel:
        """Returns a plain model with the present weights, which each rank keeps."""
        self._fill()
        return self._shell

    def _fill(self) -> None:
        with torch.no_grad(), ranks.exchanging():
            parts: Iterable[Any] = self._root.parameters()
            for weight, of_ranks in zip(self._shell.parameters(), parts, strict=True):
                weight.data = of_ranks.full_tensor()

    def _after_pass(self) -> None:
        if not torch.is_grad_enabled():  # otherwise the backward pass does it
            self._root.reshard()

    def _without_cached_casts(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which autocast keeps no cast copies of the weights beyond their use."""
        of = self._device.type
        if not torch.is_autocast_enabled(of):
            return contextlib.nullcontext()
        return torch.autocast(of, torch.get_autocast_dtype(of), cache_enabled=False)


_FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def _forget_weights(model: PreTrainedModel) -> None:
    """Gives a model weights without values, on the meta device (in place); shared ones stay shared."""
    empty: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                meta = torch.empty_like(weight, device="meta")
                module._parameters[name] = empty.setdefault(weight, nn.Parameter(meta, weight.requires_grad))


def _fixed_tensors(model: PreTrainedModel) -> list[tuple[dict[str, Any], str]]:
    """The tensors of a model that are no weights: each as the dictionary that holds it, and its key there."""
    return [
        (place, name)
        for module in model.modules()
        for place in (module._buffers, vars(module))
        for name, value in place.items()
        if isinstance(value, Tensor)
    ]


def _without_weights(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Returns a copy of a model with empty weights on `device`."""
    empty: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty(0, dtype=weight.dtype, device=device), weight.requires_grad)
        for weight in model.parameters()
    }
    shell: PreTrainedModel = copy.deepcopy(model, empty)
    return shell


def spread_as(value: Any, weight: Tensor) -> Any:
    """Returns a whole tensor spread as a weight is, if it has the weight's shape; else the value itself."""
    whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not whole or not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(
        value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
    )


def spread(state: dict[str, Any], weights: Iterable[Tensor]) -> dict[str, Any]:
    """Returns the state of an optimiser with each whole tensor spread as its weight is.

    Args:
        state: `Optimizer.state_dict()`, with the same whole tensors on all ranks.
        weights: the optimiser's weights, in its order.
    """
    numbered = dict(enumerate(weights))
    of_weights = {
        number: {name: spread_as(value, numbered[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": of_weights}
