"""The model card: what it says of a run, and that the hub and its own reader take it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from command_line import run
from huggingface_hub import ModelCard, metadata_load
from published import STUDENT, TEACHER

from amid import __version__, results
from amid.metrics import paired_bootstrap
from amid.publishing.card import CITATION, model_card
from amid.publishing.finished import FinishedRun

ROOT = Path(__file__).parents[2]


def table_of(card, head):
    """The rows of the table below a heading, as lists of cells."""
    part = str(card).partition(f"\n## {head}\n")[2].partition("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"
    ]


def test_the_metadata_name_models_data_and_tags(of_hub, hub, tmp_path):
    card = model_card(of_hub, "me/student", "apache-2.0")
    (tmp_path / "README.md").write_text(str(card))
    data = metadata_load(tmp_path / "README.md")
    assert data["base_model"] == STUDENT
    assert data["base_model_relation"] == "finetune"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["MiniLLM/dolly"]
    assert {"distillation", "amid"} <= {*data["tags"]}
    assert "language" not in data
    card.validate()  # by the hub
    assert hub.asked("POST", "validate-yaml")
    read = ModelCard.load(tmp_path / "README.md").data
    assert read.model_name == "student"
    assert {one.dataset_name: one.dataset_type for one in read.eval_results} == {
        "open": "MiniLLM/dolly",
        "closed": "closed",
    }


def test_the_text_says_what_was_distilled_from_what_and_how(of_hub):
    card = model_card(of_hub, "me/student")
    text = str(card)
    student, teacher = (f"[{name}](https://huggingface.co/{name})" for name in (STUDENT, TEACHER))
    assert f"This student began as {student}, cut to 3 of its layers. amid {__version__}, a" in text
    assert f"distilled it from {teacher}, fine-tuned on the data first.\n" in text
    rows = dict(table_of(card, "Training")[2:])
    assert rows["Method"] == "`amid`"
    assert rows["Divergence"] == "D(p, r) = `AlphaBeta(alpha=0.2, beta=0.7)`"
    assert (rows["α"], rows["λ"]) == ("-5.0", "0.1")
    assert rows["Steps"] == "4, each of 32 rows"
    assert rows["Training data"] == (
        "[MiniLLM/dolly](https://huggingface.co/datasets/MiniLLM/dolly) `raw.jsonl[1000:]`"
    )
    assert rows["Validation data"] == "`corpus(split=valid, size=16, seed=0)`"
    assert 'pipeline("text-generation", model="me/student")' in text
    assert "<instruction>Name three primary colours.<response>" in text
    assert (
        f"No licence is chosen yet. Choose one that the terms of {STUDENT}, {TEACHER}, MiniLLM/dolly" in text
    )


def test_scores_stand_with_their_intervals_in_table_and_metadata(changed, finished, tmp_path):
    values = [float(value) for value in range(0, 100, 2)]
    score = results.Score.over_seeds([sum(values) / 50])
    run_ = changed(scores={"open": {"rouge_l": score, "exact_match": score, "length": score}})
    folder = run_.directory / "generations"
    (folder / "per_prompt.json").write_text(json.dumps({"open": {"rouge_l": values, "prompts": "0"}}))
    (folder / ".made_from.json").unlink()
    card = model_card(FinishedRun.read(run_.directory), "me/student")
    assert "A score without brackets" not in str(card)
    expected = paired_bootstrap(values, [0.0] * 50)
    assert expected.low < 49 < expected.high
    head, _, row = table_of(card, "Scores")
    assert head == ["Set", "Prompts", "ROUGE-L"]
    assert row == ["open", "50", f"49.0 ({expected.low:.1f} to {expected.high:.1f})"]
    (one,) = card.data.eval_results
    assert (one.metric_type, one.metric_name, one.metric_value) == ("rouge", "ROUGE-L", 49.0)
    assert one.metric_args["interval_95"] == [round(expected.low, 2), round(expected.high, 2)]


def test_the_rows_of_training_are_counted(finished, changed):
    run_ = FinishedRun.read(finished)
    rows = dict(table_of(model_card(run_), "Training")[2:])
    assert rows["Training rows"] == str(run_.settings["data"]["train"]["size"])
    of_many = changed(training={"train_rows": 1234567.0})
    assert dict(table_of(model_card(of_many), "Training")[2:])["Training rows"] == "1,234,567"


def test_prompts_of_the_same_score_have_no_interval(changed):
    score = results.Score.over_seeds([0.0])
    run_ = changed(scores={"open": {"rouge_l": score, "rouge_1": score}})
    values = {"rouge_l": [0.0] * 50, "rouge_1": [0.0, 9.0] * 25, "prompts": "0"}
    (run_.directory / "generations" / "per_prompt.json").write_text(json.dumps({"open": values}))
    (run_.directory / "generations" / ".made_from.json").unlink()
    card = model_card(FinishedRun.read(run_.directory))
    head, _, row = table_of(card, "Scores")
    cells = dict(zip(head, row, strict=True))
    assert cells["ROUGE-L"] == "0.0"
    assert re.fullmatch(r"0\.0 \([\d.]+ to [\d.]+\)", cells["ROUGE-1"])
    assert "A score without brackets has too few prompts for an interval, or the same value" in str(card)


def test_the_interval_of_a_score_of_a_whole_set_is_computed_from_its_answers(changed):
    score = results.Score.over_seeds([0.0])
    metrics = {
        "bleu": {"_target_": "amid.metrics.bleu", "_partial_": True, "tokenize": "13a", "lowercase": True}
    }
    run_ = changed(settings={"data": {"metrics": metrics}}, scores={"open": {"bleu": score}})
    files = [*(run_.directory / "generations").glob("open-*.jsonl")]
    lines = [{"instruction": f"q{i}", "input": "", "references": ["a b c d e f"], "seed": 1,
              "answers": [{"text": "A b c d e f" if i % 2 else "x y z v w u", "tokens": 6, "ended": True}]}
             for i in range(60)]  # fmt: skip
    for file in files:
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_.directory / "generations" / ".made_from.json").unlink()
    (run_.directory / "generations" / "per_prompt.json").unlink()
    (one,) = model_card(run_).data.eval_results
    low, high = one.metric_args["interval_95"]
    assert 25 < low < 50 < high < 75


def test_too_few_prompts_have_no_interval(finished):
    card = model_card(FinishedRun.read(finished))
    (_, _, *rows) = table_of(card, "Scores")
    found = results.load(finished).scores
    assert [row[0] for row in rows] == [*found]
    for row in rows:
        for cell in row[2:]:
            assert re.fullmatch(r"[\d.]+", cell)
    assert "There are no intervals: they need more prompts, with different scores." in str(card)
    assert "In brackets" not in str(card)


def test_no_path_of_the_machine_and_no_secret_is_in_it(changed, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret-that-nobody-knows")
    settings = {
        "data": {"train": "/home/me/private/train.jsonl[:9]", "cache_dir": "/scratch/me/cache"},
        "text": {"_target_": "my.Text", "key": "a-secret-that-nobody-knows", "place": "../up/there.txt"},
        "output_dir": "/scratch/me/runs",
    }
    teacher = {"path": "/home/me/models/teacher", "architecture": None, "sft": None}
    run_ = changed(
        {"teacher": teacher}, settings, contents=["/home/me/models/teacher", "private/valid.jsonl"]
    )
    overrides = run_.directory / ".hydra" / "hydra.yaml"
    stored = yaml.safe_load(overrides.read_text())
    stored["hydra"]["overrides"]["task"] = [
        "data=jsonl",
        "data.train='/home/me/private/train.jsonl[:9]'",
        "data.valid=private/valid.jsonl",
        "model.teacher.path=/home/me/models/teacher",
        "output_dir=/scratch/me/runs",
        "+data.test.mine=~/private/test.jsonl",
        "optimizer.lr=1e-3",
        "hydra.run.dir=/scratch/me/here",
        "++logger.wandb.dir=/scratch/me/w",
    ]
    overrides.write_text(yaml.safe_dump(stored))
    text = str(model_card(FinishedRun.read(run_.directory)))
    for private in (
        "/home",
        "/scratch",
        "private",
        "a-secret",
        "../",
        "~",
        str(run_.directory),
        str(Path.home()),
    ):
        assert private not in text
    assert (
        """amid train data=jsonl "data.train='train.jsonl[:9]'" data.valid=valid.jsonl """
        "model.teacher.path=teacher +data.test.mine=test.jsonl optimizer.lr=1e-3\n"
    ) in text
    assert "distilled it from a model that is not on the hub.\n" in text


def test_a_run_without_a_teacher_is_not_called_distilled(changed):
    card = model_card(changed(labels={"method": "sft", "alpha": None, "lam": None}))
    assert "fine-tuned it without a teacher" in str(card)
    assert not {"distillation", "knowledge-distillation"} & {*card.data.tags}
    names = [row[0] for row in table_of(card, "Training")]
    assert not {"Teacher p", "Divergence", "α"} & {*names}


def test_a_run_without_training_says_so(changed):
    text = str(model_card(changed(labels={"method": "start"}, training={"steps": 0.0})))
    assert "scored it without further training" in text


def test_translation_data_name_their_languages(changed):
    data = {
        "_target_": "amid.data.opus100.corpus",
        "hub": "/copies",
        "split": "train",
        "source": "de",
        "target": "en",
    }
    card = model_card(changed(settings={"data": {"train": data}}))
    assert card.data.language == ["de", "en"]
    assert card.data.datasets == ["Helsinki-NLP/opus-100"]
    assert "/copies" not in str(card)


@pytest.mark.parametrize(
    ("source", "datasets"),
    [
        ("OWNER/NAME", ["OWNER/NAME"]),
        ("OWNER/NAME:main:train[:1000]", ["OWNER/NAME"]),
        ("OWNER/NAME@v2:main", ["OWNER/NAME"]),
        ("hf://datasets/OWNER/NAME@v2/a/b.parquet[5:]", ["OWNER/NAME"]),
        ("/copies/OWNER/NAME/raw.jsonl[:9]", ["OWNER/NAME"]),
        (["OWNER/A", "OWNER/B:x", "OWNER/A:y", "a.jsonl"], ["OWNER/A", "OWNER/B"]),
        ("my/train.jsonl", []),
        ("/my/data/train", []),
        ("tests/data", []),
        ("train.csv", []),
        (None, []),
        ({"_target_": "amid.data.builtin.corpus", "split": "train"}, []),
    ],
)
def test_data_sets_of_the_hub(source, datasets, finished, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = FinishedRun.read(finished)
    at_copies = FinishedRun(finished, found.result, found.settings | {"hub": "/copies"}, {}, frozenset())
    assert at_copies.datasets_of(source) == datasets


def test_the_citation_is_the_one_of_the_repository():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in cited["authors"])
    assert f"author    = {{{authors}}}" in CITATION
    title = re.search(r"title     = \{(.*)\},", CITATION)[1]
    plain = title.replace("{", "").replace("}", "").replace(r"$\alpha$", "α")
    assert plain == cited["title"]
    assert cited["url"] in CITATION
    assert str(cited["year"]) in CITATION


def test_the_command_writes_it_once(finished, changed, capsys, tmp_path):
    folder = changed().directory
    assert run("card", folder, "me/student", "--license", "mit") == 0
    assert capsys.readouterr().out == f"Card: {folder / 'README.md'}\n"
    text = (folder / "README.md").read_text()
    assert metadata_load(folder / "README.md")["license"] == "mit"
    assert "# student\n" in text
    assert run("card", folder) == 1
    assert (
        "README.md exists, and may hold your own words; delete it, or give --output=FILE"
        in capsys.readouterr().err
    )
    assert (folder / "README.md").read_text() == text
    assert run("card", folder, f"--output={tmp_path / 'card.md'}") == 0
    assert "OWNER/NAME" in (tmp_path / "card.md").read_text()
    assert run("card", folder, f"--output={tmp_path / 'no' / 'card.md'}") == 1
    assert f"there is no folder {tmp_path / 'no'}; make it first" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["card"], ["push", "--dry-run"]])
def test_what_is_no_finished_run_is_a_line(command, finished, changed, tmp_path, capsys):
    name, *options = command
    of = ["me/student"] * (name == "push")

    def refused(folder):
        assert run(name, folder, *of, *options) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "is no folder; give the folder of a finished run" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no run; give" in refused(tmp_path / "empty")
    sweep = finished.parent
    assert refused(sweep) == f"amid: {sweep} holds 1 run; give one: {finished}"
    folder = changed(training={}).directory
    (folder / "result.json").rename(tmp_path / "result.json")
    assert f"{folder} is not finished; run its command again until it is (amid status" in refused(folder)
    (tmp_path / "result.json").rename(folder / "result.json")
    (folder / "checkpoints" / "best").rename(tmp_path / "best")
    assert "has no student in checkpoints/best; give a training run that has" in refused(folder)
    result = results.load(folder)
    result.training["diverged_step"] = 3.0
    results.save(result, folder)
    assert "diverged at step 3: it has no student to publish" in refused(folder)


def test_a_plain_prompt_has_the_system_text_of_the_training(changed):
    template = {"system": "Be brief.", "without_input": "Q: {instruction}\nA:"}
    card = str(model_card(changed(settings={"data": {"template": template}})))
    assert r"""answer("Be brief.\n\nQ: Name three primary colours.\nA:", max""" in card


def test_a_chat_model_is_asked_in_messages(changed):
    run_ = changed()
    (run_.directory / "checkpoints" / "best" / "chat_template.jinja").write_text("{{ messages }}")
    assert """answer([{"role": "user", "content": "Name three primary colours."}], max""" in str(
        model_card(run_)
    )


def test_a_name_that_the_hub_does_not_allow(finished, capsys):
    for name in ("student", "me/a b", "me/a/b"):
        assert run("push", finished, name, "--dry-run") == 1
        assert f"{name!r} " in capsys.readouterr().err


def test_of_adapters_the_card_names_them(of_hub):
    card = model_card(of_hub, "me/adapters", adapter=True)
    assert (card.data.library_name, card.data.base_model_relation) == ("peft", "adapter")
    assert 'AutoPeftModelForCausalLM.from_pretrained("me/adapters")' in str(card)
    assert f'AutoTokenizer.from_pretrained("{STUDENT}")' in str(card)
