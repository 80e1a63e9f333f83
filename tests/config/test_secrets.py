import json
import logging
import time

import pytest

from amid.cli.main import main
from amid.config.identity import config_hash
from amid.config.overrides import parsed_overrides
from amid.config.secrets import (
    check_overrides_for_secrets,
    hide,
    is_secret,
    remember,
    without_secrets,
)
from amid.errors import InputError
from amid.experiment.plan import Plan
from amid.tracking.run_log import HidingFormatter

SECRET = "hunter2hunter2"

SECRETS = [
    f"+logger.wandb.settings.api_key={SECRET}",
    f"+logger.comet.apiKey={SECRET}",
    f"++logger.neptune.api-token={SECRET}",
    f"+logger.own={{_target_:own.Logger,db_password:{SECRET}}}",
    f"model.student.path=x +model.student.token={SECRET}",
    f"+hydra.job.env_set.WANDB_API_KEY={SECRET}",
    f"+logger.mlflow.tracking_uri='https://me:{SECRET}@host/x'",
    f"data.train='https://{SECRET}@host/rows.jsonl'",
    f"data.train='https://host/rows.jsonl?x=1&access_token={SECRET}'",
    f"data.train='https://host/rows.jsonl?sig={SECRET}'",
    f"data.train=a.jsonl,'s3://me:{SECRET}@host/b.jsonl'",
    f"+x.y=hf_{SECRET}{SECRET}",
    f"+x.y='sk-{SECRET}{SECRET}'",
    f"+x.y=[a,ghp_{SECRET}{SECRET}]",
    f"+x.y='Bearer {SECRET}{SECRET}'",
    "+x.password=1234567",
    f"+x.pw={SECRET}",
    f'+callbacks.x.urls=[["https://hooks.slack.com/services/T00000000/B00000000/{SECRET}"]]',
    f"+x.y=prefix-{SECRET}-of-the-environment",
]


@pytest.fixture(autouse=True)
def of_the_environment(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", f"{SECRET}-of-the-environment")
    monkeypatch.setattr("amid.config.secrets._known", set())


def files_with(folder, secret):
    return [
        f
        for f in folder.rglob("*")
        if secret in str(f) or (f.is_file() and secret.encode() in f.read_bytes())
    ]


@pytest.mark.parametrize("given", SECRETS)
@pytest.mark.parametrize("command", ["train", "train -m", "sweep alpha", "sweep alpha --dry-run", "evaluate"])
def test_a_secret_on_the_command_line_is_refused_and_nowhere_told(
    given, command, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = [given] if "'" in given else given.split()
    several = ["seed=1,2"] if command == "train -m" else []
    assert main([*command.split(), *words, *several]) == 1
    out, err = capsys.readouterr()
    assert "holds a secret" in err
    assert len(err.splitlines()) == 1
    assert "hunter2" not in out + err
    assert "1234567" not in out + err
    assert not list(tmp_path.iterdir())


def test_the_refusal_names_the_environment_variable():
    key = "logger.wandb.settings.api_key"
    with pytest.raises(InputError, match=f"WANDB_API_KEY.*{key}='\\$.oc.env:WANDB_API_KEY.'"):
        check_overrides_for_secrets(parsed_overrides([f"+{key}=abcdefgh"]))
    with pytest.raises(InputError, match="HF_TOKEN"):
        check_overrides_for_secrets(parsed_overrides(["+model.hf.token=abcdefgh"]))


@pytest.mark.parametrize(
    "override",
    [
        "+logger.wandb.settings.api_key='${oc.env:WANDB_API_KEY}'",
        "+logger.x.uri='https://${oc.env:USER}:${oc.env:DB_PASSWORD}@host'",
        "+model.tokenizer.pad_token='<pad>'",
        "+model.tokenizer.eos_token=x",
        "+x.token=null",
        "+x.use_auth_token=true",
        "generation.max_new_tokens=100000000",
        "+model.student.revision=0123456789abcdef0123456789abcdef01234567",
        "data.train='hf://datasets/me/data@main/a.jsonl'",
        "data/template=alpaca",
        "+x.author=me",
        "optimizer.key=3",
        "data.fields.output=token",
        "x=task-specific-something-2-as-a-name",
        "x='a basic instruction-following: who bears'",
        "~x.token",
    ],
)
def test_what_is_no_secret_or_refers_to_one_is_taken(override):
    check_overrides_for_secrets(parsed_overrides([override]))


def test_secrets_are_hidden_by_key_and_by_value():
    cfg = {"hub": {"token": "x", "api_key": "y"}, "tokenizer": "t", "max_tokens": 3, "url": "https://a:b@c/d"}
    cfg |= {
        "pad_token": "<p>",
        "of": ["https://h/?token=x&page=1", "hf_" + "a1" * 12],
        "secret": "${oc.env:X}",
    }
    assert without_secrets(cfg) == {
        "hub": {"token": "hidden", "api_key": "hidden"},
        "tokenizer": "t",
        "max_tokens": 3,
        "url": "https://c/d",
        "pad_token": "<p>",
        "of": ["https://h/?token=hidden&page=1", "hidden"],
        "secret": "${oc.env:X}",
    }
    assert hide("amid train +x.api_key=abc seed=1") == "amid train +x.api_key=hidden seed=1"
    assert hide(f"said {SECRET}-of-the-environment") == "said hidden"
    assert not is_secret("PWD")
    key = config_hash({"url": "https://me:one@host/x"})
    assert key == config_hash({"url": "https://me:two@host/x"}) != config_hash({"url": "https://host/y"})


def test_a_secret_of_a_configuration_is_found_in_any_text():
    remember({"logger": {"own": {"password": "correct horse"}}})
    assert hide("cannot log in with 'correct horse'") == "cannot log in with 'hidden'"
    record = logging.LogRecord("a", logging.INFO, "", 0, "with %s", ("correct horse",), None)
    assert HidingFormatter().format(record).endswith(" a: with hidden")


def test_a_secret_is_not_recorded_with_a_run(tmp_path):
    from amid.experiment.record import write_config

    cfg = {"logger": {"comet": {"api_key": "abc123", "aws_secret_access_key": "abc123"}}, "model": {}}
    write_config(Plan(cfg, trains=False), tmp_path)
    assert "abc123" not in (tmp_path / "config.yaml").read_text()


def test_a_secret_of_the_environment_reaches_no_file_of_a_run(quick, tmp_path, monkeypatch, capsys):
    """Given by reference, it goes to what needs it, which may well say it in an error."""
    monkeypatch.setenv("SOME_VARIABLE", SECRET)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_logger.py").write_text(
        "import logging\nfrom lightning.pytorch.loggers import CSVLogger\n\n\nclass Refuse(CSVLogger):\n"
        "    def __init__(self, password):\n"
        "        super().__init__('.')\n"
        "        self.password = password\n\n"
        "    def log_metrics(self, metrics, step=None):\n"
        "        logging.getLogger('own').warning('with %s', self.password)\n"
        "        raise RuntimeError(f'{self.password} is wrong')\n"
    )
    logger = "+logger.own={_target_:own_logger.Refuse,password:'${oc.env:SOME_VARIABLE}'}"
    assert main(["train", *quick, logger]) == 1
    out, err = capsys.readouterr()
    assert "RuntimeError: hidden is wrong" in err
    runs = tmp_path / "runs"
    assert (next(runs.iterdir()) / "error.log").exists()
    assert "with hidden" in next(runs.glob("*/run.log")).read_text()
    assert "hidden is wrong" in json.loads(next(runs.glob("*/status.json")).read_text())["note"]
    assert SECRET not in out + err
    assert not files_with(runs, SECRET)


def test_a_secret_of_the_environment_is_in_no_name_of_a_run(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOME_VARIABLE", SECRET)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_callback.py").write_text(
        "from lightning.pytorch import Callback\n\n\nclass Quiet(Callback):\n"
        "    def __init__(self, password):\n"
        "        self.password = password\n"
    )
    callback = "+callbacks.own={_target_:own_callback.Quiet,password:'${oc.env:SOME_VARIABLE}'}"
    assert main(["train", *quick, callback]) == 0
    assert SECRET not in "".join(capsys.readouterr())
    assert "callbacks.own" in next((tmp_path / "runs").iterdir()).name
    assert not files_with(tmp_path / "runs", SECRET)


@pytest.mark.parametrize("text", ["a", "a_", "a.", "sk-", "eyJ-", "http://", "bearer "])
def test_long_text_takes_no_long_time(text):
    long = text * (50_000 // len(text))
    began = time.process_time()
    assert hide(long) == long
    assert time.process_time() - began < 10
