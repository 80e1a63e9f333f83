import csv
import dataclasses
import io
import json

import pytest

from amid.reporting import build_table
from amid.reporting.sections import cost, on_validation, outcome, passes, pivots
from amid.results import Score

ALONE = {"assistant": "none", "alpha": None, "lam": None}

# Seconds a step, settings of the configuration, labels and ROUGE-L of a run
KL = {"divergence": "kl"}
ASSISTANT = {"assistant": {"alpha": -5.0}, "objective": {"order": "pr", "assistant": {"alpha": -5.0}}}
KD = (1.0, KL, {"method": "kd"}, 40.0)
IMITKD = (4.0, KL | {"text": "student"}, {"method": "imitkd", "order": "pq"} | KL | ALONE, 41.0)
AMID = (1.5, KL | ASSISTANT, KL, 42.0)


def with_training(run, **figures):
    return dataclasses.replace(run, training=run.training | figures)


def diverged(run):
    return dataclasses.replace(run, scores={name: {} for name in run.scores}, training={"diverged_step": 3.0})


class TestSections:
    def test_outcomes(self, make_run):
        assert outcome(make_run(), "rouge_l") == "trained"
        assert outcome(make_run((0.5,)), "rouge_l") == "collapsed"
        assert outcome(diverged(make_run()), "rouge_l") == "diverged"
        fallen = with_training(make_run(), valid_rouge_l_before=40.0, valid_rouge_l=19.0)
        assert outcome(fallen, "rouge_l") == "collapsed"
        assert outcome(with_training(fallen, valid_rouge_l=21.0), "rouge_l") == "trained"
        hard = with_training(make_run((0.6,)), valid_rouge_l_before=0.3, valid_rouge_l=0.6)
        assert outcome(hard, "rouge_l") == "trained"

    def test_divergences_over_alpha(self, sweep):
        (section,) = pivots(build_table(sweep))
        assert section.heads == ["α =", "-5", "-1", "1"]
        assert [line[0] for line in section.lines] == ["KL(p, r)", "RKL(p, r)", "αβ(p, r)"]
        assert section.lines[0][1].startswith("55.7 ± ")

    def test_a_map_of_alpha_and_lambda_counts_failures(self, make_run):
        runs = [make_run(alpha=a, lam=lam, seed=s) for a in (-5.0, 1.0) for lam in (0.1, 0.9) for s in (1, 2)]
        scores, failures = pivots(build_table([diverged(runs[-1]), *runs[:-1], make_run(method="sft")]))
        assert [line[0] for line in scores.lines] == ["αβ(p, r) λ=0.1", "αβ(p, r) λ=0.9"]
        assert failures.lines == [["αβ(p, r) λ=0.1", "0/2", "0/2"], ["αβ(p, r) λ=0.9", "0/2", "1/2"]]
        assert "| αβ(p, r) λ=0.9 | 0/2 | 1/2 |" in failures.to_markdown()

    def test_pass_at_k_and_failures(self, make_run):
        """The main table keeps its columns; a run without pass@k has none in the section."""

        def scored(seed, **values):
            run = make_run(seed=seed)
            scores = {name: Score.over_seeds([value]) for name, value in values.items()}
            of_pass = dataclasses.replace(Score.over_seeds([20.0 + seed]), signature="right by exact_answer")
            scores |= {"pass_12": of_pass, "pass_2": of_pass}
            return dataclasses.replace(run, scores={"numbers": run.scores["dolly"] | scores})

        without = make_run(method="sft", sets=("numbers",))
        table = build_table([scored(1, unparsable=5.0), scored(3, unparsable=6.0), without])
        assert table.metrics == ["rouge_l", "self_bleu"]
        section = passes(table)
        assert section.heads == ["Setting", "pass@2", "pass@12", "Unparsable"]
        assert [line[1:] for line in section.lines] == [["–"] * 3, ["22.0 ± 1.4", "22.0 ± 1.4", "5.5 ± 0.7"]]
        assert "is right (right by exact_answer), the mean over prompts of numbers." in section.note
        assert passes(build_table([make_run()])) is None

    def test_one_axis_is_no_map(self, make_run):
        assert not pivots(build_table([make_run(alpha=a) for a in (-5.0, 1.0)]))

    def test_two_methods_have_a_line_each(self, make_run):
        runs = [
            make_run((mean,), method=method, divergence="kl", alpha=alpha)
            for method, alpha, mean in (
                ("amid", -5.0, 50.0),
                ("amid", 1.0, 40.0),
                ("distillm_skl", -5.0, 30.0),
                ("distillm_skl", 1.0, 20.0),
            )
        ]
        (section,) = pivots(build_table(runs))
        assert section.lines == [
            ["KL(p, r) DistiLLM SKL", "30.0", "20.0"],
            ["KL(p, r) AMiD", "50.0", "40.0"],
        ]


class TestCost:
    @pytest.fixture
    def of(self, tmp_path, make_run):
        """The section on such runs."""

        def section(*runs):
            records = {}
            for number, (seconds, config, labels, rouge_l) in enumerate(runs):
                folder = tmp_path / str(number)
                folder.mkdir(exist_ok=True)
                text = json.dumps({"config": {"seed": 1, "text": "data", "assistant": None} | config})
                (folder / "config.yaml").write_text(text)
                run = make_run((rouge_l,), **labels)
                figures = {"step_seconds": seconds, "peak_memory": 2e9 * (seconds or 0)}
                records[folder] = with_training(run, **figures) if seconds else run
            return cost(build_table(list(records.values())), records)

        return section

    def test_against_the_same_divergence(self, of):
        other = (9.0, {"divergence": "alpha_beta"} | ASSISTANT, {}, 50.0)
        expected = [
            ["1,000.0", "1.00", "–", "2.00", "1.00", "+0.00"],
            ["1,500.0", "1.50", "–", "3.00", "1.50", "+2.00"],
        ]
        assert [line[1:] for line in of(KD, AMID, other).lines] == expected
        assert of(AMID, other) is None
        again = (None, AMID[1], KL | {"settings": "generation.samples=8"}, 43.0)
        assert [line[1:] for line in of(KD, AMID, other, again).lines] == expected

    def test_on_the_same_text(self, of):
        """KD is on the data, ImitKD on the student's own answers, as this assistant is."""
        own = (
            6.0,
            AMID[1] | {"text": "student"},
            KL | {"settings": "text=student"},
            45.0,
        )
        lines = of(KD, IMITKD, AMID, own).lines
        assert [line[:3] for line in lines] == [
            ["KD", "1,000.0", "1.00"],
            ["AMiD", "1,500.0", "1.50"],
            ["ImitKD", "4,000.0", "1.00"],
            ["AMiD settings=text=student", "6,000.0", "1.50"],
        ]
        assert of(KD, own) is None
        assert of(IMITKD, AMID) is None

    def test_with_the_same_settings(self, of):
        for key in ("optimizer", "trainer"):
            labels = KL | {"settings": f"{key}.lr=1"}
            assert of(KD, (1.5, AMID[1] | {key: {"lr": 1}}, labels, 42.0)) is None
        moved = (1.5, AMID[1] | {"schedule": {"lam": 0.5}}, KL, 42.0)
        assert len(of(KD, moved).lines) == 2


class TestOnTheValidationText:
    @pytest.fixture
    def runs(self, make_run):
        """AMiD with two training seeds, and SFT, which has no teacher."""
        runs = [make_run(seed=seed) for seed in (1, 2)] + [make_run(method="sft")]
        for run, kl in zip(runs, (0.25, 0.75, None), strict=True):
            run.training.update(valid_cross_entropy=1.0, valid_perplexity=2.71828)
            run.training.update(valid_cross_entropy_before=2.0)
            if kl is not None:
                run.training.update(valid_kl_pq=kl, valid_same_top=kl, valid_same_top_before=0.1 * kl)
        return runs

    def test_a_row_a_setting(self, runs):
        section = on_validation(build_table(runs))
        assert section.heads == [
            "Setting",
            "Cross-entropy (nats/token)",
            "Perplexity",
            "KL(p ‖ q) (nats/token)",
            "Same top token (%)",
        ]
        assert section.lines == [
            ["SFT", "1.000", "2.72", "–", "–"],
            ["AMiD", "1.000 ± 0.000", "2.72 ± 0.00", "0.500 ± 0.354", "50.0 ± 35.4"],
        ]
        before = "Cross-entropy 2.000 nats/token, Same top token differs between the runs (see table.csv)."
        assert section.note.endswith(f"Before the training: {before}")

    def test_several_that_differ_before_the_training(self, runs):
        for run, kl in zip(runs[:2], (0.5, 0.9), strict=True):
            run.training.update(valid_kl_pq_before=kl)
        note = on_validation(build_table(runs)).note
        assert note.endswith(
            "nats/token, KL(p ‖ q) and Same top token differ between the runs (see table.csv)."
        )

    def test_what_is_not_trained_has_nothing_before_its_training(self, runs, make_run):
        teacher = make_run(method="teacher")
        teacher.training.update(steps=0, valid_cross_entropy=1.5, valid_cross_entropy_before=1.5)
        runs[1].training["valid_same_top_before"] = runs[0].training["valid_same_top_before"]
        note = on_validation(build_table([*runs, teacher])).note
        assert note.endswith("Before the training: Cross-entropy 2.000 nats/token, Same top token 2.5 %.")

    def test_a_part_of_the_seeds_is_no_mean(self, runs):
        del runs[1].training["valid_kl_pq"]
        runs[1].training["diverged_step"] = 3.0
        lines = on_validation(build_table(runs)).lines
        assert lines[1] == ["AMiD", "diverged 1/2", "diverged 1/2", "diverged 1/2", "diverged 1/2"]
        del runs[1].training["diverged_step"]
        assert on_validation(build_table(runs)).lines[1][3:] == ["–", "50.0 ± 35.4"]

    def test_what_was_only_scored_has_no_row(self, runs, make_run):
        again = make_run(settings="generation.samples=8")
        assert len(on_validation(build_table([*runs, again])).lines) == 2
        assert on_validation(build_table([again])) is None

    def test_columns_of_the_csv(self, runs):
        sft, amid = csv.DictReader(io.StringIO(build_table(runs).to_csv()))
        measured = ("cross_entropy", "perplexity", "kl_pq", "same_top")
        assert [name for name in amid if name.startswith("valid_")] == [
            f"valid_{name}_{part}"
            for name in (*measured, "cross_entropy_before", "same_top_before")
            for part in ("mean", "std")
        ]
        assert float(amid["valid_kl_pq_mean"]) == 0.5
        assert float(amid["valid_kl_pq_std"]) == pytest.approx(0.125**0.5)
        assert (sft["valid_kl_pq_mean"], sft["valid_cross_entropy_mean"]) == ("", "1.0")
        assert (sft["valid_cross_entropy_std"], sft["valid_cross_entropy_before_mean"]) == ("", "2.0")
        runs[0].training["diverged_step"] = 3.0
        amid = list(csv.DictReader(io.StringIO(build_table(runs).to_csv())))[1]
        assert (amid["valid_kl_pq_mean"], amid["valid_cross_entropy_before_mean"]) == ("nan", "2.0")
