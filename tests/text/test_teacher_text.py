"""The teacher's text."""

import json
import shutil

import pytest
import torch
from small_models import CPU, FORK, TOKENS, data_of
from transformers import AutoModelForCausalLM

from amid.errors import InputError
from amid.generation.sampling import Sampling
from amid.models.source import ModelSource
from amid.text import TeacherText


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("amid.text.answer_store.PART_ROWS", 16)


@pytest.fixture
def asked(monkeypatch):
    """The prompts of each call of a model."""
    calls = []
    sampled = Sampling.token_ids

    def counted(self, model, tokens, prompts, *given, **further):
        calls.append(list(prompts))
        return sampled(self, model, tokens, prompts, *given, **further)

    monkeypatch.setattr(Sampling, "token_ids", counted)
    return calls


def teacher_text(data, saved, max_new_tokens=6, **given):
    source = given.pop("source", None) or ModelSource(path=str(saved))
    return TeacherText(max_new_tokens, **given).training_set(
        data.train_tokens, source, data.tokenizer, **CPU, cache_dir=data.cache_dir
    )


def same(a, b):
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_the_teacher_answers_every_prompt_once(saved, tmp_path, small_parts, asked, capsys):
    data = data_of(tmp_path, size=40)
    answered = teacher_text(data, saved)
    assert [len(prompts) for prompts in asked] == [16, 16, 8]
    prompts = [data.encoder.prompt(example) for example in data.train_examples]
    model = AutoModelForCausalLM.from_pretrained(saved)
    greedy = Sampling(6, temperature=0.0).token_ids(model, TOKENS, prompts, 0, vocabulary=len(TOKENS))
    for (ids, n_prompt, *_), prompt, (answer,) in zip(answered, prompts, greedy, strict=True):
        assert ids.tolist() == prompt + answer
        assert n_prompt == len(prompt)
    calls = len(asked)
    capsys.readouterr()
    assert same(teacher_text(data, saved, batch_size=3, seed=9), answered), "greedy, so the seed is idle"
    assert len(asked) == calls
    assert "The teacher's text is complete" in capsys.readouterr().out
    data.train_on(answered)
    assert sum(map(len, data.train_dataloader())) == 40


def test_what_makes_another_text(saved, tmp_path, asked):
    data = data_of(tmp_path, size=8)

    def folders():
        return len(list(data.cache_dir.glob("text-*/")))

    first = teacher_text(data, saved)
    shutil.copytree(saved, tmp_path / "copy")
    teacher_text(data, tmp_path / "copy")
    assert folders() == 1
    for n, settings_of_one in enumerate(
        (
            {"max_new_tokens": 5},
            {"temperature": 1.0},
            {"temperature": 1.0, "seed": 1},
            {"temperature": 1.0, "top_p": 0.9},
            {"temperature": 1.0, "top_k": 3},
            {"source": ModelSource(path=str(saved), dtype="bfloat16")},
        ),
        2,
    ):
        teacher_text(data, saved, **settings_of_one)
        assert folders() == n
    assert same(teacher_text(data, saved), first)
    teacher_text(data_of(tmp_path, size=9), saved)
    assert folders() == 8
    assert len(asked) == 8


def test_a_killed_writer_goes_on_and_damage_is_mended(saved, tmp_path, small_parts, asked, monkeypatch):
    whole = teacher_text(data_of(tmp_path / "a", size=40), saved, temperature=1.0)
    data = data_of(tmp_path / "b", size=40)
    asked.clear()
    sampled = Sampling.token_ids

    def killed(self, *given, **further):
        if len(asked) == 2:
            raise KeyboardInterrupt
        return sampled(self, *given, **further)

    monkeypatch.setattr(Sampling, "token_ids", killed)
    with pytest.raises(KeyboardInterrupt):
        teacher_text(data, saved, temperature=1.0)
    monkeypatch.setattr(Sampling, "token_ids", sampled)
    (folder,) = data.cache_dir.glob("text-*/")
    assert len(list(folder.glob("*.safetensors"))) == 2
    asked.clear()
    assert same(teacher_text(data, saved, temperature=1.0), whole)
    assert [len(prompts) for prompts in asked] == [8]
    for damage in (
        lambda: (folder / "answers-00001.safetensors").write_bytes(b"x" * 99),
        lambda: (folder / "answers-00001.safetensors").unlink(),
    ):
        damage()
        asked.clear()
        assert same(teacher_text(data, saved, temperature=1.0), whole)
        assert [len(prompts) for prompts in asked] == [16]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest)[:-9])
    asked.clear()
    assert same(teacher_text(data, saved, temperature=1.0), whole)
    assert len(asked) == 3


def one_of_two_writers(barrier, answers, saved, data):
    loaded = []
    load = ModelSource.load
    ModelSource.load = lambda self, tokens: loaded.append(1) or load(self, tokens)
    barrier.wait()
    answers.put((len(loaded), teacher_text(data, saved).ids.tolist(), len(loaded)))


def test_of_two_runs_at_once_one_writes(saved, tmp_path, small_parts):
    data = data_of(tmp_path, size=40)
    assert data.train_tokens.ends[-1]
    barrier, answers = FORK.Barrier(2), FORK.Queue()
    processes = [
        FORK.Process(target=one_of_two_writers, args=(barrier, answers, saved, data)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    got = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(loaded for _, _, loaded in got) == [0, 1]
    assert got[0][1] == got[1][1]


def test_a_teacher_of_random_weights_is_refused(tmp_path):
    source = ModelSource(architecture={"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2})
    with pytest.raises(InputError, match=r"random weights.*use text=data"):
        teacher_text(data_of(tmp_path), None, source=source)
