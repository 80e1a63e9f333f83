import csv
import itertools
import json
import math
import re
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import sacrebleu
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from amid.cli import main
from amid.config import CONF
from amid.data.examples import Example
from amid.errors import InputError
from amid.evaluation import evaluate_sets
from amid.metrics import bleu, chrf, rouge_l, set_score
from amid.results import METRICS, OF_ANSWERS
from amid.score import KNOWN, LEGEND, _names
from amid.scoring import (
    PER_PROMPT,
    Answer,
    Answered,
    answers_file,
    answers_files,
    applied,
    per_prompt,
    read_answers,
    resampled,
    score_answers,
    write_answers,
)

SETS = {"bleu": bleu, "chrf": chrf}
REFERENCES = [["the cat sat on the mat"], ["a dog barked", "the dog barked loudly"], ["yes"]]


def of(references, texts, **known):
    return [
        Answered(f"say {i}", "", tuple(outputs), [Answer(text, **known)])
        for i, (outputs, text) in enumerate(zip(references, texts, strict=True))
    ]


def answered(*texts, **known):
    return of(REFERENCES, texts, **known)


def test_what_is_written_is_read_again(tmp_path):
    rows = answered("the\u2028cat\x85", "a dog – barked", "", tokens=3, ended=True, log_probs=[-0.5, -1.25])
    fields = {"category": "open_qa", "level": 3, "seed": "of the data", "answers": "no"}
    rows[0] = replace(rows[0], fields=fields)
    write_answers(tmp_path / "open-10.jsonl", rows, seed=10)
    read = read_answers(tmp_path / "open-10.jsonl")
    assert [row.answers for row in read] == [row.answers for row in rows]
    assert [(row.instruction, row.references) for row in read] == [
        (r.instruction, r.references) for r in rows
    ]
    assert read[0].answers[0].log_probs == [-0.5, -1.25]
    assert [row.fields for row in read] == [{"category": "open_qa", "level": 3}, {}, {}]
    assert [path.name for path in tmp_path.iterdir()] == ["open-10.jsonl"]


def test_the_scores_are_those_of_each_metric():
    texts = ["the cat sat on the cat sat on the cat sat on the mat", "a dog barked", "no"]
    rows = [answered(*texts, tokens=4, ended=True, log_probs=[-1.0, -2.0])]
    scores = score_answers(rows, {"rouge_l": rouge_l})
    assert scores["length"].mean == 4
    assert scores["eos_share"].mean == 100
    assert scores["log_prob"].mean == -1.5
    assert scores["overlong"].mean == pytest.approx(100 / 3)
    assert scores["repetition"].mean == pytest.approx(100 * (1 - 5 / 11) / 3)
    assert scores["rouge_l"].mean == pytest.approx(sum(rouge_l(texts, REFERENCES)) / 3)


def test_self_bleu_says_among_how_many_answers():
    rows = answered("a", "b", "c")
    assert score_answers([rows], {})["corpus_self_bleu"].signature == "among 3 answers"
    assert score_answers([rows, rows], {})["self_bleu"].signature == "among 2 answers to a prompt"


def test_what_data_sets_are_scored_by_is_known_to_all_that_tell_of_scores():
    named = [yaml.safe_load(file.read_text()) for file in (CONF / "data" / "metrics").glob("*.yaml")]
    assert {name for names in named for name in names} == KNOWN.keys() == METRICS.keys() - set(OF_ANSWERS)
    assert KNOWN["rouge_2"](["a b c"], [["a b d"]]) == [50]


def test_what_is_not_known_of_the_answers_is_left_out():
    scores = score_answers([answered("a", "b", "c")], {})
    assert not {"length", "eos_share", "log_prob"} & scores.keys()
    assert scores["corpus_self_bleu"].mean == 0


def test_a_prompt_has_the_mean_over_all_its_answers():
    one, other = answered("the cat sat on the mat", "a dog barked", "yes"), answered("", "", "")

    def means(metric, *by_seed):
        return per_prompt(applied({"m": metric}, by_seed)["m"], by_seed)

    assert means(rouge_l, one) == [100, 100, 100]
    assert means(rouge_l, one, other) == [50, 50, 50]
    assert means(bleu, one) is None


def test_a_draw_of_prompts_has_the_score_of_their_answers():
    """The mean over two seeds, of which the second drew two answers to each prompt."""
    one, other = answered("the cat sat on a mat", "a dog", "yes"), answered("the cat", "a dog barked", "no")
    twice = [replace(a, answers=a.answers + b.answers) for a, b in zip(one, other, strict=True)]
    draws = numpy.array([[1, 1, 1], [0, 3, 1]])
    for metric in SETS.values():
        drawn = [[[rows[i] for i in draw] for rows in (one, twice)] for draw in ([0, 1, 2], [1, 1, 1, 2])]
        expected = [score_answers(rows, {"m": metric})["m"].mean for rows in drawn]
        given = applied({"m": metric}, [one, twice])["m"]
        assert resampled(given, [one, twice])(draws) == pytest.approx(expected)
    assert resampled(applied({"m": rouge_l}, [one])["m"], [one]) is None


def test_a_run_computes_each_metric_once_an_answer(tmp_path):
    """Two seeds with two answers to each of three prompts: all scores of these are made from one call."""
    seen = Counter()

    def counted(name, metric):
        def score(texts, references):
            seen[name] += len(texts)
            return metric(texts, references)

        return score

    texts = {1: ["the cat", "a dog", "yes", "no", "on the mat", "yes"], 2: ["the mat sat", "", "a dog"] * 2}
    drawn = {seed: [[Answer(text) for text in of[i::3]] for i in range(3)] for seed, of in texts.items()}
    sampling = SimpleNamespace(
        seeds=[1, 2],
        samples=2,
        answers_to_sets=lambda *_: [("mine", seed, answers) for seed, answers in drawn.items()],
    )
    sets = {"mine": [Example(f"say {i}", "", tuple(outputs)) for i, outputs in enumerate(REFERENCES)]}
    metrics = {name: counted(name, metric) for name, metric in {"rouge_l": rouge_l, **SETS}.items()}
    encoder = SimpleNamespace(prompt=lambda _: [0])
    scores = evaluate_sets(None, None, sets, encoder, sampling, metrics, tmp_path, {}, nullcontext)["mine"]
    assert seen == dict.fromkeys(metrics, 12)

    in_turn = [[a.text for row in drawn[seed] for a in row] for seed in (1, 2)]
    targets = [outputs for outputs in REFERENCES for _ in range(2)]
    of_answers = [rouge_l(each, targets) for each in in_turn]
    assert scores["rouge_l"].values == [sum(each) / 6 for each in of_answers]
    for name, metric in SETS.items():
        assert scores[name].values == [metric(each, targets).value for each in in_turn]
    of_prompts = json.loads((tmp_path / PER_PROMPT).read_text())["mine"]
    expected = [sum(each[2 * i] + each[2 * i + 1] for each in of_answers) / 4 for i in range(3)]
    assert of_prompts["rouge_l"] == [round(value, 4) for value in expected]
    assert not SETS.keys() & of_prompts.keys()


def test_runs_are_called_by_the_settings_that_tell_them_apart(tmp_path):
    def names(*runs):
        return _names([tmp_path / run for run in runs])

    for run in ("a=1,b=2,c=3", "a=1,b=2,c=4", "a=1"):
        (tmp_path / run).mkdir()
    assert names("a=1,b=2,c=3", "a=1,b=2,c=4", "a=2.jsonl") == ["a=1,b=2,c=3", "a=1,b=2,c=4", "a=2"]
    assert names("a=1,b=2,c=3", "a=1,b=2,c=4") == ["c=3", "c=4"]
    assert names("a=1,b=2,c=3", "a=1") == ["a=1,b=2,c=3", "a=1"]
    assert names("a=1,b=2,c=3") == ["a=1,b=2,c=3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 1, is no prompt with answers"),
        ("[1]", "no JSON object"),
        ('{"references": ["a"]}', "no answers or answer or prediction"),
        ('{"answers": ["a"]}', "no references or reference or output"),
        ('{"references": [], "answers": ["a"]}', "references must be"),
        ('{"references": ["a"], "answers": [1]}', "an answer must be"),
        ('{"references": ["a"], "answers": [{"text": "b", "tokens": "3"}]}', "tokens must be a number"),
        ('{"references": ["a"], "answers": [{"text": "b", "ended": "yes"}]}', "ended must be true or false"),
        ('{"references": ["a"], "answers": [{"text": "b", "log_probs": -3.2}]}', "log_probs must be a list"),
        ("", "is empty"),
    ],
)
def test_a_damaged_file_is_an_error_that_says_where(tmp_path, line, message):
    (tmp_path / "answers.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"answers.jsonl") as raised:
        read_answers(tmp_path / "answers.jsonl")
    assert message in str(raised.value)
    assert 'JSON Lines, an object a line, such as {"references"' in str(raised.value)


def foreign(tmp_path, name, texts, **fields):
    path = tmp_path / f"{name}.jsonl"
    lines = [
        {"output": outputs, "prediction": text} | {key: value[i] for key, value in fields.items()}
        for i, (outputs, text) in enumerate(zip(REFERENCES, texts, strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def parts_of(out):
    """The column Prompts of the printed table."""
    return re.findall(r"^ ?\S+ +(all|[\d-]+ words) ", out, re.MULTILINE)


class TestCommand:
    def test_other_systems_answers_are_scored_and_compared(self, tmp_path, capsys):
        good = foreign(tmp_path, "good", ["the cat sat on the mat", "a dog barked", "yes"])
        bad = foreign(tmp_path, "bad", ["x", "y", "z"])
        assert main(["score", str(good), str(bad)]) == 0
        out = capsys.readouterr().out
        rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
        assert rows["bad"][1] == "0.00"
        (difference,) = [line for line in out.splitlines() if "+100.00 to" in line]
        assert difference.split() == ["good", "bad", "+100.00", "+100.00", "to", "+100.00", "<0.0002", "*"]
        heads = {head.strip() for head in re.split("  +", out.splitlines()[1])}
        titles = {METRICS[name] for name in OF_ANSWERS}
        assert titles - {"Self-BLEU", "Ended", "Length", "Log p"} < heads
        for name in (*titles, "±"):
            assert name in LEGEND
        assert " ".join(LEGEND.split()) in " ".join(out.split())

    @pytest.mark.parametrize("width", [60, 90, 250])
    def test_no_number_is_cut_in_a_narrow_terminal(self, width, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(width))
        files = [
            foreign(tmp_path, name, ["the cat sat on the mat", "a dog", "yes"])
            for name in ("one", "another-one-of-a-long-name", "third", "fourth")
        ]
        assert main(["score", *map(str, files)]) == 0
        out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        scores = out.split("0 to 100")[0]
        assert "…" not in out
        assert max(map(len, out.splitlines())) <= width
        assert scores.count("55.56") == 4  # ROUGE-2

    def test_by_a_field_and_by_length(self, tmp_path, capsys):
        kinds = ["short", "long", "short"]
        path = foreign(tmp_path, "one", ["the cat sat on the mat", "", "yes"], kind=kinds)
        assert main(["score", str(path), "--by", "kind", "--csv", str(tmp_path / "all.csv")]) == 0
        with (tmp_path / "all.csv").open() as file:
            rows = {row["prompts"]: row for row in csv.DictReader(file)}
        assert {name: float(row["rouge_l_mean"]) for name, row in rows.items()} == {
            "all": pytest.approx(200 / 3),
            "kind=long": 0,
            "kind=short": 100,
        }
        capsys.readouterr()
        assert main(["score", str(path), "--by", "length"]) == 0
        assert parts_of(capsys.readouterr().out) == ["all", "1 words", "4 words", "6 words"]
        assert main(["score", str(path), "--by", "colour"]) == 1
        assert "choose of length, kind\n" in capsys.readouterr().err

    def test_a_line_without_the_field_is_a_part_and_a_system_without_it_a_whole(self, tmp_path, capsys):
        one = foreign(tmp_path, "one", ["the cat sat on the mat", "", "yes"])
        lines = [json.loads(line) for line in one.read_text().splitlines()]
        lines[1]["kind"] = "long"
        two = tmp_path / "two.jsonl"
        two.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(["score", str(one), str(two), "--by", "kind", "--csv", str(tmp_path / "all.csv")]) == 0
        with (tmp_path / "all.csv").open() as file:
            rows = [(row["system"], row["prompts"]) for row in csv.DictReader(file)]
        assert rows == [("one", "all"), ("two", "all"), ("two", "kind=long"), ("two", "kind=–")]

    def test_the_difference_in_a_metric_of_ones_choice(self, tmp_path, capsys):
        texts = ["the cat sat on the mat", "a dog barked", "yes"], ["the cat sat on a mat", "a dog", "no"]
        files = [str(foreign(tmp_path, name, rows)) for name, rows in zip(("one", "two"), texts, strict=True)]
        expected = {name: [metric(rows, REFERENCES).value for rows in texts] for name, metric in SETS.items()}
        for name, (first, second) in expected.items():
            assert main(["score", *files, "--metric", name, "--csv", str(tmp_path / "all.csv")]) == 0
            out = capsys.readouterr().out
            assert re.search(rf"^ ?one +two +\{first - second:+.2f} ", out, re.MULTILINE)
            assert f"{METRICS[name]}: {SETS[name](texts[0], REFERENCES).signature}" in out
            with (tmp_path / "all.csv").open() as file:
                found = [float(row[f"{name}_mean"]) for row in csv.DictReader(file)]
            assert found == pytest.approx([first, second])
        assert main(["score", *files, "--metric", "exact_match"]) == 0
        assert re.search(r"^ ?one +two +\+100.00 ", capsys.readouterr().out, re.MULTILINE)
        assert main(["score", *files, "--metric", "exact_answer"]) == 1
        assert "one cannot be scored: references[0] ends in no number" in capsys.readouterr().err
        assert main(["score", *files, "--metric", "blue"]) == 1
        assert "--metric=blue is no metric of these answers; did you mean 'bleu'?" in capsys.readouterr().err

    def test_a_run_is_scored_by_the_metrics_that_it_names(self, tmp_path, capsys, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "of_mine.py").write_text(
            "from amid.metrics import SetScore\n"
            "def words(texts, references, by):\n"
            "    return SetScore(by * sum(len(text.split()) for text in texts))\n"
        )
        for name, text in (("a", "one two"), ("b", "one")):
            folder = tmp_path / name / "alpha=1"
            (folder / "generations").mkdir(parents=True)
            write_answers(folder / "generations" / "open-1.jsonl", answered(text, text, text), seed=1)
            words = {"_target_": "of_mine.words", "_partial_": True, "by": 2}
            match = {"_target_": "amid.metrics.exact_match", "_partial_": True}
            data = {"metrics": {"exact_match": match, "words": words}, "valid_metric": "words"}
            (folder / "config.yaml").write_text(json.dumps({"hash": "0", "config": {"data": data}}))
        runs = [str(tmp_path / name / "alpha=1") for name in ("a", "b")]
        assert main(["score", *runs, f"{runs[0]}/generations", "--csv", str(tmp_path / "all.csv")]) == 0
        with (tmp_path / "all.csv").open() as file:
            reader = csv.DictReader(file)
            rows = [(row["system"], float(row["words_mean"])) for row in reader]
        assert rows == [("a/alpha=1", 12), ("b/alpha=1", 6), ("a/alpha=1", 12)]
        assert reader.fieldnames[3:9:2] == [
            "words_mean",
            "exact_match_mean",
            "rouge_l_mean",
        ]
        assert "words is of a whole set" in capsys.readouterr().out
        apart = foreign(tmp_path, "apart", ["one two"] * 3)
        assert main(["score", str(apart), runs[0]]) == 0
        assert "words is of a whole set" in capsys.readouterr().out, "that of the run, which comes second"
        assert main(["score", *runs, "--metric", "rouge_l"]) == 0
        assert re.search("a/alpha=1 +b/alpha=1", capsys.readouterr().out)
        (tmp_path / "of_mine.py").unlink()
        del sys.modules["of_mine"]
        assert main(["score", *runs]) == 1
        assert "names data.metrics that cannot be had" in capsys.readouterr().err
        (folder / "config.yaml").write_text("[]")
        assert main(["score", runs[1]]) == 1
        assert "is no configuration of a run" in capsys.readouterr().err

    def test_help_tells_all_of_it(self, capsys):
        assert main(["score", "--help"]) == 0
        out = capsys.readouterr().out
        for word in (*KNOWN, *OF_ANSWERS, "--by", "--metric", "--csv", "length", "bootstrap", "config.yaml"):
            assert word in out

    def test_parts_of_one_length_are_one_and_others_are_spans(self, tmp_path, capsys):
        path = tmp_path / "lengths.jsonl"
        lines = [{"output": "a " * words, "answers": ["a"]} for words in (2, 3, 2, 5, 2, 2, 3)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(["score", str(path), "--by", "length", "--csv", str(tmp_path / "all.csv")]) == 0
        assert parts_of(capsys.readouterr().out) == ["all", "2 words", "3-5 words"]
        with (tmp_path / "all.csv").open() as file:
            rows = {row["prompts"]: float(row["rouge_l_mean"]) for row in csv.DictReader(file)}
        assert rows["2 words"] == pytest.approx(200 / 3)
        assert rows["3-5 words"] == pytest.approx((50 + 50 + 100 / 3) / 3)

    def test_the_first_part_ends_where_the_next_length_begins(self, tmp_path, capsys):
        path = tmp_path / "lengths.jsonl"
        lines = [{"output": "a " * words, "answers": ["a"]} for words in (1, 3, 3, 4, 9, 9)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(["score", str(path), "--by", "length"]) == 0
        assert parts_of(capsys.readouterr().out) == ["all", "1-3 words", "4 words", "9 words"]

    def test_one_prompt_gives_scores_and_no_difference(self, tmp_path, capsys):
        files = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
        for file in files:
            file.write_text(json.dumps({"output": "Paris", "prediction": "Paris"}) + "\n")
        assert main(["score", *map(str, files)]) == 0
        assert "One prompt tells nothing of a difference" in capsys.readouterr().out

    def test_a_path_that_is_not_there(self, tmp_path, capsys):
        assert main(["score", str(tmp_path / "none")]) == 1
        err = capsys.readouterr().err
        assert "give a file of answers, JSON Lines, or the folder of a finished run" in err

    def test_a_file_answers_the_set_of_a_run_that_has_its_prompts_in_any_order(self, tmp_path, capsys):
        texts = ["the cat sat", "a dog", "yes"]
        run = tmp_path / "run" / "generations"
        run.mkdir(parents=True)
        for dataset, references in (("mine", REFERENCES), ("other", [["x y"], ["z"]])):
            answers = texts[: len(references)]
            write_answers(run / f"{dataset}-1.jsonl", of(references, answers, tokens=2, ended=True), 1)
        rows = [{"references": r, "answers": [a]} for r, a in zip(REFERENCES, texts, strict=True)]
        apart = tmp_path / "apart.jsonl"
        apart.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
        assert main(["score", str(run.parent), str(apart)]) == 0
        out = capsys.readouterr().out
        told = [line.split() for line in out.splitlines() if line.split()[:2] == ["run", "apart"]]
        assert told[0][2:6] == ["+0.00", "+0.00", "to", "+0.00"]
        assert "not compared" not in out
        apart.write_text(json.dumps({"references": "another", "answers": ["a"]}) + "\n")
        assert main(["score", str(run.parent), str(apart)]) == 0
        assert "apart is not compared: no other one answers its prompts" in capsys.readouterr().out

    def test_systems_that_answered_other_prompts_are_not_compared(self, tmp_path, capsys):
        one = foreign(tmp_path, "one", ["a", "b", "c"])
        other = tmp_path / "other.jsonl"
        other.write_text(json.dumps({"output": "another", "prediction": "a"}) + "\n")
        like_one = foreign(tmp_path, "like-one", ["a", "b", "yes"])
        paths = [str(path) for path in (one, other, like_one)]
        assert main(["score", *paths, "--csv", str(tmp_path / "all.csv")]) == 0
        out = capsys.readouterr().out
        assert "other is not compared: no other one answers its prompts" in out
        assert re.search(r"^ ?one +like-one +-33.33 ", out, re.MULTILINE)
        assert "one is not compared" not in out
        with (tmp_path / "all.csv").open() as file:
            assert [row["system"] for row in csv.DictReader(file)] == ["one", "other", "like-one"]
        assert main(["score", str(one), "--csv", str(tmp_path / "none" / "all.csv")]) == 1
        assert "make it first" in capsys.readouterr().err

    def test_a_folder_without_answers(self, tmp_path, capsys):
        assert main(["score", str(tmp_path)]) == 1
        assert capsys.readouterr().err.endswith("give the folder of a finished run\n")
        run = tmp_path / "a=1"
        run.mkdir()
        (run / "result.json").touch()
        assert main(["score", str(tmp_path)]) == 1
        assert f"give the folder of a finished run, such as {run}\n" in capsys.readouterr().err

    def test_a_run_is_scored_as_it_scored_itself(self, small_run, tmp_path, capsys):
        assert main(["train", *small_run, "seed=1"]) == 0
        (run,) = (tmp_path / "runs").iterdir()
        assert main(["score", str(run), "--csv", str(tmp_path / "all.csv")]) == 0
        result = json.loads((run / "result.json").read_text())["scores"]
        with (tmp_path / "all.csv").open() as file:
            rows = {row["set"]: row for row in csv.DictReader(file)}
        assert rows.keys() == result.keys()
        for name, row in rows.items():
            for metric, score in result[name].items():
                assert float(row[f"{metric}_mean"]) == pytest.approx(score["mean"], abs=1e-4), metric
        assert set(OF_ANSWERS) <= result["open"].keys()

        assert main(["score", str(run), "--by", "family", "--csv", str(tmp_path / "all.csv")]) == 0
        with (tmp_path / "all.csv").open() as file:
            rows = list(csv.DictReader(file))
        for name in result:
            by_seed = [read_answers(file) for file in sorted((run / "generations").glob(f"{name}-*.jsonl"))]
            families = [one.fields["family"] for one in by_seed[0]]
            found = {row["prompts"]: row for row in rows if row["set"] == name}
            assert found.keys() == {"all", *(f"family={family}" for family in families)}
            for family in set(families):
                some = [[one for one in seed if one.fields["family"] == family] for seed in by_seed]
                expected = score_answers(some, {})["log_prob"].mean
                assert float(found[f"family={family}"]["log_prob_mean"]) == pytest.approx(expected)
        capsys.readouterr()
        assert main(["score", str(run), "--by", "seed"]) == 1
        assert capsys.readouterr().err.endswith("choose of length, family\n")


@pytest.mark.parametrize("name", ["dolly", "selfinst", "vicuna"])
def test_real_sets_are_scored_as_by_rouge_score_and_sacrebleu(shared, name):
    """Word for word copies, other prompts' references, empty and non-English answers: of 200 rows, chrF and
    ROUGE-L of 30 and Self-BLEU of 20, which take the others long.
    """
    lines = (shared / "data" / name / "valid.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    outputs = [json.loads(line)["output"] for line in lines]
    references = [[out] if isinstance(out, str) else out for out in outputs]
    copies = [refs[0] for refs in references]
    others = [*copies[1:], copies[0]]
    mixed = [("", "Das weiß ich nicht.", "我不知道", text)[i % 4] for i, text in enumerate(others)]
    for texts in (copies, others, mixed):
        ours = [set_score(KNOWN[metric], texts, references).value for metric in ("rouge_1", "rouge_2")]
        assert ours == pytest.approx(by_rouge_score(["rouge1", "rouge2"], references, texts), abs=1e-9)
        streams = list(itertools.zip_longest(*references))
        assert bleu(texts, references).value == sacrebleu.corpus_bleu(texts, streams).score

        few, refs = texts[:30], references[:30]
        ours = score_answers([of(refs, few)], {"rouge_l": rouge_l, "chrf": chrf})
        assert [ours["rouge_l"].mean] == pytest.approx(by_rouge_score(["rougeL"], refs, few), abs=1e-9)
        assert ours["chrf"].mean == sacrebleu.corpus_chrf(few, list(itertools.zip_longest(*refs))).score

        few = texts[:20]
        of_one = BLEU(effective_order=True)
        each = [of_one.sentence_score(text, few[:i] + few[i + 1 :]).score for i, text in enumerate(few)]
        found = score_answers([of(references[:20], few)], {})
        assert found["corpus_self_bleu"].mean == pytest.approx(math.fsum(each) / len(each), abs=1e-9)


def by_rouge_score(kinds, references, texts):
    """The mean over the texts of each kind of ROUGE, best over references."""
    scorer = RougeScorer(kinds, use_stemmer=True)
    each = [[scorer.score(ref, text) for ref in refs] for refs, text in zip(references, texts, strict=True)]
    return [
        100 * sum(max(found[kind].fmeasure for found in of_refs) for of_refs in each) / len(each)
        for kind in kinds
    ]


def test_files_of_answers_are_told_apart_by_set_and_come_by_seed(tmp_path):
    for dataset, seed in (("mine-2", 10), ("mine", 30), ("mine", 5)):
        write_answers(answers_file(tmp_path, dataset, seed), [], seed)
    found = answers_files(tmp_path)
    assert [(dataset, list(seeds)) for dataset, seeds in found.items()] == [
        ("mine", [5, 30]),
        ("mine-2", [10]),
    ]
    assert found["mine-2"][10] == tmp_path / "mine-2-10.jsonl"
    for other in ("other", "-1", "mine-05", "mine-٣", "mine-1_0"):
        (tmp_path / f"{other}.jsonl").touch()
        with pytest.raises(InputError, match="is not named SET-SEED"):
            answers_files(tmp_path)
        (tmp_path / f"{other}.jsonl").unlink()


@given(st.dictionaries(st.text("a1-._", min_size=1), st.sets(st.integers(0, 30), min_size=1), max_size=4))
def test_the_name_of_a_file_of_answers_tells_its_set_and_seed(sets):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        written = {of: {seed: answers_file(folder, of, seed) for seed in sets[of]} for of in sets}
        for file in (file for files in written.values() for file in files.values()):
            assert not file.exists(), "no other set and seed have this name"
            file.touch()
        assert answers_files(folder) == written
