import csv
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple

import lightning as L
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from amid import results
from amid.cli.main import main
from amid.data import InstructionData
from amid.data.builtin import TEMPLATE, TEMPLATE_WITH_INPUT, corpus, tokenizer
from amid.data.templates import Template
from amid.data.tokens import counted_positions
from amid.errors import InputError
from amid.measures import VALIDATION
from amid.models.source import ModelSource
from amid.reporting.table import build_table
from amid.teacher import state_store as states
from amid.teacher.signals import CachedTeacher, LiveTeacher
from amid.teacher.state_codes import kl
from amid.teacher.supply import TeacherSupply

FORK = multiprocessing.get_context("fork")
"""Processes that start at once, with the imports of this one."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a small teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=1024, initializer_range=0.3, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    return InstructionData(
        tokenizer=tokenizer(),
        train=corpus("train", size=60),
        valid=corpus("valid", size=9),
        test={},
        template=Template(TEMPLATE, TEMPLATE_WITH_INPUT),
        max_prompt_length=32,
        max_length=60,
        batch_size=8,
        micro_batch_size=3,
        seed=1,
        cache_dir=str(tmp_path / "cache"),
    )


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(states, "SHARD_BYTES", 100 * 16 * 4)  # a hundred positions


def supplied(
    path, data, mode="cached", passes=1.0, precision="32-true", multirun=False, states="exact", **source
):
    supply = TeacherSupply(mode, multirun, str(data.cache_dir), tokens_per_forward=200, states=states)
    return supply.teacher(
        ModelSource(path=str(path), **source),
        data.tokenizer,
        [data.train_tokens, data.valid_tokens],
        L.Fabric(accelerator="cpu", devices=1, precision=precision),
        precision,
        passes,
    )


def batches(data):
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for step in loader:
            yield from data.micro_batches(step)


def caches(data):
    return sorted(data.cache_dir.glob("teacher-*/"))


@pytest.fixture
def loads(monkeypatch):
    """Counts the models that are loaded."""
    counted = []
    load = ModelSource.load
    monkeypatch.setattr(
        ModelSource, "load", lambda self, tok, **of: counted.append(self) or load(self, tok, **of)
    )
    return counted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_states_are_the_live_ones_on_every_batch(saved, data, dtype, small_shards, loads):
    live = supplied(saved, data, "live", dtype=dtype)
    supplied(saved, data, dtype=dtype)
    assert len(loads) == 2
    cached = supplied(saved, data, dtype=dtype)
    assert len(loads) == 2
    assert len(list(data.cache_dir.glob("teacher-*/tokens-*/*.safetensors"))) > 4
    assert cached.vocabulary == live.vocabulary == 1024
    rtol = {"float32": 1e-5, "bfloat16": 0.03}[dtype]
    for batch in batches(data):
        positions = counted_positions(batch)
        mine, theirs = cached.hidden(batch, positions), live.hidden(batch, positions)
        assert mine.dtype == theirs.dtype == getattr(torch, dtype)
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol)
        torch.testing.assert_close(
            cached.head.logits(mine), live.logits(batch, positions), rtol=rtol, atol=10 * rtol
        )


def test_lossy_states_are_another_cache_that_says_what_it_loses(saved, data, small_shards, loads, capsys):
    exact = supplied(saved, data)
    assert exact.lost == {}
    lossy = supplied(saved, data, states="int8")
    assert (len(loads), len(caches(data))) == (2, 2)
    said = capsys.readouterr().out
    assert "positions × (16 + 4) bytes = " in said
    assert f"The teacher's states are {lossy.size}" in said
    assert "lossy: 20 bytes a token, KL " in lossy.size
    assert lossy.lost["teacher_states_bytes"] == 20
    sums, tokens = 0.0, 0
    for batch in batches(data):
        positions = counted_positions(batch)
        mine, theirs = lossy.hidden(batch, positions), exact.hidden(batch, positions)
        scale = theirs.abs().amax(dim=1, keepdim=True) / 127
        assert ((mine - theirs).abs() <= scale * (0.5 + 1e-4)).all()
        assert not torch.equal(mine, theirs)
        sums += kl(exact.head, theirs, mine)
        tokens += len(mine)
    assert lossy.lost["teacher_states_kl"] == pytest.approx(sums / tokens, rel=0.5), "over one in 16"
    again = supplied(saved, data, states="int8")
    assert again.lost == lossy.lost
    assert len(loads) == 2
    with pytest.raises(InputError, match=r"teacher\.states=int8 .*use teacher=cached"):
        TeacherSupply("auto", states="int8")
    with pytest.raises(InputError, match=r"teacher\.states=fp8 must be exact or int8"):
        TeacherSupply("cached", states="fp8")


def test_autocast_as_in_training(saved, data):
    cached = supplied(saved, data, precision="bf16-mixed")
    live = supplied(saved, data, "live")
    batch = next(batches(data))
    positions = counted_positions(batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            cached.hidden(batch, positions), live.hidden(batch, positions), rtol=0.03, atol=0.03
        )
    plain = live.hidden(batch, positions)
    assert not torch.allclose(cached.hidden(batch, positions), plain, rtol=1e-4, atol=1e-4)


def test_positions_that_are_not_stored(saved, data):
    cached = supplied(saved, data)
    batch = next(batches(data))
    with pytest.raises(RuntimeError, match="stored states for"):
        cached.hidden(batch, batch["attention_mask"].bool())


def test_what_makes_another_cache(saved, data, tmp_path, loads):
    def made():
        before = len(loads)
        return lambda: len(loads) > before

    supplied(saved, data)
    again = made()
    shutil.copytree(saved, tmp_path / "copy")
    assert isinstance(supplied(tmp_path / "copy", data), CachedTeacher)
    assert not again(), "the same weights elsewhere"
    for changes in ({"dtype": "bfloat16"}, {"layers": [1]}, {"precision": "bf16-mixed"}):
        again = made()
        supplied(saved, data, **changes)
        assert again(), changes
    changed = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    changed.lm_head.weight.data[0, 0] += 1
    changed.save_pretrained(tmp_path / "copy")
    again = made()
    other = supplied(tmp_path / "copy", data)
    assert again(), "other weights"
    assert torch.equal(other.head.weight, changed.lm_head.weight)
    assert len(caches(data)) == 5
    again = made()
    data.train_tokens.ids[3] += 1
    del data.train_tokens.__dict__["fingerprint"]
    supplied(saved, data)
    assert again(), "other tokens"
    assert len(caches(data)) == 5, "the states of the validation set are shared"


@pytest.mark.parametrize("name", ["head.safetensors", "teacher.json", "tokens-*/states-00001.safetensors"])
def test_damage_is_found_and_mended(saved, data, small_shards, loads, name):
    expected = supplied(saved, data)
    batch = next(batches(data))
    positions = counted_positions(batch)
    file = sorted(caches(data)[0].glob(name))[0]
    content = bytearray(file.read_bytes())
    content[-5:] = b"damag"
    file.write_bytes(content)
    mended = supplied(saved, data)
    assert len(loads) == 2
    assert torch.equal(mended.hidden(batch, positions), expected.hidden(batch, positions))
    assert torch.equal(mended.head.weight, expected.head.weight)
    supplied(saved, data)
    assert len(loads) == 2


def killed_after(n, saved, data):
    hidden = LiveTeacher.hidden
    calls = []

    def deadly(self, batch, positions):
        calls.append(0)
        if len(calls) > n:
            os.kill(os.getpid(), signal.SIGKILL)
        return hidden(self, batch, positions)

    LiveTeacher.hidden = deadly
    supplied(saved, data)


def test_a_killed_writer_is_gone_on_from(saved, data, small_shards, monkeypatch):
    process = FORK.Process(target=killed_after, args=(9, saved, data))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    shards = {f: f.stat().st_mtime_ns for f in data.cache_dir.glob("teacher-*/tokens-*/*.safetensors")}
    assert shards
    rows = []
    hidden = LiveTeacher.hidden

    def watched(self, batch, positions):
        rows.append(len(batch["rows"]))
        return hidden(self, batch, positions)

    monkeypatch.setattr(LiveTeacher, "hidden", watched)
    cached = supplied(saved, data)
    assert sum(rows) < 60 + 9
    assert all(file.stat().st_mtime_ns == time for file, time in shards.items())
    shutil.rmtree(data.cache_dir / caches(data)[0])
    whole = supplied(saved, data)
    for batch in batches(data):
        positions = counted_positions(batch)
        assert torch.equal(cached.hidden(batch, positions), whole.hidden(batch, positions))


def one_of_two(barrier, answers, saved, data):
    load = ModelSource.load
    loaded = []
    ModelSource.load = lambda self, tok, **of: loaded.append(0) or load(self, tok, **of)
    barrier.wait()
    teacher = supplied(saved, data)
    batch = next(batches(data))
    answers.put((len(loaded), float(teacher.hidden(batch, counted_positions(batch)).double().sum())))


def test_two_runs_at_once_share_the_work_of_one(saved, data, small_shards):
    data.train_tokens, data.valid_tokens  # noqa: B018
    barrier, answers = FORK.Barrier(2), FORK.Queue()
    processes = [FORK.Process(target=one_of_two, args=(barrier, answers, saved, data)) for _ in range(2)]
    for process in processes:
        process.start()
    got = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(loaded for loaded, _ in got) == [0, 1]
    assert got[0][1] == got[1][1]


def test_when_auto_takes_the_cache(saved, data):
    assert isinstance(supplied(saved, data, "auto", passes=1.9), LiveTeacher)
    assert not caches(data)
    assert isinstance(supplied(saved, data, "auto", passes=2.0), CachedTeacher)
    assert isinstance(supplied(saved, data, "auto", passes=0.1), CachedTeacher), "it is written already"
    assert isinstance(supplied(saved, data, "auto", passes=0.1, layers=[0]), LiveTeacher)
    assert isinstance(supplied(saved, data, "auto", passes=0.1, layers=[0], multirun=True), CachedTeacher)
    assert isinstance(supplied(saved, data, "live"), LiveTeacher)


def test_the_size_is_told_and_compared_with_the_free_disk_space(saved, data, monkeypatch, capsys):
    positions = sum(data.train_tokens.counted) + sum(data.valid_tokens.counted)
    size = f"{positions:,} positions × 16 × 4 bytes = {positions * 64 / 1e6:.3g} MB"
    head = 1024 * 16 * 4

    def free(n):
        usage = namedtuple("usage", "free")(n)
        monkeypatch.setattr("amid.teacher.cache.shutil.disk_usage", lambda path: usage)

    free(positions * 64 + head - 1)
    with pytest.raises(InputError, match="teacher=live") as error:
        supplied(saved, data)
    assert size in str(error.value)
    assert f"{(positions * 64 + head - 1) / 1e6:.3g} MB are free" in str(error.value)
    free(2 * (positions * 64 + head) - 1)
    assert isinstance(supplied(saved, data, "auto", passes=2), LiveTeacher), "more than half"
    assert "The teacher runs live: " in capsys.readouterr().out
    assert not list(data.cache_dir.glob("teacher-*/*"))
    assert isinstance(supplied(saved, data), CachedTeacher)
    assert f"Writing the teacher's states, {size}, in {caches(data)[0]}" in capsys.readouterr().out


def test_a_teacher_that_cannot_be_cached_runs_live_or_is_refused(saved, data, monkeypatch, capsys):
    source = {"architecture": {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}}
    random = ModelSource(**source)
    given = (random, data.tokenizer, [data.train_tokens], L.Fabric(accelerator="cpu"), "32-true", 2.0)
    with pytest.raises(InputError, match=r"random weights.*use teacher=live"):
        TeacherSupply("cached", False, str(data.cache_dir)).teacher(*given)
    assert isinstance(TeacherSupply("auto", False, str(data.cache_dir)).teacher(*given), LiveTeacher)
    monkeypatch.setattr(LiveTeacher, "head", None)
    with pytest.raises(InputError, match=r"head of LlamaForCausalLM cannot be split off.*use teacher=live"):
        supplied(saved, data)
    assert isinstance(supplied(saved, data, "auto", passes=2.0), LiveTeacher)
    assert "The teacher runs live: the head of" in capsys.readouterr().out


def test_settings_out_of_range():
    with pytest.raises(InputError, match=r"teacher\.mode=dead must be live, cached or auto"):
        TeacherSupply("dead")
    with pytest.raises(InputError, match="tokens_per_forward=0"):
        TeacherSupply(tokens_per_forward=0)


def test_the_commit_names_a_model_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "amid.models.location.hf_hub_download", lambda *_, **__: str(tmp_path / "abc" / "config.json")
    )
    assert ModelSource(path="some/model").fingerprint() == {
        "weights": "abc",
        "layers": None,
        "dtype": "float32",
    }


def curve(directory):
    with (directory / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_runs_from_the_cache_are_those_of_the_live_teacher(small_run, tmp_path, loads, capsys):
    common = [*small_run, "trainer.log_every_n_steps=1", "divergence=kl"]
    run = ["train", "-m", *common, "assistant.alpha=-5,1"]
    assert main([*run, "teacher=live", f"output_dir={tmp_path / 'live'}"]) == 0
    (prepared,) = [
        str(file.parent)
        for file in (tmp_path / "prepared").glob("sft-*/result.json")
        if results.load(file).labels["role"] == "teacher"
    ]
    loads.clear()
    assert main([*run, f"output_dir={tmp_path / 'auto'}"]) == 0
    assert len([source for source in loads if str(source.path).startswith(prepared)]) == 1
    for cached in sorted((tmp_path / "auto").glob("*alpha*")):
        live = tmp_path / "live" / cached.name
        for mine, theirs in zip(curve(cached), curve(live), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-9)
        assert results.load(cached).scores == results.load(live).scores
        assert results.load(cached).config_hash == results.load(live).config_hash
    capsys.readouterr()
    loads.clear()
    assert main(["cache", *small_run]) == 0
    assert "states are complete in" in capsys.readouterr().out
    assert not loads


@pytest.mark.slow
def test_a_run_with_lossy_states_is_another_run_and_says_so(quick, tmp_path, capsys):
    run = ["train", *quick, "model.student.sft=null", "teacher=cached"]
    assert main([*run, "teacher.states=int8"]) == 0
    assert main(run) == 0
    by_states = {
        of.labels.get("teacher_states"): of for of in map(results.load, (tmp_path / "runs").iterdir())
    }
    ours, theirs = by_states["int8"], by_states[None]
    assert ours.config_hash != theirs.config_hash
    assert ours.training["teacher_states_bytes"] == 128 + 4
    assert 0 < ours.training["teacher_states_kl"] < 1e-2
    assert "teacher_states_kl" not in theirs.training
    table = build_table([ours, theirs])
    assert "teacher_states" in table.varying
    assert "All rows share model tiny, data builtin, states int8" in build_table([ours]).caption
    capsys.readouterr()
    assert main(["train", *quick, "teacher.states=int8"]) == 1
    assert "teacher.states=int8 is for stored states alone" in capsys.readouterr().err


def test_the_cache_command_prepares_writes_and_tells(small_run, tmp_path, capsys):
    assert main(["cache", *small_run]) == 0
    out = capsys.readouterr().out
    assert "Fine-tuning the teacher first" in out
    assert "the student" not in out
    assert f"in {tmp_path / 'cache'}/teacher-" in out
    assert "tokens/s" in out
    assert not (tmp_path / "runs").exists()
    assert main(["cache", *small_run, "teacher=live"]) == 1
    assert "leave out teacher=" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["sft", "seqkd"])
@pytest.mark.slow
def test_a_run_without_a_teacher_is_compared_with_a_stored_one(quick, tmp_path, capsys, method):
    dropout = "+model.student.architecture.attention_dropout=0.2"
    run = ["train", *quick, f"method={method}", "model.student.sft=null", dropout]
    assert main([*run, f"output_dir={tmp_path / 'alone'}"]) == 0
    assert main([*run, f"output_dir={tmp_path / 'compared'}", "teacher=cached"]) == 0
    (one,), (other,) = (
        [results.load(path) for path in (tmp_path / name).iterdir()] for name in ("alone", "compared")
    )
    assert one.config_hash == other.config_hash
    added = {name: value for name, value in other.training.items() if name not in one.training}
    with_teacher = [name for name, measure in VALIDATION.items() if measure.taken == "with a teacher"]
    assert added.keys() == {f"valid_{name}{when}" for name in with_teacher for when in ("", "_before")}
    assert added["valid_kl_pq"] > 0
    assert 0 <= added["valid_same_top"] < 1
    for name in ("valid_loss", "valid_cross_entropy", "valid_rouge_l", "steps"):
        assert one.training[name] == other.training[name]
    assert one.scores == other.scores
    capsys.readouterr()
    assert main([*run, f"output_dir={tmp_path / 'alone'}", "teacher=cached"]) == 0
    assert "finished already, without a teacher to compare with" in capsys.readouterr().out


def test_a_comparison_that_cannot_be_is_refused_before_anything(quick, tmp_path, capsys):
    new = f"prepared_dir={tmp_path / 'new'}"
    wrong = ["teacher=cached", "teacher.tokens_per_forward=0"]
    assert main(["train", *quick, "method=sft", new, *wrong]) == 1
    assert "teacher.tokens_per_forward=0 must be a whole number from 1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    random = ["method=sft", "model.teacher.sft=null", "teacher=cached"]
    assert main(["train", *quick, *random, f"output_dir={tmp_path / 'random'}"]) == 0
    (path,) = (tmp_path / "random").iterdir()
    assert "valid_kl_pq" not in results.load(path).training


def test_the_teacher_is_none_away_from_itself(quick, tmp_path):
    assert main(["train", *quick, "method=teacher", "teacher=cached"]) == 0
    (path,) = (tmp_path / "runs").iterdir()
    training = results.load(path).training
    assert training["valid_kl_pq"] == pytest.approx(0, abs=1e-6)
    assert training["valid_same_top"] == 1


def test_rows_as_long_as_the_positions_of_a_teacher():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=20)
    teacher = LiveTeacher(GPT2LMHeadModel(config))
    ids = torch.randint(50, (2, 20))
    positions = torch.ones_like(ids, dtype=torch.bool)
    states = teacher.hidden({"input_ids": ids}, positions)
    torch.testing.assert_close(states, teacher.model.transformer(ids).last_hidden_state[positions])
