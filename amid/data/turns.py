"""A conversation in a chat template: its text, and where each answer stands in it."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from amid.data.examples import Conversation
from amid.data.templates import Template
from amid.data.thoughts import NO_THOUGHT, cut_thoughts
from amid.errors import InputError

Span = tuple[int, int]
"""Where a part begins, and where it ends."""

_EMPTY_AT_THE_END = re.compile(rf"(?:{NO_THOUGHT.pattern})\Z")


class Written(NamedTuple):
    """A conversation as text."""

    text: str
    answers: list[Span]
    """The characters of each answer, from the end of its prompt to the beginning of the next message."""
    counted: list[Span]
    """The characters that count: the marks of the template (`{% generation %}`), or else the answers."""


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
            others follow, so that answers cannot be found.
    """
    text = template.rendered(tokenizer, conversation)
    numbers = conversation.answers[-1:] if last_alone else conversation.answers
    marks = None if conversation.given else template.marks(tokenizer, conversation)
    begun = _begun(conversation, marks)
    answers = []
    for number in numbers:
        found = _answer(template, tokenizer, conversation, text, number, end) or begun.get(number)
        if found is None:
            raise InputError(
                f"{conversation.place}: the tokenizer's chat template writes messages in another way once "
                f"others follow, so the answer in message {number + 1} cannot be found; use "
                + ("" if last_alone else "data.turns=last, ")
                + "a template with {% generation %} marks, or data.template.chat=null"
            )
        answers.append(found)
    if marks is None:
        counted = answers
    else:
        counted = [(max(a, answers[0][0]), b) if last_alone else (a, b) for a, b in marks]
        counted = [(a, b) for a, b in counted if a < b]
    if end not in text[answers[-1][0] :]:
        added = len(text), len(text) + len(end)
        text, counted = text + end, [*counted, added]
    return Written(text, answers, counted)


def _begun(conversation: Conversation, marks: Sequence[Span] | None) -> dict[int, Span]:
    """Returns the marks by the numbers of the messages, if there is one for each answer."""
    numbers = conversation.answers
    return dict(zip(numbers, marks, strict=True)) if marks and len(marks) == len(numbers) else {}


def _answer(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    text: str,
    number: int,
    end: str,
) -> Span | None:
    """Returns where the answer in message `number` stands in `text`; None if that cannot be found."""
    prompt = template.rendered(tokenizer, conversation, number, add_generation_prompt=True)
    if not text.startswith(prompt):  # some templates give thoughts to the last answer alone
        prompt = _EMPTY_AT_THE_END.sub("", prompt)
        if not text.startswith(prompt):
            return None
    begin = len(prompt)
    if number == len(conversation.messages) - 1:
        return begin, len(text)
    upto = template.rendered(tokenizer, conversation, number + 1)
    if not upto.startswith(prompt):
        return None
    first = len(text) - len(text[begin:].lstrip())
    bare = cut_thoughts(upto[begin:]).lstrip()  # what earlier answers are in such templates
    for start, answer in ((begin, upto[begin:]), (first, bare)):
        if text.startswith(answer, start):
            stop = start + len(answer)
            rest = text[stop:].lstrip()
            if end not in answer and rest.startswith(end):  # it ends a turn only where another one follows
                stop = len(text) - len(rest) + len(end)
            return begin, stop
    return None
