"""A saved student gives amid's answers in plain transformers, in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM

from amid.data import Example, Template
from amid.data.builtin import tokenizer
from amid.data.prompts import Encoder
from amid.generation.sampling import Sampling
from amid.models.lora import merge
from amid.models.saving import save
from amid.models.source import ModelSource, load_tokenizer

TURNS = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}"
    "{% if m.role == 'user' %}{{ eos_token }}{% else %}<end>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% if enable_thinking is false %}none{% endif %}"
    "{{ date_string }}{% endif %}"
)
PLAIN = Template("Do: {instruction}\nAnswer:", "Do: {instruction}\nWith: {input}\nAnswer:")
MESSAGE = Template("{instruction}", "{instruction}\n\n{input}")
CASES = {
    "base": {"template": PLAIN},
    "turn_end": {"template": MESSAGE, "chat": True},
    "turn_end_unused": {
        "template": Template("{instruction}", "{instruction}{input}", chat=None),
        "chat": True,
    },
    "lora": {"template": PLAIN, "lora": {"r": 4, "target_modules": "all-linear"}},
    "padded_rows": {"template": PLAIN, "rows": 24},
    "pad_is_eos": {"template": PLAIN, "pad": False},
    "bfloat16_of_a_pruned_gpt2": {"template": PLAIN, "family": "gpt2", "layers": [1], "dtype": "bfloat16"},
}
ASKED = [
    Example(f"say {word}", "", ("x",)) for word in ("one", "nothing at all", "the seven words of a line")
]

READ = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

for folder in sys.argv[1:]:
    asked = json.load(open(folder + "/asked.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if asked["chat"]:
        talks = [[{"role": "user", "content": text}] for text in asked["texts"]]
        inputs = tokenizer.apply_chat_template(
            talks, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(asked["texts"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=24)[:, inputs["input_ids"].shape[1]:]
    answer = pipeline("text-generation", model=folder)
    in_pipeline = [
        answer(one, max_new_tokens=24, return_full_text=False, do_sample=False)[0]["generated_text"]
        for one in (talks if asked["chat"] else asked["texts"])
    ]
    read = {
        "pipeline": in_pipeline,
        "answers": tokenizer.batch_decode(tokens, skip_special_tokens=True),
        "tokens": [row[row != tokenizer.pad_token_id].tolist() for row in tokens],
        "ids": [
            row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"])
        ],
        "dtype": str(model.dtype),
        "eos": [model.config.eos_token_id, model.generation_config.eos_token_id, tokenizer.eos_token_id],
        "pad": [model.config.pad_token_id, model.generation_config.pad_token_id, tokenizer.pad_token_id],
        "longest": [tokenizer.model_max_length, model.config.max_position_embeddings],
        "chat_template": tokenizer.chat_template,
    }
    json.dump(read, open(folder + "/read.json", "w"))
"""


def base_model(folder, chat=False, pad=True, rows=0, family="llama"):
    """A folder as a model comes from elsewhere: with a BOS of its own, and ways of answering amid leaves."""
    tok = tokenizer()
    tok.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": ["<turn>", "<end>"]})
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tok.bos_token_id)]
    )
    if chat:
        tok.chat_template = TURNS
    if not pad:
        tok.pad_token = None
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 256, "vocab_size": len(tok) + rows}
    more = (
        {"intermediate_size": 64}
        if family == "llama"
        else {"task_specific_params": {"text-generation": {"do_sample": True}}}
    )
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        family,
        **sizes,
        **more,
        initializer_range=0.3,
        tie_word_embeddings=True,
        eos_token_id=7,
        bos_token_id=8,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.update(eos_token_id=[7, 9], do_sample=True, temperature=0.3, max_new_tokens=3)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)


def ends_where(model, sampling, encoder, tok):
    """Makes the token that ends an answer likely after a while, and so a row that stands for no token."""
    prompts = [encoder.prompt(example) for example in ASKED]
    free = [row[0] for row in sampling.token_ids(model, tok, prompts, seed=1)]
    seen = free[0][5]
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[tok.eos_token_id] = 1.3 * weight[seen]
        if len(weight) > len(tok):
            weight[len(tok) + 3] = 2.0 * weight[free[1][2]]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each case what amid answers, and what plain transformers make of the saved folder."""
    sampling, ours, folders = Sampling(24, [1], temperature=0), {}, {}
    for name, case in CASES.items():
        of = {key: value for key, value in case.items() if key in ("chat", "pad", "rows", "family")}
        base, folders[name] = (tmp_path_factory.mktemp(name) for _ in range(2))
        base_model(base, **of)
        template, tok = case["template"], load_tokenizer(str(base))
        encoder = Encoder(tok, template, 120, 200)
        own = template.tokenizer_of_model(tok)
        source = ModelSource(str(base), **{k: case[k] for k in ("lora", "layers", "dtype") if k in case})
        model = source.load(tok)
        for weight in model.parameters():
            if weight.requires_grad and case.get("lora"):
                weight.data += 0.2 * torch.randn_like(weight)
        merge(model)
        ends_where(model, sampling, encoder, own)
        prompts = [encoder.prompt(example) for example in ASKED]
        answers = [row[0] for row in sampling.answers(model, own, prompts, seed=1)]
        tokens = [row[0] for row in sampling.token_ids(model, own, prompts, 1, vocabulary=len(own))]
        assert any(answer.ended for answer in answers)
        assert len({answer.text for answer in answers}) > 1
        ours[name] = {"answers": answers, "tokens": tokens, "ids": prompts, "dtype": str(model.dtype)}
        save(model, own, folders[name])
        in_chat = own.chat_template is not None
        rendered = [e.instruction if in_chat else template.render(tok, e.instruction, "") for e in ASKED]
        asked = {"chat": in_chat, "texts": rendered}
        (folders[name] / "asked.json").write_text(json.dumps(asked))
    subprocess.run([sys.executable, "-c", READ, *map(str, folders.values())], check=True, timeout=300)
    return {name: (ours[name], json.loads((folders[name] / "read.json").read_text())) for name in CASES}


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_give_the_answers(case, found):
    ours, theirs = found[case]
    assert theirs["ids"] == ours["ids"]
    assert [answer.text for answer in ours["answers"]] == [text.strip() for text in theirs["answers"]]
    assert theirs["pipeline"] == theirs["answers"]
    for mine, their, answer in zip(ours["tokens"], theirs["tokens"], ours["answers"], strict=True):
        assert their == (mine[:-1] if answer.ended and theirs["pad"][0] == theirs["eos"][0] else mine)
    assert len(set(theirs["eos"])) == len(set(theirs["pad"])) == 1
    assert theirs["longest"] == [256, 256]
    assert theirs["dtype"] == ours["dtype"]


def test_a_folder_has_the_chat_template_of_its_prompts_or_none(found):
    templates = {name: theirs["chat_template"] for name, (_, theirs) in found.items()}
    assert templates.pop("turn_end").endswith(TURNS)
    assert set(templates.values()) == {None}
