"""Distillation in transformers' `Trainer`: a teacher and an objective, everything else as ever."""

import tempfile

import torch
from torch_loop import TOKENS, rows, tiny, train
from transformers import DataCollatorForSeq2Seq, TrainingArguments

from amid.hf import AMiDTrainer
from amid.losses import AlphaBeta, AlphaMixture, CrossEntropy, Objective

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    teacher, student = tiny(64, 2), tiny(32, 1)
    train(CrossEntropy(), teacher, None, steps=40, lr=5e-3)
    with tempfile.TemporaryDirectory() as folder:
        trainer = AMiDTrainer(
            student,
            teacher=teacher,
            objective=Objective(AlphaBeta(0.2, 0.7), AlphaMixture(alpha=-5.0, lam=0.1)),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=20,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=4,  # the loss is that of 32 rows at once
                learning_rate=3e-3,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
                use_cpu=True,
            ),
            train_dataset=rows(640),
            eval_dataset=rows(64, "valid"),
            data_collator=DataCollatorForSeq2Seq(TOKENS),
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    print(f"loss {before:.4f} -> {after:.4f}")
