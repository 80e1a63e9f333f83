import re
import weakref
from functools import partial

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from amid.config.compose import register_resolvers
from amid.config.folders import CONF
from amid.estimates.memory import spread, training_memory
from amid.estimates.sizes import HUB_FACTS
from amid.losses import AlphaBeta, AlphaMixture, CrossEntropy, Objective
from amid.models.source import ModelSource
from amid.training.low_bit import adamw_8bit
from amid.training.master_weights import AdamWWithMasterWeights

register_resolvers()


MODELS = HUB_FACTS["models"]
SKELETONS = {path: {} for path in MODELS}
"""The skeletons that were made, by their settings: several pairs have the same models."""


def skeleton(source, **changes):
    settings = {"dtype": source.dtype, "lora": source.lora, "layers": source.layers} | changes
    if repr(settings) not in SKELETONS[source.path]:
        config = AutoConfig.for_model(**MODELS[source.path]["architecture"])
        made = ModelSource(path=source.path, **settings).skeleton(config)
        SKELETONS[source.path][repr(settings)] = made
    return SKELETONS[source.path][repr(settings)]


@pytest.mark.parametrize("path", MODELS)
def test_a_skeleton_has_the_published_number_of_weights(path):
    model = skeleton(ModelSource(path=path))
    assert sum(weight.numel() for weight in model.parameters()) == MODELS[path]["weights"]
    assert model.device.type == "meta"


@pytest.mark.parametrize("file", sorted(CONF.glob("model/*.yaml")), ids=lambda file: file.stem)
def test_the_memory_that_a_pair_says_it_needs(file):
    said = re.search(
        r"^# GPU memory: (\d+) GB to fine-tune the teacher, (\d+) GB to distil", file.read_text(), flags=re.M
    )
    if file.stem in ("tiny", "from_scratch"):
        assert said is None
        return
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"model={file.stem}", "data=dolly"])
    cfg.model.teacher.sft = cfg.model.student.sft = None
    teacher, student = instantiate(cfg.model.teacher), instantiate(cfg.model.student)
    tokens = cfg.data.micro_batch_size * cfg.data.max_length
    first = skeleton(teacher, **({} if teacher.lora else {"dtype": "float32"}))
    needed = [
        training_memory(first, None, tokens, cfg.trainer.precision),
        training_memory(skeleton(student), skeleton(teacher, lora=None), tokens, cfg.trainer.precision),
    ]
    assert [int(group) for group in said.groups()] == [round(memory.total / 1e9) for memory in needed]


@pytest.mark.parametrize(
    ("dtype", "optimizer", "bytes_of_a_weight"),
    [
        (torch.float32, AdamW, 8),
        (torch.bfloat16, AdamW, 4),
        (torch.float32, partial(AdamW, amsgrad=True), 12),
        (torch.bfloat16, AdamWWithMasterWeights, 12),
        (torch.float32, AdamWWithMasterWeights, 8),
        (torch.float32, adamw_8bit, 2 + 2 * 4 / 256),  # with a float32 scale of each 256 values
        (torch.float32, partial(torch.optim.SGD, lr=1.0), 0),
    ],
)
def test_the_states_of_an_optimiser(dtype, optimizer, bytes_of_a_weight):
    config = AutoConfig.for_model("llama", hidden_size=64, num_hidden_layers=2, vocab_size=500)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if optimizer is adamw_8bit:
        pytest.importorskip("torchao")
    found = training_memory(model, None, 128, "32-true", optimizer=optimizer).optimizer
    weights = sum(weight.numel() for weight in model.parameters())
    assert found == pytest.approx(bytes_of_a_weight * weights, rel=0.02)


def test_spread_weights_take_their_part_and_what_is_gathered():
    config = AutoConfig.for_model("llama", hidden_size=64, num_hidden_layers=10, vocab_size=500)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layer = 4 * sum(weight.numel() for weight in model.base_model.layers[0].parameters())
    outside = 4 * (500 * 64 * 2 + 64)
    whole = training_memory(model, None, 128, "32-true")
    part = spread(whole, model, 4)
    assert whole.weights == 10 * layer + outside
    assert part.weights == part.gradients == whole.weights // 4 + outside + 2 * layer
    assert part.optimizer == whole.optimizer // 4
    assert (part.activations, part.loss) == (whole.activations, whole.loss)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("path", ["openai-community/gpt2", "facebook/opt-125m", "Qwen/Qwen3-0.6B"])
def test_the_estimate_of_the_activations_is_within_a_factor_of_two(path, precision):
    fields, layers = {**MODELS[path]["architecture"], "vocab_size": 1000}, 3
    name = {"gpt2": "n_layer"}.get(fields["model_type"], "num_hidden_layers")
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**fields | {name: layers}, bos_token_id=1, eos_token_id=2)
    ).train()
    plain = kept_bytes(model, precision)
    assert 0.5 < training_memory(model, None, 128, precision).activations / plain < 2
    model.gradient_checkpointing_enable()
    checkpointed = kept_bytes(model, precision) + plain / layers
    assert 0.5 < training_memory(model, None, 128, precision).activations / checkpointed < 2
    assert checkpointed < plain / 2


def kept_bytes(model, precision):
    """The bytes that autograd keeps of a body for 128 tokens, without the weights and their copies."""
    ours = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours and tensor.shape not in copies:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    mixed = precision == "bf16-mixed"
    copies = {s for w in model.parameters() for s in (w.shape, w.shape[::-1])} if mixed else set()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), hooks:
        output = model.base_model(torch.randint(2, 1000, (2, 64)), use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(kept.values())


class Peak(TorchDispatchMode):
    """Follows the bytes of all arrays that are made in it and still alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.gone, storage._cdata)
        return made

    def gone(self, key):
        self.now -= self.alive.pop(key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_the_estimate_of_the_loss_is_within_a_factor_of_two(fused, with_teacher, dtype):
    tokens, width = 64, 16
    sizes = {"vocab_size": 4000, "n_embd": width, "n_layer": 1, "n_head": 2}
    config = AutoConfig.for_model("gpt2", **sizes, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    sides = ("student", "teacher") if with_teacher else ("student",)
    hidden = {side: torch.randn(tokens, width, dtype=dtype) for side in sides}
    weight, labels = model.lm_head.weight, torch.zeros(tokens, dtype=torch.long)
    objective = Objective(AlphaBeta(0.2, 0.7), AlphaMixture(-5.0, 0.1)) if with_teacher else CrossEntropy()
    with Peak() as peak:
        if fused:
            inputs = {f"{side}_hidden": states for side, states in hidden.items()}
            objective.fused(**inputs, **{f"{side}_weight": weight for side in sides}, labels=labels)
        else:
            logits = {f"{side}_logits": states @ weight.T for side, states in hidden.items()}
            objective(**logits, **({} if with_teacher else {"labels": labels})).backward()
    teacher = model if with_teacher else None
    assert 0.5 < training_memory(model, teacher, tokens, "32-true", fused=fused).loss / peak.most < 2


def test_without_blocks_the_loss_takes_memory_for_each_token():
    config = AutoConfig.for_model("gpt2", vocab_size=50_000, n_embd=16, n_layer=1, n_head=2)
    model = AutoModelForCausalLM.from_config(config)
    by_tokens = {
        fused: [
            training_memory(model, model, tokens, "32-true", fused=fused).loss
            for tokens in (10_000, 20_000, 30_000)
        ]
        for fused in (True, False)
    }
    assert len(set(by_tokens[True])) == 1, "more tokens go through the same blocks"
    head = 4 * model.lm_head.weight.numel()
    ten, twenty, thirty = (each - head for each in by_tokens[False])
    assert (twenty, thirty) == (2 * ten, 3 * ten)
