"""Conversations: how rows are read, which tokens count, what the limits cut, and the errors."""

import json
from types import SimpleNamespace

import pytest
import torch
from chat import chat_tokenizer, messages, template_of

from amid.data import Example, InstructionData, Template
from amid.data.builtin import tokenizer
from amid.data.prompts import IGNORE, Encoder
from amid.data.rows import FIELDS, example_of
from amid.data.sources import loaded
from amid.errors import InputError
from amid.experiment import run
from amid.models import load_tokenizer
from amid.text import DataText, StudentText

VERBATIM = Template("{instruction}", "{instruction}\n\n{input}")
SHARED = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
TALK_SHARED = [
    {"from": role, "value": text}
    for role, text in zip(["human", "gpt"] * 2, ["one", "first", "two", "second"], strict=True)
]
TALK = messages("one", "first", "two", "second", "three", "third", system="Be brief.")


def read(row, place="here:7"):
    return example_of(row, place, FIELDS)[0]


def encoder(
    family="qwen2.5", max_prompt_length=400, max_length=900, template=VERBATIM, marks=False, **settings
):
    tok = tokenizer() if family is None else chat_tokenizer(template_of(family, marks))
    return Encoder(tok, template, max_prompt_length, max_length, **settings)


def counted(enc, row):
    """The text of each run of counted tokens, and the text of the prompt."""
    ids, n_prompt, _, _, counts = enc.example(read(row) if isinstance(row, dict) else row)
    counts = counts or [place >= n_prompt for place in range(len(ids))]
    runs = [[]]
    for token, counts_too in zip(ids, counts, strict=True):
        if counts_too:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [enc.tokenizer.decode(run) for run in runs if run], enc.tokenizer.decode(ids[:n_prompt])


@pytest.mark.parametrize(
    ("row", "form", "roles"),
    [
        ({"messages": TALK}, "messages", "suauaua"),
        ({"conversations": SHARED * 2}, "ShareGPT conversations", "uaua"),
        ({"conversations": messages("a", "b")}, "conversations", "ua"),
        ({"system": "s", "conversations": SHARED}, "ShareGPT conversations", "sua"),
        ({"prompt": "all", "prompt_id": "x", "messages": messages("a", "b")}, "messages", "ua"),
        ({"prompt": TALK[:2], "completion": TALK[2:3]}, "prompt and completion of messages", "sua"),
        ({"prompt": "a", "completion": messages("a", "b")[1:]}, "prompt and completion of messages", "ua"),
        ({"messages": messages("a", "b", "thanks")}, "messages", "ua"),
        ({"messages": json.dumps(messages("a", "b"))}, "messages", "ua"),
        (
            {side: json.dumps(of) for side, of in (("prompt", TALK[:2]), ("completion", TALK[2:3]))},
            "prompt and completion of messages",
            "sua",
        ),
        (
            {"prompt": json.dumps(TALK[:2]), "completion": "a"},
            "prompt and completion of messages",
            "sua",
        ),
        ({"conversations": SHARED[1:] + SHARED}, "ShareGPT conversations", "aua"),
    ],
)
def test_forms_of_conversations(jsonl, row, form, roles):
    found = loaded(str(jsonl({"instruction": "a", "output": "b"}, row | {"id": 3})))
    assert found.forms == {"instruction, input and output": 1, form: 1}
    example = found.examples[1]
    assert example.fields["id"] == 3
    assert "".join(message["role"][0] for message in example.conversation.messages) == roles


def test_an_answer_that_is_json_of_messages_is_text():
    answer = json.dumps(messages("hi"))
    assert read({"prompt": "Write the chat as JSON.", "completion": answer}).outputs == (answer,)
    assert read({"prompt": TALK[:2], "completion": answer}).outputs == (answer,)


def test_the_last_question_and_answer_stand_for_a_conversation():
    example = read({"messages": TALK})
    assert (example.instruction, example.outputs) == ("three", ("third",))
    assert (
        example.input
        == "system: Be brief.\n\nuser: one\n\nassistant: first\n\nuser: two\n\nassistant: second"
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {
        "messages": [{"role": "user", "content": parts, "name": None}, {"role": "assistant", "content": "c"}]
    }
    assert read(row).conversation.messages[0] == {"role": "user", "content": "ab"}


IMAGE = [{"type": "image", "image": "x.png"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, r"\(messages\) of no messages; give a message of the user"),
        ({"messages": messages("a")}, r"of user has no answer of the assistant; add one"),
        ({"conversations": SHARED[1:]}, r"of assistant has no answer of the assistant"),
        (
            {"messages": [*messages("a"), *messages("b", "c")]},
            r"of user, user, assistant has user, then user \(messages\[1\]\): the turns do not alternate; "
            r"after user comes assistant",
        ),
        (
            {"messages": [{"role": "tool", "content": "3"}, *messages("a", "b")]},
            r"begins with tool .*not alternate",
        ),
        (
            {"messages": messages("a", "b", "c", "d") + TALK[:1] + TALK[1:3]},
            r"system, user, … has assistant, then system",
        ),
        (
            {"messages": [{"role": "bard", "content": "a"}]},
            r"messages\[0\] has the unknown role 'bard'; name one of",
        ),
        (
            {"conversations": [{"speaker": "human", "text": "x"}]},
            r"conversations\[0\] has speaker, text; amid reads the keys role and content, or from and value",
        ),
        ({"messages": [{"role": "user", "text": "x"}]}, r"messages\[0\] has role, text; amid reads the keys"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"has the unknown role \"\['user'\]\"; name"),
        (
            {"messages": "hello"},
            r"field 'messages' is the string 'hello', not a list of messages; write \[{r",
        ),
        ({"conversations": None}, r"field 'conversations' is null, not a list of messages"),
        ({"messages": messages("a", None)}, r"field 'messages\[1\].content' is null, not a string"),
        (
            {"conversations": [{"from": "human", "value": 3}]},
            r"'conversations\[0\].value' is 3, not a string",
        ),
        (
            {"messages": [{"role": "user", "content": IMAGE}]},
            r"content\[0\] is of type 'image'; only text is read",
        ),
        ({"messages": ["a", "b"]}, r"messages\[0\] is no message; write {role: user"),
        (
            {"messages": [*messages("a"), messages("a", "b")[1] | {"weight": 0.5}]},
            r"messages\[1\].weight is 0.5; write 1 for an answer that counts, 0 for an answer that does not",
        ),
        (
            {"messages": [*messages("a"), messages("a", "b")[1] | {"train": False}]},
            r"of user, assistant has no answer that counts \(weight, train, loss of its messages\); let",
        ),
        (
            {"prompt": messages("a", "b"), "completion": messages("c")},
            r"the completion has no answer of the assistant that counts",
        ),
        (
            {"messages": messages("a", "b"), "history": [["x", "y"]]},
            r"'history' stands beside a conversation",
        ),
        ({"messages": messages("a", "b"), "tools": "[x"}, r"field 'tools' is no JSON"),
        ({"messages": messages("a", "b"), "tools": "[" * 10**5}, r"field 'tools' is no JSON"),
        ({"messages": "[" * 10**5}, r"field 'messages' is the string '\[\[.*, not a list of messages"),
        (
            {"messages": messages("a", "b"), "chat_template_kwargs": "{x"},
            r"'chat_template_kwargs' is no JSON",
        ),
        ({"messages": messages("a", "b"), "tools": ["x"]}, r"field 'tools' is no list of objects"),
        (
            {"messages": messages("a", "b"), "chat_template_kwargs": 3},
            r"'chat_template_kwargs' is 3; write an obj",
        ),
    ],
)
def test_a_mistake_in_a_conversation_is_one_line_with_its_place(row, message):
    with pytest.raises(InputError, match=rf"^here:7: .*{message}") as error:
        read(row)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_all_answers_count_or_the_last_alone():
    ends = [f"{text}<|im_end|>\n" for text in ("first", "second", "third")]
    runs, prompt = counted(encoder(), {"messages": TALK})
    assert runs == ends
    assert prompt.endswith("three<|im_end|>\n<|im_start|>assistant\n")
    assert counted(encoder(turns="last"), {"messages": TALK}) == (ends[-1:], prompt)
    enc = encoder()
    assert enc.tokenizer.decode(enc.prompt(read({"messages": TALK}))) == prompt
    assert counted(enc, {"prompt": TALK[:4], "completion": TALK[4:]}) == (ends[1:], prompt)
    smol = encoder("smollm2", marks=True)
    assert counted(smol, {"messages": TALK})[0] == [end.rstrip() for end in ends], "where its marks are"


@pytest.mark.parametrize("weight", [{"weight": 0}, {"train": False}, {"loss": False}])
@pytest.mark.parametrize(("family", "marks"), [(None, False), ("qwen2.5", False), ("smollm2", True)])
def test_an_answer_of_weight_0_does_not_count(weight, family, marks):
    enc = encoder(family, marks=marks)
    for places in ([2], [4], [2, 4], [4, 6]):
        talk = [
            message | (weight if number in places else {"weight": 1}) for number, message in enumerate(TALK)
        ]
        runs, prompt = counted(enc, {"messages": talk})
        kept = [number for number in (2, 4, 6) if number not in places]
        texts = [TALK[number]["content"] for number in kept]
        assert [run.partition("<")[0] for run in runs] == texts
        assert TALK[kept[-1] - 1]["content"] in prompt
        assert encoder(family, marks=marks, turns="last").prompt(read({"messages": talk})) == enc.prompt(
            read({"messages": talk})
        )
        assert read({"messages": talk}).outputs == (texts[-1],)


@pytest.mark.parametrize("family", [None, "llama3"])
def test_a_greeting_is_read_and_does_not_count(family):
    enc = encoder(family)
    runs, prompt = counted(enc, {"conversations": SHARED[1:] + TALK_SHARED})
    assert [run.partition("<")[0] for run in runs] == ["first", "second"]
    assert prompt.index("b") < prompt.index("one")
    assert encoder(family, turns="last").example(read({"conversations": SHARED[1:] + SHARED})).n_prompt > 1


def test_without_a_chat_template_each_question_stands_in_the_text_of_the_template():
    template = Template("Q: {instruction}\nA:", "{input} {instruction}")
    enc = encoder(None, template=template)
    assert counted(enc, {"messages": TALK}) == (
        ["first<eos>", "second<eos>", "third<eos>"],
        "Be brief.\n\nQ: one\nA:first<eos>Q: two\nA:second<eos>Q: three\nA:",
    )
    plain = read({"messages": messages("one", "first")})
    assert enc.example(plain) == enc.example(Example("one", "", ("first",)))
    assert enc.prompt(plain) == enc.prompt(Example("one", "", ("first",)))
    tool = {"role": "tool", "content": "3"}
    with pytest.raises(InputError, match="here:7: a conversation with tools needs a chat template"):
        enc.example(read({"messages": [*messages("a", "b"), tool, messages("a", "b")[1]]}))
    in_chat = encoder("qwen2.5")
    runs, prompt = counted(in_chat, {"messages": [*messages("a", "b"), tool, messages("a", "c")[1]]})
    assert (runs, "<tool_response>\n3" in prompt) == (["b<|im_end|>\n", "c<|im_end|>\n"], True)


@pytest.mark.parametrize("family", [None, "llama3"])
def test_what_the_limits_cut_of_a_conversation(family):
    template = Template("<{instruction}>", "{input}{instruction}")
    of = {"family": family, "template": template}
    row = {"messages": TALK}
    whole = encoder(**of).example(read(row))
    begins = [i for i in range(1, len(whole.ids)) if whole.counts[i] and not whole.counts[i - 1]]
    # All answers: the end is lost, and an answer is drawn after the last prompt within the limit.
    found = encoder(max_prompt_length=begins[1], max_length=begins[2] + 1, **of).example(read(row))
    assert (found.ids, found.counts) == (whole.ids[: begins[2] + 1], whole.counts[: begins[2] + 1])
    assert (found.n_prompt, found.prompt_cut, found.response_cut) == (begins[1], False, True)
    # The last answer: the first turns are lost, the system message stays.
    for limit, lost in ((begins[2], 0), (begins[2] - 1, 1), (begins[1] - 1, 2)):
        enc = encoder(max_prompt_length=limit, turns="last", **of)
        runs, prompt = counted(enc, row)
        assert [word in prompt for word in ("Be brief", "one", "two", "three")] == [
            True, lost < 1, lost < 2, True,
        ]  # fmt: skip
        assert runs[0].startswith("third")
        found = enc.example(read(row))
        assert found.prompt_cut == bool(lost)
        assert enc.prompt(read(row)) == found.ids[: found.n_prompt]
        assert found.n_prompt <= limit
    # A first question over the limit loses its end, and the conversation its other turns.
    long = {"messages": messages("word " * 50, "first", "two", "second")}
    for truncation in ("input", "right"):
        enc = encoder(max_prompt_length=begins[0], truncation=truncation, **of)
        (run,), prompt = counted(enc, long)
        assert run.startswith("first")
        assert len(enc.example(read(long)).ids[: enc.example(read(long)).n_prompt]) <= begins[0]
        assert ("<word" if family is None else "\n\nword") in prompt
    with pytest.raises(
        InputError, match=r"here:7: the messages before the last answer have \d+ tokens without"
    ):
        encoder(max_prompt_length=begins[0], **of).example(
            read({"messages": messages("a", "b", system="s " * 99)})
        )


def test_a_template_that_refuses_a_system_message_or_drops_messages():
    with pytest.raises(
        InputError,
        match=r"here:7: the tokenizer's chat template refuses a system message \(System role not.*first user",
    ):
        encoder("gemma").example(read({"messages": TALK}))
    with pytest.raises(
        InputError, match=r"^the tokenizer's .* a system message .*use data\.template\.system=null"
    ):
        encoder("gemma", template=Template("{instruction}", "{instruction}{input}", system="Be brief."))


LAST_TWO = "{% for m in messages[-2:] %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
SYSTEM_LAST = """{% set s = messages[0].content + '\n' if messages[0].role == 'system' else '' %}
{%- for m in messages if m.role != 'system' %}<|im_start|>
{{- s if loop.last and m.role == 'user' }}{{ m.content }}<|im_end|>{% endfor %}"""  # as some of Mistral's
NO_PROMPT_FOR_THOUGHTS = """{% for m in messages %}<|im_start|>
{%- if m.role == 'assistant' and '</think>' in m.content and loop.last %}{{ m.content }}
{%- elif m.role == 'assistant' %}<think></think>{{ m.content.split('</think>')[-1] }}
{%- else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}
{%- if add_generation_prompt %}<|im_start|><think></think>{% endif %}"""
THOUGHT = "<think>so</think>"


@pytest.mark.parametrize(
    ("chat_template", "texts", "turns", "remedies"),
    [
        (LAST_TWO, TALK, "all", []),
        (SYSTEM_LAST, TALK, "all", ["the system text in the first user message"]),
        (SYSTEM_LAST, TALK[:3], "last", ["the system text in the first user message"]),
        (
            NO_PROMPT_FOR_THOUGHTS,
            messages("one", f"{THOUGHT}first", "two", f"{THOUGHT}second"),
            "all",
            ["data.template.thinking=cut", "data.turns=last"],
        ),
    ],
)
def test_an_answer_that_cannot_be_found_names_what_helps(chat_template, texts, turns, remedies):
    enc = Encoder(chat_tokenizer(chat_template), VERBATIM, 100, 200, turns=turns)
    with pytest.raises(InputError, match=r"here:7: .* another way once others follow") as error:
        enc.example(read({"messages": texts}))
    always = ["a template with {% generation %} marks", "or data.template.chat=null"]
    assert str(error.value).partition("; use ")[2].split(", ") == [*remedies, *always]


@pytest.mark.parametrize(
    ("after_last", "earlier", "last"),
    [
        ("<|im_end|>\n{{ eos_token }}", "<|im_end|>\n", "<|im_end|>\n<eos>"),
        ("<|eot_id|>", "<|im_end|>\n", "<|eot_id|>"),
    ],
)
def test_a_template_that_ends_the_last_answer_in_another_way(after_last, earlier, last):
    tok = chat_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}"
        f"{after_last}{{% else %}}<|im_end|>\n{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    runs, _ = counted(Encoder(tok, VERBATIM, 100, 200), {"messages": TALK})
    assert runs == [f"first{earlier}", f"second{earlier}", f"third{last}"]


def test_a_system_message_of_the_template():
    template = Template("{instruction}", "{instruction} {input}", system="Be <|im_end|> kind.")
    enc = encoder(template=template)
    begin = "<|im_start|>system\nBe <|im_end|> kind.<|im_end|>\n<|im_start|>user\none<|im_end|>\n"
    asked = begin + "<|im_start|>assistant\n"
    assert enc.tokenizer.decode(enc.prompt(Example("one", "", ("first",)))) == asked
    assert counted(enc, {"messages": messages("one", "first")}) == (["first<|im_end|>\n"], asked)
    assert "kind" not in counted(enc, {"messages": TALK})[1], "a row's own system message is taken"
    own = template.tokenizer_of_model(enc.tokenizer)
    for talk, kind in ((messages("one"), True), (messages("one", system="s"), False)):
        text = own.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert ("kind" in text) == kind
        assert text == asked or not kind
    plain = encoder(None, template=template)
    assert plain.tokenizer.decode(plain.prompt(Example("one", "", ("x",)))) == "Be <|im_end|> kind.\n\none"


def test_a_chat_template_of_ones_own_stands_in_a_folder_with_the_tokenizer(tmp_path):
    chat_tokenizer(template_of("qwen2.5", marks=False)).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template_of("qwen2.5").replace("assistant", "helper"))
    enc = Encoder(load_tokenizer(str(tmp_path)), VERBATIM, 100, 200)
    assert enc.tokenizer.decode(enc.prompt(read({"messages": TALK}))).endswith("<|im_start|>helper\n")


def test_special_tokens_in_messages_stay_text():
    row = {"messages": messages("a <|im_end|> b", "c <|im_start|> d", "e", "f")}
    end = encoder().tokenizer.convert_tokens_to_ids("<|im_end|>")
    as_text, as_tokens = (encoder(special_tokens=how).example(read(row)) for how in ("text", "tokens"))
    assert (as_text.ids.count(end), as_tokens.ids.count(end)) == (5, 6)
    assert counted(encoder(), row)[0] == ["c <|im_start|> d<|im_end|>\n", "f<|im_end|>\n"]
    assert encoder().special_in_prompt(read(row)) == {"<|im_start|>", "<|im_end|>"}


@pytest.mark.parametrize("where", ["tool_calls", "reasoning_content", "tools", "chat_template_kwargs"])
def test_special_tokens_beside_the_contents_stay_text_too(where):
    template = (
        "{{ tools | tojson }}{{ note }}{% for m in messages %}<|im_start|>{{ m.role }}"
        "{{ m.reasoning_content }}{{ m.tool_calls }}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    value = "a <|im_end|> b"
    of_row = {
        "tools": [{"name": "f", "parameters": {"about": [value]}}],
        "chat_template_kwargs": {"note": value},
    }
    of_message = {"tool_calls": [{"function": {"arguments": {"x": value}}}], "reasoning_content": value}
    asked, answered = messages("a", "b")
    row = {"messages": [asked, answered | {k: v for k, v in of_message.items() if k == where}]}
    row |= {k: v for k, v in of_row.items() if k == where}
    tok = chat_tokenizer(template)
    end = tok.convert_tokens_to_ids("<|im_end|>")
    for how, ends in (("text", 2), ("tokens", 3)):
        enc = Encoder(tok, VERBATIM, 400, 900, special_tokens=how)
        ids = enc.example(read(row)).ids
        assert (ids.count(end), value in tok.decode(ids)) == (ends, True)
    assert enc.special_in_prompt(read(row)) == {"<|im_end|>"}


def data_of(folder, train, tok=None, valid=(), template=VERBATIM, **settings):
    limits = {"max_prompt_length": 100, "max_length": 200}
    return InstructionData(
        tok or chat_tokenizer(template_of("qwen3")),
        train,
        valid or train,
        {},
        template,
        cache_dir=str(folder / "cache"),
        **limits,
        **settings,
    )


def test_plain_text_ends_with_the_end_of_a_response_without_an_eos(tmp_path):
    tok = chat_tokenizer(template_of("qwen2.5"))
    tok.eos_token = None
    data = data_of(tmp_path, [Example("a", "", ("b",))], tok, plain_text=["one", "two"])
    end = tok.convert_tokens_to_ids("<|im_end|>")
    ids = data.plain_tokens.ids.tolist()
    assert (ids.count(end), ids[-1]) == (2, end)


def test_thoughts_are_kept_or_cut(tmp_path, jsonl, capsys):
    thought = "<think>\nso\n</think>\n\nyes"
    path = str(
        jsonl(
            {"messages": messages("a", thought, "b", "thought before</think>no")},
            {"instruction": "a", "output": ["[THINK]so[/THINK] yes", thought]},
        )
    )
    thinking = Template("{instruction}", "{instruction} {input}", chat={"enable_thinking": True})
    kept = data_of(tmp_path, path, template=thinking)
    assert kept.train_examples[1].outputs[1] == thought
    assert "thought before" in kept.tokenizer.decode(kept.train_tokens.ids)
    kept.announce_cuts(["train"])
    said = "Thoughts that the chat template leaves out of conversations, as in earlier turns: 1 of 2 rows"
    assert said in capsys.readouterr().out
    template = Template("{instruction}", "{instruction} {input}", thinking="cut")
    cut = data_of(tmp_path, path, template=template)
    first, second = cut.train_examples
    assert [m["content"] for m in first.conversation.messages] == ["a", "yes", "b", "no"]
    assert (first.outputs, second.outputs) == (("no",), ("yes", "yes"))
    assert "so" not in cut.tokenizer.decode(cut.train_tokens.ids)


def test_an_answer_of_thoughts_alone_is_an_empty_one_if_they_are_cut(jsonl):
    thought = "<think>so</think>"
    path = jsonl(
        {"messages": messages("a", "b", "c", thought)},
        {"instruction": "a", "output": [thought, "yes"]},
        {"instruction": "a", "output": thought},
    )
    kept = loaded(str(path)).examples
    assert [one.outputs for one in kept] == [(thought,), (thought, "yes"), (thought,)]
    for source in (str(path), kept):
        found = loaded(source, thinking="cut")
        assert ([one.outputs for one in found.examples], found.empty) == ([("yes",)], 2)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({}, "2 of 3 rows of data.train"),  # Qwen3 thinks only if asked to, and rows have thoughts
        ({"chat": {"enable_thinking": True}}, None),
        ({"thinking": "cut"}, None),
    ],
)
def test_a_note_on_prompts_that_end_with_an_empty_block_of_thoughts(tmp_path, jsonl, capsys, template, said):
    answer = {"role": "assistant", "content": "<think>\nso\n</think>\n\nyes"}
    question = {"role": "user", "content": "a"}
    data = data_of(
        tmp_path,
        str(
            jsonl(
                {"messages": [question, answer]},
                {"messages": messages("a", "b")},
                {"messages": [*TALK[:2], answer]},
            )
        ),
        template=Template("{instruction}", "{instruction} {input}", **template),
    )
    data.announce_cuts(["train"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Blocks of thoughts")]
    (prompt, trained) = (
        data.tokenizer.decode(ids)
        for ids in (data.encoder.prompt(data.train_examples[0]), data.train_tokens[0].ids)
    )
    assert trained.startswith(prompt) == (said is None)
    assert len(lines) == (said is not None)
    if said:
        (line,) = lines
        assert r"end with '<think>\n\n</think>\n\n'" in line
        assert f" there: {said}; data.template.thinking=cut" in line
        assert "data.template.chat={enable_thinking: true}" in line


def test_rows_batches_and_notes_of_conversations(tmp_path, jsonl, capsys):
    path = str(
        jsonl({"messages": TALK}, {"instruction": "one", "output": "first"}, {"messages": messages("a", "b")})
    )
    data = data_of(tmp_path, path)
    data.announce_cuts(["train", "valid"])
    assert capsys.readouterr().out.splitlines()[2:4] == [
        "Read as messages: 2 of 3 rows of data.train, 2 of 3 rows of data.valid",
        "Several answers, of which every one counts (or data.turns=last): 1 of 3 rows of data.train, "
        "1 of 3 rows of data.valid",
    ]
    tokens = data.train_tokens
    for packing in (False, True):
        packed = data_of(tmp_path, path, packing=packing)
        (batch,) = packed.micro_batches(list(tokens))
        labels = batch["labels"][batch["labels"] != IGNORE]
        assert int((batch["labels"] != IGNORE).sum()) == sum(tokens.counted)
        assert data.tokenizer.decode(labels).count("first") == 2
        assert data.tokenizer.decode(labels).count("second") == 1
    last = data_of(tmp_path, path, turns="last")
    assert last.train_tokens.counts is None or not torch.equal(last.train_tokens.counts, tokens.counts)
    assert last.train_tokens.fingerprint != tokens.fingerprint
    assert [row.ids.tolist() for row in last.train_tokens] == [row.ids.tolist() for row in tokens]
    again = data_of(tmp_path, path).train_tokens  # from the cache
    assert again.fingerprint == tokens.fingerprint
    assert torch.equal(again.counts, tokens.counts)


def test_an_empty_answer_in_the_middle_counts_its_end_and_is_noted(tmp_path, jsonl, capsys):
    silent = {"messages": messages("one", " ", "two", "second")}
    assert counted(encoder(), {"messages": messages("one", "", "two", "second")})[0] == [
        "<|im_end|>\n",
        "second<|im_end|>\n",
    ]
    calling = messages("one", "", "two", "second")
    calling[1]["tool_calls"] = [{"function": {"name": "f", "arguments": {}}}]
    path = str(jsonl(silent, {"messages": calling}, {"messages": messages("one", "")}))
    for turns, said in (("all", True), ("last", False)):
        data_of(tmp_path, path, turns=turns).announce_cuts(["train"])
        out = capsys.readouterr().out
        assert "Left out, as their output is empty: 1 of 3 rows of data.train" in out
        line = "an empty answer, of which the end of the turn alone counts: 1 of 2 rows of data.train"
        assert (line in out) == said


def test_plain_text_counts_whole_and_has_no_prompt(tmp_path, jsonl):
    path = str(jsonl({"text": "some words"}))
    data = data_of(tmp_path, path)
    (row,) = data.train_tokens
    assert data.tokenizer.decode(row.ids) == "<bos>some words<eos>"
    assert (row.n_prompt, data.train_tokens.counted) == (0, [len(row.ids) - 1])
    with pytest.raises(InputError, match=r"plain text .* has no prompt to answer"):
        data.encoder.prompt(data.train_examples[0])
    for data.valid_metric, text, message in (
        ("rouge_l", DataText(), r"data\.valid has plain text .* data\.valid_metric=null checkpoint=loss"),
        (None, StudentText(9), r"data\.train has plain text .* text=data"),
    ):
        with pytest.raises(InputError, match=message):
            run._check_prompts(SimpleNamespace(text=text), data)
    data._test = {"mine": path}
    with pytest.raises(InputError, match=r"data\.test\.mine has plain text .* null for no such set"):
        _ = data.test_examples
