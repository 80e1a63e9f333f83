"""A model's last hidden states at the counted positions alone, and the head that makes logits of them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids
from transformers.utils.generic import is_flash_attention_requested

from amid.distributed import ranks
from amid.errors import InputError
from amid.losses import Head
from amid.models.limits import check_ignores_what_follows
from amid.models.lora import plain_head
from amid.models.placement import input_device, is_spread, weights_of
from amid.models.source import log


@torch.no_grad()
def split_head(model: PreTrainedModel) -> Head | None:
    """The model's head, with the scale and soft-capping that the configuration names.

    Its logits are compared with the model's own logits on a few tokens, and again on states so large that a
    cap under an unknown name would show. The result is None if the logits differ.
    """
    output, config = plain_head(model), model.config.get_text_config()
    if output is None:
        return None
    weights = weights_of(output)
    head = Head(
        weights["weight"],
        weights.get("bias"),
        scale=getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1),
        softcap=next((cap for name in _SOFTCAPS if (cap := getattr(config, name, None))), None),
    )
    training = model.training
    model.eval()
    ids = torch.arange(2, 8, device=input_device(model)).view(2, 3) % int(config.vocab_size)
    with _without_mask(model):
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.to(head.weight.device)
    room = torch.finfo(states.dtype).max / 4 / float(states.abs().max().clamp(min=1))
    largest = float(head.logits(states).abs().max().clamp(min=1e-6))
    same = all(_gives_its_logits(head, output, model, ids, f) for f in (1.0, min(_LARGE / largest, room)))
    model.train(training)
    return head if same else None


def _gives_its_logits(
    head: Head, output: nn.Linear, model: PreTrainedModel, ids: Tensor, factor: float
) -> bool:
    """Whether `head` gives the model's logits where its `output` is given `factor` times the states."""
    seen: list[Tensor] = []

    def enlarge(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(inputs[0] * factor)
        return seen[-1], *inputs[1:]

    handle = output.register_forward_pre_hook(enlarge)
    with _without_mask(model):
        try:
            theirs = model(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state * factor
    ours = head.logits(states.to(head.weight.device)).to(theirs)
    if not seen or ours.shape != theirs.shape:
        return False
    tolerance = max(1e-3, 4 * torch.finfo(theirs.dtype).eps)
    ours, theirs = ours.float(), theirs.float()
    return torch.allclose(ours, theirs, tolerance, tolerance * float(theirs.abs().max()))


_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
"""The names of the logits' cap in configurations."""

_LARGE = 1e3
"""Logits that any cap in use would change much."""


class CountedStates:
    """The last hidden states [N, D] of a model at chosen positions only, and its head.

    Rows are padded on the right, where causal attention does not look: without a mask, attention takes its
    fastest way, and what counts stays the same.

    Rows may also be packed: one row [1, length] of several sequences, with `position_ids` [1, length] that
    begin at 0 in each. The model's attention then stays within a sequence, by a block-diagonal mask, or for
    FlashAttention by the sequences' cumulative lengths. At the first packed row a check on a few tokens shows
    whether it does.

    Raises:
        InputError: if the model's states depend on later tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._body = model.base_model
        self._takes_packed = False
        self._shape: tuple[float, float | None] | None = None
        if is_spread(model) or not all(weight.is_meta for weight in model.parameters()):
            # Without any values, the first rank of the run knows, see `agree`.
            self._try_out()

    def _try_out(self) -> None:
        with _attention_of_its_device(self.model):
            check_ignores_what_follows(self.model)
            head = split_head(self.model)
        if head is not None:
            self._shape = head.scale, head.softcap
        else:
            log.warning(
                "%s: logits are taken at all positions, its head's weight alone gives others",
                type(self.model).__name__,
            )

    def agree(self, packed: bool) -> None:
        """Gives all ranks what the first one knows of the model: others may have no values of its weights.

        Args:
            packed: whether rows will be packed; the check of `check_packed` then happens now.

        Raises:
            InputError: on all ranks, if the model does not keep packed rows apart.
        """

        def known() -> tuple[tuple[float, float | None] | None, bool]:
            if packed:
                self.check_packed()
            return self._shape, self._takes_packed

        self._shape, self._takes_packed = ranks.from_first(known)

    @property
    def head(self) -> Head | None:
        """The head with the model's present weights; None if it does not give the model's own logits.

        See `split_head`. A model that is spread over processes has whole weights only `within_head`.
        """
        output = plain_head(self.model)
        if self._shape is None or output is None:
            return None
        weights = weights_of(output)
        return Head(weights["weight"], weights.get("bias"), *self._shape)

    def within_head(self, states: Tensor, compute: Callable[[Head, Tensor], Any]) -> Any:
        """Returns `compute(head, states)`, called as the forward pass of the layer that makes the logits.

        So the hooks of that layer run. They gather its weights where the weights are spread over processes,
        and scatter the gradient.
        """
        output = plain_head(self.model)
        assert output is not None

        def forward(states: Tensor) -> Any:
            assert self.head is not None
            return compute(self.head, states)

        with forward_replaced(output, forward):
            layer: Any = self.model.get_output_embeddings()
            return layer(states)

    def hidden(self, input_ids: Tensor, positions: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The states [N, D] where `positions` [rows, length] is true, row by row.

        Raises:
            InputError: for packed rows that the model does not keep apart.
        """
        return _at(self._states(input_ids, position_ids), positions)

    def logits(self, input_ids: Tensor, positions: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The model's logits [N, V] at the same positions."""
        if self.head is not None:
            states = self.hidden(input_ids, positions, position_ids)
            found: Tensor = self.within_head(states, Head.logits)
            return found
        borders = self._borders(position_ids)
        with _without_mask(self.model):
            output = self.model(input_ids=input_ids, use_cache=False, **borders)
        return _at(output.logits, positions)

    def _states(self, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
        borders = self._borders(position_ids)
        with _without_mask(self.model):
            states: Tensor = self._body(input_ids=input_ids, use_cache=False, **borders).last_hidden_state
        return states

    def check_packed(self) -> None:
        """Checks once that the model takes packed rows, see `check_takes_packed`."""
        if not self._takes_packed:
            check_takes_packed(self.model)
            self._takes_packed = True

    def _borders(self, position_ids: Tensor | None) -> dict[str, Any]:
        """The arguments that show the model where packed rows begin; none for rows that are not packed."""
        if position_ids is None:
            return {}
        self.check_packed()
        return _borders(self.model, position_ids)


def check_takes_packed(model: PreTrainedModel) -> None:
    """Checks on a few tokens that packed rows are to a model as rows of their own.

    A model that is to run with FlashAttention, and still is on a CPU, is not checked.

    Raises:
        InputError: if one row changes the states of the next, its places are counted on from the row before,
            the model takes no `position_ids`, or it holds a mask of a fixed length.
    """
    waits = model.device.type == "cpu" and is_flash_attention_requested(model.config)
    if not waits and not _keeps_packed_apart(model):
        raise InputError(
            f"{type(model).__name__} does not keep packed rows apart; give padded rows: data.packing=false, "
            "or a data collator that pads"
        )


@torch.no_grad()
def _keeps_packed_apart(model: PreTrainedModel) -> bool:
    if any(mask.dtype == torch.bool and mask.dim() > 1 for mask in model.buffers()):
        return False  # such as GPT-Neo's, as long as one row
    before, other, row = [2, 3, 4, 5], [9, 8, 7, 6], [5, 2, 3]
    places = torch.tensor([[*range(len(before)), *range(len(row))]], device=model.device)
    training = model.training
    model.eval()
    try:
        first, second, alone = (
            model.base_model(
                input_ids=torch.tensor([ids], device=model.device)
                % int(model.config.get_text_config().vocab_size),
                use_cache=False,
                **_borders(model, places[:, -len(ids) :]),
            ).last_hidden_state[:, -len(row) :]
            for ids in (before + row, other + row, row)
        )
    except (TypeError, ValueError):  # for an argument that it does not know
        return False
    finally:
        model.train(training)
    eps, largest = torch.finfo(first.dtype).eps, float(first.abs().max())
    seen, moved = (float((first - of).abs().max()) / largest for of in (second, alone))
    return bool(seen <= eps**0.75 and moved <= eps**0.5)  # `second` has the same shape, so it is almost exact


def _borders(model: PreTrainedModel, position_ids: Tensor) -> dict[str, Any]:
    borders: dict[str, Any] = {"position_ids": position_ids}
    if is_flash_attention_requested(model.config):  # which else looks for the borders again in each layer
        ends, longest = prepare_fa_kwargs_from_position_ids(position_ids)
        borders |= {"cu_seq_lens_q": ends[0], "cu_seq_lens_k": ends[1]}
        borders |= {"max_length_q": int(longest[0]), "max_length_k": int(longest[1])}
    return borders


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """Returns the values [N, ...] at these positions, on the device of `positions`."""
    return values[positions.to(values.device)].to(positions.device)


@contextlib.contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Lets the next call of `module`, or of a wrapper around it, call `forward`, with the hooks of both.

    Within `forward`, a call of `module` is its own again.
    """
    before = vars(module).get("forward")

    def restore() -> None:
        vars(module).pop("forward", None)
        if before is not None:
            module.forward = before

    def once(*given: Any, **named: Any) -> Any:
        restore()
        return forward(*given, **named)

    module.forward = once
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def _attention_of_its_device(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model that is to run with FlashAttention on a GPU run on a CPU, where its weights still are."""
    chosen = model.config._attn_implementation
    instead = model.device.type == "cpu" and is_flash_attention_requested(model.config)
    if instead:
        model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        if instead:
            model.config._attn_implementation = chosen


@contextlib.contextmanager
def _without_mask(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model run on padded rows without a mask: some warn of that, by the padding token they know."""
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    pads = [getattr(config, "pad_token_id", None) for config in configs]
    for config in configs:
        config.pad_token_id = None
    try:
        yield
    finally:
        for config, pad in zip(configs, pads, strict=True):
            config.pad_token_id = pad
