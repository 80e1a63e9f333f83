import sys

import pytest
import torch
from families import TOKENS, VOCAB, network
from transformers import AutoConfig

from amid.cli.main import main
from amid.errors import InputError
from amid.losses import KL, Objective
from amid.models.quantization import dequantize, quantize, weight_bytes
from amid.models.source import ModelSource
from amid.teacher.signals import LiveTeacher

IDS = torch.arange(2, 66).view(2, 32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    sizes = {"hidden_size": 64, "intermediate_size": 160, "initializer_range": 0.1}
    network(**sizes, tie_word_embeddings=True).save_pretrained(folder)
    return folder


def logits(source, trained=False):
    with torch.no_grad():
        return source.load(TOKENS, trained)(IDS).logits.float()


def kl(theirs, ours):
    return float(Objective(KL())(student_logits=ours, teacher_logits=theirs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_teacher_is_close_to_the_exact_one_and_smaller(saved, dtype):
    exact = ModelSource(str(saved), dtype=dtype)
    whole, skeleton = exact.load(TOKENS), exact.skeleton(AutoConfig.from_pretrained(saved))
    found = {}
    for to in ("int8", "int4", "nf4"):
        source = ModelSource(str(saved), dtype=dtype, quantization=to)
        model = source.load(TOKENS)
        assert weight_bytes(model) == weight_bytes(skeleton, to)
        assert not any(weight.requires_grad for weight in model.parameters())
        assert torch.equal(model.lm_head.weight, whole.lm_head.weight), "the head is exact"
        found[to] = (kl(logits(exact), logits(source)), weight_bytes(model))
        assert kl(logits(source), logits(source, trained=True)) < {"float32": 1e-6, "bfloat16": 1e-4}[dtype]
    assert 0 < found["int8"][0] < 1e-3 < min(found["int4"][0], found["nf4"][0])
    assert max(found["int4"][0], found["nf4"][0]) < 0.1
    assert found["nf4"][1] < found["int4"][1] < found["int8"][1] < weight_bytes(whole)
    body = weight_bytes(whole) - whole.lm_head.weight.nbytes
    assert found["nf4"][1] - whole.lm_head.weight.nbytes < body / (5 if dtype == "float32" else 2.8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int4_rounds_to_sixteen_equal_steps_of_each_64_weights(dtype):
    torch.manual_seed(1)
    model = network(hidden_size=64).to(dtype)
    layer = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.weight[0] = 3  # all equal
        layer.weight[1] = torch.arange(64).remainder(16).to(dtype) * 0.125 - 0.5  # already on sixteen steps
    exact = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    quantize(model, "int4")
    rounded = layer.weight
    assert rounded.dtype == dtype
    assert torch.equal(rounded[:2], exact["model.layers.0.self_attn.q_proj.weight"][:2])
    blocks = exact["model.layers.0.self_attn.q_proj.weight"].float().view(-1, 64)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    apart = (rounded.float().view(-1, 64) - blocks).abs()
    most = (high - low) / 30 + 4 * torch.finfo(dtype).eps * torch.maximum(low.abs(), high.abs())
    assert bool((apart <= most).all())
    assert all(len(block.unique()) <= 16 for block in rounded.view(-1, 64))
    inputs = torch.randn(5, 64, dtype=dtype)
    assert torch.equal(layer(inputs), inputs @ rounded.T)
    packed = model(IDS).logits
    dequantize(model)
    assert dict(model.named_parameters()).keys() == exact.keys()
    assert torch.equal(layer.weight, rounded)
    assert torch.equal(packed, model(IDS).logits)


@pytest.mark.parametrize("to", ["int8", "int4", "nf4"])
def test_the_states_of_a_row_do_not_depend_on_the_other_rows(saved, to):
    teacher = LiveTeacher(ModelSource(str(saved), quantization=to).load(TOKENS))
    assert teacher.head is not None
    ids = torch.randint(2, VOCAB, (4, 32))
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    states = teacher.hidden({"input_ids": ids}, everywhere)
    alone = teacher.hidden({"input_ids": ids[:1]}, everywhere[:1])
    torch.testing.assert_close(states[:32], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to", ["int4", "nf4"])
def test_what_is_trained_has_plain_weights(saved, to):
    source = ModelSource(str(saved), quantization=to, gradient_checkpointing=True)
    model = source.load(TOKENS, trained=True)
    assert all(type(weight) is torch.nn.Parameter and weight.requires_grad for weight in model.parameters())
    model.train()(IDS).logits.sum().backward()
    exact = ModelSource(str(saved)).load(TOKENS)
    assert dict(model.named_parameters()).keys() == dict(exact.named_parameters()).keys()
    assert all(weight.grad is not None for weight in model.parameters())


def test_it_is_another_teacher(saved):
    exact, other = (ModelSource(str(saved), quantization=to).fingerprint() for to in (None, "int8"))
    assert other == exact | {"quantization": "int8"}


def test_models_that_cannot_be_quantised(saved, monkeypatch):
    gpt2 = ModelSource(architecture={"model_type": "gpt2"}, quantization="int8")
    config = AutoConfig.for_model("gpt2", vocab_size=50, n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(InputError, match=r"quantization=int8: only 0% of the weights of GPT2LMHeadModel's"):
        gpt2.skeleton(config)
    fields = {"vocab_size": 50, "hidden_size": 12, "intermediate_size": 12, "num_attention_heads": 2}
    for to in ("int4", "nf4"):
        odd = ModelSource(architecture={"model_type": "llama"}, quantization=to)
        with pytest.raises(InputError, match=rf"{to}: model.layers.0.self_attn.q_proj has 144 .*use int8"):
            odd.skeleton(AutoConfig.for_model("llama", **fields, num_hidden_layers=1))
    with pytest.raises(InputError, match=r"quantization=int2 must be int8, int4, nf4, or null"):
        ModelSource(str(saved), quantization="int2")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(InputError, match=r"needs torchao; pip install 'amid-distill\[quantized\]'"):
        ModelSource(str(saved), quantization="int8").load(TOKENS)
    ModelSource(str(saved), quantization="int4").load(TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["int4", "nf4"])
def test_runs_with_a_quantised_teacher(quick, tmp_path, capsys, to):
    run = ["train", *quick, "model.student.sft=null", f"model.teacher.quantization={to}"]
    assert main([*run, "teacher=cached"]) == 0
    assert main([*run, "method=teacher"]) == 0
    first = capsys.readouterr().out
    assert "Writing the teacher's states" in first
    assert main([*run, "teacher=live", f"output_dir={tmp_path / 'live'}"]) == 0
    assert main(["train", *quick, "+model.student.quantization=int8"]) == 1
    assert "model.student.quantization=int8 is for a teacher" in capsys.readouterr().err
