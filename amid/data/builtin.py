"""A small generated instruction corpus and its tokenizer, so that experiments run without a download.

Most prompts are open: many answers are acceptable, some far likelier than others, and the likeliest ones
depend on the words of the prompt. The rest are closed and have one right answer. Open prompts show how
diverse a model is, both kinds show how good it is.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from amid.data.examples import Example
from amid.settings import check_arguments, nodes

TEMPLATE = "<instruction>{instruction}<response>"
"""The prompt of an example without an input; the response and `EOS` follow it."""

TEMPLATE_WITH_INPUT = "<instruction>{instruction}<input>{input}<response>"
"""The prompt of an example with an input; the response and `EOS` follow it."""

EOS = "<eos>"
PAD = "<pad>"
VOCAB_SIZE = 1000
_SPECIAL = [EOS, PAD, "<instruction>", "<input>", "<response>"]

_T = TypeVar("_T")

_OPEN_SHARE = 0.85
_ZIPF = 2.2  # the likeliest of ten choices has probability 0.69
_REFERENCES = 4


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PEOPLE = _words(
    "teacher doctor farmer sailor baker singer painter driver writer gardener student soldier "
    "nurse pilot lawyer cook hunter tailor judge poet dancer miner guard monk"
)
_ANIMALS = _words(
    "dog cat horse parrot rabbit goat turtle fox mouse donkey lamb duck "
    "hawk pony crow pig bear wolf frog swan hen bee deer snake"
)
_TRAITS = _words(
    "brave lazy clever shy noisy gentle hungry proud tiny grumpy quick sleepy "
    "calm wild loyal strange kind rude rich poor vain jolly fat cold"
)
_PLACES = _words(
    "forest harbour city village desert castle market island valley garden school station "
    "museum library beach cave park field hotel temple prison theatre bank farm"
)
_THINGS = _words(
    "river bridge lamp house ship tower road clock chair coat mountain window "
    "door boat table mirror wall tent cart bed fence gate train statue"
)
_TIMES = _words(
    "morning evening spring summer autumn winter night holiday "
    "noon weekend storm party meeting wedding feast month"
)
_COLOURS = _words("red blue green yellow white black brown grey pink orange")
_FEELINGS = _words(
    "tired angry sad happy nervous bored lonely excited "
    "jealous worried curious confused guilty hopeful afraid sick"
)
_TOPICS = _words(
    "work money exams love health sleep travel music sport friends family cooking "
    "homework winter age war crime rain taxes food books news art school"
)


@dataclass(frozen=True)
class _OpenFamily:
    """Prompts (instruction, input) with two free words, and an answer with free words that follow a Zipf law.

    A slot is a letter and its choices. The word of the prompt at that letter, `a` or `b`, decides the ranking
    of the choices, and so the likeliest choice.
    """

    name: str
    prompts: tuple[tuple[str, str], ...]
    a: tuple[str, ...]
    b: tuple[str, ...]
    answer: str
    slots: tuple[tuple[str, tuple[str, ...]], ...]


_OPEN_FAMILIES = (
    _OpenFamily(
        name="pet",
        prompts=(
            ("Name a {a} {b}.", ""),
            ("Name this pet.", "a {a} {b}"),
            ("What do I call my {a} {b}?", ""),
        ),
        a=_TRAITS,
        b=_ANIMALS,
        answer="Call it {} {} the {} {}.",
        slots=(
            ("a", _words("Captain Lady Little Sir Miss Doctor Prince Baby Uncle King")),
            ("b", _words("Max Bella Rosie Oscar Luna Felix Ruby Bruno Daisy Rex")),
            ("a", _words("Great Bold Swift Quiet Wise Grim Fair Mighty Merry Mad")),
            ("b", _words("Hunter Jumper Dreamer Fighter Dancer Singer Walker Ruler Thinker Sleeper")),
        ),
    ),
    _OpenFamily(
        name="greet",
        prompts=(
            ("Greet a {a} at the {b}.", ""),
            ("Say hello to the {a} this {b}.", ""),
            ("Write a greeting for the {b}.", "to a {a}"),
        ),
        a=_PEOPLE,
        b=_TIMES,
        answer="Hello my {} {}, have a {} {}!",
        slots=(
            ("a", _words("dear good old wise noble best sweet honest young kind")),
            ("b", _words("friend neighbour guest helper hero partner master brother cousin sister")),
            ("a", _words("lovely sunny peaceful pleasant quiet wonderful bright safe warm merry")),
            ("b", _words("day time walk rest break meal journey hour party week")),
        ),
    ),
    _OpenFamily(
        name="describe",
        prompts=(
            ("Describe the {a} in the {b}.", ""),
            ("How does the {a} look?", "in the {b}"),
            ("Picture a {a} near the {b}.", ""),
        ),
        a=_THINGS,
        b=_PLACES,
        answer="It is {} and {} with {} {}.",
        slots=(
            ("a", _words("wide narrow tall broken heavy round shiny dusty wooden golden")),
            ("b", _words("cold dark silent misty sunny empty ancient green holy dry")),
            ("a", _words("many few strange small huge wild pale bright red black")),
            ("b", _words("birds flowers stones people shadows trees lights leaves clouds flags")),
        ),
    ),
    _OpenFamily(
        name="meal",
        prompts=(
            ("Plan a meal for a {a} at the {b}.", ""),
            ("What can a {a} eat this {b}?", ""),
            ("Suggest a menu.", "a {a}, {b}"),
        ),
        a=_PEOPLE,
        b=_TIMES,
        answer="Try {} {} with {} and {}.",
        slots=(
            ("a", _words("hot cold fresh spicy sweet roasted plain salted baked raw")),
            ("b", _words("soup fish pasta rice chicken salad pie beef stew pizza")),
            ("a", _words("bread cheese potatoes beans onions corn spinach butter nuts eggs")),
            ("b", _words("tea juice milk coffee water lemonade cider cocoa wine beer")),
        ),
    ),
    _OpenFamily(
        name="story",
        prompts=(
            ("Begin a story of a {a} in the {b}.", ""),
            ("Start a tale.", "{a}, {b}"),
            ("What happened to a {a} at the {b}?", ""),
        ),
        a=_PEOPLE,
        b=_PLACES,
        answer="One {} night, somebody {} a {} {}.",
        slots=(
            ("a", _words("rainy foggy quiet golden frozen gloomy fine stormy hot windy")),
            ("b", _words("found lost stole built bought hid broke followed saw sold")),
            ("a", _words("secret silver magic tiny giant cursed strange heavy holy rusty")),
            ("b", _words("key map ring letter sword book coin crown box bell")),
        ),
    ),
    _OpenFamily(
        name="advise",
        prompts=(
            ("I feel {a} about {b}.", ""),
            ("Advise someone {a} about {b}.", ""),
            ("Help my mood.", "{a}, because of {b}"),
        ),
        a=_FEELINGS,
        b=_TOPICS,
        answer="Just {} and {} with a {} {}.",
        slots=(
            ("a", _words("breathe rest wait smile stretch walk read sing laugh write")),
            ("b", _words("talk plan start practise relax share learn celebrate play argue")),
            ("a", _words("good patient cheerful quiet helpful wise funny calm close new")),
            ("b", _words("friend teacher coach doctor sister group brother boss partner neighbour")),
        ),
    ),
    _OpenFamily(
        name="gift",
        prompts=(
            ("Choose a gift for a {a} {b}.", ""),
            ("What would please the {a} {b}?", ""),
            ("Pick a present.", "for a {a} {b}"),
        ),
        a=_TRAITS,
        b=_PEOPLE,
        answer="Maybe a {} {} or a {} {}.",
        slots=(
            ("a", _words("soft blue leather warm modern painted silk simple rare cheap")),
            ("b", _words("scarf hat watch bag pen cup lamp blanket basket knife")),
            ("a", _words("funny long huge red smart striped short French secret light")),
            ("b", _words("novel game ticket cake plant poster record puzzle camera drum")),
        ),
    ),
)

_OPPOSITES = tuple(
    pair.split("/")
    for pair in _words(
        "hot/cold big/small tall/short fast/slow happy/sad old/young rich/poor light/dark hard/soft wet/dry "
        "early/late open/closed full/empty strong/weak loud/quiet clean/dirty near/far high/low thick/thin "
        "sweet/sour"
    )
)
_FACTS = (
    ("The colour of grass", "green"),
    ("The colour of snow", "white"),
    ("The colour of coal", "black"),
    ("The colour of the sky", "blue"),
    ("The number of legs of a spider", "eight"),
    ("The number of legs of a horse", "four"),
    ("The number of days in a week", "seven"),
    ("The number of months in a year", "twelve"),
    ("The home of a bee", "hive"),
    ("The home of a bird", "nest"),
    ("The home of a king", "castle"),
    ("The young of a cat", "kitten"),
    ("The young of a dog", "puppy"),
    ("The young of a cow", "calf"),
    ("The young of a sheep", "lamb"),
    ("The capital of France", "Paris"),
    ("The capital of Spain", "Madrid"),
    ("The capital of Italy", "Rome"),
    ("The capital of Japan", "Tokyo"),
    ("The capital of Egypt", "Cairo"),
)


def _recolour() -> Iterator[tuple[str, str, str]]:
    for colour, other in itertools.permutations(_COLOURS, 2):
        for thing in _THINGS:
            yield f"Make it {other}.", f"the {colour} {thing}", f"the {other} {thing}"


def _sort() -> Iterator[tuple[str, str, str]]:
    for words in itertools.permutations(_ANIMALS, 3):
        yield "Sort these words.", " ".join(words), " ".join(sorted(words))


def _reverse() -> Iterator[tuple[str, str, str]]:
    for words in itertools.permutations(_THINGS, 3):
        yield "Reverse these words.", " ".join(words), " ".join(reversed(words))


def _add() -> Iterator[tuple[str, str, str]]:
    for ask in ("What is {} plus {}?", "Add {} and {}.", "Compute {} + {}."):
        for a, b in itertools.product(range(10), repeat=2):
            yield ask.format(a, b), "", f"The sum is {a + b}."


def _fact() -> Iterator[tuple[str, str, str]]:
    for ask in ("Complete the fact.", "Finish this.", "State the fact.", "Fill the gap.", "How does it end?"):
        for subject, value in _FACTS:
            yield ask, f"{subject} is", f"{subject} is {value}."


def _opposite() -> Iterator[tuple[str, str, str]]:
    for ask in ("What is the opposite of {}?", "Name the opposite of {}.", "Which word reverses {}?"):
        for pair in _OPPOSITES:
            for word, other in (pair, reversed(pair)):
                yield ask.format(word), "", f"The opposite is {other}."


def _count() -> Iterator[tuple[str, str, str]]:
    for n in range(1, 5):
        for words in itertools.combinations(_COLOURS, n):
            yield "Count the colours.", " ".join(words), f"There are {n}."


_CLOSED_FAMILIES = {
    "recolour": _recolour,
    "sort": _sort,
    "reverse": _reverse,
    "add": _add,
    "fact": _fact,
    "opposite": _opposite,
    "count": _count,
}
_NUMBERS = ("add", "count")
"""The closed families with answers that end in a number."""


def _prompts(family: _OpenFamily) -> Iterator[tuple[str, str, tuple[str, str]]]:
    for instruction, input in family.prompts:
        for a, b in itertools.product(family.a, family.b):
            yield instruction.format(a=a, b=b), input.format(a=a, b=b), (a, b)


def _split_of(instruction: str, input: str) -> str:
    """The split a prompt belongs to: a tenth of them are for validation and a tenth for the test."""
    digest = hashlib.sha256(f"{instruction}\n{input}".encode()).digest()
    return {0: "test", 1: "valid"}.get(int.from_bytes(digest) % 10, "train")


def _pool(
    prompts: Iterable[tuple[str, str, _T]], split: str, rng: random.Random
) -> Iterator[tuple[str, str, _T]]:
    """Go through the prompts of a split in random order, again and again."""
    pool = [prompt for prompt in prompts if _split_of(prompt[0], prompt[1]) == split]
    while True:
        rng.shuffle(pool)
        yield from pool


@functools.cache
def _ranked(words: tuple[str, ...], key: str) -> tuple[str, ...]:
    return tuple(random.Random(key).sample(words, len(words)))


@functools.cache
def _zipf(n: int) -> list[float]:
    return list(itertools.accumulate(rank**-_ZIPF for rank in range(1, n + 1)))


def _answer(family: _OpenFamily, a: str, b: str, seed: int, rng: random.Random) -> str:
    words = []
    for slot, (letter, choices) in enumerate(family.slots):
        prompt_word = a if letter == "a" else b
        ranked = _ranked(choices, f"{seed}/{family.answer}/{slot}/{prompt_word}")
        words += rng.choices(ranked, cum_weights=_zipf(len(ranked)))
    return family.answer.format(*words)


def corpus(split: str, seed: int = 0, size: int = 12000, kind: str = "all") -> list[Example]:
    """Generate a split of the built-in corpus: `size` examples that depend on the arguments alone.

    Args:
        split: "train", "valid" or "test". No prompt is in two splits, whatever the seeds.
        seed: Chooses the prompts and answers, and which answers each prompt word prefers. Another seed is
            another task on the same vocabulary, so take all splits of one experiment with one seed.
        size: Number of examples. A family repeats a prompt only after all its others of the split.
        kind: "open" (many acceptable answers), "closed" (one), "numbers" (one, which ends in a number) or
            "all" (85% open, the others closed).

    Returns:
        Examples with one output in "train"; in "valid" and "test", open ones with four distinct outputs.
        Their `fields` have the `family` of the prompt, such as `greet` or `sort`.
    """
    check_arguments("", nodes.BuiltinCorpus, locals())
    return list(_corpus(split, seed, size, kind))


@functools.lru_cache(maxsize=16)  # the runs of a sweep ask for the same ones
def _corpus(split: str, seed: int, size: int, kind: str) -> tuple[Example, ...]:
    rng = random.Random(f"{seed}/{split}/{kind}")
    open_share = {"all": _OPEN_SHARE, "open": 1.0}.get(kind, 0.0)
    references = 1 if split == "train" else _REFERENCES
    open_pools = [(family, _pool(_prompts(family), split, rng)) for family in _OPEN_FAMILIES]
    closed = _NUMBERS if kind == "numbers" else _CLOSED_FAMILIES
    closed_pools = [(name, _pool(_CLOSED_FAMILIES[name](), split, rng)) for name in closed]
    examples = []
    for _ in range(size):
        if rng.random() < open_share:
            family, pool = rng.choice(open_pools)
            instruction, input, (a, b) = next(pool)
            outputs: dict[str, None] = {}  # keeps the order in which the answers were drawn
            while len(outputs) < references:
                outputs[_answer(family, a, b, seed, rng)] = None
            examples.append(Example(instruction, input, tuple(outputs), {"family": family.name}))
        else:
            name, of_one_answer = rng.choice(closed_pools)
            instruction, input, output = next(of_one_answer)
            examples.append(Example(instruction, input, (output,), {"family": name}))
    return tuple(examples)


def tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer of the built-in corpus, always the same one; any text round-trips.

    It is trained on the training split of seed 0, whatever the seed of an experiment. `<eos>`, `<pad>` and
    the fixed parts of the templates are special tokens. Padding is on the left.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_backend()),
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=_SPECIAL[2:],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _trained_backend() -> str:
    """Returns the trained tokenizer as JSON; each caller makes a tokenizer of its own from it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in _SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for e in corpus("train") for text in (e.instruction, e.input, *e.outputs))
    backend.train_from_iterator(texts, trainer)
    text: str = backend.to_str()
    return text
