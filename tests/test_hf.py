"""The transformers Trainer with our losses equals the loss on whole logits, however a step is cut."""

import json

import pytest
import torch
from hf_models import TOKENS, amid, assert_same, collator, gradients, on_whole_logits, rows, tiny
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorWithFlattening,
    TrainingArguments,
    default_data_collator,
)

from amid.errors import InputError
from amid.hf import AMiDTrainer, _check_devices
from amid.losses import KL, AlphaNet, CrossEntropy, Objective, WeightedSum
from amid.models.quantization import quantize


def trainer(
    folder,
    student,
    teacher,
    objective,
    data=None,
    side="right",
    metrics=None,
    valid=None,
    collate=None,
    **arguments,
):
    given = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 3}
    return AMiDTrainer(
        student,
        teacher=teacher,
        objective=objective,
        args=TrainingArguments(output_dir=str(folder), **{**given, **arguments}),
        train_dataset=data,
        eval_dataset=valid,
        data_collator=collate or collator(side),
        compute_metrics=metrics,
    )


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


def image_model(seed):
    """A model of text and images, with the sizes of the text within those of the whole, as Gemma 3 has."""
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": len(TOKENS), "head_dim": 8, "num_key_value_heads": 1}
    image = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=image | {"image_size": 28, "patch_size": 14}
    )
    assert not hasattr(config, "vocab_size")
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_model_of_text_and_images_is_read_as_one_of_text(tmp_path):
    student, teacher, batch = image_model(0), image_model(1), collator()(rows(3))
    ours = trainer(tmp_path, student, teacher, amid()).compute_loss(student, dict(batch))
    expected = on_whole_logits(amid(), student, teacher, batch)
    assert float(expected.detach()) > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


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


def adapted(model, seed):
    """A model with adapters that change it."""
    import peft

    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM"))
    torch.manual_seed(seed)
    for weight in wrapped.parameters():
        if weight.requires_grad:
            weight.data += 0.2 * torch.randn_like(weight)
    return wrapped


def test_a_teacher_with_adapters_teaches_with_them(tmp_path):
    student, teacher, plain = tiny("student"), adapted(tiny("teacher", 1), 3), tiny("teacher", 1)
    batch = collator()(rows(4))
    ours = trainer(tmp_path, student, teacher, amid()).compute_loss(student, dict(batch))
    expected = on_whole_logits(amid(), student, teacher, batch)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert abs(float(expected.detach() - on_whole_logits(amid(), student, plain, batch).detach())) > 1e-3
    assert not any(weight.requires_grad for weight in teacher.parameters())


def adapters_on_the_head():
    import peft

    kinds = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "lm_head"]}
    return [
        peft.LoraConfig(r=2, task_type="CAUSAL_LM", trainable_token_indices=[3, 4]),
        peft.LoHaConfig(r=2, **kinds),
        peft.IA3Config(feedforward_modules=[], **kinds),
        peft.LoraConfig(r=2, task_type="CAUSAL_LM", modules_to_save=["lm_head"]),
    ]


@pytest.mark.parametrize("number", range(4))
def test_adapters_of_each_kind_may_stand_on_the_head(number, tmp_path):
    import peft

    student = peft.get_peft_model(tiny("student"), adapters_on_the_head()[number], adapter_name="mine")
    torch.manual_seed(0)
    for weight in student.parameters():
        if weight.requires_grad:
            weight.data += 0.2 * torch.randn_like(weight)
    batch, teacher = collator()(rows(3)), tiny("teacher", 1)
    ours = trainer(tmp_path, student, teacher, amid()).compute_loss(student, dict(batch))
    torch.testing.assert_close(ours, on_whole_logits(amid(), student, teacher, batch), rtol=1e-5, atol=1e-6)


def spread_teacher(folder):
    tiny("teacher", 1).save_pretrained(folder / "teacher")
    parts = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    device_map = {**dict.fromkeys(parts, "cpu"), "model.layers": "disk"}
    return AutoModelForCausalLM.from_pretrained(
        folder / "teacher", device_map=device_map, offload_folder=folder / "offload"
    )


def quantised_teacher(folder):
    pytest.importorskip("torchao")
    teacher = tiny("teacher", 1)
    quantize(teacher, "int8")
    return teacher


@pytest.mark.parametrize("made", [spread_teacher, quantised_teacher])
def test_a_teacher_that_is_spread_or_quantised_teaches_as_it_is(made, tmp_path):
    student, teacher, batch = tiny("student"), made(tmp_path), collator()(rows(3))
    ours = trainer(tmp_path, student, teacher, amid()).compute_loss(student, dict(batch))
    torch.testing.assert_close(ours, on_whole_logits(amid(), student, teacher, batch), rtol=1e-5, atol=1e-6)


def test_a_teacher_that_shares_weights_is_refused_and_the_student_left_as_it_is(tmp_path):
    student = tiny("student")
    with pytest.raises(InputError, match=r"the teacher shares \d+ weights with the student"):
        trainer(tmp_path, student, student, amid())
    assert all(weight.requires_grad for weight in student.parameters())
    base = tiny("student")
    wrapped = adapted(base, 3)
    trained = {name for name, weight in wrapped.named_parameters() if weight.requires_grad}
    for teacher in (base, wrapped):
        with pytest.raises(InputError, match=r"copy.deepcopy\(model\), before adapters"):
            trainer(tmp_path, wrapped, teacher, amid())
    assert {name for name, weight in wrapped.named_parameters() if weight.requires_grad} == trained
    other = tiny("student", 1)
    other.model.norm.weight = student.model.norm.weight
    with pytest.raises(InputError, match=r"shares 1 weights with the student \(model.norm.weight"):
        trainer(tmp_path, student, other, amid())


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_packed_rows_have_loss_and_gradients_of_padded_ones(fused, with_lengths, tmp_path):
    student, teacher, objective = tiny("student"), tiny("teacher", 1), amid(fused=fused)
    data = rows(6)
    expected = on_whole_logits(objective, student, teacher, collator()(data))
    expected.backward()
    by_hand = gradients(student)
    student.zero_grad()
    packed = DataCollatorWithFlattening(return_flash_attn_kwargs=with_lengths)
    it = trainer(tmp_path, student, teacher, objective, data, valid=data, collate=packed)
    batch = packed(data)
    assert batch["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in data))
    labels = torch.where(batch["position_ids"] == 0, batch["input_ids"], batch["labels"])
    loss = it.compute_loss(student, batch | {"labels": labels})  # a first token is not predicted anyway
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same(gradients(student), by_hand)
    assert it.evaluate()["eval_loss"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_packed_rows_that_a_model_does_not_keep_apart_are_refused(tmp_path):
    opt = AutoModelForCausalLM.from_config(of_family("opt", ffn_dim=32, word_embed_proj_dim=16))
    batch = DataCollatorWithFlattening()(rows(3))
    it = trainer(tmp_path, tiny("student"), opt, amid())
    with pytest.raises(InputError, match="OPTForCausalLM does not keep packed rows apart; give padded rows"):
        it.compute_loss(it.model, dict(batch))
    few = AutoModelForCausalLM.from_config(of_family("gpt2", n_positions=12))
    longest = max(len(row["input_ids"]) for row in rows(3))
    assert longest > 12
    with pytest.raises(InputError, match=f"a row of {longest} tokens, and teacher has only 12 positions"):
        trainer(tmp_path, tiny("student"), few, amid()).compute_loss(it.model, dict(batch))


def of_family(family, **fields):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": len(TOKENS)}
    return AutoConfig.for_model(family, **{**sizes, **fields}, pad_token_id=TOKENS.pad_token_id)


def test_models_that_cannot_learn_or_teach_so_are_refused(tmp_path):
    student, teacher = tiny("student"), tiny("teacher", 1)
    t5 = AutoConfig.for_model("t5", d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    bert = AutoModelForCausalLM.from_config(of_family("bert", intermediate_size=32))
    headless = AutoModel.from_config(of_family("gpt2"))
    few = AutoModelForCausalLM.from_config(of_family("gpt2", vocab_size=len(TOKENS) - 1))
    for model, of, words in (
        (student, "a/path", r"teacher='a/path' is a path; load it: teacher=AutoModelForCausalLM"),
        ("a/path", teacher, r"model='a/path' is a path"),
        (student, AutoModelForSeq2SeqLM.from_config(t5), r"teacher is an encoder with a decoder \(t5\)"),
        (AutoModelForSeq2SeqLM.from_config(t5), teacher, r"model is an encoder with a decoder \(t5\)"),
        (student, bert, r"teacher \(BertLMHeadModel\) reads a text from both ends"),
        (bert, teacher, r"model \(BertLMHeadModel\) reads a text from both ends"),
        (student, headless, r"teacher is a GPT2Model, which makes no logits"),
        (student, few, rf"teacher has {len(TOKENS) - 1} token embeddings and the tokenizer {len(TOKENS)}"),
    ):
        with pytest.raises(InputError, match=words):
            trainer(tmp_path, model, of, amid())


def test_batches_beyond_what_a_model_has_are_refused(tmp_path):
    student = tiny("student")
    few = AutoModelForCausalLM.from_config(of_family("gpt2", n_positions=12, vocab_size=40))
    it = trainer(tmp_path, student, few, amid(), collate=default_data_collator)
    ids = torch.full((2, 12), 39)
    it.compute_loss(student, {"input_ids": ids, "labels": ids})
    with pytest.raises(InputError, match=r"token 40, and teacher has only 40 token embeddings"):
        it.compute_loss(student, {"input_ids": ids + 1, "labels": ids})
    with pytest.raises(InputError, match=r"token -1, and model has only"):
        it.compute_loss(student, {"input_ids": ids - 40, "labels": ids})
    with pytest.raises(InputError, match=r"a batch has no labels"):
        it.compute_loss(student, {"input_ids": ids, "labels": None})
    with pytest.raises(InputError, match=r"labels are \[2, 11\] and input_ids \[2, 12\]"):
        it.compute_loss(student, {"input_ids": ids, "labels": ids[:, 1:]})
    longer = torch.full((2, 13), 39)
    with pytest.raises(InputError, match=r"a row of 13 tokens, and teacher has only 12 positions"):
        it.compute_loss(student, {"input_ids": longer, "labels": longer})


def test_a_student_without_a_weight_to_train_is_evaluated_and_not_trained(tmp_path):
    it = trainer(tmp_path, tiny("student").requires_grad_(False), tiny("teacher", 1), amid())
    batch = collator()(rows(2))
    with torch.no_grad():
        assert it.compute_loss(it.model, dict(batch)) > 0
    with pytest.raises(InputError, match=r"no weight of the model is to be trained; .*is_trainable=True"):
        it.compute_loss(it.model, dict(batch))


def test_padding_on_the_left_needs_a_mask(tmp_path):
    student = tiny("student")
    it = trainer(tmp_path, student, tiny("teacher", 1), amid())
    batch = {name: value for name, value in collator("left")(rows(3)).items() if name != "attention_mask"}
    with pytest.raises(InputError, match=rf"padding token {TOKENS.pad_token_id} and has no attention_mask"):
        it.compute_loss(student, batch)
    right = {name: value for name, value in collator()(rows(3)).items() if name != "attention_mask"}
    it.compute_loss(student, right)
    it.compute_loss(
        student,
        {name: value.clone() for name, value in right.items()}
        | {"input_ids": torch.cat([torch.full((3, 1), TOKENS.pad_token_id), right["input_ids"][:, 1:]], 1)},
    )  # once, before every row, as a BOS stands


def test_what_it_saves_ends_its_answers(tmp_path):
    torch.manual_seed(0)
    config = of_family("gpt2", eos_token_id=7)
    student = AutoModelForCausalLM.from_config(config)
    it = trainer(tmp_path, student, tiny("teacher", 1), amid(), rows(4), max_steps=1)
    it.train()
    it.save_model(tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert TOKENS.eos_token_id in said["eos_token_id"]
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"] == TOKENS.eos_token_id
    tiny("student").save_pretrained(tmp_path / "plain")
    said = json.loads((tmp_path / "plain" / "generation_config.json").read_text())
    assert said["eos_token_id"] == TOKENS.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").eos_token == TOKENS.eos_token


def test_what_does_not_fit_is_refused(tmp_path):
    student, teacher = tiny("student"), tiny("teacher", 1)
    for objective, of, given, words in (
        (amid(), None, {}, "teacher=None"),
        (AlphaNet(maximum="batch"), teacher, {"gradient_accumulation_steps": 2}, "no sum of parts"),
        (amid(), teacher, {"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0\.1"),
        (amid(), teacher, {"torch_compile": True}, "torch_compile=True does nothing here"),
    ):
        with pytest.raises(InputError, match=words):
            trainer(tmp_path, student, of, objective, **given)
    with pytest.raises(InputError, match="compute_loss_func is not taken"):
        AMiDTrainer(student, teacher=teacher, objective=amid(), compute_loss_func=lambda *of: 0)
    it = trainer(tmp_path, student, teacher, amid())
    batch = dict(collator()(rows(3)))
    gap = batch["attention_mask"].clone()
    gap[:, 2] = 0
    packed = DataCollatorWithFlattening()(rows(3))
    for wrong, words in (
        (batch | {"token_type_ids": batch["input_ids"]}, "token_type_ids, which AMiDTrainer does not take"),
        (batch | {"position_ids": batch["input_ids"]}, r"give packed rows as one row with position_ids"),
        (packed | {"position_ids": packed["position_ids"] + 1}, "do not count 0, 1, 2, ... in each"),
        ({**packed, "attention_mask": torch.ones_like(packed["input_ids"])}, "no attention_mask"),
        (batch | {"attention_mask": gap}, "gaps"),
        ({"input_ids": batch["input_ids"]}, "no labels"),
    ):
        with pytest.raises(InputError, match=words):
            it.compute_loss(student, wrong)


def test_ways_to_spread_a_model_that_hide_its_head_are_refused(tmp_path, monkeypatch):
    it = trainer(tmp_path, tiny("student"), tiny("teacher", 1), amid())
    _check_devices(it)
    for name, value, words in (
        ("is_deepspeed_enabled", True, "does not take DeepSpeed, .* fsdp=True, or plain DDP"),
        ("is_fsdp_xla_enabled", True, "FSDP of version 2 alone"),
        ("get_cp_size", lambda: 2, "cp_size=2 cuts a row"),
        ("is_distributed_loading_by_transformers", True, "a model that from_pretrained spread"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(AMiDTrainer, name, value, raising=False)
            changed.setattr(it, name, value, raising=False)
            with pytest.raises(InputError, match=words):
                _check_devices(it)
