"""TRL's `SFTTrainer` fine-tunes teacher and student, a subclass of it distils, all on the same rows."""

import tempfile

import torch
from datasets import Dataset
from torch_loop import TOKENS, tiny
from trl import SFTConfig, SFTTrainer

from amid.data.builtin import corpus
from amid.hf import AMiDTrainer
from amid.losses import AlphaBeta, AlphaMixture, Objective


class AMiDSFTTrainer(AMiDTrainer, SFTTrainer):
    """An `SFTTrainer` with the loss of `AMiDTrainer`."""


def rows(n: int, split: str = "train") -> Dataset:
    """TRL's prompt-completion format, of which the completion counts."""
    return Dataset.from_list(
        [
            {"prompt": f"<instruction>{example.instruction}<response>", "completion": example.outputs[0]}
            for example in corpus(split, size=n)
        ]
    )


def settings(folder: str, steps: int, lr: float) -> SFTConfig:
    """Those of all trainers here."""
    return SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=lr,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        bf16=False,  # TRL's default is True
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    teacher, student, data = tiny(64, 2), tiny(32, 1), rows(320)
    with tempfile.TemporaryDirectory() as folder:
        for model, steps in ((teacher, 20), (student, 5)):
            args = settings(folder, steps, lr=5e-3)
            SFTTrainer(model, args=args, train_dataset=data, processing_class=TOKENS).train()
        trainer = AMiDSFTTrainer(
            student,
            teacher=teacher,
            objective=Objective(AlphaBeta(0.2, 0.7), AlphaMixture(alpha=-5.0, lam=0.1)),
            args=settings(folder, 10, lr=3e-3),
            train_dataset=data,
            eval_dataset=rows(64, "valid"),
            processing_class=TOKENS,
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
        trainer.save_model()  # TRL loads it from there: SFTTrainer(folder, ...)
    print(f"loss {before:.4f} -> {after:.4f}")
