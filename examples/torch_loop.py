"""Distillation in a loop of one's own: models, batches and optimiser are plain torch and transformers.

Bodies are run on whole batches, the loss takes their last hidden states and the heads' weights, and logits
exist for a chunk of the counted tokens at a time. With real models: `AutoModelForCausalLM.from_pretrained`.
"""

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedModel

from amid.data.builtin import corpus, tokenizer
from amid.losses import AlphaBeta, AlphaMixture, CrossEntropy, Loss, Objective
from amid.models.source import ModelSource

LLAMA = {"model_type": "llama", "num_attention_heads": 4, "initializer_range": 0.08}
TOKENS = tokenizer()
TOKENS.padding_side = "right"


def tiny(width: int, layers: int) -> PreTrainedModel:
    """A model of random weights."""
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    return ModelSource(architecture=LLAMA | sizes).load(TOKENS).train()


def rows(n: int, split: str = "train") -> list[dict[str, list[int]]]:
    """Token ids, and labels that are -100 where nothing counts: at the prompt."""
    found = []
    for example in corpus(split, size=n):
        prompt = TOKENS(f"<instruction>{example.instruction}<response>").input_ids
        answer = [*TOKENS(example.outputs[0]).input_ids, TOKENS.eos_token_id]
        found.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return found


def train(
    objective: Loss, model: PreTrainedModel, teacher: PreTrainedModel | None, steps: int, lr: float
) -> list[float]:
    """Trains `model`; returns the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    pad, data, losses = DataCollatorForSeq2Seq(TOKENS, padding=True), rows(32 * steps), []
    for step in range(steps):
        batch = pad(data[32 * step : 32 * (step + 1)])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        labels = batch["labels"][:, 1:]  # the token at t + 1 is predicted at t
        inputs = {
            "student_hidden": model.base_model(ids, attention_mask=mask).last_hidden_state[:, :-1],
            "student_weight": model.lm_head.weight,
            "labels": labels,
            "mask": labels != -100,
        }
        if teacher is not None:
            with torch.no_grad():
                hidden = teacher.base_model(ids, attention_mask=mask).last_hidden_state[:, :-1]
            inputs |= {"teacher_hidden": hidden, "teacher_weight": teacher.lm_head.weight}
        loss = objective.fused(**inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more only slow such small models down
    teacher, student = tiny(64, 2), tiny(32, 1)
    train(CrossEntropy(), teacher, None, steps=40, lr=5e-3)
    losses = train(Objective(AlphaBeta(0.2, 0.7), AlphaMixture(-5.0, 0.1)), student, teacher.eval(), 20, 3e-3)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
