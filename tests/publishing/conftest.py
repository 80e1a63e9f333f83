"""Finished runs with the settings of a real pair, made of the small run of the session."""

import shutil

import pytest
import yaml
from published import STUDENT, TEACHER, merged

from amid import results
from amid.config.run_settings import write_settings
from amid.publishing.finished import FinishedRun


@pytest.fixture
def changed(finished, tmp_path):
    """Copies the finished run, with other models, settings, labels or scores in its records."""

    def change(models=None, settings=None, labels=None, scores=None, training=None, contents=()):
        folder = shutil.copytree(finished, tmp_path / "my" / "run")
        stored = yaml.safe_load((folder / "config.yaml").read_text())
        config = merged(stored["config"], settings or {})
        models = merged(stored["hashed"]["model"], models or {})
        hashed = {"model": models, "contents": dict.fromkeys(contents, "0")}
        write_settings({"config": config, "hashed": hashed}, folder, stored["hash"])
        old = results.load(folder)
        record = vars(old) | {
            "labels": old.labels | (labels or {}),
            "scores": old.scores if scores is None else scores,
            "training": old.training | (training or {}),
        }
        results.save(results.RunResult(**record), folder)
        return FinishedRun.read(folder)

    return change


@pytest.fixture
def of_hub(changed):
    """A run of a pair of the hub, on data of the hub."""
    data = {
        "train": "hf://datasets/MiniLLM/dolly/raw.jsonl[1000:]",
        "test": {
            "open": "hf://datasets/MiniLLM/dolly/valid.jsonl",
            "closed": "/home/me/private/closed.jsonl",
        },
    }
    teacher = {"path": f"{TEACHER}@v1", "architecture": None, "sft": {"trainer": {"max_epochs": 3}}}
    student = {"path": STUDENT, "architecture": None, "sft": None, "layers": [0, 1, 29]}
    return changed({"teacher": teacher, "student": student}, {"data": data})
