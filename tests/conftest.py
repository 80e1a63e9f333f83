import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import absl.logging
import pytest
import torch
import yaml
from compositions import compose_once
from hub_server import Hub, serving
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # OmegaConf's: reads conf/ a thousand times
compose_once()
settings.register_profile("amid", deadline=None, max_examples=50)  # the machine decides how long one takes
settings.load_profile("amid")

# rouge_score's logger closes the stream it began with, pytest's own, when Hydra sets up logging anew.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="of the tensors in tests/losses, such as cuda")


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays: the collector need not visit half a million objects again and again


@pytest.fixture(autouse=True)
def hydra_mode_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra would compose each command's configuration once more, to read hydra.mode, which is null here."""
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, where there is one."""
    folder = Path(os.environ.get("AMID_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with real data")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in of the Hugging Face hub, which this process asks, with an empty cache in `tmp_path/hf`."""
    with serving() as served:
        served.be_asked(monkeypatch, tmp_path / "hf")
        yield served


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which a stand-in for SLURM's command writes its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "told"


@pytest.fixture
def jsonl(tmp_path: Path):
    """Writes rows (or raw lines) to a JSON Lines file."""

    def write(*rows: dict | str, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return path

    return write


SMALL_RUN = [
    "model.teacher.sft.trainer.max_steps=4",
    "model.student.sft.trainer.max_steps=4",
    "data.train.size=128",
    "data.valid.size=16",
    "data.valid_prompts=4",
    "data.test_prompts=4",
    "trainer.limit_train_batches=2",
    "trainer.max_epochs=2",
    "generation.seeds=[1,2]",
    "generation.samples=2",
    "generation.max_new_tokens=6",
]
"""Overrides that make a run of the tiny pair take a second or two."""


@pytest.fixture(scope="session")
def shortened() -> list[str]:
    """`SMALL_RUN`, without the places that a run writes to."""
    return SMALL_RUN


@pytest.fixture
def small_run(tmp_path: Path) -> list[str]:
    """Overrides of a very short run that writes below `tmp_path`."""
    return [
        *SMALL_RUN,
        f"output_dir={tmp_path / 'runs'}",
        f"prepared_dir={tmp_path / 'prepared'}",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of fine-tuned tiny models for all tests of a process."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `quick`, for all tests of a process: they read it, or change a copy."""
    from amid.cli.main import main

    folder = tmp_path_factory.mktemp("finished")
    out, cache = f"output_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"
    assert main(["train", *SMALL_RUN, out, f"prepared_dir={prepared}", cache]) == 0
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.fixture
def quick(small_run: list[str], prepared: Path) -> list[str]:
    """`small_run` with the models of `prepared`."""
    return [*(o for o in small_run if not o.startswith("prepared_dir")), f"prepared_dir={prepared}"]
