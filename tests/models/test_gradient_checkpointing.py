import pytest
import torch
from families import TOKENS, VOCAB, network, prompts_of
from transformers import AutoConfig

from amid.data.tokens import Row, collate
from amid.errors import InputError
from amid.losses import AlphaBeta, AlphaMixture, Objective
from amid.models.counted_states import CountedStates
from amid.models.source import ModelSource
from amid.teacher.signals import LiveTeacher
from amid.training.counted_loss import CountedLoss

DROPOUT = {
    "llama": {"attention_dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.3, "attn_pdrop": 0.3},
    "opt": {"dropout": 0.3},
}
LAYERS = 4


def source(path, lora=None, checkpointed=True):
    return ModelSource(str(path), lora=lora, gradient_checkpointing=checkpointed)


@pytest.fixture(params=DROPOUT)
def saved(request, tmp_path):
    network(request.param, num_hidden_layers=LAYERS, **DROPOUT[request.param]).save_pretrained(tmp_path)
    return tmp_path


def step(model, fused):
    """The loss and gradients of a step in train mode."""
    loss_of = CountedLoss(model.train(), LiveTeacher(network(num_hidden_layers=1)), None)
    rows = [Row(torch.tensor(ids), 4, row) for row, ids in enumerate(prompts_of([32, 20]))]
    (batch,) = collate(rows, pad_token_id=0)
    objective = Objective(AlphaBeta(0.2, 0.7), AlphaMixture(-5.0, 0.1), fused=fused)
    torch.manual_seed(3)
    loss, _ = loss_of(objective, batch, None)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def bytes_of_activations(model):
    """The bytes that autograd keeps of a model's body for the backward pass, without weights."""
    weights, kept = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    states, ids = CountedStates(model), torch.randint(2, VOCAB, (2, 32))
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = states.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize(
    "lora", [None, {"r": 2, "target_modules": "all-linear", "dropout": 0.3}], ids=["all", "lora"]
)
def test_loss_and_gradients_are_those_without_it(saved, lora, fused):
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        model = source(saved, lora, checkpointed).load(TOKENS)
        with torch.no_grad():
            torch.manual_seed(2)
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight += 0.1 * torch.randn_like(weight)
        results.append((*step(model, fused), bytes_of_activations(model)))
    (loss, plain, of_all), (again, checkpointed, of_inputs) = results
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)
    assert plain.keys() == checkpointed.keys()
    assert sum(float(gradient.abs().max()) > 0 for gradient in plain.values()) > 0.8 * len(plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)
    assert of_inputs < of_all / 3, "the body keeps the inputs of its layers alone"


def test_validations_and_answers_do_not_use_it(saved):
    model = source(saved).load(TOKENS).eval()
    ids = torch.randint(2, VOCAB, (2, 9))
    with torch.inference_mode():
        again = source(saved, checkpointed=False).load(TOKENS)(ids).logits
        torch.testing.assert_close(model(ids).logits, again)


def test_a_model_without_it_is_refused():
    config = AutoConfig.for_model("openai-gpt", vocab_size=50, n_embd=8, n_layer=1, n_head=2)
    plain = ModelSource(architecture={"model_type": "openai-gpt"})
    assert plain.skeleton(config)
    with pytest.raises(
        InputError, match=r"gradient_checkpointing=true: OpenAIGPTLMHeadModel has no gradient checkpointing"
    ):
        ModelSource(architecture={"model_type": "openai-gpt"}, gradient_checkpointing=True).skeleton(config)
    with pytest.raises(InputError, match="gradient_checkpointing=1 must be true or false"):
        ModelSource("somewhere", gradient_checkpointing=1)
