"""Mistakes in settings and data: one line, before anything is computed."""

import logging
import shutil
from importlib.util import find_spec

import pytest
from command_line import run

from amid import results
from amid.training.normalisation import denominators


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["assistant.lam=1.5"], "assistant.lam=1.5 must be a number from 0 to 1"),
        (["assistant.lam=1"], "assistant.lam=1 with objective.order=pr has no gradient, as r = p"),
        (["seed=1.5"], "seed=1.5 must be a whole number"),
        (["seed=-1"], "seed=-1 must be a whole number, from 0 to 4294967295"),
        (["threads=0"], "threads=0 must be a whole number from 1"),
        (["divergence=none"], "divergence=null is none; choose one, or objective=cross_entropy"),
        (
            ["method=sft", "divergence=kl"],
            "divergence=kl: method=sft (objective=cross_entropy) has no divergence",
        ),
        (
            ["data.test=my/test.jsonl"],
            "data.test=my/test.jsonl must be evaluation sets by name; add a set by its name: "
            "+data.test.mine=my/test.jsonl",
        ),
        (
            ["+data.test=my/test.jsonl"],
            "+data.test=my/test.jsonl: add each set by its name: +data.test.mine=my/test.jsonl",
        ),
        (["+seed=3"], "+seed=3: there is a seed already; set it: seed=3"),
        (["data.train=my/train.jsonl"], "data=builtin makes its rows; for files of your own add data=jsonl"),
        (
            ["divergence=kl", "~divergence._target_"],
            "divergence={} has no _target_; name its class there",
        ),
        pytest.param(
            ["generation=vllm"],
            "generation=vllm needs vLLM",
            marks=pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed"),
        ),
        (["assistant.alpha=-5,"], "assistant.alpha=-5, ends with a comma"),
        (["seed==1"], "seed==1 has == where one = belongs; write KEY=VALUE"),
        (
            ["divergence=kl", "divergence._target_=torch.nn.functional.kl_div"],
            "a plain function needs _partial_: true",
        ),
        (["data.train=a[:9]"], "in quotes that the shell leaves"),
        (["model.student.architecture.hidden_size=33"], "The hidden size (33) is not a multiple of"),
        (
            ["model.student.architecture.model_type=lama"],
            "architecture.model_type=lama is none of transformers'",
        ),
        (["+objective.shared_vocab=5000"], "objective.shared_vocab=5000 is more than the"),
        (["trainer.limit_train_batches=0.0001"], "trainer.limit_train_batches=0.0001 of the"),
        (["model.student.layers=[0,9]"], "model.student.layers=[0, 9]: choose indices from 0 to 0"),
        (["trainer.max_steps=ten"], "trainer.max_steps=ten must be a whole number from 0; -1 is no limit"),
        (["trainer.max_steps=-5"], "trainer.max_steps=-5 must be a whole number from 0; -1 is no limit"),
        (
            ["trainer.precision=bf16-true"],
            "trainer.precision=bf16-true must be bf16-mixed, 32-true or 64-true",
        ),
        (
            ["trainer.check_val_every_n_epoch=null"],
            "trainer.check_val_every_n_epoch=null must be a whole number",
        ),
        (["trainer.accelerator=foo"], "trainer.accelerator=foo must be auto, cpu, gpu, cuda or mps"),
        (["generation.seeds=10"], "generation.seeds=10 must be a list, such as [10]"),
        (["assistant.alpha=nan"], "amid: assistant.alpha=nan must be a finite number"),
        (["assistant.alpha=???"], "amid: assistant.alpha has no value; give it one, assistant.alpha=VALUE "),
        (["method=kd", "objective.order=pr"], "names the assistant r"),
        (["method=kd", "schedule=taid"], "schedule TAID moves lam of an assistant"),
        (["schedule=taid"], "schedule.end=1.0 with objective.order=pr has no gradient, as r = p"),
        (["divergence=foo"], "no option of 'divergence'"),
        (["data=jsonl"], "data.train has no value; give it one, data.train=VALUE "),
        (["data.max_length=8"], "data.max_length=8"),
        (["data=jsonl", "data.train=nope.jsonl", "data.valid=nope.jsonl"], "nope.jsonl cannot be read"),
        (
            ["model.teacher.path=/no/where", "model.teacher.architecture=null", "model.teacher.sft=null"],
            "/no/where",
        ),
    ],
)
def test_a_mistake_is_one_line_and_no_result(quick, tmp_path, capsys, overrides, message):
    keys = {o.split("=")[0] for o in overrides}
    drop = ("data.train.size", "data.valid.size") if "data=jsonl" in overrides else ()
    base = [o for o in quick if o.split("=")[0] not in drop and o.split("=")[0] not in keys]
    assert run("train", *base, *overrides) == 1
    out, err = capsys.readouterr()
    assert message in err
    assert "Traceback" not in err
    assert "Fine-tuning" not in out
    assert not list((tmp_path / "runs").glob("*"))


def test_a_folder_of_one_run_for_several(tmp_path, capsys):
    assert run("train", "-m", "seed=1,2", f"hydra.run.dir={tmp_path / 'x'}") == 1
    assert "is for one run; the folder of several is output_dir=" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train"], ["train", "-m", "seed=1,2"], ["sweep", "alpha", "--dry-run"]])
def test_a_run_does_not_change_the_folder_that_paths_begin_in(tmp_path, capsys, words):
    assert run(*words, "hydra.job.chdir=true", f"output_dir={tmp_path / 'out'}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("amid: ")
    assert "hydra.job.chdir=true: the paths of settings are relative to the folder in which amid" in line
    assert not (tmp_path / "out").exists()


def test_an_option_that_there_is_not(capsys):
    assert run("train", "--mutlirun", "seed=1") == 1
    assert "--mutlirun is no option of amid train; did you mean '--multirun'?" in capsys.readouterr().err


def test_a_folder_of_runs_in_place_of_a_run(tmp_path, capsys):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "result.json").write_text("{}")
    assert run("evaluate", f"run={tmp_path / 'runs'}", f"output_dir={tmp_path / 'again'}") == 1
    assert f"give the folder of a run that holds result.json, such as {tmp_path}/runs/one" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_mistake_in_an_evaluation_set_comes_before_training_and_can_be_mended(
    quick, tmp_path, jsonl, capsys, monkeypatch
):
    path = jsonl("{broken")
    new = [*quick, f"prepared_dir={tmp_path / 'new'}", f"+data.test.mine={path}"]
    assert run("train", *new) == 1
    assert "data.jsonl:1: not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "runs").glob("*"))
    logging.getLogger("amid").warning("the log of a removed folder is not written to")
    jsonl({"instruction": "a", "output": "b"})
    assert run("train", *new) == 0


@pytest.mark.parametrize(
    ("command", "bad"),
    [("train", "train"), ("train", "valid"), ("train", "plain_text"), ("cache", "train"), ("cache", "valid")],
)
def test_a_mistake_in_a_row_comes_before_anything_is_announced(
    quick, tmp_path, jsonl, capsys, monkeypatch, command, bad
):
    monkeypatch.setattr("amid.training.precision.times_as_long", lambda: 9.0)
    good = jsonl({"instruction": "a", "output": "b", "text": "c"})
    files = dict.fromkeys(("train", "valid", "plain_text"), good) | {bad: jsonl("{broken", name="bad.jsonl")}
    base = [o for o in quick if not o.startswith(("data.train.size", "data.valid.size"))]
    own = ["data=jsonl", *(f"data.{name}={file}" for name, file in files.items())]
    new = [f"prepared_dir={tmp_path / 'new'}", "trainer.precision=bf16-mixed"]
    assert run(command, *base, *own, *new) == 1
    out, err = capsys.readouterr()
    assert "bad.jsonl:1: not valid JSON" in err
    assert [line for line in out.splitlines() if not line.startswith("run ")] == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.max_length=64,8", "run 2 of 2 (data.max_length=8): data.max_length=8 leaves no room"),
        ("scheduler.warmup=1,9999", "run 2 of 2 (scheduler.warmup=9999): scheduler.warmup=9999 leaves none"),
        (
            "teacher=cached,live",
            "run 2 of 2 (teacher=live): amid cache writes the states that teacher=cached",
        ),
        (
            "+model.teacher.architecture.hidden_sise=64,65",
            "run 1 of 2 (+model.teacher.architecture.hidden_sise=64): model.teacher.architecture.hidden_s",
        ),
        (
            "+data.test.own=no.csv,none.csv",
            "run 1 of 2 (+data.test.own=no.csv): data.test.own=no.csv: data file",
        ),
    ],
)
def test_several_caches_one_of_which_would_be_refused_start_none(tmp_path, capsys, override, message):
    places = [f"output_dir={tmp_path / 'runs'}", f"prepared_dir={tmp_path / 'new'}"]
    assert run("cache", "-m", override, *places, f"data.cache_dir={tmp_path / 'cache'}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"amid: {message}")
    assert line.endswith("; nothing was started")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", ["train", "evaluate", "cache"])
@pytest.mark.parametrize("arguments", [["-m", "seed=1,x", "--dry-run"], ["--dry-run"]])
def test_a_dry_run_is_one_of_a_sweep(capsys, command, arguments):
    assert run(command, *arguments) == 1
    told = capsys.readouterr().err
    assert told == f"amid: --dry-run is no option of amid {command}; it is one of amid sweep NAME\n"


@pytest.mark.parametrize("command", ["train", "cache"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+model.teacher.architecture.hidden_sise=64", "model.teacher.architecture.hidden_sise=64: a config"),
        ("model.teacher.architecture.hidden_size=33", "The hidden size (33) is not a multiple of"),
    ],
)
def test_models_are_checked_before_a_row_is_read(
    quick, tmp_path, jsonl, capsys, monkeypatch, command, override, message
):
    broken = jsonl("{broken")
    base = [o for o in quick if not o.startswith(("data.train.size", "data.valid.size", "prepared_dir"))]
    own = ["data=jsonl", f"data.train={broken}", f"data.valid={broken}", f"prepared_dir={tmp_path / 'new'}"]
    assert run(command, *base, *own, override) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [*tmp_path.iterdir()] == [broken]


def test_a_model_with_another_vocabulary_is_refused(quick, tmp_path, capsys):
    from amid.data.builtin import tokenizer

    folder = tmp_path / "other"
    assert run("train", *quick, "model.student.sft=null", f"output_dir={tmp_path / 'runs'}") == 0
    (directory,) = (tmp_path / "runs").iterdir()
    shutil.copytree(directory / "checkpoints" / "best", folder)
    other = tokenizer()
    other.add_tokens(["<new>"])
    other.save_pretrained(folder)
    given = [f"model.student.path={folder}", "model.student.architecture=null"]
    assert run("train", *quick, *given, f"output_dir={tmp_path / 'more'}") == 1
    assert "vocabularies do not match: token '<new>'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.precision=16-mixed", "must be bf16-mixed"),
        ("trainer.precision=bf16", "must be bf16-mixed"),
        ("trainer.devices=0", "trainer.devices=0 must be a number of devices from 1, or the numbers of GPUs"),
        ("trainer.devices=[1,1]", "or the numbers of GPUs, such as"),
        (
            "trainer.strategy=deepspeed",
            "trainer.strategy=deepspeed must be auto or ddp: each device has the whole student",
        ),
        ("trainer.num_nodes=2", "trainer.num_nodes=2: start amid on each machine, by torchrun or srun"),
        ("model.student.sft.trainer.devices=2", "fine-tuned on the devices of its run; use"),
        (
            "trainer.devices=64",
            "data.batch_size=32 has 32 rows, and trainer.devices asks for 64; use",
        ),
        (
            "data.sharing=micro_batches",
            "data.sharing=micro_batches with data.micro_batch_size=null: a step is one micro-batch",
        ),
        ("clip_norm=-1", "clip_norm=-1 must be a number above 0"),
        ("trainer.max_epochs=-1", "never end"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a finite number from 0"),
        ("generation.samples=0", "generation.samples=0 must be a whole number from 1"),
        ("generation.top_p=2", "must be a number above 0, up to 1"),
    ],
)
def test_values_out_of_range(quick, capsys, override, message):
    key = override.split("=")[0]
    assert run("train", *(o for o in quick if not o.startswith(key)), override) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["data.micro_batch_size=2", "data.tokens_per_batch=64"])
def test_a_loss_that_is_no_sum_of_parts_takes_no_micro_batches(quick, capsys, limit):
    key = limit.split("=")[0]
    base = [o for o in quick if not o.startswith(key)]
    assert run("train", *base, "method=alphanet", "objective.maximum=batch", limit) == 1
    assert "is no sum of parts" in capsys.readouterr().err


def test_a_mistake_is_known_before_the_processes_of_a_run_start(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("amid.cli.launch.run_in_processes", None)
    settings = [o for o in quick if not o.startswith("model.student")]
    assert run("train", *settings, "model.student.layers=[0,9]", "trainer.devices=2") == 1
    assert "model.student.layers=[0, 9]: choose indices from 0 to 0" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))


def test_a_loss_that_is_no_sum_of_parts_takes_one_device(quick, capsys):
    settings = [*quick, "method=alphanet", "objective.maximum=batch", "data.micro_batch_size=null"]
    assert run("train", "-m", *settings, "seed=1,2", "trainer.devices=2") == 1
    assert "trainer.devices=2 cuts a step into parts" in capsys.readouterr().err


@pytest.mark.slow
def test_a_maximum_over_a_batch_is_over_each_micro_batch_where_the_mean_is_over_them(
    quick, tmp_path, monkeypatch
):
    divided = []

    def watched(counted, mean):
        divided.append(denominators(counted, mean))
        return divided[-1]

    monkeypatch.setattr("amid.training.module.denominators", watched)
    base = [o for o in quick if not o.startswith(("data.micro_batch_size", "data.tokens_per_batch"))]
    parts = ["data.mean=micro_batch", "data.micro_batch_size=2"]
    assert run("train", *base, "method=alphanet", "objective.maximum=batch", *parts) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    assert results.load(directory).diverged_step is None
    assert any(len(set(of_step)) > 1 for of_step in divided), "each micro-batch has a number of its own"
