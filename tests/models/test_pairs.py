"""Each pair of conf/model, trained for two steps on random miniatures of its architecture."""

import json

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from amid.cli.main import main
from amid.config.compose import as_dict, register_resolvers
from amid.config.folders import CONF
from amid.data import Example, InstructionData, Template
from amid.data.builtin import tokenizer
from amid.data.tokens import counted_positions
from amid.experiment.plan import Plan
from amid.experiment.run import run_experiment
from amid.losses import AlphaBeta, AlphaMixture, Objective
from amid.models.counted_states import CountedStates
from amid.models.source import ModelSource
from amid.models.vocabulary import shared_vocabulary
from amid.teacher.signals import LiveTeacher
from amid.teacher.supply import TeacherSupply

register_resolvers()

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
LLAMA = {"intermediate_size": 32, "num_key_value_heads": 2}
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"rope_theta": 500000.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "gpt2": {"model_type": "gpt2"},
    "opt": {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 16},
    "opt_post_norm": {
        "model_type": "opt",
        "ffn_dim": 32,
        "word_embed_proj_dim": 8,
        "do_layer_norm_before": False,
    },
    "llama_untied": {"model_type": "llama", **LLAMA, "tie_word_embeddings": False},
    "llama_tied": {"model_type": "llama", **LLAMA, "tie_word_embeddings": True},
    "llama3": {"model_type": "llama", **LLAMA, "tie_word_embeddings": True, "rope_parameters": ROPE},
    "qwen2_untied": {"model_type": "qwen2", **LLAMA, "tie_word_embeddings": False},
    "qwen2_tied": {"model_type": "qwen2", **LLAMA, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **LLAMA, "head_dim": 8, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", **LLAMA, "head_dim": 8},
    "gemma2": {
        "model_type": "gemma2",
        **LLAMA,
        "head_dim": 8,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 5.0,
    },
}
PAIRS = {
    "gpt2_xl_to_gpt2": ("gpt2", "gpt2"),
    "gpt2_xl_to_gpt2_medium": ("gpt2", "gpt2"),
    "gpt2_xl_to_gpt2_large": ("gpt2", "gpt2"),
    "opt_2.7b_to_125m": ("opt", "opt"),
    "opt_2.7b_to_350m": ("opt", "opt_post_norm"),
    "opt_2.7b_to_1.3b": ("opt", "opt"),
    "openllama2_7b_to_3b": ("llama_untied", "llama_untied"),
    "qwen2.5_7b_to_1.5b": ("qwen2_untied", "qwen2_tied"),
    "qwen2.5_7b_to_1.5b_full": ("qwen2_untied", "qwen2_tied"),
    "gemma_7b_it_to_2b_it": ("gemma", "gemma"),
    "llama3.2_3b_to_1b": ("llama3", "llama3"),
    "qwen3_4b_to_0.6b": ("qwen3", "qwen3"),
    "smollm2_1.7b_to_360m": ("llama_tied", "llama_tied"),
    "smollm2_1.7b_to_135m": ("llama_tied", "llama_tied"),
    "smollm2_pruned": ("llama_tied", None),
}
CHAT = (
    "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """Makes the folder of a small model of a family, once; its tokenizer has a chat template."""
    made = {}

    def make(family, role):
        key = family, role
        if key not in made:
            width, rows = {"teacher": (32, 1056), "student": (16, 1024)}[role]
            tok = tokenizer()
            tok.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": ["<start>", "<end>"]})
            tok.chat_template = CHAT
            fields = {"vocab_size": rows, "hidden_size": width, **SIZES, **FAMILIES[family]}
            if role == "teacher" and "word_embed_proj_dim" in fields:
                fields["word_embed_proj_dim"] = width
            config = AutoConfig.for_model(**fields, bos_token_id=1, eos_token_id=2, pad_token_id=0)
            torch.manual_seed(len(made))
            made[key] = tmp_path_factory.mktemp(f"{family}-{role}")
            AutoModelForCausalLM.from_config(config).save_pretrained(made[key])
            tok.save_pretrained(made[key])
        return made[key]

    return make


def test_every_pair_has_a_miniature():
    assert {file.stem for file in CONF.glob("model/*.yaml")} == {*PAIRS, "tiny", "from_scratch"}


def short_run(tmp_path, data):
    return [
        "data=jsonl",
        *(f"data.{name}={data}" for name in ("train", "valid")),
        f"+data.test.mine={data}",
        *(f"model.{role}.sft.trainer.max_steps=1" for role in ("teacher", "student")),
        "trainer.max_steps=2",
        "data.batch_size=4",
        "data.micro_batch_size=2",
        "data.max_prompt_length=150",
        "data.max_length=180",
        "data.valid_prompts=2",
        "generation.seeds=[1,2]",
        "generation.max_new_tokens=4",
        f"output_dir={tmp_path / 'runs'}",
        f"prepared_dir={tmp_path / 'prepared'}",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]


@pytest.fixture
def data(jsonl):
    return jsonl(*({"instruction": f"say {i}", "output": [f"word {i}", "x"]} for i in range(8)))


def train(directory, overrides):
    """What `amid train` does, without its checks of the command line, which take as long as the training."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, f"logger.csv.save_dir={directory}"])
    plan = Plan(as_dict(cfg))
    plan.check()
    return run_experiment(plan, directory, {})


QUICK = ("gpt2_xl_to_gpt2", "opt_2.7b_to_350m", "smollm2_1.7b_to_360m")
"""Pairs that stand for all."""


@pytest.mark.parametrize(
    ("pair", "families"),
    [
        pytest.param(pair, families, marks=[] if pair in QUICK else [pytest.mark.slow])
        for pair, families in [*PAIRS.items(), ("gemma_7b_it_to_2b_it", ("gemma2", "gemma2"))]
    ],
    ids=str,
)
def test_pair(pair, families, tmp_path, data, miniature):
    teacher, student = families
    paths = [f"model.teacher.path={miniature(teacher, 'teacher')}"]
    if student is None:
        paths.append("model.student.layers=[1]")
    else:
        paths.append(f"model.student.path={miniature(student, 'student')}")
    result = train(tmp_path / "run", [f"model={pair}", *paths, *short_run(tmp_path, data)])
    assert result.training["steps"] == 2
    assert result.scores["mine"]["self_bleu"].std is None
    assert len(list((tmp_path / "prepared").glob("*/result.json"))) == 2
    best = tmp_path / "run" / "checkpoints" / "best"
    own = AutoTokenizer.from_pretrained(best)
    assert own.eos_token == "<end>"  # every miniature has a chat template
    config = json.loads((best / "config.json").read_text())
    assert config["model_type"] == FAMILIES[student or teacher]["model_type"]
    assert config["eos_token_id"] == own.eos_token_id


@pytest.mark.slow
def test_from_scratch_makes_any_architecture_of_numbers(tmp_path, data):
    numbers = ["hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2"]
    student = [f"model.student.architecture.{number}" for number in numbers]
    student.append("+model.student.architecture.num_key_value_heads=1")
    teacher = "model.teacher.architecture={model_type: gpt2, hidden_size: 32, num_hidden_layers: 2}"
    less = "~model.teacher.architecture.intermediate_size"
    assert main(["train", "model=from_scratch", *student, teacher, less, *short_run(tmp_path, data)]) == 0
    (best,) = (tmp_path / "runs").glob("*/checkpoints/best")
    config = json.loads((best / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["num_key_value_heads"]) == ("llama", 16, 1)
    prepared = (tmp_path / "prepared").glob("sft-*/checkpoints/best/config.json")
    configs = [json.loads(file.read_text()) for file in prepared]
    (config,) = [config for config in configs if config["model_type"] == "gpt2"]
    assert (config["n_embd"], config["n_layer"]) == (32, 2)


@pytest.mark.parametrize("lora", [None, {"r": 2, "dropout": 0.0}], ids=["full", "lora"])
@pytest.mark.parametrize("families", sorted({p for p in PAIRS.values() if p[1]} | {("gemma2", "gemma2")}))
def test_fused_loss_and_cached_teacher_are_the_models_own(families, lora, miniature, tmp_path):
    teacher_path, student_path = (
        str(miniature(family, role)) for family, role in zip(families, ("teacher", "student"), strict=True)
    )
    tok = AutoTokenizer.from_pretrained(student_path)
    rows = [Example(f"say {i}", "", (f"word {i}, word",)) for i in range(3)]
    data = InstructionData(
        tok,
        rows,
        rows,
        {},
        Template("{instruction}", "{input}{instruction}", chat={}),
        max_prompt_length=100,
        max_length=120,
        cache_dir=str(tmp_path),
    )
    sets = [data.train_tokens, data.valid_tokens]
    fabric = L.Fabric(accelerator="cpu", devices=1)
    supply = TeacherSupply("cached", cache_dir=str(tmp_path))
    cached = supply.teacher(ModelSource(path=teacher_path), tok, sets, fabric, "32-true", 1.0)
    live = ModelSource(path=teacher_path).load(tok)
    student = ModelSource(path=student_path, lora=lora).load(tok)
    torch.manual_seed(3)
    for weight in student.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    objective = Objective(AlphaBeta(0.2, 0.7), AlphaMixture(-5.0, 0.1))
    n_vocab = shared_vocabulary(cached.vocabulary, student)
    assert (cached.vocabulary, n_vocab) == (1056, 1024)
    (batch,) = data.micro_batches(next(iter(data.train_dataloader())))
    positions = counted_positions(batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    reference = objective(
        student_logits=student(**inputs).logits[positions],
        teacher_logits=live(**inputs).logits[positions][:, :n_vocab].detach(),
    )
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    expected = reference, *torch.autograd.grad(reference, trained, allow_unused=True)
    for teacher in (cached, LiveTeacher(live)):
        states = CountedStates(student)
        inputs = states.head.cut(n_vocab).inputs("student") | teacher.head.cut(n_vocab).inputs("teacher")
        inputs["student_hidden"] = states.hidden(batch["input_ids"], positions)
        inputs["teacher_hidden"] = teacher.hidden(batch, positions)
        loss = objective.fused(**inputs)
        actual = loss, *torch.autograd.grad(loss, trained, allow_unused=True)
        for mine, theirs in zip(actual, expected, strict=True):
            if theirs is None:
                assert mine is None
            else:
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
