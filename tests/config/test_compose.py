import itertools

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from amid.config.compose import register_resolvers
from amid.config.folders import CONF
from amid.config.identity import config_hash, differences
from amid.config.overrides import check_overrides, parsed_overrides, quoted, values_of
from amid.config.run_names import run_name
from amid.errors import InputError
from amid.losses import KL, AlphaBeta, CrossEntropy, JensenShannon, ReverseKL
from amid.settings import check

register_resolvers()
PARTS_OF_A_METHOD = ("assistant", "divergence", "objective", "schedule", "text", "text_of_pair")
"""Groups that a method chooses from: their options are composed one by one, with the usual method."""


def options(*groups):
    return [f"{group}={file.stem}" for group in groups for file in sorted((CONF / group).glob("*.yaml"))]


OTHERS = [g.name for g in sorted(CONF.iterdir()) if g.is_dir() and g.name not in ("hydra", "sft")]
OTHERS = [options(group) for group in OTHERS if group not in PARTS_OF_A_METHOD]
CHOICES = [
    *((option,) for option in options(*PARTS_OF_A_METHOD)),
    *(tuple(filter(None, row)) for row in itertools.zip_longest(*OTHERS)),
]
"""Every option of every group. Options of groups that do not depend on each other are composed together."""
NEEDS = {
    "divergence=none": ["method=sft"],
    "text_of_pair=": ["text=adaptive"],
    "schedule=taid": ["objective.order=rq"],  # as method=taid has it
    "assistant=none": ["objective.order=pq"],
    "generation=greedy": ["generation.samples=1"],  # of the tiny pair: 4
}


def composed(*overrides, name="train"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def test_every_option_is_composed():
    files = [file for file in CONF.glob("*/*.yaml") if file.parent.name not in ("hydra", "sft")]
    assert sorted(itertools.chain(*CHOICES)) == sorted(f"{file.parent.name}={file.stem}" for file in files)


@pytest.mark.parametrize("choices", CHOICES, ids=",".join)
def test_every_option_composes_and_its_parts_can_be_made(choices):
    overrides = [*choices]
    for choice, needed in NEEDS.items():
        if any(chosen.startswith(choice) for chosen in choices):
            overrides += needed
    if any(chosen.startswith("data=") and "builtin" not in chosen for chosen in choices):
        overrides += ["data.train=a", "data.valid=b"]  # their rows are no files
    cfg = composed(*overrides)
    check(cfg)
    made = [instantiate(cfg.objective), instantiate(cfg.generation), instantiate(cfg.optimizer)]
    made += [instantiate(cfg.scheduler), instantiate(cfg.model.student), instantiate(cfg.model.teacher)]
    made += [
        instantiate(cfg.trainer, logger=False),
        instantiate(cfg.checkpoint),
        instantiate(cfg.data.template),
        instantiate(cfg.teacher),
    ]
    assert all(part is not None for part in made)
    assert (instantiate(cfg.schedule) is None) == (cfg.schedule is None)


def test_published_settings():
    cfg = composed("model=gpt2_xl_to_gpt2", "data=dolly")
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, cfg.clip_norm) == (1e-4, 0.01, 1.0)
    assert (cfg.trainer.max_epochs, cfg.data.batch_size, cfg.data.max_length) == (20, 32, 512)
    assert (cfg.generation.max_new_tokens, list(cfg.generation.seeds)) == (256, [10, 20, 30, 40, 50])
    assert (cfg.assistant.alpha, cfg.assistant.lam, cfg.model.teacher.sft.trainer.max_epochs) == (-5, 0.1, 10)
    objective = instantiate(cfg.objective)
    assert isinstance(objective.divergence, AlphaBeta)
    assert objective.order == "pr"


def test_published_settings_of_openllama():
    cfg = composed("model=openllama2_7b_to_3b", "data=dolly")
    teacher, init = cfg.model.teacher.sft, cfg.model.student.sft
    assert (cfg.optimizer.lr, cfg.data.batch_size, cfg.trainer.max_epochs) == (5e-4, 32, 10)
    assert (teacher.optimizer.lr, teacher.batch_size, teacher.trainer.max_epochs) == (5e-4, 16, 20)
    assert (init.optimizer.lr, init.batch_size, init.trainer.max_epochs) == (5e-4, 32, 3)


@pytest.mark.parametrize(("student", "epochs", "rows"), [("125m", 20, 32), ("350m", 20, 32), ("1.3b", 10, 8)])
def test_published_settings_of_opt(student, epochs, rows):
    cfg = composed(f"model=opt_2.7b_to_{student}", "data=dolly")
    teacher, init = cfg.model.teacher.sft, cfg.model.student.sft
    assert (cfg.optimizer.lr, cfg.data.batch_size, cfg.trainer.max_epochs) == (5e-5, 32, epochs)
    assert (teacher.optimizer.lr, teacher.batch_size, teacher.trainer.max_epochs) == (5e-5, 16, 10)
    assert (init.optimizer.lr, init.batch_size, init.trainer.max_epochs) == (5e-5, rows, 3)


@pytest.mark.parametrize(
    ("overrides", "threshold", "tolerance"),
    [
        (["model=openllama2_7b_to_3b", "method=distillm_srkl"], 0.2, 0.2),
        (["model=openllama2_7b_to_3b", "text=adaptive", "text.threshold=0.5"], 0.5, 0.2),
        (["model=gpt2_xl_to_gpt2", "method=distillm_srkl"], 0.0, 0.1),
        (["text=adaptive"], 0.0, 0.1),
    ],
)
def test_the_adaptive_text_begins_as_published_for_the_pair(overrides, threshold, tolerance):
    adaptive = instantiate(composed(*overrides).text)
    assert (adaptive.threshold, adaptive.tolerance) == (threshold, tolerance)


def test_what_a_text_has_of_a_pair_is_chosen_by_itself():
    """The files of conf/text_of_pair are named by a text and a pair that there are, also in a sweep."""
    for group in ("text", "generation"):
        for file in CONF.glob(f"{group}_of_pair/*.yaml"):
            option, pair = file.stem.split("_", 1)
            assert (CONF / group / f"{option}.yaml").exists()
            assert (CONF / "model" / f"{pair}.yaml").exists()
    words = ["text=adaptive", "model=gpt2_xl_to_gpt2,openllama2_7b_to_3b"]
    assert check_overrides("train", words).text.threshold == 0.0
    assert check_overrides("train", [words[0], "model=openllama2_7b_to_3b"]).text.threshold == 0.2
    assert "threshold" not in composed("model=openllama2_7b_to_3b", "method=kd").text


def test_greedy_answers_of_the_built_in_pair_are_single_ones():
    usual, greedy = (instantiate(composed(*chosen).generation) for chosen in ([], ["generation=greedy"]))
    assert (list(usual.seeds), usual.samples, usual.no_repeat_ngram_size) == ([10, 20, 30], 4, 0)
    assert (list(greedy.seeds), greedy.samples, greedy.temperature) == ([10], 1, 0)


def test_methods_are_points_of_one_space():
    assert isinstance(instantiate(composed("method=sft").objective), CrossEntropy)
    gkd = instantiate(composed("method=gkd").objective)
    assert isinstance(gkd.divergence, JensenShannon)
    assert gkd.order == "pq"
    srkl = instantiate(composed("method=distillm_srkl").objective)
    assert (srkl.order, srkl.assistant.alpha, srkl.assistant.lam) == ("qr", -1.0, 0.9)
    taid = instantiate(composed("method=taid").objective)
    assert (taid.order, taid.assistant.alpha, taid.assistant.detach_student) == ("rq", 1.0, True)
    ends = [
        instantiate(composed("method=gkd", f"divergence={name}").objective) for name in ("kl", "reverse_kl")
    ]
    assert [(end.divergence, end.order) for end in ends] == [(KL(), "pq"), (ReverseKL(), "pq")]
    akl = instantiate(composed("method=akl", "objective.swapped=true").objective)
    assert (akl.head_mass, akl.swapped) == (0.5, True)
    assert instantiate(composed("method=bdkd").objective).weight == 2
    alphanet = instantiate(composed("method=alphanet").objective)
    assert (alphanet.a, alphanet.b, alphanet.maximum) == (0.2, 0.8, "token")
    assert alphanet.additive, "the published maximum over the batch takes no micro-batches"
    published = instantiate(composed("method=alphanet", "objective.maximum=batch").objective)
    assert (published.maximum, published.additive) == ("batch", False)
    minillm = composed("method=minillm", "data.batch_size=64")
    assert instantiate(minillm.objective).clip == 0.2
    rollouts = instantiate(minillm.text)
    assert (rollouts.rows_per_step * rollouts.batches, rollouts.epochs) == (256, 4)
    assert (rollouts.teacher_share, rollouts.normalise, rollouts.sampling.temperature) == (0.2, True, 1.0)
    assert (minillm.data.plain_text, minillm.data.plain_text_weight) == ("responses", 1.0)


def test_taid_begins_at_the_lam_of_the_assistant():
    schedule = instantiate(composed("method=taid").schedule)
    assert (schedule.start, schedule.end, schedule.rate, schedule.momentum) == (0.4, 1, 5e-4, 0.99)
    assert instantiate(composed("method=taid", "assistant.lam=0.2").schedule).start == 0.2
    assert composed("method=kd").schedule is None


def test_the_command_line_comes_after_a_preset():
    cfg = composed("method=distillm_skl", "divergence=alpha_beta", "assistant.lam=0.3", "optimizer.lr=1")
    assert cfg.divergence._target_.endswith("AlphaBeta")
    assert (cfg.assistant.lam, cfg.optimizer.lr) == (0.3, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("assistant.alhpa=1", "did you mean 'assistant.alpha'"),
        ("modell=tiny", "did you mean 'model'"),
        ("data.test.mine=my.jsonl", r"; to add an evaluation set: \+data.test.mine=my.jsonl"),
        (
            "scheduler=reduce_lr_on_plateau",
            "scheduler=reduce_lr_on_plateau needs a score at each step, .* one of constant, constant_with",
        ),
        (
            "model=tinny",
            "model=tinny is no option of 'model'; did you mean 'tiny'[?] Choose one of from_scratch",
        ),
        ("divergence=kl,reverse_k", "divergence=reverse_k is no option.*did you mean 'reverse_kl'"),
        ("alpha=1", "did you mean"),
        ("a b=c", "write KEY=VALUE"),
    ],
)
def test_the_nearest_name_answers_a_misspelt_one(override, message):
    with pytest.raises(InputError, match=message):
        check_overrides("train", [override])


def test_limits_of_memory_tell_no_runs_apart():
    limits = [
        "data.micro_batch_size=2",
        "data.sharing=micro_batches",
        "data.tokens_per_batch=9",
        "generation.batch_size=3",
        "trainer.devices=[1]",
    ]
    assert run_name([*limits, "model.teacher.sft.micro_batch_size=1", "seed=2"]) == "seed=2"
    assert run_name(["objective.fused=false"]) == "fused=false"
    of_micro_batches = ["data.mean=micro_batch", "data.micro_batch_size=2"]
    assert run_name(of_micro_batches) == "data.mean=micro_batch,data.micro_batch_size=2"
    assert config_hash({"generation": {"batch_size": 1}}) == config_hash({"generation": {"batch_size": 2}})
    assert config_hash({"data": {"pass_at": []}}) == config_hash({"data": {}})
    assert config_hash({"data": {"pass_at": [4]}}) != config_hash({"data": {}})
    assert config_hash({"trainer": {"devices": 1}}) == config_hash({"trainer": {"devices": [1]}})


def test_the_hash_follows_what_a_run_computes_and_the_content_of_its_files(jsonl):
    path = jsonl({"instruction": "a", "output": "b"})
    cfg = {"seed": 1, "data": {"train": str(path), "cache_dir": "a"}, "output_dir": "x"}
    key = config_hash(cfg)
    assert key == config_hash(cfg | {"output_dir": "y", "threads": 2, "teacher": {"mode": "live"}})
    assert key == config_hash(cfg | {"data": {"train": str(path), "cache_dir": "b"}})
    assert key != config_hash(cfg | {"seed": 2})
    model = path.parent / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    cfg["model"] = {"student": {"path": str(model)}}
    key = config_hash(cfg)
    (model / "README.md").write_text("A model.")
    assert key == config_hash(cfg)
    (model / "model.safetensors").write_text("0")
    assert key != config_hash(cfg)
    key = config_hash(cfg)
    path.write_text('{"instruction": "a", "output": "c"}\n')
    assert key != config_hash(cfg)


@pytest.mark.parametrize("node", ["data", "sft"])
def test_micro_batches_are_in_the_hash_where_the_mean_is_over_them(node):
    def key(mean, rows):
        return config_hash({"data": {"mean": mean}, "model": {}} | {"x": {node: {"micro_batch_size": rows}}})

    assert key("step", 2) == key("step", 3)
    assert key("micro_batch", 2) != key("micro_batch", 3)


def test_what_differs_between_two_configurations_is_named_with_both_values():
    data = {"train": "a.jsonl", "micro_batch_size": 1}
    before = {"seed": 1, "lam": 0.1, "objective": {"lam": 0.1}, "data": data, "threads": 1}
    now = {"seed": 1, "lam": 0.5, "objective": {"lam": 0.5, "order": "pq"}}
    now["data"] = {"train": None, "micro_batch_size": 2}
    assert differences(before, now) == [
        "lam was 0.1, is 0.5",
        'data.train was "a.jsonl", is null',
        'objective.order was not there, is "pq"',
    ]
    assert differences(before, before) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "optimizer.betas=[0.9]",
            "no YAML file of this run sets optimizer.betas; add it, +optimizer.betas=[0.9]",
        ),
        (
            "data.train.kind=open",
            "no YAML file of this run sets data.train.kind; add it, +data.train.kind=open",
        ),
        ("learning_rate=1e-4", "no setting is named 'learning_rate'; it is called optimizer.lr here"),
        ("+batch_size=8", "batch_size=8: there is no such setting; use data.batch_size"),
        ("+lam=0.1", "lam=0.1: there is no such setting; did you mean 'assistant.lam'?"),
        (
            "method=[amid,kd]",
            "method=[amid,kd]: a run has one method; for a run of each write -m method=amid,kd",
        ),
        ("~model", "~model: a run needs a model; choose one of"),
        ("seed=range(4,1)", "seed=range(4,1) has no values"),
        ("seed=range(1,4,0)", "seed=range(1,4,0): range() arg 3 must not be zero; give values"),
        ("divergence=glob(zz*)", "divergence=glob(zz*) has no values"),
        ("data.train=a[5]", "data.train=a[5] cannot be read"),
        ("=1", "=1 has no name before its ="),
    ],
)
def test_a_mistake_names_what_was_written_and_what_to_write(line, message):
    with pytest.raises(InputError) as error:
        check_overrides("train", ["seed=1", line] if not line.startswith("seed") else [line])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("divergence=glob(*kl,exclude=rev*)", ["divergence=kl"]),
        ("seed=range(start=1,stop=3)", ["seed=1", "seed=2"]),
        ("seed=sort(3,1,reverse=true)", ["seed=3", "seed=1"]),
    ],
)
def test_functions_of_the_command_line_take_named_arguments(line, values):
    (override,) = parsed_overrides([quoted(line)])
    assert values_of(override) == values
    assert quoted("data.train=a=b") == "data.train='a=b'"
