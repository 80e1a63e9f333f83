"""YAML files outside the clone: options and sweeps of the user's own."""

import sys

import pytest

from amid.cli.main import main
from amid.config.folders import take_folders
from amid.config.overrides import check_overrides
from amid.config.sweeps import read_sweep
from amid.errors import InputError

SWEEP = """\
# a sweep of my own
defaults:
  - train
  - override optimizer: slow
  - _self_
data: {train: {size: 64}}
hydra: {sweeper: {params: {assistant.alpha: "-1,1"}}}
baselines:
  - method=mine seed=1,2
"""


def written(folder, **files):
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with options in `conf/`, others in `far/`, and a sweep."""
    monkeypatch.setattr("amid.config.folders._given", [])
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    method = "# @package _global_\n# KD, slowly\ndefaults: [kd, {override /optimizer: slow}]\n"
    slow = "# AdamW at a small learning rate\ndefaults: [adamw, _self_]\nlr: 1e-5\neps: 1\n"
    written(tmp_path / "conf", method__mine=method, optimizer__slow=slow, own_group__one="x: 1\n")
    written(tmp_path / "far", divergence__far="# KL, from afar\ndefaults: [kl]\n")
    written(tmp_path / "sweeps", mine=SWEEP)
    return tmp_path


FAR = [["--config-dir", "far"], ["--config-dir=far"], ["-cd", "far"], ["hydra.searchpath=[file://far]"]]
FAR += [["hydra.searchpath=['far']"], ["hydra.searchpath=[pkg://far]"]]


@pytest.fixture
def composed(monkeypatch):
    """The configurations of the runs that are started, which compute nothing."""
    seen = []
    monkeypatch.setattr("amid.cli.train.run", seen.append)
    return seen


@pytest.mark.parametrize("far", FAR)
def test_each_way_to_name_a_folder_finds_its_options(here, far):
    given = take_folders([*far, "divergence=far", "optimizer=slow"])
    cfg = check_overrides("train", given)
    assert (cfg.optimizer.eps, cfg.divergence._target_) == (1, "amid.losses.KL")


def test_every_command_finds_them(here, composed, capsys):
    far, given = FAR[0], ["divergence=far", "method=amid,mine"]
    assert main(["train", *far, given[0], "optimizer=slow"]) == 1  # without a result
    assert (composed[0].optimizer.eps, composed[0].divergence._target_) == (1, "amid.losses.KL")
    assert main(["train", "-m", *given, *far]) == 1
    out, err = capsys.readouterr()
    assert "outputs/train has no result of" in err
    assert out.count("run ") == 3
    assert main(["help", "divergence=far", "mine", "optimizer.eps", *far]) == 0
    out = capsys.readouterr().out
    assert "KL, from afar" in out
    assert "KD, slowly" in out
    assert "optimizer.eps: 1   (with optimizer=slow)" in out


def test_what_a_multirun_was_given_is_in_the_command_that_goes_on(here, composed, capsys):
    from amid.tracking.command_records import commands_of, planned

    assert main(["train", "-m", "divergence=far", "seed=1,2", "--config-dir", "far", "output_dir=out"]) == 1
    (command,) = commands_of(here / "out", planned(here / "out"))
    assert f"hydra.searchpath=['file://{here / 'far'}']" in command
    assert "subdir" not in command


@pytest.mark.parametrize(
    "name", ["mine", "sweeps/mine.yaml", "./sweeps/mine", "mine.yaml", "{here}/sweeps/mine.yaml"]
)
def test_a_sweep_is_found_by_its_name_and_its_path(here, name):
    sweep = read_sweep(name.format(here=here), [])
    assert [run.directory.name for run in sweep.runs()] == [
        "alpha=-1",
        "alpha=1",
        "method=mine,seed=1",
        "method=mine,seed=2",
    ]
    assert str(sweep.output_dir) == "outputs/mine"
    configs = [cfg for _, cfg in sweep.configs()]
    assert {cfg.optimizer.eps for cfg in configs} == {1}
    assert {cfg.data.train.size for cfg in configs} == {64}


def test_a_sweep_of_ones_own_runs(here, composed, capsys):
    (here / "sweeps" / "mine.yaml").rename(here / "own.yaml")
    given = ["own.yaml", "--config-dir", "far", "divergence=far", "optimizer.eps=2"]
    assert main(["sweep", *given, "--dry-run"]) == 0
    assert "3 runs" not in capsys.readouterr().out
    assert main(["sweep", *given]) == 1
    assert "outputs/own has no result of" in capsys.readouterr().err.replace(f"{here}/", "")
    assert [(cfg.optimizer.eps, cfg.divergence._target_) for cfg in composed[:2]] == [
        (2, "amid.losses.KL")
    ] * 2


def test_a_name_that_amid_has_is_not_read_and_told(here, composed, capsys):
    written(here / "conf", optimizer__adamw="lr: 7\n", divergence__own="defaults: [kl]\n")
    assert main(["train", "optimizer=adamw"]) == 1
    assert composed[0].optimizer.lr != 7
    err = capsys.readouterr().err
    assert f"not read: {here / 'conf' / 'optimizer' / 'adamw.yaml'}; amid has files of these names" in err
    assert "own.yaml" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config-dir", "nope"], "nope is no folder"),
        (["train", "--config-dir"], "names no folder"),
        (["train", "hydra.searchpath=[pkg://no_such_package]"], "no_such_package is no folder"),
        (["train", "hydra.searchpath=far"], "write the folders as a list"),
        (["train", "optimizer=slwo"], "did you mean 'slow'"),
        (["train", "optimizer.epps=1", "optimizer=slow"], "did you mean 'optimizer.eps'"),
        (
            ["train", "optimizer.eps=1"],
            "no YAML file of this run sets optimizer.eps; add it, +optimizer.eps=1",
        ),
        (["sweep", "mien"], "did you mean 'mine'"),
        (["sweep", "sweeps/none.yaml"], "sweep 'sweeps/none.yaml' is not a file"),
        (["sweep", "bad"], "sweeps/bad.yaml cannot be read"),
        (["sweep", "empty"], "sweeps/empty.yaml does not build on train"),
        (["sweep", "train"], "sweeps/train.yaml must have another name"),
        (["sweep", "mine", "data.fields.output=x"], "data.fields.output"),
    ],
)
def test_mistakes_are_told_in_a_line(here, arguments, message, capsys):
    written(here / "sweeps", bad="a: [", empty="", train=SWEEP)
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_folders_of_one_command_are_not_those_of_the_next(here):
    assert take_folders(["seed=1"]) == ["seed=1"]
    assert take_folders(["--config-dir", "far", "seed=1"]) == [
        "seed=1",
        f"hydra.searchpath=['file://{here / 'far'}']",
    ]
    assert check_overrides("train", ["divergence=far"]).divergence._target_ == "amid.losses.KL"
    take_folders([])
    with pytest.raises(ValueError, match="divergence=far is no option"):
        check_overrides("train", ["divergence=far"])


def test_a_yaml_file_that_cannot_be_read_is_named(here):
    written(here / "conf", divergence__torn="a: b: c\n", divergence__lost="defaults: [nothing]\n")
    for option, message in (
        ("torn", "torn.yaml"),
        ("lost", "Could not load 'divergence/nothing'; name a file"),
    ):
        with pytest.raises(InputError) as error:
            check_overrides("train", [f"divergence={option}"])
        assert message in str(error.value)
        assert len(str(error.value)) < 300
    (here / "conf" / "divergence" / "torn.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"torn.yaml: .*save your YAML files as UTF-8"):
        check_overrides("train", ["divergence=torn"])
