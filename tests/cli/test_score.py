"""`amid score`: scores of files and runs, by parts, and whether systems differ."""

import csv
import json
import re
import sys

import pytest
from made_answers import REFERENCES, answered, of

from amid.cli.main import main
from amid.measures import OF_ANSWERS, SCORES
from amid.metrics import bleu, chrf
from amid.scoring.answers import read_answers, write_answers
from amid.scoring.scores import score_answers
from amid.scoring.systems import KNOWN, _names

SETS = {"bleu": bleu, "chrf": chrf}


def test_runs_are_called_by_the_settings_that_tell_them_apart(tmp_path):
    def names(*runs):
        return _names([tmp_path / run for run in runs])

    for run in ("a=1,b=2,c=3", "a=1,b=2,c=4", "a=1"):
        (tmp_path / run).mkdir()
    assert names("a=1,b=2,c=3", "a=1,b=2,c=4", "a=2.jsonl") == ["a=1,b=2,c=3", "a=1,b=2,c=4", "a=2"]
    assert names("a=1,b=2,c=3", "a=1,b=2,c=4") == ["c=3", "c=4"]
    assert names("a=1,b=2,c=3", "a=1") == ["a=1,b=2,c=3", "a=1"]
    assert names("a=1,b=2,c=3") == ["a=1,b=2,c=3"]


def test_files_of_one_name_are_of_several_systems_in_several_folders(tmp_path):
    def names(*files):
        return [name.removeprefix(f"{tmp_path}/") for name in _names([tmp_path / file for file in files])]

    assert names("a/kd@0.4.jsonl", "a/kd@1.jsonl") == ["kd@0.4", "kd@1"]
    files = ["a/kd@0.4.jsonl", "a/kd@1.jsonl", "b/kd@0.7.jsonl", "b/kd@1.jsonl", "b/sft@1.jsonl"]
    assert names(*files) == ["a/kd@0.4", "a/kd@1", "b/kd@0.7", "b/kd@1", "sft@1"]
    assert names("kd@1.jsonl", "kd@1.json") == ["kd.jsonl@1", "kd.json@1"]
    assert names("a=1,b=2@0.4.jsonl", "a=2,b=2@0.4.jsonl") == ["a=1@0.4", "a=2@0.4"]
    assert names("a/x@nan.jsonl", "b/x@2.jsonl") == ["x@nan", "x@2"]
    (tmp_path / "kd").mkdir()
    assert names("kd", "kd@0.4.jsonl") == ["kd", "kd@0.4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl", "--foo"], "amid: unrecognized arguments: --foo; choose one of --help, --by"),
        (["a.jsonl", "--metrik=bleu"], "--metrik=bleu; did you mean '--metric'? Choose one of"),
        (["--by"], "amid: argument --by: expected one argument; see amid score --help"),
        ([], "amid: the following arguments are required: FILE|RUN; see amid score --help"),
        (["a.jsonl", "--pass-at=0"], "--pass-at=0 must be whole numbers from 1, such as --pass-at 1,4"),
        (["a.jsonl", "--pass-at=1,x"], "--pass-at=1,x must be whole numbers from 1"),
        (["a.jsonl", "--pass-at=1.5"], "--pass-at=1.5 must be whole numbers from 1"),
        (["a.jsonl", "--pass-at=1,4,1"], "--pass-at=1,4,1 has a number twice; leave one out"),
        (["a.jsonl", "--trust-run=yes"], "amid: argument --trust-run: ignored explicit argument 'yes'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    assert main(["score", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "amid: the following arguments are required: FOLDER; see amid report --help"),
        (["a", "--itno=b"], "amid: unrecognized arguments: --itno=b; did you mean '--into'? Choose one of"),
        (["a", "--archive"], "amid: argument --archive: expected one argument; see amid report --help"),
    ],
)
def test_wrong_arguments_of_a_report_are_one_line(arguments, message, capsys):
    assert main(["report", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def foreign(tmp_path, name, texts, **fields):
    path = tmp_path / f"{name}.jsonl"
    lines = [
        {"output": outputs, "prediction": text} | {key: value[i] for key, value in fields.items()}
        for i, (outputs, text) in enumerate(zip(REFERENCES, texts, strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def parts_of(out):
    """The first column of the printed table of parts."""
    return re.findall(r"^ ?([\d-]+ words?) ", out, re.MULTILINE)


class TestCommand:
    def test_other_systems_answers_are_scored_and_compared(self, tmp_path, capsys):
        good = foreign(tmp_path, "good", ["the cat sat on the mat", "a dog barked", "yes"])
        bad = foreign(tmp_path, "bad", ["x", "y", "z"])
        assert main(["score", str(good), str(bad)]) == 0
        out = capsys.readouterr().out
        rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
        assert rows["bad"][1:4] == ["3", "1", "0.00"], "prompts, answers to each, ROUGE-L"
        (difference,) = [line for line in out.splitlines() if "+100.00" in line]
        assert difference.split() == ["good", "bad", "+100.00", "-∞", "to", "+∞", "0.2500"], "of 3 prompts"
        assert "by swapping the scores of the 3 prompts (exact; the bootstrap needs 50; 3 can show" in (
            " ".join(out.split())
        )
        heads = {head.strip() for head in re.split("  +", out.splitlines()[1])}
        titles = {SCORES[name].title for name in OF_ANSWERS}
        assert titles - {"Self-BLEU", "Unparsable", "Ended", "Length", "Log p"} < heads
        legend = " ".join(out[out.index("0 to 100") :].split())
        assert legend.startswith("0 to 100. Higher is better of ROUGE-L, ROUGE-1, ROUGE-2, Exact match. ")
        assert "Self-BLEU, set: similarity of all answers to a set, lower is more diverse." in legend
        assert not re.search("Ended:|Length:|Log p:|±", legend), "the lines do not tell"

    def test_text_that_rouge_cannot_read_is_told_and_read_by_another_tokenizer(self, tmp_path, capsys):
        def file(name, texts):
            rows = [
                {"references": [reference], "answers": [text]}
                for reference, text in zip(["北京是首都", "上海很大"], texts, strict=True)
            ]
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
            return str(tmp_path / name)

        files = [file("right", ["北京是首都", "上海很大"]), file("wrong", ["不知道", "是的"])]
        assert main(["score", *files]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "ROUGE-L, ROUGE-1, ROUGE-2, Self-BLEU, Self-BLEU, set, Distinct-1" in out
        assert "cannot read or split 100% of the characters of right, 100% of the characters of wrong" in out
        assert "ROUGE-L cannot read these answers: no difference in it is tested." in out
        assert "95%" not in out
        assert main(["score", *files, "--tokenize", "zh"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "right wrong +100.00" in out
        assert "ROUGE-L, ROUGE-1, ROUGE-2: tokenize=zh" in out
        assert "cannot read" not in out
        assert main(["score", *files, "--tokenize", "words"]) == 1
        assert "--tokenize=words: tokenize must be one of none, zh" in capsys.readouterr().err

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
        other = foreign(tmp_path, "other", ["the cat sat on the mat", "a dog barked", ""], kind=kinds)
        capsys.readouterr()
        assert main(["score", str(path), str(other), "--by", "kind"]) == 0
        out = capsys.readouterr().out
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
        assert rows["kind"] == ["prompts", "ROUGE-L,", "one", "ROUGE-L,", "other"]
        assert (rows["short"], rows["long"]) == (["2", "100.00", "50.00"], ["1", "0.00", "100.00"])
        assert main(["score", str(path), "--by", "length"]) == 0
        assert parts_of(capsys.readouterr().out) == ["1 word", "4 words", "6 words"]
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
        parts = ["all", "kind=long", "kind=–"]
        assert rows == [(system, part) for system in ("one", "two") for part in parts], "of the same prompts"
        three = tmp_path / "three.jsonl"
        three.write_text(json.dumps({"output": "another", "prediction": "a"}) + "\n")
        capsys.readouterr()
        assert main(["score", str(two), str(three), "--by", "kind", "--csv", str(tmp_path / "all.csv")]) == 0
        with (tmp_path / "all.csv").open() as file:
            rows = [(row["system"], row["prompts"]) for row in csv.DictReader(file)]
        assert rows == [*(("two", part) for part in parts), ("three", "all")], "of other prompts"

    def test_the_difference_in_a_metric_of_ones_choice(self, tmp_path, capsys):
        texts = ["the cat sat on the mat", "a dog barked", "yes"], ["the cat sat on a mat", "a dog", "no"]
        files = [str(foreign(tmp_path, name, rows)) for name, rows in zip(("one", "two"), texts, strict=True)]
        expected = {name: [metric(rows, REFERENCES).value for rows in texts] for name, metric in SETS.items()}
        for name, (first, second) in expected.items():
            assert main(["score", *files, "--metric", name, "--csv", str(tmp_path / "all.csv")]) == 0
            out = capsys.readouterr().out
            assert re.search(rf"^ ?one +two +\{first - second:+.2f} ", out, re.MULTILINE)
            assert f"{SCORES[name].title}: {SETS[name](texts[0], REFERENCES).signature}" in out
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
        assert main(["score", *runs]) == 1
        assert "config.yaml: data.metrics.words._target_=of_mine.words is nothing that amid ships" in (
            err := capsys.readouterr().err
        )
        assert err.endswith("if you trust the folder and that code: --trust-run\n")
        assert "of_mine" not in sys.modules
        assert (
            main(
                ["score", "--trust-run", *runs, f"{runs[0]}/generations", "--csv", str(tmp_path / "all.csv")]
            )
            == 0
        )
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
        assert main(["score", str(apart), runs[0], "--trust-run"]) == 0
        assert "words is of a whole set" in capsys.readouterr().out, "that of the run, which comes second"
        assert main(["score", "--trust-run", *runs, "--metric", "rouge_l"]) == 0
        assert re.search("a/alpha=1 +b/alpha=1", capsys.readouterr().out)
        (tmp_path / "of_mine.py").unlink()
        del sys.modules["of_mine"]
        assert main(["score", "--trust-run", *runs]) == 1
        assert "names data.metrics that cannot be had" in capsys.readouterr().err
        (folder / "config.yaml").write_text("[]")
        assert main(["score", runs[1]]) == 1
        assert "config.yaml is damaged (it holds no mapping)" in capsys.readouterr().err

    def test_pass_at_k_of_files_and_its_difference(self, tmp_path, capsys):
        """Of four answers to each of 60 problems, `one` has two right and `two` has one right."""
        files = []
        for name, right in (("one", 2), ("two", 1)):
            answers = ["It is 42."] * right + ["It is 41.", "no idea", "41"][: 4 - right]
            line = {"references": ["6 * 7 = <<6*7=42>>42\n#### 42"], "answers": answers}
            lines = [json.dumps(line | {"input": str(i)}) for i in range(60)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
            files.append(str(tmp_path / f"{name}.jsonl"))
        found = tmp_path / "all.csv"
        arguments = ["score", *files, "--csv", str(found), "--pass-at", "4,1", "--metric"]
        assert main([*arguments, "pass_2"]) == 0
        assert re.search("pass@2 difference", out := capsys.readouterr().out)
        assert "pass@1, pass@2, pass@4: right by exact_match\n" in out
        with found.open() as file:
            assert [float(row["pass_4_mean"]) for row in csv.DictReader(file)] == [0, 0], "no whole answer"
        assert main([*arguments, "exact_answer"]) == 0
        with found.open() as file:
            one, two = csv.DictReader(file)
        assert [float(one[f"pass_{k}_mean"]) for k in (1, 4)] == [50, 100]
        assert [float(two[f"pass_{k}_mean"]) for k in (1, 4)] == [25, 100]
        assert "pass_2_mean" not in one
        assert [float(row["unparsable_mean"]) for row in (one, two)] == [25, 25]
        assert main(["score", *files, "--pass-at", "1,5"]) == 1
        assert capsys.readouterr().err == (
            "amid: pass@5 of one: 5 is above the 4 answers to a prompt; use --pass-at with 4 at most\n"
        )
        assert main(["score", *files, "--metric", "pass_7"]) == 1
        assert "pass@7 of one: 7 is above the 4 answers" in capsys.readouterr().err

    def test_a_run_has_the_k_of_its_configuration(self, tmp_path, capsys):
        folder = tmp_path / "run"
        (folder / "generations").mkdir(parents=True)
        for seed, text in ((1, "yes"), (2, "no")):
            rows = answered("a dog", "the dog barked loudly", text)
            write_answers(folder / "generations" / f"open-{seed}.jsonl", rows, seed=seed)
        match = {"exact_match": {"_target_": "amid.metrics.exact_match", "_partial_": True}}
        data = {"metrics": match, "valid_metric": "exact_match", "pass_at": [1, 2]}
        (folder / "config.yaml").write_text(json.dumps({"hash": "0", "config": {"data": data}}))
        assert main(["score", str(folder), "--csv", str(tmp_path / "all.csv")]) == 0
        with (tmp_path / "all.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert float(row["pass_1_mean"]) == pytest.approx(50)
        assert float(row["pass_2_mean"]) == pytest.approx(200 / 3)
        assert row["pass_2_std"] == "", "over all answers, so there is one value"
        (folder / "config.yaml").write_text(
            json.dumps({"hash": "0", "config": {"data": data | {"pass_at": "x"}}})
        )
        capsys.readouterr()
        assert main(["score", str(folder)]) == 1
        assert "its data.pass_at is no list of whole numbers" in capsys.readouterr().err

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
        assert parts_of(capsys.readouterr().out) == ["2 words", "3-5 words"]
        with (tmp_path / "all.csv").open() as file:
            rows = {row["prompts"]: float(row["rouge_l_mean"]) for row in csv.DictReader(file)}
        assert rows["2 words"] == pytest.approx(200 / 3)
        assert rows["3-5 words"] == pytest.approx((50 + 50 + 100 / 3) / 3)

    def test_the_first_part_ends_where_the_next_length_begins(self, tmp_path, capsys):
        path = tmp_path / "lengths.jsonl"
        lines = [{"output": "a " * words, "answers": ["a"]} for words in (1, 3, 3, 4, 9, 9)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(["score", str(path), "--by", "length"]) == 0
        assert parts_of(capsys.readouterr().out) == ["1-3 words", "4 words", "9 words"]

    def test_one_prompt_gives_scores_and_no_difference(self, tmp_path, capsys):
        files = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
        for file in files:
            file.write_text(json.dumps({"output": "Paris", "prediction": "Paris"}) + "\n")
        assert main(["score", *map(str, files)]) == 0
        assert "One prompt cannot show a difference" in capsys.readouterr().out

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
        fewer = tmp_path / "fewer.jsonl"
        fewer.write_text("".join(line + "\n" for line in one.read_text().splitlines()[:2]))
        assert main(["score", str(one), str(fewer)]) == 0
        told = "one is not compared: of its 3 prompts fewer answers 2, and compared are equal sets alone"
        assert told in capsys.readouterr().out
        assert re.search(r"^ ?one +like-one +-33.33 ", out, re.MULTILINE)
        assert "one is not compared" not in out
        with (tmp_path / "all.csv").open() as file:
            assert [row["system"] for row in csv.DictReader(file)] == ["one", "like-one", "other"]
        assert main(["score", str(one), "--csv", str(tmp_path / "none" / "all.csv")]) == 1
        assert "make it first" in capsys.readouterr().err
        assert main(["score", str(one), "--csv", str(tmp_path)]) == 1
        assert capsys.readouterr() == (
            "",
            f"amid: --csv={tmp_path} is a folder; give the name of a file, such as {tmp_path}/scores.csv\n",
        )
        assert main(["score", str(one), str(like_one), "--at", "20"]) == 1
        assert "--at 20: no two of these systems answer the same prompts at several temperatures" in (
            capsys.readouterr().err
        )

    def test_a_folder_without_answers(self, tmp_path, capsys):
        assert main(["score", str(tmp_path)]) == 1
        assert capsys.readouterr().err.endswith("give the folder of a finished run\n")
        run = tmp_path / "a=1"
        run.mkdir()
        (run / "result.json").touch()
        assert main(["score", str(tmp_path)]) == 1
        assert f"give the folder of a finished run, such as {run}\n" in capsys.readouterr().err

    def test_a_run_is_scored_as_it_scored_itself(self, finished, tmp_path, capsys):
        run = finished
        assert main(["score", str(run), "--csv", str(tmp_path / "all.csv")]) == 0
        result = json.loads((run / "result.json").read_text())["scores"]
        with (tmp_path / "all.csv").open() as file:
            rows = {row["set"]: row for row in csv.DictReader(file)}
        assert rows.keys() == result.keys()
        for name, row in rows.items():
            for metric, score in result[name].items():
                assert float(row[f"{metric}_mean"]) == pytest.approx(score["mean"], abs=1e-4), metric
        assert result["open"].keys() & {*OF_ANSWERS} == {*OF_ANSWERS} - {"unparsable"}

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
