"""Low-rank adapters (LoRA), by peft: added to a model's layers for training, merged into them after it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from amid.errors import InputError, shortened
from amid.settings import check_arguments, nodes


@dataclass(frozen=True)
class LoRA:
    """The settings of adapters: some layers W become W + (alpha / r) B A, with A [r, in] and B [out, r].

    All other weights are frozen. A starts at random, and B at 0, so that at first the model is the same.

    Args:
        r: rank of the adapters.
        alpha: the products are scaled by alpha / r.
        dropout: share of an adapter's inputs that is dropped in training, in [0, 1).
        target_modules: ends of the names of the layers, or a regular expression over whole names, or
            `all-linear` (all but the head); null for the layers that peft names for the architecture, in most
            the projections of queries and values. With adapters on the head, the logits of all positions are
            computed, because the fused loss needs one weight matrix.
        modules_to_save: ends of the names of modules that are trained as a whole, such as `lm_head`; the
            model must be float32 then, since small steps vanish in the rounding of other dtypes.

    Raises:
        InputError: for a number out of its range.
    """

    r: int = 16
    alpha: float = 64
    dropout: float = 0.1
    target_modules: Sequence[str] | str | None = None
    modules_to_save: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_arguments("lora.", nodes.LoRA, vars(self))

    def add_to(self, model: PreTrainedModel) -> None:
        """Freezes the model and adds adapters (in place), which are float32 whatever the model is.

        Embedding and head that share their weight get one each where only one of them is trained.

        Raises:
            InputError: if no layer has one of the names, none are given and peft knows none or cannot
                adapt them, or there are `modules_to_save` in a model that is not float32.
        """
        import peft  # takes seconds

        if self.modules_to_save and model.dtype != torch.float32:
            raise InputError(
                f"lora.modules_to_save={list(self.modules_to_save)} trains weights, for which {model.dtype} "
                "is too coarse; set the model's dtype=float32, or leave modules_to_save out"
            )
        names = [name for name, _ in model.named_modules()]
        for wanted in self.modules_to_save or ():
            if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
                raise InputError(f"lora.modules_to_save: {wanted!r} is no module; {_some_names(model)}")
        targets = self.target_modules
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a float is as good
            lora_dropout=self.dropout,
            target_modules=targets if targets is None or isinstance(targets, str) else list(targets),
            modules_to_save=None if self.modules_to_save is None else list(self.modules_to_save),
        )
        try:
            peft.get_peft_model(model, config)  # works in place; its wrapper is of no use here
        except ValueError as error:
            if any(words in str(error) for words in _NO_LAYER):
                raise InputError(
                    f"lora.target_modules={config.target_modules} names no layer of {type(model).__name__}; "
                    f"{_some_names(model)}, or all-linear"
                ) from error
            raise InputError(
                f"lora.target_modules={targets} cannot be had in {type(model).__name__} "
                f"({shortened(str(error))}); change lora.target_modules or lora.dropout"
            ) from error
        _untie(model)
        model.train(model.training)  # the new modules too


_NO_LAYER = ("not found", "`target_modules` passed", "specify `target_modules`")
"""Parts of peft's messages that it finds no layers to adapt."""


def merge(model: PreTrainedModel) -> None:
    """Adds the adapters' products to the weights, in their dtype, and removes the adapters (in place).

    A model without adapters stays as it is.
    """
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        plain: Any
        if hasattr(module, "unload_and_optionally_merge_module"):  # one of modules_to_save
            plain = module.unload_and_optionally_merge_module(
                merge=True, safe_merge=False, adapter_names=None
            )
        elif isinstance(module, BaseTunerLayer):
            module.merge()
            plain = module.get_base_layer()
        else:
            continue
        setattr(model.get_submodule(parent), child, plain)
    del model.peft_config


def save_adapters(model: PreTrainedModel, base: str | None, folder: Path) -> None:
    """Writes the adapters of a model, not merged yet, into a folder that PEFT loads onto the model `base`.

    Args:
        model: a model with adapters.
        base: the path of the model without them, which the folder names; None for no name.
        folder: the folder to write, with adapter_config.json and adapter_model.safetensors.
    """
    import peft
    from safetensors.torch import save_file

    (config,) = model.peft_config.values()
    weights = peft.get_peft_model_state_dict(model, adapter_name="default")
    stored = {f"base_model.model.{name}": weight.contiguous().cpu() for name, weight in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    settings = copy.copy(config)
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.save_pretrained(str(folder))
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The layer that makes the logits; None if there is none, or adapters change what it computes, or its
    weight is packed."""
    head: Any = model.get_output_embeddings()
    if hasattr(head, "modules_to_save"):
        off = head.disable_adapters or not head.active_adapters
        head = head.original_module if off else head.modules_to_save[head.active_adapters[0]]
    own = () if head is None else (name for name, _ in head.named_parameters(recurse=False))
    return head if "weight" in own else None


def _untie(model: PreTrainedModel) -> None:
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not any(hasattr(end, "lora_A") or hasattr(end, "modules_to_save") for end in ends):
        return
    model.config.tie_word_embeddings = False
    for end in ends[1:]:
        base = end.get_base_layer() if hasattr(end, "lora_A") else end
        if not hasattr(base, "modules_to_save"):
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)


def _some_names(model: PreTrainedModel) -> str:
    from transformers.pytorch_utils import Conv1D

    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding)
    }
    return f"choose from {', '.join(sorted(names))}"
