import pytest
from compositions import compose_anew, compose_once
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from amid.cli.main import main
from amid.cli.sweep import _read_sweep
from amid.config.compose import as_dict
from amid.config.folders import CONF, SWEEPS, sweep_names
from amid.config.sweeps import read_sweep
from amid.errors import InputError
from amid.estimates.cost import Estimator
from amid.experiment.plan import Plan
from amid.results import RunResult, save
from amid.settings import check

SCALES = ("small", "full")
SWEEPS_AT_SCALES = [
    (name, scale) for name in sweep_names() for scale in OmegaConf.load(SWEEPS / f"{name}.yaml").scales
]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """The working folder is an empty one, and no folder of another test is searched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amid.config.folders._given", [])
    return tmp_path


def composed_axes(name, scale, *labels):
    """The values of some settings over the runs of a sweep, as sets of strings."""
    runs = [dict(o.split("=", 1) for o in run.overrides) for run in read_sweep(name, [], scale).runs()]
    return [{run[label] for run in runs if label in run} for label in labels]


@pytest.mark.parametrize(("name", "scale"), SWEEPS_AT_SCALES)
def test_every_run_has_a_folder_of_its_own_and_the_small_scale_is_the_default(name, scale):
    sweep = read_sweep(name, [], scale)
    runs = sweep.runs()
    assert len({run.directory for run in runs}) == len(runs)
    assert {run.directory.parent for run in runs} == {sweep.output_dir}
    assert str(sweep.output_dir) == f"outputs/{name}" + ("-full" if scale == "full" else "")
    assert read_sweep(name, []).output_dir == read_sweep(name, [], "small").output_dir


def test_the_grids_are_those_of_the_paper():
    alphas, lams = {"-5", "-3", "-1", "0", "0.5", "1"}, {"0.1", "0.3", "0.5", "0.7", "0.9"}
    for scale in SCALES:
        assert composed_axes("alpha", scale, "assistant.alpha") == [alphas]
        assert composed_axes("lambda", scale, "assistant.lam", "assistant.alpha") == [lams, {"-5"}]
        divergences, found = composed_axes("divergence", scale, "divergence", "assistant.alpha")
        assert divergences == {"kl", "reverse_kl", "alpha_beta"}
        assert {"-5", "-1", "1"} <= found
        (methods,) = composed_axes("main", scale, "method")
        assert {"amid", "sft", "kd", "gkd", "taid", "distillm_skl", "distillm_srkl", "abkd"} <= methods
        (alphas_of_assistants,) = composed_axes("assistants", scale, "assistant.alpha")
        assert {"-1", "1"} < alphas_of_assistants
        both = composed_axes("stability", scale, "assistant.alpha", "assistant.lam")
        assert min(map(len, both)) > 1
        axes = composed_axes("overhead", scale, "divergence", "method")
        assert axes == [{"kl", "alpha_beta"}, {"kd", "abkd"}]
    assert composed_axes("stability", "full", "assistant.alpha", "assistant.lam") == [alphas, lams]
    assert composed_axes("divergence", "full", "assistant.alpha", "objective.order") == [alphas, {"pr"}]
    assert composed_axes("tasks", "full", "data") == [{"opus100", "samsum", "gsm8k"}]
    models, data, seeds = composed_axes("main", "full", "model", "data", "seed")
    assert {"gpt2_xl_to_gpt2", "gpt2_xl_to_gpt2_large", "opt_2.7b_to_1.3b", "openllama2_7b_to_3b"} <= models
    assert (data, len(seeds)) == ({"dolly"}, 5)


def test_what_is_given_comes_last_and_the_grid_stays_off_the_baselines():
    given = ["assistant.alpha=2", "seed=1,2", "output_dir=out", "text=student"]
    sweep = read_sweep("divergence", given, "full")
    grid = [dict(o.split("=", 1) for o in run.overrides) for run in sweep.runs()]
    assert str(sweep.output_dir) == "out"
    assert {run["seed"] for run in grid} == {"1", "2"}
    amid = [run for run in grid if "method" not in run]
    assert {run["assistant.alpha"] for run in amid} == {"2"}
    assert {run["text"] for run in amid} == {"student"}
    baselines = [run for run in grid if "method" in run]
    assert {run["method"] for run in baselines} == {"sft", "kd"}
    assert not any({"assistant.alpha", "text", "objective.order"} & run.keys() for run in baselines)


def test_what_trains_nothing_has_one_seed():
    for given, seeds in (("3,4", ["3", "4"]), ("range(5,8)", ["5", "6", "7"]), ("7", ["7"])):
        runs = [
            dict(o.split("=") for o in run.overrides) for run in read_sweep("alpha", [f"seed={given}"]).runs()
        ]
        by_method = {
            m: [r["seed"] for r in runs if r.get("method") == m] for m in ("teacher", "start", "sft")
        }
        assert by_method == {"teacher": seeds[:1], "start": seeds[:1], "sft": seeds}


def test_baselines_get_the_settings_of_text_and_computing_that_they_have():
    given = ["text=adaptive", "text.labels=unshifted", "text.threshold=0.5", "objective.fused=false"]
    of = {}
    for run in read_sweep("main", [*given, "objective.order=pr", "seed=1"]).runs():
        said = dict(override.split("=", 1) for override in run.overrides)
        of[said["method"]] = said
    assert (of["amid"]["text"], of["amid"]["objective.order"]) == ("adaptive", "pr")
    for method, said in of.items():
        assert said["objective.fused"] == "False"
        assert method == "amid" or not {"text", "objective.order"} & said.keys()
    with_labels = {method for method, said in of.items() if "text.labels" in said}
    assert with_labels == {"amid", "imitkd", "gkd", "distillm_skl", "distillm_srkl"}
    with_threshold = {method for method, said in of.items() if "text.threshold" in said}
    assert with_threshold == {"amid", "distillm_skl", "distillm_srkl"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "; choose one of alpha"),
        (["alhpa"], "; did you mean 'alpha'? Choose one of alpha"),
        (["alpha", "scale=huge"], "choose one of small, full"),
        (["alpha", "assistant.alhpa=1"], "did you mean 'assistant.alpha'"),
        (["alpha", "--dryrun"], "neither KEY=VALUE nor --dry-run"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert main(["sweep", *arguments]) == 1
    assert message in capsys.readouterr().err


WRONG = {
    "hydra: {sweeper: {params: [seed=1]}}": "hydra.sweeper.params=[seed=1] must be values by setting",
    "hydra: {sweeper: {params: seed=1}}": "hydra.sweeper.params=seed=1 must be values by setting",
    "hydra: {sweeper: {params: {seed: [1, 2]}}}": "seed is [1, 2]; write seed: 1,2",
    "hydra: {sweeper: {params: {assistant: {lam: 1}}}}": "name each setting of it, assistant.KEY: A,B",
    "hydra: {sweeper: {params: {seed: }}}": "seed has none; write them, or seed: 'null'",
    "hydra: {sweeper: {params: {5: 1}}}": "5 is no setting; write seed: 1,2,3",
    "hydra: {sweeper: {param: {seed: 1}}}": "hydra.sweeper.param={seed: 1}: there is no such setting; did",
    "hydra: {sweeper: [seed]}": "hydra.sweeper=[seed] must be settings of the sweeper",
    "hydra: 5": "hydra=5 must be settings of Hydra",
    "hydra: ": "hydra=null must be settings of Hydra",
    "params: {seed: 1}": "params={seed: 1} stands at the top; write the grid below hydra.sweeper.params",
    "baselines: method=kd": "baselines=method=kd must be a list of runs",
    "baselines: {method: kd}": "baselines={method: kd} must be a list of runs",
    "baselines: [{method: kd}]": "one is '{method: kd}'; write KEY=VALUE",
    "baselines: [method=kd seed]": "one is 'method=kd seed'; write KEY=VALUE",
    "baselines: [null]": "one is 'null'; write KEY=VALUE",
    "baselines: ['']": "write KEY=VALUE",
    "scales: [seed=1]": "scales=[seed=1] must be lists of overrides by the names of scales",
    "scales: 5": "scales=5 must be lists of overrides",
    "scales: {small: seed=1}": "small is seed=1; write each below it",
    "scales: {small: [{seed: 1}]}": "one is a mapping; write it as one text: - seed=1",
    "scales: {small: [seed=1 data=dolly]}": "write each on a line of its own",
    "scales: {1: [seed=1]}": "1 is no text; put it in quotes",
    "output_dir: 5": "output_dir=5 must be the path of a folder",
    "output_dir: [a]": "output_dir=[a] must be the path of a folder",
    "output_dir: ''": "output_dir= must be the path of a folder",
    "output_dir: ???": "output_dir=??? must be the path of a folder",
    "baseline: [method=kd]": "baseline=[method=kd]: there is no such setting; did you mean 'baselines'?",
    "defaults: train": "defaults=train must be a list that builds on train",
    "defaults: [_self_]": "defaults=[_self_] must be a list that builds on train",
    "defaults: [5]": "defaults=[5] must be a list that builds on train",
    "x: " + 3000 * "[" + 3000 * "]": "cannot be read: it is nested too deeply",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_of_wrong_shape_names_file_key_and_remedy(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amid.config.folders._given", [])
    begin = "" if text.startswith("defaults") else "defaults: [train, _self_]\n"
    (tmp_path / "own.yaml").write_text(f"{begin}{text}\n")
    assert main(["sweep", "./own.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("amid: sweep own.yaml")
    assert WRONG[text] in line
    assert [*tmp_path.iterdir()] == [tmp_path / "own.yaml"]


def test_parts_of_a_file_that_are_left_empty_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr("amid.config.folders._given", [])
    text = (
        "defaults: [train, _self_]\noutput_dir:\nbaselines:\nscales:\nhydra: {sweeper: {params: {seed: 3}}}\n"
    )
    (tmp_path / "own.yaml").write_text(text)
    sweep = read_sweep(str(tmp_path / "own.yaml"), [])
    assert sweep.jobs == [["seed=3", "output_dir=outputs/own"]]


def test_a_mistake_in_a_setting_names_the_file_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amid.config.folders._given", [])
    (tmp_path / "own.yaml").write_text("defaults: [train, _self_]\nclip_norm: -1\n")
    assert main(["sweep", "./own.yaml"]) == 1
    assert capsys.readouterr().err.startswith("amid: sweep ./own.yaml: clip_norm=-1 must be a number above 0")


def test_a_file_without_scales_is_a_sweep_too(tmp_path, monkeypatch):
    assert read_sweep("alpha", ["seed=1"]).in_short == "10 runs, 6 of the grid and 4 baselines"
    text = "defaults: [train, _self_]\noutput_dir: outputs/own\nhydra: {sweeper: {params: {seed: '1,2'}}}\n"
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "own.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep("own", ["clip_norm=2"])
    assert [run.overrides for run in sweep.runs()] == [
        [f"seed={i}", "clip_norm=2", "output_dir=outputs/own"] for i in (1, 2)
    ]
    assert str(sweep.output_dir) == "outputs/own"
    assert sweep.in_short == "2 runs"
    with pytest.raises(InputError, match="scale=full: sweep own has no scales; leave out scale="):
        read_sweep("own", [], "full")


OWN_FOLDERS = {
    ("outputs/own/", None, ()): ("outputs/own", "outputs/own"),
    ("outputs/own/", "full", ()): ("outputs/own-full", "outputs/own-full"),
    ("läufe (1)", None, ()): ("läufe (1)", "'läufe (1)'"),
    ("a", "at", ()): ("of scale", "of scale"),
    ("a", None, ("output_dir='b c'",)): ("b c", "'b c'"),
    ("a", "at", ("++output_dir=b",)): ("b", "b"),
}


@pytest.mark.parametrize(("case", "expected"), OWN_FOLDERS.items())
def test_the_folder_of_the_runs(case, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("amid.config.folders._given", [])
    folder, scale, given = case
    scales = "scales: {small: [seed=1], full: [seed=2], at: [output_dir=of scale]}\n"
    (tmp_path / "own.yaml").write_text(f"defaults: [train, _self_]\noutput_dir: {folder}\n{scales}")
    sweep = read_sweep(str(tmp_path / "own.yaml"), given, scale)
    assert str(sweep.output_dir) == expected[0]
    assert sweep.jobs[0][-1].lstrip("+") == f"output_dir={expected[1]}"
    with pytest.raises(InputError, match="output_dir=a,b has several values; the runs of a sweep are in one"):
        read_sweep(str(tmp_path / "own.yaml"), ["output_dir=a,b"])


def test_the_folder_of_the_runs_may_be_named_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", str(tmp_path))
    sweep, cfg = _read_sweep("alpha", ["output_dir=${oc.env:PLACE}/own", "~data.test.closed"])
    assert sweep.output_dir == tmp_path / "own"
    assert list(cfg.data.test) == ["open"]
    assert not (tmp_path / "own").exists()


def test_a_sweep_that_builds_on_another_is_refused(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "defaults: [train]\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n"
    )
    (tmp_path / "own.yaml").write_text(
        "defaults: [base, _self_]\nhydra: {sweeper: {params: {clip_norm: 1}}}\n"
    )
    with pytest.raises(InputError, match=r"own.yaml builds on base.yaml, and a sweep takes no grid"):
        read_sweep(str(tmp_path / "own.yaml"), [])
    (tmp_path / "base.yaml").write_text("defaults: [train, _self_]\nclip_norm: 1\n")
    assert read_sweep(str(tmp_path / "own.yaml"), []).in_short == "1 run"


@pytest.mark.parametrize("entry", ["/base", "base.yaml", "sub/base"])
def test_what_a_sweep_builds_on_is_found_in_any_spelling(tmp_path, entry):
    (tmp_path / "sub").mkdir()
    for base in (tmp_path / "base.yaml", tmp_path / "sub" / "base.yaml"):
        base.write_text("defaults: [train]\nscales: {small: []}\n")
    own = tmp_path / "own.yaml"
    own.write_text(f"defaults: [train, {entry}, _self_]\nhydra: {{sweeper: {{params: {{clip_norm: 1}}}}}}\n")
    with pytest.raises(InputError, match=r"builds on (sub/)?base.yaml, and a sweep takes no grid"):
        read_sweep(str(own), [])
    for content in ("[1, 2]", "hydra: {sweeper: {params: '${x}'}}", "hydra: [1]", "clip_norm: 1"):
        (tmp_path / "base.yaml").write_text(content)
        (tmp_path / "sub" / "base.yaml").write_text(content)
        if "params" in content:
            with pytest.raises(InputError, match="builds on"):
                read_sweep(str(own), [])
        else:
            assert read_sweep(str(own), []).in_short == "1 run"


def test_a_baseline_that_trains_nothing_has_one_seed_however_seeds_are_given():
    for seeds in ("seed=3,4", "++seed=3,4"):
        untrained = [run for run in read_sweep("alpha", [seeds]).runs() if "method=teacher" in run.overrides]
        assert len(untrained) == 1


def test_an_override_of_any_form_replaces_the_one_before_it():
    assert read_sweep("alpha", ["++seed=5"]).in_short == read_sweep("alpha", ["seed=5"]).in_short
    of_sets = ["+data.test.mine=a", "data.test.mine=b", "++threads=2", "threads=3"]
    last = read_sweep("alpha", of_sets).jobs[0][-3:]
    assert last == ["+data.test.mine=b", "++threads=3", "output_dir=outputs/alpha"]


@pytest.mark.parametrize(("name", "scale"), SWEEPS_AT_SCALES)
def test_the_first_run_composes_and_its_settings_are_right(name, scale):
    run, cfg = next(read_sweep(name, [], scale).configs())
    check(cfg)
    assert str(cfg.seed) == dict(override.split("=", 1) for override in run.overrides).get("seed", "1")


QUICK_TO_LIST = [("lambda", "small"), ("lambda", "full"), ("tasks", "small")]
"""Sweeps with dry runs that stand for all: of both scales, and on tasks."""


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param(*one, marks=[] if one in QUICK_TO_LIST else [pytest.mark.slow])
        for one in SWEEPS_AT_SCALES
    ],
)
def test_a_dry_run_composes_every_run_and_starts_nothing(name, scale, offline, capsys):
    of_full = {"main": ["model=gpt2_xl_to_gpt2"], "tasks": ["data=samsum"]}
    of_full["stability"] = ["assistant.alpha=-5,1", "assistant.lam=0.1,0.9"]
    narrow = ["seed=1", *(of_full.get(name, []) if scale == "full" else [])]
    assert main(["sweep", name, f"scale={scale}", "--dry-run", *narrow]) == 0
    out = capsys.readouterr().out
    n = len(read_sweep(name, narrow, scale).runs())
    assert f"{n} runs" in out
    assert f"In all: {n} to do" in out
    assert "Nothing was started." in out
    assert not list(offline.iterdir())
    assert "unknown" not in out
    assert "Not known" not in out
    of_the_hub = scale == "full" or name.startswith("study")
    assert ("Assumed, and not read (amid/hub_sizes.yaml): the sizes of " in out) == of_the_hub


def test_finished_runs_give_the_times(offline, capsys):
    sweep = read_sweep("alpha", ["seed=1"])
    first = sweep.runs()[0]
    timings = {"train": 3000.0, "evaluate": 600.0, "prepare": 1e6}
    save(RunResult(first.directory.name, {}, "", 1, {}, {}, timings, {}), first.directory)
    assert main(["sweep", "--dry-run", "alpha", "seed=1"]) == 0
    out = capsys.readouterr().out
    assert "In all: 1 done, 9 to do" in out
    lines = [line for line in out.splitlines() if line.startswith((" alpha=", " method="))]
    rows = {line.split()[0].removesuffix(",seed=1"): line for line in lines}
    assert " done " in rows["alpha=-5"]
    assert "60 min" in rows["alpha=-5"]
    assert "60 min" in rows["alpha=1"]
    assert "at least 7 h for the runs" in out


def test_the_checkpoints_are_the_largest_of_what_is_still_to_do(offline, capsys):
    given = ["sweep", "alpha", "assistant.alpha=1", "--dry-run"]
    assert main(given) == 0
    _, cfg = next(read_sweep("alpha", ["assistant.alpha=1"]).configs())
    cfg.logger = {}
    plan = Plan(as_dict(cfg))
    works = {work.what: work.cost for work in Estimator().shared(plan).values()}
    teacher, student = (
        works[f"fine-tuning of the {role} (random weights)"].checkpoints for role in ("teacher", "student")
    )
    assert teacher > 5 * student
    assert f"at most {teacher / 1e6:.3g} MB of checkpoints" in capsys.readouterr().out
    for role in ("teacher", "student"):
        save(RunResult(role, {}, "", 1, {}, {}, {}, {}), plan.fine_tuning_folder(role))
    assert main(given) == 0
    assert f"at most {student / 1e6:.3g} MB of checkpoints" in capsys.readouterr().out


def test_what_is_neither_read_nor_public_is_named(offline, capsys):
    given = ["model=gpt2_xl_to_gpt2", "data=dolly", "model.student.path=someone/gpt2", "assistant.lam=0.1"]
    given += ["data.test.unni=hf://datasets/someone/unni/all.jsonl"]
    assert main(["sweep", "lambda", "--dry-run", "seed=1", *given]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("Not known: ")]
    assert "the size of someone/gpt2" in line
    assert "the number of rows of someone/unni/all.jsonl" in line
    assert "the lengths of rows of someone/unni/all.jsonl" in line
    assert "HF_HUB_OFFLINE keeps from asking the hub, and its cache has none" in line
    assert "unknown on disk" in out
    assert "the sizes of openai-community/gpt2-xl;" in out


def test_what_a_run_would_refuse_is_said(offline, capsys):
    assert main(["sweep", "lambda", "--dry-run", "assistant.lam=0.1,1", "seed=1"]) == 0
    out = capsys.readouterr().out
    assert "1 refused" in out
    assert "assistant.lam=1 with objective.order=pr has no gradient" in out


def test_a_data_file_and_a_model_folder_need_no_hub(offline, jsonl, capsys):
    path = jsonl(*({"instruction": f"say {i}", "output": "word " * 5} for i in range(40)))
    given = [f"data.train={path}", f"data.valid={path}", f"+data.test.mine={path}", "data/template=builtin"]
    given += ["data.max_length=40", "data.max_prompt_length=16", "data=jsonl"]
    given += ["trainer.limit_train_batches=null"]
    assert main(["sweep", "alpha", "--dry-run", "assistant.alpha=1", "seed=1", *given]) == 0
    out = capsys.readouterr().out
    assert "Not known" not in out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("alpha=1")]
    assert " 4 " in line  # 40 rows in steps of 32, twice


def test_a_configuration_composed_with_others_is_its_own():
    sweep = read_sweep("stability", ["assistant.alpha=-5,1", "assistant.lam=0.1,0.9", "seed=1,2"])
    for run, cfg in sweep.configs():
        given = dict(override.split("=", 1) for override in run.overrides)
        assert cfg.seed == int(given["seed"])
        if "method" not in given:
            expected = tuple(float(given[f"assistant.{name}"]) for name in ("alpha", "lam"))
            assert (cfg.assistant.alpha, cfg.assistant.lam) == expected


def check_composed(sweep, most=None):
    """Compares each kind of run, up to `most`, with Hydra's own composition; returns the configurations."""
    compose_anew()
    try:
        kinds = list(sweep.configs(sweep.of_each_setting()[:most]))
        for run, cfg in kinds:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                own = compose(sweep.name, run.overrides)
            assert OmegaConf.to_yaml(cfg) == OmegaConf.to_yaml(own)
            assert cfg._get_flag("struct") == own._get_flag("struct")
    finally:
        compose_once()
    return [cfg for _, cfg in kinds]


def test_runs_composed_from_files_that_are_read_once_are_as_hydra_composes_them():
    """With an option that two choices name together (text_of_pair), a deletion and an addition."""
    given = ["model=openllama2_7b_to_3b,qwen2.5_7b_to_1.5b", "seed=1"]
    given += ["~data.test.unni", "+data.test.mine='a=b'"]
    llama, qwen, _ = check_composed(read_sweep("main", given, "full"), 3)
    assert (llama.text.threshold, qwen.text.threshold) == (0.2, 0.0)
    assert llama.data.test.mine == "a=b"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), SWEEPS_AT_SCALES)
def test_every_run_of_every_sweep_is_composed_as_by_hydra(name, scale):
    assert check_composed(read_sweep(name, [], scale))
