"""Each task of conf/data, from its own files to its scores.

Small files of the same layout (names, columns, nesting), written here, replace the hub's files.
"""

import csv
import json
import re

import pyarrow as pa
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pyarrow import parquet
from small_models import network

from amid import results
from amid.cli.main import main
from amid.config.compose import register_resolvers
from amid.config.folders import CONF
from amid.data import Example
from amid.data.builtin import tokenizer
from amid.reporting import build_table

register_resolvers()

DIALOGUES = [
    (f'Ann: Did you see {n} dogs?\r\nBob: "No", only {n + 1}.', f"Bob saw {n + 1} dogs.") for n in range(6)
]
SUMMARIES = [{"id": str(i), "summary": s, "dialogue": d} for i, (d, s) in enumerate(DIALOGUES)]
SPOKEN = [
    {"id": f"x_{i}", "dialogue": d, "summary": s, "topic": "dogs"} for i, (d, s) in enumerate(DIALOGUES)
]
SENTENCES = [
    {"translation": {"de": f"Der Hund hat {n} Flöhe.", "en": f"The dog has {n} fleas."}} for n in range(6)
]
PROBLEMS = [
    {
        "question": f"Ann has {n} dogs and Bob 1,000. How many have they?",
        "answer": f"They have {n}+1000=<<{n}+1000={n + 1000}>>{n + 1000} dogs.\n#### 1,{n:03}",
    }
    for n in range(502)
]

FILES = {
    **{f"knkarthick/samsum/{split}.csv": SUMMARIES for split in ("train", "validation", "test")},
    **{f"knkarthick/dialogsum/{split}.csv": SPOKEN for split in ("train", "validation", "test")},
    **{
        f"Helsinki-NLP/opus-100/de-en/{split}-00000-of-00001.parquet": SENTENCES
        for split in ("train", "validation", "test")
    },
    **{f"openai/gsm8k/main/{split}-00000-of-00001.parquet": PROBLEMS for split in ("train", "test")},
}

TASKS = {
    "samsum": ("rouge_l", {"rouge_l", "rouge_1", "rouge_2"}),
    "dialogsum": ("rouge_l", {"rouge_l", "rouge_1", "rouge_2"}),
    "opus100": ("bleu", {"bleu", "chrf"}),
    "gsm8k": ("exact_answer", {"exact_answer"}),
}
"""The metric that chooses the checkpoint, and all."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-ins, in place of the hub."""

    def path(place):
        name = place.path
        file = tmp_path / "hub" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".csv":
            with file.open("w", encoding="utf-8", newline="") as out:
                writer = csv.DictWriter(out, list(FILES[name][0]))
                writer.writeheader()
                writer.writerows(FILES[name])
        else:
            parquet.write_table(pa.Table.from_pylist(FILES[name]), file)
        return file

    monkeypatch.setattr("amid.data.sets.downloaded", path)


def data_of(task, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"data={task}", *overrides])
    return instantiate(cfg.data, tokenizer=tokenizer())


def test_samsum_and_dialogsum(hub):
    for task in ("samsum", "dialogsum"):
        data = data_of(task)
        expected = [Example(dialogue, "", (summary,)) for dialogue, summary in DIALOGUES]
        assert data.train_examples == data.valid_examples == data.test_examples[task] == expected


def test_opus100_in_both_directions(hub):
    data = data_of("opus100")
    first = Example(
        "Translate this from German to English.", "Der Hund hat 0 Flöhe.", ("The dog has 0 fleas.",)
    )
    assert data.train_examples[0] == data.valid_examples[0] == data.test_examples["opus100"][0] == first
    back = data_of(
        "opus100",
        "data.test.opus100.source=en",
        "data.test.opus100.target=de",
        "data.train.size=2",
    )
    assert len(back.train_examples) == 2
    assert back.valid_examples[1] == Example(
        "Translate this from English to German.", "The dog has 1 fleas.", ("Der Hund hat 1 Flöhe.",)
    )


def test_gsm8k_is_split_without_overlap(hub):
    data = data_of("gsm8k")
    assert len(data.valid_examples) == 500
    assert [e.instruction for e in data.train_examples] == [p["question"] for p in PROBLEMS[500:]]
    assert data.test_examples["gsm8k"][0].outputs == (PROBLEMS[0]["answer"],)


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_gsm8k_of_a_local_copy(tmp_path):
    """A copy of the hub's files needs one override, the JSON Lines of its authors three."""
    copy = tmp_path / "openai" / "gsm8k" / "main"
    written(copy / "train-00000-of-00001.parquet", PROBLEMS)
    written(copy / "test-00000-of-00001.parquet", PROBLEMS[:3])
    train = written(tmp_path / "train.jsonl", PROBLEMS)
    test = written(tmp_path / "test.jsonl", PROBLEMS[:3])
    of_authors = [f"data.train='{train}[500:]'", f"data.valid='{train}[:500]'", f"data.test.gsm8k={test}"]
    for overrides in ([f"hub={tmp_path}"], of_authors):
        data = data_of("gsm8k", *overrides)
        assert [e.instruction for e in data.train_examples] == [p["question"] for p in PROBLEMS[500:]]
        assert [e.outputs for e in data.test_examples["gsm8k"]] == [(p["answer"],) for p in PROBLEMS[:3]]
        right = ["It is 1,000.", "They have 1 + 1000 = <<1+1000=1001>>1001 dogs.\n#### 1001", "1000"]
        references = [e.outputs for e in data.test_examples["gsm8k"]]
        assert data.metrics["exact_answer"](predictions=right, references=references) == [100, 100, 0]


def test_a_copy_that_lacks_a_file(tmp_path, capsys):
    assert main(["train", "data=gsm8k", f"hub={tmp_path}", f"output_dir={tmp_path / 'runs'}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"data.train={tmp_path}/openai/gsm8k/main/train-00000-of-00001.parquet[500:]: data file" in error


@pytest.mark.parametrize("overrides", [["source=de", "target=fr"], ["source=en", "target=en"]])
def test_a_pair_without_english(overrides):
    with pytest.raises(Exception, match=r"must be 'en' and another language's code"):
        data_of("opus100", *(f"data.test.opus100.{override}" for override in overrides))


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_that_is_cut_keeps_its_last_line(hub, task):
    data = data_of(task, "data.max_prompt_length=150", "data.max_length=160")
    template, tok = data.encoder.template, data.tokenizer
    long = "Ann: hello. " * 300
    for example in (
        Example(long, "", ("x",)),
        Example("Name it.", long, ("x",)),
        Example(long, long, ("x",)),
    ):
        prompt = tok.decode(data.encoder.prompt(example))
        whole = template.render(tok, example.instruction, example.input)
        assert len(data.encoder.prompt(example)) <= 150
        assert prompt.endswith("\n" + whole.rstrip("\n").rsplit("\n", 1)[1] + "\n")
        assert prompt[:10] == whole[:10] or task == "gsm8k"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains_and_is_scored(hub, task, tmp_path, capsys):
    main_metric, metrics = TASKS[task]
    arguments = [
        f"data={task}",
        "model.teacher.sft=null",
        "model.student.sft=null",
        "teacher=live",
        "trainer.max_epochs=2",
        "trainer.limit_train_batches=1",
        "trainer.log_every_n_steps=1",
        "data.batch_size=4",
        "data.valid_rows=4",
        "data.test_prompts=3",
        "data.max_prompt_length=200",
        "data.max_length=300",
        "generation=greedy",
        "generation.samples=1",
        "generation.seeds=[1,2]",
        "generation.max_new_tokens=6",
        f"output_dir={tmp_path / 'runs'}",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]
    arguments += ["data.pass_at=[1]"] if task == "gsm8k" else []
    assert main(["train", *arguments]) == 0, capsys.readouterr().err
    (directory,) = (tmp_path / "runs").iterdir()
    result = results.load(directory)
    scores = result.scores[task]
    assert result.training["steps"] == 2
    if task == "gsm8k":
        assert scores["pass_1"].mean == scores["exact_answer"].mean
    assert set(scores) - set(results.OF_ANSWERS) - {"pass_1"} == metrics
    of_numbers = {"unparsable"} if "exact_answer" in metrics else set()
    assert set(scores) & set(results.OF_ANSWERS) == set(results.OF_ANSWERS) - {"unparsable"} | of_numbers
    assert all(len(scores[metric].values) == 2 for metric in metrics)
    assert {f"valid_{main_metric}", f"valid_{main_metric}_before"} <= set(result.training)
    with (directory / "metrics.csv").open() as file:
        assert {f"valid/{main_metric}", f"valid/{main_metric}_best"} <= set(next(csv.reader(file)))
    if task == "opus100":
        assert "tok:13a" in scores["bleu"].signature
        assert json.loads((directory / "result.json").read_text())["scores"][task]["chrf"]["signature"]
    table = build_table([result])
    assert table.quality == main_metric
    assert set(table.metrics) == {*metrics, "self_bleu"}

    folders = [directory]
    if task == "opus100":
        assert main(["evaluate", f"run={directory}", f"output_dir={tmp_path / 'again'}"]) == 0
        (again,) = (tmp_path / "again").iterdir()
        assert results.load(again).scores == result.scores
        folders.append(again)
    capsys.readouterr()
    assert main(["score", *map(str, folders), "--csv", str(tmp_path / "all.csv")]) == 0
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name, score in scores.items():
            assert float(row[f"{name}_mean"]) == pytest.approx(score.mean, abs=1e-4, nan_ok=True), name
    assert len(rows) == len(folders)
    if task == "opus100":
        out = capsys.readouterr().out
        assert f"BLEU: {scores['bleu'].signature}" in out
        assert "BLEU difference" in out
        assert re.search(r" \+0.00 +\+0.00 to \+0.00 +1.0000", out)


def test_the_best_epoch_is_that_of_the_tasks_metric(hub, tmp_path, monkeypatch):
    """Of three epochs with validation scores 10, 30, 20, the second one's student is kept."""
    from amid.training.module import DistillationModule

    values = iter([5.0, 10.0, 30.0, 20.0])
    states = []

    def scored(self, metric):
        states.append({name: value.clone() for name, value in self.student.state_dict().items()})
        return next(values)

    monkeypatch.setattr(DistillationModule, "_score", scored)
    arguments = ["data=opus100", "method=sft", "model.student.sft=null", "trainer.max_epochs=3"]
    arguments += ["data.max_prompt_length=200", "data.max_length=300", "generation.max_new_tokens=2"]
    arguments += [f"output_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert main(["train", *arguments]) == 0
    from safetensors.torch import load_file

    (directory,) = (tmp_path / "runs").iterdir()
    kept = load_file(directory / "checkpoints" / "best" / "model.safetensors")
    assert results.load(directory).training["valid_bleu"] == 30.0
    assert all(value.equal(states[2][name]) for name, value in kept.items())
    assert not all(value.equal(states[3][name]) for name, value in kept.items())


def test_data_that_a_metric_cannot_score_are_known_before_a_model_is_read(hub, tmp_path, jsonl, capsys):
    path = jsonl({"question": "Who?", "answer": "Nobody."})
    tokenizer().save_pretrained(tmp_path / "model")
    network().save_pretrained(tmp_path / "model")
    arguments = ["data=gsm8k", f"data.test.gsm8k={path}", f"output_dir={tmp_path / 'runs'}"]
    for command, own in (
        ("train", f"prepared_dir={tmp_path / 'prepared'}"),
        ("evaluate", f"model.student.path={tmp_path / 'model'}"),
    ):
        assert main([command, *arguments, own]) == 1
        assert "data.metrics.exact_answer cannot score gsm8k: references[0] ends in no number" in (
            capsys.readouterr().err
        )
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.valid_metric=bleu"], "data.valid_metric=bleu is none of data.metrics (rouge_l, exact_match)"),
        (["checkpoint.monitor=valid/bleu"], "checkpoint.monitor=valid/bleu is not measured"),
        (
            ["+data.metrics.length={_target_: amid.metrics.rouge_l, _partial_: true}"],
            "data.metrics.length has the name of a score that every run has",
        ),
    ],
)
def test_metrics_that_do_not_fit(overrides, message, tmp_path, capsys):
    assert main(["train", *overrides, f"output_dir={tmp_path / 'runs'}"]) == 1
    assert message in capsys.readouterr().err


def test_other_metrics_for_ones_own_data(jsonl, tmp_path):
    path = jsonl(*({"q": {"text": f"Say {i}."}, "a": [f"word {i}", "x"]} for i in range(4)))
    arguments = ["data=jsonl", "data/metrics=translation", "data.valid_metric=chrf", "method=sft"]
    arguments += [f"data.train={path}", f"data.valid={path}", f"+data.test.mine={path}"]
    arguments += ["data.fields={instruction: q.text, output: a}", "model.student.sft=null"]
    arguments += [
        "trainer.max_steps=1",
        "generation.max_new_tokens=2",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]
    assert main(["train", *arguments, f"output_dir={tmp_path / 'runs'}"]) == 0
    (result,) = results.load_all(tmp_path / "runs")
    assert list(result.scores["mine"])[:2] == ["chrf", "bleu"]
    assert "valid_chrf" in result.training


def test_validation_by_loss_alone(small_run, tmp_path):
    arguments = [*small_run, "method=sft", "model.student.sft=null"]
    assert main(["train", *arguments, "data.valid_metric=null", "checkpoint=loss"]) == 0
    (result,) = results.load_all(tmp_path / "runs")
    assert not [name for name in result.training if "rouge" in name]
    assert "rouge_l" in result.scores["open"]
