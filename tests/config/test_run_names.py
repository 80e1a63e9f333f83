from pathlib import Path

import yaml

from amid.cli.main import main
from amid.config.compose import register_resolvers
from amid.config.run_names import LONGEST_NAME, LONGEST_SETTINGS, Naming, further_settings, run_name
from amid.config.sweeps import Sweep, read_sweep

register_resolvers()
OWN_DATA = ["data=jsonl", "data.train=/home/me/data/train.jsonl", "data.valid=/home/me/data/valid.jsonl"]
OWN_DATA += ["data.fields.instruction=question", "data.fields.output=answer", "data.max_length=128"]


def begun(folder, *overrides):
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))


def names(output_dir, *overrides):
    return [run.directory.name for run in Sweep("train", output_dir, [list(overrides)]).runs()]


def test_run_names_are_short_and_without_separators():
    assert run_name([]) == "default"
    assert run_name(["seed=2", "assistant.alpha=-5", "output_dir=x/y"]) == "alpha=-5,seed=2"
    assert "/" not in run_name(["model.teacher.path=/a/b"])
    assert run_name(["+data.test.mine='a.jsonl'"]) == run_name(["data.test.mine=a.jsonl"])
    long = [run_name([f"data.train={'x' * 200}{i}", "assistant.alpha=-5"]) for i in range(2)]
    assert long[0].startswith("alpha=-5-")
    assert max(map(len, long)) <= LONGEST_NAME
    assert long[0] != long[1]


def test_names_that_lose_characters_end_in_a_hash_of_them():
    alike = ["run='ü/r'", "run='ä/r'", "run=_r", "run=/r", "run='a r'", "run=:r", "run=-r", "run=[r]"]
    alike += [f"data.train='{'ü' * 200}/{i}'" for i in range(3)] + [
        "data.train='a[:9]'",
        "data.train='a[9:]'",
    ]
    found = [run_name([override]) for override in alike]
    assert len(set(found)) == len(alike)
    assert all(name.isascii() and "/" not in name and len(name) <= LONGEST_NAME for name in found)
    assert found[2] == "run=_r"  # which lost none
    assert found[0].startswith("run=_r-")


def test_settings_in_tables_say_what_is_left_out_and_are_no_longer_than_a_table_shows():
    said = further_settings(["~data.test.open", "optimizer.lr=1", "+data.test.mine=a", "seed=3"])
    assert said == "data.test.mine=a,~data.test.open,optimizer.lr=1"
    long = further_settings([f"+data.test.set{n}=some/folder/rows.jsonl" for n in range(200)])
    assert len(long) <= LONGEST_SETTINGS
    assert long.startswith("data.test.set0=")


def test_what_varies_comes_first_and_what_all_share_is_left_out(tmp_path):
    assert names(tmp_path, *OWN_DATA, "seed=1,2", "assistant.alpha=-5,1", "method=amid") == [
        "alpha=-5,seed=1",
        "alpha=1,seed=1",
        "alpha=-5,seed=2",
        "alpha=1,seed=2",
    ]
    sweep = read_sweep("alpha", [*OWN_DATA, "assistant.alpha=-5,1", f"output_dir={tmp_path}"])
    found = [run.directory.name for run in sweep.runs()]
    assert found[0] == "alpha=-5,seed=1"
    assert len(set(found)) == len(found)
    assert not any("data" in name or "fields" in name for name in found)


def test_a_single_run_is_named_by_all_that_is_given(tmp_path):
    assert names(tmp_path, "seed=1", "method=kd") == ["method=kd,seed=1"]


def test_names_of_another_command_in_the_folder_are_not_taken(tmp_path):
    begun(tmp_path / "seed=1", "method=kd", "seed=1", "threads=2")
    begun(tmp_path / "anything", "method=amid", "seed=3", "output_dir=elsewhere")
    assert names(tmp_path, "method=kd", "seed=1,2") == ["seed=1", "seed=2"]
    assert names(tmp_path, "method=amid", "seed=1,2,3") == [
        "seed=1,method=amid",
        "seed=2,method=amid",
        "anything",
    ]
    naming = Naming.of_chosen(["assistant.alpha"], ["method=amid"], tmp_path)
    assert naming.name(["method=amid", "assistant.alpha=0.25"]) == "alpha=0.25,method=amid"
    assert naming.name(["seed=1", "method=kd"]) == "seed=1"


def test_hydra_names_the_folders_so(tmp_path, monkeypatch):
    seen = []

    def look(cfg):
        from hydra.core.hydra_config import HydraConfig

        from amid.tracking.command_records import record_command

        directory = Path(HydraConfig.get().runtime.output_dir)
        record_command(directory, cfg)
        seen.append(directory.name)

    monkeypatch.setattr("amid.cli.train.run", look)
    given = ["-m", f"output_dir={tmp_path}", "data.train.size=128", "assistant.alpha=-5,1"]
    assert main(["train", *given]) == 1  # without results
    assert main(["train", *given, "method=distillm_skl"]) == 1
    assert main(["train", *given, "seed=1"]) == 1
    assert main(["train", *given]) == 1
    of_method = [f"alpha={alpha},data.train.size=128,method=distillm_skl" for alpha in (-5, 1)]
    of_seed = [f"alpha={alpha},data.train.size=128,seed=1" for alpha in (-5, 1)]
    assert seen == ["alpha=-5", "alpha=1", *of_method, *of_seed, "alpha=-5", "alpha=1"]
