"""Lines that a run prints once about the rows of its data, before the training."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from amid.data.examples import Conversation, Example
from amid.data.prompts import Encoder
from amid.data.rows import has_text
from amid.data.sources import Loaded
from amid.data.thoughts import EMPTY_AT_THE_END, REASONING, THOUGHTS, thoughts_of

_TRAINED = ("train", "valid")
"""Sets with responses that are used, not only their prompts."""

_SHOWN = 4
"""How many special tokens a line names."""


def rows(sets: Mapping[str, Loaded]) -> Iterator[str]:
    """Yields which rows are read and their forms, how many are left out or have an empty prompt."""
    n = {name: of.rows for name, of in sets.items()}
    read = [
        f"{of.rows:,} of data.{name} from {_shown(of.sources)}" for name, of in sets.items() if of.sources
    ]
    if read:
        yield f"Rows: {'; '.join(read)}"
    for form in sorted({what for of in sets.values() for what in of.forms}):
        counts = {name: of.forms.get(form, 0) for name, of in sets.items()}
        yield f"Read as {form}: {_of(counts, n, 'rows')}"
    if empty := _of({name: of.empty for name, of in sets.items()}, n, "rows"):
        yield f"Left out, as their output is empty: {empty}"
    if unnamed := _of({name: of.unnamed for name, of in sets.items()}, n, "rows"):
        yield f"Left out, a column without a name: {unnamed}"
    silent = {
        name: sum(not row.is_text and not has_text(row.instruction + row.input) for row in of.examples)
        for name, of in sets.items()
    }
    if said := _of(silent, {name: len(of.examples) for name, of in sets.items()}, "rows"):
        yield f"Prompts of the template alone, as instruction and input are empty: {said}"


def turns(encoder: Encoder, sets: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """Yields how many conversations have several answers, which of the answers count, and how many of these
    are empty."""
    several = {
        name: sum(row.conversation is not None and len(row.conversation.answers) > 1 for row in rows)
        for name, rows in sets.items()
        if name in _TRAINED
    }
    if said := _of(several, {name: len(rows) for name, rows in sets.items()}, "rows"):
        which, other = {"all": ("every one", "last"), "last": ("the last one", "all")}[encoder.turns]
        yield f"Several answers, of which {which} counts (or data.turns={other}): {said}"
    silent = {
        name: sum(row.conversation is not None and _has_empty_answer(row.conversation) for row in rows)
        for name, rows in sets.items()
        if name in _TRAINED and encoder.turns == "all"
    }
    if said := _of(silent, {name: len(rows) for name, rows in sets.items()}, "rows"):
        yield f"Conversations with an empty answer, of which the end of the turn alone counts: {said}"


def cuts(encoder: Encoder, cut: Mapping[str, Tensor]) -> Iterator[str]:
    """Yields how many prompts and responses exceed the limits; `cut` [n, 2] marks both, by set and row."""
    prompts = {name: int(of[:, 0].sum()) for name, of in cut.items()}
    responses = {name: int(of[:, 1].sum()) for name, of in cut.items() if name in _TRAINED}
    n = {name: len(of) for name, of in cut.items()}
    told = {"max_prompt_length": _of(prompts, n, "prompts"), "max_length": _of(responses, n, "responses")}
    parts = [f"data.{name}={getattr(encoder, name)}: {found}" for name, found in told.items() if found]
    if parts:
        yield f"Cut to {'; to '.join(parts)}"


def special_tokens(
    encoder: Encoder, sets: Mapping[str, Sequence[Example]], documents: Sequence[str] = ()
) -> Iterator[str]:
    """Yields how many rows have a special token of the tokenizer in their text, and how it is read."""
    tokens: set[str] = set()

    def count(found: Iterable[set[str]]) -> int:
        """Counts the rows that have some, and keeps what they have."""
        n = 0
        for of in found:
            tokens.update(of)
            n += bool(of)
        return n

    counts = {
        name: count(encoder.special_in_prompt(row) | _in_response(encoder, name, row) for row in rows)
        for name, rows in sets.items()
    }
    of_documents = count(map(encoder.special_in, documents))
    n = {name: len(rows) for name, rows in sets.items()}
    said = [
        _of(counts, n, "rows"),
        _of({"plain_text": of_documents}, {"plain_text": len(documents)}, "documents"),
    ]
    if not any(said):
        return
    names = sorted(tokens)
    named = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    what = {
        "text": "Kept as text, special tokens that rows have in theirs",
        "tokens": "Read as special tokens, for data.special_tokens=tokens, where rows have them",
    }[encoder.special_tokens]
    yield f"{what} ({named}): {', '.join(filter(None, said))}"


def thoughts(encoder: Encoder, sets: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """Yields how many responses have other blocks of thoughts than the chat template would write.

    A template may add an empty block before a response, or drop the response's own block. The training uses
    responses as they are in their rows, after the prompt, which may have a block too.
    """
    if encoder.template.is_plain(encoder.tokenizer):
        return
    kinds = {name: _changed(encoder, rows) for name, rows in sets.items() if name in _TRAINED}
    n = {name: len(rows) for name, rows in sets.items()}
    parts = [
        f"{what} {said}"
        for kind, what in (("adds", "adds one to"), ("drops", "drops one from"))
        if (said := _of({name: of[kind] for name, of in kinds.items()}, n, "responses"))
    ]
    if parts:
        yield (
            f"Blocks of thoughts: the chat template {'; it '.join(parts)}; responses are trained on as they "
            "stand after the prompt; to have them otherwise, change data.template.chat (such as "
            "{enable_thinking: true}), or cut them out of rows: data.template.thinking=cut"
        )
    lost = {
        name: sum(_loses_thoughts(encoder, row.conversation) for row in rows if row.conversation is not None)
        for name, rows in sets.items()
        if name in _TRAINED
    }
    if said := _of(lost, n, "rows"):
        yield f"Thoughts that the chat template leaves out of conversations, as in earlier turns: {said}"
    other = {name: _opened_otherwise(encoder, rows) for name, rows in sets.items() if name in _TRAINED}
    if said := _of({name: of.total() for name, of in other.items()}, n, "rows"):
        block, _ = sum(other.values(), Counter()).most_common(1)[0]
        yield (
            f"Blocks of thoughts: prompts in evaluation end with {block!r}, and the conversations that are "
            f"trained on have other thoughts or none there: {said}; data.template.thinking=cut trains "
            "without the thoughts; data.template.chat={enable_thinking: true} leaves the block out of "
            "prompts, if the template knows this variable"
        )


def _shown(sources: Sequence[str]) -> str:
    return sources[0] if len(sources) == 1 else f"{len(sources)} sources, {sources[0]} and others"


def _in_response(encoder: Encoder, name: str, row: Example) -> set[str]:
    return encoder.special_in(row.outputs[0]) if name in _TRAINED else set()


def _changed(encoder: Encoder, rows: Sequence[Example]) -> Counter[str]:
    """Counts the rows for which the template `adds` or `drops` a block of thoughts."""
    counts: Counter[str] = Counter()
    plain = 0
    for row in rows:
        if row.conversation is not None or row.is_text:
            continue  # the template writes the answers itself, or there is no template
        if THOUGHTS.search(row.outputs[0]):
            counts[_change(encoder, row.outputs[0])] += 1
        else:
            plain += 1
    if plain:
        counts[_change(encoder, "x")] += plain
    return counts


def _has_empty_answer(conversation: Conversation) -> bool:
    answers = (conversation.messages[number] for number in conversation.answers)
    return any(not has_text(answer["content"]) and not answer.get("tool_calls") for answer in answers)


def _loses_thoughts(encoder: Encoder, conversation: Conversation) -> bool:
    """Returns whether the template leaves out a thought of an answer."""
    answers = (message["content"] for message in conversation.messages if message["role"] == "assistant")
    thoughts = [thought for answer in answers for thought in thoughts_of(answer)]
    if not thoughts:
        return False
    text = encoder.template.rendered(encoder.tokenizer, encoder.template.opened(conversation))
    return any(thought not in text for thought in thoughts)


def _opened_otherwise(encoder: Encoder, rows: Sequence[Example]) -> Counter[str]:
    """Counts the conversations with a last answer that begins in another way than its prompt ends.

    They are counted by the end of the prompt: what the chat template writes there and not in the text that
    is trained on.
    """
    counts: Counter[str] = Counter()
    plain = 0
    for conversation in (row.conversation for row in rows):
        if conversation is None:
            continue
        answer = conversation.messages[-1]
        if THOUGHTS.search(answer["content"]) or any(answer.get(field) for field in REASONING):
            counts[_lost_opening(encoder, conversation)] += 1
        else:
            plain += 1
    if plain:
        counts[_lost_opening(encoder, _PLAIN)] += plain
    del counts[""]
    return counts


_PLAIN = Conversation(({"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}))
"""It stands for all conversations without thoughts in the last answer."""


def _lost_opening(encoder: Encoder, conversation: Conversation) -> str:
    """Returns the end of the last prompt from its block of thoughts on, if the conversation does not go on
    from it; else ""."""
    opened = encoder.template.opened(conversation)
    n = len(opened.messages) - 1
    prompt = encoder.template.rendered(encoder.tokenizer, opened, n, add_generation_prompt=True)
    found = EMPTY_AT_THE_END.search(prompt)
    text = encoder.template.rendered(encoder.tokenizer, opened)
    return "" if found is None or text.startswith(prompt) else found[0]


def _change(encoder: Encoder, response: str) -> str:
    """Returns what the chat template does to a response's blocks of thoughts: `adds`, `drops` or nothing."""
    trained, written = encoder.template.turns(encoder.tokenizer, response)
    before, after = (Counter(_tags(text)) for text in (trained, written))
    return "" if before == after else "adds" if after > before else "drops"


def _tags(text: str) -> list[str]:
    """Returns "" for each beginning of thoughts and "/" for each end."""
    return [found[1] or found[2] or "" for found in THOUGHTS.finditer(text)]


def _of(counts: Mapping[str, int], n: Mapping[str, int], what: str) -> str:
    """`3 of 10 rows of data.train, 1 of 5 rows of data.valid`; sets without any are left out."""
    return ", ".join(f"{k:,} of {n[name]:,} {what} of data.{name}" for name, k in counts.items() if k)
