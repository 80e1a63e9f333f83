"""The launchers of several runs: what is refused, in one line, before anything starts."""

import pytest
from command_line import run

from amid.config.launchers import launcher_of, refused
from amid.config.overrides import check_overrides, parsed_overrides
from amid.errors import InputError


def test_a_launcher_without_its_package_names_the_extra():
    assert refused("ray", ["basic"]) == "hydra/launcher=ray is not installed; pip install 'amid-distill[ray]'"
    assert refused("submitit_slurm", ["basic"]).endswith("pip install 'amid-distill[slurm]'")
    assert "is no launcher; did you mean 'joblib'? Choose one of basic, joblib" in refused("jobli", ["basic"])


@pytest.mark.parametrize("command", [["train", "-m", "seed=1,2"], ["sweep", "alpha"]])
def test_an_unknown_launcher_starts_nothing(command, tmp_path, capsys):
    assert run(*command, f"output_dir={tmp_path / 'runs'}", "hydra/launcher=basc") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("amid: hydra/launcher=basc is no launcher; did you mean 'basic'?")
    assert not (tmp_path / "runs").exists()


def of(*overrides):
    return launcher_of("train", check_overrides("train", ["seed=1"]), parsed_overrides(overrides))


def test_runs_go_one_after_another_unless_a_launcher_is_chosen():
    launcher = of()
    assert (launcher.name, launcher.chosen) == ("basic", False)
    assert of("hydra/launcher=basic").chosen


def test_settings_of_a_launcher_are_checked():
    with pytest.raises(InputError, match=r"hydra/launcher=basic has no setting 'n_jobs'; choose a launcher"):
        of("hydra.launcher.n_jobs=2")
    with pytest.raises(InputError, match="has several values; the runs of a command share one"):
        of("hydra/launcher=basic,joblib")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = of("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert (launcher.name, launcher.chosen, launcher.settings.n_jobs) == ("joblib", True, 2)
    with pytest.raises(InputError, match=r"n_jobs=0 must be the number of runs at once, from 1"):
        of("hydra/launcher=joblib", "hydra.launcher.n_jobs=0")
    with pytest.raises(InputError, match=r"has no setting 'njobs'; did you mean 'n_jobs'\? Choose one of"):
        of("hydra/launcher=joblib", "hydra.launcher.njobs=2")
