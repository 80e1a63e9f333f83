import csv
import dataclasses
import io
import math
import random
import re
import shutil
import subprocess

import pytest
from rich.console import Console

from amid.errors import InputError
from amid.reporting import Table, build_table
from amid.reporting.rows import label_text
from amid.reporting.table import AVERAGE
from amid.results import Score

NAN = math.nan


def markdown(table: Table) -> list[dict[str, str]]:
    """The lines of the Markdown table, by head."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.to_markdown().splitlines()
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def terminal(table: Table, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.to_terminal())
    return console.export_text()


class TestRows:
    def test_runs_that_differ_in_the_seed_alone_are_one_row(self, make_run):
        runs = [make_run((q, q + 1), seed=seed) for seed, q in enumerate((50.0, 52.0, 54.0))]
        (row,) = build_table(runs).rows
        # Over the training seeds' means, 50.5, 52.5 and 54.5; not over the six values.
        assert row.score("dolly", "rouge_l") == Score(52.5, 2.0, [50.5, 52.5, 54.5])

    def test_one_training_seed_keeps_its_sampling_seeds(self, make_run):
        (row,) = build_table([make_run((50.0, 51.0, 52.0))]).rows
        assert row.score("dolly", "rouge_l") == Score(51.0, 1.0, [50.0, 51.0, 52.0])

    def test_runs_on_other_data_are_averaged_over_their_own_sets_and_not_ranked(self, make_run):
        own = {"data": "jsonl", "settings": "data.train=my/train.jsonl,seed_of=3"}
        runs = [make_run((50.0,), sets=("open", "closed")), make_run((60.0,), sets=("mine",), **own)]
        table = build_table(runs)
        assert [line["ROUGE-L ↑ Avg"] for line in markdown(table)] == ["50.00", "60.00"]
        assert table.places("rouge_l", AVERAGE) == [0, 0]
        assert (
            "Avg is the mean over the sets of the data of the row (no best value is marked)" in table.caption
        )
        assert [row.labels.get("settings") for row in table.rows] == [None, "seed_of=3"], (
            "Data tells the file"
        )

    @pytest.mark.parametrize(
        ("further", "averages", "over"),
        [
            ((), [45.0, 55.0], "the sets, with"),
            (("c",), [45.0, 55.0], "the sets that most runs have (a, b), with"),
        ],
    )
    def test_a_set_that_one_run_has_alone_is_left_out_of_every_average(
        self, make_run, further, averages, over
    ):
        runs = [make_run((0.0,), sets=("a", "b"), alpha=-1.0)]
        runs.append(make_run((0.0,), sets=("a", "b", *further), alpha=1.0))
        for run, means in zip(runs, ((40.0, 50.0), (50.0, 60.0, 90.0)), strict=True):
            for name, mean in zip(run.scores, means, strict=False):
                run.scores[name]["rouge_l"] = Score.over_seeds([mean])
        table = build_table(runs)
        assert [table.score(row, "rouge_l").mean for row in table.rows] == averages
        assert f"Avg is the mean over {over} equal weights." in table.caption
        assert table.places("rouge_l", AVERAGE) == [0, 1]

    def test_runs_without_a_common_set_have_no_average(self, make_run):
        table = build_table([make_run(sets=(name,), alpha=at) for name, at in (("a", -1.0), ("b", 1.0))])
        assert [line["ROUGE-L ↑ Avg"] for line in markdown(table)] == ["–", "–"]
        assert "Avg is empty, as no set has scores of most runs." in table.caption

    def test_a_diverged_run_does_not_take_the_average_from_others(self, make_run):
        gone = dataclasses.replace(make_run(alpha=1.0), scores={}, training={"diverged_step": 3})
        table = build_table([make_run(sets=("a", "b"), alpha=-1.0), gone])
        assert [line["ROUGE-L ↑ Avg"] for line in markdown(table)] == ["**50.00**", "diverged"]

    def test_a_seed_among_the_labels_does_not_count(self, make_run):
        runs = [dataclasses.replace(make_run(seed=s), labels=make_run().labels | {"seed": s}) for s in (1, 2)]
        assert len(build_table(runs).rows) == 1

    def test_a_seed_that_comes_twice_is_another_row(self, make_run):
        runs = [make_run(seed=1), dataclasses.replace(make_run(seed=1), name="again", config_hash="other")]
        table = build_table(runs)
        assert [line["Run"] for line in markdown(table)] == ["amid-1", "again"]
        assert not table.repeats
        assert "left out" not in table.caption

    def test_a_run_of_two_sweeps_is_counted_once_and_the_caption_says_so(self, make_run):
        runs = [make_run((50.0,), seed=1), make_run((52.0,), seed=2)]
        again = [dataclasses.replace(run, name="again", timings={"train": 1.0}) for run in runs]
        table = build_table([*runs, *again])
        (row,) = table.rows
        assert list(row.runs) == runs
        assert row.score("dolly", "rouge_l") == build_table(runs).rows[0].score("dolly", "rouge_l")
        assert [(repeat.run, repeat.counted) for repeat in table.repeats] == list(
            zip(again, runs, strict=True)
        )
        assert "they repeat another one in configuration, seed and versions: 2." in table.caption
        table = build_table([*runs, dataclasses.replace(again[1], scores=make_run((53.0,)).scores)])
        assert [list(row.runs) for row in table.rows] == [runs]
        assert "versions: 1, 1 of them with other scores." in table.caption

    @pytest.mark.parametrize(
        "other",
        [
            {"config_hash": "other"},
            {"versions": {"torch": "2.14.0"}},
            {"labels": {"alpha": 1.0}},
            {"labels": {"method": "mine"}},
            {"seed": 2},
        ],
    )
    def test_what_differs_in_anything_is_no_repeat(self, make_run, other):
        run = make_run(seed=1)
        other = other | {"labels": run.labels | other.get("labels", {})}
        table = build_table([run, dataclasses.replace(run, **other)])
        assert sum(len(row.runs) for row in table.rows) == 2
        assert not table.repeats

    def test_an_evaluation_of_a_trained_run_on_its_sets_is_a_repeat_wherever_it_lies(self, make_run):
        trained = [dataclasses.replace(make_run(seed=seed), training={"steps": 1.0}) for seed in (1, 2)]
        again = dataclasses.replace(make_run((7.0,), seed=1), config_hash="other", training={})
        table = build_table([again, *trained])
        assert [row.runs for row in table.rows] == [tuple(trained)]
        assert [(repeat.run, repeat.counted) for repeat in table.repeats] == [(again, trained[0])]
        elsewhere = dataclasses.replace(make_run(sets=("b",), seed=1), config_hash="other", training={})
        assert len(build_table([elsewhere, *trained]).rows) == 2

    def test_the_default_order_is_the_same_setting(self, make_run):
        assert len(build_table([make_run(seed=1, order="pr"), make_run(seed=2, order=None)]).rows) == 1

    def test_the_average_is_taken_seed_by_seed(self, make_run):
        run = make_run((50.0, 52.0), sets=("a", "b"))
        run.scores["b"]["rouge_l"] = Score.over_seeds([62.0, 60.0])
        (row,) = build_table([run]).rows
        assert row.score("Avg", "rouge_l", ["a", "b"]) == Score(56.0, 0.0, [56.0, 56.0])

    def test_the_average_of_unlike_numbers_of_seeds_has_no_deviation(self, make_run):
        run = make_run((50.0, 52.0), sets=("a", "b"))
        run.scores["b"]["rouge_l"] = Score.over_seeds([60.0])
        (row,) = build_table([run]).rows
        score = row.score("Avg", "rouge_l", ["a", "b"])
        assert score is not None
        assert (score.mean, score.std) == (55.5, None)

    def test_baselines_come_first_and_the_grid_by_divergence_alpha_lam(self, make_run):
        grid = [
            make_run(divergence=divergence, alpha=alpha, lam=lam)
            for divergence in ("kl", "alpha_beta", "my_own")
            for alpha in (-10.0, -5.0, 0.5, 1.0)
            for lam in (0.1, 0.9)
        ]
        runs = [
            make_run(method="sft"),
            make_run(method="kd"),
            make_run(method="distillm_skl", alpha=-1.0),
            *grid,
        ]
        shuffled = runs.copy()
        random.Random(0).shuffle(shuffled)
        assert [row.runs[0] for row in build_table(shuffled).rows] == runs

    def test_another_method_with_several_alphas_is_a_grid(self, make_run):
        rows = build_table([make_run(method="mine", alpha=alpha) for alpha in (-1.0, 1.0)]).rows
        assert not any(row.baseline for row in rows)

    def test_no_results(self):
        with pytest.raises(InputError, match="amid sweep alpha"):
            build_table([])


class TestColumns:
    def test_what_varies_is_shown(self, make_run):
        lines = markdown(build_table([make_run(alpha=-5.0), make_run(alpha=1.0)]))
        assert list(lines[0]) == ["α", "ROUGE-L ↑ dolly", "Self-BLEU ↓ dolly"]
        assert [line["α"] for line in lines] == ["-5", "1"]

    def test_what_a_method_implies_is_in_the_caption(self, make_run):
        table = build_table(
            [make_run(method="sft", text="data"), make_run(method="kd"), make_run(text="student")]
        )
        assert [line["Method"] for line in markdown(table)] == ["SFT", "KD", "AMiD"]
        assert table.varying == ["method"]
        assert "KD: KL(p, q)." in table.caption
        assert "AMiD: αβ(p, r), α = -5, λ = 0.1." in table.caption
        assert "All rows share model tiny, data builtin." in table.caption

    def test_divergence_and_order_are_one_column(self, make_run):
        table = build_table([make_run(order="pr"), make_run(order="qr"), make_run(divergence="kl")])
        assert [line["Divergence"] for line in markdown(table)] == ["KL(p, r)", "αβ(p, r)", "αβ(q, r)"]

    def test_models_and_labels_of_the_user(self, make_run):
        table = build_table([make_run(model="gpt2", layers=2), make_run(model="tiny", layers=12)])
        assert [(line["Model"], line["layers"]) for line in markdown(table)] == [
            ("gpt2", "2"),
            ("tiny", "12"),
        ]

    def test_names(self, make_run):
        table = build_table([make_run(method="sft"), make_run(), make_run(divergence="kl", lam=0.5)])
        assert [table.name(row) for row in table.rows] == [
            "SFT",
            "AMiD KL(p, r) λ=0.5",
            "AMiD αβ(p, r) λ=0.1",
        ]
        assert table.name(table.rows[2], without=["lam", "method"]) == "αβ(p, r)"

    def test_without_an_assistant_it_is_not_called_amid(self, make_run):
        rows = build_table([make_run(assistant="none", alpha=None, lam=None, order="pq")]).rows
        assert [(row.method, row.divergence, row.baseline) for row in rows] == [
            ("No assistant", "αβ(p, q)", True)
        ]

    def test_the_average_needs_two_sets(self, make_run):
        assert "ROUGE-L ↑ Avg" not in markdown(build_table([make_run()]))[0]
        assert "Avg" not in build_table([make_run()]).caption
        table = build_table([make_run(sets=("a", "b"))])
        assert "ROUGE-L ↑ Avg" in markdown(table)[0]
        assert "Avg is the mean over the sets, with equal weights." in table.caption

    def test_n_where_rows_have_unlike_numbers_of_runs(self, make_run):
        table = build_table([make_run(seed=1), make_run(seed=2), make_run(method="sft")])
        assert [line["n"] for line in markdown(table)] == ["1", "2"]
        assert "where n = 1 over the sampling seeds" in table.caption

    def test_the_caption_says_over_what_the_mean_is(self, make_run):
        assert "the sampling seeds of one training run" in build_table([make_run()]).caption
        assert "over 2 training seeds" in build_table([make_run(seed=1), make_run(seed=2)]).caption

    def test_every_metric_that_was_taken(self, make_run):
        def scored(alpha, **values):
            run = make_run(alpha=alpha)
            by = run.scores.pop("dolly")
            own = {name: Score.over_seeds([value], f"of {name}") for name, value in values.items()}
            run.scores["wmt"] = own | {"self_bleu": by["self_bleu"], "length": by["length"]}
            return run

        table = build_table([scored(-5.0, bleu=30.0, chrf=50.0, mine=1.0), scored(1.0, bleu=31.0, chrf=49.0)])
        assert table.quality == "bleu"
        assert markdown(table) == [
            {
                "α": "-5",
                "BLEU ↑ wmt": "30.00",
                "chrF ↑ wmt": "**50.00**",
                "mine ↑ wmt": "**1.00**",
                "Self-BLEU ↓ wmt": "**40.00**",
            },
            {
                "α": "1",
                "BLEU ↑ wmt": "**31.00**",
                "chrF ↑ wmt": "49.00",
                "mine ↑ wmt": "–",
                "Self-BLEU ↓ wmt": "**40.00**",
            },
        ]
        assert "BLEU, chrF, mine: 0 to 100, higher is better." in table.caption
        assert "BLEU: of bleu. chrF: of chrf." in table.caption

    def test_sets_of_unlike_metrics(self, make_run):
        run = make_run(sets=("a", "b", "c"))
        run.scores["c"]["bleu"] = run.scores["c"].pop("rouge_l")
        (line,) = markdown(build_table([run]))
        assert [head for head in line if "Self" not in head][1:] == [
            "ROUGE-L ↑ a",
            "ROUGE-L ↑ b",
            "ROUGE-L ↑ Avg",
            "BLEU ↑ c",
        ]
        assert line["ROUGE-L ↑ Avg"] == "**50.00**"

    def test_exact_match_where_there_is_nothing_else(self, make_run):
        run = make_run()
        run.scores["dolly"]["exact_match"] = Score.over_seeds([1.0])
        assert "Exact match ↑ dolly" not in markdown(build_table([run]))[0]
        del run.scores["dolly"]["rouge_l"]
        assert "Exact match ↑ dolly" in markdown(build_table([run]))[0]

    def test_self_bleu_over_a_whole_set_where_there_is_no_other(self, make_run):
        run = make_run()
        run.scores["dolly"]["corpus_self_bleu"] = run.scores["dolly"].pop("self_bleu")
        table = build_table([run])
        assert markdown(table)[0]["Self-BLEU, set ↓ dolly"] == "**40.00**"
        assert (
            "Self-BLEU, set: similarity of all answers to a set, 0 to 100, lower is more diverse"
            in table.caption
        )


class TestCells:
    def column(self, table: Table, head: str) -> list[str]:
        return [line[head] for line in markdown(table)]

    def test_numbers_and_the_best(self, make_run):
        table = build_table(
            [make_run((50.0, 51.0), (40.0,), alpha=-5.0), make_run((49.004, 49.0), (30.0, 30.2), alpha=1.0)]
        )
        assert self.column(table, "ROUGE-L ↑ dolly") == ["**50.50 ± 0.71**", "49.00 ± 0.00"]
        assert self.column(table, "Self-BLEU ↓ dolly") == ["40.00", "**30.10 ± 0.14**"]

    def test_ties_at_the_digits_shown_are_all_bold(self, make_run):
        values = {-5.0: 50.004, -1.0: 50.0, 1.0: 49.99}
        table = build_table([make_run((value,), alpha=alpha) for alpha, value in values.items()])
        assert self.column(table, "ROUGE-L ↑ dolly") == ["**50.00**", "**50.00**", "49.99"]

    def test_the_second_of_three(self, make_run):
        values = {-5.0: (50.0, 30.0), -3.0: (52.0, 20.0), -1.0: (51.0, 10.0), 1.0: (51.004, 20.0)}
        runs = [make_run((q,), (d,), alpha=alpha) for alpha, (q, d) in values.items()]
        table = build_table(runs)
        assert self.column(table, "ROUGE-L ↑ dolly") == ["50.00", "**52.00**", "*51.00*", "*51.00*"]
        assert self.column(table, "Self-BLEU ↓ dolly") == ["30.00", "*20.00*", "**10.00**", "*20.00*"]
        two = build_table(runs[:2])
        assert self.column(two, "ROUGE-L ↑ dolly") == ["50.00", "**52.00**"]

    def test_failed_is_never_the_best(self, make_run):
        table = build_table(
            [
                make_run((NAN, NAN), (NAN, NAN), alpha=-5.0),
                make_run((10.0, NAN), (5.0, NAN), alpha=-1.0),
                make_run((20.0,), (50.0,), alpha=1.0),
            ]
        )
        assert self.column(table, "ROUGE-L ↑ dolly") == ["failed", "failed 1/2", "**20.00**"]
        assert self.column(table, "Self-BLEU ↓ dolly") == ["failed", "failed 1/2", "**50.00**"]

    def test_all_failed(self, make_run):
        table = build_table([make_run((NAN,), (NAN,))])
        assert self.column(table, "ROUGE-L ↑ dolly") == ["failed"]
        assert "failed" in terminal(table)

    def test_a_missing_set(self, make_run):
        table = build_table(
            [
                make_run(sets=("a", "b"), alpha=-5.0),
                make_run((40.0,), sets=("a", "b"), alpha=-1.0),
                make_run((60.0,), sets=("a",), alpha=1.0),
            ]
        )
        assert self.column(table, "ROUGE-L ↑ b") == ["**50.00**", "40.00", "–"]
        assert self.column(table, "ROUGE-L ↑ Avg") == ["**50.00**", "40.00", "–"]

    def test_a_set_missing_in_one_of_two_runs(self, make_run):
        table = build_table([make_run(sets=("a", "b"), seed=1), make_run(sets=("a",), seed=2)])
        assert self.column(table, "ROUGE-L ↑ b") == ["–"]

    def test_the_teacher_is_no_competitor(self, make_run):
        table = build_table(
            [make_run((66.0,), method="teacher", alpha=None, divergence=None), make_run((50.0,))]
        )
        assert self.column(table, "ROUGE-L ↑ dolly") == ["66.00", "**50.00**"]

    def test_pipes_do_not_break_the_table(self, make_run):
        table = build_table([make_run(model="a|b"), make_run(model="c")])
        assert all(line.count("|") == 4 for line in table.to_markdown().splitlines())


class TestTerminal:
    def test_two_sets_fit_100_columns(self, sweep, make_run):
        more = [
            make_run((50.0, 51.0), (40.0, 41.0), seed, ("dolly", "vicuna"), alpha=-5.0, lam=0.5)
            for seed in (1, 2)
        ]
        table = build_table(sweep + more)
        text = terminal(table)
        assert max(map(len, text.splitlines())) <= 100
        assert "…" not in text
        assert len(re.findall(r"\d±\d", text)) == 6 * len(table.rows)
        for head in ("Method", "Divergence", "α", "λ", "ROUGE-L", "Self-BLEU", "dolly", "vicuna", "Avg"):
            assert head in text

    def test_five_sets_fit_100_columns(self, make_run):
        sets = ("dolly", "selfinst", "vicuna", "sinst", "uinst")
        table = build_table([make_run((50.0, 51.0), (40.0, 41.0), sets=sets, alpha=a) for a in (-5.0, 1.0)])
        text = terminal(table)
        assert max(map(len, text.splitlines())) <= 100
        assert len(re.findall(r"\d±\d", text)) == 7 * 2

    def test_names_are_no_markup(self, make_run):
        text = terminal(build_table([make_run(model="[red]x", sets=("[a]",)), make_run(model="y")]))
        assert "[red]x" in text
        assert "[a]" in text


class TestCsv:
    def test_raw_numbers_of_every_metric(self, make_run):
        third = 100 / 3
        runs = [make_run((third,), sets=("a", "b"), seed=seed) for seed in (2, 1)]
        table = build_table([*runs, make_run((NAN, 1.0), sets=("a",), method="sft")])
        sft, amid = csv.DictReader(io.StringIO(table.to_csv()))
        assert amid["alpha"] == "-5.0"
        assert (amid["runs"], amid["seeds"], amid["std_over"]) == ("2", "1 2", "training seeds")
        assert float(amid["a/rouge_l_mean"]) == third
        assert float(amid["b/length_mean"]) == 12.0
        assert float(amid["avg/rouge_l_std"]) == 0.0
        assert (sft["method"], sft["alpha"], sft["std_over"]) == ("sft", "", "sampling seeds")
        assert (sft["a/rouge_l_mean"], sft["b/rouge_l_mean"], sft["avg/rouge_l_mean"]) == ("nan", "", "")

    def test_a_comma_in_a_label(self, make_run):
        (line,) = csv.DictReader(io.StringIO(build_table([make_run(data='a,"b"\n')]).to_csv()))
        assert line["data"] == 'a,"b"\n'


class TestLatex:
    def test_a_booktabs_table(self, make_run):
        runs = [
            make_run((48.0, 48.5), method="sft"),
            make_run((50.0, 51.0), alpha=-5.0),
            make_run((50.2, 52.0), alpha=1.0),
            make_run((NAN, NAN), (41.0,), alpha=0.5),
        ]
        lines = build_table(runs).to_latex().splitlines()
        rules = [line for line in lines if re.fullmatch(r"\\\w+rule", line)]
        assert rules == ["\\toprule", "\\midrule", "\\midrule", "\\bottomrule"]
        assert r"\begin{tabular}{llrr}" in lines
        assert (
            r" &  & \multicolumn{1}{c}{ROUGE-L $\uparrow$} & \multicolumn{1}{c}{Self-BLEU $\downarrow$} \\"
            in lines
        )
        assert r"\cmidrule(lr){3-3} \cmidrule(lr){4-4}" in lines
        assert r"SFT & -- & 48.25 $\pm$ 0.35 & \textbf{40.00} \\" in lines
        assert r"AMiD & $-5$ & \underline{50.50 $\pm$ 0.71} & \textbf{40.00} \\" in lines
        assert r"AMiD & 0.5 & failed & 41.00 \\" in lines
        (caption,) = [line for line in lines if line.startswith(r"\caption{")]
        assert "underlined the second best" in caption
        assert r"AMiD: $\alpha\beta$(p, r), $\lambda$ = 0.1." in caption

    def test_sets_side_by_side(self, sweep):
        lines = build_table(sweep).to_latex().splitlines()
        assert r"\cmidrule(lr){4-6} \cmidrule(lr){7-9}" in lines
        assert r"Method & Divergence & $\alpha$ & dolly & vicuna & Avg & dolly & vicuna & Avg \\" in lines
        assert "\n".join(lines).count("{") == "\n".join(lines).count("}")
        for line in lines:
            assert line.count("$") % 2 == 0

    @pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
    def test_latex_takes_it(self, sweep, make_run, tmp_path):
        odd = build_table([make_run(data=name) for name in ("50%_{a}#&~^\\", "[x]-3")])
        tables = build_table(sweep).to_latex() + odd.to_latex()
        (tmp_path / "all.tex").write_text(
            "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
            f"{tables}\\end{{document}}\n",
            encoding="utf-8",
        )
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull" not in done.stdout

    def test_special_characters(self, make_run):
        names = ("50%_{a}#&~^\\", "[x]-3")
        text = build_table([make_run(data=name) for name in names]).to_latex()
        assert r"50\%\_\{a\}\#\&\textasciitilde{}\textasciicircum{}\textbackslash{} & " in text
        assert "\n{[}x]-3 & " in text


class TestSettings:
    def test_those_that_all_runs_have_are_not_named(self, make_run):
        runs = [
            make_run(settings="a.b=[1,2],c=0,d={x: 1,y: 2}"),
            make_run(settings="a.b=[1,2],d={x: 1,y: 2}"),
            make_run(settings="a.b=[1,2],d={x: 1,y: 3}"),
        ]
        assert {row.labels["settings"] for row in build_table(runs).rows} == {
            "c=0,d={x: 1,y: 2}",
            "d={x: 1,y: 2}",
            "d={x: 1,y: 3}",
        }
        alone = build_table(runs[:1])
        assert [row.labels["settings"] for row in alone.rows] == [None]

    def test_none_beside_some(self, make_run):
        labels = [
            row.labels["settings"] for row in build_table([make_run(settings=s) for s in (None, "c=0")]).rows
        ]
        assert set(labels) == {None, "c=0"}

    def test_numbers_that_a_search_chose_are_short_and_rows_stay_apart(self, make_run):
        given = [
            "lr=0.0001529949829431265,b=1",
            "lr=0.0001529949829431266,b=1",
            "lr=1.5299498294e-05",
            "lr=0.25",
        ]
        rows = build_table([make_run(settings=settings) for settings in given]).rows
        shown = ["lr=0.000152995,b=1", "lr=0.000152995,b=1", "lr=1.52995e-05", "lr=0.25"]
        assert sorted(label_text(row, "settings") for row in rows) == sorted(shown)


class TestPlaces:
    def test_equal_scores_share_one_and_failures_and_the_teacher_have_none(self, make_run):
        qualities = {-5.0: 50.004, -3.0: 50.0, -1.0: 49.0, 0.0: NAN}
        runs = [make_run((q,), alpha=alpha) for alpha, q in qualities.items()]
        runs.append(make_run((60.0,), method="teacher", alpha=None, lam=None))
        table = build_table(runs)
        places = {
            row.labels["alpha"]: place
            for row, place in zip(table.rows, table.places("rouge_l", "dolly"), strict=True)
        }
        assert places == {None: 0, -5.0: 1, -3.0: 1, -1.0: 0, 0.0: 0}
        by_digit = table.places("rouge_l", "dolly", digits=3)
        assert [by_digit[i] for i, row in enumerate(table.rows) if row.labels["alpha"] in (-5.0, -3.0)] == [
            1,
            2,
        ]

    def test_none_among_self_bleus_of_other_numbers_of_answers(self, make_run):
        def drawn(answers, **labels):
            run = make_run((50.0, 51.0), **labels)
            for by in run.scores.values():
                by["self_bleu"] = dataclasses.replace(
                    by["self_bleu"], signature=f"among {answers} answers to a prompt"
                )
            return run

        alike = build_table([drawn(4, alpha=-5.0), drawn(4, alpha=1.0)])
        assert alike.places("self_bleu", "dolly") == [1, 1]
        assert "Self-BLEU: among 4 answers to a prompt." in alike.caption
        sets = ("dolly", "vicuna")
        table = build_table([drawn(4, alpha=-5.0, sets=sets), drawn(8, alpha=1.0, sets=sets)])
        assert table.places("self_bleu", "vicuna") == table.places("self_bleu", "Avg") == [0, 0]
        assert table.places("rouge_l", "dolly") == [1, 1]
        said = (
            "Self-BLEU: among 4 answers to a prompt or among 8 answers to a prompt, not the same in all rows"
        )
        assert said in table.caption
        teacher = drawn(1, method="teacher", alpha=None, lam=None)
        assert build_table([drawn(4), teacher]).places("self_bleu", "dolly") == [0, 1]


class TestDivergedRuns:
    def test_they_are_told_from_scores_and_counted(self, make_run):
        def diverged(**labels):
            run = make_run(**labels)
            return dataclasses.replace(run, scores={"dolly": {}}, training={"diverged_step": 7.0})

        runs = [make_run(seed=1, alpha=-5.0), diverged(seed=2, alpha=-5.0), diverged(alpha=1.0), make_run()]
        assert runs[2].diverged_step == 7
        table = build_table([*runs, make_run(alpha=0.0)])
        assert table.datasets == ["dolly"]
        assert {line["ROUGE-L ↑ dolly"] for line in markdown(table)} >= {"diverged 1/2", "diverged"}
        assert "diverged" in terminal(table)


class TestOwnClasses:
    def test_a_table_calls_a_divergence_by_its_own_name(self, make_run):
        runs = [make_run(divergence=name, seed=1) for name in ("kl", "Hellinger", "KL")]
        table = build_table(runs)
        assert {table.name(row) for row in table.rows} == {"KL(p, r)", "Hellinger(p, r)", "own KL(p, r)"}

    def test_an_assistant_of_ones_own_is_no_run_without_one(self, make_run):
        own = make_run(assistant="Mixture", alpha=None, lam=None)
        without = make_run(assistant="none", alpha=None, lam=None, order="pq")
        table = build_table([own, without, make_run()])
        names = {table.name(row) for row in table.rows}
        assert any("AMiD" in name and "assistant=Mixture" in name for name in names)
        assert any(name.startswith("No assistant") for name in names)
        assert "assistant Mixture" in build_table([own]).caption

    def test_another_class_that_all_rows_have_is_in_the_caption(self, make_run):
        runs = [make_run(optimizer="SGD", alpha=alpha) for alpha in (-5.0, 1.0)]
        table = build_table(runs)
        assert "optimizer SGD" in table.caption
        assert {table.name(row) for row in table.rows} == {"α=-5", "α=1"}
        both = build_table([*runs, make_run()])
        assert {"α=-5 optimizer=SGD", "α=-5"} <= {both.name(row) for row in both.rows}

    def test_runs_of_unlike_files_of_settings_are_never_one_row(self, make_run):
        same = [make_run(seed=seed, configuration="a") for seed in (1, 2)]
        (row,) = build_table([*same, make_run(seed=3)]).rows
        assert len(row.runs) == 3, "a run without a record of it is of any"
        assert "configuration" not in row.labels
        table = build_table([*same, make_run(seed=3, configuration="b")])
        assert {table.name(row) for row in table.rows} == {"configuration=a", "configuration=b"}
        assert "configuration" not in build_table(same).to_csv()


def test_a_run_that_got_far_worse_is_told_with_both_numbers(make_run):
    exploded = {"steps": 4.0, "valid_cross_entropy_before": 5.0, "valid_cross_entropy": 3744.0}
    runs = [make_run(alpha=alpha) for alpha in (-5.0, 1.0)]
    assert "Far worse" not in build_table(runs).caption
    runs[1] = dataclasses.replace(runs[1], training=exploded)
    assert (
        "Far worse on the validation data than before the training: α=1, seed 1 (cross-entropy 5.000 before "
        "the training, 3,744.000 after it)."
    ) in build_table(runs).caption
    many = [dataclasses.replace(make_run(alpha=float(alpha)), training=exploded) for alpha in range(5)]
    assert ", and 2 more." in build_table(many).caption
