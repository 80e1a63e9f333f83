"""Tokens a second of `Sampling.answers_to_sets` against transformers' `generate` used the published way.

The published way: fixed batches in the given order, padded to their longest prompt, every row kept until the
last one ends, one sampling seed after the other. Both ways draw from the same model of random weights. Its
EOS logit is raised, so that answers end after about a quarter of `max_new_tokens` on average. Lengths are
then nearly geometric, cut at the limit. Prompt lengths are uniform. The ways are measured in turn in one
process; the figures are medians over the rounds. Only tokens of answers count, EOS included.
"""

import argparse
import math
import random
import statistics
import time
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedModel

from amid.data.builtin import tokenizer
from amid.generation.sampling import Sampling
from amid.training.process_memory import keep_freed_memory

TOKENIZER = tokenizer()
EOS, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id


@dataclass(frozen=True)
class Shape:
    """A model and its work: prompts, their longest, tokens an answer at most, answers at once."""

    name: str
    architecture: dict
    prompts: int
    prompt_length: int
    max_new_tokens: int
    batch_size: int


def shapes(device: str) -> list[Shape]:
    """The built-in teacher, and SmolLM2-135M; less work for a CPU."""
    tiny = {"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2}
    smol = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    tiny |= {"num_attention_heads": 4}
    smol |= {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    if device == "cpu":
        return [Shape("tiny", tiny, 512, 24, 64, 128), Shape("SmolLM2-135M", smol, 32, 64, 64, 16)]
    return [Shape("tiny", tiny, 2048, 24, 128, 512), Shape("SmolLM2-135M", smol, 512, 256, 256, 64)]


def random_model(shape: Shape, device: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(**shape.architecture, eos_token_id=EOS, pad_token_id=PAD)
    model = AutoModelForCausalLM.from_config(config).to(device).eval()
    model.generation_config = GenerationConfig()
    bias = math.log(config.vocab_size / (shape.max_new_tokens / 4))

    def raise_eos(module: torch.nn.Module, inputs: tuple, logits: torch.Tensor) -> torch.Tensor:
        logits[..., EOS] += bias
        return logits

    model.lm_head.register_forward_hook(raise_eos)
    return model


def published(
    model: PreTrainedModel, prompts: list[list[int]], shape: Shape, samples: int, seeds: int
) -> int:
    """Answers all prompts with each seed; returns the number of tokens."""
    config = GenerationConfig(
        max_new_tokens=shape.max_new_tokens,
        do_sample=True,
        top_k=0,
        num_return_sequences=samples,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    rows = max(1, shape.batch_size // samples)
    tokens = 0
    with torch.inference_mode():
        for start in list(range(0, len(prompts), rows)) * seeds:
            batch = TOKENIZER.pad(
                {"input_ids": prompts[start : start + rows]}, return_tensors="pt", padding_side="left"
            ).to(model.device)
            output = model.generate(**batch, generation_config=config)
            for new in output[:, batch["input_ids"].shape[1] :].tolist():
                tokens += new.index(EOS) + 1 if EOS in new else len(new)
    return tokens


def ours(model: PreTrainedModel, prompts: list[list[int]], shape: Shape, samples: int, seeds: int) -> int:
    """The same by `Sampling.answers_to_sets`."""
    sampling = Sampling(shape.max_new_tokens, range(seeds), samples, batch_size=shape.batch_size)
    drawn = sampling.answers_to_sets(model, TOKENIZER, {"prompts": prompts})
    return sum(answer.tokens for *_, answers in drawn for row in answers for answer in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory()
    line = "{:<14}{:>9}{:>8}{:>7}{:>11}{:>13}{:>10}{:>8}"
    columns = ("model", "prompts", "samples", "seeds", "tok/answer", "generate t/s", "ours t/s", "ratio")
    print(line.format(*columns))
    for shape in shapes(args.device):
        model = random_model(shape, args.device)
        rng = random.Random(0)
        for samples, seeds in ((1, 1), (4, 1), (1, 5)):
            lengths = [rng.randint(4, shape.prompt_length) for _ in range(shape.prompts // samples // seeds)]
            prompts = [[rng.randrange(2, 1000) for _ in range(length)] for length in lengths]
            rates: dict[str, list[float]] = {"generate": [], "ours": []}
            for _ in range(args.rounds):
                for name, answer in (("generate", published), ("ours", ours)):
                    begin = time.perf_counter()
                    tokens = answer(model, prompts, shape, samples, seeds)  # ends with its tokens on the CPU
                    rates[name].append(tokens / (time.perf_counter() - begin))
            slow, fast = (statistics.median(values) for values in rates.values())
            mean = f"{tokens / samples / seeds / len(prompts):.1f}"
            figures = (f"{slow:.0f}", f"{fast:.0f}", f"{fast / slow:.2f}")
            print(line.format(shape.name, len(prompts), samples, seeds, mean, *figures), flush=True)


if __name__ == "__main__":
    main()
