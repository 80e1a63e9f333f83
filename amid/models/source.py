"""Teacher and student: where they come from, whether they fit together, and their logits where they count."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from amid.errors import InputError, first_line, nearest, shortened
from amid.models.hub import HTTPError
from amid.models.layers import keep_layers
from amid.models.location import Location
from amid.models.lora import LoRA
from amid.models.placement import check_device_map, check_devices
from amid.models.quantization import check_quantization, dequantize, quantize
from amid.models.saving import agree_with_tokenizer
from amid.settings import check_arguments, check_values, nodes

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_OF_FILES = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError),
    *(StrictDataclassError, SafetensorError, HTTPError),
)
"""Errors, intended or not, that transformers raises for files that it cannot get, or did not write so."""


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A stored tokenizer; padding stands on the left.

    Args:
        path: a path as of `ModelSource`. Adapters without a tokenizer have their model's.

    Raises:
        InputError: if there is no such tokenizer, for example without a network or with a wrong name.
    """
    location = Location.of(path)
    base = location.base()
    if base is not None and location.file(TOKENIZER_CONFIG_FILE) is None:
        return load_tokenizer(base)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**location.arguments)
    except _OF_FILES as error:
        raise location.not_loadable("tokenizer", error) from error
    if location.gguf_file is not None and len(tokenizer) > tokenizer.vocab_size:
        _forget_tokens_beyond(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _forget_tokens_beyond(tokenizer: Any) -> None:
    """Takes tokens out of a GGUF file's tokenizer that the file does not have (in place): transformers adds
    `<|endoftext|>` to byte-level vocabularies without it, for which the model has no embedding."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [one for one in backend["added_tokens"] if one["id"] < tokenizer.vocab_size]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: weights at a path, or random weights of an architecture.

    Args:
        path: a repository on the hub (`OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, tag or commit), a
            folder written by `save_pretrained` or by a run (`RUN/checkpoints/best`), adapters of PEFT (their
            folder or repository; they are merged into the model that they name), or a GGUF file (its path, or
            `OWNER/NAME/FILE.gguf`); null for random weights.
        architecture: fields of a transformers configuration, `model_type` among them, for random weights;
            the tokenizer gives vocabulary size and special tokens.
        layers: indices of the layers to keep, in order; null for all.
        dtype: the dtype of the weights: float32, bfloat16 or float16.
        sft: how the model is fine-tuned on the data before its use, as a partial configuration of a
            `method=sft` run (for example `{trainer: {max_steps: 800}, optimizer: {lr: 5e-3}}`); null to
            use it as it is.
        lora: arguments of `amid.models.LoRA` (for example `{r: 16, alpha: 64}`), to train adapters in float32
            instead of the weights, also in `sft`. After each training the adapters are merged into the
            weights, which are rounded to `dtype`. null to train all weights.
        gradient_checkpointing: whether a training keeps the inputs of the layers alone, and computes what is
            in a layer again in the backward pass, with the same dropout. It takes less memory and more
            time, also with `lora`; the gradients are the same.
        quantization: `int8`, `int4` or `nf4`, for a teacher with its layers' weights in 8 or 4 bits
            (`amid.models.quantization`). It is another teacher, with a cache of its own. null keeps `dtype`.
        device_map: how accelerate spreads a teacher over GPUs, the CPU and the disk, to write its cache:
            `auto`, `balanced` or `sequential`, or the device of each module (`{model.layers.0: 0, ...: cpu,
            ...: disk}`). null loads it on one device.
        attention: how attention is computed, by the name in transformers (`sdpa`, `eager`,
            `flash_attention_2`); null for its own choice, `sdpa` in most models. It changes speed, memory
            and rounding.

    Raises:
        InputError: if not exactly one of `path` and `architecture` is given, `dtype` is unknown, or `lora`
            holds what is no argument of `LoRA`.
    """

    path: str | None = None
    architecture: Mapping[str, Any] | None = None
    layers: Sequence[int] | None = None
    dtype: str = "float32"
    sft: Mapping[str, Any] | None = None
    lora: Mapping[str, Any] | None = None
    gradient_checkpointing: bool = False
    quantization: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    attention: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.architecture is None):
            given = "both" if self.path is not None else "neither"
            raise InputError(
                f"a model has {given} of path={self.path!r} and architecture=; give exactly one, as in "
                "model.teacher.path=FOLDER model.teacher.architecture=null (or model.student...)"
            )
        checked = ("dtype", "gradient_checkpointing", "quantization", "device_map", "attention")
        settings = {name: getattr(self, name) for name in checked}
        check_arguments("model ", nodes.ModelSource, settings)
        if self.quantization is not None and self.device_map is not None:
            raise InputError(
                f"model quantization={self.quantization} with device_map={self.device_map}: a model that is "
                "spread over devices cannot be quantised; make one of them null"
            )
        self._adapters()

    def load(
        self, tokenizer: PreTrainedTokenizerBase, trained: bool = False, values: bool = True
    ) -> PreTrainedModel:
        """The model, in eval mode; random weights follow torch's global seed.

        Args:
            tokenizer: the tokenizer of the data.
            trained: whether the model is trained or saved. A quantised one then gets the plain weights that
                it computes with.
            values: whether the weights have values. Otherwise they are on the meta device, for a rank that
                gets its parts of them from another rank.

        Raises:
            InputError: if it cannot be loaded, its weights belong to another architecture, its
                vocabulary is smaller than the tokenizer's, `layers` or `lora` names a layer it does not
                have, or it has no gradient checkpointing or `attention` or cannot be quantised, and that is
                asked for.
        """
        if isinstance(self.device_map, Mapping):
            self.skeleton(self.config(tokenizer))  # checks the mapping
        if not values:
            model = self._empty(self.config(tokenizer))
        else:
            model = _of_config(self.config(tokenizer), self.dtype) if self.path is None else self._stored()
        self.check_rows(model, tokenizer)
        agree_with_tokenizer(model, tokenizer)
        model.eval()
        if self.attention is not None:
            _set_attention(model, self.attention)
        with contextlib.nullcontext() if values else torch.device("meta"):
            return self._shaped(model, trained)

    def check_rows(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Checks that the model, perhaps without its values, has an embedding for each token.

        Raises:
            InputError: if it has fewer.
        """
        rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        if rows < len(tokenizer):
            raise InputError(
                f"model {self.path or 'of random weights'} has {rows} token embeddings and the tokenizer "
                f"{len(tokenizer)} tokens; choose the tokenizer that belongs to the model (model.tokenizer)"
            )

    def fingerprint(self) -> dict[str, Any] | None:
        """Returns all that decides the model's values, without loading it; None for random weights.

        `weights` is a hash of the files of a folder or of a GGUF file, or the commit of a repository on the
        hub (`Location.contents`); `base` is the same of the model that adapters belong to.

        Raises:
            InputError: if there is nothing at `path`.
        """
        if self.path is None:
            return None
        location = Location.of(self.path)
        weights, base = location.contents(), location.base()
        of_base = {} if base is None else {"base": ModelSource(base).fingerprint()}
        layers = None if self.layers is None else list(self.layers)
        quantization = {} if self.quantization is None else {"quantization": self.quantization}
        return {"weights": weights, "layers": layers, "dtype": self.dtype, **quantization, **of_base}

    def config(self, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
        """The configuration of the stored model, or of the architecture of random weights.

        Raises:
            InputError: if there is nothing at `path`, or the architecture is not usable.
        """
        if self.path is not None:
            location = Location.of(self.path)
            if (base := location.base()) is not None:
                return ModelSource(base).config(tokenizer)
            try:
                stored: PretrainedConfig = AutoConfig.from_pretrained(**location.arguments)
            except _OF_FILES as error:
                raise location.not_loadable("model", error) from error
            if wrong := _no_numbers(stored.to_dict()):
                raise InputError(
                    f"model path={self.path!r}: {wrong} of its config.json is NaN; write its number "
                    "there, or give the folder that the model was saved with"
                )
            return stored
        assert self.architecture is not None
        kind = self.architecture.get("model_type")
        if kind not in CONFIG_MAPPING:
            raise InputError(
                f"model architecture.model_type={kind} is none of transformers' {len([*CONFIG_MAPPING])} "
                f"model types{nearest(str(kind), [*CONFIG_MAPPING])}; choose one such as llama or gpt2"
            )
        given = {
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        } | dict(self.architecture)
        try:
            made = AutoConfig.for_model(**given)
        except Exception as error:  # whatever a configuration raises for a value
            raise InputError(
                f"model architecture={dict(self.architecture)} is not usable: {shortened(str(error))}"
            ) from error
        _check_fields(made, self.architecture, "architecture")
        _check_heads(made)
        return made

    def skeleton(self, config: PretrainedConfig) -> PreTrainedModel:
        """The model of a configuration with its layers and adapters, on the meta device: all but the values.

        Raises:
            InputError: if there is no model of the configuration, `layers` or `lora` names a layer it does
                not have, or it has no gradient checkpointing or cannot be quantised, and that is asked for.
        """
        model = self._empty(config)
        with torch.device("meta"):
            return self._shaped(model)

    def _empty(self, config: PretrainedConfig) -> PreTrainedModel:
        try:
            with torch.device("meta"):
                return _of_config(config, self.dtype)
        except Exception as error:  # whatever a model raises for a value
            what = self.path or f"architecture={dict(self.architecture or {})}"
            raise InputError(f"model {what} is not usable: {shortened(str(error))}") from error

    def _shaped(self, model: PreTrainedModel, trained: bool = False) -> PreTrainedModel:
        if isinstance(self.device_map, Mapping):
            check_device_map(model, self.device_map)
        if self.layers is not None:
            keep_layers(model, self.layers)
        if self.quantization is not None:
            check_quantization(model, self.quantization)
            if model.device.type != "meta":
                quantize(model, self.quantization)
                if trained:
                    dequantize(model)
        adapters = self._adapters()
        if adapters is not None:
            adapters.add_to(model)
        if self.gradient_checkpointing:
            _checkpoint_layers(model)
        return model

    def _adapters(self) -> LoRA | None:
        if self.lora is None:
            return None
        if not isinstance(self.lora, Mapping):
            raise InputError(
                f"model lora={self.lora} has no settings; write lora={{r: 16, alpha: 64}}, or null"
            )
        check_values("model lora.", nodes.LoRA, self.lora)
        return LoRA(**self.lora)

    def _stored(self) -> PreTrainedModel:
        assert self.path is not None
        location = Location.of(self.path)
        if (base := location.base()) is not None:
            return self._merged(location, base)
        devices = dict(self.device_map) if isinstance(self.device_map, Mapping) else self.device_map
        if isinstance(devices, dict):
            check_devices(devices)
        how: dict[str, Any] = _unpacked(location) | ({} if devices is None else {"device_map": devices})
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **location.arguments, **how, dtype=DTYPES[self.dtype], output_loading_info=True
            )
        except _OF_FILES as error:
            raise location.not_loadable("model", error) from error
        except RuntimeError as error:
            raise InputError(
                f"model path={self.path!r}: the weights do not fit the architecture of its config.json "
                f"({first_line(error)}); give the folder that the weights were saved with"
            ) from error
        model: PreTrainedModel = loaded[0]
        report: dict[str, Any] = loaded[1]
        foreign = [*report["missing_keys"], *report.get("mismatched_keys", ())]
        foreign += [key for key in report["unexpected_keys"] if key.endswith(".weight")]
        if foreign:
            raise InputError(
                f"model path={self.path!r}: a checkpoint of another architecture than its config.json says "
                f"({len(foreign)} weights do not fit {type(model).__name__}: {min(map(str, foreign))}, ...); "
                "give the folder that the weights were saved with"
            )
        if location.gguf_file:  # its weights are plain ones by now, and can be saved as such
            vars(model.config).pop("quantization_config", None)
            model.hf_quantizer = None  # type: ignore[assignment]
        return model

    def _merged(self, location: Location, base: str) -> PreTrainedModel:
        """The stored model `base` with the adapters of a location merged into its weights.

        Raises:
            InputError: if the adapters do not fit the model, or cannot be merged.
        """
        import peft  # takes seconds

        if self.device_map is not None:
            raise InputError(
                f"model path={self.path!r} holds adapters, which are merged on one device, and "
                f"device_map={self.device_map}; make it null, or give the folder of the merged model"
            )
        model: Any = replace(self, path=base)._stored()
        revision: Any = {} if location.revision is None else {"revision": location.revision}
        try:
            model = peft.PeftModel.from_pretrained(model, location.place, **revision).merge_and_unload()
        except (*_OF_FILES, RuntimeError) as error:
            raise InputError(
                f"model path={self.path!r}: its adapters cannot be merged into {base} "
                f"({shortened(first_line(error))}); give the folder of the merged model"
            ) from error
        merged: PreTrainedModel = model
        return merged


def _set_attention(model: PreTrainedModel, attention: str) -> None:
    """Has a model compute attention in another way (in place).

    Raises:
        InputError: if there is no such way, or not here, or the model does not have it.
    """
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(attention)
        if attention != before == model.config._attn_implementation:
            raise ValueError(f"it has {before} alone")
    except (ImportError, ValueError, OSError) as error:
        raise InputError(
            f"model attention={attention} cannot be had for {type(model).__name__} here "
            f"({shortened(str(error))}); use null"
        ) from error


def _checkpoint_layers(model: PreTrainedModel) -> None:
    """Has the layers of a model compute their activations again in the backward pass (in place).

    Raises:
        InputError: if the model has no layers that can.
    """
    enable: Any = getattr(model, "activation_checkpointing_enable", None)  # transformers before 5.20 lack it
    try:
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        raise InputError(
            f"model gradient_checkpointing=true: {type(model).__name__} has no gradient checkpointing in "
            "transformers; use false, and a smaller data.micro_batch_size"
        ) from error
    model.disable_input_require_grads()  # of use for re-entrant checkpoints alone


def _check_fields(config: PretrainedConfig, given: Mapping[str, Any], key: str) -> None:
    """Checks that a configuration, and those within it, have the fields that it was made of: transformers
    keeps any others, and reads none of them.

    Raises:
        InputError: naming the first that it does not have, and the nearest one.
    """
    usual = type(config)()
    own = {name for name in dir(usual) if not callable(getattr(type(usual), name, None))}
    names = {*own, *usual.attribute_map, *_OF_OLDER_FILES}
    for name, value in given.items():
        if name not in names:
            fields = sorted(n for n in {*usual.to_dict(), *usual.attribute_map} if n[0] != "_")
            question = nearest(name, fields)
            named = f"{question}?" if question else f"; its fields are {shortened(', '.join(fields), 400)}"
            raise InputError(
                f"model {key}.{name}={shortened(str(value), 100)}: a configuration of "
                f"model_type={config.model_type} has no such field{named} (to leave out a field that a YAML "
                f"file sets: ~KEY)"
            )
        if "drop" in name and isinstance(value, int | float) and not 0 <= value < 1:
            raise InputError(f"model {key}.{name}={value} must be a number from 0, below 1")
        if wrong := _no_numbers(value, name):
            raise InputError(f"model {key}.{wrong} is NaN; give it a number")
        within = getattr(config, name, None)
        if isinstance(within, PretrainedConfig) and isinstance(value, Mapping):
            _check_fields(within, value, f"{key}.{name}")


def _check_heads(config: PretrainedConfig) -> None:
    """Checks that heads of attention can share keys and values.

    Raises:
        InputError: if the number of key-value heads does not divide the number of heads.
    """
    heads, shared = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
        raise InputError(
            f"model architecture.num_key_value_heads={shared} does not divide "
            f"architecture.num_attention_heads={heads}; use a number that does"
        )


_OF_OLDER_FILES = ("model_type", "rope_theta", "rope_scaling", "partial_rotary_factor", "torch_dtype")
"""Further fields that transformers accepts in place of some fields of a configuration."""


def _no_numbers(node: Any, key: str = "") -> str:
    """Returns the key of the first number in a configuration that is NaN; an empty text if there is none."""
    if isinstance(node, Mapping):
        found = (_no_numbers(child, f"{key}.{name}".lstrip(".")) for name, child in node.items())
        return next(filter(None, found), "")
    return key if isinstance(node, float) and node != node else ""


def _unpacked(location: Location) -> dict[str, Any]:
    """Asks for plain weights of a GGUF file: packed ones can neither be trained nor saved."""
    config = getattr(transformers, "GgufConfig", None)  # older releases always unpack
    return {"quantization_config": config(dequantize=True)} if config and location.gguf_file else {}


def _of_config(config: PretrainedConfig, dtype: str) -> PreTrainedModel:
    """A model of random weights."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=DTYPES[dtype], trust_remote_code=False
    )
    return model
