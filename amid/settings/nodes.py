"""The settings that amid knows, typed: a model for each node of a configuration, by its `_target_`.

Nothing here imports torch or Lightning, so that a wrong value is answered at once. A field is an argument of
what the node makes, with the same default.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from amid.settings import optimisation
from amid.settings.types import (
    MOST_THREADS,
    Architecture,
    ClipNorm,
    Count,
    CountOrAll,
    CountOrNone,
    DeviceMap,
    Devices,
    Fields,
    Flag,
    FlagOrNone,
    Folder,
    Hub,
    Inside,
    Layers,
    Limit,
    Natural,
    Node,
    NotNegative,
    Number,
    OptionalText,
    PassAt,
    PlainText,
    Positive,
    Seed,
    Seeds,
    Sets,
    Share,
    ShareAboveNone,
    ShareBelowAll,
    Source,
    Temperatures,
    Text,
    TopPs,
    WithInput,
    WithoutInput,
)


class Root(Node):
    """The top-level settings of a configuration, besides its nodes."""

    seed: Seed
    student_is: Annotated[Literal["student", "teacher"], Field(description="student or teacher, of the pair")]
    clip_norm: ClipNorm
    threads: Annotated[
        Annotated[int, Field(ge=1, le=MOST_THREADS)] | None,
        Field(description=f"a whole number from 1 to {MOST_THREADS}, or null for all cores"),
    ]
    hub: Hub
    output_dir: Folder
    prepared_dir: Folder
    run: Annotated[str | None, Field(description="the folder of a finished run, or null")] = None
    name: Annotated[
        Annotated[str, Field(min_length=1, max_length=100)] | None,
        Field(description="text of up to 100 characters, or null"),
    ] = None
    trust_run: Flag = False
    callbacks: Any = None
    data: Any
    assistant: Any
    divergence: Any
    objective: Any
    schedule: Any
    text: Any
    teacher: Any
    optimizer: Any
    scheduler: Any
    trainer: Any
    checkpoint: Any
    generation: Any
    logger: Any
    model: Any


class OfHydra(Node):
    """`hydra.run` and `hydra.sweep`."""

    dir: Folder


class Data(Node):
    """`amid.data.InstructionData`."""

    train: Source
    valid: Source
    test: Sets
    template: Any
    metrics: Annotated[dict[str, Any], Field(description="functions by name")] = {}  # noqa: RUF012
    valid_metric: Annotated[str | None, Field(description="the name of one of data.metrics, or null")] = None
    pass_at: PassAt = ()
    fields: Fields = None
    max_prompt_length: Count
    max_length: Count
    truncation: Literal["input", "right"] = "input"
    special_tokens: Literal["text", "tokens"] = "text"
    turns: Literal["all", "last"] = "all"
    batch_size: Count
    micro_batch_size: CountOrAll
    tokens_per_batch: CountOrAll
    packing: Flag = False
    sharing: Annotated[
        Literal["rows", "micro_batches"],
        Field(
            description="rows, which each device cuts into micro-batches; or micro_batches, cut before, for "
            "the same numbers to the bit on any number of devices"
        ),
    ] = "rows"
    mean: Literal["step", "micro_batch"] = "step"
    valid_rows: CountOrAll = None
    valid_prompts: Count = 64
    test_prompts: CountOrAll = None
    plain_text: PlainText = None
    plain_text_weight: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="a finite number above 0; no plain text is data.plain_text=null",
        ),
    ] = 1.0
    seed: Seed = 0
    cache_dir: Folder


class Template(Node):
    """`amid.data.Template`."""

    without_input: WithoutInput
    with_input: WithInput
    chat: Annotated[
        dict[str, Any] | Literal["auto"] | None,
        Field(description="auto, variables of a chat template, as {}, or null for none"),
    ] = "auto"
    system: Annotated[
        Annotated[str, Field(min_length=1)] | None, Field(description="the text of a system message, or null")
    ] = None
    thinking: Literal["keep", "cut"] = "keep"


class BuiltinCorpus(Node):
    """`amid.data.builtin.corpus`."""

    split: Literal["train", "valid", "test"]
    seed: Seed = 0
    size: Count = 12000
    kind: Literal["all", "open", "closed", "numbers"] = "all"


class OpusCorpus(Node):
    """`amid.data.opus100.corpus`."""

    split: Literal["train", "validation", "test"]
    source: Text = "de"
    target: Text = "en"
    size: CountOrAll = None
    hub: Hub = "hf://datasets"


class Trainer(Node):
    """The arguments of `lightning.Trainer` that a run can choose."""

    max_epochs: Annotated[int, Field(ge=-1, description="a whole number from 0; -1 is no limit")]
    max_steps: Annotated[int, Field(ge=-1, description="a whole number from 0; -1 is no limit")]
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Devices
    num_nodes: Count = 1
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp"],
        Field(
            description="auto or ddp: each device has the whole student and a share of a step's rows; "
            "fsdp: the student's weights, gradients and optimiser states are spread over the devices too"
        ),
    ] = "auto"
    precision: Annotated[
        Literal["32-true", "bf16-mixed", "64-true"],
        Field(
            description="bf16-mixed, 32-true or 64-true (for bf16-true: 32-true with "
            "model.student.dtype=bfloat16 optimizer=adamw_master_weights); losses and counts are summed in "
            "float32 at least, and gradients clipped as they are"
        ),
    ]
    log_every_n_steps: Count
    check_val_every_n_epoch: Count
    num_sanity_val_steps: Annotated[
        Literal[0], Field(description="0: every training begins with a validation")
    ] = 0
    enable_model_summary: Flag = False
    limit_train_batches: Limit = None
    deterministic: Annotated[
        bool | Literal["warn"] | None, Field(description="true, false, warn or null")
    ] = None
    benchmark: FlagOrNone = None
    detect_anomaly: Flag = False
    inference_mode: Flag = True
    profiler: Annotated[
        Literal["simple", "advanced"] | None, Field(description="simple, advanced or null")
    ] = None


class Checkpoint(Node):
    """`amid.training.checkpoints.Checkpoints`."""

    monitor: Annotated[str, Field(description="the name of what validations measure, such as valid/loss")]
    mode: Literal["min", "max"] = "min"
    every_n_steps: CountOrNone = None
    every_minutes: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        Field(description="a number of minutes above 0, or null for no limit"),
    ] = 5.0
    requeue: Flag = False


class AlphaMixture(Node):
    """`amid.losses.AlphaMixture`."""

    alpha: Number = -5.0
    lam: Share = 0.1
    detach_student: Flag = False


class Alpha(Node):
    """`amid.losses.AlphaDivergence`."""

    alpha: Number


class AlphaBeta(Node):
    """`amid.losses.AlphaBeta`."""

    alpha: Number = 0.2
    beta: Number = 0.7


class JensenShannon(Node):
    """`amid.losses.JensenShannon`."""

    beta: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="a number between 0 and 1, without the ends, which are divergence=kl and "
            "divergence=reverse_kl",
        ),
    ] = 0.5


class Plain(Node):
    """A node without settings."""


class CrossEntropy(Node):
    """`amid.losses.CrossEntropy`."""

    fused: Flag = True


class Distillation(Node):
    """The settings that all losses between teacher and student share."""

    shared_vocab: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(description="a whole number from 1, or null for what both models have"),
    ] = None
    fused: Flag = True


class Objective(Distillation):
    """`amid.losses.Objective`."""

    divergence: Any
    assistant: Any = None
    order: Annotated[
        Literal["pr", "rp", "qr", "rq", "pq", "qp"] | None,
        Field(description="pr, rp, qr, rq, pq or qp, or null for the usual one"),
    ] = None
    compiled: Flag = False


class AdaptiveKL(Distillation):
    """`amid.losses.AdaptiveKL`."""

    head_mass: Inside = 0.5
    swapped: Flag = False


class AlphaNet(Distillation):
    """`amid.losses.AlphaNet`."""

    a: Number = 0.2
    b: Number = 0.8
    maximum: Literal["batch", "token"] = "batch"


class BidirectionalKL(Distillation):
    """`amid.losses.BidirectionalKL`."""

    weight: Annotated[
        float, Field(ge=1, allow_inf_nan=False, description="a finite number from 1, such as 2")
    ] = 2.0


class MiniLLM(Node):
    """`amid.losses.MiniLLM`."""

    clip: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        Field(description="a number above 0, or null for none"),
    ] = 0.2
    weighted_single_step: Flag = True
    fused: Flag = True


class TAID(Node):
    """`amid.schedule.TAID`."""

    start: Share = 0.4
    end: Share = 1.0
    rate: NotNegative = 5e-4
    momentum: ShareBelowAll = 0.99


class Sampling(Node):
    """`amid.generation.Sampling`."""

    max_new_tokens: Count
    seeds: Seeds = (10, 20, 30, 40, 50)
    samples: Count = 1
    temperature: NotNegative = 1.0
    top_p: ShareAboveNone = 1.0
    top_k: Natural = 0
    temperatures: Temperatures = None
    top_ps: TopPs = None
    no_repeat_ngram_size: Natural = 0
    batch_size: Count = 64


class VLLMSampling(Sampling):
    """`amid.generation.VLLMSampling`."""

    no_repeat_ngram_size: Annotated[
        Literal[0],
        Field(description="0 with vLLM, which has no such rule; use generation=sampling for it"),
    ] = 0
    memory_share: ShareAboveNone = 0.5


class TeacherText(Node):
    """`amid.text.TeacherText`, and the settings by which any text draws answers."""

    max_new_tokens: Count
    temperature: NotNegative = 0.0
    top_p: ShareAboveNone = 1.0
    top_k: Natural = 0
    batch_size: Count = 64
    seed: Seed = 0


class OnStudentText(TeacherText):
    """The settings that all on-policy texts share."""

    temperature: NotNegative = 1.0
    labels: Literal["shifted", "unshifted"] = "shifted"


class StudentText(OnStudentText):
    """`amid.text.StudentText`."""

    share: Annotated[
        float, Field(gt=0, le=1, description="a number above 0, up to 1; for none, use text=data")
    ] = 1.0


class AdaptiveText(OnStudentText):
    """`amid.text.AdaptiveText`."""

    threshold: Share = 0.0
    increase: Share = 0.1
    tolerance: Number = 0.1
    capacity: Count = 1000


class RolloutText(Node):
    """`amid.text.RolloutText`."""

    max_new_tokens: Count
    rows_per_step: Count
    batches: Count = 4
    epochs: Count = 4
    teacher_share: ShareBelowAll = 0.2
    normalise: Flag = True
    batch_size: Count = 64
    seed: Seed = 0


class TeacherSupply(Node):
    """`amid.teacher.TeacherSupply`."""

    mode: Literal["live", "cached", "auto"] = "live"
    multirun: Flag = False
    cache_dir: Folder = "outputs/cache"
    tokens_per_forward: Count = 2048
    states: Literal["exact", "int8"] = "exact"
    offload: Flag = False


class ModelSource(Node):
    """`amid.models.ModelSource`."""

    path: Annotated[
        Annotated[str, Field(min_length=1)] | None, Field(description="a hub id, a folder, or null")
    ] = None
    architecture: Architecture = None
    layers: Layers = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    sft: Any = None
    lora: Any = None
    gradient_checkpointing: Flag = False
    quantization: Annotated[
        Literal["int8", "int4", "nf4"] | None,
        Field(description="int8, int4, nf4, or null for the weights as they are"),
    ] = None
    device_map: DeviceMap = None
    attention: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Field(description="sdpa, eager, flash_attention_2 or another name of transformers, or null"),
    ] = None


class LoRA(Node):
    """`amid.models.LoRA`."""

    r: Count = 16
    alpha: Positive = 64
    dropout: ShareBelowAll = 0.1
    target_modules: Annotated[
        list[str] | str | None, Field(description="names of layers, as [q_proj, v_proj], or null")
    ] = None
    modules_to_save: Annotated[list[str] | None, Field(description="names of modules, or null")] = None


class FineTuning(Node):
    """The settings of a model's fine-tuning before its use."""

    optimizer: Any
    scheduler: Any
    trainer: Any
    checkpoint: Any
    batch_size: Count
    micro_batch_size: CountOrAll
    tokens_per_batch: CountOrAll
    clip_norm: ClipNorm
    seed: Seed


class Pair(Node):
    """`model`."""

    tokenizer: Any
    teacher: Any = None
    student: Any = None


class StoredTokenizer(Node):
    """`amid.models.load_tokenizer`."""

    path: Annotated[str, Field(min_length=1, description="a hub id, a folder, or a GGUF file")]


class CSVLogger(Node):
    """`lightning.pytorch.loggers.CSVLogger`."""

    save_dir: Text
    name: OptionalText = "lightning_logs"
    version: Annotated[str | int | None, Field(description="text, a whole number, or null")] = None
    prefix: Text = ""
    flush_logs_every_n_steps: Count = 100


class WandbLogger(Node):
    """`lightning.pytorch.loggers.WandbLogger`, and the arguments that it passes to `wandb.init`."""

    name: OptionalText = None
    save_dir: Text = "."
    version: OptionalText = None
    offline: Flag = False
    dir: OptionalText = None
    id: OptionalText = None
    anonymous: Any = None
    project: OptionalText = None
    log_model: Annotated[bool | Literal["all"], Field(description="true, false or all")] = False
    prefix: Text = ""
    checkpoint_name: OptionalText = None
    add_file_policy: Literal["mutable", "immutable"] = "mutable"
    entity: OptionalText = None
    group: OptionalText = None
    job_type: OptionalText = None
    tags: Annotated[list[str] | None, Field(description="a list of words, or null")] = None
    notes: OptionalText = None
    mode: Annotated[
        Literal["online", "offline", "disabled", "shared"] | None,
        Field(description="online, offline, disabled or null"),
    ] = None
    resume: Any = None
    reinit: Any = None
    force: FlagOrNone = None
    save_code: FlagOrNone = None
    allow_val_change: FlagOrNone = None
    config_exclude_keys: Any = None
    config_include_keys: Any = None
    settings: Any = None


SacreBLEU = Literal[
    "none", "zh", "13a", "intl", "char", "ja-mecab", "ko-mecab", "spm", "flores101", "flores200", "spBLEU-1K"
]
"""The tokenisers of sacrebleu."""


class Rouge(Node):
    """`amid.metrics.rouge_l`."""

    tokenize: Literal["rouge_score", SacreBLEU] = "rouge_score"
    processes: CountOrNone = None


class RougeN(Node):
    """`amid.metrics.rouge_n`."""

    n: Count
    tokenize: Literal["rouge_score", SacreBLEU] = "rouge_score"


class Bleu(Node):
    """`amid.metrics.bleu`."""

    tokenize: SacreBLEU = "13a"
    lowercase: Flag = False


class Chrf(Node):
    """`amid.metrics.chrf`."""

    word_order: Natural = 0


BY_TARGET: dict[str, dict[str, type[Node]]] = {
    "data": {"amid.data.InstructionData": Data},
    "template": {"amid.data.Template": Template},
    "source": {"amid.data.builtin.corpus": BuiltinCorpus, "amid.data.opus100.corpus": OpusCorpus},
    "trainer": {"lightning.Trainer": Trainer},
    "checkpoint": {"amid.training.checkpoints.Checkpoints": Checkpoint},
    "optimizer": {
        "torch.optim.AdamW": optimisation.AdamW,
        "amid.training.parameter_groups.adamw": optimisation.GroupedAdamW,
        "amid.training.low_bit.adamw_8bit": optimisation.EightBitAdamW,
        "amid.training.master_weights.AdamWWithMasterWeights": optimisation.AdamWWithMasterWeights,
    },
    "scheduler": {
        "amid.training.learning_rate.cosine": optimisation.Cosine,
        "amid.training.learning_rate.linear": optimisation.WithWarmup,
        "amid.training.learning_rate.constant": optimisation.WithWarmup,
        "amid.training.learning_rate.cosine_with_restarts": optimisation.CosineWithRestarts,
        "amid.training.learning_rate.polynomial": optimisation.Polynomial,
        "amid.training.learning_rate.inverse_sqrt": optimisation.InverseSqrt,
        "amid.training.learning_rate.warmup_stable_decay": optimisation.WarmupStableDecay,
        "amid.training.learning_rate.cosine_with_min_lr": optimisation.CosineWithMinLR,
        "amid.training.learning_rate.cosine_warmup_with_min_lr": optimisation.CosineWarmupWithMinLR,
    },
    "callback": {
        "amid.training.averaging.AverageWeights": optimisation.AverageWeights,
        "lightning.pytorch.callbacks.EarlyStopping": optimisation.EarlyStopping,
        "lightning.pytorch.callbacks.DeviceStatsMonitor": optimisation.DeviceStatsMonitor,
    },
    "assistant": {"amid.losses.AlphaMixture": AlphaMixture},
    "divergence": {
        "amid.losses.KL": Plain,
        "amid.losses.ReverseKL": Plain,
        "amid.losses.TotalVariation": Plain,
        "amid.losses.AlphaDivergence": Alpha,
        "amid.losses.AlphaBeta": AlphaBeta,
        "amid.losses.JensenShannon": JensenShannon,
    },
    "objective": {
        "amid.losses.Objective": Objective,
        "amid.losses.CrossEntropy": CrossEntropy,
        "amid.losses.AdaptiveKL": AdaptiveKL,
        "amid.losses.AlphaNet": AlphaNet,
        "amid.losses.BidirectionalKL": BidirectionalKL,
        "amid.losses.MiniLLM": MiniLLM,
    },
    "metric": {
        "amid.metrics.rouge_l": Rouge,
        "amid.metrics.rouge_n": RougeN,
        "amid.metrics.bleu": Bleu,
        "amid.metrics.chrf": Chrf,
        "amid.metrics.exact_match": Plain,
        "amid.metrics.exact_answer": Plain,
    },
    "schedule": {"amid.schedule.TAID": TAID},
    "generation": {"amid.generation.Sampling": Sampling, "amid.generation.VLLMSampling": VLLMSampling},
    "text": {
        "amid.text.DataText": Plain,
        "amid.text.TeacherText": TeacherText,
        "amid.text.StudentText": StudentText,
        "amid.text.AdaptiveText": AdaptiveText,
        "amid.text.RolloutText": RolloutText,
    },
    "teacher": {"amid.teacher.TeacherSupply": TeacherSupply},
    "model": {"amid.models.ModelSource": ModelSource},
    "tokenizer": {"amid.models.load_tokenizer": StoredTokenizer, "amid.data.builtin.tokenizer": Plain},
    "logger": {
        "lightning.pytorch.loggers.CSVLogger": CSVLogger,
        "lightning.pytorch.loggers.WandbLogger": WandbLogger,
    },
}
"""The model of a node's settings, by kind and `_target_`; other targets are checked by their signature."""
