"""The labels of a run in tables: its options, or the classes that replace them."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from amid.config.compose import register_resolvers
from amid.config.folders import CONF
from amid.config.run_labels import _name, labels_of

CONFIGURATION = "configuration"


@pytest.fixture
def labels():
    """The labels of a run with these overrides, in a folder that Hydra would name by them."""

    def of(*overrides, directory="outputs/train/x"):
        register_resolvers()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", list(overrides), return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = directory
            HydraConfig.instance().set_config(cfg)
            choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
            del cfg.hydra
        return labels_of(cfg, choices, list(overrides), Path(directory))

    yield of
    HydraConfig.instance().cfg = None


def test_shipped_options_are_called_as_they_are_chosen(labels):
    usual = labels()
    del usual[CONFIGURATION]
    assert usual == {
        "method": "amid",
        "model": "tiny",
        "data": "builtin",
        "divergence": "alpha_beta",
        "assistant": "alpha_mixture",
        "settings": None,
    }
    for method, divergence, assistant in (
        ("kd", "kl", "none"),
        ("sft", "none", "none"),
        ("akl", "none", "none"),
        ("minillm", "none", "none"),
        ("taid", "kl", "alpha_mixture"),
        ("gkd", "jensen_shannon", "none"),
        ("imitkd", "kl", "none"),
        ("seqkd", "none", "none"),
    ):
        found = labels(f"method={method}")
        assert (found["divergence"], found["assistant"]) == (divergence, assistant), method
        assert not {"objective", "schedule", "text", "optimizer", "scheduler", "generation"} & found.keys()
    mixed = labels("text=mixed", "scheduler=linear", "generation=greedy", "schedule=taid")
    assert mixed.keys() == labels().keys()


@pytest.mark.parametrize(
    ("overrides", "group", "name"),
    [
        (["divergence=kl", "divergence._target_=mine.Hellinger"], "divergence", "Hellinger"),
        (["divergence._target_=mine.Hellinger"], "divergence", "Hellinger"),
        (["divergence=kl", "divergence._target_=mine.kl"], "divergence", "mine.kl"),
        (
            ["divergence=kl", "divergence._target_=amid.losses.TotalVariation"],
            "divergence",
            "total_variation",
        ),
        (["objective.divergence={_target_: mine.Hellinger}"], "divergence", "Hellinger"),
        (["assistant._target_=mine.Mixture"], "assistant", "Mixture"),
        (["objective._target_=mine.Loss"], "objective", "Loss"),
        (["optimizer._target_=torch.optim.SGD"], "optimizer", "SGD"),
        (["scheduler._target_=torch.optim.lr_scheduler.OneCycleLR"], "scheduler", "OneCycleLR"),
        (["schedule=taid", "schedule._target_=mine.Moves"], "schedule", "Moves"),
        (["text=student", "text._target_=mine.Replay"], "text", "Replay"),
        (["generation._target_=mine.Beam"], "generation", "Beam"),
    ],
)
def test_what_takes_the_place_of_an_option_is_called_by_its_own_name(overrides, group, name, labels):
    found = labels(*overrides)
    assert found[group] == name
    others = {"divergence": "alpha_beta", "assistant": "alpha_mixture"}
    assert {key: found[key] for key in others if key != group} == {
        key: of for key, of in others.items() if key != group
    }


def test_an_option_of_ones_own_is_called_by_its_name():
    assert _name("divergence", "mine", {"_target_": "amid.losses.KL"}, ["divergence=mine"]) == "mine"
    own = {"_target_": "my.D"}
    assert _name("divergence", "mine", own, ["divergence=mine", "divergence._target_=my.D"]) == "D"
    assert _name("divergence", "kl", own, ["experiment=with_my_divergence"]) == "D"


def test_settings_that_no_override_names_are_told_apart_and_seeds_are_not(labels):
    one, other = labels("seed=1"), labels("seed=2", directory="outputs/train/seed=2")
    assert one[CONFIGURATION] == other[CONFIGURATION]
    assert labels("divergence.alpha=0.3")[CONFIGURATION] != one[CONFIGURATION]
    assert labels("threads=1")[CONFIGURATION] == one[CONFIGURATION]
