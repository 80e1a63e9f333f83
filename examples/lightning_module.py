"""Distillation in a `LightningModule` of one's own, on whole logits: short, for small vocabularies."""

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_loop import TOKENS, rows, tiny, train
from transformers import DataCollatorForSeq2Seq, PreTrainedModel

from amid.losses import KL, AlphaMixture, CrossEntropy, Loss, Objective


class Distillation(L.LightningModule):
    """Trains a student; the teacher is frozen, in eval mode, and its weights are in no checkpoint."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, objective: Loss) -> None:
        super().__init__()
        self.student, self.objective, self.losses = student, objective, []
        self._teacher = [teacher.requires_grad_(False).eval()]  # in a list, Lightning does not see it

    def setup(self, stage: str) -> None:
        """Brings the teacher to the student's device."""
        self._teacher[0].to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean over the counted tokens of a batch."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            teacher_logits = self._teacher[0](**inputs).logits[:, :-1]
        loss = self.objective(
            student_logits=self.student(**inputs).logits[:, :-1],
            teacher_logits=teacher_logits,
            mask=batch["labels"][:, 1:] != -100,
        )
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Over the student's weights."""
        return torch.optim.AdamW(self.student.parameters(), lr=3e-3)


if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    teacher, student = tiny(64, 2), tiny(32, 1)
    train(CrossEntropy(), teacher, None, steps=40, lr=5e-3)
    module = Distillation(student, teacher, Objective(KL(), AlphaMixture(alpha=-5.0, lam=0.1)))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(rows(640), batch_size=32, collate_fn=DataCollatorForSeq2Seq(TOKENS)))
    print(f"loss {module.losses[0]:.4f} -> {module.losses[-1]:.4f}")
