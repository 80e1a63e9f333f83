"""Answers to the evaluation sets drawn by vLLM, which serves a GPU better than a loop in Python."""

import gc
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amid.config.ladders import Rung
from amid.errors import InputError
from amid.generation.sampling import Sampling, as_answer, check_prompts, report_nothing, streams
from amid.models.vocabulary import output_rows
from amid.scoring.answers import Answer
from amid.settings import nodes


@dataclass(frozen=True)
class VLLMSampling(Sampling):
    """Sampling of answers, by vLLM for the evaluation sets.

    The student is written to a temporary folder, from which vLLM loads it, once for all sets and seeds.
    Answers during the training (validation) are drawn as `Sampling` draws them.

    Each answer has a random seed of its own. The seed follows from the same values as the random numbers of
    `Sampling.token_ids`. The answers differ from `Sampling`'s, but have the same distribution. vLLM's
    arithmetic decides how far an answer depends on the other answers that are drawn at the same time.

    Args:
        batch_size: answers generated at once during training; vLLM chooses its own.
        no_repeat_ngram_size: must be 0; vLLM has no such rule.
        memory_share: the share of GPU memory for vLLM, in (0, 1]; the trained student, still held,
            needs some of the rest.

    Raises:
        InputError: for a value outside its range, an n-gram rule, which vLLM does not have, or no vLLM.
    """

    memory_share: float = 0.5

    _settings: ClassVar[type[nodes.Sampling]] = nodes.VLLMSampling

    def check_installed(self) -> None:
        """Raises InputError where vLLM is not installed."""
        if importlib.util.find_spec("vllm") is None:
            _vllm()

    def answers_to_sets(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sets: Mapping[str, Sequence[Sequence[int]]],
        finished: Callable[[int], None] = report_nothing,
    ) -> Iterator[tuple[str, Rung | None, int, list[list[Answer]]]]:
        """See `Sampling.answers_to_sets`.

        Raises:
            InputError: if vLLM is not installed, or cannot run this model.
        """
        if not sets:
            return
        vllm = _vllm()
        if model.device.index:
            raise InputError(
                f"generation=vllm: vLLM takes the first GPU, and the student is on {model.device}; let the "
                f"run see its GPU only, CUDA_VISIBLE_DEVICES={model.device.index}, with trainer.devices=1"
            )
        for prompts in sets.values():
            check_prompts(prompts)
        padded = output_rows(model) > len(tokenizer)  # by rows that stand for no token
        allowed = list(range(len(tokenizer))) if padded else None
        with tempfile.TemporaryDirectory(prefix="amid-vllm-") as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            longest = max((len(prompt) for prompts in sets.values() for prompt in prompts), default=1)
            try:
                engine = vllm.LLM(
                    model=folder,
                    dtype=str(_dtype(model)).removeprefix("torch."),
                    generation_config="vllm",
                    gpu_memory_utilization=self.memory_share,
                    max_model_len=longest + self.max_new_tokens,
                )
            except (ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"generation=vllm: vLLM does not load the student: {reason}") from error
            try:
                for name, rung, seed in product(sets, [None, *self.rungs], self.seeds):
                    prompts, at = sets[name], self.at(rung)
                    drawn = at._drawn_by_vllm(vllm, engine, tokenizer, prompts, seed, allowed)
                    finished(len(prompts) * self.samples)
                    yield name, rung, seed, drawn
            finally:
                del engine
                gc.collect()

    def _drawn_by_vllm(
        self,
        vllm: Any,
        engine: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        allowed: list[int] | None,
    ) -> list[list[Answer]]:
        requests, settings = [], []
        eos = tokenizer.eos_token_id
        for prompt, names in zip(prompts, streams(prompts, seed, self.samples), strict=True):
            for name in names:
                requests.append({"prompt_token_ids": list(prompt)})
                settings.append(
                    vllm.SamplingParams(
                        temperature=self.temperature,
                        top_p=self.top_p,
                        top_k=self.top_k,
                        max_tokens=self.max_new_tokens,
                        ignore_eos=True,
                        stop_token_ids=[] if eos is None else [eos],
                        seed=int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") >> 1,
                        allowed_token_ids=allowed,
                        logprobs=0,
                        detokenize=False,
                    )
                )
        answers = []
        for result in engine.generate(requests, settings, use_tqdm=False):
            output = result.outputs[0]
            tokens = list(output.token_ids)
            log_probs = [of[token].logprob for of, token in zip(output.logprobs, tokens, strict=True)]
            answers.append(as_answer(tokens, tokenizer, log_probs))
        return [answers[i : i + self.samples] for i in range(0, len(answers), self.samples)]


def _vllm() -> Any:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        import vllm
    except ImportError as error:
        raise InputError(
            f"generation=vllm needs vLLM ({error}): pip install 'amid-distill[vllm]', or use "
            "generation=sampling"
        ) from error
    return vllm


def _dtype(model: PreTrainedModel) -> torch.dtype:
    """Returns the dtype of matrix products: autocast's dtype if autocast is on, else the weights' dtype."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
