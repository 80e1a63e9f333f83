"""A conversation in a chat template: its text, and where each answer stands in it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from amid.data.examples import Conversation, counts
from amid.data.row_text import special_tokens
from amid.data.templates import Template
from amid.data.thoughts import EMPTY_AT_THE_END, cut_thoughts, without_thoughts
from amid.errors import InputError

Span = tuple[int, int]
"""Where a part begins, and where it ends."""


class Written(NamedTuple):
    """A conversation as text."""

    text: str
    begins: list[int]
    """Where each answer begins, at the end of its prompt."""
    counted: list[Span]
    """The characters that count: the marks of the template (`{% generation %}`), or else each answer up to
    the next message."""


def written(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    end: str,
    last_alone: bool = False,
) -> Written:
    """Writes a conversation in the tokenizer's chat template, and finds its answers.

    An answer begins where the prompt ends that the template writes for the messages before it. Marks count in
    place of answers where the template has them, unless the row separates prompt and completion.

    Args:
        template: the template.
        tokenizer: the tokenizer with the chat template.
        conversation: the conversation.
        end: the token that ends an answer. It is added to a last answer that the template leaves open.
        last_alone: whether the last answer is the only one to find and to count.

    Raises:
        InputError: if the chat template refuses the conversation, or writes messages in another way once
            others follow, so that answers cannot be found. It names what would help.
    """
    try:
        return _written(template, tokenizer, conversation, end, last_alone)
    except _NotFoundError as error:

        def helps(other: Conversation, last_alone: bool = last_alone) -> bool:
            try:
                _written(template, tokenizer, other, end, last_alone)
            except (_NotFoundError, InputError):
                return False
            return True

        remedies = [
            *_other_messages(template, conversation, helps),
            *["data.turns=last"] * (not last_alone and helps(conversation, True)),
            "a template with {% generation %} marks",
            "data.template.chat=null",
        ]
        raise InputError(
            f"{conversation.place}: the tokenizer's chat template writes messages in another way once "
            f"others follow, so the answer in message {error.number + 1} cannot be found; use "
            f"{', '.join(remedies[:-1])}, or {remedies[-1]}"
        ) from error


class _NotFoundError(Exception):
    """An answer that cannot be found in the text of its conversation."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _other_messages(
    template: Template, conversation: Conversation, helps: Callable[[Conversation], bool]
) -> Iterator[str]:
    """Yields the changes to the messages with which the answers can be found, as remedies of an error."""
    if helps(without_thoughts(conversation)):
        yield "data.template.thinking=cut"
    first, *others = conversation.messages
    if first["role"] != "system" or not others or others[0]["role"] != "user":
        return
    asked = {**others[0], "content": f"{first['content']}\n\n{others[0]['content']}"}
    if helps(replace(conversation, messages=(asked, *others[1:]), given=max(0, conversation.given - 1))):
        own = first["content"] == template.system
        yield f"{'data.template.system=null with ' * own}the system text in the first user message"


def _written(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    end: str,
    last_alone: bool,
) -> Written:
    """`written`, but with `_NotFoundError` for an answer that cannot be found."""
    text = template.rendered(tokenizer, conversation)
    marks = None if conversation.given else template.marks(tokenizer, conversation)
    marked = _by_answer(conversation, marks)
    begins, counted = [], []
    for number in conversation.answers[-1:] if last_alone else conversation.answers:
        begin = _begin(template, tokenizer, conversation, text, number)
        begin = marked[number][0] if begin is None and number in marked else begin
        stop: int | None = 0
        if marks is None and begin is not None:
            stop = _stop(template, tokenizer, conversation, text, number, begin, end)
        if begin is None or stop is None:
            raise _NotFoundError(number)
        begins.append(begin)
        counted.append((begin, stop))
    if marks is not None:
        least = begins[0] if last_alone else 0
        of_answers = marks if last_alone else _counted_marks(conversation, marks)
        counted = [(max(begin, least), stop) for begin, stop in of_answers if stop > least]
    if not counted:
        raise InputError(
            f"{conversation.place}: the {{% generation %}} marks of the tokenizer's chat template hold no "
            "answer; use a template with other marks or with none"
        )
    if end not in text[begins[-1] :]:
        counted.append((len(text), len(text) + len(end)))
        text += end
    return Written(text, begins, counted)


def _by_answer(conversation: Conversation, marks: Sequence[Span] | None) -> dict[int, Span]:
    """Returns the marks by the numbers of the messages, if there is one for each of the assistant's."""
    numbers = [number for number, of in enumerate(conversation.messages) if of["role"] == "assistant"]
    if marks is None or len(marks) != len(numbers):
        return {}
    return dict(zip(numbers, marks, strict=True))


def _counted_marks(conversation: Conversation, marks: Sequence[Span]) -> Sequence[Span]:
    """Returns the marks without the ones of answers that do not count.

    Raises:
        InputError: if it cannot be said which marks these are.
    """
    excluded = [
        number
        for number, message in enumerate(conversation.messages)
        if message["role"] == "assistant" and not counts(message)
    ]
    if not excluded:
        return marks
    marked = _by_answer(conversation, marks)
    if not marked:
        raise InputError(
            f"{conversation.place}: the tokenizer's chat template has not one {{% generation %}} mark for "
            f"each answer, so the answer in message {excluded[0] + 1}, which does not count, cannot be left "
            "out; use a template without marks"
        )
    return [mark for number, mark in marked.items() if number not in excluded]


def _begin(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    text: str,
    number: int,
) -> int | None:
    """Returns where the answer in message `number` begins in `text`; None if its prompt does not begin it."""
    prompt = template.rendered(tokenizer, conversation, number, add_generation_prompt=True)
    if not text.startswith(prompt):  # some templates give thoughts to the last answer alone
        prompt = EMPTY_AT_THE_END.sub("", prompt)
    return len(prompt) if text.startswith(prompt) else None


def _stop(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    text: str,
    number: int,
    begin: int,
    end: str,
) -> int | None:
    """Returns where the answer in message `number` stops in `text`; None if that cannot be found."""
    if number == len(conversation.messages) - 1:
        return len(text)
    upto = template.rendered(tokenizer, conversation, number + 1)
    if not upto.startswith(text[:begin]):
        return None
    first = len(text) - len(text[begin:].lstrip())
    bare = cut_thoughts(upto[begin:]).lstrip()  # what earlier answers are in such templates
    for start, answer in ((begin, upto[begin:]), (first, bare)):
        if text.startswith(answer, start):
            stop = start + len(answer)
            rest = text[stop:].lstrip()
            if end not in answer and rest.startswith(end):  # it ends a turn only where another one follows
                stop = len(text) - len(rest) + len(end)
            return stop
    return _after_end(tokenizer, conversation, text, upto, number, begin)


def _after_end(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    text: str,
    upto: str,
    number: int,
    begin: int,
) -> int | None:
    """Returns where the special token after the answer in message `number` ends, with white space after it.

    It serves templates that end the last answer in another way. `upto` is the text up to this answer, and
    must agree with `text` up to the answer's last word; None otherwise.
    """
    said = conversation.messages[number]["content"].strip()
    stop = text.find(said, begin) + len(said)
    if stop < begin + len(said) or not upto.startswith(text[:stop]):
        return None
    rest = text[stop:].lstrip()
    ends = [token for token in special_tokens(tokenizer) if rest.startswith(token)]
    after = rest[len(max(ends, key=len)) :].lstrip() if ends else None
    return None if after is None else len(text) - len(after)
