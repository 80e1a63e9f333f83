import dataclasses
import math
import warnings
from pathlib import Path

import matplotlib.image
import pytest

import amid.reporting.figures as drawing
import amid.reporting.folders as folders
import amid.reporting.interactive as interactive
import amid.reporting.page as page
import amid.reporting.runs as reported
from amid.cli.report import run as report
from amid.errors import InputError
from amid.reporting import build_table, write_report
from amid.reporting.curve_figure import draw_curves
from amid.reporting.figures import draw_figures
from amid.results import Score, load_folders, save

FILES = {"report.html", "report.md", "table.md", "table.csv", "table.tex"}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def saved(tmp_path, sweep):
    for index, run in enumerate(sweep):
        save(run, tmp_path / "outputs" / f"{index:02d}")
    return tmp_path / "outputs"


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are empty files: to draw them takes most of the time of a report."""
    monkeypatch.setattr(drawing.Canvas, "savefig", lambda self, file, **_: Path(file).touch())


def with_passes(run, **values):
    scores = {name: Score.over_seeds([value], "right by exact_answer") for name, value in values.items()}
    return dataclasses.replace(run, scores={of: by | scores for of, by in run.scores.items()})


def figures(runs, directory) -> list[str]:
    drawn = [figure.file for figure in draw_figures(build_table(runs), {}, directory)]
    assert sorted(file.name for file in directory.glob("*.png")) == sorted(drawn)
    assert sorted(file.stem for file in directory.glob("*.pdf")) == sorted(Path(file).stem for file in drawn)
    return drawn


class TestFigures:
    def test_alpha_and_divergence(self, sweep, tmp_path):
        assert figures(sweep, tmp_path) == ["alpha.png", "plane.png", "divergence.png"]
        assert all(file.read_bytes().startswith(b"%PDF-") for file in tmp_path.glob("*.pdf"))
        for file in tmp_path.glob("*.png"):
            content = file.read_bytes()
            assert content.startswith(PNG)
            assert int.from_bytes(content[16:20]) > 800  # pixels wide

    @pytest.mark.slow
    def test_a_long_legend_is_not_cut(self, make_run, tmp_path):
        settings = [
            ("kl", 0.1),
            ("reverse_kl", 0.1),
            *(("alpha_beta", lam) for lam in (0.1, 0.3, 0.5, 0.7, 0.9)),
        ]
        runs = [
            make_run(divergence=divergence, lam=lam, alpha=alpha)
            for divergence, lam in settings
            for alpha in (-5.0, 1.0)
        ]
        draw_figures(build_table(runs), {}, tmp_path)
        pixels = matplotlib.image.imread(tmp_path / "plane.png")[..., :3]
        assert (pixels[:, [0, -1]] == 1).all()

    def test_lam(self, undrawn, make_run, tmp_path):
        assert figures([make_run(lam=lam) for lam in (0.1, 0.9)], tmp_path) == ["lambda.png", "plane.png"]

    def test_a_cross_of_alpha_and_lam(self, undrawn, make_run, tmp_path):
        runs = [make_run(alpha=a) for a in (-5.0, 1.0)] + [make_run(lam=0.9)]
        assert figures(runs, tmp_path) == ["alpha.png", "lambda.png", "plane.png"]

    def test_a_grid_of_alpha_and_lam(self, make_run, tmp_path):
        runs = [make_run(alpha=a, lam=lam) for a in (-5.0, 1.0) for lam in (0.1, 0.9)]
        assert figures(runs, tmp_path) == ["alpha.png", "lambda.png", "plane.png", "alpha_lambda.png"]

    def test_divergences_are_compared_at_one_lam(self, undrawn, make_run, tmp_path):
        lams = {"kl": 0.1, "alpha_beta": 0.9}
        runs = [make_run(alpha=a, lam=lam, divergence=d) for a in (-5.0, 1.0) for d, lam in lams.items()]
        assert figures(runs, tmp_path) == ["alpha.png", "plane.png"]

    def test_baselines_alone(self, undrawn, make_run, tmp_path):
        assert figures([make_run(method="sft"), make_run(method="kd")], tmp_path) == ["plane.png"]

    def test_pass_at_k(self, undrawn, make_run, tmp_path):
        runs = [with_passes(make_run(alpha=a), pass_1=20.0, pass_8=50.0 + a) for a in (-5.0, 1.0)]
        assert figures(runs, tmp_path) == ["alpha.png", "plane.png", "pass_at_k.png"]
        one_k = [with_passes(run, pass_1=20.0) for run in [make_run(method="sft")]]
        (tmp_path / "one").mkdir()
        assert figures(one_k, tmp_path / "one") == ["plane.png"]

    def test_one_run(self, make_run, tmp_path):
        assert figures([make_run()], tmp_path) == ["plane.png"]

    def test_alphas_of_unlike_settings_are_no_line(self, undrawn, make_run, tmp_path):
        runs = [make_run(alpha=-5.0, model="a"), make_run(alpha=1.0, model="b")]
        assert figures(runs, tmp_path) == ["plane.png"]

    def test_failed_and_missing_scores(self, sweep, make_run, tmp_path):
        nan = (math.nan, math.nan)
        runs = [
            *sweep,
            make_run(nan, nan, sets=("dolly", "vicuna"), alpha=0.5, divergence="kl"),
            make_run(sets=("dolly",), alpha=0.5, divergence="reverse_kl"),
        ]
        assert figures(runs, tmp_path) == ["alpha.png", "plane.png", "divergence.png"]

    def test_all_failed(self, make_run, tmp_path):
        nan = (math.nan, math.nan)
        assert figures([make_run(nan, nan, alpha=a) for a in (-5.0, 1.0)], tmp_path) == []

    def test_equal_scores(self, make_run, tmp_path):
        runs = [make_run(alpha=a, divergence=d) for a in (-5.0, 1.0) for d in ("kl", "alpha_beta")]
        runs += [make_run(method="sft"), make_run(method="kd")]
        assert figures(runs, tmp_path) == ["alpha.png", "plane.png", "divergence.png"]

    def test_without_self_bleu(self, make_run, tmp_path):
        runs = [make_run(alpha=a) for a in (-5.0, 1.0)]
        for run in runs:
            del run.scores["dolly"]["self_bleu"]
        assert figures(runs, tmp_path) == []

    def test_an_alpha_that_is_no_number(self, undrawn, make_run, tmp_path):
        runs = [make_run(alpha=a) for a in (-5.0, 1.0, "linear")]
        assert figures(runs, tmp_path) == ["alpha.png", "plane.png"]

    @pytest.mark.slow
    def test_many_settings(self, make_run, tmp_path):
        runs = [
            make_run((50 + i - a,), (40 - a,), alpha=a, divergence=f"own_{i}")
            for i in range(10)
            for a in (-5, -4.9, 1)
        ]
        assert figures(runs, tmp_path) == ["alpha.png", "plane.png", "divergence.png"]


class TestFront:
    def test_no_other_setting_is_better_in_both(self, make_run):
        points = {
            -5.0: (50.0, 30.0),
            -3.0: (52.0, 40.0),
            -1.0: (51.0, 41.0),
            0.0: (49.0, 30.0),
            1.0: (40.0, 20.0),
        }
        runs = [make_run((quality,), (bleu,), alpha=alpha) for alpha, (quality, bleu) in points.items()]
        runs.append(make_run((90.0,), (1.0,), method="teacher", alpha=None, lam=None, divergence="none"))
        canvas = drawing._draw_plane(build_table(runs))
        dotted = [line for line in canvas.axes[0].lines if line.get_linestyle() == ":"]
        rings = [line for line in canvas.axes[0].lines if line.get_markerfacecolor() == "none"]
        assert len(dotted) == len(rings) == 1
        for line in (*dotted, *rings):
            assert line.get_xydata().tolist() == [[20.0, 40.0], [30.0, 50.0], [40.0, 52.0]]


class TestCurves:
    def store(self, run, folder, values):
        save(run, folder)
        lines = "".join(f"{10 * step},{value},\n" for step, value in enumerate(values))
        (folder / "metrics.csv").write_text(f"step,train/loss,valid/rouge_l\n{lines}0,,30.0\n20,,40.0\n")

    def test_the_mean_over_seeds_and_the_failed_runs(self, tmp_path, make_run):
        runs = [make_run(seed=seed, alpha=alpha) for alpha in (-5.0, 1.0) for seed in (1, 2)]
        runs[2].training["diverged_step"] = 25.0
        runs[2].scores["dolly"].clear()
        runs[3].training.update({"valid_rouge_l_before": 30.0, "valid_rouge_l": 3.0})
        curves = [(3.0, 2.0, 1.0), (5.0, 3.0), (3.0, 4.0, "nan"), (3.0, 2.0, 99.0)]
        for number, (run, values) in enumerate(zip(runs, curves, strict=True)):
            self.store(run, tmp_path / str(number), values)
        records = load_folders(tmp_path)
        logged = {id(run): folders.curves(folder) for folder, run in records.items()}
        canvas = draw_curves(build_table(list(records.values())), logged, "train/loss", "loss")
        (axes,) = canvas.axes
        solid = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-"]
        dotted = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == ":"]
        crosses = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "x"]
        assert solid == [[[0.0, 4.0], [10.0, 2.5]], []]  # at the steps that both seeds have
        high = 4.0 + (4.0 - 2.5) / 2  # far above the others a failed run is cut
        assert dotted == [
            [[0.0, 3.0], [10.0, 4.0], [25.0, 4.0]],
            [[0.0, 3.0], [10.0, 2.0], [20.0, high], [20.0, high]],
        ]
        assert crosses == [[[25.0, 4.0]], [[20.0, high]]]

    @pytest.mark.slow
    def test_a_panel_for_the_baselines_and_for_each_series(self, tmp_path, make_run):
        runs = [make_run(method="kd"), make_run(method="sft")]
        runs += [make_run(alpha=a, divergence=d) for a in (-5.0, 1.0) for d in ("kl", "alpha_beta")]
        for number, run in enumerate(runs):
            self.store(run, tmp_path / str(number), (3.0, 2.0))
        written = write_report(tmp_path).file.read_text(encoding="utf-8")
        for file in ("training", "validation"):
            assert f"]({file}.png)" in written
            assert (tmp_path / "report" / f"{file}.pdf").read_bytes().startswith(b"%PDF-")
        records = load_folders(tmp_path)
        logged = {id(run): folders.curves(folder) for folder, run in records.items()}
        canvas = draw_curves(build_table(list(records.values())), logged, "valid/rouge_l", "score")
        assert [axes.get_title() for axes in canvas.axes] == ["Baselines", "KL(p, r)", "αβ(p, r)"]
        assert [len(axes.lines) for axes in canvas.axes] == [2, 2, 2]
        (legend,) = canvas.legends
        assert [text.get_text() for text in legend.get_texts()] == ["α = −5", "α = 1"]

    def test_none_of_more_series_than_there_is_room_for(self, make_run):
        pairs = range(drawing.MOST_PANELS + 1)
        runs = [make_run(alpha=a, model=f"pair {pair}") for pair in pairs for a in (-5.0, 1.0)]
        for count, drawn in ((len(runs) - 2, True), (len(runs), False)):
            logged = {id(run): {"train/loss": {0: 3.0, 10: 2.0}} for run in runs[:count]}
            table = build_table(runs[:count])
            assert (draw_curves(table, logged, "train/loss", "loss") is not None) == drawn


class TestReport:
    def test_files(self, saved):
        written = write_report(saved)
        assert (written.file, written.page) == (
            saved / "report" / "report.md",
            saved / "report" / "report.html",
        )
        names = {file.name for file in (saved / "report").iterdir()}
        drawn = {f"{figure}.{kind}" for figure in ("alpha", "plane", "divergence") for kind in ("png", "pdf")}
        assert names == drawn | FILES
        assert not [path for path in saved.iterdir() if path.name.startswith(".")]

    def test_page(self, undrawn, saved, sweep):
        text = write_report(saved).file.read_text(encoding="utf-8")
        table = build_table(sweep)
        assert text.startswith("# outputs\n")
        assert table.to_markdown() in text
        assert table.caption in text
        for file in ("alpha.png", "plane.png", "divergence.png"):
            assert f"]({file})" in text
        assert "| amid-2 | AMiD αβ(p, r) α=-5 | 2 | `hash2` | 1 min |" in text
        assert text.count("`hash1`") == len(sweep) // 2
        assert "Versions: torch 2.13.0." in text
        assert table.to_csv() == (saved / "report" / "table.csv").read_text(encoding="utf-8")

    def test_versions_that_differ_are_all_named(self, undrawn, saved, make_run):
        save(dataclasses.replace(make_run(), versions={"torch": "2.14.0"}), saved / "new")
        assert "torch 2.13.0 and 2.14.0" in write_report(saved).file.read_text(encoding="utf-8")

    def test_a_repeat_is_left_out_and_named(self, undrawn, saved, sweep, capsys):
        before = (write_report(saved).file.parent / "table.csv").read_text(encoding="utf-8")
        save(sweep[4], saved / "twice")
        other = dataclasses.replace(sweep[5], scores=sweep[7].scores)
        save(other, saved / "twice" / "below")
        report([str(saved)])
        said = "configuration, seed and versions: 2, 1 of them with other scores."
        assert said in " ".join(capsys.readouterr().out.split())
        assert (saved / "report" / "table.csv").read_text(encoding="utf-8") == before
        text = (saved / "report" / "report.md").read_text(encoding="utf-8")
        assert said in text
        lines = ["- `twice/below`, a repeat of `05`, with other scores", "- `twice`, a repeat of `04`"]
        assert "Left out:\n\n" + "\n".join(lines) in text
        page = (saved / "report" / "report.html").read_text(encoding="utf-8")
        assert said in page

    def test_again_after_other_results(self, undrawn, tmp_path, make_run):
        for seed, alpha in enumerate((-5.0, 1.0)):
            save(make_run(alpha=alpha), tmp_path / str(seed))
        write_report(tmp_path)
        note = tmp_path / "report" / "note.txt"
        note.write_text("mine", encoding="utf-8")
        (tmp_path / "1" / "result.json").unlink()
        write_report(tmp_path)
        names = {file.name for file in (tmp_path / "report").iterdir()}
        assert names == FILES | {"plane.png", "plane.pdf", "note.txt"}

    def test_a_failed_report_leaves_the_last_one(self, undrawn, saved, monkeypatch):
        before = write_report(saved).file.read_text(encoding="utf-8")

        def fail(*_: object) -> None:
            raise RuntimeError("no fonts")

        monkeypatch.setattr(page, "draw_figures", fail)
        with pytest.raises(RuntimeError, match="no fonts"):
            write_report(saved)
        assert (saved / "report" / "report.md").read_text(encoding="utf-8") == before
        assert not list(saved.glob(".report-*"))

    def test_no_report_folder_where_the_first_fails(self, saved, monkeypatch):
        monkeypatch.setattr(page, "draw_figures", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_report(saved)
        assert not (saved / "report").exists()

    def test_a_page_that_is_too_large_costs_nothing_else(self, undrawn, saved, monkeypatch, capsys):
        report([str(saved)])
        kept = {file.name for file in (saved / "report").iterdir()} - {"report.html"}
        before = (saved / "report" / "report.md").read_text(encoding="utf-8")
        capsys.readouterr()
        monkeypatch.setattr(interactive, "LARGEST", 20_000)
        report([str(saved)])
        assert {file.name for file in (saved / "report").iterdir()} == kept  # the last page is not of these
        why = "left out: the page of 22 runs has more than 0.02 MB without any answer; report fewer at once"
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "Page: " in line]
        assert line.startswith(f"Page: {why}")
        after = (saved / "report" / "report.md").read_text(encoding="utf-8")
        assert after.startswith(before)
        assert after.removeprefix(before).startswith(f"\nreport.html is {why}")

    def test_nothing_to_report(self, tmp_path):
        with pytest.raises(InputError, match=r"has no result\.json .* amid sweep alpha"):
            write_report(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_runs_without_a_test_set(self, make_run, tmp_path):
        save(make_run(sets=()), tmp_path / "own")
        with pytest.raises(InputError, match=r"own is finished and has no scores, .*data\.test\.NAME=FILE"):
            write_report(tmp_path)

    def test_the_entry_point_prints_the_table_and_the_path(self, undrawn, saved, capsys):
        report([str(saved)])
        out = capsys.readouterr().out
        assert "Divergence" in out
        assert "αβ(p, r)" in out
        assert f"Page: {saved / 'report' / 'report.html'}\n" in out
        assert out.rstrip().endswith(str(saved / "report" / "report.md"))

    def test_all_that_is_printed_stands_in_the_files(self, undrawn, tmp_path, make_run, capsys):
        """A small sweep of one training seed: published figures, validation text and claims."""
        alone = {"assistant": "none", "alpha": None, "lam": None, "order": "pq"}
        others = [{"method": "sft"}, {"method": "gkd", "divergence": "jensen_shannon", **alone}]
        for index, labels in enumerate([{"alpha": a} for a in (-5.0, -1.0, 1.0)] + others):
            run = make_run((60.0 - index,), (40.0 - index,), **labels)
            run.training.update(valid_cross_entropy=1.5, valid_perplexity=4.48, valid_kl_pq=0.25)
            save(run, tmp_path / f"{index}")
        report([str(tmp_path)])
        printed = " ".join(capsys.readouterr().out.split())
        written = tmp_path / "report" / "report.md"
        text = written.read_text(encoding="utf-8")
        assert "one seed: same way" in written.with_name("report.html").read_text(encoding="utf-8")
        for said in (
            "Measures on the validation data",
            "Published results of another experiment (compare directions, not numbers)",
            "one seed: same way",
            "undecided (60.0 to 58.0; the only training seed points that way: +2.00; the spread is unknown",
            "over 3 α 2 of 2 steps fall, ρ = -1.00",
        ):
            assert said in printed
            assert said in text

    def test_the_entry_point_computes_once(self, undrawn, saved, monkeypatch):
        calls = []
        monkeypatch.setattr(reported, "load_folders", lambda d: calls.append(d) or load_folders(d))
        monkeypatch.setattr(page, "against_the_best", lambda *of: calls.append("best"))
        report([str(saved)])
        assert calls == [saved, "best"]

    def test_one_number_without_spread(self, undrawn, tmp_path, make_run):
        run = make_run()
        run.scores["dolly"] = {"exact_match": Score.over_seeds([12.5])}
        save(run, tmp_path / "a")
        text = write_report(tmp_path).file.read_text(encoding="utf-8")
        assert "–" in text
        assert "## Figures" not in text
