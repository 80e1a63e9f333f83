import io
import json
import os
import struct
import time

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from amid.cli.main import main
from amid.config.compose import without_wandb
from amid.tracking.wandb_runs import going_on, sync_command
from amid.training.module import DistillationModule, Diverged


def finished_records(run_folder):
    """All that a run has written: W&B's own process may write the end of it after the run's."""
    for _ in range(100):
        found = records(run_folder)
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.2)
    raise AssertionError(f"{run_folder} has no record of its end after 20 s")


def records(run_folder):
    """What an offline run has written, in W&B's transaction log: blocks of 32 KiB with parts of records."""
    (file,) = run_folder.glob("*.wandb")
    data, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            break  # W&B's process is still writing it
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(whole))
            whole = b""
    return found


class Logged:
    """The last state of an offline run."""

    def __init__(self, run_folder):
        self.config, self.summary, self.metrics, self.tags = {}, {}, {}, []
        self.exit_code, self.group, self.tables = None, None, []
        for record in finished_records(run_folder):
            if record.HasField("run"):
                self.tags, self.group = list(record.run.tags), record.run.run_group
                self._update(self.config, record.run.config.update)
            self._update(self.config, record.config.update)
            self._update(self.summary, record.summary.update)
            if record.HasField("metric") and record.metric.name:
                self.metrics[record.metric.name] = record.metric
            if record.HasField("exit"):
                self.exit_code = record.exit.exit_code
        self.tables = list(run_folder.rglob("*.table.json"))

    @staticmethod
    def _update(into, items):
        for item in items:
            into[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def test_a_run_has_columns_tags_summaries_samples_and_no_secret(
    offline, small_run, tmp_path, monkeypatch, capfd
):
    secret = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("HF_TOKEN", "hf_" + secret)
    assert main(["train", *small_run, "logger=wandb", "logger.wandb.offline=true"]) == 0
    out = capfd.readouterr()
    folder = only(tmp_path, "runs/*/wandb/offline-run-*")
    assert (out.out + out.err).count("wandb sync") == 1
    assert f"wandb sync {folder}" in out.out
    assert "anonymous" not in out.err  # W&B warns of a setting that Lightning gives it
    logged = Logged(folder)
    assert logged.group == "runs"
    assert set(logged.tags) == {"runs", "amid", "alpha_beta", "done"}
    columns = ("alpha", "lam", "divergence", "order", "method", "text", "seed")
    assert [logged.config[name] for name in columns] == [-5.0, 0.1, "alpha_beta", "pr", "amid", "data", 1]
    loss, score = logged.metrics["train/loss"], logged.metrics["valid/rouge_l"]
    assert (loss.summary.min, loss.summary.last, loss.summary.max) == (True, True, False)
    assert (score.summary.max, score.summary.last, score.summary.min) == (True, True, False)
    of_answers = [f"{of}/{m}" for of in ("test/open", "average") for m in ("rouge_l", "self_bleu")]
    for name in (
        "valid/kl_pq",
        "valid/perplexity",
        "valid/same_top",
        *of_answers,
        "average/corpus_self_bleu",
    ):
        directions = logged.metrics[name].summary
        higher_is_better = name.endswith(("rouge_l", "same_top"))
        assert (directions.max, directions.min) == (higher_is_better, not higher_is_better), name
    result = json.loads(only(tmp_path, "runs/*/result.json").read_text())
    means = [result["scores"][name]["rouge_l"]["mean"] for name in ("open", "closed")]
    assert logged.summary["average/rouge_l"] == pytest.approx(sum(means) / 2)
    assert logged.summary["test/open/rouge_l"] == pytest.approx(means[0])
    assert logged.summary["state"] == "done"
    assert logged.exit_code == 0
    table = json.loads(logged.tables[0].read_text())
    assert table["columns"][:2] == ["set", "instruction"]
    assert {row[0] for row in table["data"]} == {"open", "closed"}
    assert len(table["data"]) == 8
    for file in folder.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()


def test_a_diverged_run_and_a_failed_one_can_be_told(offline, small_run, tmp_path, monkeypatch):
    def diverge(self, batches, index):
        raise Diverged(1, "loss nan")

    small_run += ["model.teacher.sft=null", "model.student.sft=null"]
    monkeypatch.setattr(DistillationModule, "training_step", diverge)
    assert main(["train", *small_run, "logger=wandb", f"output_dir={tmp_path / 'diverged'}"]) == 0
    logged = Logged(only(tmp_path, "diverged/*/wandb/offline-run-*"))
    assert "diverged" in logged.tags
    assert (logged.summary["state"], logged.summary["diverged_step"], logged.exit_code) == ("diverged", 1, 0)

    def fail(self, batches, index):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(DistillationModule, "training_step", fail)
    assert main(["train", *small_run, "logger=wandb", f"output_dir={tmp_path / 'failed'}"]) == 1
    logged = Logged(only(tmp_path, "failed/*/wandb/offline-run-*"))
    assert "failed" in logged.tags
    assert (logged.summary["state"], logged.exit_code) == ("failed", 1)
    assert wandb.run is None


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_same_one_whose_state_is_its_own(
    offline, small_run, tmp_path, monkeypatch, capfd
):
    small_run += ["model.teacher.sft=null", "model.student.sft=null", "logger=wandb"]
    step = DistillationModule.training_step

    def interrupted(self, batches, index):
        if self.trainer.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batches, index)

    with monkeypatch.context() as patched:
        patched.setattr(DistillationModule, "training_step", interrupted)
        assert main(["train", *small_run]) == 130
    first = only(tmp_path, "runs/*/wandb/offline-run-*")
    logged = Logged(first)
    assert "interrupted" in logged.tags
    assert (logged.summary["state"], logged.exit_code) == ("interrupted", 255)
    time.sleep(1.0)  # W&B names the folders by the second
    capfd.readouterr()
    assert main(["train", *small_run]) == 0
    assert "wandb sync" in capfd.readouterr().out, "without a key a run is logged offline by itself"
    assert only(tmp_path, "runs/*/metrics.csv")
    (second,) = set(tmp_path.glob("runs/*/wandb/offline-run-*")) - {first}
    assert second.name.rpartition("-")[2] == first.name.rpartition("-")[2]
    logged = Logged(second)
    assert {"done", "interrupted"} & set(logged.tags) == {"done"}
    again = [*small_run, f"output_dir={tmp_path / 'another'}"]
    assert main(["train", *again]) == 0
    another = only(tmp_path, "another/*/wandb/offline-run-*")
    assert another.name.rpartition("-")[2] != first.name.rpartition("-")[2]


def test_a_run_takes_the_id_of_its_latest_part_unless_one_is_said(tmp_path):
    loggers = {"csv": {"_target_": "a.CSVLogger"}, "wandb": {"_target_": "a.WandbLogger", "id": None}}
    assert going_on(loggers, tmp_path) == loggers
    for name in ("offline-run-20260102_000000-new-1", "run-20260101_000000-old1"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    taken = going_on(loggers, tmp_path)
    assert (taken["csv"], taken["wandb"]["id"]) == (loggers["csv"], "new-1")
    said = {"wandb": {"_target_": "a.WandbLogger", "id": "mine"}}
    assert going_on(said, tmp_path) == said


def test_one_command_sends_what_is_not_sent(tmp_path):
    runs = [tmp_path / "my sweep" / name for name in ("a", "b", "c")]
    assert sync_command(runs) is None
    for run in runs[:2]:
        (run / "wandb" / "offline-run-1").mkdir(parents=True)
        (run / "wandb" / "offline-run-1" / "run-1.wandb").write_bytes(bytes(100))
    assert sync_command(runs) == f"wandb sync '{tmp_path / 'my sweep'}'/*/wandb/offline-run-*"
    (runs[0] / "wandb" / "offline-run-1" / "run-1.wandb.synced").write_text("")
    assert sync_command(runs) == f"wandb sync '{runs[1] / 'wandb' / 'offline-run-1'}'"


def test_a_log_without_a_record_at_which_sending_would_stop_is_left_out(tmp_path):
    logs = [tmp_path / name / "wandb" / "offline-run-1" for name in ("a", "b", "c")]
    for log, size in zip(logs, (100, 7, 100), strict=True):
        log.mkdir(parents=True)
        (log / "run-1.wandb").write_bytes(bytes(size))
        os.utime(log / "run-1.wandb", (0, 0))
    directories = [tmp_path / name for name in ("a", "b", "c")]
    assert sync_command(directories) == f"wandb sync {logs[0]} {logs[2]}"
    assert sync_command(directories[1:2]) is None
    (logs[1] / "run-1.wandb").touch()  # W&B may be writing it
    assert sync_command(directories[1:2]) == f"wandb sync {logs[1]}"


def test_without_account_or_network_wandb_is_offline(offline, tmp_path, monkeypatch):
    assert without_wandb()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert without_wandb()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO())
    assert not without_wandb()
    monkeypatch.delenv("WANDB_API_KEY")
    assert without_wandb()
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password x")
    assert not without_wandb()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert without_wandb()
