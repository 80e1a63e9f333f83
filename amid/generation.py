"""Answers of a model to prompts: batched sampling with left padding and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from amid.errors import InputError


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text, its tokens (EOS included), and whether it ended with EOS."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Args:
        max_new_tokens: tokens of an answer at most.
        seeds: one set of answers is drawn for each.
        samples: answers to each prompt in each set.
        temperature: 0 for greedy decoding; then `samples` must be 1.
        top_p: in (0, 1]; 1 keeps all tokens.
        top_k: 0 keeps all tokens.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0 for no such rule.
        batch_size: answers drawn at once.

    Raises:
        InputError: for a value outside its range.
    """

    max_new_tokens: int
    seeds: Sequence[int] = (10, 20, 30, 40, 50)
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram_size: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "samples", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"generation.{name}={getattr(self, name)} must be at least 1")
        if not self.seeds:
            raise InputError("generation.seeds=[] is empty; give at least one, such as [10]")
        if self.temperature < 0 or (self.temperature == 0 and self.samples > 1):
            raise InputError(
                f"generation.temperature={self.temperature} with generation.samples={self.samples}: use a "
                "temperature above 0, or 0 (greedy) with one sample"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"generation.top_p={self.top_p} must be in (0, 1]")

    def answers(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        seed: int,
        samples: int | None = None,
    ) -> list[list[Answer]]:
        """`samples` answers (by default those of the settings) to each prompt, in the prompts' order.

        The same for the same seed, prompts, settings and machine; the global random state is left as it
        was. Prompts are taken in order of their length, so that batches hold little padding.
        """
        samples = samples or self.samples
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            num_return_sequences=samples,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **(
                {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
                if self.temperature
                else {}
            ),
        )
        generate: Any = model.generate
        training = model.training
        model.eval()
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        rows = max(1, self.batch_size // samples)
        answers: list[list[Answer]] = [[] for _ in prompts]
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(order), rows):
                chosen = order[start : start + rows]
                batch = tokenizer.pad(
                    {"input_ids": [list(prompts[i]) for i in chosen]},
                    return_tensors="pt",
                    padding_side="left",
                ).to(model.device)
                output = generate(**batch, generation_config=config)
                new = output[:, batch["input_ids"].shape[1] :].tolist()
                for row, ids in enumerate(new):
                    answers[chosen[row // samples]].append(_answer(ids, tokenizer))
        model.train(training)
        return answers


def _answer(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    ended = tokenizer.eos_token_id in ids
    length = ids.index(tokenizer.eos_token_id) + 1 if ended else len(ids)
    text = str(tokenizer.decode(ids[:length], skip_special_tokens=True))
    return Answer(text.strip(), length, ended)
