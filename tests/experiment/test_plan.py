"""The plan of a run: its parts, what is hashed and recorded, and its checks."""

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from amid.config.compose import as_dict, register_resolvers
from amid.config.data_files import check_files
from amid.config.folders import CONF
from amid.errors import InputError
from amid.experiment.fine_tuning import with_prepared_models
from amid.experiment.plan import Plan, made_by_name
from amid.settings import nodes

OF_LIGHTNING = "lightning.pytorch.callbacks"
register_resolvers()


def settings_of(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["logger=csv", "logger.csv.save_dir=here", *overrides])
    return as_dict(cfg)


def plan_of(*overrides):
    return Plan(settings_of(*overrides))


def test_a_part_is_made_once_and_a_plan_with_a_prepared_model_shares_it(tmp_path):
    plan = plan_of("assistant.alpha=-3")
    assert plan.labels == {"order": "pr", "alpha": -3, "lam": 0.1}
    prepared = plan.with_model("teacher", tmp_path)
    assert plan.objective is plan.objective is prepared.objective
    assert prepared.source("teacher").path == str(tmp_path)
    assert plan.source("teacher").path is None
    assert prepared.key == plan.key
    assert prepared.hashed == plan.hashed
    assert prepared.settings["model"]["teacher"]["path"] == str(tmp_path)
    assert prepared.settings["model"]["student"] == plan.settings["model"]["student"]


def test_a_teacher_without_a_use_is_left_out_of_a_training_alone():
    settings = settings_of("method=sft")
    assert set(Plan(settings).models) == set(Plan(settings).fine_tunings) == {"student"}
    assert "teacher" not in Plan(settings).settings["model"]
    assert set(Plan(settings, trains=False).models) == {"teacher", "student"}
    compared = plan_of("method=sft", "teacher=cached")
    assert compared.compared
    assert set(compared.models) == {"teacher", "student"}
    assert compared.key == Plan(settings).key, "a comparison changes nothing learnt"
    assert not plan_of("method=kd", "teacher=cached").compared
    assert "teacher" in plan_of("method=seqkd").models


@pytest.mark.parametrize(
    "watching",
    [
        "callbacks=early_stopping callbacks.early_stopping.monitor=valid/kl_pq",
        "callbacks=early_stopping checkpoint.monitor=valid/same_top checkpoint.mode=max",
        "checkpoint.monitor=valid/overlap_10 checkpoint.mode=max",
    ],
)
def test_a_teacher_that_ends_a_training_or_chooses_its_weights_is_part_of_its_identity(watching):
    line = ["method=sft", "teacher=cached", *watching.split()]
    plan, other = plan_of(*line), plan_of(*line, "model.teacher.sft.seed=99")
    assert "teacher" in plan.hashed["model"]
    assert plan.key != other.key
    assert not other.has_key(plan.key)


@pytest.mark.parametrize(
    "line",
    [
        *("", "method=sft", "method=sft teacher=cached", "method=seqkd", "method=teacher teacher=cached"),
        "method=sft teacher=cached checkpoint.monitor=valid/kl_pq",
    ],
)
@pytest.mark.parametrize("trains", [True, False])
def test_a_plan_knows_its_key_without_its_objective(line, trains):
    settings = settings_of(*line.split())
    key = Plan(settings, trains).key
    plan = Plan(settings, trains)
    assert plan.has_key(key)
    assert "objective" not in vars(plan), "it imports torch"
    assert not plan.has_key(None)
    assert not plan.has_key(plan_of(*line.split(), "seed=3").key)


def test_a_fine_tuning_is_a_plan_of_its_own_whose_folder_does_not_depend_on_its_log(tmp_path):
    plan = plan_of("model.teacher.sft.trainer.max_steps=7", "model.teacher.sft.seed=4", "prepared_dir=models")
    tuning = plan.fine_tunings["teacher"]
    course = tuning.length.over(10)
    assert (course.steps, tuning.at, tuning.seed) == (7, "model.teacher.sft.", 4)
    assert tuning.length.in_words(course).endswith("model.teacher.sft.trainer.max_steps sets this")
    assert not tuning.objective.needs_teacher
    logging = tuning.logging_to(tmp_path)
    assert plan.fine_tuning_folder("teacher").as_posix() == f"models/sft-{logging.key}"
    assert logging.settings["logger"]["csv"]["save_dir"] == str(tmp_path)
    assert not tuning.settings["logger"]
    other = plan_of("model.teacher.sft.trainer.max_steps=8", "prepared_dir=models")
    assert other.fine_tuning_folder("teacher") != plan.fine_tuning_folder("teacher")
    assert other.fine_tuning_folder("student") == plan.fine_tuning_folder("student")


def test_a_fingerprint_is_of_the_settings_that_are_asked_for():
    one, other = plan_of("seed=1"), plan_of("seed=2")
    assert one.fingerprint("model", "data") == other.fingerprint("model", "data")
    longer = plan_of("data.max_length=61")
    assert one.fingerprint("model", "data.train") == longer.fingerprint("model", "data.train")
    assert one.fingerprint("data") != longer.fingerprint("data")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=sft", "text=student"], "needs labels, and the student's own text gives none"),
        (["method=minillm", "text=data"], "needs text with the probabilities that it was sampled with"),
        (["data=jsonl", "data.train=nope", "data.valid=nope"], "data file nope cannot be read"),
        (
            ["+model.student.sft.optimizer.foo=1"],
            r"model\.student\.sft\.optimizer does not take .*foo=1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(overrides, message):
    with pytest.raises(InputError, match=message):
        plan_of(*overrides).check()


def test_a_callback_of_one_s_own_is_one_of_lightning():
    with pytest.raises(
        InputError, match=r"callbacks.mine is a Fraction; it must be a lightning.pytorch.Callback"
    ):
        plan_of("+callbacks.mine._target_=fractions.Fraction").check()


def watching(monitor, callback="EarlyStopping"):
    return [
        f"+callbacks.mine._target_={OF_LIGHTNING}.{callback}",
        f"+callbacks.mine.monitor={monitor}",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            watching("foo"),
            "callbacks.mine.monitor=foo is not measured; choose one of valid/loss, valid/cross_e",
        ),
        (watching("val_loss"), "did you mean 'valid/loss'? Choose one of"),
        (watching("valid_loss", "ModelCheckpoint"), "callbacks.mine.monitor=valid_loss is not measured"),
        (
            [*watching("valid/bleu")],
            "hoose one of valid/loss, valid/cross_entropy, valid/perplexity, valid/kl_pq",
        ),
        (
            [*watching("valid/loss"), "+callbacks.mine.mode=up"],
            "callbacks.mine cannot be made (`mode` can be min, max, got up); see the documentation of",
        ),
        (
            [*watching("train/loss")],
            "callbacks.mine.monitor=train/loss: early stopping decides at validations, and a resumed run "
            "does not know the steps before it; did you mean 'valid/loss'? Choose one of valid/loss",
        ),
        ([*watching("valid/kl_pq"), "method=sft"], "callbacks.mine.monitor=valid/kl_pq is not measured"),
        (
            [*watching("valid/rouge_l"), "data.valid_metric=null", "checkpoint=loss"],
            "valid/rouge_l is not measur",
        ),
    ],
)
def test_a_callback_that_watches_what_is_not_measured(overrides, message):
    with pytest.raises(InputError) as error:
        plan_of(*overrides).check()
    assert message in str(error.value)


@pytest.mark.parametrize("monitor", ["valid/loss", "valid/rouge_l", "valid/rouge_l_best", "valid/kl_pq"])
def test_a_callback_that_watches_what_is_measured(monitor):
    plan_of(*watching(monitor)).check()
    plan_of(f"+callbacks.mine._target_={OF_LIGHTNING}.Timer").check()


@pytest.mark.parametrize(
    ("key", "source", "words"),
    [
        ("train", "no.jsonl", "data file no.jsonl cannot be read (No such file"),
        ("valid", "no/*.csv", "no file matches no/*.csv"),
        ("valid", ["docs", "no.csv"], "data file no.csv cannot be read"),
        ("plain_text", "no/text.txt[:9]", "data file no/text.txt cannot be read"),
        ("test.mine", "no.csv", "data file no.csv cannot be read"),
        ("test.mine", "no.csv[9:3]", "is a slice without rows"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_setting(key, source, words):
    node, _, name = key.partition(".")
    data = {"train": None, "valid": None, "plain_text": None, "test": {}}
    data[node] = {name: source} if name else source
    with pytest.raises(InputError) as error:
        check_files(nodes.Data.model_construct(**data))
    assert str(error.value).startswith(f"data.{key}={source}: ")
    assert words in str(error.value)


def test_what_cannot_be_logged_to_is_named():
    given = {"mine": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "x", "foo": 1}}
    with pytest.raises(InputError, match=r"logger.mine cannot be made \(.*foo.*CSVLogger"):
        made_by_name("logger", given)
    given["mine"].pop("foo")
    (logger,) = made_by_name("logger", given).values()
    assert type(logger).__name__ == "CSVLogger"


def test_a_device_of_a_fine_tuning_that_is_not_there_is_refused_before_any(monkeypatch):
    plan = plan_of("model.student.sft.trainer.accelerator=mps")
    data = SimpleNamespace(train_examples=[None] * 8)

    def never(*_):
        pytest.fail("a fine-tuning has begun")

    with pytest.raises(InputError, match=r"model.student.sft.trainer.accelerator=mps .* is not available"):
        with_prepared_models(plan, data, never)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [f"+callbacks.x._target_={OF_LIGHTNING}.EMAWeightAveraging"],
            "its average is not scored; use callbacks=ema",
        ),
        (
            [f"+callbacks.x._target_={OF_LIGHTNING}.StochasticWeightAveraging", "+callbacks.x.swa_lrs=0.1"],
            "callbacks.x: Lightning's StochasticWeightAveraging has learning rates of its own",
        ),
        (
            [f"+callbacks.x={{_target_:{OF_LIGHTNING}.GradientAccumulationScheduler,scheduling:{{1:2}}}}"],
            "GradientAccumulationScheduler needs automatic optimisation; use data.micro_batch_size",
        ),
        (
            ["callbacks=[ema,swa]"],
            "callbacks.ema and callbacks.swa both average the student's weights; use one",
        ),
        (
            ["callbacks=[early_stopping,swa]", "trainer.strategy=fsdp"],
            "callbacks.swa averages whole weights, which trainer.strategy=fsdp spreads",
        ),
        (
            ["callbacks=early_stopping", "checkpoint.monitor=valid/los"],
            "early_stopping.monitor=valid/los is not",
        ),
    ],
)
def test_a_callback_that_a_run_cannot_take(overrides, message):
    with pytest.raises(InputError) as error:
        plan_of(*overrides).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hook_that_is_never_called(tmp_path, monkeypatch):
    (tmp_path / "waits.py").write_text(
        "from lightning.pytorch import Callback\n\n\nclass Waits(Callback):\n"
        "    def on_before_zero_grad(self, *given):\n        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match=r"callbacks.x: on_before_zero_grad of Waits is called by automatic opt"
    ):
        plan_of("+callbacks.x._target_=waits.Waits").check()


def test_callbacks_are_chosen_by_a_list_and_change_the_run(tmp_path):
    plan = plan_of(
        "callbacks=[ema,early_stopping]",
        "callbacks.ema.decay=0.9",
        f"+callbacks.t._target_={OF_LIGHTNING}.Timer",
    )
    plan.check()
    assert list(plan.callbacks) == ["ema", "early_stopping", "t"]
    stopping = plan.callbacks["early_stopping"]
    assert (stopping.monitor, stopping.mode, stopping.patience) == ("valid/rouge_l", "max", 3)
    assert stopping._check_on_train_epoch_end is False
    keys = {
        plan_of(*given).key for given in ([], ["callbacks=ema"], ["callbacks=ema", "callbacks.ema.decay=0.9"])
    }
    assert len(keys) == 3


def test_a_cut_answer_with_unshifted_labels_is_a_token_longer():
    given = ["method=gkd", "text=student", "data.max_prompt_length=6", "text.max_new_tokens=4"]
    (usual,), (unshifted,) = (
        plan_of(*given, f"text.labels={labels}").longest_texts("text").values()
        for labels in ("shifted", "unshifted")
    )
    assert (usual, unshifted) == (10, 11)
