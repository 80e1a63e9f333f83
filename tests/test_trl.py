"""TRL's `SFTTrainer` with our loss: its rows and adapters, and the numbers of whole logits."""

import copy

import pytest
import torch
from hf_models import TOKENS, amid, assert_same, collator, on_whole_logits, tiny
from hf_models import rows as rows_by_hand

from amid.data.builtin import corpus
from amid.hf import AMiDTrainer

pytest.importorskip("trl", reason="no TRL here: pip install -e '.[trl]'")
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}<instruction>{{ m.content }}{% else %}<response>"
    "{% generation %}{{ m.content }}<eos>{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<response>{% endif %}"
)
FORMATS = ("plain", "conversational", "messages")


class AMiDSFTTrainer(AMiDTrainer, SFTTrainer):
    pass


def rows(n, form="plain", split="train"):
    """The rows of `rows_by_hand` before they are token ids, in one of TRL's formats."""
    found = []
    for example in corpus(split, size=n):
        user = {"role": "user", "content": example.instruction}
        assistant = {"role": "assistant", "content": example.outputs[0]}
        found.append(
            {
                "plain": {
                    "prompt": f"<instruction>{example.instruction}<response>",
                    "completion": example.outputs[0],
                },
                "conversational": {"prompt": [user], "completion": [assistant]},
                "messages": {"messages": [user, assistant]},
            }[form]
        )
    return Dataset.from_list(found)


def trainer(
    folder, student, data, valid=None, teacher=None, peft_config=None, kind=AMiDSFTTrainer, **arguments
):
    given = {"report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    tokens = copy.deepcopy(TOKENS)
    tokens.chat_template = CHAT
    ours = {"teacher": teacher or tiny("teacher", 1), "objective": amid()} if kind is AMiDSFTTrainer else {}
    return kind(
        student,
        **ours,
        args=SFTConfig(output_dir=str(folder), **{**given, **arguments}),
        train_dataset=data,
        eval_dataset=valid,
        processing_class=tokens,
        peft_config=peft_config,
    )


@pytest.mark.parametrize("form", FORMATS)
def test_the_answers_of_its_rows_are_counted(form, tmp_path):
    student, teacher = tiny("student"), tiny("teacher", 1)
    data = rows(5, form, "valid")
    it = trainer(tmp_path, student, data, data, teacher, assistant_only_loss=form == "messages")
    expected = float(on_whole_logits(amid(), student, teacher, collator()(rows_by_hand(5, "valid"))))
    assert expected > 0.01
    assert it.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_accumulation_leaves_the_step_as_it_is(tmp_path):
    teacher, by_hand = tiny("teacher", 1), tiny("student")
    sgd = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    loss = on_whole_logits(amid(), by_hand, teacher, collator()(rows_by_hand(8)))
    loss.backward()
    expected = {name: (p - 0.5 * p.grad).detach() for name, p in by_hand.named_parameters()}
    for size, parts in ((8, 1), (3, 3)):
        student = tiny("student")
        it = trainer(
            *(tmp_path, student, rows(8), None, teacher),
            **sgd,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )
        assert it.train().training_loss == pytest.approx(float(loss.detach()), rel=1e-4)
        assert_same({name: p.detach() for name, p in student.named_parameters()}, expected)


def test_adapters_are_trained_alone_and_kept(tmp_path):
    import peft

    lora = peft.LoraConfig(r=4, task_type="CAUSAL_LM")
    it = trainer(
        *(tmp_path, tiny("student"), rows(4), rows(4)),
        peft_config=lora,
        max_steps=2,
        learning_rate=0.1,
        save_strategy="steps",
        save_steps=2,
    )
    before = it.evaluate()["eval_loss"]
    it.train()
    assert it.evaluate()["eval_loss"] < before
    names = [f.name for f in (tmp_path / "checkpoint-2").glob("*.safetensors")]
    assert names == ["adapter_model.safetensors"]


def test_models_come_from_folders_and_go_back_to_trl(tmp_path):
    first, data = tmp_path / "first", rows(4)
    trainer(first, tiny("student"), data, kind=SFTTrainer).save_model()
    it = trainer(tmp_path / "second", str(first), data, max_steps=1, learning_rate=1e-2)
    torch.testing.assert_close(dict(it.model.named_parameters()), dict(tiny("student").named_parameters()))
    it.train()
    it.save_model()
    weights = {name: p.detach() for name, p in it.model.named_parameters()}
    again = SFTTrainer(str(tmp_path / "second"), args=it.args, train_dataset=data)
    assert_same({name: p.detach() for name, p in again.model.named_parameters()}, weights)


def test_what_trl_prepared_is_taken_by_amid_trainer_alone(tmp_path):
    student, teacher, data = tiny("student"), tiny("teacher", 1), rows(5)
    theirs = trainer(tmp_path, student, data, kind=SFTTrainer)
    it = AMiDTrainer(
        student,
        teacher=teacher,
        objective=amid(),
        args=theirs.args,
        eval_dataset=theirs.train_dataset,
        data_collator=theirs.data_collator,
    )
    expected = float(on_whole_logits(amid(), student, teacher, collator()(rows_by_hand(5))))
    assert it.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": True, "max_length": 100, "per_device_train_batch_size": 20},
        {"padding_free": True, "max_length": None, "per_device_train_batch_size": 8},
    ],
)
def test_packed_rows_make_the_step_of_padded_ones(settings, tmp_path):
    student, teacher, by_hand = tiny("student"), tiny("teacher", 1), tiny("student")
    loss = on_whole_logits(amid(), by_hand, teacher, collator()(rows_by_hand(8)))
    loss.backward()
    expected = {name: (p - 0.5 * p.grad).detach() for name, p in by_hand.named_parameters()}
    sgd = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    it = trainer(tmp_path, student, rows(8), None, teacher, **sgd, **settings, max_steps=1)
    batch = next(iter(it.get_train_dataloader()))
    assert len(batch["input_ids"]) == 1
    assert int((batch["position_ids"] == 0).sum()) == 8
    assert it.train().training_loss == pytest.approx(float(loss.detach()), rel=1e-4)
    assert_same({name: p.detach() for name, p in student.named_parameters()}, expected)
