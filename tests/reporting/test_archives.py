import os
import shutil
import subprocess
import sys
import zipfile

import pytest

import amid.reporting.archives as archives
from amid.cli.report import run as report
from amid.errors import Damaged, InputError
from amid.reporting.archives import read_archive, write_archive
from amid.reporting.runs import read_runs
from amid.results import load, save

CURVE = "epoch,step,train/loss\n0,0,4.0\n0,5,3.5\n"
RECORDS = [
    "config.yaml",
    "generations/.made_from.json",
    "generations/open-1.jsonl",
    "generations/temperature-0.4/open-1.jsonl",
    "metrics.csv",
    "result.json",
]


def files_of(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def store(folder, run):
    """A run's folder with all kinds of records, a checkpoint and a status."""
    save(run, folder)
    (folder / "config.yaml").write_text("hash: h\nconfig: {seed: 1}\n", encoding="utf-8")
    (folder / "metrics.csv").write_text(CURVE, encoding="utf-8")
    line = '{"instruction": "Say.", "input": "", "references": ["a"], "answers": [{"text": "b"}]}\n'
    for name, text in (
        ("generations/open-1.jsonl", line),
        ("generations/temperature-0.4/open-1.jsonl", line),
        ("generations/.made_from.json", '{"made_from": {}, "seconds": 1.0}'),
        ("checkpoints/best/model.safetensors", "weights"),
        ("status.json", "{}"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def outputs(tmp_path, make_run):
    for alpha in (-5.0, 1.0):
        store(tmp_path / "outputs" / f"alpha={alpha:g}", make_run((50.0 - alpha, 49.0), alpha=alpha))
    return tmp_path / "outputs"


@pytest.fixture
def archive(outputs, tmp_path):
    file = tmp_path / "runs.zip"
    write_archive(file, {run.name: run for run in outputs.iterdir()})
    return file


def made(file, *entries, **more):
    with zipfile.ZipFile(file, "w", **more) as target:
        for name, content in entries:
            target.writestr(name, content)
    return file


def test_an_archive_holds_the_records_of_runs_and_equal_runs_give_equal_bytes(archive, outputs, tmp_path):
    runs = ("alpha=-5", "alpha=1")
    with read_archive(archive) as folder:
        assert files_of(folder) == [f"{run}/{name}" for run in runs for name in RECORDS]
        for name in files_of(folder):
            assert (folder / name).read_bytes() == (outputs / name).read_bytes()
    assert not folder.exists()
    for file in outputs.rglob("*"):
        os.utime(file, (0, 10**9))
    write_archive(tmp_path / "again.zip", {run: outputs / run for run in reversed(runs)})
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_the_report_of_an_archive_is_that_of_its_folder(outputs, tmp_path, capsys):
    report([str(outputs), "--archive", str(tmp_path / "new" / "outputs.zip")])
    of_folder = capsys.readouterr().out
    assert of_folder.endswith(f"Archive: {tmp_path / 'new' / 'outputs.zip'}\n")
    report([str(tmp_path / "new" / "outputs.zip")])
    of_archive = capsys.readouterr().out
    assert of_archive.split("Page:")[0] == of_folder.split("Page:")[0]
    for name in ("table.csv", "report.md", "report.html"):
        files = (outputs / "report" / name, tmp_path / "new" / "outputs" / "report" / name)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_an_archive_of_another_program_with_whole_folders_is_read(outputs, tmp_path):
    command = [sys.executable, "-m", "zipfile", "-c", tmp_path / "all.zip", outputs]
    subprocess.run(command, check=True)
    with read_archive(tmp_path / "all.zip") as folder:
        assert {run.name for run in (folder / "outputs").iterdir()} == {"alpha=-5", "alpha=1"}
        assert files_of(folder / "outputs" / "alpha=1") == RECORDS


def test_a_place_that_cannot_hold_a_report_or_an_archive_is_named(outputs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file can hold no report \(File exists\); .* --into FOLDER"):
        report([str(outputs), "--into", str(tmp_path / "file")])
    with pytest.raises(InputError, match=r"--archive .*runs\.zip cannot be written \(File exists\)"):
        report([str(outputs), "--archive", str(tmp_path / "file" / "runs.zip")])


@pytest.mark.slow
def test_several_places_of_both_kinds_are_one_report(outputs, archive, tmp_path, make_run):
    store(tmp_path / "more" / "kd", make_run((30.0,), method="kd"))
    whole = tmp_path / "whole.zip"
    places = [str(tmp_path / "more"), str(archive), str(archive)]
    with pytest.raises(InputError, match=r"a report of 3 places .* --into FOLDER"):
        report(places)
    report([*places, "--into", str(tmp_path / "here"), "--archive", str(whole)])
    text = (tmp_path / "here" / "report" / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# more, runs\n")
    with read_runs([whole]) as runs:
        assert runs.name == "whole"
        assert sorted(runs.names.values()) == ["more/kd", "runs.zip/alpha=-5", "runs.zip/alpha=1"]
    with read_runs([tmp_path / "more" / "kd"]) as runs:
        assert list(runs.names.values()) == ["kd"]


def test_an_error_in_a_record_names_the_archive(archive, tmp_path):
    with read_archive(archive) as folder:
        shutil.copytree(folder, tmp_path / "copy")
    record = tmp_path / "copy" / "alpha=1" / "result.json"
    record.write_text(record.read_text("utf-8").replace("50", "51"), encoding="utf-8")
    write_archive(archive, {run.name: run for run in (tmp_path / "copy").iterdir()})
    with (
        pytest.raises(Damaged, match=r"result .*/runs\.zip/alpha=1/result\.json is damaged \(its content"),
        read_runs([archive]),
    ):
        pass


def test_a_damaged_archive_is_one_line_with_the_remedy(archive, tmp_path):
    """Cut anywhere, or with any byte flipped, it is refused, or its runs are those that were written."""
    whole = archive.read_bytes()
    with read_runs([archive]) as runs:
        expected = sorted(run.scores["dolly"]["rouge_l"].mean for run in runs.records.values())
    refused = 0
    for at in range(0, len(whole), 23):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            archive.write_bytes(content)
            try:
                with read_runs([archive]) as runs:
                    assert (
                        sorted(r.scores["dolly"]["rouge_l"].mean for r in runs.records.values())
                        in (
                            expected,
                            expected[:1],  # the name of a record was changed, which no checksum covers
                            expected[1:],
                        )
                    )
            except InputError as error:
                refused += 1
                (line,) = str(error).splitlines()
                assert str(archive) in line
                assert "; " in line
    assert refused > len(whole) // 23


@pytest.mark.parametrize(
    "name",
    ["../result.json", "a/../../result.json", "/etc/result.json", "a\\b/result.json", "C:/result.json"],
)
def test_a_name_that_leads_out_of_the_archive_is_refused(name, tmp_path):
    file = made(tmp_path / "runs.zip", (name, "{}"))
    with pytest.raises(Damaged, match="leads out of it; copy it again"), read_archive(file):
        pass
    assert files_of(tmp_path) == ["runs.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "names", [("a/result.json", "a/result.json"), ("a/result.json", "a/result.json/result.json")]
)
def test_a_name_that_comes_twice_is_refused(names, tmp_path):
    file = made(tmp_path / "runs.zip", *((name, "{}") for name in names))
    with pytest.raises(Damaged, match="twice"), read_archive(file):
        pass


def test_an_archive_that_unpacks_to_too_much_is_refused_and_not_written(
    archive, outputs, tmp_path, monkeypatch
):
    monkeypatch.setattr(archives, "LARGEST", 100_000)
    bomb = made(tmp_path / "bomb.zip", ("a/metrics.csv", bytes(200_000)), compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1000
    with pytest.raises(InputError, match=r"records of 0\.0 GB, which is more"), read_archive(bomb):
        pass
    (outputs / "alpha=1" / "metrics.csv").write_text(CURVE * 5000, encoding="utf-8")
    before = archive.read_bytes()
    with pytest.raises(InputError, match="make one of fewer runs"):
        write_archive(archive, {"run": outputs / "alpha=1"})
    assert archive.read_bytes() == before
    monkeypatch.setattr(archives, "MOST", 3)
    with pytest.raises(InputError, match="has 12 files"), read_archive(archive):
        pass


def test_a_file_that_is_no_archive(outputs, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("no zip", encoding="utf-8")
    with pytest.raises(Damaged, match=r"note\.txt is damaged \(File is not a zip file\); copy it again"):
        report([str(note)])
    with pytest.raises(InputError, match=r"note\.txt is no name of a zip file; give one, such as"):
        report([str(outputs), "--archive", str(note)])
    assert note.read_text(encoding="utf-8") == "no zip"
    with pytest.raises(InputError, match=r"nowhere\.zip is neither a folder nor a zip file"):
        report([str(tmp_path / "nowhere.zip")])


def test_a_record_of_the_archive_is_loaded_as_that_of_the_folder(archive, outputs):
    with read_runs([archive]) as runs:
        assert [load(outputs / name) for name in ("alpha=-5", "alpha=1")] == list(runs.records.values())
