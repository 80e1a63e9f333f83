import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict

import pytest

from amid.data import builtin
from amid.data.builtin import EOS, PAD, TEMPLATE, TEMPLATE_WITH_INPUT, corpus, tokenizer
from amid.metrics import exact_answer


def prompt_text(example):
    template = TEMPLATE_WITH_INPUT if example.input else TEMPLATE
    return template.format(instruction=example.instruction, input=example.input)


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.mark.slow
def test_depends_on_its_arguments_alone_across_processes():
    script = (
        "import hashlib; from amid.data.builtin import corpus, tokenizer\n"
        "made = [repr(corpus(s, 3, 500)) for s in ('train', 'valid', 'test')]\n"
        "made.append(tokenizer().backend_tokenizer.to_str())\n"
        "digest = hashlib.sha256(''.join(made).encode()).hexdigest()\n"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", f"{script}print(digest)"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    here: dict[str, str] = {}
    exec(script, here)
    assert done.stdout.strip() == here["digest"]


def test_calls_leave_no_trace_on_later_calls():
    first = corpus("train", seed=1, size=200)
    corpus("test", seed=2, size=50)
    assert corpus("train", seed=1, size=200) == first


def test_a_smaller_size_is_a_prefix():
    assert corpus("train", size=100) == corpus("train", size=300)[:100]


def test_another_seed_is_another_corpus():
    assert corpus("train", seed=0, size=100) != corpus("train", seed=1, size=100)


def test_splits_share_no_prompt_even_across_seeds():
    prompts = {
        split: {(e.instruction, e.input) for seed in (0, 1) for e in corpus(split, seed, 6000)}
        for split in ("train", "valid", "test")
    }
    assert not prompts["train"] & prompts["valid"]
    assert not prompts["train"] & prompts["test"]
    assert not prompts["valid"] & prompts["test"]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_open_examples_have_distinct_references_and_closed_ones_a_single_answer(split):
    assert all(len(set(e.outputs)) == len(e.outputs) == 4 for e in corpus(split, size=500, kind="open"))
    assert all(len(e.outputs) == 1 for e in corpus(split, size=500, kind="closed"))


def test_small_evaluation_sets_repeat_no_prompt():
    examples = corpus("test", size=128)
    assert len({(e.instruction, e.input) for e in examples}) == 128


def test_train_examples_have_one_output_and_85_percent_are_open():
    examples = corpus("train")
    assert all(len(e.outputs) == 1 for e in examples)
    closed = {(e.instruction, e.input) for e in corpus("train", size=60000, kind="closed")}
    share = statistics.mean((e.instruction, e.input) not in closed for e in examples)
    assert share == pytest.approx(0.85, abs=0.01)


def test_numbers_are_sums_and_counts_that_end_in_a_number():
    examples = corpus("test", kind="numbers", size=60)
    assert {example.fields["family"] for example in examples} == {"add", "count"}
    assert exact_answer([e.outputs[0] for e in examples], [e.outputs for e in examples]) == [100] * 60
    assert len({(e.instruction, e.input) for e in examples}) > 50


def test_train_repeats_open_prompts_with_other_answers():
    answers = defaultdict(set)
    for example in corpus("train", size=40000, kind="open"):
        answers[example.instruction, example.input].update(example.outputs)
    assert statistics.mean(len(outputs) for outputs in answers.values()) > 2


def test_open_answers_fit_the_family_of_their_prompt():
    patterns = []
    for family in builtin._OPEN_FAMILIES:
        slots = iter(family.slots)
        answer = re.escape(family.answer).replace(r"\{\}", "{}")
        answer = re.sub(r"\{\}", lambda _, slots=slots: f"({'|'.join(next(slots)[1])})", answer)
        asks = {
            (i.format(a=a, b=b), n.format(a=a, b=b))
            for i, n in family.prompts
            for a in family.a
            for b in family.b
        }
        patterns.append((asks, re.compile(answer)))
    families = set()
    for example in corpus("test", size=700, kind="open"):
        (index,) = [i for i, (asks, _) in enumerate(patterns) if (example.instruction, example.input) in asks]
        assert all(patterns[index][1].fullmatch(output) for output in example.outputs)
        families.add((index, example.fields["family"]))
    assert len(families) == len({name for _, name in families}) == len(builtin._OPEN_FAMILIES)


def test_likeliest_word_depends_on_the_prompt_word():
    first_words = defaultdict(lambda: defaultdict(int))
    for example in corpus("train", size=40000, kind="open"):
        asked = re.fullmatch(r"Name a (\w+) \w+\.", example.instruction)
        if asked:
            first_words[asked[1]][example.outputs[0].split()[2]] += 1
    counts = first_words.values()
    assert statistics.mean(max(c.values()) / sum(c.values()) for c in counts) == pytest.approx(0.69, abs=0.05)
    assert len({max(c, key=c.get) for c in counts}) > 5


def right_answer(instruction, given):
    """The answer of a closed prompt, worked out without the code that made it."""
    numbers = [int(n) for n in re.findall(r"\d+", instruction)]
    if len(numbers) == 2:
        return f"The sum is {sum(numbers)}."
    if instruction.startswith("Sort"):
        return " ".join(sorted(given.split()))
    if instruction.startswith("Reverse"):
        return " ".join(given.split()[::-1])
    if instruction.startswith("Count"):
        return f"There are {len(given.split())}."
    if recolour := re.fullmatch(r"Make it (\w+)\.", instruction):
        return re.sub(r"the \w+", f"the {recolour[1]}", given, count=1)
    if "opposite" in instruction or "reverses" in instruction:
        word = instruction.rstrip("?.").split()[-1]
        (pair,) = [pair for pair in builtin._OPPOSITES if word in pair]
        return f"The opposite is {pair[1 - pair.index(word)]}."
    return f"{given} {dict(builtin._FACTS)[given.removesuffix(' is')]}."


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_closed_answers_are_right(split):
    for example in corpus(split, size=2000, kind="closed"):
        assert example.outputs == (right_answer(example.instruction, example.input),)


@pytest.mark.parametrize("family", builtin._CLOSED_FAMILIES)
def test_every_closed_family_is_in_every_split(family):
    asks = {ask[:2] for ask in builtin._CLOSED_FAMILIES[family]()}
    for split in ("train", "valid", "test"):
        found = [e for e in corpus(split, size=1000, kind="closed") if e.fields["family"] == family]
        assert found
        assert asks >= {(e.instruction, e.input) for e in found}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split=dev must be train, valid or test"),
        ({"split": "train", "kind": "half"}, "kind=half must be all, open, closed or numbers"),
        ({"split": "train", "size": 0}, "size=0 must be a whole number from 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        corpus(**arguments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "plain words",
        "  leading and trailing  ",
        "don't , stop .",
        "naïve 世界 🙂 Ωμέγα",
        "a\n\n\tb\r\n",
        "\x00é<",
    ],
)
def test_any_text_round_trips(tok, text):
    assert tok.decode(tok(text).input_ids) == text


def test_prompts_and_answers_round_trip(tok):
    for example in corpus("test", size=200):
        text = prompt_text(example) + example.outputs[0] + EOS
        ids = tok(text).input_ids
        assert tok.decode(ids) == text
        assert (
            tok.decode(ids[ids.index(tok.convert_tokens_to_ids("<response>")) :], skip_special_tokens=True)
            == (example.outputs[0])
        )


def test_fixed_parts_are_single_tokens_and_padding_is_apart_from_eos(tok):
    assert len(tok) == builtin.VOCAB_SIZE
    assert len(tok(TEMPLATE.format(instruction="")).input_ids) == 2
    assert len(tok(TEMPLATE_WITH_INPUT.format(instruction="", input="")).input_ids) == 3
    assert tok(EOS + PAD).input_ids == [tok.eos_token_id, tok.pad_token_id]
    assert tok.eos_token_id != tok.pad_token_id
    assert tok.padding_side == "left"


def test_sequences_are_short(tok):
    lengths = [len(tok(prompt_text(e) + e.outputs[0] + EOS).input_ids) for e in corpus("train", size=3000)]
    assert statistics.mean(lengths) == pytest.approx(23, abs=1)
    assert max(lengths) < 48


def test_saved_tokenizer_loads_unchanged(tok, tmp_path):
    tok.save_pretrained(tmp_path)
    loaded = type(tok).from_pretrained(tmp_path)
    text = " Say hello<response>Hello my dear friend!<eos>"
    assert loaded(text).input_ids == tok(text).input_ids
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == (PAD, EOS, "left")


def test_what_one_caller_changes_the_next_does_not_see():
    corpus("valid", size=5).clear()
    assert len(corpus("valid", size=5)) == 5
    n = len(tokenizer())
    tokenizer().add_tokens(["<new>"])
    assert len(tokenizer()) == n


def test_generated_and_trained_once_a_process(monkeypatch):
    first = corpus("test", seed=77, size=20), tokenizer()("a b")["input_ids"]
    monkeypatch.setattr("random.Random", lambda *_: pytest.fail("generated again"))
    monkeypatch.setattr("tokenizers.trainers.BpeTrainer", lambda *_, **__: pytest.fail("trained again"))
    assert (corpus("test", seed=77, size=20), tokenizer()("a b")["input_ids"]) == first
