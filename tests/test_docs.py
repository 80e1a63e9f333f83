"""The documentation is right: its commands, Python and YAML, the reference made of conf/, the examples."""

import csv
import importlib
import importlib.util
import re
import runpy
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from amid import results
from amid.cli import card, push, report, score
from amid.cli.main import main
from amid.config import folders
from amid.config.compose import register_resolvers
from amid.config.folders import CONF, SWEEPS
from amid.config.overrides import check_overrides
from amid.reporting.formats import markdown_line
from amid.reporting.fronts import fronts_of, over_seeds
from amid.reporting.runs import read_runs
from amid.reporting.significance import cell as difference_cell
from amid.reporting.table import build_table

ROOT = Path(__file__).parents[1]
PAGES = {str(file.relative_to(ROOT / "docs")): file.read_text("utf-8") for file in ROOT.glob("docs/**/*.md")}
COMMAND = re.compile(r"^    (amid .*)$", flags=re.M)
COMMANDS = [line.split("  #")[0].strip() for text in PAGES.values() for line in COMMAND.findall(text)]
COMMANDS += [c for text in PAGES.values() for c in re.findall(r"\| `(amid [^`]*)`", text)]
SNIPPETS = [
    pytest.param(code, id=f"{page}-{i}")
    for page, text in PAGES.items()
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.S))
]


SITES = sorted(
    {
        link
        for text in [
            *PAGES.values(),
            *((ROOT / name).read_text("utf-8") for name in ("README.md", "CHANGELOG.md")),
        ]
        for link in re.findall(r"\]\((https?:[^)#\s]+)", text)
    }
)


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.S)


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def needs_trl(it_does):
    if it_does:
        pytest.importorskip("trl", reason="no TRL here: pip install -e '.[trl]'")


def with_file(monkeypatch, tmp_path, name, text):
    """A copy of conf/ with one more file."""
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(folders, "CONF", folder)
    return folder


def composed(folder, *overrides):
    register_resolvers()
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("train", list(overrides))


def test_there_is_something_to_check():
    assert len(COMMANDS) > 20
    assert len(SNIPPETS) >= 8


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_is_valid(command):
    _, name, *words = shlex.split(command)
    if name in ("score", "report", "card", "push"):
        parser = {"score": score, "report": report, "card": card, "push": push}[name].parser()
        assert parser.parse_args([word for word in words if word != "--traceback"])  # of every command
        return
    words = [word for word in words if not word.startswith("-")]
    if name == "help":
        assert main([name, *words]) == 0
        return
    if name == "status":
        assert len(words) == 1
        return
    if name in ("sweep", "dashboard"):
        assert Path(words[0]).stem == "mine" or (SWEEPS / f"{words[0]}.yaml").exists()
        name, words = "train", [word for word in words[1:] if not word.startswith("scale=")]
    # Launchers and sweepers are packages of their own, and these two options are made in the page itself.
    own = (
        "hydra/launcher=",
        "hydra.launcher.",
        "hydra/sweeper=",
        "hydra.sweeper.",
        "divergence=hellinger",
        "method=mine",
        "+callbacks.mine.",
    )
    check_overrides(name, [word for word in words if not word.startswith(own)])


def test_the_search_of_the_study_is_made_of_its_records():
    found = {}
    with read_runs([ROOT / "docs" / "study" / "search_runs.zip"]) as runs:
        records = list(runs.records.values())
    for run in records:
        name = run.labels["divergence"] if run.labels["method"] == "amid" else run.labels["method"]
        found.setdefault(name, []).append(run)
    words = {
        "kl": "KL(p, r)",
        "alpha_beta": "αβ",
        "reverse_kl": "KL(r ‖ p)",
        "sft": "SFT",
        "jsd": "Jensen-Shannon",
    }
    text = " ".join(PAGES["study.md"].split())
    for name, in_words in words.items():
        means = [f"{run.scores['dev']['rouge_l'].mean:.1f}" for run in found.pop(name)]
        assert f"{in_words} {' / '.join(means)}" in text
    assert not found


@pytest.mark.parametrize(("records", "table"), [("runs.zip", "table.csv"), ("gpu_runs.zip", "gpu_table.csv")])
def test_the_tables_of_the_study_are_made_of_its_records(records, table):
    study = ROOT / "docs" / "study"
    with read_runs([study / records]) as runs:
        made = build_table(list(runs.records.values()))
    texts = (made.to_csv(), (study / table).read_text("utf-8"))
    mine, kept = (list(csv.reader(text.splitlines())) for text in texts)
    assert len(mine) == len(kept) > 10
    for line, other in zip(mine, kept, strict=True):
        for cell, known in zip(line, other, strict=True):
            assert cell == known or float(cell) == pytest.approx(float(known), rel=1e-9)
    assert made.to_markdown().strip() in PAGES["study.md"]


def test_the_ladder_of_the_study_is_made_of_its_records():
    """Differences are from the student at start: at two diversities, and over the range that both reach."""
    with read_runs([ROOT / "docs" / "study" / "study_ladder_runs.zip"]) as runs:
        table = build_table(list(runs.records.values()))
        (fronts,) = fronts_of(table, runs.records)
    (start,) = (place for place in fronts.rows if fronts.name(place) == "Student at start")
    of_teacher = fronts.targets[0].at[fronts.everywhere]
    lines = []
    for place in fronts.rows:
        low, high = fronts.reach(place)
        scores = (table.score(table.rows[place], name) for name in ("rouge_l", "self_bleu"))
        at_1 = ", ".join(f"{score.mean:.1f}" for score in scores)
        line = [fronts.name(place), at_1, f"{low:.1f} to {high:.1f}"]
        for at in (of_teacher, 16):
            found = over_seeds(fronts.quality_at(place, at))
            line.append("not reached" if found is None else f"{found.mean:.1f}")
            of_start = [None] if place == start else fronts.differences(place, start, [at], fronts.everywhere)
            line += map(difference_cell, of_start)
        over_all = None if place == start else fronts.area(place, start)
        lines.append(markdown_line([*line, difference_cell(over_all)]))
    assert len(lines) > 8
    first, second = (
        " and ".join(f"{x:.1f}" for x in fronts.quality_at(start, at).values()) for at in (of_teacher, 16)
    )
    of_starts = f"Their ROUGE-L is {first} at Self-BLEU {of_teacher:.1f}, and {second} at 16."
    assert of_starts in " ".join(PAGES["study.md"].split())
    assert "\n".join(lines) in PAGES["study.md"]


def test_the_table_of_reverse_kl_on_real_text_is_made_of_its_records():
    with read_runs([ROOT / "docs" / "study" / "study_reverse_kl_runs.zip"]) as runs:
        table = build_table(list(runs.records.values()))
        (fronts,) = fronts_of(table, runs.records)
    (start,) = (place for place in fronts.rows if fronts.name(place) == "Student at start")
    lines = []
    for place in fronts.rows:
        row = table.rows[place]
        at_1 = [table.score(row, name).mean for name in ("rouge_l", "self_bleu")]
        ended = table.score(row, "eos_share").mean
        found = over_seeds(fronts.quality_at(place, 16)).mean
        of_start = None if place == start else fronts.differences(place, start, [16], fronts.everywhere)[0]
        name = re.sub(r"^AMiD | settings=.*", "", fronts.name(place))
        text = {"text=data": ", the data's text", "text=student": ", the student's text"}
        of = next((words for key, words in text.items() if key in fronts.name(place)), None)
        if place != start:
            name += of or ", no warm start"
        cells = [name, ", ".join(f"{x:.1f}" for x in at_1), f"{ended:.0f}%", f"{found:.1f}"]
        lines.append(markdown_line([*cells, difference_cell(of_start)]))
    assert len(lines) == 7
    assert "\n".join(lines) in PAGES["study.md"]


@pytest.mark.slow
def test_the_methods_at_equal_diversity_are_made_of_their_records():
    """Differences are from SFT, where Self-BLEU is the teacher's. A line has the cells of both corpora."""
    cells = {}
    for records in ("equal_diversity_runs.zip", "equal_diversity_7_runs.zip"):
        with read_runs([ROOT / "docs" / "study" / records]) as runs:
            table = build_table(list(runs.records.values()))
            (fronts,) = fronts_of(table, runs.records)
        (sft,) = (place for place in fronts.rows if fronts.name(place) == "SFT")
        at = fronts.targets[0].at[fronts.everywhere]
        assert f"ROUGE-L at {at:.1f}" in PAGES["study.md"]
        for place in (place for place in fronts.rows if "text=" not in fronts.name(place)):
            scores = (table.score(table.rows[place], name) for name in ("rouge_l", "self_bleu"))
            found = over_seeds(fronts.quality_at(place, at))
            of_sft = None if place == sft else fronts.differences(place, sft, [at], fronts.everywhere)[0]
            cells.setdefault(fronts.name(place), []).extend(
                [
                    ", ".join(f"{score.mean:.1f}" for score in scores),
                    "not reached" if found is None else f"{found.mean:.1f}",
                    difference_cell(of_sft),
                ]
            )
    lines = [markdown_line([name, *of]) for name, of in cells.items()]
    assert len(lines) == 23
    assert "\n".join(lines) in PAGES["study.md"]


@pytest.mark.parametrize("code", SNIPPETS)
def test_every_snippet_runs(code, tmp_path, monkeypatch):
    needs_trl("from trl import" in code)
    run = results.RunResult(
        name="a",
        labels={"method": "amid", "divergence": "kl", "alpha": -1.0},
        config_hash="0",
        seed=1,
        scores={"open": {"rouge_l": results.Score.over_seeds([1.0])}},
        training={},
        timings={},
        versions={},
    )
    results.save(run, tmp_path / "outputs" / "first" / "a")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "snippet"}
    exec(compile(code, "snippet", "exec"), names)
    assert names.keys() - {"__name__", "__builtins__"}
    assert all(value.isfinite().all() for value in names.values() if isinstance(value, torch.Tensor))


def test_the_divergence_of_the_page_becomes_an_option(tmp_path, monkeypatch):
    (code,), (text,) = blocks("how-to/divergence.md", "python"), blocks("how-to/divergence.md", "yaml")
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    folder = with_file(monkeypatch, tmp_path, "divergence/hellinger.yaml", text)
    check_overrides("train", ["divergence=hellinger", "divergence.weight=2", "assistant.alpha=-1"])
    objective = instantiate(composed(folder, "divergence=hellinger", "assistant.alpha=-1").objective)
    log_p, log_q = torch.randn(2, 3, 9).log_softmax(-1)
    logits = log_q.clone().requires_grad_()
    loss = objective(student_logits=logits, teacher_logits=log_p)
    r = objective.assistant(log_p, log_q).exp()
    by_hand = 0.5 * (log_p.exp().sqrt() - r.sqrt()).square().sum(-1).mean()
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    assert float(logits.grad.abs().max()) > 0


def test_the_method_of_the_page_becomes_an_option(tmp_path, monkeypatch):
    (text,) = blocks("how-to/method.md", "yaml")
    folder = with_file(monkeypatch, tmp_path, "method/mine.yaml", text)
    check_overrides("train", ["method=mine", "assistant.lam=0.2"])
    cfg = composed(folder, "method=mine")
    assert cfg.text._target_ == "amid.text.StudentText"
    assert cfg.text.share == 0.5
    objective = instantiate(cfg.objective)
    assert (objective.order, objective.assistant.alpha, objective.assistant.lam) == ("pr", -3.0, 0.3)


def test_the_data_of_the_page_become_an_option(tmp_path, monkeypatch):
    (text,) = blocks("how-to/data.md", "yaml")
    folder = with_file(monkeypatch, tmp_path, "data/poems.yaml", text)
    check_overrides("train", ["data=poems"])
    cfg = composed(folder, "data=poems")
    assert cfg.data.fields.output == "text"
    assert list(cfg.data.test) == ["poems"]


def test_the_pair_of_the_page_becomes_an_option(tmp_path, monkeypatch):
    (text,) = blocks("how-to/pair.md", "yaml")
    folder = with_file(monkeypatch, tmp_path, "model/mine.yaml", text)
    check_overrides("train", ["model=mine"])
    cfg = composed(folder, "model=mine")
    assert cfg.model.tokenizer.path == cfg.model.teacher.path == "HuggingFaceTB/SmolLM2-360M-Instruct"
    assert (cfg.model.teacher.dtype, cfg.model.student.dtype, cfg.model.student.sft) == (
        "bfloat16",
        "float32",
        None,
    )
    assert cfg.model.teacher.sft.trainer.max_epochs == 3


PUBLIC = ("data", "generation", "losses", "metrics", "models", "reporting", "teacher", "text")
"""Packages with names that users import."""


@pytest.mark.parametrize("package", PUBLIC)
def test_the_reference_has_every_public_name(package):
    """The site's build fails for a name that there is none of."""
    shown = {name for text in PAGES.values() for name in re.findall(r"^::: (amid\S+)", text, flags=re.M)}
    public = importlib.import_module(f"amid.{package}").__all__
    assert {f"amid.{package}.{name}" for name in public} <= shown


def test_the_configuration_reference_has_every_option_and_every_key():
    page = module(ROOT / "docs" / "configuration.py").page()
    sections = dict(re.findall(r"^#### `(amid\.[\w.]+)`\n(.*?)(?=^#|\Z)", page, flags=re.M | re.S))
    for file in CONF.rglob("*.yaml"):
        group = str(file.parent.relative_to(CONF))
        if group.startswith("hydra"):
            continue
        title = f"amid {file.stem}" if group == "." else f"{group}={file.stem}"
        title = file.name if file.name.startswith("_") else title
        assert f"### `{title}`\n" in page
        node = yaml.safe_load(file.read_text("utf-8")) or {}
        target = node.get("_target_", "")
        if target.startswith("amid."):
            keys = node.keys() - {"_target_", "_partial_", "defaults"}
            described = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| (.+?) \|$", sections[target], flags=re.M))
            assert keys <= described.keys(), (file, keys - described.keys())


def test_the_pictures_are_those_of_their_script(tmp_path):
    pictures = module(ROOT / "docs" / "pictures.py")
    pictures.main(tmp_path)
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {file.name for file in (ROOT / "docs" / "images").glob("*.svg")}
    for name in drawn:
        assert f"](images/{name})" in PAGES["concepts.md"]


@pytest.mark.parametrize("name", ["torch_loop", "hf_trainer", "trl_sft_then_amid", "lightning_module"])
@pytest.mark.slow
def test_the_examples_lower_the_loss(name, monkeypatch, capsys):
    needs_trl(name.startswith("trl"))
    monkeypatch.syspath_prepend(ROOT / "examples")
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    before, after = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", capsys.readouterr().out).groups())
    assert after < 0.95 * before


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_links_outside_the_site_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text("utf-8"))
    assert name != "README.md" or len(links) > 2
    assert [link for link in links if not (ROOT / link).exists()] == []


def status_of(link):
    """The HTTP status of a page; None where it cannot be reached from here."""
    try:
        return httpx.get(link, follow_redirects=True, timeout=20).status_code
    except httpx.TransportError:
        return None


def test_links_to_other_sites_lead_somewhere():
    assert len(SITES) > 10
    with ThreadPoolExecutor() as pool:
        found = dict(zip(SITES, pool.map(status_of, SITES), strict=True))
    if set(found.values()) == {None}:
        pytest.skip("no other site can be reached from here")
    assert [link for link, status in found.items() if status in (404, 410)] == []
