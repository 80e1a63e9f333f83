import json
import re
from pathlib import Path

import pytest

import amid.reporting.interactive as interactive
from amid.errors import InputError
from amid.measures import measure_of
from amid.reporting import build_table, sections
from amid.reporting.interactive import embedded, interactive_page
from amid.reporting.runs import read_runs
from amid.results import Score, load_folders, save

HOSTILE = "</script><script>document.title = 'broken'</script><!-- & 猫"
PAIR = {"model": "gpt2_xl_to_gpt2", "data": "dolly", "settings": "text=adaptive"}
REFERENCE = "The red fox sleeps"


def store(run, folder: Path, answer: str, prompts: int = 3) -> None:
    """A run's folder with a record, answers, curves and a configuration."""
    save(run, folder)
    (folder / "generations").mkdir()
    for name in run.scores if run.diverged_step is None else ():
        for seed in (1, 2):
            rows = [
                {
                    "instruction": f"Question {number} of {name}",
                    "input": HOSTILE if number == 1 else "",
                    "references": ["nothing alike", REFERENCE],
                    "answers": [{"text": f"{answer} {seed}", "tokens": 5, "ended": seed == 1, "more": [0.5]}],
                }
                for number in range(1, prompts + 1)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "generations" / f"{name}-{seed}.jsonl").write_text(text, encoding="utf-8")
    lines = "".join(f"0,{step},{3 - 0.1 * step + run.seed},\n" for step in range(0, 10, 3))
    (folder / "metrics.csv").write_text(f"epoch,step,train/loss,valid/loss\n{lines}0,9,,2.5\n")
    config = {"seed": run.seed, "assistant": {"alpha": run.labels["alpha"]}, "optimizer": {"lr": 0.001}}
    (folder / "config.yaml").write_text(json.dumps({"hash": "h", "config": config}))


@pytest.fixture
def experiment(tmp_path, make_run) -> Path:
    """α × λ × two divergences with two seeds, baselines; failed runs, one without a result."""
    folder = tmp_path / "outputs" / "grid"
    sets = ("dolly", "vicuna")
    number = 0
    for seed in (1, 2):
        runs = [
            (make_run((24.0 + 0.1 * seed,), (30.0,), seed, sets, method="sft", **PAIR), "A blue fish swims"),
            (make_run((25.0 + 0.1 * seed,), (31.0,), seed, sets, method="kd", **PAIR), "The red fox runs"),
        ]
        for divergence in ("kl", "alpha_beta"):
            for alpha in (-5.0, -1.0, 1.0):
                for lam in (0.1, 0.5):
                    quality = 27 - alpha / 5 - lam + (0.5 if divergence == "alpha_beta" else 0) + 0.1 * seed
                    run = make_run(
                        (quality,),
                        (40 - 3 * alpha,),
                        seed,
                        sets,
                        divergence=divergence,
                        alpha=alpha,
                        lam=lam,
                        **PAIR,
                    )
                    if (divergence, alpha, lam) == ("kl", 1.0, 0.5):
                        run.training["diverged_step"] = 12.0
                        for name in sets:
                            run.scores[name].clear()
                    elif run.diverged_step is None:
                        for name in sets:
                            run.scores[name]["repetition"] = Score.over_seeds([5 - alpha + lam])
                    if (divergence, alpha, lam, seed) == ("kl", 1.0, 0.1, 2):
                        run.training.update({"valid_rouge_l_before": 30.0, "valid_rouge_l": 3.0})
                    runs.append((run, f"Well, the RED fox {HOSTILE} sleeps"))
        for run, answer in runs:
            store(run, folder / f"{number:02d}", answer)
            number += 1
    begin(folder / "begun", "failed", "out of memory")
    return folder


def begin(folder: Path, state: str, note: str) -> None:
    """A run's folder with a status and curves, the last line cut off, and no result."""
    folder.mkdir()
    (folder / "metrics.csv").write_text("epoch,step,train/loss\n0,0,4.0\n0,5,3.5\n0,7,3.")
    (folder / "status.json").write_text(json.dumps({"state": state, "note": note, "step": 7, "steps": 9}))


def write(folder: Path) -> None:
    """The page alone, where `amid report` writes it too."""
    with read_runs([folder]) as runs:
        table = build_table(list(runs.records.values()))
        page = interactive_page(runs, table, sections(runs, table))
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "report.html").write_text(page, encoding="utf-8")


def data_of(page: str) -> dict:
    """What the page has embedded."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1)
    )


class TestPage:
    def test_it_needs_nothing_else(self, experiment):
        write(experiment)
        page = (experiment / "report" / "report.html").read_text(encoding="utf-8")
        assert not re.search(r"""(?:src|href)=["'](?!#|data:,)|@import|url\(|fetch\(|XMLHttp""", page)
        assert "default-src 'none'" in page
        assert page.count("<script") == page.count("</script>") == 2

    def test_data(self, experiment):
        write(experiment)
        data = data_of((experiment / "report" / "report.html").read_text(encoding="utf-8"))
        assert data["title"] == "grid"
        assert (len(data["rows"]), len(data["runs"])) == (14, 28)
        assert data["common"] == {"optimizer.lr": "0.001"}
        assert data["runs"][-1]["config"] == {"seed": "2", "assistant.alpha": "1.0"}
        diverged = [run for run in data["runs"] if run["diverged"] is not None]
        assert [run["diverged"] for run in diverged] == [12, 12]
        (row,) = {run["row"] for run in diverged}
        assert {cell["text"] for cell in data["rows"][row]["cells"]} == {"diverged"}
        curve = diverged[0]["curves"]["train/loss"]
        assert curve == [[0, 4.0], [3, 3.7], [6, 3.4], [9, 3.1]]
        collapsed = [(run["row"], run["seed"]) for run in data["runs"] if run["outcome"] == "collapsed"]
        assert [(data["rows"][i]["name"], seed) for i, seed in collapsed] == [("AMiD KL(p, r) α=1 λ=0.1", 2)]
        assert data["unfinished"] == [
            {
                "name": "begun",
                "folder": "begun",
                "state": "failed",
                "note": "out of memory",
                "curves": {"train/loss": [[0, 4.0], [5, 3.5]]},
            }
        ]
        amid = next(r for r in data["rows"] if r["name"] == "AMiD αβ(p, r) α=-5 λ=0.1")
        assert amid["cells"][0]["published"] == 26.44
        assert "second-hand" in amid["cells"][0]["source"]
        assert "published" not in amid["cells"][2]  # the published average is over other sets
        (dolly, vicuna) = data["generations"]
        assert (dolly["set"], dolly["total"], len(dolly["prompts"])) == ("dolly", 3, 3)
        assert vicuna["prompts"][0][1] == HOSTILE
        assert dolly["prompts"][0][3]["0"] == [
            [1, "A blue fish swims 1", 5, True],
            [2, "A blue fish swims 2", 5, False],
        ]

    def test_further_scores(self, tmp_path, make_run):
        """Each with its own direction; what is in the table already is none of them."""
        further = ("exact_match", "distinct_2", "corpus_self_bleu", "repetition", "overlong", "eos_share")
        further += ("pass_12", "pass_4")
        for number in (1, 2, 3):
            run = make_run(sets=("a", "b"), alpha=float(number))
            for by in run.scores.values():
                by |= {name: Score.over_seeds([float(number)]) for name in (*further, "length", "log_prob")}
                by["exact_match"] = Score.over_seeds([0.0])
            save(run, tmp_path / str(number))
        write(tmp_path)
        data = data_of((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
        kept, more = ([c for c in data["columns"] if c["further"] == which] for which in (False, True))
        assert [c["metric"] for c in kept] == ["rouge_l"] * 3 + ["self_bleu"] * 3
        assert [c["set"] for c in more] == ["a", "b", "Avg"] * 10
        index = {c["metric"]: i for i, c in enumerate(data["columns"]) if c["set"] == "Avg"}
        marks = {
            metric: [row["cells"][index[metric]].get("place", 0) for row in data["rows"]]
            for metric in (*further, "length", "log_prob")
        }
        up, down, none = [0, 2, 1], [1, 2, 0], [0, 0, 0]
        assert marks == {
            "exact_match": none,  # all are equal
            "distinct_2": up,
            "corpus_self_bleu": down,
            "repetition": down,
            "overlong": down,
            "eos_share": up,
            "length": none,
            "log_prob": none,
            "pass_4": up,
            "pass_12": up,
        }
        assert [c["metric"] for c in more[-6::3]] == ["pass_4", "pass_12"]
        better = {c["metric"]: c["better"] for c in data["columns"]}
        assert [better[name] for name in ("exact_match", "self_bleu", "repetition", "length")] == [
            "higher",
            "lower",
            "lower",
            None,
        ]
        titles = [c["title"] for c in data["columns"]]
        assert titles == [measure_of(c["metric"]).title for c in data["columns"]]
        assert all(f"{title}: " in data["further"] for title in titles[6:])

    def test_filters_are_all_that_varies(self, tmp_path, make_run):
        settings = ("data.train.size=5,optimizer.lr=0.1", "data.train.size=5,optimizer.lr=0.2", None)
        runs = [
            make_run(model=model, data=data, settings=text)
            for model in ("a", "b")
            for data in ("dolly", "samsum")
            for text in settings
        ]
        for number, run in enumerate(runs):
            save(run, tmp_path / f"{number:02d}")
        write(tmp_path)
        data = data_of((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
        found = {filter["title"]: set(filter["values"]) for filter in data["filters"]}
        assert found == {
            "Model": {"a", "b"},
            "Data": {"dolly", "samsum"},
            "data.train.size": {"5", "default"},
            "optimizer.lr": {"0.1", "0.2", "default"},
        }
        assert {len(filter["values"]) for filter in data["filters"]} == {len(data["rows"])}

    def test_as_many_prompts_as_fit(self, experiment, monkeypatch):
        write(experiment)
        file = experiment / "report" / "report.html"
        whole = file.stat().st_size
        for limit, kept in ((whole + 100, 3), (whole - 100, 2)):
            monkeypatch.setattr(interactive, "LARGEST", limit)
            write(experiment)
            assert file.stat().st_size <= limit
            assert [len(g["prompts"]) for g in data_of(file.read_text(encoding="utf-8"))["generations"]] == [
                kept
            ] * 2
            assert {g["total"] for g in data_of(file.read_text(encoding="utf-8"))["generations"]} == {3}

    def test_lines_of_one_prompt_are_not_left_out(self, tmp_path, make_run):
        store(make_run(), tmp_path / "a", "word", prompts=2)
        for file in (tmp_path / "a" / "generations").glob("dolly-*.jsonl"):
            file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
        write(tmp_path)
        (dolly,) = data_of((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))["generations"]
        assert (dolly["total"], len(dolly["prompts"])) == (2, 2)

    def test_large_answers_are_not_all_read(self, tmp_path, make_run, monkeypatch):
        store(make_run(), tmp_path / "a", "word " * 20_000, prompts=400)
        write(tmp_path)
        file = tmp_path / "report" / "report.html"
        (dolly,) = data_of(file.read_text(encoding="utf-8"))["generations"]
        assert 0.95 * interactive.LARGEST < file.stat().st_size <= interactive.LARGEST
        assert dolly["total"] == 400
        assert 25 < len(dolly["prompts"]) < 30  # 0.2 MB each

    def test_too_many_runs(self, experiment, monkeypatch):
        monkeypatch.setattr(interactive, "LARGEST", 20_000)
        with pytest.raises(InputError, match=r"page of 28 runs has more than 0\.02 MB without any answer"):
            write(experiment)

    def test_runs_without_answers_or_curves(self, tmp_path, make_run):
        save(make_run(), tmp_path / "a")
        write(tmp_path)
        data = data_of((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
        assert data["generations"] == []
        assert data["runs"][0]["curves"] == data["runs"][0]["config"] == data["common"] == {}

    def test_embedded_text_ends_no_script(self):
        text = embedded([HOSTILE])
        assert not set("<>&") & set(text)
        assert json.loads(text) == [HOSTILE]


COLUMN = "[...document.querySelectorAll('#table tbody tr')].map(row => row.cells[{}].innerText)"


class TestBrowser:
    def test_the_page(self, experiment, browser):
        """All in one, as a browser takes long to start."""
        write(experiment)
        browser.open(experiment / "report" / "report.html")
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
        assert browser("document.title") == "grid"
        self.sorting(browser)
        self.more_scores(browser)
        self.filters(browser)
        self.figures(browser)
        self.answers(browser)
        self.layout(browser)

    def sorting(self, page):
        rouge = 'button[data-sort="dolly/rouge_l"]'
        index = page(f"document.querySelector('{rouge}').closest('th').cellIndex")

        def state():
            return page(f"document.querySelector('{rouge}').closest('th').getAttribute('aria-sort')")

        def means():
            texts = page(COLUMN.format(index))
            return [float(text.split()[0]) for text in texts if text != "diverged"], texts.index("diverged")

        before = page(COLUMN.format(0))
        assert state() == "none"
        page.click(rouge)
        scores, failed = means()
        assert state() == "descending"
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) > 5
        assert failed == 13  # a failed row is last in any order
        assert "published 26.44" in page(COLUMN.format(index))[0]
        assert page(f"document.querySelector('{rouge}') === document.activeElement")
        page.press("Enter")  # by keyboard
        scores, failed = means()
        assert state() == "ascending"
        assert scores == sorted(scores)
        assert failed == 13
        page.press(" ")
        assert state() == "none"
        assert page(COLUMN.format(0)) == before
        bold = page(
            f"[...document.querySelectorAll('#table tbody tr')].map(r => r.cells[{index}])"
            ".filter(c => c.querySelector('b')).length"
        )
        assert bold == 1

    def more_scores(self, page):
        def heads():
            return page("[...document.querySelectorAll('#table th button')].map(b => b.dataset.sort)")

        def pressed():
            return page("document.querySelector('#further').getAttribute('aria-pressed')")

        before = heads()
        assert not {"dolly/repetition", "dolly/length"} & set(before)
        assert pressed() == "false"
        page("document.querySelector('#averages').focus()")
        page.press("Tab")
        assert page("document.activeElement.id") == "further"
        page.press("Enter")
        assert pressed() == "true"
        more = [
            f"{name}/{metric}" for metric in ("repetition", "length") for name in ("dolly", "vicuna", "Avg")
        ]
        assert heads() == [*before, *more]
        assert "Repetition: share" in page("document.querySelector('#caption').innerText")
        page.click('button[data-sort="dolly/repetition"]')
        index = page(
            "document.querySelector('button[data-sort=\"dolly/repetition\"]').closest('th').cellIndex"
        )
        texts = page(COLUMN.format(index))
        values = [float(text.split()[0]) for text in texts if text not in ("–", "diverged")]
        assert values == sorted(values)  # the best first, which is the lowest
        assert values[0] == 4.1
        page.click("#filters button")
        page.click("#filters button")
        assert pressed() == "true"
        assert heads() == [*before, *more]
        assert page(COLUMN.format(index)) == texts
        page.click("#averages")
        assert heads()[-3:] == ["Avg/self_bleu", "Avg/repetition", "Avg/length"]
        page.click("#averages")
        page.click("#further")
        assert pressed() == "false"
        assert heads() == before
        page.click('button[data-sort="dolly/rouge_l"]')
        for _ in range(2):
            page.press("Enter")  # back to the order of the table

    def filters(self, page):
        page.click("#filters button")  # SFT
        assert page("document.querySelector('#filters button').getAttribute('aria-pressed')") == "false"
        assert page("document.querySelectorAll('#table tbody tr').length") == 13
        page.click("#filters > button")  # show all
        assert page("document.querySelectorAll('#table tbody tr').length") == 14

    def figures(self, page):
        def count(selector):
            return page(f"document.querySelectorAll({json.dumps(selector)}).length")

        assert count("#plane .pt") == 13  # all rows but the one that diverged
        assert count("#plane .ring") >= 2
        assert count("#alpha .panels svg") == count("#lam .panels svg") == 2
        assert count("#alpha .legend button") == 4  # two divergences × two λ
        assert count("#divergence-alpha svg") == count("#alpha-lam svg") == 2
        assert count("#alpha-lam .cell") == 12
        assert count("#curves path.line") == 29
        dotted = "#curves path.line.ended[stroke-dasharray]"
        assert count(dotted) == count("#curves .pt path.stroke") == 4
        labels = page("[...document.querySelectorAll('#curves .pt')].map(p => p.getAttribute('aria-label'))")
        assert "AMiD KL(p, r) α=−1 λ=0.1, seed 2\ntrain/loss: 4.1 at step 9" in labels
        assert "AMiD KL(p, r) α=1 λ=0.1, seed 2\ncollapsed\ntrain/loss: 4.1 at step 9" in labels
        assert "begun\nfailed: out of memory\ntrain/loss: 3.5 at step 5" in labels
        assert "failed: out of memory" in page("document.querySelector('#curves .panels svg').textContent")
        page.click("#curves .legend button[data-name='without a result']")
        assert count(dotted) == 3
        page.click("#curves .legend button[data-name='without a result']")
        before = page("document.querySelector('#curves path.line').getAttribute('d')")
        page.click("#smooth")
        assert page("document.querySelector('#curves path.line').getAttribute('d')") != before
        assert "smoothed" in page("document.querySelector('#curves figcaption').innerText")
        failed = "2 diverged, 1 collapsed, 1 without a result"
        assert failed in page("document.querySelector('#curves .legend').innerText")
        assert "3 failed, 1 more without a result" in page("document.querySelector('#summary').innerText")
        page("document.querySelector('#plane .pt').focus()")
        tip = "getComputedStyle(document.querySelector('#tip')).visibility"
        assert page(tip) == "visible"
        first = page("document.querySelector('#tip').innerText")
        assert first.startswith("SFT\n")
        page.press("ArrowRight")
        assert page("document.querySelector('#tip').innerText") != first
        page.press("Escape")
        assert page(tip) == "hidden"
        page.click("#alpha .legend button")
        assert page("document.querySelector('#alpha .legend button').getAttribute('aria-pressed')") == "false"
        assert count("#alpha path.line") == 6
        self.choose(page, "#score", 1)
        assert "vicuna" in page("document.querySelector('#alpha .panels svg').textContent")
        repetition, length = (
            page(
                f"[...document.querySelector('#score').options].find(o => o.text.startsWith('{name}')).value"
            )
            for name in ("Repetition", "Length")
        )
        self.choose(page, "#score", repetition)
        assert "Lower is better" in page("document.querySelector('#plane figcaption').innerText")
        points = page("[...document.querySelectorAll('#plane .pt')].map(p => p.getAttribute('aria-label'))")
        on_front = [label for label in points if "on the Pareto front" in label]
        assert [label.split("\n")[0] for label in on_front] == [
            f"AMiD {divergence}(p, r) α=1 λ={lam}" for divergence, lam in (("KL", 0.1),)
        ]
        assert page("document.querySelector('#alpha-lam .cell.best').textContent") == "4.1"
        self.choose(page, "#score", length)
        assert count("#plane .ring") == count("#alpha-lam .cell.best") == 0
        assert "Pareto" not in page("document.querySelector('#plane figcaption').innerText")

    def answers(self, page):
        def marks(article):
            return page(
                f"[...document.querySelectorAll('#side-by-side article')[{article}]"
                ".querySelector('.answer').querySelectorAll('mark')].map(m => m.innerText)"
            )

        assert page("document.querySelectorAll('#side-by-side article').length") == 3
        assert HOSTILE in page("document.querySelector('#prompt').innerText")  # shown as text
        assert page("document.title") == "grid"
        names = page("[...document.querySelectorAll('#side-by-side h3')].map(h => h.innerText)")
        assert names[:2] == ["SFT", "KD KL(p, q)"]
        assert names[2].startswith("AMiD")
        notes = page("[...document.querySelectorAll('#side-by-side article > small')].map(n => n.innerText)")
        assert [note.split(" · ")[0] for note in notes] == ["training seed 1"] * 3
        assert notes[0].endswith("· 00/generations")
        assert marks(0) == []
        assert marks(1) == ["The", "red", "fox"]
        assert marks(2) == ["the", "RED", "fox", "sleeps"]
        assert "4 of 4 reference words" in page(
            "document.querySelectorAll('#side-by-side article')[2].innerText"
        )
        page.click("#next")
        assert "Question 2 of dolly" in page("document.querySelector('#prompt').innerText")
        assert not page("document.querySelector('#previous').disabled")
        page.click("#next")
        assert page("document.querySelector('#next').disabled")
        self.choose(page, "#answer-set", 1)
        assert "Question 1 of vicuna" in page("document.querySelector('#prompt').innerText")
        page.click("#answer-search")
        page.type("question 3")
        assert page("document.querySelectorAll('#answer-prompt option').length") == 1
        assert "Question 3 of vicuna" in page("document.querySelector('#prompt').innerText")
        page.click("#answer-runs label:nth-of-type(5) input")
        assert page("document.querySelectorAll('#side-by-side article').length") == 4
        assert "(4)" in page("document.querySelector('#answer-runs summary').innerText")

    def choose(self, page, select, value):
        page(f"document.querySelector('{select}').value = '{value}'")
        page(f"document.querySelector('{select}').dispatchEvent(new Event('change'))")

    def layout(self, page):
        dark = "getComputedStyle(document.body).backgroundColor"
        light = page(dark)
        page.media(scheme="dark")
        assert page(dark) != light
        page.media(media="print", scheme="dark")
        assert page(dark) == light  # paper is white
        assert page("getComputedStyle(document.querySelector('#filters')).display") == "none"
        page.media()
        page.size(380, 800)
        page("new Promise(done => setTimeout(done, 300))")
        assert page("document.documentElement.scrollWidth") <= 380

    def test_one_run_without_anything(self, tmp_path, make_run, browser):
        run = make_run()
        run.scores["dolly"] = {"exact_match": Score.over_seeds([12.5])}
        save(run, tmp_path / "runs" / "a")
        write(tmp_path / "runs")
        browser.open(tmp_path / "runs" / "report" / "report.html")
        assert "folders of the runs hold none" in browser("document.querySelector('#answers').innerText")
        assert browser("document.querySelectorAll('#table tbody tr').length") == 1
        assert browser("document.querySelectorAll('figure:not([hidden])').length") == 0


def test_the_table_of_a_page_is_that_of_the_report(experiment):
    write(experiment)
    data = data_of((experiment / "report" / "report.html").read_text(encoding="utf-8"))
    table = build_table(list(load_folders(experiment).values()))
    for index, row in enumerate(table.rows):
        texts = [table.score_text(row, metric, 2, dataset) for dataset, metric in table.columns()]
        cells = [cell["text"] for cell in data["rows"][index]["cells"]]
        assert cells[: len(texts)] == texts  # then those that the report leaves out
