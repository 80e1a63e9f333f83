"""A search over settings: a sweeper that chooses runs by the scores of earlier ones."""

import json
import math
import sys
from types import ModuleType

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from amid.cli.main import main
from amid.cli.train import _score
from amid.config.overrides import check_overrides
from amid.config.sweeps import read_sweep
from amid.errors import InputError
from amid.results import RunResult
from amid.tracking.command_records import commands_of

RETURNED = []


class SmallSweeper(Sweeper):
    """Tries both ends of intervals and all listed values, one run after another."""

    def __init__(self, direction, params):
        self.params = params or {}

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments):
        from hydra.core.override_parser.overrides_parser import OverridesParser

        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = OverridesParser.create().parse_overrides(given)
        fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
        (searched,) = (o for o in overrides if o.is_sweep_override())
        for number, value in enumerate((searched.value().start, searched.value().end)):
            chosen = f"{searched.get_key_element()}={value}"
            (job,) = self.launcher.launch([[*fixed, chosen]], initial_job_idx=number)
            RETURNED.append(job.return_value)


SmallSweeper.__module__ = "hydra_plugins.small"


@pytest.fixture(autouse=True)
def small_sweeper(monkeypatch, tmp_path):
    Plugins.instance()  # finds those that are installed
    plugins = sys.modules.get("hydra_plugins", ModuleType("hydra_plugins"))
    monkeypatch.setitem(sys.modules, "hydra_plugins", plugins)
    monkeypatch.setitem(sys.modules, SmallSweeper.__module__, sys.modules[__name__])
    monkeypatch.setattr(plugins, "small", sys.modules[__name__], raising=False)
    Plugins.instance().register(SmallSweeper)
    node = {"_target_": "hydra_plugins.small.SmallSweeper", "direction": "maximize", "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="small", node=node)
    monkeypatch.chdir(tmp_path)
    RETURNED.clear()


@pytest.fixture
def tried(monkeypatch):
    """The values of α that runs were started with; each returns its value, and 0.5 fails."""
    seen = []

    def scored(cfg):
        seen.append(cfg.assistant.alpha)
        if cfg.assistant.alpha == 0.5:
            raise InputError("0.5 is refused")
        return float(cfg.assistant.alpha)

    monkeypatch.setattr("amid.cli.train.run", scored)
    return seen


SEARCH = ["train", "-m", "hydra/sweeper=small", "method=amid", "output_dir=out"]


def test_a_sweeper_gets_the_scores_of_the_runs_that_it_chooses(tmp_path, tried, capsys):
    assert main([*SEARCH, "assistant.alpha=interval(-5,1)"]) == 0
    assert tried == RETURNED == [-5, 1]
    out = capsys.readouterr().out
    assert "run alpha=-5.0\n" in out
    assert "run alpha=1.0\n" in out
    (command,) = commands_of(tmp_path / "out", ["alpha=-5.0"])
    assert command == "amid " + " ".join(SEARCH) + " 'assistant.alpha=interval(-5,1)'"


def test_a_failed_run_is_told_to_the_sweeper(tried, capsys):
    assert main([*SEARCH, "assistant.alpha=interval(-5,0.5)"]) == 1
    assert RETURNED == [-5]
    assert "amid: alpha=0.5: 0.5 is refused\n" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_for_the_worst_score_is_refused(tmp_path, tried, capsys):
    given = ["assistant.alpha=interval(-5,1)", "hydra.sweeper.direction=minimize"]
    assert main([*SEARCH, *given]) == 1
    assert not tried
    (line,) = capsys.readouterr().err.splitlines()
    assert "use hydra.sweeper.direction=maximize" in line
    assert not (tmp_path / "out").exists()
    assert main([*SEARCH, *given, "checkpoint=loss"]) == 0


def test_a_sweep_file_may_search(tmp_path, tried, capsys):
    (tmp_path / "sweeps").mkdir()
    text = "defaults: [train, {override hydra/sweeper: small}, _self_]\n"
    text += "hydra: {sweeper: {params: {assistant.alpha: 'interval(-1,1)'}}}\n"
    (tmp_path / "sweeps" / "mine.yaml").write_text(text)
    assert main(["sweep", "mine", "divergence=kl"]) == 0
    assert tried == [-1, 1]
    assert "Sweep mine in outputs/mine: runs that its sweeper chooses" in capsys.readouterr().out
    assert json.loads((tmp_path / "outputs/mine/sweep.json").read_text())["runs"] == []
    assert main(["sweep", "mine", "--dry-run"]) == 1
    assert "a sweeper chooses the runs of this one" in capsys.readouterr().err
    (tmp_path / "sweeps" / "mine.yaml").write_text(text + "baselines: [method=kd]\n")
    with pytest.raises(InputError, match="has baselines, and its sweeper searches"):
        read_sweep("mine", [])


def test_an_interval_needs_a_sweeper_that_searches(tmp_path, tried, capsys):
    assert main(["train", "-m", "assistant.alpha=interval(-5,1)", "output_dir=out"]) == 1
    err = capsys.readouterr().err
    assert "assistant.alpha=interval(-5,1): Hydra's own sweeper takes no interval" in err
    assert "nothing was started" in err
    assert main(["train", "-m", "assistant.alpha=1", "hydra/sweeper=nope"]) == 1
    assert "pip install hydra-nope-sweeper" in capsys.readouterr().err
    assert not tried
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("assistant.alpha=interval(-5,1)", "assistant.alpha", -2),
        ("optimizer.lr=tag(log,interval(0.001,0.003))", "optimizer.lr", 0.002),
        ("method=glob(distillm*)", "assistant.lam", 0.1),
        ("trainer.max_epochs=range(2,5)", "trainer.max_epochs", 2),
    ],
)
def test_what_a_sweeper_chooses_from_is_checked_by_a_value_of_it(override, key, value):
    cfg = check_overrides("train", [override])
    for part in key.split("."):
        cfg = cfg[part]
    assert cfg == pytest.approx(value)


def test_options_by_pattern_are_runs(tried):
    sweep = read_sweep("alpha", ["method=glob(distillm*)", "assistant.alpha=-1", "seed=1"])
    names = {run.directory.name for run in sweep.runs()}
    assert {"alpha=-1,method=distillm_skl", "alpha=-1,method=distillm_srkl"} <= names


def test_a_run_returns_what_its_checkpoint_is_chosen_by():
    def of(monitor, mode, **training):
        return _score(RunResult("a", {}, "", 1, {}, training, {}, {}), monitor, mode)

    assert of("valid/rouge_l", "max", valid_rouge_l=12.5, valid_loss=1.0) == 12.5
    assert of("valid/loss", "min", valid_rouge_l=12.5, valid_loss=1.0) == 1.0
    assert of("valid/loss", "min") is None
    assert of("valid/rouge_l", "max", valid_rouge_l=12.5, diverged_step=3) == -math.inf
    assert of("valid/loss", "min", diverged_step=3) == math.inf


def test_optuna_searches(tmp_path, tried):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    given = ["hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=1"]
    search = [*SEARCH, "assistant.alpha=interval(-5,1)", "divergence=kl,alpha_beta", *given]
    search[2] = "hydra/sweeper=optuna"
    assert main(search) == 0
    assert len(set(tried)) == 3
    assert all(-5 <= alpha <= 1 for alpha in tried)
    assert f"best_value: {max(tried)}" in (tmp_path / "out" / "optimization_results.yaml").read_text()
