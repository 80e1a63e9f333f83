"""Runs of a command side by side, through one of Hydra's launchers, each with GPUs of its own."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from amid.cli.gpus import Gpu, devices_of, gpus_here, runs_at_once
from amid.cli.job_process import Command, stopping_jobs
from amid.cli.launch import End, Job
from amid.config.compose import register_resolvers
from amid.config.folders import CONF
from amid.config.launchers import GROUP, Launcher, launcher_of, package_of
from amid.config.overrides import parsed_overrides
from amid.config.sweeps import PlannedRun, Sweep
from amid.console import shown
from amid.errors import Damaged, InputError, in_one_line, print_error, shortened
from amid.tracking.command_records import MULTIRUN_FILE


@dataclass(frozen=True)
class SideBySide:
    """How the runs of a command run side by side."""

    launcher: Launcher
    command: Command
    in_words: str
    """A line for the user."""
    devices: int | None
    """How many GPUs a run takes; None if it takes none, all, or says which."""

    @property
    def arguments(self) -> list[str]:
        """The further overrides for a sweeper that starts jobs itself."""
        joblib_takes = self.launcher.name == "joblib"
        return [f"hydra.launcher.n_jobs={self.launcher.settings.n_jobs}"] if joblib_takes else []


def side_by_side(
    name: str, launcher: Launcher, cfg: DictConfig, output_dir: Path, runs: int | None
) -> SideBySide | None:
    """Returns how the runs of a command run side by side; None if they run one after another.

    With several GPUs and no launcher that the user chose, joblib runs as many runs as there are GPUs for.

    Args:
        name: the entry point.
        launcher: the launcher in the configuration or the command.
        cfg: the configuration of the first run.
        output_dir: the folder of the runs.
        runs: the number of runs to start; None if a sweeper chooses them.

    Raises:
        InputError: if a run takes more GPUs than there are, or if there are fewer GPUs than runs at once.
    """
    devices = devices_of(cfg.trainer) if "trainer" in cfg else 1
    on_this_machine = launcher.name in ("basic", "joblib", "submitit_local")
    gpus = gpus_here() if on_this_machine and devices is not None else []
    if launcher.name == "basic":
        if launcher.chosen or name != "train" or (runs or 0) < 2 or len(gpus) < 2:
            return None
        if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
            _suggest_joblib(gpus)
            return None
        launcher = launcher_of("train", cfg, parsed_overrides([f"{GROUP}=joblib"]))
    stop = output_dir.absolute() / f".stop-{os.getpid()}"
    command = Command(Path.cwd(), None if launcher.name == "submitit_slurm" else stop)
    if launcher.name == "joblib":
        return _by_joblib(launcher, command, gpus, devices, runs)
    if gpus:
        runs_at_once(gpus, devices or 1)
        command = replace(command, gpus=tuple(gpus), devices=devices or 1)
    said = f"{'' if runs is None else f'{runs} '}run{'s' * (runs != 1)} handed to {launcher.name}"
    if launcher.name.startswith("submitit"):
        files = shown(output_dir.absolute() / ".submitit")
        said += f"; {files} has what they print, and amid status {shown(output_dir)} shows their progress"
    return SideBySide(launcher, command, said, devices)


def _suggest_joblib(gpus: Sequence[Gpu]) -> None:
    print(
        f"{len(gpus)} GPUs: the runs use one, one after another; a run on each at once: "
        f"pip install '{package_of('joblib')}'",
        flush=True,
    )


def _by_joblib(
    launcher: Launcher, command: Command, gpus: Sequence[Gpu], devices: int | None, runs: int | None
) -> SideBySide | None:
    """Returns how joblib runs the runs side by side; None if it would run one after another."""
    from joblib import effective_n_jobs

    given = int(launcher.settings.n_jobs)
    at_once = effective_n_jobs(given)
    said = ""
    if len(gpus) > 1 and devices is not None:
        most = runs_at_once(gpus, devices)
        if given > most:
            raise InputError(
                f"hydra.launcher.n_jobs={given}: {len(gpus)} GPUs are enough for {most} runs at once; "
                f"leave it out. To let runs share a GPU, give the command one: CUDA_VISIBLE_DEVICES=0"
            )
        at_once = given if given > 0 else most
        said = f", {'one GPU' if devices == 1 else f'{devices} GPUs'} each ({GROUP}=basic: one after another)"
        command = replace(command, gpus=tuple(gpus), devices=devices)
    at_once = min(at_once, runs or at_once)
    if at_once < 2:
        return None
    settings = launcher.settings.copy()
    settings.n_jobs = at_once
    settings.batch_size = "1"  # a job is a run
    return SideBySide(replace(launcher, settings=settings), command, f"{at_once} runs at once{said}", devices)


def launch_side_by_side(
    name: str, sweep: Sweep, chosen: SideBySide, runs: Sequence[Path], elsewhere: list[Path]
) -> list[str]:
    """Starts all unfinished runs of a command, and waits for their ends.

    Args:
        name: the entry point.
        sweep: the runs.
        chosen: the launcher, and what its jobs know.
        runs: the known folders of the runs, in order.
        elsewhere: a list to which it adds the folders of the runs that other processes are running.

    Returns:
        The names of the failed runs.

    Raises:
        InputError: if the launcher cannot start them, or loses one of their processes.
        Stopped: for a signal, after the runs have stopped.
    """
    to_do = [run for run in sweep.runs() if not run.finished]
    if finished := len(sweep.runs()) - len(to_do):
        print(f"{finished} of {len(sweep.runs())} runs are finished already", flush=True)
    if not to_do:
        return []
    print(chosen.in_words, flush=True)
    try:
        with stopping_jobs(chosen.command):
            ends = _launched(Job(name, tuple(runs), chosen.command), sweep, chosen, to_do)
    except KeyboardInterrupt:
        if chosen.command.stop is None:
            print(f"The jobs go on; {GROUP}={chosen.launcher.name}: scancel ends them", flush=True)
        raise
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{GROUP}={chosen.launcher.name}: {shortened(in_one_line(error), 300)}; "
            f"amid status {shown(sweep.output_dir)} shows the runs, and the same command resumes them"
        ) from error
    failed = []
    for end in ends:
        if end.state == "elsewhere":
            elsewhere.append(end.directory)
        elif end.state != "done":
            failed.append(end.directory.name)
            if end.state == "interrupted":
                print_error(
                    InputError(f"{end.directory.name}: interrupted; the same command goes on with it")
                )
            elif chosen.launcher.name.startswith("submitit"):  # it printed the reason into a file
                print_error(InputError(end.reason))
    return failed


def _launched(job: Job, sweep: Sweep, chosen: SideBySide, runs: Sequence[PlannedRun]) -> list[End]:
    """Runs a job for each run through Hydra's launcher, as Hydra's own sweeper does, but all in one batch."""
    register_resolvers()
    for override in parsed_overrides(sweep.jobs[0]):
        if override.key_or_group == "output_dir" and override.is_sweep_override():
            raise InputError(
                f"{override.input_line}: runs side by side are in one folder; give one output_dir="
            )
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="amid"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        subdir = [sweep.subdir] if job.name == "train" else []
        overrides = ["hydra.mode=MULTIRUN", *sweep.jobs[0], *sweep.of_hydra, *subdir]
        cfg: Any = hydra.compose_config(sweep.name, overrides, run_mode=RunMode.MULTIRUN)
        folder = Path(cfg.hydra.sweep.dir).absolute()
        if (folder / MULTIRUN_FILE).is_symlink():
            raise Damaged(
                f"{folder / MULTIRUN_FILE} is a link, and writing would change its target; remove it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / MULTIRUN_FILE)
        with read_write(cfg), open_dict(cfg):
            cfg.hydra.launcher = chosen.launcher.settings
            in_quotes = QuotedString(str(folder), Quote.single).with_quotes()
            cfg.hydra.overrides.hydra.append(f"hydra.sweep.dir={in_quotes}")  # jobs may begin elsewhere
            cfg.hydra.sweep.dir = str(folder)
            if chosen.launcher.name == "ray":
                _start_ray(cfg.hydra.launcher.ray, chosen.devices)
        HydraConfig.instance().set_config(cfg)
        context = HydraContext(hydra.config_loader, Callbacks(cfg))
        launcher = Plugins.instance().instantiate_launcher(context, job.end, cfg)
        jobs = launcher.launch([run.overrides for run in runs], initial_job_idx=0)
        if chosen.launcher.name == "joblib":
            _end_processes_of_joblib()
    ends: list[End] = [one.return_value for one in jobs]
    return ends


def _end_processes_of_joblib() -> None:
    """Ends the processes that joblib keeps for further jobs: they hold models and GPUs."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


def _start_ray(settings: DictConfig, devices: int | None) -> None:
    """Starts Ray, or connects to its cluster; gives each run its GPUs if the cluster has GPUs.

    Raises:
        InputError: if a run takes more GPUs than a machine of the cluster has.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # else Ray leaves out lines that resemble others
    import ray

    if not ray.is_initialized():
        init: Any = OmegaConf.to_container(settings.init, resolve=True)
        ray.init(**init)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus, cores = ([int(node.get(kind, 0)) for node in nodes] for kind in ("GPU", "CPU"))
    print(f"Ray: {len(nodes)} machines with {sum(cores)} cores and {sum(gpus)} GPUs", flush=True)
    if devices is not None and any(gpus) and "num_gpus" not in settings.remote:  # Ray would hide all GPUs
        if devices > max(gpus):
            raise InputError(
                f"trainer.devices={devices}: the machines of Ray's cluster have {max(gpus)} GPUs"
            )
        settings.remote.num_gpus = devices
