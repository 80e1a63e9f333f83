import dataclasses
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amid.errors import Damaged, InputError
from amid.files import read_mapping, write_json
from amid.results import RESULT_FILE, RunResult, Score, load, load_all, load_folders, save

RUN = RunResult(
    name="α=-5",
    labels={"method": "amid", "alpha": -5.0, "lam": 0.1, "order": None, "layers": 2, "fused": True},
    config_hash="0123abcd",
    seed=3,
    scores={
        "dolly": {"rouge_l": Score.over_seeds([25.0, 26.0, 27.0]), "self_bleu": Score.over_seeds([40.0])}
    },
    training={"steps": 400, "valid_loss": 1.25},
    timings={"train": 12.5},
    versions={"torch": "2.13.0"},
)


def same(a: object, b: object) -> bool:
    """Equality under which NaN equals NaN."""
    return repr(a) == repr(b)


class TestScore:
    def test_by_hand(self):
        assert Score.over_seeds([1.0, 2.0, 6.0]) == Score(3.0, math.sqrt(7.0), [1.0, 2.0, 6.0])

    def test_one_value_has_no_deviation(self):
        assert Score.over_seeds([4]) == Score(4.0, None, [4.0])

    def test_a_failed_seed_is_not_averaged_away(self):
        score = Score.over_seeds([1.0, math.nan])
        assert math.isnan(score.mean)
        assert score.std is not None
        assert math.isnan(score.std)

    def test_failed_scores_are_equal_if_all_else_is(self):
        """NaN is made anew each time, since equal objects are equal on some versions of Python alone."""

        def failed(*values, signature=None):
            return Score.over_seeds([float(value) for value in values], signature)

        assert failed(1.0, "nan") == failed(1.0, "nan")
        assert failed("nan") == Score(float("nan"), None, [float("nan")])
        others = [failed("nan", 1.0), failed(1.0), failed(1.0, 1.0), failed(1.0, "nan", signature="tok:13a")]
        assert not any(other == failed(1.0, "nan") for other in others)
        assert failed("nan") != "nan"

    def test_infinite_values_stay(self):
        assert Score.over_seeds([1.0, math.inf]).mean == math.inf

    def test_no_values(self):
        with pytest.raises(ValueError, match="at least one value"):
            Score.over_seeds([])

    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
    def test_any_numbers(self, values):
        assert Score.over_seeds(values).values == values


class TestRoundTrip:
    def test_equal(self, tmp_path):
        assert save(RUN, tmp_path / "new" / "run") == tmp_path / "new" / "run" / RESULT_FILE
        assert load(tmp_path / "new" / "run") == RUN
        assert load(tmp_path / "new" / "run" / RESULT_FILE) == RUN
        assert load(str(tmp_path / "new" / "run")) == RUN

    def test_a_signature_stays_and_only_where_there_is_one(self, tmp_path):
        scores = {"wmt": {"bleu": Score.over_seeds([1.0, 2.0], "tok:13a"), "chrf": Score.over_seeds([3.0])}}
        run = dataclasses.replace(RUN, scores=scores)
        file = save(run, tmp_path)
        assert load(file) == run
        written = json.loads(file.read_text(encoding="utf-8"))["scores"]["wmt"]
        assert written["bleu"]["signature"] == "tok:13a"
        assert set(written["chrf"]) == {"mean", "std", "values"}

    def test_ladders_stay_and_only_where_there_are_some(self, tmp_path):
        low = {"dolly": {"rouge_l": Score.over_seeds([30.0, 32.0])}}
        run = dataclasses.replace(RUN, ladders={"temperature": {0.55: low, 1.0: RUN.scores}})
        file = save(run, tmp_path)
        assert load(file) == run
        assert list(json.loads(file.read_text(encoding="utf-8"))["ladders"]["temperature"]) == ["0.55", "1.0"]
        assert "ladders" not in json.loads(save(RUN, tmp_path).read_text(encoding="utf-8"))

    @pytest.mark.parametrize("rung", ["warm", "nan", "-1"])
    def test_a_rung_that_is_no_number(self, tmp_path, rung):
        content = {"schema": 1, **json.loads(save(RUN, tmp_path).read_text(encoding="utf-8"))}
        content.pop("checksum")
        write_json(tmp_path / RESULT_FILE, content | {"ladders": {"temperature": {rung: {}}}})
        with pytest.raises(Damaged, match="is damaged"):
            load(tmp_path)

    @given(
        numbers=st.lists(st.floats(), min_size=1, max_size=3),
        labels=st.dictionaries(
            st.text(),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        ),
    )
    def test_any_number_and_label(self, tmp_path_factory, numbers, labels):
        directory = tmp_path_factory.getbasetemp() / "any"
        run = dataclasses.replace(
            RUN,
            labels={name: value for name, value in labels.items() if value not in ("nan", "inf", "-inf")},
            scores={"set": {"rouge_l": Score.over_seeds(numbers)}},
            training={"loss": numbers[0]},
        )
        save(run, directory)
        assert same(load(directory), run)

    def test_valid_json_without_a_number(self, tmp_path):
        run = dataclasses.replace(RUN, training={"a": math.nan, "b": math.inf, "c": -math.inf})
        text = save(run, tmp_path).read_text(encoding="utf-8")

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        assert json.loads(text, parse_constant=refuse)["training"] == {"a": "nan", "b": "inf", "c": "-inf"}
        assert same(load(tmp_path), run)

    def test_a_label_must_be_a_single_value(self, tmp_path):
        with pytest.raises(TypeError, match="label 'sets' must be"):
            save(dataclasses.replace(RUN, labels={"sets": ["dolly"]}), tmp_path)
        assert not list(tmp_path.iterdir())


class TestAtomicity:
    def test_nothing_but_the_file_remains(self, tmp_path):
        save(RUN, tmp_path)
        save(dataclasses.replace(RUN, seed=4), tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [RESULT_FILE]
        assert load(tmp_path).seed == 4

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_a_failed_write_leaves_the_old_record(self, tmp_path, monkeypatch, call):
        save(RUN, tmp_path)

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(OSError, match="disk full"):
            save(dataclasses.replace(RUN, seed=4), tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [RESULT_FILE]
        assert load(tmp_path) == RUN

    def test_others_may_read_it(self, tmp_path):
        mask = os.umask(0o022)
        try:
            assert save(RUN, tmp_path).stat().st_mode & 0o777 == 0o644
        finally:
            os.umask(mask)


class TestMistakes:
    def test_no_result(self, tmp_path):
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(InputError, match=r"does not exist: .* let the run finish") as error:
                load(path)
            assert str(path) in str(error.value)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', b"\xff\xfe"])
    def test_damaged(self, tmp_path, text):
        file = tmp_path / RESULT_FILE
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match=f"result {file} "):
            load(tmp_path)

    def test_another_version(self, tmp_path):
        file = save(RUN, tmp_path)
        write_json(file, read_mapping(file, "") | {"schema": 2})
        with pytest.raises(InputError, match="has schema 2, this version of amid reads 1"):
            load(tmp_path)

    def test_every_wrong_field_is_noticed(self, tmp_path):
        file = save(RUN, tmp_path)
        record = read_mapping(file, "")
        for field in record:
            for wrong in ("missing", None, {"a": {"b": "c"}}, [1], True):
                broken = {key: value for key, value in record.items() if key != field}
                if wrong != "missing":
                    broken[field] = wrong
                if wrong is True and field == "schema":
                    continue  # equals 1
                file.write_text(json.dumps(broken), encoding="utf-8")
                with pytest.raises(InputError, match=r"result .* (is damaged|has schema)"):
                    load(tmp_path)

    @pytest.mark.parametrize(
        ("where", "wrong"),
        [
            (["training", "steps"], "nan"),
            (["training", "steps"], 1.5),
            (["training", "diverged_step"], "inf"),
            (["scores", "dolly", "rouge_l", "values"], []),
            (["scores", "dolly", "rouge_l", "mean"], 10**400),
            (["timings", "train"], "inf"),
            (["timings", "train"], -1.0),
            (["scores", "dolly", "rouge_l", "mean"], "ten"),
            (["scores", "dolly", "rouge_l", "std"], True),
            (["files"], ["a"]),
            (["seed"], 1.5),
        ],
    )
    def test_wrong_values_of_a_record_without_a_checksum(self, tmp_path, where, wrong):
        file = save(RUN, tmp_path)
        record = read_mapping(file, "")
        node = record
        for name in where[:-1]:
            node = node[name]
        node[where[-1]] = wrong
        file.write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(Damaged, match=r"^result .*result\.json is damaged .*; delete it and run again$"):
            load(tmp_path)

    @pytest.mark.parametrize("where", ["labels", "versions", "name", "scores"])
    def test_texts_that_no_table_could_show(self, tmp_path, where):
        record = json.loads(save(RUN, tmp_path).read_text())
        record.pop("checksum")
        long = "x" * 100_000
        record[where] = long if where == "name" else {**record[where], long: long}
        (tmp_path / "result.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match="has 100,000 characters, and may have 4,000") as error:
            load(tmp_path)
        assert len(str(error.value)) < 500

    def test_another_number_is_noticed(self, tmp_path):
        file = save(RUN, tmp_path)
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("26.0", "96.0"), encoding="utf-8")
        with pytest.raises(Damaged, match="not that of its checksum"):
            load(tmp_path)

    def test_a_record_of_an_earlier_version_is_read(self, tmp_path):
        file = save(RUN, tmp_path)
        file.write_text(json.dumps(read_mapping(file, "")), encoding="utf-8")
        assert load(tmp_path) == RUN

    def test_a_cut_file(self, tmp_path):
        file = save(RUN, tmp_path)
        text = file.read_text(encoding="utf-8").rstrip()
        for length in range(0, len(text), 7):
            file.write_text(text[:length], encoding="utf-8")
            with pytest.raises(InputError, match="is damaged"):
                load(tmp_path)


class TestLoadAll:
    def test_sorted_by_path_at_any_depth(self, tmp_path):
        for seed, path in enumerate(["b", "a/deep/run", "a", "."]):
            save(dataclasses.replace(RUN, seed=seed), tmp_path / path)
        assert [run.seed for run in load_all(tmp_path)] == [1, 2, 0, 3]
        folders = {
            str(folder.relative_to(tmp_path)): run.seed for folder, run in load_folders(tmp_path).items()
        }
        assert folders == {"a/deep/run": 1, "a": 2, "b": 0, ".": 3}

    def test_folders_left_out(self, tmp_path):
        for path in ("run", "report", "run/prepared/sft", ".hidden", "run/.hydra"):
            save(dataclasses.replace(RUN, name=path), tmp_path / path)
        assert [run.name for run in load_all(tmp_path)] == ["run"]

    def test_a_folder_may_itself_be_named_so(self, tmp_path):
        save(RUN, tmp_path / "report" / "run")
        assert load_all(tmp_path / "report") == [RUN]

    def test_none(self, tmp_path):
        assert load_all(tmp_path) == []

    def test_mistakes(self, tmp_path):
        with pytest.raises(InputError, match="is neither a folder nor a zip file"):
            load_all(tmp_path / "nowhere")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / RESULT_FILE).write_text("{", encoding="utf-8")
        with pytest.raises(InputError, match=f"result {tmp_path / 'run' / RESULT_FILE} is damaged"):
            load_all(tmp_path)


class TestFarWorse:
    @pytest.mark.parametrize(
        ("training", "told"),
        [
            ({"valid_cross_entropy": 4.0}, ""),
            ({"valid_cross_entropy_before": 5.0, "valid_cross_entropy": 6.9}, ""),
            (
                {"valid_cross_entropy_before": 5.034, "valid_cross_entropy": 3744.0},
                "cross-entropy 5.034 before the training, 3,744.000 after it",
            ),
            (
                {
                    "valid_cross_entropy_before": 5.0,
                    "valid_cross_entropy": 4.0,
                    "valid_cross_entropy_last": 7.5,
                },
                "cross-entropy 5.000 before the training, 7.500 at its end",
            ),
            (
                {"valid_cross_entropy_before": 5.0, "valid_cross_entropy": math.nan},
                "cross-entropy 5.000 before the training, nan after it",
            ),
            (
                {"valid_rouge_l_before": 40.0, "valid_rouge_l": 19.9},
                "ROUGE-L 40.0 before the training, 19.9 after it",
            ),
            ({"valid_rouge_l_before": 40.0, "valid_rouge_l": 20.0}, ""),
            ({"valid_exact_answer_before": 0.9, "valid_exact_answer": 0.0}, ""),
            ({"valid_same_top_before": 2.0, "valid_same_top": 0.1}, ""),
        ],
    )
    def test_by_both_numbers(self, training, told):
        assert dataclasses.replace(RUN, training={"steps": 4.0, **training}).far_worse == told

    def test_without_a_step_nothing_got_worse(self):
        training = {"steps": 0.0, "valid_cross_entropy_before": 1.0, "valid_cross_entropy": 9.0}
        assert dataclasses.replace(RUN, training=training).far_worse == ""
