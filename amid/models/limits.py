"""Checks of what a model can read: the length of texts, and reading from left to right."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from amid.console import announce
from amid.errors import InputError
from amid.models.placement import input_device

_LENGTHS = ("max_position_embeddings", "max_seq_len")
"""Fields of configurations: the positions that a model has, or was trained on."""

_OFFSETS = (0, 1, 2)
"""Rows of a table of positions that stand for none, such as OPT's two."""


def check_lengths(name: str, model: PreTrainedModel, texts: Mapping[str, int]) -> None:
    """Checks that a model has positions for the longest texts of a run; warns where it was trained on fewer.

    Args:
        name: the name of the model in messages.
        model: the model, perhaps without values.
        texts: the tokens of the longest text that it reads, by the settings that make it so long.

    Raises:
        InputError: if the model has a table of positions, learned ones as in GPT-2 and OPT, with fewer.
    """
    positions, table = _positions(model), table_of_positions(model)
    settings, longest = max(texts.items(), key=lambda text: text[1])
    if positions is None or longest <= (table or positions):
        return
    given = f"{settings} makes texts of up to {longest:,} tokens"
    if table is not None:
        raise InputError(
            f"{given}, and {name} ({model.config.model_type}) has only {table:,} positions; lower it to "
            f"{table} at most"
        )
    trained = _trained(model.config, positions)
    if longest > trained:
        _announce_once(
            f"{given}, and {name} was made for {trained:,} positions: what it says beyond them may be poor"
        )


def table_of_positions(model: PreTrainedModel) -> int | None:
    """Returns the rows of a model's table of positions, such as GPT-2's; None for no table."""
    positions, tokens = _positions(model), model.get_input_embeddings()
    if positions is None:
        return None
    learned = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)  # as RoBERTa's
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and module is not tokens
        and module.num_embeddings - positions in _OFFSETS
    ]
    buffers = any(buffer.dim() > 1 and positions in buffer.shape for buffer in model.buffers())
    distances = getattr(getattr(model.config, "attn_config", None), "alibi", False)  # MPT's, of so many
    return min([positions, *learned]) if learned or buffers or distances else None


def check_reads_forwards(name: str, model: PreTrainedModel) -> None:
    """Checks that a model reads a text from left to right, as far as its modules show; values are not needed.

    Raises:
        InputError: for an encoder, such as BERT's, or an encoder with a decoder, such as T5.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} is an encoder with a decoder ({config.model_type}); give a model that reads a text from "
            "left to right, such as llama or gpt2"
        )
    causal = any(getattr(module, "is_causal", None) is True for module in model.modules())
    if getattr(config, "is_decoder", None) is False and not causal:
        raise _reads_both_ways(name, model)


@torch.no_grad()
def check_ignores_what_follows(model: PreTrainedModel) -> None:
    """Checks on a few tokens that the states of a model depend on none that comes later.

    Raises:
        InputError: if they do.
    """
    training = model.training
    model.eval()
    ids = torch.tensor([[2, 3, 4, 5], [2, 3, 4, 6]], device=input_device(model))
    ids = ids % int(model.config.get_text_config().vocab_size)
    mask = torch.ones_like(ids)
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :3]
    model.train(training)
    tolerance = torch.finfo(states.dtype).eps ** 0.5 * float(states.abs().max())
    if float((states[0] - states[1]).abs().max()) > tolerance:
        raise _reads_both_ways("the model", model)


def _reads_both_ways(name: str, model: PreTrainedModel) -> InputError:
    return InputError(
        f"{name} ({type(model).__name__}) reads a text from both ends, so that it sees the tokens that it is "
        "to predict; give a model that reads from left to right, such as llama or gpt2"
    )


def _positions(model: PreTrainedModel) -> int | None:
    """Returns the number of positions in the model's configuration; None if it has no such limit."""
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in _LENGTHS)
    return next((int(positions) for positions in found if positions), None)


def _trained(config: Any, positions: int) -> int:
    """The positions that a model with rotary embeddings was trained on, stretched ones counted."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(positions, int(original * factor)) if original and factor else positions


_announce_once = functools.cache(announce)
