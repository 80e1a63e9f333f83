import json
import shutil

import pytest

from amid.cli.main import main
from amid.tracking.wandb_workspace import SweepScores, build_workspace, specification


def panels_of(view):
    bank = view["spec"]["section"]["panelBankConfig"]
    return {section["name"]: section["panels"] for section in bank["sections"]}


def test_the_workspace_of_a_sweep():
    scores = SweepScores("alpha", ["open", "closed"], ["rouge_l", "exact_match"], "rouge_l")
    view = json.loads(specification(build_workspace(scores, "team", "amid")))
    assert (view["entity"], view["project"]) == ("team", "amid")
    panels = panels_of(view)
    (filtered,) = view["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert (filtered["key"]["name"], filtered["op"], filtered["value"]) == ("group", "=", "alpha")
    axes = [
        (p["config"]["xAxis"], p["config"]["yAxis"])
        for name in ("Quality and diversity", "Evaluation sets")
        for p in panels[name]
    ]
    assert ("config:alpha.value", "summary:average/rouge_l") in axes
    assert ("summary:average/self_bleu", "summary:average/rouge_l") in axes
    assert ("summary:test/closed/self_bleu", "summary:test/closed/rouge_l") in axes
    parallel, comparer = panels["Settings"]
    assert parallel["viewType"] == "Parallel Coordinates Plot"
    accessors = [column["accessor"] for column in parallel["config"]["columns"]]
    assert accessors[0] == "config:alpha.value"
    assert accessors[-2:] == ["summary:average/rouge_l", "summary:average/self_bleu"]
    assert comparer["viewType"] == "Run Comparer"
    courses = {metric for panel in panels["Training"] for metric in panel["config"]["metrics"]}
    assert {"train/loss", "valid/loss", "valid/rouge_l"} <= courses


@pytest.fixture
def without_account(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_without_account_the_specification_is_written(without_account, capsys):
    assert main(["dashboard", "tasks", "project=mine"]) == 0
    out = capsys.readouterr().out
    file = without_account / "outputs" / "tasks" / "workspace.json"
    assert str(file.relative_to(without_account)) in out
    assert "wandb login && amid dashboard tasks project=mine" in out
    view = json.loads(file.read_text())
    assert view["project"] == "mine"
    (filtered,) = view["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert filtered["value"] == "tasks"
    shutil.rmtree(without_account / "outputs")


@pytest.mark.parametrize(
    ("generation", "diversity"),
    [
        ("{samples: 1, seeds: [10]}", "corpus_self_bleu"),
        ("{samples: 4, seeds: [10]}", "self_bleu"),
        ("{samples: 1, seeds: [10, 20]}", "self_bleu"),
    ],
)
def test_a_folder_of_runs_tells_its_sets_and_its_diversity(without_account, generation, diversity):
    run = without_account / "mine" / "alpha=1"
    run.mkdir(parents=True)
    data = "{test: {fr: x}, metrics: {bleu: {}}, valid_metric: bleu}"
    config = f"hash: a\nconfig: {{data: {data}, generation: {generation}}}\n"
    (run / "config.yaml").write_text(config)
    assert main(["dashboard", "mine"]) == 0
    view = json.loads((without_account / "mine" / "workspace.json").read_text())
    (plane,) = panels_of(view)["Evaluation sets"]
    assert plane["config"]["yAxis"] == "summary:test/fr/bleu"
    assert plane["config"]["xAxis"] == f"summary:test/fr/{diversity}"
    axes = [panel["config"].get("yAxis") for panel in panels_of(view)["Quality and diversity"]]
    assert axes.count(f"summary:average/{diversity}") == 2


def test_with_an_account_it_is_saved(without_account, monkeypatch, capsys):
    from wandb_workspaces.workspaces import internal

    sent = []

    def upsert(view):
        sent.append(view)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda _: "https://wandb.ai")
    monkeypatch.setattr("wandb.Api", lambda: None)
    monkeypatch.setattr("amid.cli.dashboard.without_wandb", lambda: False)
    assert main(["dashboard", "alpha", "entity=team"]) == 0
    assert (sent[0].entity, sent[0].project) == ("team", "amid")
    assert "team/amid" in capsys.readouterr().out
    assert not (without_account / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes a sweep"),
        (["alpha", "entty=me"], "takes a sweep"),
        (["nope"], "choose one of alpha"),
        (["."], "holds no run"),
    ],
)
def test_mistakes(arguments, message, without_account, capsys):
    assert main(["dashboard", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_search_has_runs_only_once_it_has_started(without_account, monkeypatch, capsys):
    monkeypatch.setattr("amid.config.folders._given", [])
    text = "defaults: [train, {override hydra/sweeper: optuna}, _self_]\n"
    (without_account / "mine.yaml").write_text(text)
    assert main(["dashboard", "./mine.yaml"]) == 1
    assert "its sweeper chooses its runs; start it, and then give its folder" in capsys.readouterr().err
