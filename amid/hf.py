"""Distillation in a transformers `Trainer`."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from amid.data.prompts import IGNORE
from amid.data.tokens import MicroBatch, counted_positions
from amid.errors import InputError
from amid.losses import Loss
from amid.models.counted_states import forward_replaced
from amid.models.limits import check_reads_forwards, table_of_positions
from amid.models.placement import is_spread
from amid.models.quantization import plain_parts
from amid.models.vocabulary import shared_vocabulary
from amid.teacher.signals import LiveTeacher
from amid.training.counted_loss import CountedLoss


class AMiDTrainer(Trainer):
    """A transformers `Trainer` that trains a student on an objective of `amid.losses`.

    The loss of an optimiser step is the sum over all its counted tokens (labels but -100, shifted as for any
    causal model) divided by their number, however `gradient_accumulation_steps` cuts it into batches. The
    trainer calls the models' heads separately from the other layers, so that only one chunk of the counted
    tokens has logits at a time (see `Loss.fused`). With `fused=False`, the objective takes the logits of all
    tokens. The evaluation loss is the mean over all counted tokens of the set.

    A batch has `input_ids` and `labels`, [rows, length], and `attention_mask` where it is padded, on either
    side; `DataCollatorForSeq2Seq` makes such batches. Packed rows are one row, [1, length], with
    `position_ids` that begin at 0 in each sequence, and no mask; `DataCollatorWithFlattening` makes such
    batches. Where a model does not keep packed rows apart, they raise an error.

    Student and teacher may have adapters (a `PeftModel`). The teacher is frozen, in eval mode, on the
    student's device, and in no checkpoint; it shares no weight with the student. A teacher that its
    `device_map` spread over devices, the CPU and the disk stays there. Terms that the model adds to
    its own loss, such as a router's auxiliary loss, are not part of this loss.

    Under `torchrun` or `accelerate launch` it trains with DDP or FSDP2 on several processes, one device each.
    The loss is then divided by the counted tokens of all of them, so that a step is the same on any number of
    processes. Each process holds the whole teacher, with the weights of the first process.

    Another subclass of `Trainer`, such as TRL's `SFTTrainer`, may be a base after this one. That class
    prepares the data, and this class computes the loss.

    Args:
        model: the student.
        teacher: a model with the same tokens in the same places; None for objectives without a teacher. If
            their embeddings have different sizes, the logits of both models are cut to the smaller size.
        objective: such as `Objective(AlphaBeta(), AlphaMixture())`. Its settings, such as
            `objective.assistant.lam`, may change between steps, for example by a callback.
        arguments: the arguments of `Trainer`, by keyword.

    Raises:
        InputError: for a teacher that the objective needs and does not have, an objective that is no sum over
            batches with `gradient_accumulation_steps` above 1 or several processes, several GPUs in one
            process, DeepSpeed, FSDP1, tensor, context or sequence parallelism, prompt learning,
            `torch_compile`, and arguments of `Trainer` that make up another loss
            (`compute_loss_func`, `model_init`, `label_smoothing_factor`); for a model that is a path, reads
            both ways, is an encoder with a decoder, or has fewer embeddings than `processing_class` tokens,
            and for a teacher that shares weights with the student, or is spread and is run on several
            processes. While it trains, for a batch of another form than above, or that has tokens or
            positions that a model does not have, and where no weight of the model is to be trained.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        *,
        teacher: PreTrainedModel | None,
        objective: Loss,
        **arguments: Any,
    ) -> None:
        if objective.needs_teacher and teacher is None:
            raise InputError(f"teacher=None, but {objective!r} needs one; give a model")
        for name in ("compute_loss_func", "model_init"):
            if arguments.get(name) is not None:
                raise InputError(
                    f"{name} is not taken: the loss is the objective's, of one model; leave it out"
                )
        for role, given in (("teacher", teacher), ("model", model)):
            if isinstance(given, str | Path) and (role == "teacher" or not _is_loaded_by_a_base(type(self))):
                raise InputError(
                    f"{role}={str(given)!r} is a path; load it: "
                    f"{role}=AutoModelForCausalLM.from_pretrained({str(given)!r})"
                )
        if (tokenizer := getattr(arguments.get("data_collator"), "tokenizer", None)) is not None:
            arguments.setdefault("processing_class", tokenizer)  # the saved model names its end token
        super().__init__(model, **arguments)
        assert self.model is not None
        args = self.args
        _check_arguments(args, objective)
        _check_devices(self)
        self.objective: Loss = objective
        self.model_accepts_loss_kwargs = True  # each batch's loss is its share of the step's
        student = _plain(self.model, "model")
        self._models = {"model": student}
        if teacher is not None:
            self._models["teacher"] = _plain(teacher, "teacher")
            _check_apart(student, self._models["teacher"])
            _place(self._models["teacher"], args)
        self._positions = {role: table_of_positions(of) for role, of in self._models.items()}
        for role, given in self._models.items():
            _check_tokens(role, given, self.processing_class)
        self._pad = getattr(self.processing_class, "pad_token_id", None)
        if self._pad is None:
            self._pad = student.config.get_text_config().pad_token_id
        self._teacher = None if teacher is None else LiveTeacher(self._models["teacher"])
        shared_vocab = None
        if self._teacher is not None:
            shared_vocab = shared_vocabulary(self._teacher.vocabulary, student)
        self._counted_loss = CountedLoss(student, self._teacher, shared_vocab)
        if len(set(_of_all_processes(self._counted_loss.has_head, args))) > 1:
            raise InputError(
                f"the head of {type(student).__name__} cannot be split off, as only the process with the "
                "loaded weights sees; set cpu_ram_efficient_loading to false"
            )
        self._evaluated: list[tuple[Tensor, Tensor]] = []

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | int | None]:
        """This process's batches of an optimiser step, and the counted tokens of all its processes.

        With `average_tokens_across_devices=False` they are the counted tokens of this process.
        """
        batches, n = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            n = sum(int(counted_positions(_micro_batch(batch, self._pad)).sum()) for batch in batches)
            if self.args.average_tokens_across_devices:
                n = int(self.accelerator.gather(torch.tensor([n], device=device)).sum())
        return batches, n

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Returns the objective's sum over the batch, divided by the counted tokens of the whole step.

        On several processes it is that number times the processes: DDP and FSDP average the gradients over
        the processes, and `Trainer` its losses.

        Args:
            model: the student, perhaps wrapped. The loss is computed in the wrapper's forward pass, whose
                hooks synchronise the gradients and gather spread weights.
            inputs: a batch.
            return_outputs: also return the model's own outputs, which takes a pass of its own.
            num_items_in_batch: the counted tokens of the step; None for the counted tokens of this batch.
        """
        batch = _micro_batch(inputs, self._pad)
        for role, given in self._models.items():
            _check_batch(role, given, self._positions[role], batch)
        denominator = None
        if num_items_in_batch is not None:
            shares = self.args.world_size if self.args.average_tokens_across_devices else 1
            denominator = max(float(num_items_in_batch), 1.0) / shares

        def forward(*_: Any, **__: Any) -> Tensor:
            with self.accelerator.autocast():  # which the student's own forward pass has, replaced here
                return self._counted_loss(self.objective, batch, denominator)[0]

        with forward_replaced(self._models["model"], forward):
            loss = model(input_ids=batch["input_ids"])
        if torch.is_grad_enabled() and not any(w.requires_grad for w in self._models["model"].parameters()):
            raise InputError(
                "no weight of the model is to be trained; call model.requires_grad_(), or for adapters "
                "PeftModel.from_pretrained(..., is_trainable=True)"
            )
        if not return_outputs:
            return loss
        return loss, model(**_inputs_of_model(inputs))

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss of a batch of the evaluation; logits and labels too where a metric is computed of them."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            once = self._without_repeated(inputs)
            loss = self.compute_loss(model, once).detach()
            self._evaluated.append((loss, counted_positions(_micro_batch(once, self._pad)).sum()))
            if prediction_loss_only:
                return loss, None, None
            logits = model(**_inputs_of_model(inputs)).logits
        return loss, logits.detach(), inputs["labels"]

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluates as `Trainer` does, but with the mean loss over all counted tokens, not over batches."""
        self._evaluated.clear()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self._evaluated and output.metrics is not None:
            losses, counts = (torch.stack(values).double() for values in zip(*self._evaluated, strict=True))
            sums = torch.stack([(losses * counts).sum(), counts.sum()])
            total, counted = self.accelerator.reduce(sums, "sum").tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = total / max(counted, 1.0)
        return output

    def _without_repeated(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch of an evaluation in which rows do not count that fill the last batch a second time.

        So that all processes have equally many rows, accelerate gives some of them again.
        """
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return inputs
        row = _sequence(inputs)
        rows = int(row.max()) + 1
        if "position_ids" in inputs and rows != self.args.eval_batch_size:
            raise InputError(
                f"the last batch of the evaluation holds some of its packed rows twice, {rows} sequences in "
                f"all for eval_batch_size={self.args.eval_batch_size}; give an eval_dataset that processes "
                "times eval_batch_size divides, or padded rows (TRL: eval_packing=False)"
            )
        real = max(state.remainder - self.args.process_index * rows, 0)
        return {**inputs, "labels": inputs["labels"].masked_fill(row >= real, IGNORE)}


def _check_arguments(args: TrainingArguments, objective: Loss) -> None:
    """Raises InputError for arguments of training that change the loss, or that it cannot follow."""
    if args.n_gpu > 1:
        raise InputError(
            f"AMiDTrainer runs on one device a process, here are {args.n_gpu} for one; start it by "
            f"torchrun --nproc-per-node {args.n_gpu}, or with CUDA_VISIBLE_DEVICES=0"
        )
    if args.label_smoothing_factor != 0:
        raise InputError(
            f"label_smoothing_factor={args.label_smoothing_factor} is no part of {objective!r}; use 0"
        )
    if args.torch_compile:
        raise InputError(
            "torch_compile=True does nothing here, where the body is called apart from its compiled "
            "wrapper; leave it out (compiled=True at the objective compiles the loss)"
        )
    for name, parts in (
        ("gradient_accumulation_steps", args.gradient_accumulation_steps),
        ("processes", args.world_size),
    ):
        if parts > 1 and not objective.additive:
            raise InputError(
                f"{name}={parts} cuts a step into parts, but {objective!r} is no sum of parts; use 1, or "
                "maximum='token'"
            )


def _check_devices(trainer: "AMiDTrainer") -> None:
    """Raises InputError for ways to spread a model in which the loss would not see its whole head."""
    if trainer.is_deepspeed_enabled:
        raise InputError(
            "AMiDTrainer does not take DeepSpeed, whose engine spreads the head that the loss reads; use "
            "fsdp=True, or plain DDP"
        )
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if trainer.is_fsdp_xla_enabled or (plugin is not None and plugin.fsdp_version != 2):
        raise InputError(
            "AMiDTrainer takes FSDP of version 2 alone; use fsdp=True with fsdp_config={'version': 2}, or "
            "fsdp_version: 2 in the file of accelerate"
        )
    sizes = {"tp": trainer.get_tp_size(), "cp": trainer.get_cp_size(), "sp": trainer.get_sp_size()}
    parts = [f"{name}_size={size}" for name, size in sizes.items() if size > 1]
    if parts or trainer.is_distributed_loading_by_transformers:
        raise InputError(
            f"{', '.join(parts) or 'a model that from_pretrained spread'} cuts a row or a layer into parts, "
            "which AMiDTrainer does not take; give each process whole rows: DDP, or fsdp=True"
        )


def _of_all_processes(value: bool, args: TrainingArguments) -> list[bool]:
    values = [value] * args.world_size
    if args.world_size > 1:
        dist.all_gather_object(values, value)
    return values


def _place(teacher: PreTrainedModel, args: TrainingArguments) -> None:
    """Moves the teacher to the device of this process, with the weights of the first process.

    A teacher that accelerate spread over devices, the CPU and the disk stays where it is.

    Raises:
        InputError: for such a teacher on several processes.
    """
    devices = {weight.device for weight in teacher.parameters()}
    if is_spread(teacher) and (len(devices) > 1 or torch.device("meta") in devices):
        if args.world_size > 1:
            raise InputError(
                f"the teacher is spread by its device_map, and here are {args.world_size} processes, each of "
                "which holds the whole teacher; load it without device_map, or start one process"
            )
        return
    teacher.to(args.device)  # type: ignore[arg-type]  # as transformers annotates it
    if args.world_size > 1:
        for tensor in chain(teacher.parameters(), teacher.buffers()):
            for part in plain_parts(tensor):
                dist.broadcast(part.data, src=0)


def _is_loaded_by_a_base(kind: type) -> bool:
    """Whether a base class after `AMiDTrainer`, such as TRL's `SFTTrainer`, takes the model."""
    following = kind.__mro__[kind.__mro__.index(AMiDTrainer) + 1]
    return following is not Trainer


def _plain(model: Any, role: str) -> PreTrainedModel:
    """Returns the model that has body and head: the model within a `PeftModel`, adapters included."""
    config = getattr(model, "active_peft_config", None)
    if config is not None and hasattr(model, "get_base_model"):
        if config.is_prompt_learning:
            raise InputError(
                f"peft's {config.peft_type} adds tokens before the prompt; use LoRA or no adapters"
            )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"{role} is a {type(model).__name__}; give a transformers model for causal language")
    check_reads_forwards(role, model)
    if model.get_output_embeddings() is None and not model.can_generate():
        raise InputError(
            f"{role} is a {type(model).__name__}, which makes no logits; load it by AutoModelForCausalLM"
        )
    return model


def _check_apart(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raises InputError where the two share weights, also as views of the same memory."""

    def memory(weight: nn.Parameter) -> set[int]:
        return {part.untyped_storage().data_ptr() or id(part) for part in plain_parts(weight)}

    ours = set().union(*map(memory, student.parameters()))
    shared = [name for name, weight in teacher.named_parameters() if memory(weight) & ours]
    if shared:
        raise InputError(
            f"the teacher shares {len(shared)} weights with the student ({shared[0]}, ...), which would be "
            "frozen, or change, with it; give a model of its own: copy.deepcopy(model), before adapters are "
            "added to either"
        )


def _embeddings(model: PreTrainedModel) -> int:
    weight: Any = model.get_input_embeddings().weight
    return int(weight.shape[0])


def _check_tokens(role: str, model: PreTrainedModel, tokenizer: Any) -> None:
    """Raises InputError where a tokenizer has more tokens than the model embeddings."""
    if isinstance(tokenizer, PreTrainedTokenizerBase) and len(tokenizer) > _embeddings(model):
        raise InputError(
            f"{role} has {_embeddings(model)} token embeddings and the tokenizer {len(tokenizer)} tokens; "
            "give models of one family and their tokenizer"
        )


def _check_batch(role: str, model: PreTrainedModel, positions: int | None, batch: MicroBatch) -> None:
    """Raises InputError where a batch has tokens or positions that the model does not have."""
    ids = batch["input_ids"]
    lowest, highest = (int(end) for end in ids.aminmax()) if ids.numel() else (0, 0)
    if lowest < 0 or highest >= _embeddings(model):
        raise InputError(
            f"a batch has token {min(lowest, 0) or highest}, and {role} has only {_embeddings(model)} token "
            "embeddings; give models of one family and rows of their tokenizer"
        )
    places = batch.get("position_ids")
    length = ids.shape[1] if places is None else int(places.max()) + 1
    if positions is not None and length > positions:
        raise InputError(
            f"a batch has a row of {length} tokens, and {role} has only {positions} positions; cut the rows "
            f"to {positions}"
        )


_OF_KERNELS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
"""What collators add to packed rows for kernels such as FlashAttention's; it follows from `position_ids`."""


def _inputs_of_model(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: inputs[name]
        for name in ("input_ids", "attention_mask", "position_ids")
        if inputs.get(name) is not None
    }


def _sequence(inputs: dict[str, Any]) -> Tensor:
    """The number [rows, length] of the sequence, a row or a part of a packed row, that each token is in."""
    ids, places = inputs["input_ids"], inputs.get("position_ids")
    if places is None:
        return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    found: Tensor = (places == 0).cumsum(1) - 1
    return found


def _micro_batch(inputs: dict[str, Tensor | Any], pad: int | None) -> MicroBatch:
    """Returns a batch of `Trainer`, packed, or with its padding on the right, where attention does not look.

    Without a mask, rows may be padded on the right, with labels of -100, but not on the left. Padding on the
    left shows as the padding token `pad` before some rows and not all, or as two of them: one may be the BOS.
    """
    missing = {"input_ids", "labels"} - {name for name, value in inputs.items() if value is not None}
    if missing:
        raise InputError(
            f"a batch has no {min(missing)}, only {', '.join(inputs)}; use DataCollatorForSeq2Seq on rows of "
            "input_ids and labels"
        )
    foreign = inputs.keys() - {"input_ids", "labels", "attention_mask", "position_ids"} - _OF_KERNELS
    if foreign:
        raise InputError(
            f"a batch has {min(foreign)}, which AMiDTrainer does not take; choose another data collator"
        )
    batch = {name: value for name, value in inputs.items() if name not in _OF_KERNELS}
    if batch["labels"].shape != batch["input_ids"].shape:
        raise InputError(
            f"labels are {list(batch['labels'].shape)} and input_ids {list(batch['input_ids'].shape)}; give "
            "a label for each token, -100 where it does not count"
        )
    if batch.get("position_ids") is not None:
        return _packed(batch)
    mask = batch.get("attention_mask")
    if mask is None:
        begin = batch["input_ids"][:, :2].eq(-1 if pad is None else pad)
        once, twice = begin[:, :1].any(1), begin.all(1)
        if bool(once.any()) and bool(twice.any() or not once.all()):
            raise InputError(
                f"a batch begins rows with the padding token {pad} and has no attention_mask; give the mask, "
                "or pad on the right"
            )
        return batch
    if mask.shape != batch["input_ids"].shape:
        raise InputError(
            f"attention_mask is {list(mask.shape)} and input_ids {list(batch['input_ids'].shape)}; "
            "give a mask of [rows, length]"
        )
    real = mask.bool()
    order = (~real).long().argsort(dim=1, stable=True)
    index = torch.arange(real.shape[1], device=real.device)
    if bool((order != index).any()):
        starts = real.long().argmax(1)
        within = (index >= starts[:, None]) & (index < (starts + real.sum(1))[:, None])
        if not torch.equal(within, real):
            raise InputError("attention_mask has gaps within a row; give rows padded at one end")
        batch = {name: value.gather(1, order) for name, value in batch.items()}
    batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, IGNORE)
    return batch


def _packed(batch: dict[str, Any]) -> MicroBatch:
    """Returns a batch of packed rows, in which no row's first token is a label."""
    places, ids = batch["position_ids"], batch["input_ids"]
    if len(ids) != 1 or places.shape != ids.shape or batch.get("attention_mask") is not None:
        raise InputError(
            f"a batch has position_ids {list(places.shape)} for input_ids {list(ids.shape)}; give packed "
            "rows as one row with position_ids and no attention_mask, and padded rows without position_ids"
        )
    first = places == 0
    if not bool(first[0, 0]) or bool(((places[:, 1:] != places[:, :-1] + 1) & ~first[:, 1:]).any()):
        raise InputError("position_ids do not count 0, 1, 2, ... in each packed row; use another collator")
    labels = batch["labels"].masked_fill(first, IGNORE)
    return {"input_ids": ids, "labels": labels, "position_ids": places}
