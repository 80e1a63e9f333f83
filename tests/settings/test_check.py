"""The check of every setting: hundreds of mistakes, each one line, without models."""

import inspect
import pickle
import subprocess
import sys
from functools import cache
from typing import Any, Literal, get_origin

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf, open_dict

from amid.config.compose import register_resolvers
from amid.config.folders import CONF
from amid.errors import InputError
from amid.settings import check
from amid.settings.nodes import BY_TARGET
from amid.settings.words import is_referred_to

register_resolvers()


@cache
def _of_choices(*choices):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return pickle.dumps(compose("train", list(choices)))


def of_choices(*choices):
    """A configuration of its own for each case: to unpickle one takes a fifth of the time of a deep copy."""
    return pickle.loads(_of_choices(*choices))


def composed(line):
    """The configuration of a command line, whose choices of files are composed once for all cases."""
    parsed = OverridesParser.create().parse_overrides(line.split())
    choices = [o for o in parsed if (CONF / o.key_or_group).is_dir() and not o.is_delete()]
    cfg = of_choices(*(o.input_line for o in choices))
    for override in parsed:
        if override in choices:
            continue
        with open_dict(cfg):
            if override.is_delete():
                *nodes, last = override.key_or_group.split(".")
                OmegaConf.select(cfg, ".".join(nodes)).pop(last)
            else:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True, force_add=True)
    return cfg


def mistake(line):
    with pytest.raises(InputError) as error:
        check(composed(line))
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def cases(text):
    """Lines `OVERRIDES -> MESSAGE`, of which the message begins with the setting."""
    return [tuple(part.strip() for part in line.split(" -> ")) for line in text.strip().splitlines()]


WHOLE = "must be a whole number from 1"
COUNTS = (
    "data.batch_size",
    "data.max_length",
    "data.max_prompt_length",
    "data.valid_prompts",
    "data.train.size",
    "generation.samples",
    "generation.max_new_tokens",
    "generation.batch_size",
    "trainer.log_every_n_steps",
    "trainer.check_val_every_n_epoch",
    "teacher.tokens_per_forward",
    "model.teacher.sft.batch_size",
    "model.student.sft.batch_size",
    "model.student.sft.trainer.log_every_n_steps",
    "model.teacher.sft.trainer.check_val_every_n_epoch",
)
COUNTS_OR_NULL = (
    "data.micro_batch_size",
    "data.tokens_per_batch",
    "data.valid_rows",
    "data.test_prompts",
    "model.student.sft.micro_batch_size",
    "model.teacher.sft.tokens_per_batch",
    "checkpoint.every_n_steps",
    "model.student.sft.checkpoint.every_n_steps",
    "threads",
)
NO_COUNTS = ("0", "-1", "1.5", "true", "nan", "inf", "abc", "'8'", "[8]", "{a: 8}", "1e3", "''")


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize("value", [*NO_COUNTS, "null"])
def test_a_count(key, value):
    text = mistake_in(key, value)
    assert WHOLE in text


@pytest.mark.parametrize("key", COUNTS_OR_NULL)
@pytest.mark.parametrize("value", NO_COUNTS)
def test_a_count_or_null(key, value):
    assert WHOLE in mistake_in(key, value)
    check(composed_of(key, "null"))


def composed_of(key, value, *choices):
    """The configuration with one value, as Hydra reads it."""
    (override,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
    cfg = of_choices(*choices)
    with open_dict(cfg):
        OmegaConf.update(cfg, key, override.value(), merge=True, force_add=True)
    return cfg


def mistake_in(key, value, *choices):
    with pytest.raises(InputError) as error:
        check(composed_of(key, value, *choices))
    text = str(error.value)
    assert text.startswith(f"{key}="), text
    assert "\n" not in text
    assert len(text) < 700
    return text


NUMBERS = {
    "optimizer.lr": ("-1", "must be a finite number from 0"),
    "optimizer.weight_decay": ("-0.1", "must be a finite number from 0"),
    "model.student.sft.optimizer.lr": ("-1e-4", "must be a finite number from 0"),
    "scheduler.eta_min": ("-1e-9", "must be a finite number from 0"),
    "scheduler.warmup": ("-1", "must be a whole number of steps, or a share of them below 1"),
    "model.teacher.sft.scheduler.warmup": ("1.0", "must be a whole number of steps, or a share"),
    "clip_norm": ("0", "must be a number above 0, or null not to clip"),
    "checkpoint.every_minutes": ("0", "must be a number of minutes above 0, or null for no limit"),
    "model.student.sft.clip_norm": ("-1", "must be a number above 0, or null not to clip"),
    "data.plain_text_weight": ("0", "must be a finite number above 0"),
    "generation.temperature": ("-1", "must be a finite number from 0"),
    "generation.top_p": ("0", "must be a number above 0, up to 1"),
    "generation.top_k": ("1.5", "must be a whole number from 0"),
    "generation.no_repeat_ngram_size": ("-1", "must be a whole number from 0"),
    "assistant.alpha": ("-inf", "must be a finite number"),
    "assistant.lam": ("1.0001", "must be a number from 0 to 1"),
    "divergence.alpha": ("inf", "must be a finite number"),
    "divergence.beta": ("inf", "must be a finite number"),
    "seed": ("4294967296", "must be a whole number, from 0 to 4294967295"),
    "data.seed": ("-1", "must be a whole number, from 0 to 4294967295"),
    "data.train.seed": ("1.5", "must be a whole number, from 0 to 4294967295"),
    "model.student.sft.seed": ("-1", "must be a whole number, from 0 to 4294967295"),
    "trainer.max_steps": ("-2", "must be a whole number from 0; -1 is no limit"),
    "trainer.max_epochs": ("-2", "must be a whole number from 0; -1 is no limit"),
    "model.teacher.sft.trainer.max_steps": ("-5", "must be a whole number from 0; -1 is no limit"),
    "trainer.num_sanity_val_steps": ("2", "must be 0: every training begins with a validation"),
    "trainer.limit_train_batches": ("1.5", "must be a whole number of steps from 1, a share of an epoch"),
    "model.teacher.sft.trainer.limit_train_batches": ("-1", "must be a whole number of steps from 1"),
}
NO_NUMBERS = ("true", "nan", "abc", "'1'", "[1]", "{a: 1}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (key, value, message)
        for key, (out_of_range, message) in NUMBERS.items()
        for value in (out_of_range, *NO_NUMBERS)
    ],
)
def test_a_number(key, value, message):
    assert message in mistake_in(key, value)


FLAGS = (
    "checkpoint.requeue",
    "objective.fused",
    "objective.compiled",
    "assistant.detach_student",
    "trainer.enable_model_summary",
    "trainer.detect_anomaly",
    "teacher.multirun",
)


@pytest.mark.parametrize("key", FLAGS)
@pytest.mark.parametrize("value", ["abc", "1", "0.5", "null", "[true]", "'true'"])
def test_a_flag(key, value):
    assert "must be true or false" in mistake_in(key, value)


CHOICES = {
    "student_is": "student or teacher",
    "data.mean": "step or micro_batch",
    "data.truncation": "input or right",
    "data.train.kind": "all, open, closed or numbers",
    "data.train.split": "train, valid or test",
    "checkpoint.mode": "min or max",
    "model.teacher.sft.checkpoint.mode": "min or max",
    "objective.order": "pr, rp, qr, rq, pq or qp",
    "teacher.mode": "live, cached or auto",
    "trainer.accelerator": "auto, cpu, gpu, cuda or mps",
    "model.student.sft.trainer.accelerator": "auto, cpu, gpu, cuda or mps",
    "trainer.precision": "bf16-mixed, 32-true or 64-true",
    "trainer.profiler": "simple, advanced or null",
    "model.student.dtype": "float32, bfloat16 or float16",
    "model.teacher.dtype": "float32, bfloat16 or float16",
}


@pytest.mark.parametrize("key", CHOICES)
@pytest.mark.parametrize("value", ["foo", "7", "true", "[foo]", "''"])
def test_a_choice(key, value):
    assert f"must be {CHOICES[key]}" in mistake_in(key, value)


def arguments(target):
    """The names and defaults of what a `_target_` is called with."""
    found = get_object(target)
    return {
        name: p.default
        for name, p in inspect.signature(found).parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


PASSED_BY_AMID = {"tokenizer", "params", "optimizer", "steps", "predictions", "references"}


@pytest.mark.parametrize(
    ("target", "node"),
    [(target, node) for models in BY_TARGET.values() for target, node in models.items()],
)
def test_a_node_has_the_arguments_and_defaults_of_its_target(target, node):
    """Of libraries those alone that a run can choose."""
    theirs = arguments(target)
    if target.endswith("WandbLogger"):
        theirs = arguments("wandb.init") | theirs
    for name, field in node.model_fields.items():
        assert name in theirs, f"{target} has no argument {name}"
        ours = field.get_default()
        if target.startswith("amid.") and not field.is_required():
            assert ours == theirs[name] or (ours, theirs[name]) == ({}, None), name
        described = field.description or get_origin(field.annotation) is Literal
        assert described or field.annotation is Any, name
    if target.startswith("amid."):
        assert set(theirs) - PASSED_BY_AMID == set(node.model_fields)


def test_lengths_come_before_what_follows_from_them():
    assert mistake("data.max_length=8").startswith("data.max_length=8 leaves no room for a response")


EPOCHS = "trainer.max_epochs=2"
SFT = "model.student.sft."
WARMUPS = [
    (400, "", "", f"{EPOCHS} and trainer.limit_train_batches=200; use fewer"),
    (499, "", "trainer.max_steps=499 trainer.max_epochs=-1", "trainer.max_steps; use fewer"),
    (750, "", "trainer.limit_train_batches=null", f"{EPOCHS}, data.train.size=12000 and data.batch_size=32"),
    (
        8,
        "",
        "trainer.limit_train_batches=null data.train.size=100",
        f"{EPOCHS}, data.train.size=100 and data.batch_size=32",
    ),
    (
        9,
        SFT,
        f"{SFT}trainer.max_epochs=3 {SFT}batch_size=50 data.train.size=150",
        f"{SFT}trainer.max_epochs=3, data.train.size=150 and {SFT}batch_size=50",
    ),
]


@pytest.mark.parametrize(("steps", "of", "line", "why"), WARMUPS)
def test_a_warmup_as_long_as_the_training(steps, of, line, why):
    key = f"{of}scheduler.warmup"
    said = f"{key}={steps} leaves none of the {steps} steps of {why}"
    assert mistake(f"{key}={steps} {line}").startswith(said)
    check(composed(f"{key}={steps - 1} {line}"))


OWN_CLASSES = """
class Plain:
    pass


class Weighted:
    def __init__(self, weight, **others):
        pass

    def __call__(self, log_a, log_b):
        return log_a


def of_one(x):
    return x


def by_keyword(*, teacher, student):
    return teacher


def with_weight(log_a, log_b, weight):
    return log_a


def of_any(**values):
    return values
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own."""
    (tmp_path / "own_of_settings.py").write_text(OWN_CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_of_settings"


OWN_MISTAKES = cases(
    """
    {t}=OWN.Plain -> divergence._target_=OWN.Plain has no __call__(log_a, log_b); define it
    {t}=OWN.Weighted -> divergence._target_=OWN.Weighted needs weight; give it, +divergence.weight=VALUE
    {t}=OWN.of_one {p} -> divergence._target_=OWN.of_one cannot be called as divergence: of_one(x) must take
    {t}=OWN.by_keyword {p} -> divergence._target_=OWN.by_keyword cannot be called as divergence
    {t}=OWN.with_weight {p} -> divergence._target_=OWN.with_weight cannot be called as divergence
    objective._target_=OWN.of_any {p} text._target_=OWN.Plain -> text._target_=OWN.Plain is not derived from
    +callbacks.x._target_=OWN.Plain -> callbacks.x._target_=OWN.Plain is not derived from lightning.pytorch.C
    +callbacks._target_=OWN.Plain -> callbacks={_target_: OWN.Plain} must be nodes by name
    +logger.x._target_=OWN.Plain -> logger.x._target_=OWN.Plain is not derived from lightning.pytorch.logger
    +data.metrics.x._target_=OWN.Plain -> data.metrics.x._target_=OWN.Plain has no __call__(predictions, ref
    """
)


@pytest.mark.parametrize(("line", "message"), OWN_MISTAKES)
def test_a_class_of_ones_own_that_cannot_do_its_part(own, line, message):
    line = line.replace("{t}", "divergence=kl divergence._target_").replace(
        "{p}", "+divergence._partial_=true"
    )
    assert mistake(line.replace("OWN", own)).startswith(message.replace("OWN", own))


@pytest.mark.parametrize(
    "line",
    [
        "divergence=kl divergence._target_=OWN.Weighted +divergence.weight=2 +divergence.other=[1]",
        "divergence=kl divergence._target_=OWN.with_weight +divergence._partial_=true +divergence.weight=2",
        "divergence=kl divergence._target_=OWN.of_any +divergence._partial_=true +divergence.any=x",
        "+data.metrics.x._target_=OWN.of_any +data.metrics.x._partial_=true",
        "+callbacks.x._target_=lightning.pytorch.callbacks.Timer",
        "data.train=rows.tsv[:9] data.fields={instruction:a.b,input:null,output:c}",
        "data.metrics.rouge_l.tokenize=zh +optimizer.betas=[0,0.5] clip_norm=1 optimizer.lr=1",
    ],
)
def test_what_can_do_its_part_is_not_refused(own, line):
    words = [word for word in line.replace("OWN", own).split() if "[:9]" not in word]
    check(composed(" ".join(words)))


def test_a_buffer_of_replay_holds_a_step():
    message = mistake("text=adaptive text.capacity=8 data.batch_size=32")
    assert message.startswith("text.capacity=8 is less than data.batch_size=32: a step of replay would have")
    check(composed("text=adaptive text.capacity=32 data.batch_size=32"))


WHERE_ROWS_COME_FROM = {
    "https://host/rows.jsonl": "and it is an address; download the file, or write OWNER/NAME",
    "s3://bucket/rows.jsonl": "and it is an address; download the file, or write OWNER/NAME",
    "[a.jsonl,7]": "must be a path, or a list of paths",
    "[]": "must be a path, or a list of paths",
    "7": "must be a file, a folder, a pattern of files, OWNER/NAME of the hub",
}


@pytest.mark.parametrize("value", WHERE_ROWS_COME_FROM)
@pytest.mark.parametrize("key", ["data.train", "data.valid"])
def test_where_rows_come_from(key, value):
    assert WHERE_ROWS_COME_FROM[value] in mistake_in(
        key, f"'{value}'" if "/" in value else value, "data=jsonl"
    )


FURTHER = {
    "data.template.without_input": {
        "abc": "{instruction} in it; add it",
        "'{instruction} {x}'": "alone in br",
    },
    "data.template.with_input": {"'{instruction}'": "{input} in it; add it", "'{input}'": "{instruction} in"},
    "data.fields": {
        "{instruction: 5, output: b}": "instruction is 5: name a field",
        "{instruction: a}": "lacks output",
        "{instruction: a, output: b, answer: c}": "has answer; leave it out",
        "{instruction: a, output: [b]}": "output is ['b']",
        "output": "must be the names of your rows' fields",
    },
    "data.pass_at": {
        "4": "must be a list, such as [4]",
        "[0]": "must be a list of whole numbers from 1",
        "[1.5]": "must be a list of whole numbers from 1",
        "[true]": "must be a list of whole numbers from 1",
        "null": "or [] for no pass@k",
        "[1, 4, 1]": "must be different numbers, and has 1 twice; leave one out",
    },
    "trainer.devices": {"'2'": "must be a number of devices from 1, or the numbers of GPUs, such as [2] or"},
    "data.metrics.rouge_l.tokenize": {"foo": "must be rouge_score, none, zh", "5": "must be rouge_score"},
    "model.student.architecture.hidden_size": {"abc": "", "0": "", "32.0": ""},
    "model.teacher.architecture.num_hidden_layers": {"-1": "", "null": ""},
}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [(key, value, words) for key, by in FURTHER.items() for value, words in by.items()],
)
def test_further_settings(key, value, words):
    if ".architecture." in key:
        key, _, name = key.rpartition(".")
        written = "null" if value == "null" else value
        words, value = (
            f"; {name}={'None' if value == 'null' else value} must be a whole",
            f"{{{name}: {written}}}",
        )
    assert words in mistake_in(key, value)


def test_a_setting_is_referred_to_by_its_whole_name():
    texts = ["${seed_of.rows} and ${minus:${longest},1}", "${ .own[0]}"]
    assert all(is_referred_to(name, texts) for name in ("seed_of", "longest", "own"))
    assert not any(is_referred_to(name, texts) for name in ("seed", "rows", "minus", "long", "s"))


PASS_AT = cases(
    """
    data.pass_at=[1,13] -> data.pass_at=[1, 13]: 13 is above the 12 answers to a prompt (generation.seeds
    data.pass_at=[4] generation.seeds=[1,2] generation.samples=1 -> data.pass_at=[4]: 4 is above the 2 answers
    data.pass_at=[2] generation.temperature=0 generation.samples=1 -> data.pass_at=[2] with generation.temp
    data.pass_at=[2] generation.seeds=[1] generation.samples=1 -> data.pass_at=[2]: 2 is above the 1 answer to
    data.pass_at=[1] data/metrics=summary -> data.pass_at=[1] counts right answers, and none of data.metrics (
    """
)


@pytest.mark.parametrize(("line", "message"), PASS_AT)
def test_pass_at_k_that_the_answers_or_the_metrics_do_not_give(line, message):
    assert mistake(line).startswith(message)


def test_pass_at_k_up_to_the_number_of_answers():
    assert mistake("data.pass_at=[30]").endswith("; use 12 at most, or generation.samples=10")
    for line in ("data.pass_at=[1,12]", "data.pass_at=[30] generation.samples=10", "data/metrics=summary"):
        check(composed(line))


@pytest.mark.parametrize("key", ["output_dir", "prepared_dir", "data.cache_dir"])
def test_a_file_in_the_place_of_a_folder(key, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "runs"):
        assert f"must be the path of a folder, and {tmp_path}/file is a file" in mistake_in(key, str(place))
    check(composed_of(key, str(tmp_path / "new" / "runs")))


def test_a_wrong_value_is_told_without_torch(tmp_path):
    """In a process of its own: neither torch nor Lightning is imported for it, with -m neither."""
    program = (
        "import sys; from amid.cli.main import main\n"
        "statuses = [main(line.split()) for line in sys.argv[1:]]\n"
        "print(*statuses, *({'torch', 'lightning', 'transformers'} & {*sys.modules}))"
    )
    lines = ["train seed=x", "train -m seed=1,1.5", "train +trainer.foo=1", "sweep alpha seed=1,x"]
    command = [sys.executable, "-c", program, *lines]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "1 1 1 1", done.stderr
    assert not [*tmp_path.iterdir()]


SPREAD = "model.teacher.device_map=auto"
LARGE = cases(
    f"""
    {SPREAD} -> {SPREAD} with teacher=auto: a teacher that is spread over devices only writes its cache; use
    {SPREAD} teacher=live -> {SPREAD} with teacher=live: a teacher that is spread over devices only writes its
    {SPREAD} teacher=cached method=teacher -> {SPREAD}: method=teacher scores the teacher on one device
    {SPREAD} teacher=cached text=student -> {SPREAD} with text._target_=amid.text.StudentText: a teacher
    {SPREAD} teacher=cached text=teacher -> {SPREAD} with text._target_=amid.text.TeacherText: a teacher
    {SPREAD} teacher=cached trainer.devices=2 -> {SPREAD} with trainer.devices=2: one process asks a teacher
    {SPREAD} teacher=cached model.teacher.sft=null -> {SPREAD} is for stored weights, and
    {SPREAD} teacher=cached model.teacher.quantization=nf4 -> model.teacher.quantization=nf4 with {SPREAD}:
    model.teacher.device_map=here -> model.teacher.device_map=here must be auto, balanced or sequential
    model.student.device_map=auto -> model.student.device_map=auto is for a teacher, and a student is trained
    model.student.quantization=int8 -> model.student.quantization=int8 is for a teacher, and a student is
    model.teacher.quantization=int2 -> model.teacher.quantization=int2 must be int8, int4, nf4, or null
    model.student.gradient_checkpointing=1 -> model.student.gradient_checkpointing=1 must be true or false
    teacher.states=int8 -> teacher.states=int8 is for stored states alone, and teacher=auto may run the
    teacher=cached teacher.states=int4 -> teacher.states=int4 must be exact or int8
    method=minillm teacher.offload=true -> teacher.offload=true with text=rollouts: the teacher answers with
"""
)


@pytest.mark.parametrize(("line", "message"), LARGE)
def test_settings_of_large_models_that_do_not_fit(line, message):
    assert mistake(line).startswith(message)


@pytest.mark.parametrize(
    "line",
    [
        f"{SPREAD} teacher=cached",
        "model.teacher.quantization=nf4 method=teacher",
        "teacher=cached teacher.states=int8 text=student teacher.offload=true",
    ],
)
def test_settings_of_large_models_that_fit(line):
    check(composed(line))
