"""`amid help` describes choices and settings."""

import re

import pytest
import yaml
from omegaconf import OmegaConf

from amid.cli.help import groups, options, target
from amid.cli.main import main
from amid.config.overrides import check_overrides
from amid.errors import InputError
from amid.settings.words import keys_of

OPTIONS = [(group, option) for group in groups() for option in options(group)]
FILES = list(dict.fromkeys(file for _, option in OPTIONS for file in (option, *option.bases)))


def test_every_option_says_what_it_is():
    assert len(OPTIONS) > 80
    assert [f"{group}={option.name}" for group, option in OPTIONS if not option.about] == []


@pytest.mark.parametrize("path", sorted({path for file in FILES for path in file.targets}))
def test_every_setting_is_an_argument_that_is_explained(path):
    known = target(path)
    if known is None:
        assert not path.startswith("amid.")
        return
    assert known.summary
    set_in_files = {
        key
        for file in FILES
        for node in nodes(yaml.safe_load(file.text))
        if node.get("_target_") == path
        for key in node
        if not key.startswith("_") and key != "defaults"
    }
    assert set_in_files <= known.arguments.keys()


def nodes(content):
    if isinstance(content, dict):
        yield content
        for child in content.values():
            yield from nodes(child)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("method", ["method=taid", "TAID (arXiv 2501.16937)", "method=sft"]),
        ("divergence=alpha_beta", ["divergence=alpha_beta", "amid.losses.AlphaBeta", "alpha"]),
        ("assistant.alpha", ["assistant.alpha: -5.0", "mode-seeking", "alpha of amid.losses.AlphaMixture"]),
        ("text.share", ["text.share: 0.5", "the probability, in (0, 1]", "text=mixed, text=student:"]),
        ("+text.share=abc", ["text.share: 0.5   (with text=mixed)"]),
        ("schedule.start", ["(with schedule=taid)", "start of amid.schedule.TAID"]),
        ("data=jsonl", ["valid_prompts: 64", "amid.data.InstructionData", "pass_at"]),
        ("taid", ["method=taid", "lam: 0.4", "schedule=taid", "amid.schedule.TAID"]),
        ("alpha", ["assistant.alpha: -5.0", "divergence.alpha: 0.2", "divergence=alpha"]),
        ("text=mixed", ["share: 0.5", "amid.text.StudentText", "max_new_tokens"]),
        ("seed", ["seed: 1", "amid train: training seed"]),
        ("optimizer.weight_decay", ["torch.optim.AdamW: see the documentation of torch"]),
        ("data.test.open", ["_target_: amid.data.builtin.corpus", "evaluation sets by name"]),
        ("data.train.seed", ["data.train.seed: 0"]),
        ("lam", ["assistant.lam: 0.1", "weight of the teacher"]),
        ("data.valid.seed", ["data.valid.seed: ${data.train.seed}"]),
        ("default", ["sft=default", "trainer=default"]),
        (
            "data=samsum",
            ["max_length: 640", "_data, which it builds on", "truncation: input", "InstructionData"],
        ),
        (
            "model=opt_2.7b_to_350m",
            ["facebook/opt-350m", "opt_2.7b_to_125m, which", "_hub_pair, which", "_pair, which"],
        ),
        (
            "data.mean",
            [
                "data.mean: step",
                "data=builtin, data=builtin_numbers, data=dialogsum",
                "mean loss over the tokens of",
            ],
        ),
    ],
)
def test_help_of_a_word(word, parts, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["help", word]) == 0
    out = capsys.readouterr().out
    for part in parts:
        assert part in out


@pytest.mark.parametrize("group", ["model", "data"])
def test_what_options_build_on_is_no_option_itself(group, capsys):
    bases = {base.name for option in options(group) for base in option.bases} - {
        o.name for o in options(group)
    }
    assert bases == {"model": {"_pair", "_hub_pair"}, "data": {"_data"}}[group]
    for name in bases:
        assert main(["train", f"{group}={name}"]) == 1
        said = capsys.readouterr().err
        assert f"{group}={name} is no option of '{group}'" in said
        assert name not in said.partition("choose one of")[2]
        assert main(["help", name]) == 1
        capsys.readouterr()
    assert not [option.name for option in options("") if option.name.startswith("_")]
    assert main(["train", "--help"]) == 0
    words = set(re.findall(r"[\w.]+", capsys.readouterr().out))
    assert not bases & words


def test_help_of_any_setting(capsys):
    cfg = OmegaConf.to_container(check_overrides("train", []), resolve=False)
    cfg.pop("hydra")
    settings = [key for key in keys_of(cfg) if key not in groups() and "." in key]
    assert len(settings) > 100
    for key in [*settings[::9], "logger.csv.save_dir", "logger.wandb.offline"]:
        assert main(["help", key]) == 0
        assert capsys.readouterr().out.startswith(f"{key}:")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("assistant.alph", "no group, option or setting; did you mean assistant.alpha?"),
        ("lr", "did you mean optimizer.lr or model.teacher.sft.optimizer.lr or "),
        (".", "'.' is no group, option or setting"),
        ("", "'' is no group, option or setting"),
        ("hydra.job", "'hydra.job' is no group, option or setting"),
        ("method=tad", "method=tad is no option of 'method'; did you mean 'taid'?"),
    ],
)
def test_help_of_a_word_that_is_none(word, message, capsys):
    assert main(["help", word]) == 1
    assert message in capsys.readouterr().err


def test_help_of_a_class_of_ones_own_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own.py").write_text("from torch.optim import AdamW\n\nclass A:\n    ''\n")
    (tmp_path / "my_wrong.py").write_text("class A(:\n")
    assert target("my_own.AdamW") is None
    assert target("my_own.A").summary == ""
    for path, reason in (("my_own.B", "there is no such name"), ("my_wrong.A", "invalid syntax")):
        with pytest.raises(InputError, match=f"_target_={path} cannot be read .*{reason}"):
            target(path)
