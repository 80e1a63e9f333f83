import copy

import pytest
from tokenizers.processors import TemplateProcessing

from amid.data import Example, InstructionData, Template
from amid.data.builtin import tokenizer
from amid.data.prompts import IGNORE, Encoder
from amid.errors import InputError

TEMPLATE = Template("Do: {instruction}\nAnswer:", "Do: {instruction}\nWith: {input}\nAnswer:")


def encoder(max_prompt_length=64, max_length=96):
    return Encoder(tokenizer(), TEMPLATE, max_prompt_length, max_length)


def test_prompt_response_and_eos():
    enc = encoder()
    ids, n_prompt, *_ = enc.example(Example("sort", "b a", ("a b",)))
    tok = enc.tokenizer
    assert tok.decode(ids[:n_prompt]) == "Do: sort\nWith: b a\nAnswer:"
    assert tok.decode(ids[n_prompt:-1]) == "a b"
    assert ids[-1] == tok.eos_token_id


def test_a_long_prompt_loses_the_end_of_its_input_and_keeps_the_template():
    enc = encoder(max_prompt_length=40)
    ids = enc.prompt(Example("keep this", "lose " * 100, ("x",)))
    text = enc.tokenizer.decode(ids)
    assert len(ids) <= 40
    assert text.startswith("Do: keep this\nWith: lose lose")
    assert text.endswith("\nAnswer:")


def test_a_long_prompt_cut_on_the_right_loses_the_end_of_the_template():
    example = Example("keep this", "lose " * 100, ("x",))
    enc = Encoder(tokenizer(), TEMPLATE, 40, 48, truncation="right")
    whole = Encoder(tokenizer(), TEMPLATE, 1000, 1008).prompt(example)
    assert enc.prompt(example) == whole[:40]
    ids, n_prompt, prompt_cut, *_ = enc.example(example)
    assert (ids[:n_prompt], n_prompt, prompt_cut) == (whole[:40], 40, True)
    assert "Answer:" not in enc.tokenizer.decode(ids)
    with pytest.raises(InputError, match=r"data.truncation=left must be input or right"):
        Encoder(tokenizer(), TEMPLATE, 40, 48, truncation="left")


def test_a_long_instruction_is_cut_where_cutting_the_input_is_not_enough():
    enc = encoder(max_prompt_length=40)
    ids = enc.prompt(Example("word " * 100, "input", ("x",)))
    text = enc.tokenizer.decode(ids)
    assert len(ids) <= 40
    assert text.startswith("Do: word word")
    assert text.endswith("\nAnswer:")


def test_a_long_response_is_cut_and_has_no_eos():
    enc = encoder(40, 48)
    ids, _, prompt_cut, response_cut, _ = enc.example(Example("x", "", ("word " * 100,)))
    assert len(ids) == 48
    assert (prompt_cut, response_cut) == (False, True)
    assert enc.tokenizer.eos_token_id not in ids


def test_limits_below_the_template():
    with pytest.raises(
        InputError, match=r"max_prompt_length=3 is below what the template itself needs; use at"
    ):
        encoder(3, 10)
    with pytest.raises(InputError, match=r"max_length=30 leaves no room"):
        encoder(40, 30)


@pytest.mark.parametrize("text", ["{instruction} {other}", "no field"])
def test_a_template_with_a_wrong_field(text):
    with pytest.raises(InputError, match=r"template.without_input"):
        Template(text, "{instruction} {input}")


CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
TURNS = {CHATML: "<|im_end|>", GEMMA: "<end_of_turn>", LLAMA2: "<eos>"}
PROMPTS = {
    CHATML: "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nsort\n\nb a<|im_end|>\n"
    "<|im_start|>assistant\n",
    GEMMA: "<bos><start_of_turn>user\nsort\n\nb a<end_of_turn>\n<start_of_turn>model\n",
    LLAMA2: "<bos>[INST] sort\n\nb a [/INST]",
}


def chat_of(variables):
    return Template("{instruction}", "{instruction}\n\n{input}", chat=variables)


def chat_tokenizer(template):
    """A tokenizer that also adds a BOS of its own to whatever it is given."""
    tok = tokenizer()
    turns = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
    tok.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": turns})
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tok.bos_token_id)]
    )
    assert tok("a")["input_ids"][0] == tok.bos_token_id
    tok.chat_template = template
    return tok


@pytest.mark.parametrize("template", TURNS, ids=["chatml", "gemma", "llama2"])
def test_the_tokenizers_own_chat_template(template):
    tok = chat_tokenizer(template)
    enc = Encoder(tok, chat_of({}), 200, 300)
    ids, n_prompt, *_ = enc.example(Example("sort", "b a", ("a b",)))
    assert tok.decode(ids[:n_prompt]) == PROMPTS[template]
    assert ids.count(tok.bos_token_id) == (template != CHATML)
    assert tok.decode(ids[n_prompt:-1]) == "a b"
    assert tok.decode(ids[-1:]) == TURNS[template]


@pytest.mark.parametrize("template", TURNS, ids=["chatml", "gemma", "llama2"])
def test_a_long_message_is_cut_inside_the_chat_template(template):
    tok = chat_tokenizer(template)
    enc = Encoder(tok, chat_of({}), 100, 120)
    before, after = PROMPTS[template].split("b a")
    ids = enc.prompt(Example("sort", "lose " * 200, ("x",)))
    assert 96 < len(ids) <= 100
    assert tok.decode(ids).startswith(before + "lose lose")
    assert tok.decode(ids).endswith(after)


def test_the_end_of_a_turn_is_counted_and_ends_an_answer(tmp_path):
    tok = chat_tokenizer(GEMMA)
    rows = [Example(f"say {i}", "", (f"word {i}",)) for i in range(4)]
    data = InstructionData(
        tok, rows, rows, {}, chat_of({}), max_prompt_length=100, max_length=120, cache_dir=str(tmp_path)
    )
    (batch,) = data.micro_batches(next(iter(data.train_dataloader())))
    for row, length in zip(batch["labels"], batch["attention_mask"].sum(1), strict=True):
        counted = row[row != IGNORE].tolist()
        assert tok.decode(counted).startswith("word ")
        assert tok.decode(counted[-1:]) == "<end_of_turn>" == data.tokenizer.eos_token
        assert row[length - 1] == data.tokenizer.eos_token_id
    assert tok.eos_token == "<eos>"


def test_settings_of_a_chat_template():
    tok = chat_tokenizer(CHATML)
    text = chat_of({"enable_thinking": False, "other": 1}).render(tok, "hi", "")
    assert text.endswith("<|im_start|>assistant\n<think></think>")
    other = copy.deepcopy(tok)
    other.chat_template = GEMMA
    made = [chat_of({}).made_from(t) for t in (tok, tok, other)]
    assert made[0] == made[1] != made[2]
    assert chat_of({"enable_thinking": False}).made_from(tok) != made[0]


def test_no_chat_template_and_one_whose_turns_do_not_end():
    with pytest.raises(InputError, match=r"no chat template; use data\.template\.chat=null"):
        Encoder(tokenizer(), chat_of({}), 64, 96)
    with pytest.raises(InputError, match="ends a turn with '###', which is no special token"):
        Encoder(chat_tokenizer("{% for m in messages %}{{ m.content }}###{% endfor %}"), chat_of({}), 64, 96)
    with pytest.raises(
        InputError, match=r"refuses the prompt \(no users here\); .*data\.template\.chat=null"
    ):
        Encoder(chat_tokenizer("{{ raise_exception('no users here') }}"), chat_of({}), 64, 96)


TURN = "{% for m in messages %}<start_of_turn>{{ m.role }}\n"
ASSISTANT = "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TURN + "{% for c in m.content %}{{ c.text }}{% endfor %}<end_of_turn>{% endfor %}", "as it is"),
        (TURN + "{{ m.content[0]['text'] }}<end_of_turn>{% endfor %}", "as it is"),
        (TURN + "{{ m.content | upper }}<end_of_turn>{% endfor %}", "as it is"),
        (TURN.replace("messages", "messages[:1]") + "{{ m.content }}<end_of_turn>{% endfor %}", "as it is"),
        ("", "as it is"),
        (TURN + "{{ m.content + 1 }}{% endfor %}", "refuses the prompt"),
        ("{{ messages | length % 0 }}", "refuses the prompt"),
        ({"rag": CHATML, "tool_use": CHATML}, "refuses the prompt"),
    ],
)
def test_a_chat_template_that_fails_or_changes_messages(template, message):
    with pytest.raises(InputError, match=rf"{message}.*data\.template\.chat=null"):
        Encoder(chat_tokenizer(template), chat_of({}), 64, 96)


def test_a_turn_that_ends_only_where_another_follows():
    template = TURN + "{{ m.content }}{% if not loop.last %}<end_of_turn>\n{% endif %}{% endfor %}"
    assert chat_of({}).end(chat_tokenizer(template)) == "<end_of_turn>"


@pytest.mark.parametrize(
    ("template", "heading"),
    [
        (CHATML, ""),
        (GEMMA, ""),
        (LLAMA2, ""),
        (TURN + "{{ m.content }}<end_of_turn>\n{% endfor %}", "<start_of_turn>assistant"),
        (
            TURN + "{{ 'final: ' * loop.index0 }}{{ m.content }}<end_of_turn>{% endfor %}" + ASSISTANT,
            "final:",
        ),
    ],
)
def test_what_a_chat_template_writes_before_answers_alone_is_said(template, heading, tmp_path, capsys):
    tok = chat_tokenizer(template)
    assert chat_of("auto").heading(tok) == heading
    data = InstructionData(tok, None, None, {}, chat_of("auto"), cache_dir=str(tmp_path))
    data.announce_template()
    said = " ".join(capsys.readouterr().out.split())
    assert ("before an answer, but not at the end of a prompt" in said) == bool(heading)
    assert repr(heading) in said or not heading


def test_prompts_do_not_depend_on_the_day():
    template = (
        "{{ strftime_now('%d %B') }} {{ strftime_now( \"%Y\" ) }}" + TURN + "{{ m.content }}<eos>{% endfor %}"
    )
    tok, ours = chat_tokenizer(template), chat_of("auto")
    prompt = ours.render(tok, "sort", "")
    assert prompt.startswith("26 July 2024<start_of_turn>")
    own = ours.tokenizer_of_model(tok)
    asked = [{"role": "user", "content": "sort"}]
    assert own.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == prompt


def test_the_tokenizer_decides_on_its_chat_template_unless_told():
    tok, plain = chat_tokenizer(CHATML), tokenizer()
    template = Template("{instruction}", "{instruction}\n\n{input}")
    asked = "sort", "b a"
    in_chat = chat_of({"enable_thinking": False}).render(tok, *asked)
    assert in_chat.endswith("<think></think>")
    assert template.render(tok, *asked) == in_chat
    assert template.end(tok) == "<|im_end|>"
    assert template.render(plain, *asked) == chat_of(None).render(tok, *asked) == "sort\n\nb a"
    assert template.made_from(plain) == chat_of(None).made_from(tok)
    assert template.made_from(tok) != chat_of(None).made_from(tok)
    assert "in the tokenizer's chat template, and an answer ends with <|im_end|>" in template.choice(tok)
    assert "without the chat template that the tokenizer has" in chat_of(None).choice(tok)
    assert "the tokenizer has no chat template" in template.choice(plain)
    assert chat_of(None).choice(plain) is None
    with pytest.raises(InputError, match=r"data.template.chat=yes must be auto, variables"):
        chat_of("yes")


@pytest.mark.parametrize("template", TURNS, ids=["chatml", "gemma", "llama2"])
def test_the_tokenizer_of_a_model_makes_its_prompts_without_being_told_anything(template):
    tok = chat_tokenizer(template)
    ours = chat_of({"enable_thinking": False, "name": "a 'b'\n"})
    own = ours.tokenizer_of_model(tok)
    prompt = [{"role": "user", "content": "sort"}]
    assert own.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) == ours.render(
        tok, "sort", ""
    )
    assert own.eos_token == TURNS[template]
    assert own("sort")["input_ids"] == tok("sort", add_special_tokens=False)["input_ids"]
    assert ours.tokenizer_of_model(own).get_vocab() == tok.get_vocab()
    assert ours.render(own, "sort", "") == ours.render(tok, "sort", "")
    assert chat_of(None).tokenizer_of_model(tok).chat_template is None
    assert tok.eos_token == "<eos>"


def test_plain_text_keeps_the_eos_of_the_tokenizer(tmp_path, jsonl):
    tok = chat_tokenizer(GEMMA)
    documents = jsonl({"text": "some words"}, {"text": "other words"})
    data = InstructionData(
        tok, None, None, {}, chat_of({}), plain_text=str(documents), max_length=300, cache_dir=str(tmp_path)
    )
    assert data.tokenizer.eos_token == "<end_of_turn>"
    assert set(data.plain_tokens.ids.tolist()) >= {tok.eos_token_id}
    assert data.tokenizer.eos_token_id not in data.plain_tokens.ids.tolist()
