import json

import pytest

from amid.errors import InputError
from amid.report import run as report
from amid.reporting import build_table
from amid.reporting.significance import against_the_best
from amid.results import load_folders, save


@pytest.fixture
def folder(tmp_path, make_run):
    """Two seeds of α = -5 and of α = 1, and SFT, on 40 prompts of one set."""

    def write(name, prompts, **run):
        mean = sum(prompts) / len(prompts)
        save(make_run((mean, mean + 0.1), **run), tmp_path / name)
        answers = tmp_path / name / "generations"
        answers.mkdir()
        (answers / "per_prompt.json").write_text(json.dumps({"dolly": {"rouge_l": prompts}}))

    wave = [10.0 * (i % 5) for i in range(40)]
    write("a1", [40 + x for x in wave], seed=1, alpha=-5.0)
    write("a2", [42 + x for x in wave], seed=2, alpha=-5.0)
    write("b1", [37 + x for x in wave], seed=1, alpha=1.0)
    write("b2", [39 + x for x in wave], seed=2, alpha=1.0)
    write("sft", [40 + (40 - x) for x in wave], seed=1, method="sft", divergence=None, alpha=None, lam=None)
    return tmp_path


def test_a_difference_on_every_prompt_is_marked_and_noise_is_not(folder):
    records = load_folders(folder)
    section = against_the_best(build_table(list(records.values())), records)
    assert section.title == "ROUGE-L against the best setting"
    lines = {line[0]: line[1:] for line in section.lines}
    assert lines.keys() == {"SFT", "AMiD α=1"}
    assert lines["AMiD α=1"] == ["AMiD α=-5", "-3.00 (-3.00 to -3.00)*"]
    assert lines["SFT"][1].startswith("-1.00 (")
    assert not lines["SFT"][1].endswith("*")
    verdict, _, note = section.note.partition("\n\n")
    assert verdict == "AMiD α=-5 is told apart from AMiD α=1 on dolly; from SFT on no set."
    assert "Self-BLEU is not tested." in note


def test_it_stands_in_the_report(folder, capsys):
    report(str(folder))
    assert "-3.00 (-3.00 to -3.00)*" in capsys.readouterr().out
    assert "-3.00 (-3.00 to -3.00)*" in (folder / "report" / "report.md").read_text()
    assert "-3.00 (-3.00 to -3.00)*" in (folder / "report" / "report.html").read_text()


def test_other_prompts_and_runs_without_scores_are_not_compared(folder):
    file = folder / "b2" / "generations" / "per_prompt.json"
    file.write_text(json.dumps({"dolly": {"rouge_l": [1.0, 2.0]}}))
    records = load_folders(folder)
    section = against_the_best(build_table(list(records.values())), records)
    assert [line[0] for line in section.lines] == ["SFT"]
    for path in folder.glob("*/generations/per_prompt.json"):
        path.unlink()
    assert against_the_best(build_table(list(records.values())), records) is None


def test_as_many_other_prompts_are_not_compared(folder):
    file = folder / "sft" / "generations" / "per_prompt.json"
    scores = json.loads(file.read_text())
    file.write_text(json.dumps({"dolly": scores["dolly"] | {"prompts": "a key of others"}}))
    records = load_folders(folder)
    section = against_the_best(build_table(list(records.values())), records)
    assert [line[0] for line in section.lines if line[-1] != "–"] == ["AMiD α=1"]


def test_a_damaged_file_is_named(folder):
    (folder / "a1" / "generations" / "per_prompt.json").write_text("{")
    records = load_folders(folder)
    with pytest.raises(InputError, match=r"per_prompt\.json cannot be read"):
        against_the_best(build_table(list(records.values())), records)
