"""The transformers Trainer with our losses: against whole logits, in any cut of a step."""

import copy

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorForSeq2Seq, TrainingArguments

from amid.config import CONF
from amid.data.builtin import corpus, tokenizer
from amid.errors import InputError
from amid.hf import AMiDTrainer
from amid.losses import KL, AlphaBeta, AlphaMixture, AlphaNet, CrossEntropy, Objective, WeightedSum
from amid.models import ModelSource

TOKENS = tokenizer()
TINY = yaml.safe_load((CONF / "model" / "tiny.yaml").read_text())["model"]


def tiny(role, seed=0):
    """One of the built-in pair, of random weights large enough that p, q and r differ."""
    torch.manual_seed(seed)
    return ModelSource(architecture=TINY[role]["architecture"]).load(TOKENS)


def rows(n, split="train"):
    """Prompt and answer of built-in examples, of unequal lengths; the prompt is not counted."""
    found = []
    for example in corpus(split, size=n):
        prompt = TOKENS(f"<instruction>{example.instruction}<response>").input_ids
        answer = [*TOKENS(example.outputs[0]).input_ids, TOKENS.eos_token_id]
        found.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return found


def collator(side="right"):
    tokens = copy.deepcopy(TOKENS)
    tokens.padding_side = side
    return DataCollatorForSeq2Seq(tokens)


def trainer(
    folder, student, teacher, objective, data=None, side="right", metrics=None, valid=None, **arguments
):
    given = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 3}
    return AMiDTrainer(
        student,
        teacher=teacher,
        objective=objective,
        args=TrainingArguments(output_dir=str(folder), **{**given, **arguments}),
        train_dataset=data,
        eval_dataset=valid,
        data_collator=collator(side),
        compute_metrics=metrics,
    )


def amid(**settings):
    return Objective(AlphaBeta(0.2, 0.7), AlphaMixture(-3.0, 0.3), **settings)


def on_whole_logits(objective, student, teacher, batch, vocabulary=None):
    """The objective of the logits at all positions, by autograd, masked by the labels."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        teacher_logits = teacher(**inputs).logits[:, :-1, :vocabulary]
    given = {"labels": labels} if objective.needs_labels else {}
    return objective(
        student_logits=student(**inputs).logits[:, :-1, :vocabulary],
        teacher_logits=teacher_logits,
        mask=labels != -100,
        **given,
    )


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6, msg=name)


OBJECTIVES = {
    "amid": amid,
    "amid_on_logits": lambda: amid(fused=False),
    "kd": lambda: Objective(KL()),
    "with_cross_entropy": lambda: WeightedSum([(1.0, amid()), (0.5, CrossEntropy())]),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradients_are_those_of_whole_logits(name, side, tmp_path):
    objective, student, teacher = OBJECTIVES[name](), tiny("student"), tiny("teacher", 1)
    batch = collator(side)(rows(6))
    ours = trainer(tmp_path, student, teacher, objective).compute_loss(student, dict(batch))
    ours.backward()
    found = gradients(student)
    student.zero_grad()
    expected = on_whole_logits(objective, student, teacher, batch)
    expected.backward()
    assert float(expected.detach()) > 0.01
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert_same(found, gradients(student))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_soft_capped_head_is_taken_as_it_is(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    cap = {"final_logit_softcapping": 2.0, "head_dim": 8, "num_key_value_heads": 1, "initializer_range": 0.5}
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = AutoConfig.for_model("gemma2", vocab_size=len(TOKENS), **sizes, **cap)
        models.append(AutoModelForCausalLM.from_config(config).eval())
    student, teacher = models
    batch = collator()(rows(4))
    assert float(student(**batch).logits.detach().abs().max()) > 1.9  # the cap is at work
    ours = trainer(tmp_path, student, teacher, Objective(KL())).compute_loss(student, dict(batch))
    ours.backward()
    found = gradients(student)
    student.zero_grad()
    expected = on_whole_logits(Objective(KL()), student, teacher, batch)
    expected.backward()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert_same(found, gradients(student))


def test_embeddings_of_two_sizes_are_cut_to_the_shared_tokens(tmp_path):
    student, teacher = tiny("student"), tiny("teacher", 1)
    shared = len(TOKENS)
    teacher.resize_token_embeddings(shared + 24)
    batch = collator()(rows(3))
    ours = trainer(tmp_path, student, teacher, amid()).compute_loss(student, dict(batch))
    torch.testing.assert_close(
        ours, on_whole_logits(amid(), student, teacher, batch, shared), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_accumulation_leaves_the_step_as_it_is(side, tmp_path):
    data, teacher = rows(8), tiny("teacher", 1)
    for row in data[:4]:
        row["labels"] = list(row["input_ids"])  # first tokens too, which nothing predicts
    sgd = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    found, losses = [], []
    for size, parts in ((8, 1), (2, 4), (3, 3)):
        student = tiny("student")
        it = trainer(
            *(tmp_path, student, teacher, amid(), data, side),
            **sgd,
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )
        losses.append(it.train().training_loss)
        found.append(dict(student.named_parameters()))
    by_hand = tiny("student")
    loss = on_whole_logits(amid(), by_hand, teacher, collator()(data))
    loss.backward()
    with torch.no_grad():
        for p in by_hand.parameters():
            p -= 0.5 * p.grad
    assert max(float((0.5 * p.grad).abs().max()) for p in by_hand.parameters()) > 1e-3
    for weights, training_loss in zip(found, losses, strict=True):
        assert training_loss == pytest.approx(float(loss.detach()), rel=1e-4)
        for name, p in by_hand.named_parameters():
            torch.testing.assert_close(weights[name], p, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("with_metric", [False, True])
def test_the_evaluations_loss_is_a_mean_over_tokens(with_metric, tmp_path):
    data, student, teacher = rows(7, "valid"), tiny("student"), tiny("teacher", 1)
    seen = []

    def metric(prediction):
        seen.append(prediction.predictions.shape)
        return {"rows": len(prediction.predictions)}

    it = trainer(
        *(tmp_path, student, teacher, amid()),
        valid=data,
        metrics=metric if with_metric else None,
        per_device_eval_batch_size=3,
    )
    found = it.evaluate()
    expected = float(on_whole_logits(amid(), student, teacher, collator()(data)))
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)
    if with_metric:
        assert found["eval_rows"] == 7
        assert seen[0][2] == len(TOKENS)


def test_bf16_is_products_in_bfloat16_on_float32_weights(tmp_path):
    data, student, teacher = rows(4), tiny("student"), tiny("teacher", 1)
    dtypes = set()
    it = trainer(
        *(tmp_path, student, teacher, amid(), data),
        bf16=True,
        max_steps=1,
        per_device_train_batch_size=4,
    )
    expected = float(on_whole_logits(amid(), student, teacher, collator()(data)))
    student.base_model.layers[0].mlp.register_forward_hook(lambda *of: dtypes.add(of[2].dtype))
    loss = it.train().training_loss
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert loss == pytest.approx(expected, rel=0.03)


def test_adapters_of_peft_are_trained_and_kept_in_the_checkpoint(tmp_path):
    import peft

    teacher = tiny("teacher", 1)
    wrapped = peft.get_peft_model(tiny("student"), peft.LoraConfig(r=4, task_type="CAUSAL_LM"))
    it = trainer(
        *(tmp_path, wrapped, teacher, amid(), rows(4)), max_steps=2, learning_rate=0.1, logging_steps=1
    )
    before = float(on_whole_logits(amid(), wrapped, teacher, collator()(rows(4))))
    it.train()
    assert it.state.log_history[0]["loss"] == pytest.approx(before, rel=1e-4)
    after = float(on_whole_logits(amid(), wrapped.eval(), teacher, collator()(rows(4))))
    assert after < before
    it.save_model(tmp_path / "saved")
    assert sorted(f.name for f in (tmp_path / "saved").glob("*.safetensors")) == ["adapter_model.safetensors"]


def test_what_does_not_fit_is_refused(tmp_path):
    student, teacher = tiny("student"), tiny("teacher", 1)
    for objective, of, given, words in (
        (amid(), None, {}, "teacher=None"),
        (AlphaNet(maximum="batch"), teacher, {"gradient_accumulation_steps": 2}, "no sum of parts"),
        (amid(), teacher, {"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0\.1"),
    ):
        with pytest.raises(InputError, match=words):
            trainer(tmp_path, student, of, objective, **given)
    with pytest.raises(InputError, match="compute_loss_func is not taken"):
        AMiDTrainer(student, teacher=teacher, objective=amid(), compute_loss_func=lambda *of: 0)
    it = trainer(tmp_path, student, teacher, amid())
    batch = dict(collator()(rows(3)))
    gap = batch["attention_mask"].clone()
    gap[:, 2] = 0
    for wrong, words in (
        (batch | {"position_ids": batch["input_ids"]}, "position_ids, which AMiDTrainer does not take"),
        (batch | {"attention_mask": gap}, "gaps"),
        ({"input_ids": batch["input_ids"]}, "no labels"),
    ):
        with pytest.raises(InputError, match=words):
            it.compute_loss(student, wrong)
