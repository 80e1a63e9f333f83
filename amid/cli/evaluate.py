"""The entry point of an evaluation."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from transformers import PreTrainedTokenizerBase

from amid import settings as of_settings
from amid.cli.train import summary
from amid.config.compose import as_dict, overrides_of
from amid.config.overrides import parsed_overrides
from amid.config.run_names import further_settings
from amid.config.run_settings import REMEDY, Stored, read_settings, recorded_hash, stored_student
from amid.config.stored_overrides import TAKEN
from amid.console import announce, shown
from amid.distributed import ranks
from amid.errors import InputError
from amid.experiment.check_plan import named_by_key
from amid.experiment.evaluation import announce_unread, check_metrics, evaluate_sets
from amid.experiment.plan import Plan
from amid.experiment.record import versions, write_config
from amid.models.limits import check_lengths, check_reads_forwards
from amid.models.source import ModelSource, load_tokenizer
from amid.results import BEST, RESULT_FILE, Label, RunResult, load, save
from amid.tracking.command_records import record_command
from amid.tracking.progress import silence_bars
from amid.tracking.status import only_process_in, watched
from amid.training.devices import one_device, use_threads
from amid.training.precision import announce_slow_bfloat16

_OF_THIS_MACHINE = {"data": ("cache_dir",), "trainer": ("devices", "num_nodes", "strategy")}
"""Settings, by node, that an evaluation does not take from its run."""


def run(cfg: DictConfig) -> None:
    """Scores the student of a finished run, or `model.student` as it is.

    Writes config.yaml, generations and result.json, unless they are there. Data, sampling and precision come
    from the run, except where the command line sets them.

    Raises:
        InputError: if `run` is no finished run, the model cannot be loaded, or there is nothing to answer.
    """
    silence_bars()
    directory = Path(HydraConfig.get().runtime.output_dir)
    with ranks.first_in(lambda: only_process_in(directory)):
        result = ranks.from_first(lambda: _finished(cfg, directory))
        if result is None:
            ranks.from_first(lambda: _forget_scores(directory))
            with ranks.first_in(lambda: watched(directory)):
                ranks.from_first(lambda: record_command(directory, cfg))
                result = _evaluate(*_planned(cfg), directory)
    announce(f"{summary(result)}\nEvaluation: {shown(directory)}")


def _forget_scores(directory: Path) -> None:
    if (directory / RESULT_FILE).exists():
        announce(f"{shown(directory)} has scores of other data or of another model: scoring again")
        (directory / RESULT_FILE).unlink()


def _finished(cfg: DictConfig, directory: Path) -> RunResult | None:
    """Returns this evaluation's result in `directory`, if data and model are the same; None without one."""
    if not (directory / RESULT_FILE).exists():
        return None
    plan, _ = _planned(copy.deepcopy(cfg))
    models = (read_settings(directory) or {}).get("model")
    student = models.get("student") if isinstance(models, Mapping) else None
    scored = student.get("path") if isinstance(student, Mapping) else None
    model = plan.models["student"].path
    if scored != model:
        raise InputError(
            f"{directory} holds the scores of another model, {scored}, not {model}; choose another "
            "output_dir= (or hydra.run.dir=, where that was given), or delete the folder"
        )
    if recorded_hash(directory) != plan.key:
        return None
    announce(f"{shown(directory)} is finished already; to score it anew, delete the folder")
    return load(directory)


def _planned(cfg: DictConfig) -> tuple[Plan, dict[str, Label]]:
    """Returns the plan of the evaluation that `cfg` describes, and its labels in tables; changes `cfg`."""
    hydra = HydraConfig.get()
    overrides = overrides_of(hydra)
    labels: dict[str, Label]
    further = further_settings(overrides)
    if cfg.run is not None:
        result = load(cfg.run)
        if any(override.startswith("seed=") for override in overrides):
            raise InputError(
                f"seed={cfg.seed} with run={cfg.run}: the run's training fixes its seed; "
                "set the sampling seeds with generation.seeds"
            )
        if not (Path(cfg.run) / BEST).exists():
            diverged = f"diverged at step {result.diverged_step}: it has no student to score"
            evaluation = f"has no student in {BEST}; give a training run that has, such as the one it scored"
            raise InputError(f"run={cfg.run} {evaluation if result.diverged_step is None else diverged}")
        labels = dict(result.labels) | ({} if cfg.name is None else {"method": cfg.name})
        further = ",".join(str(part) for part in (labels.get("settings"), further) if part) or None
        if any(override.startswith("data=") for override in overrides):
            labels["data"] = hydra.runtime.choices.get("data")
        cfg.seed = result.seed
        saved = _saved(Path(cfg.run))
        stored = Stored(Path(cfg.run), bool(cfg.trust_run), "trust_run=true")
        _take_from(cfg, saved, stored, overrides)
        dtype = saved["model"]["student"].get("dtype", "float32")
        stored.check(dtype, "model", "student", "dtype")
        cfg.model.student = {
            "_target_": "amid.models.ModelSource",
            "path": str(stored_student(Path(cfg.run), result)),
            "dtype": dtype,
        }
        try:
            of_settings.check(cfg)
        except InputError as error:
            raise InputError(f"{Path(cfg.run) / 'config.yaml'}: {error}") from error
    elif OmegaConf.select(cfg, "model.student.path") and hydra.runtime.choices.get("data") == "builtin":
        raise InputError(
            "data=builtin is for models that were trained on it; give the data that the model is to answer, "
            f"such as data=dolly, or data=jsonl +data.test.mine=FILE{_its_run(cfg.model.student.path)}"
        )
    elif OmegaConf.select(cfg, "model.student.path") is None:
        raise InputError(
            "give a finished run to score, run=FOLDER, or a model and data, "
            "model.student.path=MODEL data=dolly"
        )
    else:
        name = Path(cfg.model.student.path).name
        pair = hydra.runtime.choices["model"] if any(o.startswith("model=") for o in overrides) else name
        labels = {"method": name if cfg.name is None else cfg.name, "model": pair}
        labels["data"] = hydra.runtime.choices.get("data")
        cfg.model.student.sft = None
        OmegaConf.update(cfg, "model.student.lora", None, force_add=True)
        OmegaConf.update(cfg, "model.student.architecture", None, force_add=True)
    labels["settings"] = further
    return Plan(as_dict(cfg), trains=False), labels


def _its_run(path: str) -> str:
    """Returns `; for its run: run=FOLDER` for the student of a finished run; else an empty string."""
    folder = Path(path).parent.parent
    own = Path(path) == folder / BEST and (folder / RESULT_FILE).exists()
    return f"; for its run: run={folder}" if own else ""


def check(cfg: DictConfig) -> None:
    """Checks what needs no row of the data and no weight of the model.

    Raises:
        InputError: see `run`.
    """
    plan, _ = _planned(copy.deepcopy(cfg))
    _model(plan)


def _model(plan: Plan) -> tuple[ModelSource, PreTrainedTokenizerBase]:
    """Loads the model that is scored and its tokenizer, after a check of the data files.

    Raises:
        InputError: if a file does not exist, or the model cannot read such texts.
    """
    plan.check_at_once()
    source = plan.source("student")
    with named_by_key("student"):
        tokenizer = load_tokenizer(str(source.path))
        skeleton = source.skeleton(source.config(tokenizer))
    check_reads_forwards(str(source.path), skeleton)
    check_lengths(str(source.path), skeleton, plan.longest_texts("generation"))
    return source, tokenizer


def _evaluate(plan: Plan, labels: dict[str, Label], directory: Path) -> RunResult:
    use_threads(plan.threads)
    L.seed_everything(plan.seed, verbose=False)
    source, tokenizer = _model(plan)
    data = plan.data(tokenizer)
    if not data.test_examples:
        raise InputError("data.test names no evaluation set; add one: +data.test.mine=my/test.jsonl")
    check_metrics(data.metrics, data.test_examples)
    plan.sampling.check_installed()
    data.announce_template()
    data.announce_cuts(["test"])
    announce_unread(data.metrics, data.test_examples)
    announce_slow_bfloat16(plan.trainer, {"student": plan.models["student"]})
    fabric = one_device(plan.trainer)
    ranks.from_first(lambda: write_config(plan, directory))
    try:
        evaluation = evaluate_sets(
            source.load(data.tokenizer).to(fabric.device),  # type: ignore[arg-type]
            data.tokenizer,
            data.test_examples,
            data.encoder,
            plan.sampling,
            data.metrics,
            data.pass_at,
            directory / "generations",
            {"config": plan.key, "student": source.fingerprint()},
            fabric.autocast,
        )
    except FloatingPointError as error:
        raise InputError(
            f"model.student.path={source.path} gives logits that are NaN or infinite ({error}); its weights "
            "or the numbers of its config.json are damaged: give another copy of it"
        ) from error
    result = RunResult(
        name=directory.name,
        labels=labels,
        config_hash=plan.key,
        seed=plan.seed,
        scores=evaluation.scores,
        ladders=evaluation.ladders,
        training={},
        timings={"evaluate": evaluation.seconds},
        versions=versions(),
    )
    ranks.from_first(lambda: save(result, directory))
    return result


def _saved(run: Path) -> dict[str, Any]:
    """Returns the settings of a run that an evaluation reads; each is a mapping.

    Raises:
        InputError: if config.yaml does not exist, is not what a run wrote, or lacks one of these settings.
    """
    saved = read_settings(run)
    if saved is None:
        raise InputError(f"run={run} has no config.yaml, which says what to answer; {REMEDY}")
    models = saved.get("model")
    nodes = {name: saved.get(name) for name in TAKEN}
    nodes["model.student"] = models.get("student") if isinstance(models, Mapping) else None
    for name, node in nodes.items():
        if not isinstance(node, Mapping):
            raise InputError(f"{run / 'config.yaml'}: {name} is {node!r}, no settings of a run; {REMEDY}")
    return saved


def _take_from(cfg: DictConfig, saved: Mapping[str, Any], stored: Stored, overrides: list[str]) -> None:
    """Puts a run's own data, sampling and precision into `cfg`, below what `overrides` say.

    The folder of the token ids and the devices are not taken from the run: the run may come from another
    machine.

    Raises:
        InputError: for a setting that names code or has an interpolation.
    """
    composed = copy.deepcopy(cfg)
    given = parsed_overrides(overrides)
    with open_dict(cfg):
        for name in TAKEN:
            if any(override.key_or_group == name for override in given):
                continue
            stored.check(saved[name], name)
            here = {key: composed[name][key] for key in _OF_THIS_MACHINE.get(name, ())}
            cfg[name] = saved[name] | here
            for override in given:
                key = override.key_or_group.replace("/", ".")
                parent, _, last = key.rpartition(".")
                if not key.startswith(f"{name}."):
                    continue
                if override.is_delete():
                    OmegaConf.select(cfg, parent).pop(last, None)
                else:
                    value = OmegaConf.select(composed, key)
                    OmegaConf.update(cfg, key, value, force_add=True, merge=False)
