"""The entry point of an evaluation."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from amid.errors import InputError
from amid.evaluation import evaluate_sets
from amid.experiment import BEST, versions
from amid.models import ModelSource, load_tokenizer
from amid.progress import announce
from amid.results import RunResult, save
from amid.train import as_dict, summary

FROM_THE_RUN = ("data", "generation")


def run(cfg: DictConfig) -> None:
    """Scores the student of a finished run, or `model.student` as it is; writes generations and result.json.

    The data and the sampling are those of the run where nothing else is said on the command line.

    Raises:
        InputError: if `run` is no finished run, or the model cannot be loaded.
    """
    hydra = HydraConfig.get()
    transformers.utils.logging.disable_progress_bar()
    labels: dict[str, Any] = {name: hydra.runtime.choices.get(name) for name in ("model", "data")}
    labels |= {"method": "evaluate"}
    if cfg.run is not None:
        saved = Path(cfg.run) / "config.yaml"
        if not (Path(cfg.run) / "result.json").exists():
            raise InputError(f"run={cfg.run} is no finished run (it has no result.json); give a run's folder")
        old = OmegaConf.load(saved)
        _take_from(cfg, OmegaConf.select(old, "config"), list(hydra.overrides.task))
        path = str(Path(cfg.run) / BEST)
        source, tokenizer = ModelSource(path=path), load_tokenizer(path)
    else:
        source = instantiate(OmegaConf.merge(cfg.model.student, {"sft": None}))
        tokenizer = load_tokenizer(source.path) if source.path else instantiate(cfg.model.tokenizer)
    settings = as_dict(cfg)
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    L.seed_everything(settings["seed"], verbose=False)
    data = instantiate(settings["data"], tokenizer=tokenizer)
    sampling = instantiate(settings["generation"])
    fabric = L.Fabric(accelerator=settings["trainer"]["accelerator"], devices=1)
    model = source.load(tokenizer).to(fabric.device)  # type: ignore[arg-type]
    directory = Path(hydra.runtime.output_dir)
    scores = evaluate_sets(
        model,
        tokenizer,
        data.test_examples,
        data.encoder,
        sampling,
        directory / "generations",
        fabric.autocast,
    )
    if not scores:
        raise InputError("data.test names no evaluation set; add one: +data.test.mine=my/test.jsonl")
    result = RunResult(
        name=directory.name,
        labels=labels,
        config_hash="",
        seed=settings["seed"],
        scores=scores,
        training={},
        timings={},
        versions=versions(),
    )
    save(result, directory)
    announce(f"{summary(result)}\n  {directory}")


def _take_from(cfg: DictConfig, saved: Any, overrides: list[str]) -> None:
    """Puts the run's own data and sampling into `cfg`, below what `overrides` say."""
    for name in FROM_THE_RUN:
        mine = [override for override in overrides if override.startswith((f"{name}=", f"{name}."))]
        if f"{name}=" in "".join(o[: len(name) + 1] for o in mine):
            continue
        cfg[name] = saved[name]
        for override in mine:
            key, value = override.split("=", 1)
            OmegaConf.update(cfg, key, _parse(value), force_add=False)


def _parse(value: str) -> Any:
    return OmegaConf.from_dotlist([f"value={value}"]).value
