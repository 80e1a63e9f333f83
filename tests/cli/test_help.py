"""What `amid help` says of choices and settings."""

import pytest
import yaml
from omegaconf import OmegaConf

from amid.cli.help import groups, keys_of, options, target
from amid.cli.main import main
from amid.config.compose import check_overrides

OPTIONS = [(group, option) for group in groups() for option in options(group)]


def test_every_option_says_what_it_is():
    assert len(OPTIONS) > 80
    assert [f"{group}={option.name}" for group, option in OPTIONS if not option.about] == []


@pytest.mark.parametrize("path", sorted({path for _, option in OPTIONS for path in option.targets}))
def test_every_setting_is_an_argument_that_is_explained(path):
    known = target(path)
    if known is None:
        assert not path.startswith("amid.")
        return
    assert known.summary
    set_in_files = {
        key
        for _, option in OPTIONS
        for node in nodes(yaml.safe_load(option.text))
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
        ("taid", ["method=taid", "lam: 0.4", "schedule=taid", "amid.schedule.TAID"]),
        ("alpha", ["assistant.alpha: -5.0", "divergence.alpha: 0.2", "divergence=alpha"]),
        ("text=mixed", ["share: 0.5", "amid.text.StudentText", "max_new_tokens"]),
        ("seed", ["seed: 1", "amid train: of the run"]),
        ("optimizer.weight_decay", ["torch.optim.AdamW: see the documentation of torch"]),
        ("data.test.open", ["_target_: amid.data.builtin.corpus", "evaluation sets by name"]),
        ("data.train.seed", ["data.train.seed: 0"]),
        ("lam", ["assistant.lam: 0.1", "weight of the teacher"]),
        ("data.valid.seed", ["data.valid.seed: ${data.train.seed}"]),
        ("default", ["sft=default", "trainer=default"]),
    ],
)
def test_help_of_a_word(word, parts, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["help", word]) == 0
    out = capsys.readouterr().out
    for part in parts:
        assert part in out


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
