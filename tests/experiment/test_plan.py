"""What is checked of a run before its data and its models."""

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from amid.config.compose import CONF, as_dict, register_resolvers
from amid.config.data_files import check_files
from amid.errors import InputError
from amid.experiment.fine_tuning import with_prepared_models
from amid.experiment.plan import parts_of
from amid.training.trainer import loggers_of

OF_LIGHTNING = "lightning.pytorch.callbacks"


def settings(*overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides))
    cfg.logger = {}
    return as_dict(cfg)


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
        ([*watching("valid/kl_pq"), "method=sft"], "callbacks.mine.monitor=valid/kl_pq is not measured"),
        (
            [*watching("valid/rouge_l"), "data.valid_metric=null", "checkpoint=loss"],
            "valid/rouge_l is not measur",
        ),
    ],
)
def test_a_callback_that_watches_what_is_not_measured(overrides, message):
    with pytest.raises(InputError) as error:
        parts_of(settings(*overrides))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "monitor", ["valid/loss", "valid/rouge_l", "valid/rouge_l_best", "valid/kl_pq", "train/loss", "train/lam"]
)
def test_a_callback_that_watches_what_is_measured(monitor):
    parts_of(settings(*watching(monitor)))
    parts_of(settings(f"+callbacks.mine._target_={OF_LIGHTNING}.Timer"))


@pytest.mark.parametrize(
    ("key", "source", "words"),
    [
        ("train", "no.jsonl", "data file no.jsonl cannot be read (No such file"),
        ("valid", ".", "data file . cannot be read (Is a directory)"),
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
        check_files(data)
    assert str(error.value).startswith(f"data.{key}={source}: ")
    assert words in str(error.value)


def test_what_cannot_be_logged_to_is_named():
    given = {"mine": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "x", "foo": 1}}
    with pytest.raises(InputError, match=r"logger.mine cannot be made \(.*foo.*CSVLogger"):
        loggers_of(given)
    given["mine"].pop("foo")
    (logger,) = loggers_of(given)
    assert type(logger).__name__ == "CSVLogger"


def test_a_device_of_a_fine_tuning_that_is_not_there_is_refused_before_any(monkeypatch):
    cfg = settings("model.student.sft.trainer.accelerator=mps", "data.train.size=8")
    data = SimpleNamespace(train_examples=[None] * 8)

    def never(*_):
        pytest.fail("a fine-tuning has begun")

    with pytest.raises(InputError, match=r"model.student.sft.trainer.accelerator=mps .* cannot be had here"):
        with_prepared_models(cfg, data, never)
