import dataclasses
import json
import re

import numpy
import pytest

import amid.reporting.fronts
from amid.config.run_settings import write_settings
from amid.metrics import Front, over_sets, quality_at
from amid.metrics.fronts import Curves, differences_at, seed_spreads
from amid.reporting import build_table, claims, write_report
from amid.reporting.front_sections import at_equal_diversity
from amid.reporting.fronts import at_diversity, fronts_of
from amid.results import Score, load_folders, save

LADDER = (0.4, 0.7, 1.0, 1.3)
SETS = {"dolly": 60, "vicuna": 20}
TEACHER = {"method": "teacher", "divergence": None, "alpha": None, "lam": None}
START = TEACHER | {"method": "start"}


def scores_at(random, temperature, sharper, better, prompts):
    """The score and Self-BLEU of each prompt: at `sharper` times the temperature, what another system has."""
    t = sharper * temperature
    hard = numpy.linspace(-4, 4, prompts)
    noise = random.normal(0, 0.5, (2, prompts))
    return {
        "rouge_l": (30 - 12 * t + better + hard + noise[0]).tolist(),
        "self_bleu": (80 - 40 * t + hard / 2 + noise[1]).tolist(),
        "distinct_1": (20 + 30 * t + noise[1]).tolist(),
    }


def store(folder, run, sharper=1.0, better=0.0, ladder=LADDER):
    """Writes a run that was scored on a ladder, with its scores for each prompt."""
    random = numpy.random.default_rng([run.seed, int(100 * sharper)])
    ladders = {}
    for rung in {*ladder, 1.0}:
        sets = {name: scores_at(random, rung, sharper, better, n) for name, n in SETS.items()}
        means = {
            name: {metric: Score.over_seeds([numpy.mean(values)]) for metric, values in by.items()}
            for name, by in sets.items()
        }
        if rung in ladder:
            ladders[rung] = means
        if rung == 1.0:
            run = dataclasses.replace(run, scores=means)
        answers = folder / "generations" / ("" if rung == 1.0 else f"temperature-{rung}")
        answers.mkdir(parents=True, exist_ok=True)
        prompts = {name: by | {"prompts": name} for name, by in sets.items()}
        (answers / "per_prompt.json").write_text(json.dumps(prompts))
    generation = {"temperature": 1.0, "temperatures": list(ladder), "top_p": 1.0, "top_ps": None}
    write_settings({"config": {"generation": generation}}, folder, "hash")
    save(dataclasses.replace(run, ladders={"temperature": ladders}), folder)


@pytest.fixture
def folder(tmp_path, make_run, monkeypatch):
    """α is a temperature; SFT is worse at equal diversity; two training seeds."""
    monkeypatch.setattr(amid.reporting.fronts, "RESAMPLES", 400)
    for seed in (1, 2):
        store(tmp_path / f"teacher{seed}", make_run(seed=seed, **TEACHER), 0.9, 3.0)
        store(tmp_path / f"start{seed}", make_run(seed=seed, **START), 1.05, -0.5)
        store(tmp_path / f"sft{seed}", make_run(seed=seed, method="sft"), 1.0, -2.0)
        for alpha, sharper in ((-5.0, 0.8), (-1.0, 1.0), (1.0, 1.2)):
            store(tmp_path / f"a{alpha}-{seed}", make_run(seed=seed, alpha=alpha), sharper)
    return tmp_path


def read(folder):
    records = load_folders(folder)
    table = build_table(list(records.values()))
    return table, fronts_of(table, records)


def test_a_report_compares_at_equal_diversity(folder):
    table, (fronts,) = read(folder)
    names = {fronts.name(place): place for place in fronts.rows}
    assert fronts.name(fronts.best) == "AMiD α=-5"
    assert [target.name for target in fronts.targets] == ["teacher", "start"]
    first, by_set = at_equal_diversity([fronts])
    lines = {line[0]: line[1:] for line in first.lines}

    teacher = numpy.mean([table.score(table.rows[names["Teacher"]], "self_bleu", of).mean for of in SETS])
    assert fronts.targets[0].at["Avg"] == pytest.approx(teacher)
    assert first.heads[2] == f"ROUGE-L at {teacher:.1f}"
    systems = {
        name: [over_sets([ladder.front(of) for of in SETS]) for ladder in fronts.rows[place].values()]
        for name, place in names.items()
    }
    curves = {
        name: Curves(of, 400, trained=name not in ("Teacher", "Student at start"))
        for name, of in systems.items()
    }
    spreads = seed_spreads(list(curves.values()), [teacher])
    (found,) = differences_at(curves["SFT"], curves["AMiD α=-5"], [teacher], spreads)
    assert lines["SFT"][2] == f"{found.difference:+.2f} ({found.interval}){'*' if found.significant else ''}"
    assert lines["SFT"][1] == f"{quality_at(systems['SFT'], [teacher])[0]:.1f}"
    assert found.difference == pytest.approx(-2, abs=0.3)
    assert lines["AMiD α=-5"][2] == lines["AMiD α=-5"][-1] == "reference"
    # α = -5 does not reach the diversity of the start: the next best of the table is the reference there
    assert lines["AMiD α=-5"][3:5] == ["not reached", "–"]
    assert lines["AMiD α=-1"][4] == "reference"
    assert f"AMiD α=-5 at {teacher:.1f} and AMiD α=-1 at {fronts.targets[1].at['Avg']:.1f}." in first.note
    assert float(lines["AMiD α=1"][-1].split()[0]) == pytest.approx(0, abs=0.3)

    assert by_set.heads[1].startswith("dolly, Self-BLEU ")
    assert [line[1:] for line in by_set.lines if line[0] == "AMiD α=-5"] == [["reference"] * 2]
    assert re.fullmatch(
        r"Of the 4\.\d points of ROUGE-L between α = -5 and α = 1 at temperature 1, -?0\.\d ± \d\.\d "
        rf"remain at equal diversity \(Self-BLEU {teacher:.1f}\)\. Over the diversities that both reach, "
        r"α = (-5 is on average 0\.\d ± \d\.\d above α = 1|1 is on average 0\.\d ± \d\.\d above α = -5)\.",
        first.finding,
    )


def test_the_column_and_the_claims(folder):
    table, found = read(folder)
    before = {claim.text: claim for claim in claims(table)}
    assert not any("at Self-BLEU" in text or "At Self-BLEU" in text for text in before)
    column = at_diversity(table, found)
    with_column = dataclasses.replace(table, at_diversity=column)
    at = found[0].targets[0].at["Avg"]
    assert column.name == f"at Self-BLEU {at:.1f}"
    assert (column.name, "rouge_l") == with_column.columns()[len(SETS) + 1]
    for row in table.rows:
        seeds = found[0].quality_at(table.rows.index(row), at)
        assert with_column.score(row, "rouge_l", column.name).values == list(seeds.values())
    assert f"{at:.1f} is the Self-BLEU of the teacher" in with_column.caption
    for text in (with_column.to_markdown(), with_column.to_latex(), with_column.to_csv()):
        assert column.name in text
    judged = {claim.text: claim for claim in claims(with_column)}
    assert before.items() <= judged.items()
    (falls,) = (claim for text, claim in judged.items() if text.startswith(f"At Self-BLEU {at:.1f}: ROUGE-L"))
    assert falls.verdict == "undecided"
    (methods,) = (
        claim for text, claim in judged.items() if text.startswith(f"At Self-BLEU {at:.1f}: AMiD is")
    )
    assert "to SFT +" in methods.why


def test_a_diversity_outside_of_a_ladder_is_not_reached(folder, make_run):
    for seed in (1, 2):
        store(folder / f"a1.0-{seed}", make_run(seed=seed, alpha=1.0), 1.2, ladder=(0.8, 1.3))
    table, (fronts,) = read(folder)
    (section, _) = at_equal_diversity([fronts])
    lines = {line[0]: line[1:] for line in section.lines}
    assert lines["AMiD α=1"][1:3] == ["not reached", "–"]
    assert "some settings at fewer or others" in section.note
    column = at_diversity(table, [fronts])
    with_column = dataclasses.replace(table, at_diversity=column)
    row = next(row for row in table.rows if row.labels["alpha"] == 1.0)
    assert with_column.score_text(row, "rouge_l", dataset=column.name) == "not reached"
    (claim,) = (c for c in claims(with_column) if c.text.startswith(f"At {column.name[3:]}: ROUGE-L falls"))
    assert (claim.verdict, claim.why) == ("undecided", "not reached by AMiD α=1")
    # α = -5 and α = 1 share lower diversities: the middle of their range is taken
    assert "remain at equal diversity (Self-BLEU " in section.finding
    for seed in (1, 2):
        store(folder / f"a1.0-{seed}", make_run(seed=seed, alpha=1.0), 3.0, ladder=(1.0, 1.3))
    _, (fronts,) = read(folder)
    finding = at_equal_diversity([fronts])[0].finding
    assert finding.endswith("it is not known how many remain: their curves share no Self-BLEU.")


def test_a_setting_with_a_diverged_run_has_no_curve(folder, make_run):
    run = make_run(seed=3, alpha=1.0)
    run.training["diverged_step"] = 3.0
    save(dataclasses.replace(run, scores={name: {} for name in SETS}), folder / "diverged")
    table, (fronts,) = read(folder)
    assert "AMiD α=1" not in [fronts.name(place) for place in fronts.rows]
    column = at_diversity(table, [fronts])
    with_column = dataclasses.replace(table, at_diversity=column)
    (claim,) = (c for c in claims(with_column) if c.text.startswith(f"At {column.name[3:]}: ROUGE-L falls"))
    assert claim.verdict == "undecided"
    assert claim.why.startswith("1 of 5 runs diverged")


def test_a_setting_may_be_ahead_at_equal_diversity_alone(folder, make_run):
    for seed in (1, 2):
        store(folder / f"a1.0-{seed}", make_run(seed=seed, alpha=1.0), 1.2, better=2.0)
    _, (fronts,) = read(folder)
    finding = at_equal_diversity([fronts])[0].finding
    assert re.fullmatch(
        r"Of the 2\.\d points of ROUGE-L between α = -5 and α = 1 at temperature 1, none remain at equal "
        r"diversity \(Self-BLEU 44\.\d\): α = 1 is [12]\.\d ± \d\.\d above\. Over the diversities that "
        r"both reach, α = 1 is on average [12]\.\d ± \d\.\d above α = -5\.",
        finding,
    ), finding
    for seed in (1, 2):
        store(folder / f"a1.0-{seed}", make_run(seed=seed, alpha=1.0), 0.7, better=-3.0)
    _, (fronts,) = read(folder)
    finding = at_equal_diversity([fronts])[0].finding
    assert re.match(
        r"Of the [12]\.\d points of ROUGE-L between α = -5 and α = 1 at temperature 1, all remain at equal "
        r"diversity \(Self-BLEU \d\d\.\d\): α = -5 is [23]\.\d ± \d\.\d above\. Over the diversities that ",
        finding,
    ), finding


def test_sets_of_one_prompt_scores_that_are_not_finite_and_other_qualities_are_left_out(folder):
    for file in folder.glob("**/per_prompt.json"):
        scores = json.loads(file.read_text())
        scores["vicuna"] = {
            name: of if name == "prompts" else of[:1] for name, of in scores["vicuna"].items()
        }
        if file.parent == folder / "sft1" / "generations" / "temperature-0.7":
            scores["dolly"]["rouge_l"][0] = float("nan")
        file.write_text(json.dumps(scores))
    table, (fronts,) = read(folder)
    assert fronts.sets == ["dolly"]
    assert "SFT" not in [fronts.name(place) for place in fronts.rows]
    (section,) = at_equal_diversity([fronts])
    assert len(section.lines) == 5
    of_another = dataclasses.replace(fronts, quality="exact_answer")
    assert at_diversity(table, [fronts, of_another]) == at_diversity(table, [fronts])


def test_a_further_set_of_the_best_setting_alone_leaves_no_curve_out(folder, make_run, monkeypatch):
    table, (before,) = read(folder)
    monkeypatch.setitem(SETS, "mine", 30)
    for seed in (1, 2):
        store(folder / f"a-5.0-{seed}", make_run(seed=seed, alpha=-5.0), 0.8)
    table, (fronts,) = read(folder)
    assert fronts.name(fronts.best) == "AMiD α=-5"
    assert len(fronts.rows) == len(before.rows) == 6
    assert fronts.sets == before.sets == ["dolly", "vicuna"]
    assert "Avg is the mean over the sets that most runs have (dolly, vicuna)," in table.caption


def test_runs_without_a_ladder_or_with_other_prompts_are_left_out(folder):
    file = folder / "sft1" / "generations" / "per_prompt.json"
    scores = json.loads(file.read_text())
    for place in (file, *folder.glob("sft1/generations/*/per_prompt.json")):
        place.write_text(json.dumps(scores | {"dolly": scores["dolly"] | {"prompts": "others"}}))
    for seed in (1, 2):
        (record,) = load_folders(folder / f"a-1.0-{seed}").values()
        save(dataclasses.replace(record, ladders={}), folder / f"a-1.0-{seed}")
    (record,) = load_folders(folder / "a1.0-1").values()
    for by in record.scores.values():
        by["self_bleu"] = dataclasses.replace(by["self_bleu"], signature="among 8 answers to a prompt")
    save(record, folder / "a1.0-1")
    table, (fronts,) = read(folder)
    names = [fronts.name(place) for place in fronts.rows]
    assert names == ["Teacher", "Student at start", "AMiD α=-5"]
    note = at_equal_diversity([fronts])[0].note
    assert note.endswith("other prompts or other numbers of answers: SFT, AMiD α=-1, AMiD α=1.")
    column = at_diversity(table, [fronts])
    with_column = dataclasses.replace(table, at_diversity=column)
    row = next(row for row in table.rows if row.labels["alpha"] == -1.0)
    assert with_column.score_text(row, "rouge_l", dataset=column.name) == "–"


def test_without_ladders_the_report_has_nothing_of_it(folder):
    for path, record in load_folders(folder).items():
        save(dataclasses.replace(record, ladders={}), path)
    write_report(folder)
    for file in ("report.md", "report.html", "table.csv"):
        assert "equal diversity" not in (folder / "report" / file).read_text()
    assert not (folder / "report" / "fronts.png").exists()


def test_the_whole_report(folder, browser):
    report = write_report(folder)
    text = report.file.read_text()
    assert "## ROUGE-L at equal diversity" in text
    assert "![ROUGE-L over Self-BLEU: each curve is one setting" in text
    assert (folder / "report" / "fronts.png").stat().st_size > 10_000
    browser.open(report.page)
    heads = "[...document.querySelectorAll('table.fronts th')].map(th => th.innerText)"
    assert browser(heads) == ["Setting", "ROUGE-L", "Difference from AMiD α=−5"]
    cells = (
        "Object.fromEntries([...document.querySelectorAll('table.fronts tbody tr')]"
        ".map(row => [row.cells[0].innerText, row.cells[1].innerText]))"
    )
    _, (fronts,) = read(folder)
    (sft,) = (place for place in fronts.rows if fronts.name(place) == "SFT")
    systems = list(fronts.systems(sft, "Avg").values())
    (expected,) = quality_at(systems, [round(fronts.targets[0].at["Avg"], 2)])
    assert float(browser(cells)["SFT"]) == pytest.approx(expected, abs=0.006)

    def choose(choice, value, event):
        node = f"document.querySelector('[data-choice={choice}]')"
        browser(f"({node}.value = '{value}', {node}.dispatchEvent(new Event('{event}')), 1)")

    choose("stop", 0, "input")
    assert "not reached" in browser(cells).values()
    choose("diversity", "distinct_1", "change")
    assert browser(heads) == ["Setting", "ROUGE-L"]
    assert browser("document.querySelectorAll('#section-0 path.line').length") == 6
    browser.click("#filters fieldset[data-filter=method] button")  # the first of the methods
    assert browser("document.querySelectorAll('#section-0 path.line').length") < 6


def test_one_front_is_read_as_it_was_written(folder):
    _, (fronts,) = read(folder)
    front = fronts.systems(fronts.best, "dolly")[1]
    assert isinstance(front, Front)
    assert front.prompts == 60
    assert list(front.temperatures) == list(LADDER)
