import csv
import json
import re

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from amid import results
from amid.cli.main import main
from amid.data.builtin import tokenizer
from amid.errors import InputError
from amid.models.counted_states import CountedStates
from amid.models.lora import LoRA, merge
from amid.models.source import ModelSource
from amid.models.vocabulary import output_rows
from amid.training.module import DistillationModule

IDS = torch.arange(2, 16).view(2, 7)
SETTINGS = [
    {},
    {"target_modules": "all-linear"},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["embed_tokens"]},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens"]},
]


def model(family="llama", dtype=torch.float32, tied=True):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=1100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def adapted(network, **settings):
    """`network` with adapters that change what it computes."""
    LoRA(**{"r": 4, "alpha": 8, **settings}).add_to(network)
    torch.manual_seed(1)
    for weight in network.parameters():
        if weight.requires_grad:
            weight.data += 0.2 * torch.randn_like(weight)
    return network


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_merged_saved_and_loaded_it_computes_the_same(settings, tied, tmp_path):
    network = model(tied=tied)
    with torch.no_grad():
        before = network(IDS).logits
        LoRA(**settings).add_to(network)
        torch.testing.assert_close(network(IDS).logits, before)
        network = adapted(model(tied=tied), **settings)
        logits = network(IDS).logits
        assert (logits - before).abs().max() > 0.1
        merge(network)
        torch.testing.assert_close(network(IDS).logits, logits, rtol=1e-4, atol=1e-4)
        network.save_pretrained(tmp_path)
        again = ModelSource(path=str(tmp_path)).load(tokenizer())
        torch.testing.assert_close(again(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    assert type(network.lm_head) is type(again.lm_head) is torch.nn.Linear
    assert not any("lora" in name for name, _ in network.named_modules())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("settings", [{}, *SETTINGS[2:]], ids=str)
def test_counted_logits_and_their_gradients_are_the_models_own(family, settings):
    if family == "gpt2":
        names = {"q_proj": "c_attn", "embed_tokens": "wte"}
        settings = {key: [names.get(n, n) for n in value] for key, value in settings.items()}
    network = adapted(model(family), dropout=0.0, **settings)
    states = CountedStates(network)
    on_head = "lm_head" in settings.get("target_modules", ())
    assert (states.head is None) == on_head
    assert output_rows(network) == 1100
    positions = torch.rand(IDS.shape) > 0.3
    mask = torch.ones_like(IDS)
    trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    gradients = []
    for logits in (states.logits(IDS, positions), network(IDS, attention_mask=mask).logits[positions]):
        loss = F.cross_entropy(logits, torch.arange(len(logits)))
        gradients.append((loss, *torch.autograd.grad(loss, list(trained.values()))))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])


def test_the_weights_keep_their_dtype_and_the_adapters_are_float32():
    logits = {}
    for dtype in (torch.float32, torch.bfloat16):
        network = adapted(model(dtype=dtype))
        if dtype == torch.float32:
            for weight in network.parameters():
                if not weight.requires_grad:
                    weight.data = weight.data.bfloat16().float()
        parameters = dict(network.named_parameters())
        trained = {name for name, weight in parameters.items() if weight.requires_grad}
        assert len(trained) == 2 * 2 * 2
        assert {parameters[name].dtype for name in trained} == {torch.float32}
        assert {parameters[name].dtype for name in parameters.keys() - trained} == {dtype}
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits[dtype] = network(IDS).logits.float()
        layer = network.model.layers[0].self_attn.q_proj
        sum_ = layer.base_layer.weight + layer.get_delta_weight("default")
        merge(network)
        assert torch.equal(network.model.layers[0].self_attn.q_proj.weight, sum_.to(dtype))
        assert {weight.dtype for weight in network.parameters()} == {dtype}
    error = (logits[torch.bfloat16] - logits[torch.float32]).abs().mean()
    assert error < 0.02 * logits[torch.float32].abs().mean()


def test_whole_modules_are_not_trained_in_a_coarse_dtype():
    with pytest.raises(InputError, match=r"modules_to_save=\['lm_head'\] trains weights.*dtype=float32"):
        LoRA(modules_to_save=["lm_head"]).add_to(model(dtype=torch.bfloat16))


def test_layers_that_peft_cannot_adapt_are_told_with_its_reason():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 30}
    mamba = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes))
    with pytest.raises(InputError, match=r"all-linear cannot be had in MambaForCausalLM .*out_proj"):
        LoRA(target_modules="all-linear").add_to(mamba)
    sizes |= {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    mixtral = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes))
    with pytest.raises(InputError, match=r"names no layer of MixtralForCausalLM; choose from .*q_proj"):
        LoRA().add_to(mixtral)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "lora.r=0 must be a whole number from 1"),
        ({"alpha": 0}, "lora.alpha=0 must be a finite number above 0"),
        ({"dropout": 1}, "lora.dropout=1 must be a number from 0, below 1"),
        ({"target_modules": ["nope"]}, "'nope'.*names no layer of LlamaForCausalLM; choose from .*q_proj"),
        ({"modules_to_save": ["nope"]}, "'nope' is no module; choose from .*lm_head"),
        ({"rank": 3}, "no setting 'rank'; choose one of r, alpha"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    fields = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(InputError, match=message):
        ModelSource(architecture={"model_type": "llama", **fields}, lora=settings).load(tokenizer())


def run(*arguments):
    return main([str(a) for a in arguments])


@pytest.fixture
def lora_run(small_run):
    settings = "{r: 2, dropout: 0.0, modules_to_save: [lm_head]}"
    teacher = "model.teacher.lora={target_modules: all-linear}"
    return [*small_run, f"model.student.lora={settings}", teacher, "optimizer.lr=0.05"]


def test_a_run_trains_adapters_alone_and_leaves_a_plain_model(lora_run, tmp_path, monkeypatch):
    optimised = []
    configure = DistillationModule.configure_optimizers

    def watched(self):
        made = configure(self)
        weights = {id(w): name for name, w in self.student.named_parameters()}
        optimised.append({weights[id(w)] for group in made[0][0].param_groups for w in group["params"]})
        return made

    monkeypatch.setattr(DistillationModule, "configure_optimizers", watched)
    assert run("train", *lora_run) == 0
    assert len(optimised) == 3
    assert all(re.search("lora_|modules_to_save", name) for names in optimised for name in names)
    (result,) = results.load_all(tmp_path / "runs")
    assert result.training["valid_loss"] != result.training["valid_loss_before"]
    (directory,) = (tmp_path / "runs").iterdir()
    for folder in (directory, *(path.parent for path in (tmp_path / "prepared").glob("*/result.json"))):
        network = ModelSource(path=str(folder / "checkpoints" / "best")).load(tokenizer())
        assert not any("lora" in name for name, _ in network.named_modules())
    assert json.loads((directory / "checkpoints" / "best" / "config.json").read_text())["dtype"] == "float32"
    adapters = ModelSource(path=str(directory / "checkpoints" / "adapter")).load(tokenizer())
    whole = ModelSource(path=str(directory / "checkpoints" / "best")).load(tokenizer())
    ids = torch.arange(2, 40)[None]
    torch.testing.assert_close(adapters(ids).logits, whole(ids).logits)
    (base,) = (
        path.parent for path in (tmp_path / "prepared").glob("*/result.json") if "student" in path.read_text()
    )
    start = ModelSource(path=str(base / "checkpoints" / "best")).load(tokenizer())
    assert (start(ids).logits - whole(ids).logits).abs().max() > 1e-3
    assert "checkpoints/adapter/adapter_model.safetensors" in result.files
    assert run("evaluate", f"run={directory}", f"output_dir={tmp_path / 'again'}") == 0
    (again,) = results.load_all(tmp_path / "again")
    assert again.scores == result.scores


@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_its_adapters(lora_run, tmp_path, monkeypatch):
    lora_run = [*lora_run, "checkpoint.every_n_steps=1"]
    assert run("train", *lora_run, f"output_dir={tmp_path / 'whole'}") == 0
    step = DistillationModule.training_step

    def killed(self, batches, index):
        if self.trainer.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batches, index)

    monkeypatch.setattr(DistillationModule, "training_step", killed)
    assert run("train", *lora_run, f"output_dir={tmp_path / 'cut'}") == 130
    (cut,), (whole,) = (tmp_path / "cut").iterdir(), (tmp_path / "whole").iterdir()
    kept = torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert kept
    assert all(re.search("lora_|modules_to_save", name) for name in kept)
    monkeypatch.setattr(DistillationModule, "training_step", step)
    assert run("train", *lora_run, f"output_dir={tmp_path / 'cut'}") == 0
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert results.load(cut).scores == results.load(whole).scores
    assert results.load(cut).training["valid_loss"] == results.load(whole).training["valid_loss"]


@pytest.mark.slow
def test_fused_and_reference_loss_agree_in_a_run(lora_run, tmp_path):
    curves = []
    for fused in ("true", "false"):
        out = tmp_path / fused
        arguments = [*lora_run, f"output_dir={out}", f"objective.fused={fused}", "data.valid_prompts=1"]
        arguments = [a for a in arguments if a != "data.valid_prompts=4"]
        assert run("train", *arguments, "trainer.log_every_n_steps=1") == 0
        (directory,) = out.iterdir()
        with (directory / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        curves.append([[float(row[f"train/{key}"]) for key in ("loss", "gradient_norm")] for row in rows])
    assert len(curves[0]) == 4
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=1e-6)


def test_adapters_of_a_teacher_that_nothing_trains(lora_run, capsys):
    assert run("train", *lora_run, "model.teacher.sft=null") == 1
    assert "model.teacher.lora is for the teacher's fine-tuning" in capsys.readouterr().err
