"""`amid score` with answers of systems at several temperatures."""

import json
import re
from pathlib import Path

import pytest

from amid.cli.main import main

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite", "lark"]


def write(folder, system, temperature, varied, wrong, prompts=12, answers=4):
    """Answers of ten words: `varied` of them differ in each answer, and `wrong` more are of no reference."""
    file = folder / f"{system}@{temperature}.jsonl"
    with file.open("w") as out:
        for i in range(prompts):
            reference = [f"{word}{i}" for word in WORDS[:10]]
            given = []
            for k in range(answers):
                own = [f"own{i}x{k}x{j}" for j in range(varied + (i + k) % 2)]
                given.append(" ".join(reference[: 10 - len(own) - wrong] + ["wrong"] * wrong + own))
            out.write(json.dumps({"references": [" ".join(reference)], "answers": given}) + "\n")
    return str(file)


def ladder(folder, system, wrong, varied=(1, 3, 5), **given):
    return [write(folder, system, 0.4 + 0.3 * i, of, wrong, **given) for i, of in enumerate(varied)]


def rows(out, *starts):
    lines = [line.split() for line in out.splitlines()]
    return [line for line in lines if line[: len(starts)] == list(starts)]


def test_two_ladders_are_compared_where_their_diversity_is_equal(tmp_path, capsys):
    """Alike but for two wrong words in each answer: as diverse at each temperature, and worse at each."""
    files = [*ladder(tmp_path, "good", 0), *ladder(tmp_path, "bad", 2)]
    assert main(["score", *files, "--diversity", "distinct_1", "--at", "60"]) == 0
    out = capsys.readouterr().out
    (whole, at) = rows(out, "good", "bad")
    assert whole[3] == "to"
    assert at[2] == "60"
    assert 10 < float(whole[5]) < 30
    assert 10 < float(at[3]) < 30
    assert whole[-1] == at[-1] == "*"
    assert "Difference of ROUGE-L where Distinct-1 of a prompt is equal" in out
    assert len(rows(out, "good@0.4", "bad@0.4")) == 1
    assert not rows(out, "good@0.4", "bad@0.7")


def test_a_ladder_and_itself_do_not_differ(tmp_path, capsys):
    files = [*ladder(tmp_path, "one", 0), *ladder(tmp_path, "other", 0)]
    assert main(["score", *files]) == 0
    (whole,) = rows(capsys.readouterr().out, "one", "other")
    assert float(whole[5]) == 0
    assert whole[-1] != "*"


def test_a_diversity_that_a_ladder_does_not_reach_is_refused(tmp_path, capsys):
    files = [*ladder(tmp_path, "good", 0), *ladder(tmp_path, "bad", 2)]
    assert main(["score", *files, "--at", "99.5"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--at 99.5: good and bad do not both reach Self-BLEU 99.5 (good from " in line


def test_a_prompt_with_one_answer_has_no_self_bleu(tmp_path, capsys):
    files = [*ladder(tmp_path, "one", 0), *ladder(tmp_path, "other", 2)]
    for file in files:
        first, *lines = Path(file).read_text().splitlines()
        line = json.loads(first)
        last = json.dumps(line | {"answers": line["answers"][:1]})
        Path(file).write_text("\n".join([*lines, last]))
    assert main(["score", *files]) == 0
    assert "Self-BLEU needs several answers to each prompt" in capsys.readouterr().out
    assert main(["score", *files, "--diversity", "distinct_1"]) == 0
    assert rows(capsys.readouterr().out, "one", "other")


def test_a_pair_that_does_not_reach_a_diversity_hides_no_other(tmp_path, capsys):
    files = [
        *ladder(tmp_path, "good", 0),
        *ladder(tmp_path, "bad", 2),
        *ladder(tmp_path, "far", 0, (6, 7, 8)),
    ]
    assert main(["score", *files, "--diversity", "distinct_1", "--at", "60"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "good bad 60 " in out
    assert "--at 60: good and far do not both reach Distinct-1 of a prompt 60" in out


def test_two_files_of_one_temperature_are_refused(tmp_path, capsys):
    files = [write(tmp_path, "ours", at, 1, 0) for at in ("0.3", "0.30", "0.7")]
    assert main(["score", *files]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "ours@0.3 and ours@0.30 are both the answers of ours at temperature 0.3; rename one file" in line


def test_a_temperature_is_no_suffix(tmp_path, capsys):
    files = []
    for file in map(Path, [*ladder(tmp_path, "one", 0), *ladder(tmp_path, "other", 2)]):
        file.rename(file.with_suffix(""))
        files.append(str(file.with_suffix("")))
    assert main(["score", *files]) == 0
    out = capsys.readouterr().out
    assert rows(out, "one@0.4", "other@0.4")
    assert rows(out, "one", "other")


def test_a_metric_that_cannot_read_the_answers_is_not_compared_at_equal_diversity(tmp_path, capsys):
    files = [*ladder(tmp_path, "one", 0), *ladder(tmp_path, "other", 2)]
    for file in map(Path, files):
        cyrillic = str.maketrans(
            "abcdefghijklmnopqrstuvwxyz0123456789", "абвгдежзийклмнопрстуфхцчшщбвгдежзийк"
        )
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text(
            "\n".join(
                json.dumps({key: [text.translate(cyrillic) for text in of] for key, of in line.items()})
                for line in lines
            )
        )
    assert main(["score", *files]) == 0
    out = capsys.readouterr().out
    assert "ROUGE-L cannot read these answers: no difference in it is tested." in out
    assert not rows(out, "one", "other")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"varied": (0, 1)}, {"varied": (6, 7)}, "one and other reach no Self-BLEU in common (one from "),
        ({}, {"answers": 3}, "Diversity among unequal numbers of answers to a prompt cannot be compared"),
        ({"answers": 1}, {"answers": 1}, "Self-BLEU needs several answers to each prompt"),
        ({"prompts": 1}, {"prompts": 1}, "One prompt cannot show a difference"),
    ],
)
def test_why_two_ladders_cannot_be_compared_is_said_in_a_line(tmp_path, capsys, first, second, message):
    files = [*ladder(tmp_path, "one", 0, **first), *ladder(tmp_path, "other", 0, **second)]
    assert main(["score", *files]) == 0
    out = capsys.readouterr().out
    assert message in " ".join(out.split())
    assert "is equal: the mean over" not in out


def of_run(folder, tokenize, temperatures=(0.3, 0.6)):
    """A run with its own answers at temperature 1, and answers at further temperatures."""
    answers = folder / "generations"
    for at, varied in ((None, 5), *zip(temperatures, (1, 3), strict=False)):
        place = answers if at is None else answers / f"temperature-{at}"
        place.mkdir(parents=True, exist_ok=True)
        Path(write(place, "set", "x", varied, 0)).rename(place / "open-1.jsonl")
    metric = {"_target_": "amid.metrics.rouge_l", "_partial_": True, "tokenize": tokenize}
    settings = {
        "data": {"metrics": {"rouge_l": metric}, "valid_metric": "rouge_l"},
        "generation": {"temperature": 1.0, "top_p": 1.0, "temperatures": [*temperatures] or None},
    }
    (folder / "config.yaml").write_text(json.dumps({"hash": "0", "config": settings}))
    return str(folder)


def test_answers_at_other_temperatures_are_not_tested_against_a_run_s_own(tmp_path, capsys):
    runs = [of_run(tmp_path / "one", "rouge_score"), of_run(tmp_path / "other", "rouge_score", ())]
    assert main(["score", *runs]) == 0
    out = capsys.readouterr().out
    assert rows(out, "one", "other")
    for first in ("one", "other"):
        assert not rows(out, first, "one@0.3") + rows(out, "one@0.3", first)


def test_diversity_of_unlike_tokenisers_is_not_compared(tmp_path, capsys):
    runs = [of_run(tmp_path / "one", "rouge_score"), of_run(tmp_path / "other", "char")]
    assert main(["score", *runs]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Diversity of unlike tokenisers cannot be compared (one@0.3 13a" in out
    assert "is equal: the mean over" not in out
    assert re.search(r" of other[^:]*: tokenize=char", out)
