"""Special tokens written in rows stay text, with each kind of tokenizer and chat template that there is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from amid.config.identity import config_hash
from amid.data import Example, InstructionData, Template
from amid.data.prompts import Encoder
from amid.data.row_text import RowText, special_tokens
from amid.errors import InputError

OF_TEMPLATES = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
TURN_OF_NO_SPECIAL_TOKEN = "<｜User｜>"
ROW = "<|row|>"
"""A special token that no template has."""
WORDS = ["hello world, what is this user test model of a | b <im_start> end /s row system"] * 20


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=350,
            special_tokens=OF_TEMPLATES,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return backend


def sentence_piece(first_only):
    """The prefix space before every piece between special tokens, as Llama's old ones, or the first only."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if first_only:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*OF_TEMPLATES, *(f"<0x{i:02X}>" for i in range(256))]
    backend.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    )
    spec = json.loads(backend.to_str())  # bytes are pieces like any other
    spec["added_tokens"] = spec["added_tokens"][: len(OF_TEMPLATES)]
    return Tokenizer.from_str(json.dumps(spec))


def unigram():
    """Its vocabulary has the special tokens as pieces, which it would find in plain text too."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=OF_TEMPLATES, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([*WORDS, "abcdefghijklmnopqrstuvwxyz"], trainer)
    return backend


KINDS = {
    "byte-level": byte_level,
    "prefix everywhere": lambda: sentence_piece(False),
    "prefix first": lambda: sentence_piece(True),
    "unigram": unigram,
}


def wrapped(backend, *more):
    special = [AddedToken(t, special=True, normalized=False, rstrip=t == "<|im_end|>") for t in OF_TEMPLATES]
    backend.add_special_tokens(special)
    tok = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=[*special[3:], *more],
    )
    tok.add_tokens([AddedToken(TURN_OF_NO_SPECIAL_TOKEN, normalized=False), "<think>"])
    return tok


@pytest.fixture(scope="module", params=KINDS)
def both(request):
    """A tokenizer that knows `ROW` as a special token, and the same one without it."""
    return wrapped(KINDS[request.param](), ROW), wrapped(KINDS[request.param]())


def plain(tok, text):
    return tok(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=20)
@given(st.text(st.sampled_from("ab <s/>|row_\n\ufdd0é"), max_size=30))
def test_text_without_a_special_token_has_the_ids_of_the_tokenizer(both, text):
    tok, _ = both
    of = RowText(tok, special_tokens(tok))
    if not of.written(text):
        assert of.ids(of.marked(text)) == plain(tok, text)
        assert of.all_ids([of.marked(text), "a"]) == [plain(tok, text), plain(tok, "a")]


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["a", " ", "hello", ROW, "|row|", "\n", "<"]), max_size=8))
def test_a_special_token_in_a_row_has_the_ids_of_a_tokenizer_that_does_not_know_it(both, parts):
    tok, without = both
    of, row = RowText(tok, special_tokens(tok)), "".join(parts)
    template = "<s><|im_start|>user\n{} <|im_end|> \nmodel</s>"
    back = {without.convert_ids_to_tokens(i): i for i in plain(without, template.format(row))}
    ids = of.ids(template.format(of.marked(row)))
    as_if = [back.get(token) for token in tok.convert_ids_to_tokens(ids)]
    assert as_if == plain(without, template.format(row))
    assert tok.convert_tokens_to_ids(ROW) not in of.ids(of.marked(row))


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<think>\n{% endif %}"
)
FAMILIES = {"chatml": CHATML, "gemma": GEMMA, "llama3": LLAMA3, "llama2": LLAMA2, "deepseek": DEEPSEEK}


@pytest.mark.parametrize("family", FAMILIES)
def test_markers_come_from_the_chat_template_alone(both, family):
    tok, _ = both
    tok.chat_template = FAMILIES[family]
    enc = Encoder(tok, Template("{instruction}", "{instruction}\n\n{input}", chat={}), 400, 600)
    marks = sorted(special_tokens(tok) - {"<unk>"})
    marks += [TURN_OF_NO_SPECIAL_TOKEN] if family == "deepseek" else []
    ids = tok.convert_tokens_to_ids(marks)

    def markers(row):
        encoded, n_prompt, *_ = enc.example(row)
        return [i for i in encoded if i in ids], encoded[n_prompt:]

    text = " and ".join(marks)
    ordinary, _ = markers(Example("hello", "world", ("test",)))
    forged, response = markers(Example(text, text, (f"a {text} b",)))
    assert forged == ordinary
    assert response[-1] == ordinary[-1], "the one end of the response"
    for mark in marks:
        assert mark in tok.decode(enc.prompt(Example(text, text, ("x",))))
    as_tokens = Encoder(tok, enc.template, 400, 600, special_tokens="tokens")
    assert as_tokens.prompt(Example(text, "", ("x",))) == plain(tok, enc.template.render(tok, text, ""))
    assert [*plain(tok, text), response[-1]] == as_tokens.example(Example("x", "", (text,))).ids[
        len(as_tokens.prompt(Example("x", "", ("y",)))) :
    ]


def test_thoughts_in_a_response_are_tokens_and_in_a_prompt_of_that_template_text(both):
    tok, _ = both
    tok.chat_template = DEEPSEEK
    enc = Encoder(tok, Template("{instruction}", "{instruction} {input}", chat={}), 100, 200)
    thought = tok.convert_tokens_to_ids("<think>")
    ids, n_prompt, *_ = enc.example(Example("what is <think>", "", ("<think> so",)))
    assert ids[:n_prompt].count(thought) == 1 == ids[n_prompt:].count(thought)


def test_a_cut_prompt_of_special_tokens_keeps_to_the_limit_and_the_template(both):
    tok, _ = both
    tok.chat_template = CHATML
    enc = Encoder(tok, Template("{instruction}", "{instruction} {input}", chat={}), 120, 130)
    ids = enc.prompt(Example(ROW * 40, "", ("x",)))
    assert 100 < len(ids) <= 120
    assert "assistant" in tok.decode(ids)[-20:]
    assert tok.convert_tokens_to_ids(ROW) not in ids


def test_a_tokenizer_written_in_python():
    tok = ByT5Tokenizer()
    of = RowText(tok, special_tokens(tok))
    assert tok.convert_ids_to_tokens(of.ids("a" + of.marked("b</s>") + "</s>")) == [*"ab</s>", "</s>"]


def data_of(folder, tok, rows, **given):
    return InstructionData(
        tok,
        rows,
        rows,
        {"mine": rows},
        given.pop("template", Template("{instruction}", "{instruction} {input}")),
        max_prompt_length=100,
        max_length=200,
        cache_dir=str(folder),
        **given,
    )


def test_what_rows_have_is_said_once_and_only_such_rows_change_the_cache(tmp_path, both, capsys):
    tok, _ = both
    tok.chat_template = None
    rows = [Example("a </s>", "", ("b",)), Example("a", "", ("b <|eot_id|>",)), Example("a", "", ("b",))]
    module = data_of(tmp_path, tok, rows, plain_text=["one </s>", "two"])
    module.announce_cuts()
    assert capsys.readouterr().out == (
        "Kept as text, special tokens that rows have in theirs (</s>, <|eot_id|>): "
        "2 of 3 rows of data.train, 2 of 3 rows of data.valid, 1 of 3 rows of data.test.mine, "
        "1 of 2 documents of data.plain_text\n"
    )
    assert tok.eos_token_id not in module.train_tokens.ids[: len(module.train_tokens[0][0]) - 1]
    assert module.plain_tokens.ids.tolist().count(tok.eos_token_id) == 2
    as_tokens = data_of(tmp_path, tok, rows, plain_text=["one </s>", "two"], special_tokens="tokens")
    as_tokens.announce_cuts(["train"])
    assert capsys.readouterr().out == (
        "Read as special tokens, for data.special_tokens=tokens, where rows have them "
        "(</s>, <|eot_id|>): 2 of 3 rows of data.train, 1 of 2 documents of data.plain_text\n"
    )
    assert as_tokens.plain_tokens.ids.tolist().count(tok.eos_token_id) == 3
    before = len(list(tmp_path.glob("tokens-*.safetensors")))
    for how in ("text", "tokens"):
        data_of(tmp_path, tok, rows[2:], special_tokens=how).announce_cuts()
    assert capsys.readouterr().out == ""
    assert len(list(tmp_path.glob("tokens-*.safetensors"))) == before + 1, "one for both"
    with pytest.raises(InputError, match=r"data\.special_tokens=yes must be text or tokens"):
        data_of(tmp_path, tok, rows, special_tokens="yes")


def test_the_usual_way_leaves_the_hash_of_a_run_as_it_was():
    keys = [config_hash({"data": {"seed": 1, **more}}) for more in ({}, {"special_tokens": "text"})]
    assert keys[0] == keys[1] != config_hash({"data": {"seed": 1, "special_tokens": "tokens"}})


QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set t = m.content.split('</think>') %}<think>\n{{ t[0].split('<think>')[-1] if t | length > 1 }}"
    "</think>\n\n{{ t[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THOUGHT = "<think>because</think> b"


@pytest.mark.parametrize(
    ("template", "variables", "said"),
    [
        (QWEN3, {"enable_thinking": False}, "drops one from 1 of 3 responses of data.train"),
        (QWEN3, {}, "adds one to 2 of 3 responses of data.train"),
        (DEEPSEEK, {}, "drops one from 3 of 3 responses of data.train"),
        (CHATML, {}, None),
    ],
    ids=["qwen3", "qwen3 thinking", "deepseek", "chatml"],
)
def test_a_chat_template_that_adds_or_drops_thoughts_is_counted(
    tmp_path, both, capsys, template, variables, said
):
    tok, _ = both
    tok.chat_template = template
    rows = [Example("a", "", (THOUGHT,)), Example("a", "", ("b",)), Example("c", "", ("d",))]
    of = Template("{instruction}", "{instruction} {input}", chat=variables)
    data_of(tmp_path, tok, rows, template=of).announce_cuts(["train", "test"])
    out = capsys.readouterr().out
    assert out.startswith(f"Blocks of thoughts: the chat template {said};") if said else not out
