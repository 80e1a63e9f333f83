"""Trains the built-in pair with `AMiDTrainer` in each process of a launch, and keeps what came of it.

    torchrun --nproc-per-node 2 hf_ranks.py FILE CASE [CASE ...]
    accelerate launch --cpu --num_processes 2 --mpirun_hostfile HOSTS hf_ranks.py FILE CASE [CASE ...]

Whatever the number of processes, an optimiser step is over four batches of two rows. With
AMID_TEST_DEVICE=cuda each process has a GPU, and they talk by NCCL.
"""

import copy
import os
import sys
import tempfile
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from accelerate.utils.environment import get_int_from_env
from hf_models import TOKENS, amid, collator, rows, tiny
from torch.distributed.tensor import DTensor
from transformers import DataCollatorWithFlattening, TrainerCallback, TrainingArguments, set_seed

from amid.data.builtin import corpus
from amid.hf import AMiDTrainer

FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
STEPS = 5
RANK = get_int_from_env(["RANK", "OMPI_COMM_WORLD_RANK"], 0)
WORLD = get_int_from_env(["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"], 1)
ON_CPUS = os.environ.get("AMID_TEST_DEVICE", "cpu") == "cpu"


@dataclass
class Case:
    arguments: dict = field(default_factory=dict)
    lora: str | None = None  # the layers with adapters
    fused: bool = True
    tied: bool = True
    packed: bool = False
    trl: bool = False


CASES = {
    "ddp": Case(),
    "ddp_lora_checkpointing": Case({"gradient_checkpointing": True}, lora="all-linear"),
    "ddp_packed": Case(packed=True),
    "ddp_trl": Case(trl=True),
    "ddp_trl_packed": Case({"padding_free": True, "max_length": None}, packed=True, trl=True),
    "fsdp": Case({**FSDP, "gradient_checkpointing": True}, tied=False),
    "fsdp_packed": Case(FSDP, packed=True),
    "fsdp_lora": Case(FSDP, lora="all-linear"),
    "fsdp_on_logits": Case(FSDP, fused=False),
    "fsdp_adapted_head": Case(FSDP, lora="lm_head|.*v_proj"),
}


def shard_on_cpus():
    """Lets accelerate take FSDP on CPUs too, where it would run DDP in its place."""
    plain = AcceleratorState.__init__

    def init(self, *given, fsdp_plugin=None, **others):
        plain(self, *given, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


def whole(tensor):
    """A copy of a tensor, also of one that is spread over processes."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().clone()


class Keep(TrainerCallback):
    """Keeps the gradients of the first step, and the weights after each step, on every process."""

    def __init__(self):
        self.gradients, self.differing = {}, []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 0:
            self.gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}

    def on_step_end(self, args, state, control, model, **kwargs):
        ours = [p.detach() for p in model.parameters() if not isinstance(p, DTensor)]
        flat = torch.cat([p.flatten().float() for p in ours]) if ours else torch.zeros(1)
        first = flat.clone()
        if dist.is_initialized():
            dist.broadcast(first, src=0)
        differing = (flat != first).sum()
        if dist.is_initialized():
            dist.all_reduce(differing)  # the first process differs from itself in nothing
        self.differing.append(int(differing))


def student_of(case):
    student = tiny("student")
    if not case.tied:
        student.lm_head.weight = torch.nn.Parameter(student.lm_head.weight.detach().clone())
        student.config.tie_word_embeddings = False
    if case.lora is None:
        return student
    import peft

    student = peft.get_peft_model(
        student, peft.LoraConfig(r=4, target_modules=case.lora, task_type="CAUSAL_LM")
    )
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return student


def prompts_and_completions(n, split="train"):
    """The rows of `rows` as TRL takes them."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"prompt": f"<instruction>{of.instruction}<response>", "completion": of.outputs[0]}
            for of in corpus(split, size=n)
        ]
    )


def trainer_of(case, student, args, kept):
    teacher = tiny("teacher", 1 + RANK)  # each process has another one, and is to get the first one's
    given = {"teacher": teacher, "objective": amid(fused=case.fused), "callbacks": [kept]}
    if not case.trl:
        collate = DataCollatorWithFlattening() if case.packed else collator()
        sets = {"train_dataset": rows(8 * STEPS), "eval_dataset": rows(7, "valid")}
        return AMiDTrainer(student, args=TrainingArguments(**args), **sets, data_collator=collate, **given)
    from trl import SFTConfig, SFTTrainer

    class AMiDSFTTrainer(AMiDTrainer, SFTTrainer):
        pass

    sets = {
        "train_dataset": prompts_and_completions(8 * STEPS),
        "eval_dataset": prompts_and_completions(7, "valid"),
    }
    args = SFTConfig(**{"bf16": False, "gradient_checkpointing": False, **args})
    return AMiDSFTTrainer(student, args=args, **sets, processing_class=TOKENS, **given)


def run(case, folder, world):
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # which the case before may have set
    set_seed(0)
    student, kept = student_of(case), Keep()
    sgd = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    args = {
        "output_dir": folder,
        "use_cpu": ON_CPUS,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 4 // world,
    }
    given = case.arguments if world > 1 or "fsdp" not in case.arguments else {}
    it = trainer_of(case, student, {**args, **sgd, **copy.deepcopy(given)}, kept)
    it.train()
    evaluated = it.evaluate()["eval_loss"]
    logged = [{k: r[k] for k in ("loss", "grad_norm")} for r in it.state.log_history if "loss" in r]
    return {
        "gradients": kept.gradients,
        "differing": kept.differing,
        "sharded": sum(isinstance(p, DTensor) for p in it.model.parameters()),
        "weights": {name: whole(p) for name, p in it.model.named_parameters()},
        "logged": logged,
        "evaluated": evaluated,
    }


def main(file, names):
    torch.set_num_threads(1)
    if ON_CPUS:
        shard_on_cpus()
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(CASES[name], folder, WORLD)
    if RANK == 0:
        torch.save(found, file)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
