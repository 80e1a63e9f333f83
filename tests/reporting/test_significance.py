import itertools
import json

import numpy
import pytest

import amid.reporting.significance as significance
from amid.cli.report import run as report
from amid.errors import InputError
from amid.metrics import paired_bootstrap
from amid.reporting import build_table
from amid.reporting.interactive import interactive_page
from amid.reporting.runs import Runs
from amid.reporting.significance import against_the_best, not_read
from amid.results import Score, load_folders, save


@pytest.fixture
def folder(tmp_path, make_run):
    """Two seeds of α = -5 and of α = 1, and SFT, on 40 prompts of one set."""

    def write(name, prompts, **run):
        mean = sum(prompts) / len(prompts)
        save(make_run((mean, mean + 0.1), **run), tmp_path / name)
        answers = tmp_path / name / "generations"
        answers.mkdir()
        (answers / "per_prompt.json").write_text(json.dumps({"dolly": {"rouge_l": prompts}}))

    wave = [10.0 * (i % 5) for i in range(40)]
    write("a1", [40 + x for x in wave], seed=1, alpha=-5.0)
    write("a2", [42 + x for x in wave], seed=2, alpha=-5.0)
    write("b1", [37 + x for x in wave], seed=1, alpha=1.0)
    write("b2", [39 + x for x in wave], seed=2, alpha=1.0)
    write("sft", [40 + (40 - x) for x in wave], seed=1, method="sft", divergence=None, alpha=None, lam=None)
    return tmp_path


def test_a_difference_on_every_prompt_is_marked_and_noise_is_not(folder):
    records = load_folders(folder)
    section = against_the_best(build_table(list(records.values())), records)
    assert section.title == "Difference in ROUGE-L from the best setting"
    lines = {line[0]: line[1:] for line in section.lines}
    assert lines.keys() == {"SFT", "AMiD α=1"}
    assert lines["AMiD α=1"] == ["AMiD α=-5", "-3.00 (-3.00 to -3.00)*"]
    assert lines["SFT"][1].startswith("-1.00 (")
    assert not lines["SFT"][1].endswith("*")
    assert section.finding == (
        "AMiD α=-5 is the best over the sets. By more than the choice of prompts explains, it is above "
        "AMiD α=1 on dolly; not different from SFT."
    )
    assert "Self-BLEU is not tested." in section.note


def test_the_best_is_that_of_the_sets_of_its_data(tmp_path, make_run):
    """Runs on two data, whose averages are over other sets."""
    for data, sets, means in (("builtin", ["open", "closed"], (40, 45)), ("jsonl", ["mine"], (70, 50, 60))):
        for alpha, mean in enumerate(means):
            folder = tmp_path / f"{data}-{alpha}"
            (folder / "generations").mkdir(parents=True)
            run = make_run((float(mean),), sets=sets, data=data, alpha=float(alpha))
            save(run, folder)
            scores = {name: {"rouge_l": [mean - 1.0, mean + 1.0], "prompts": data} for name in sets}
            (folder / "generations" / "per_prompt.json").write_text(json.dumps(scores))
    records = load_folders(tmp_path)
    section = against_the_best(build_table(list(records.values())), records)
    bests = {line[1] for line in section.lines}
    assert bests == {"Data=builtin α=1", "Data=jsonl α=0"}
    assert all("-" in cell for line in section.lines for cell in line[2:] if cell != "–")


def test_it_stands_in_the_report(folder, capsys):
    report([str(folder)])
    assert "-3.00 (-3.00 to -3.00)*" in capsys.readouterr().out
    assert "-3.00 (-3.00 to -3.00)*" in (folder / "report" / "report.md").read_text()
    assert "Difference in ROUGE-L from any setting" in (folder / "report" / "report.html").read_text()


def test_other_prompts_and_runs_without_scores_are_not_compared(folder):
    file = folder / "b2" / "generations" / "per_prompt.json"
    file.write_text(json.dumps({"dolly": {"rouge_l": [1.0, 2.0]}}))
    records = load_folders(folder)
    section = against_the_best(build_table(list(records.values())), records)
    assert [line[0] for line in section.lines] == ["SFT"]
    for path in folder.glob("*/generations/per_prompt.json"):
        path.unlink()
    assert against_the_best(build_table(list(records.values())), records) is None


def test_as_many_other_prompts_are_not_compared(folder):
    file = folder / "sft" / "generations" / "per_prompt.json"
    scores = json.loads(file.read_text())
    file.write_text(json.dumps({"dolly": scores["dolly"] | {"prompts": "a key of others"}}))
    records = load_folders(folder)
    section = against_the_best(build_table(list(records.values())), records)
    assert [line[0] for line in section.lines if line[-1] != "–"] == ["AMiD α=1"]
    assert section.finding.endswith(
        "By more than the choice of prompts explains, it is above AMiD α=1 on dolly."
    )
    file.write_text(json.dumps({"dolly": scores["dolly"] | {"rouge_l": [float("nan")] * 40}}))
    section = against_the_best(build_table(list(records.values())), records)
    assert [line[0] for line in section.lines] == ["AMiD α=1"]


def test_scores_of_text_that_cannot_be_read_are_told_and_not_compared(folder):
    for file in folder.glob("*/generations/per_prompt.json"):
        scores = {"rouge_l": [0.0] * 40, "unread": {"rouge_l": 97.5, "self_bleu": 100.0}}
        file.write_text(json.dumps({"dolly": scores}))
    records = load_folders(folder)
    table = build_table(list(records.values()))
    assert against_the_best(table, records) is None
    section = not_read(table, records)
    assert section.lines == [["ROUGE-L, dolly", "97.5"], ["Self-BLEU, dolly", "100"]]
    report([str(folder)])
    assert "## Text that scores cannot read" in (folder / "report" / "report.md").read_text()


def test_a_damaged_file_is_named(folder):
    (folder / "a1" / "generations" / "per_prompt.json").write_text("{")
    records = load_folders(folder)
    with pytest.raises(InputError, match=r"per_prompt\.json is damaged"):
        against_the_best(build_table(list(records.values())), records)


PROMPTS = {"long": 50, "short": 12}
TEACHER = {"method": "teacher", "divergence": None, "alpha": None, "lam": None}


@pytest.fixture
def several(tmp_path, make_run):
    """A teacher and five settings on two sets, KD on other prompts of one; two settings of other data.

    Their records; the files of scores, by the seed, which is another in each run.
    """
    random = numpy.random.default_rng(0)
    settings = [TEACHER, {"method": "sft"}, {"method": "kd"}, *({"alpha": float(a)} for a in (-5, -1, 1))]
    labels = [{"data": "dolly", **own} for own in settings]
    labels += [{"data": "samsum", "method": "sft"}, {"data": "samsum", "alpha": -5.0}]
    written = []
    for seed, own in enumerate(labels):
        run = make_run(seed=seed, sets=PROMPTS, **own)
        written.append({})
        for name, prompts in PROMPTS.items():
            scores = list(random.normal(20 + seed / 2, 6, prompts))
            key = "others" if own.get("method") == "kd" and name == "short" else "these"
            written[seed][name] = {"rouge_l": scores, "prompts": key}
            run.scores[name]["rouge_l"] = Score.over_seeds([numpy.mean(scores)])
        save(run, tmp_path / "runs" / str(seed))
        answers = tmp_path / "runs" / str(seed) / "generations"
        answers.mkdir()
        (answers / "per_prompt.json").write_text(json.dumps(written[seed]))
    return load_folders(tmp_path / "runs"), written


def cells(table, written, row, other):
    """What is told of two rows, from the scores of the prompts themselves."""
    made = []
    for name in PROMPTS:
        one, two = (written[table.rows[place].runs[0].seed][name] for place in (row, other))
        if one["prompts"] != two["prompts"]:
            made.append("–")
            continue
        found = paired_bootstrap(one["rouge_l"], two["rouge_l"])
        mark = "*" if found.significant else ""
        made.append(f"{found.difference:+.2f} ({found.low:+.2f} to {found.high:+.2f}){mark}")
    return made


class TestAgainstAny:
    def test_every_pair_is_that_of_paired_bootstrap(self, several):
        records, written = several
        table = build_table(list(records.values()))
        page = against_the_best(table, records).to_page()
        assert page["sets"] == list(PROMPTS)
        assert [len(group["rows"]) for group in page["groups"]] == [6, 2]
        for group in page["groups"]:
            rows = group["rows"]
            for triangle in group["less"]:
                assert [len(line) for line in triangle] == list(range(len(rows)))
            for i, j in itertools.combinations(range(len(rows)), 2):
                told = []
                for cell in (triangle[j][i] for triangle in group["less"]):
                    difference, low, high, *apart = cell or (0, 0, 0)
                    mark = "*" if apart else ""
                    told.append(f"{difference:+.2f} ({low:+.2f} to {high:+.2f}){mark}" if cell else "–")
                assert told == cells(table, written, rows[j], rows[i])

    def test_the_teacher_is_in_no_line(self, several):
        records, written = several
        table = build_table(list(records.values()))
        section = against_the_best(table, records)
        for group, count in zip(section.groups, (5, 2), strict=True):
            quality = {row: table.score(table.rows[row], "rouge_l").mean for row in group.students}
            assert len(quality) == count
            assert group.best == max(quality, key=quality.get)
        assert section.lines == [
            [
                table.name(table.rows[row]),
                table.name(table.rows[group.best]),
                *cells(table, written, row, group.best),
            ]
            for group in section.groups
            for row in group.rows
            if row != group.best and table.rows[row].labels["method"] != "teacher"
        ]

    def test_of_very_many_settings_the_page_has_the_best_alone(self, several, monkeypatch):
        records, _ = several
        table = build_table(list(records.values()))
        section = against_the_best(table, records)
        monkeypatch.setattr(significance, "PAIRS", 16)  # those of 6 settings and of 2
        assert against_the_best(table, records) == section
        monkeypatch.setattr(significance, "PAIRS", 15)
        alone = against_the_best(table, records)
        assert alone.to_markdown() == section.to_markdown()
        assert alone.to_page()["lines"] == section.lines
        assert "groups" not in alone.to_page()


HEADS = "[...document.querySelectorAll('#differences th')].map(head => head.innerText)"
LINES = (
    "[...document.querySelectorAll('#differences tbody tr')]"
    ".map(row => [...row.cells].map(cell => cell.innerText))"
)
SELECT = "document.querySelector('#compare-with')"
CHOSEN = f"{SELECT}.selectedOptions[0].text"
TOLD = "document.querySelector('#told-apart').innerText"


def test_any_setting_is_chosen_by_keyboard(several, browser, tmp_path):
    records, written = several
    table, section = open_page(records, browser, tmp_path)

    def shown(cells_of_line):
        return [cell.replace("-", "−") for cell in cells_of_line]

    assert browser(CHOSEN) == "the best of each pair and data"
    assert browser(HEADS) == ["Setting", "Best", *PROMPTS]
    assert browser(LINES) == [shown(line) for line in section.lines]
    assert browser(f"{SELECT}.labels[0].innerText").startswith("Compare with")

    names = [name for row in table.rows for name in shown([table.name(row)])]
    browser(f"{SELECT}.focus()")
    for other in range(len(table.rows)):
        browser.press("ArrowDown")
        (group,) = (group for group in section.groups if other in group.rows)
        assert browser(CHOSEN) == names[other] + (" (best)" if other == group.best else "")
        assert browser(HEADS) == ["Setting", *PROMPTS]
        lines = browser(LINES)
        assert lines == [
            [names[row], *shown(cells(table, written, row, other))] for row in group.students if row != other
        ]
        told = browser(TOLD)
        assert told.startswith(f"{len(lines)} settings are compared with {names[other]}. By more than the ")
        marked = [[line[i][0] for line in lines if line[i].endswith("*")] for i in (1, 2)]
        for part, signs in zip(told.split(";"), marked, strict=True):
            assert ("none" in part) == (not signs)
            for word, sign in (("higher", "+"), ("lower", "−")):
                assert (f"{signs.count(sign)} {word}" in part) == (sign in signs)

    assert [line[0] for line in browser(LINES)] == [names[other] for other in group.students[:-1]]
    browser("[...document.querySelectorAll('#filters button')].find(b => b.innerText === 'SFT').click()")
    left = [row for row in group.students[:-1] if table.rows[row].labels["method"] != "sft"]
    assert [line[0] for line in browser(LINES)] == [names[row] for row in left]

    of_one = {place: run for place, run in records.items() if run.labels["data"] == "dolly"}
    table, section = open_page(of_one, browser, tmp_path)
    best = table.name(table.rows[section.groups[0].best])
    assert browser(CHOSEN) == f"{shown([best])[0]} (best)"
    assert browser(HEADS) == ["Setting", *PROMPTS]
    assert browser(LINES) == [shown([name, *differences]) for name, _, *differences in section.lines]


def open_page(records, browser, folder):
    table = build_table(list(records.values()))
    section = against_the_best(table, records)
    file = folder / f"{len(records)}.html"
    runs = Runs("runs", records, {}, {place: place.name for place in records})
    file.write_text(interactive_page(runs, table, [section]), encoding="utf-8")
    browser.open(file)
    return table, section
