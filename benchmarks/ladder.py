"""The cost of answers at six temperatures against answers at one: `amid.experiment.evaluation.evaluate_sets`.

Decoding and scoring are timed apart, in CPU seconds on a CPU. Answers share the decoding of equal beginnings,
and sharp models have more of these. The model has the size of SmolLM2-135M with 12 layers and random weights.
Its logits are scaled so that its first token has 2.5 nats of entropy. `--run` takes the student and the
prompts of a finished run with data=builtin instead.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from amid.data.builtin import TEMPLATE, TEMPLATE_WITH_INPUT, tokenizer
from amid.data.examples import Example
from amid.experiment.evaluation import evaluate_sets
from amid.generation.sampling import Sampling
from amid.metrics import rouge_l
from amid.metrics.words import words_of
from amid.scoring.answers import answers_files, read_answers
from amid.training.process_memory import keep_freed_memory

TOKENIZER = tokenizer()
LADDER = [0.4, 0.55, 0.7, 0.85, 1.0, 1.2]


@dataclass(frozen=True)
class Work:
    """A model, the prompts of its sets, and how they are answered."""

    name: str
    model: Any
    sets: Mapping[str, list[list[int]]]
    sampling: Mapping[str, Any]


def random_work(device: str, nats: float = 2.5) -> Work:
    """A model of random weights whose first tokens have so many nats of entropy; less work for a CPU."""
    sizes = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12}
    sizes |= {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    prompts = 8 if device == "cpu" else 256
    torch.manual_seed(0)
    special = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **special)).to(device).eval()
    model.generation_config = GenerationConfig()
    rng = random.Random(0)
    rows = [[rng.randrange(2, 1000) for _ in range(rng.randint(8, 64))] for _ in range(prompts)]
    with torch.inference_mode():
        first = torch.stack([model(torch.tensor([row], device=device)).logits[0, -1].float() for row in rows])
    low, high = 0.0, 1e4
    for _ in range(60):
        scale = (low + high) / 2
        found = torch.distributions.Categorical(logits=scale * first).entropy().mean()
        low, high = (scale, high) if found > nats else (low, scale)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: scale * logits)
    sampling = {"max_new_tokens": 48, "seeds": [10], "samples": 4}
    return Work("SmolLM2-135M, 12 layers", model, {"prompts": rows}, sampling)


def work_of_run(run: Path, device: str) -> Work:
    """The student of a run with data=builtin, and its prompts."""
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "best").to(device).eval()
    sets = {}
    for name, files in answers_files(run / "generations").items():
        rows = read_answers(next(iter(files.values())))
        sets[name] = []
        for row in rows:
            template = TEMPLATE_WITH_INPUT if row.input else TEMPLATE
            text = template.format(instruction=row.instruction, input=row.input)
            sets[name].append(TOKENIZER(text, add_special_tokens=False)["input_ids"])
    return Work(run.name, model, sets, {"max_new_tokens": 40, "seeds": [10, 20, 30], "samples": 4})


def seconds(action: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Returns the seconds that an action takes, and what it returns."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    begun = clock()
    found = action()
    return clock() - begun, found


def scored(drawn: list[Any], sampling: Sampling) -> None:
    """Writes and scores answers; the first answer to a prompt is its reference."""
    answered = {name: answers for name, rung, _, answers in drawn if rung is None}
    sets = {
        name: [Example(f"prompt {i}", "", (row[0].text or "none",)) for i, row in enumerate(answers)]
        for name, answers in answered.items()
    }
    stand_in = SimpleNamespace(
        **vars(sampling), rungs=sampling.rungs, answers_to_sets=lambda **_: iter(drawn)
    )
    encoder = SimpleNamespace(prompt=lambda example: [0])
    words_of.cache_clear()
    given = (None, None, sets, encoder, stand_in, {"rouge_l": rouge_l}, [])
    with tempfile.TemporaryDirectory() as folder:
        evaluate_sets(*given, Path(folder) / "generations", {}, nullcontext)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="the least of so many times is printed")
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    line = "{:<26}{:>9}{:>10}{:>10}{:>7}"
    print(line.format("model", "part", "one (s)", "six (s)", "ratio"))
    work = work_of_run(args.run, args.device) if args.run else random_work(args.device)
    times: dict[str, dict[str, list[float]]] = {part: {"one": [], "six": []} for part in ("decode", "score")}
    for _ in range(args.rounds):
        for name, ladder in (("one", None), ("six", LADDER)):
            sampling = Sampling(**work.sampling, temperatures=ladder, batch_size=args.batch_size)
            drawing = sampling.answers_to_sets(work.model, TOKENIZER, work.sets)
            took, drawn = seconds(partial(list, drawing), args.device)
            times["decode"][name].append(took)
            times["score"][name].append(seconds(partial(scored, drawn, sampling), "cpu")[0])
    least = {part: [min(of["one"]), min(of["six"])] for part, of in times.items()}
    least["both"] = [sum(values) for values in zip(*least.values(), strict=True)]
    for part, (one, six) in least.items():
        print(line.format(work.name[:25], part, f"{one:.2f}", f"{six:.2f}", f"{six / one:.2f}"))


if __name__ == "__main__":
    main()
