"""Measures what students give to tokens that the teacher denies: `benchmarks/denied_tokens.py TEACHER RUN …`.

TEACHER is the folder of a model that was fine-tuned on the built-in corpus, and each RUN is the folder of a
finished run on it. The script prints means over the counted tokens of 256 validation rows: the student's
probability of tokens with p < 1e-4, half the variance of log(q/p) under p, and KL(q ‖ p).
"""

import argparse
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from amid.data import InstructionData
from amid.data.builtin import corpus, tokenizer
from amid.data.tokens import MicroBatch, counted_positions
from amid.results import BEST

DENIED = 1e-4
TEMPLATE = Path(__file__).parent.parent / "conf" / "data" / "template" / "builtin.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    rows, template = corpus(split="valid", size=256, seed=0), instantiate(OmegaConf.load(TEMPLATE))
    data = InstructionData(tokenizer(), rows, rows, {}, template, max_prompt_length=32, max_length=60)
    batches = data.micro_batches([data.valid_tokens[i] for i in range(len(rows))])
    log_p = log_probs(AutoModelForCausalLM.from_pretrained(given.teacher), batches)
    for run in given.runs:
        log_q = log_probs(AutoModelForCausalLM.from_pretrained(run / BEST), batches)
        p, q, ratio = log_p.exp(), log_q.exp(), log_q - log_p
        denied = (q * (p < DENIED)).sum(-1).mean()
        variance = (p * (ratio - (p * ratio).sum(-1, keepdim=True)) ** 2).sum(-1).mean()
        print(f"{run.name}: {denied:.3f} {variance / 2:.2f} {(q * ratio).sum(-1).mean():.2f}")


@torch.no_grad()
def log_probs(model: PreTrainedModel, batches: list[MicroBatch]) -> Tensor:
    """log-probabilities at the counted tokens of all batches, [tokens, V]."""
    model.eval()
    found = []
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        found.append(logits.log_softmax(-1)[counted_positions(batch)])
    return torch.cat(found)


if __name__ == "__main__":
    main()
