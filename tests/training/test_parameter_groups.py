"""Weight decay falls on the weights that transformers' trainer gives it to."""

import pytest
import torch
import yaml
from hydra.utils import instantiate
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

from amid.config.folders import CONF
from amid.models.lora import LoRA

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "gpt2": ("ln_f", {"transformer.h.0.ln_1.weight", "transformer.h.1.attn.c_attn.bias"}),
    "llama": ("norm", {"model.norm.weight", "model.layers.1.post_attention_layernorm.weight"}),
}


def network(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, intermediate_size=32, **SIZES))


def grouped(model):
    """`optimizer=adamw_grouped` over a model, and the decay of each trained weight by its name."""
    node = yaml.safe_load((CONF / "optimizer" / "adamw_grouped.yaml").read_text()) | {"lr": 0.1}
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = instantiate(node)(params=list(weights.values()))
    of = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    return optimizer, {name: of[id(weight)] for name, weight in weights.items()}


@pytest.mark.parametrize("adapters", ["none", "lora", "lora and a norm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_biases_and_norms_have_no_weight_decay(family, adapters):
    model = network(family)
    norm, without = FAMILIES[family]
    if adapters != "none":
        LoRA(r=2, modules_to_save=[norm] if adapters == "lora and a norm" else None).add_to(model)
    optimizer, decays = grouped(model)
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    assert decays == {name: 0.01 if name in theirs else 0.0 for name in decays}
    if adapters == "none":
        assert without <= {name for name, decay in decays.items() if decay == 0}
    assert len(optimizer.param_groups) == (1 if adapters == "lora" else 2)


def test_a_step_without_a_gradient_shrinks_matrices_alone():
    model = network("gpt2")
    optimizer, decays = grouped(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] * (1 - 0.1 * decays[name]))
