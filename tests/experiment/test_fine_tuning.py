"""The fine-tuning of the models before a run."""

import pytest
from command_line import run

from amid import results


def prepared_names(folder):
    return sorted(path.parent.name for path in folder.glob("*/result.json"))


@pytest.mark.slow
def test_neither_sampling_nor_speed_makes_the_models_anew(quick, prepared, finished):
    before = prepared_names(prepared)
    further = ["generation.seeds=[3]", "data.valid_prompts=2", "data.tokens_per_batch=99", "threads=1"]
    base = [o for o in quick if not o.startswith(("generation.seeds", "data.valid_prompts"))]
    assert run("train", *base, *further, "trainer.log_every_n_steps=1", "seed=5") == 0
    assert prepared_names(prepared) == before


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        (
            ["teacher.max_steps=3", "teacher.max_epochs=-1", "student.max_steps=-1", "student.max_epochs=2"],
            ["3 steps (1.5 epochs of 2); max_steps", "4 steps (2 epochs of 2); max_epochs"],
        ),
        (
            [
                *("teacher.max_steps=-1", "teacher.max_epochs=3", "teacher.limit_train_batches=1"),
                *("student.max_steps=9", "student.max_epochs=1", "student.limit_train_batches=0.5"),
            ],
            ["3 steps (3 epochs of 1); max_epochs", "1 step (1 epoch of 1); max_epochs"],
        ),
    ],
)
def test_a_run_says_what_it_cuts_and_how_long_its_models_are_fine_tuned(
    quick, tmp_path, jsonl, capsys, settings, lengths
):
    rows = [{"instruction": "say " * (40 if i % 4 else 2), "output": "a word"} for i in range(44)]
    train, valid = jsonl(*rows), jsonl(rows[0], name="valid.jsonl")
    of_sets = ("data.train", "data.valid", "data.test", "model.", "prepared_dir")
    own = [o for o in quick if not o.startswith(of_sets)]
    own += ["data=jsonl", "data/template=builtin", f"data.train={train}", f"data.valid={valid}"]
    own += ["data.max_prompt_length=30", "data.max_length=50", "data.tokens_per_batch=400"]
    own += [f"model.{setting.replace('.', '.sft.trainer.', 1)}" for setting in settings]
    assert run("train", *own, f"prepared_dir={tmp_path / 'prepared'}") == 0
    lines = capsys.readouterr().out.splitlines()
    (cut,) = [line for line in lines if line.startswith("Cut to")]
    assert cut == "Cut to data.max_prompt_length=30: 33 of 44 prompts of data.train"
    told = [line for line in lines if line.startswith("Fine-tuning")]
    for line, role, expected in zip(told, ("teacher", "student"), lengths, strict=True):
        (folder,) = [
            file.parent
            for file in (tmp_path / "prepared").glob("sft-*/result.json")
            if results.load(file).labels["role"] == role
        ]
        length, key = expected.split("; ")
        expected = f"{folder}: {length}; model.{role}.sft.trainer.{key} sets this"
        assert line == f"Fine-tuning the {role} first, once, in {expected}"
        assert results.load(folder).training["steps"] == int(length.split()[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=0", "model.student.sft.batch_size=0 must be a whole number from 1"),
        (
            "trainer.max_epochs=null",
            "model.student.sft.trainer.max_epochs=null must be a whole number from 0",
        ),
        (
            "trainer.max_steps=-1",
            "model.student.sft.trainer.max_epochs=-1 and model.student.sft.trainer.max_steps=-1",
        ),
    ],
)
def test_a_fine_tuning_that_cannot_be_is_refused_before_any(quick, tmp_path, capsys, override, message):
    new = f"prepared_dir={tmp_path / 'new'}"
    assert run("train", *quick, new, f"model.student.sft.{override}") == 1
    out, err = capsys.readouterr()
    assert message in err
    assert "Fine-tuning" not in out


def test_a_preparation_that_diverges_is_an_error_each_time(quick, tmp_path, capsys):
    arguments = [*quick, f"prepared_dir={tmp_path / 'bad'}", "model.teacher.sft.optimizer.lr=1e300"]
    for _ in range(2):
        assert run("train", *arguments) == 1
        assert "diverged at step 2; lower model.teacher.sft.optimizer.lr" in capsys.readouterr().err


def test_a_student_that_takes_no_packed_rows_is_refused_before_its_teacher_is_fine_tuned(
    quick, tmp_path, capsys
):
    opt = "{model_type: opt, hidden_size: 16, ffn_dim: 32, num_hidden_layers: 1, num_attention_heads: 2}"
    student = ["~model.student.architecture", f"+model.student.architecture={opt}"]
    given = [*student, "data.packing=true", f"prepared_dir={tmp_path / 'none'}"]
    assert run("train", *quick, *given) == 1
    out, err = capsys.readouterr()
    assert "OPTForCausalLM does not keep packed rows apart" in err
    assert "Fine-tuning" not in out
