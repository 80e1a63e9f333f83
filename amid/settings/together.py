"""Checks that settings fit each other, after each has been checked by itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from amid.config.ladders import check_ladders
from amid.errors import InputError
from amid.measures import RIGHT_OR_WRONG, VALIDATION
from amid.settings.nodes import BY_TARGET, BuiltinCorpus, Sampling
from amid.settings.words import shown

Values = dict[str, Any]


def check_together(settings: Values) -> None:
    """Checks that the settings fit each other; each value has been checked by itself."""
    _check_training("", settings, settings["data"], "data.batch_size")
    _check_devices(settings)
    valid_metric = settings["data"].get("valid_metric")
    _check_checkpoint("checkpoint", settings["checkpoint"], valid_metric)
    evaluates = "run" in settings  # an evaluation takes model and data as given
    for role in ("teacher", "student"):
        source = settings["model"].get(role) or {}
        if source and source["_target_"] in BY_TARGET["model"] and not evaluates:
            _check_source(f"model.{role}", source)
        if source.get("sft"):
            of_role = f"model.{role}.sft."
            _check_training(of_role, source["sft"], settings["data"], f"{of_role}batch_size")
            _check_checkpoint(f"model.{role}.sft.checkpoint", source["sft"]["checkpoint"], valid_metric)
    if settings["generation"]["_target_"] in BY_TARGET["generation"]:
        check_sampling(settings["generation"])
    _check_pass_at(settings["data"].get("pass_at", ()), settings["generation"])
    capacity, rows = settings.get("text", {}).get("capacity"), settings["data"].get("batch_size", 1)
    if isinstance(capacity, int) and capacity < rows:
        raise InputError(
            f"text.capacity={capacity} is less than data.batch_size={rows}: a step of replay would have too "
            f"few rows; use at least {rows}"
        )
    _check_objective(settings)
    if not evaluates:
        _check_pair(settings)
        check_supply(settings["teacher"])
        _check_device_map(settings)
        if settings["teacher"].get("offload") and settings["text"]["_target_"] == "amid.text.RolloutText":
            raise InputError(
                "teacher.offload=true with text=rollouts: the teacher answers with the student, so its "
                "weights cannot be elsewhere; use teacher.offload=false"
            )


def _check_device_map(settings: Values) -> None:
    """Checks that a teacher which is spread over devices only writes its cache."""
    teacher = settings["model"].get("teacher") or {}
    device_map = teacher.get("device_map")
    if device_map is None:
        return
    key = f"model.teacher.device_map={shown(device_map)}"
    if teacher.get("path") is None and not teacher.get("sft"):
        raise InputError(f"{key} is for stored weights, and model.teacher.path=null has none; use null")
    if settings["student_is"] == "teacher":
        raise InputError(f"{key}: method=teacher scores the teacher on one device; use null")
    if settings["teacher"].get("mode", "live") != "cached":
        raise InputError(
            f"{key} with teacher={settings['teacher'].get('mode')}: a teacher that is spread over devices "
            "only writes its cache; use teacher=cached"
        )
    trainer = settings["trainer"]
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    one = devices == 1 or (isinstance(devices, list) and len(devices) == 1)
    if not one or nodes != 1:
        raise InputError(
            f"{key} with trainer.devices={shown(devices)}: one process asks a teacher that is spread over "
            "devices; write its cache with amid cache, and then train with model.teacher.device_map=null"
        )
    text = str(settings["text"]["_target_"])
    if text != "amid.text.DataText":
        raise InputError(
            f"{key} with text._target_={text}: a teacher that is spread over devices only writes its cache "
            "of the data; use text=data, or model.teacher.device_map=null"
        )


def _check_devices(settings: Values) -> None:
    """Checks that a run of several devices has work for each of them, in its fine-tunings too."""
    of_run = {name: settings["trainer"].get(name, 1) for name in ("devices", "num_nodes")}
    for role in ("teacher", "student"):
        sft = (settings["model"].get(role) or {}).get("sft") or {}
        for name, value in of_run.items():
            if sft and sft["trainer"].get(name, 1) != value:
                own = shown(sft["trainer"][name])
                raise InputError(
                    f"model.{role}.sft.trainer.{name}={own}: a model is fine-tuned on the devices of its "
                    f"run; use trainer.{name}={own}"
                )
    devices = of_run["devices"]
    n = (len(devices) if isinstance(devices, list) else devices) * of_run["num_nodes"]
    check_shares(settings["data"], n)
    if n > 1 and settings["generation"]["_target_"] == "amid.generation.VLLMSampling":
        raise InputError(
            f"generation=vllm answers on one device, and trainer.devices={shown(devices)}; use "
            "trainer.devices=1, or generation=sampling"
        )


def check_shares(data: Mapping[str, Any], devices: int) -> None:
    """Raises InputError if a step has less than a row, or a micro-batch, for each of the devices."""
    rows, size = data["batch_size"], data.get("micro_batch_size")
    whole = data.get("mean") == "micro_batch" or data.get("sharing") == "micro_batches"
    each, of = (size, "micro-batches") if size and whole else (1, "rows")
    if rows <= each * (devices - 1):
        raise InputError(
            f"data.batch_size={rows} has {-(-rows // each)} {of}, and trainer.devices asks for {devices}; "
            f"use at least {devices * each}, or fewer devices"
        )


def check_supply(teacher: Mapping[str, Any]) -> None:
    """Raises InputError if the states of a teacher would be lossy in some runs of a setting only."""
    states, mode = teacher.get("states", "exact"), teacher.get("mode")
    if states != "exact" and mode != "cached":
        raise InputError(
            f"teacher.states={states} is for stored states alone, and teacher={mode} may run the teacher "
            "live; use teacher=cached, or teacher.states=exact"
        )


def _check_pair(settings: Values) -> None:
    """Checks that there is a student, and a teacher if a loss of amid needs one."""
    student = settings["student_is"]
    if settings["model"].get(student) is None:
        raise InputError(
            f"model.{student}=null: there is no model to train or score; give model.{student}.path"
        )
    known = settings["objective"]["_target_"] in BY_TARGET["objective"]
    needed = known and settings["objective"]["_target_"] != "amid.losses.CrossEntropy"
    if needed and settings["model"].get("teacher") is None:
        raise InputError(
            "model.teacher=null, and the objective compares with a teacher; give model.teacher.path, or use "
            "method=sft"
        )


def check_data(data: Mapping[str, Any]) -> None:
    """Checks that the settings of the data fit each other; a setting that is left out has its default.

    Raises:
        InputError: for the first that does not fit.
    """
    longest, prompt = data.get("max_length", 512), data.get("max_prompt_length", 256)
    if longest <= prompt:
        raise InputError(
            f"data.max_length={longest} leaves no room for a response after a prompt of up to "
            f"data.max_prompt_length={prompt} tokens; use at least {prompt + 1}, or lower "
            "data.max_prompt_length"
        )
    _check_limits("data.", data, data)
    if data.get("mean") == "micro_batch" and data.get("tokens_per_batch") is not None:
        raise InputError(
            "data.mean=micro_batch weighs rows by the micro-batch that they are in, and "
            f"data.tokens_per_batch={data['tokens_per_batch']} makes these of like lengths; make it null and "
            "set data.micro_batch_size"
        )
    metric, metrics = data.get("valid_metric"), data.get("metrics", {})
    if metric is not None and metric not in metrics:
        raise InputError(
            f"data.valid_metric={shown(metric)} is none of data.metrics "
            f"({', '.join(metrics) or 'which are none'}); choose one of them"
        )
    if (pass_at := data.get("pass_at")) and not set(RIGHT_OR_WRONG) & set(metrics):
        raise InputError(
            f"data.pass_at={shown(pass_at)} counts right answers, and none of data.metrics "
            f"({', '.join(metrics) or 'which are none'}) says which are right; choose data/metrics=answer or "
            "data/metrics=exact, or data.pass_at=[]"
        )


def _check_limits(prefix: str, limits: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    rows, tokens = limits.get("micro_batch_size"), limits.get("tokens_per_batch")
    if rows is not None and tokens is not None:
        raise InputError(
            f"{prefix}micro_batch_size={rows} and {prefix}tokens_per_batch={tokens} set the same limit in "
            "two ways; make one of them null"
        )
    if data.get("sharing") == "micro_batches" and rows is None and tokens is None:
        some = max(1, limits.get("batch_size", 8) // 4)
        raise InputError(
            f"data.sharing=micro_batches with {prefix}micro_batch_size=null: a step is one micro-batch, "
            f"which cannot be shared out; use {prefix}micro_batch_size={some}, or {prefix}tokens_per_batch"
        )


def _check_training(prefix: str, settings: Values, data: Values, batch_size: str) -> None:
    trainer = settings["trainer"]
    if trainer.get("max_epochs") == -1 and trainer.get("max_steps") == -1:
        raise InputError(
            f"{prefix}trainer.max_epochs=-1 and {prefix}trainer.max_steps=-1 never end; set one of them"
        )
    if prefix:
        _check_limits(prefix, settings, data)
    scheduler = settings["scheduler"]
    warmup = scheduler.get("warmup", 0) if str(scheduler["_target_"]).startswith("amid.") else 0
    rows = int((settings if prefix else data).get("batch_size", 1))
    for why, most in _most_steps(prefix, trainer, data, f"{batch_size}={rows}", rows).items():
        if isinstance(warmup, int) and warmup >= most > 0:
            raise InputError(
                f"{prefix}scheduler.warmup={warmup} leaves none of the {most} steps of {why}; use fewer, or "
                "a share of them below 1, such as 0.1"
            )


def _most_steps(prefix: str, trainer: Values, data: Values, batch: str, rows: int) -> dict[str, int]:
    """Returns upper bounds on the steps of a training, by the settings that set the bounds."""
    epochs, limit = trainer.get("max_epochs", -1), trainer.get("limit_train_batches")
    most = {f"{prefix}trainer.max_steps": trainer.get("max_steps", -1)}
    if epochs > 0:
        of_epochs, train = f"{prefix}trainer.max_epochs={epochs}", data.get("train")
        if isinstance(limit, int):
            most[f"{of_epochs} and {prefix}trainer.limit_train_batches={limit}"] = epochs * limit
        if isinstance(train, dict) and train.get("_target_") == "amid.data.builtin.corpus":
            size = train.get("size", BuiltinCorpus.model_fields["size"].default)
            most[f"{of_epochs}, data.train.size={size} and {batch}"] = epochs * -(-size // rows)
    return most


def _check_checkpoint(key: str, checkpoint: Values, valid_metric: str | None) -> None:
    if checkpoint["_target_"] not in BY_TARGET["checkpoint"]:
        return
    monitor, mode = checkpoint["monitor"], checkpoint["mode"]
    choosing = [measure for measure in VALIDATION.values() if "checkpoint" in measure.shown]
    best = {measure.logged: "min" if measure.better == "lower" else "max" for measure in choosing}
    best |= {f"valid/{valid_metric}": "max"} if valid_metric else {}
    if monitor not in best:
        raise InputError(
            f"{key}.monitor={monitor} is not measured (data.valid_metric={shown(valid_metric)}); use one of "
            f"{', '.join(best)}"
        )
    if best[monitor] != mode:
        raise InputError(
            f"{key}.mode={mode} would keep the worst student by {key}.monitor={monitor}; use "
            f"{key}.mode={best[monitor]}"
        )


def _check_source(key: str, source: Values) -> None:
    path, architecture = source.get("path"), source.get("architecture")
    if (path is None) == (architecture is None):
        given = "both" if path is not None else "neither"
        raise InputError(
            f"a model has {given} of {key}.path={shown(path)} and {key}.architecture={shown(architecture)}; "
            f"give exactly one, as in {key}.path=FOLDER {key}.architecture=null"
        )
    if architecture is not None and not isinstance(architecture.get("model_type"), str):
        raise InputError(
            f"{key}.architecture={shown(architecture)} has no model_type; name one, "
            f"{key}.architecture.model_type=llama"
        )
    for name in ("quantization", "device_map"):
        if key == "model.student" and source.get(name) is not None:
            raise InputError(
                f"{key}.{name}={shown(source[name])} is for a teacher, and a student is trained; use null"
            )
    if source.get("quantization") is not None and source.get("device_map") is not None:
        raise InputError(
            f"{key}.quantization={source['quantization']} with {key}.device_map="
            f"{shown(source['device_map'])}: a model that is spread over devices cannot be quantised; "
            "make one of them null"
        )
    if key == "model.teacher" and source.get("lora") is not None and not source.get("sft"):
        raise InputError(
            "model.teacher.lora is for the teacher's fine-tuning, and model.teacher.sft=null has none; "
            "set model.teacher.lora=null too"
        )


def check_sampling(sampling: Mapping[str, Any]) -> None:
    """Raises InputError if the settings of answers do not fit each other."""
    samples, temperature = sampling.get("samples", 1), sampling.get("temperature", 1.0)
    if temperature == 0 and samples > 1:
        raise InputError(
            f"generation.temperature=0 with generation.samples={samples}: use a temperature above 0, or 0 "
            "(greedy) with one sample"
        )
    check_ladders(sampling)


def _check_pass_at(pass_at: Sequence[int], sampling: Values) -> None:
    """Checks that there are as many different answers to a prompt as the largest k of pass@k needs."""
    if not pass_at or sampling["_target_"] not in BY_TARGET["generation"]:
        return
    given, most = f"data.pass_at={shown(pass_at)}", max(pass_at)
    if most > 1 and sampling.get("temperature", 1.0) == 0:
        raise InputError(
            f"{given} with generation.temperature=0: greedy answers to a prompt are all the same; use "
            "generation=sampling, or data.pass_at=[1]"
        )
    seeds = len(sampling.get("seeds", Sampling.model_fields["seeds"].default))
    answers = seeds * sampling.get("samples", 1)
    if most > answers:
        raise InputError(
            f"{given}: {most} is above the {answers} answer{'s' * (answers > 1)} to a prompt "
            f"(generation.seeds × generation.samples); use {answers} at most, or "
            f"generation.samples={-(-most // seeds)}"
        )


def _check_objective(settings: Values) -> None:
    objective, schedule = settings["objective"], settings.get("schedule")
    distils = objective["_target_"] == "amid.losses.Objective"
    assistant = objective.get("assistant") if distils else None
    if distils and objective.get("divergence") is None:
        raise InputError("divergence=null is none; choose one, or objective=cross_entropy")
    of_taid = schedule is not None and schedule["_target_"] == "amid.schedule.TAID"
    if of_taid and objective["_target_"] in BY_TARGET["objective"] and assistant is None:
        raise InputError(
            "schedule TAID moves lam of an assistant, and this run has none; choose schedule=none, or "
            "assistant=alpha_mixture and an order with r"
        )
    if not distils:
        return
    order = objective.get("order") or ("pq" if assistant is None else "pr")
    if "r" in order and assistant is None:
        raise InputError(
            f"objective.order={order} names the assistant r, and assistant=none has none; use "
            "objective.order=pq or qp, or assistant=alpha_mixture"
        )
    if "r" not in order and assistant is not None:
        raise InputError(
            f"objective.order={order} does not use the assistant; use assistant=none, or pr, rp, qr or rq"
        )
    if assistant is not None and assistant["_target_"] in BY_TARGET["assistant"]:
        _check_gradient(order, assistant, schedule if of_taid else None)


def _check_gradient(order: str, assistant: Values, taid: Values | None) -> None:
    """Checks that the student has a gradient at the λ of an assistant, and at both ends of a schedule."""
    if "p" in order and assistant.get("detach_student", False):
        raise InputError(
            f"assistant.detach_student=true with objective.order={order} has no gradient: the student enters "
            "through r alone; use assistant.detach_student=false, or an order with q"
        )
    lams = {"assistant.lam": assistant.get("lam", 0.1)}
    if taid is not None:
        lams = {"schedule.start": taid.get("start", 0.4), "schedule.end": taid.get("end", 1.0)}
        check_ends(*lams.values())
    for key, lam in lams.items():
        if (lam == 1 and "p" in order) or (lam == 0 and "q" in order):
            same = "r = p" if lam == 1 else "r = q"
            raise InputError(
                f"{key}={lam} with objective.order={order} has no gradient, as {same} whatever the student "
                f"is; use {'a smaller' if lam == 1 else 'a larger'} one, or an order with "
                f"{'q' if lam == 1 else 'p'}"
            )


def check_ends(start: float, end: float) -> None:
    """Raises InputError if TAID's λ would fall."""
    if start > end:
        raise InputError(
            f"schedule.start={start} and schedule.end={end} must be 0 <= start <= end <= 1; the published "
            "values are 0.4 and 1"
        )
