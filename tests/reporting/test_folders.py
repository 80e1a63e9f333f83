import json
import math

import pytest

from amid.errors import InputError
from amid.reporting.folders import (
    Drawn,
    Prompt,
    answers,
    configuration,
    curves,
    differences,
    sizes,
    thinned,
)


def write(folder, name, *rows):
    (folder / "generations").mkdir(exist_ok=True)
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / "generations" / name).write_text(text, encoding="utf-8")


def row(text="an answer", instruction="Say.", **more):
    answer = {"text": text, "tokens": 2, "ended": True} | more
    return {"instruction": instruction, "input": "", "references": ["a", "b"], "answers": [answer]}


class TestAnswers:
    def test_all_seeds_of_a_prompt_in_the_order_of_their_numbers(self, tmp_path):
        for seed in (10, 2):
            write(tmp_path, f"my-set-{seed}.jsonl", row(f"of {seed}"), row("other", "Sing."))
        found = answers(tmp_path, most=5)
        say, sing = Prompt("Say.", "", ("a", "b")), Prompt("Sing.", "", ("a", "b"))
        assert list(found) == ["my-set"]
        assert list(found["my-set"]) == [say, sing]
        assert found["my-set"][say] == [Drawn(2, "of 2", 2, True), Drawn(10, "of 10", 2, True)]
        assert list(answers(tmp_path, most=1)["my-set"]) == [say]

    def test_further_fields_are_passed_over_and_missing_ones_are_none(self, tmp_path):
        line = row(log_probabilities=[-0.5, -1.0]) | {"category": "song"}
        del line["answers"][0]["tokens"], line["answers"][0]["ended"], line["input"]
        write(tmp_path, "set-1.jsonl", line)
        (drawn,) = answers(tmp_path, most=5)["set"].values()
        assert drawn == [Drawn(1, "an answer", None, None)]

    def test_separators_of_lines_that_json_does_not_escape(self, tmp_path):
        write(tmp_path, "set-1.jsonl", json.dumps(row("a\u2028b\x85c"), ensure_ascii=False) + "\n")
        (drawn,) = answers(tmp_path, most=5)["set"].values()
        assert drawn[0].text == "a\u2028b\x85c"

    def test_none(self, tmp_path):
        assert answers(tmp_path, most=5) == {}
        assert sizes(tmp_path) == {}

    @pytest.mark.parametrize(
        ("line", "reason"),
        [("{\n", "line 2"), ('{"instruction": "x"}\n', "no references"), ("[1]\n", "line 2")],
    )
    def test_a_damaged_line_is_named(self, tmp_path, line, reason):
        write(tmp_path, "set-1.jsonl", row(), line)
        with pytest.raises(InputError, match=r"set-1\.jsonl, line 2, is no prompt") as error:
            answers(tmp_path, most=5)
        assert reason in str(error.value)

    def test_a_file_of_another_name(self, tmp_path):
        write(tmp_path, "notes.jsonl", row())
        with pytest.raises(InputError, match="not named SET-SEED"):
            answers(tmp_path, most=5)

    def test_sizes(self, tmp_path):
        for seed in (1, 2):
            write(tmp_path, f"set-{seed}.jsonl", row(), row())
        line = len(json.dumps(row()) + "\n")
        assert sizes(tmp_path) == {"set": (2, 2.0 * line)}


class TestCurves:
    def test_training_without_the_scores_of_the_sets(self, tmp_path):
        (tmp_path / "metrics.csv").write_text(
            "epoch,step,test/open/rouge_l,train/loss,valid/loss\n0,4,,2.0,\n0,0,,,3.0\n,0,50.0,,\n1,9,,nan,1.0\n"
        )
        found = curves(tmp_path)
        assert list(found) == ["train/loss", "valid/loss"]
        assert found["valid/loss"] == {0: 3.0, 9: 1.0}
        assert math.isnan(found["train/loss"][9])
        assert thinned(found["train/loss"], 5) == [(4, 2.0)]

    def test_the_later_part_of_a_resumed_run_wins(self, tmp_path):
        for name, value in (("metrics-0", 1.0), ("metrics-1", 2.0), ("metrics-10", 4.0), ("metrics-2", 3.0)):
            (tmp_path / f"{name}.csv").write_text(f"step,loss\n{7},{value}\n")
        assert curves(tmp_path) == {"loss": {7: 4.0}}
        (tmp_path / "metrics.csv").write_text("step,loss\n7,5.0\n9,6.0\n")
        assert curves(tmp_path) == {"loss": {7: 5.0, 9: 6.0}}

    def test_a_last_line_that_was_cut_off(self, tmp_path):
        (tmp_path / "metrics.csv").write_text("step,loss,lr\n7,5.25,0.1\n8,5.5,0.1\n9,1")
        assert curves(tmp_path) == {"loss": {7: 5.25, 8: 5.5}, "lr": {7: 0.1, 8: 0.1}}

    def test_a_damaged_file_is_named(self, tmp_path):
        (tmp_path / "metrics.csv").write_text("step,loss\n7,much\n")
        with pytest.raises(InputError, match=r"metrics\.csv has a line .*much"):
            curves(tmp_path)
        (tmp_path / "metrics.csv").write_text(f"step,loss\n7,{'0' * 200_000}\n")
        with pytest.raises(InputError, match=r"metrics\.csv is damaged \(field larger than"):
            curves(tmp_path)

    def test_none(self, tmp_path):
        assert curves(tmp_path) == {}

    def test_thinned_keeps_the_ends(self):
        curve = {step: float(step) for step in range(1000)}
        kept = thinned(curve, 11)
        assert (len(kept), kept[0], kept[-1]) == (11, (0, 0.0), (999, 999.0))


class TestConfigurations:
    def test_what_differs(self, tmp_path):
        for name, alpha in (("a", "-5"), ("b", "1")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.yaml").write_text(
                f"hash: h\nconfig:\n  seed: 3\n  output_dir: /{name}\n"
                f"  data: {{seed: 3, cache_dir: /{name}}}\n"
                f"  logger: {{csv: {{save_dir: /{name}}}}}\n  assistant: {{alpha: {alpha}}}\n"
                f"  objective: {{assistant: {{alpha: {alpha}}}, order: null}}\n"
            )
        found = [configuration(tmp_path / name) for name in ("a", "b", "none")]
        assert found[0] == {"seed": 3, "assistant.alpha": -5, "objective.order": None}
        common, own = differences(found)
        assert common == {"seed": 3, "objective.order": None}
        assert own == [{"assistant.alpha": -5}, {"assistant.alpha": 1}, {}]
        common, own = differences([*found[:2], found[0]])
        assert common == {"seed": 3, "assistant.alpha": -5, "objective.order": None}
        assert own == [{}, {"assistant.alpha": 1}, {}]

    def test_a_copy_that_differs_stays(self, tmp_path):
        (tmp_path / "config.yaml").write_text("config: {seed: 1, data: {seed: 2}}")
        assert configuration(tmp_path) == {"seed": 1, "data.seed": 2}

    def test_a_key_that_one_lacks_differs(self):
        assert differences([{"a": 1, "b": 2}, {"a": 1}]) == ({"a": 1}, [{"b": 2}, {}])
        whole = {"a.x": 1, "a.y": 2, "b.z": 3}
        common, own = differences([whole, whole, {"a": None}])
        assert common == whole
        assert own == [{}, {}, {"a": None, "b.z": "(absent)"}]
        assert differences([{}, {}]) == ({}, [{}, {}])

    @pytest.mark.parametrize("text", ["hash: h", "config: [", "3"])
    def test_a_damaged_file_is_named(self, tmp_path, text):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=r"config\.yaml is damaged"):
            configuration(tmp_path)
