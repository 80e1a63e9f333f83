"""From an example to token ids: the template around it, the limits on its length, the counted tokens."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from amid.data.examples import Conversation, Example, Message
from amid.data.row_text import RowText, marks_in, special_tokens
from amid.data.templates import Template
from amid.data.thoughts import THOUGHTS
from amid.data.turns import Span, written
from amid.errors import InputError
from amid.settings import check_arguments, check_data, nodes

IGNORE = -100
"""The label of a token that is not counted."""

Truncation = Literal["input", "right"]
"""The part that is cut from a prompt over the limit."""

SpecialTokens = Literal["text", "tokens"]
"""How to read a special token of the tokenizer that is written in a row."""

Turns = Literal["all", "last"]
"""The answers of a conversation that count."""


class Encoded(NamedTuple):
    """An example as token ids, and what it lost to the limits on length."""

    ids: list[int]
    """Token ids of prompt, response (the first output) and EOS."""
    n_prompt: int
    """The length of the prompt. In a conversation, the prompt is what stands before the last answer that
    begins within `max_prompt_length`."""
    prompt_cut: bool
    """Whether the prompt lost a part."""
    response_cut: bool
    """Whether the response lost its end, and with it EOS; or a conversation its last tokens."""
    counts: list[bool] | None = None
    """Whether each token counts; None if the tokens after the prompt count, and no others."""

    @property
    def counted(self) -> int:
        """The number of tokens that count."""
        return len(self.ids) - self.n_prompt if self.counts is None else sum(self.counts)


@dataclass(frozen=True)
class Encoder:
    """Turns examples into token ids, within the limits on length.

    Args:
        tokenizer: the tokenizer of the models.
        template: the prompt around an example; it also decides the token that ends a response.
        max_prompt_length: the most tokens of a prompt.
        max_length: the most tokens of prompt, response and EOS together. A longer response is cut, and then
            has no EOS.
        truncation: the part that is cut from a longer prompt. "input": the end of its input, and if that is
            not enough, the end of its instruction; the template stays whole. "right": its last tokens, and
            with them the end of the template, such as "### Response:", as in DistiLLM's scripts and their
            forks.
        special_tokens: how to read a special token of the tokenizer, such as `<|endoftext|>`, in a row.
            "text": as text like any other, so that only the template and the end of a response add such
            tokens. "tokens": as the token, as the tokenizer reads it.
        turns: the answers of a conversation that count. "all": every answer of the assistant; a conversation
            over `max_length` loses its end. "last": the last answer; a conversation with a prompt over
            `max_prompt_length` loses its first turns, but not its system message.

    Raises:
        InputError: if the template alone does not fit the limits, nothing can end a response, or
            `truncation`, `special_tokens` or `turns` is neither of its two.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_prompt_length: int
    max_length: int
    truncation: Truncation = "input"
    special_tokens: SpecialTokens = "text"
    turns: Turns = "all"

    def __post_init__(self) -> None:
        check_arguments("data.", nodes.Data, vars(self), without=["template"])
        self.template.end(self.tokenizer)
        longest = max(len(self._prompt("", input)) for input in ("", " "))
        if self.max_prompt_length < longest + 1:
            raise InputError(
                f"data.max_prompt_length={self.max_prompt_length} is below what the template itself needs; "
                f"use at least {longest + 1}"
            )
        check_data(vars(self))

    def prompt(self, example: Example) -> list[int]:
        """The prompt's token ids, at most `max_prompt_length`; in a conversation, all before the last answer.

        Raises:
            InputError: for plain text, which has no prompt; see also `amid.data.turns.written`.
        """
        if example.is_text:
            raise InputError(
                "plain text (rows with text alone) has no prompt to answer: use such rows as data.train or "
                "data.plain_text, and rows with questions as data.test and for data.valid_metric"
            )
        if example.conversation is not None:
            shortened = self._shortened_conversation(self._opened(example.conversation))
            return self._asked(shortened)[: self.max_prompt_length]
        return self._shortened(example, self._prompt(example.instruction, example.input))

    def example(self, example: Example) -> Encoded:
        """The example's token ids, at most `max_length`.

        Raises:
            InputError: see `amid.data.turns.written`.
        """
        if example.is_text:
            return self._document(example.outputs[0])
        if example.conversation is not None:
            return self._conversation(self._opened(example.conversation))
        whole = self._prompt(example.instruction, example.input)
        prompt = self._shortened(example, whole)
        response = [*self.texts([example.outputs[0]])[0], self._end]
        room = self.max_length - len(prompt)
        return Encoded(
            prompt + response[:room],
            len(prompt),
            prompt_cut=len(whole) > self.max_prompt_length,
            response_cut=len(response) > room,
        )

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of texts without a template, such as responses without their EOS."""
        of = self._of_text
        return of.all_ids([of.marked(text) for text in texts] if self.special_tokens == "text" else texts)

    @property
    def end_of_document(self) -> int:
        """The token after plain text: the tokenizer's own EOS; if it has none, the end of a response."""
        eos = self.tokenizer.eos_token_id
        return self._end if eos is None else int(eos)

    def special_in_prompt(self, example: Example) -> set[str]:
        """The special tokens that the row itself writes into the prompt of `example`, or its conversation."""
        if example.conversation is None:
            return self._of_prompt.written(f"{example.instruction}\0{example.input}")
        found: set[str] = set()

        def seen(of: RowText, text: str) -> str:
            found.update(of.written(text))
            return text

        self._in_texts(example.conversation, seen)
        return found

    def special_in(self, text: str) -> set[str]:
        """The special tokens that are written in a text without a template."""
        return self._of_text.written(text)

    def _document(self, text: str) -> Encoded:
        """Plain text between the tokenizer's own BOS, if it adds one to texts, and EOS; all tokens count."""
        tokenizer, end = self.tokenizer, self.end_of_document
        begin = [i for i in tokenizer("")["input_ids"][:1] if i == tokenizer.bos_token_id]
        ids = begin + self.texts([text])[0]
        ids += [end] * (ids[-1:] != [end])
        return Encoded(ids[: self.max_length], 0, prompt_cut=False, response_cut=len(ids) > self.max_length)

    def _conversation(self, conversation: Conversation) -> Encoded:
        if self.turns == "all":
            ids, begins, counted = self._turns(conversation)
            begins = [begin for begin in begins if begin <= self.max_prompt_length]
            if begins:
                return self._encoded(ids, begins[-1], counted, prompt_cut=False)
            first = conversation.messages[: conversation.answers[0] + 1]
            conversation = replace(conversation, messages=first)
        shortened = self._shortened_conversation(conversation)
        ids, (begin,), counted = self._turns(shortened, last_alone=True)
        over = max(0, begin - self.max_prompt_length)
        ids = ids[: begin - over] + ids[begin:]
        counted = [(a - over, b - over) for a, b in counted]
        return self._encoded(
            ids, begin - over, counted, prompt_cut=bool(over) or shortened is not conversation
        )

    def _encoded(self, ids: list[int], n_prompt: int, counted: Sequence[Span], prompt_cut: bool) -> Encoded:
        kept = ids[: self.max_length]
        counts = [False] * len(ids)
        for begin, end in counted:
            counts[begin:end] = [True] * (end - begin)
        counts = counts[: self.max_length]
        simple = counts == [place >= n_prompt for place in range(len(kept))]
        return Encoded(kept, n_prompt, prompt_cut, len(ids) > len(kept), None if simple else counts)

    def _turns(
        self, conversation: Conversation, last_alone: bool = False
    ) -> tuple[list[int], list[int], list[Span]]:
        """Token ids of a conversation, where each of its answers begins, and the tokens that count."""
        if not self.template.is_plain(self.tokenizer):
            found = written(self.template, self.tokenizer, conversation, self._end_token, last_alone)
            rests = [(begin, len(found.text)) for begin in found.begins]
            located, spans = self._of_prompt.located(found.text, [*rests, *found.counted])
            return located, [begin for begin, _ in spans[: len(rests)]], spans[len(rests) :]
        ids: list[int] = []
        answers: dict[int, Span] = {}
        turns = self.template.plain_turns(conversation)
        first = len(conversation.messages) - 2 * len(turns) + 1
        for number, (prompt, answer) in zip(itertools.count(first, 2), turns):
            ids += self._of_prompt.ids(prompt)
            begin = len(ids)
            ids += [*self._of_text.ids(answer), self._end]
            answers[number] = begin, len(ids)
        counted = [answers[number] for number in conversation.answers[-1 if last_alone else 0 :]]
        return ids, [begin for begin, _ in counted], counted

    def _asked(self, conversation: Conversation) -> list[int]:
        """The token ids of all that stands before the last answer."""
        if not self.template.is_plain(self.tokenizer):
            n = len(conversation.messages) - 1
            text = self.template.rendered(self.tokenizer, conversation, n, add_generation_prompt=True)
            return self._of_prompt.ids(text)
        ids, (begin,), _ = self._turns(conversation, last_alone=True)
        return ids[:begin]

    def _shortened_conversation(self, conversation: Conversation) -> Conversation:
        """`conversation` without as many first turns as its prompt is too long for, or with a cut question.

        The system message stays. `truncation="right"` leaves it to others to cut a single turn.

        Raises:
            InputError: if the other messages of the last turn alone are too long.
        """
        if len(self._asked(conversation)) <= self.max_prompt_length:
            return conversation
        messages = conversation.messages
        before = messages[:1] if messages[0]["role"] == "system" else ()
        asked = [number for number, message in enumerate(messages) if message["role"] == "user"]
        for number in asked[1:]:
            conversation = _with(conversation, (*before, *messages[number:]))
            if len(self._asked(conversation)) <= self.max_prompt_length:
                return conversation
        if self.truncation == "right":
            return conversation
        rest = messages[asked[-1] + 1 :]

        def cut(text: str) -> Conversation:
            return _with(conversation, (*before, {**messages[asked[-1]], "content": text}, *rest))

        question = messages[asked[-1]]["content"]
        n = self._fitting(question, lambda text: self._asked(cut(text)))
        least = len(self._asked(cut(question[:n])))
        if least > self.max_prompt_length:
            raise InputError(
                f"{conversation.place}: the messages before the last answer have {least} tokens without the "
                f"text of the question, above data.max_prompt_length={self.max_prompt_length}; raise it, or "
                "leave the row out"
            )
        return cut(question[:n])

    def _opened(self, conversation: Conversation) -> Conversation:
        """`conversation` with its system message, and with special tokens of its texts marked as text."""
        opened = self.template.opened(conversation)
        return opened if self.special_tokens == "tokens" else self._in_texts(opened, RowText.marked)

    def _in_texts(self, conversation: Conversation, change: Callable[[RowText, str], str]) -> Conversation:
        """`conversation` with `change` of each of its texts: contents, thoughts, calls and tools."""

        def changed(value: Any, of: RowText) -> Any:
            if isinstance(value, str):
                return change(of, value)
            if isinstance(value, Mapping):
                return {name: changed(part, of) for name, part in value.items()}
            return [changed(part, of) for part in value] if isinstance(value, list | tuple) else value

        messages = []
        for message in conversation.messages:
            of = self._of_text if message["role"] == "assistant" else self._of_prompt
            messages.append({**changed(message, of), "role": message["role"]})
        tools = tuple(changed(tool, self._of_prompt) for tool in conversation.tools)
        variables = changed(conversation.variables, self._of_prompt)
        return replace(conversation, messages=tuple(messages), tools=tools, variables=variables)

    @cached_property
    def _of_text(self) -> RowText:
        marks = {mark for mark in self._marks if not THOUGHTS.fullmatch(mark)}  # a response may have them
        return RowText(self.tokenizer, special_tokens(self.tokenizer) | marks)

    @cached_property
    def _of_prompt(self) -> RowText:
        return RowText(self.tokenizer, special_tokens(self.tokenizer) | self._marks)

    @cached_property
    def _marks(self) -> set[str]:
        """The tokens by which the chat template marks turns and that are not special tokens."""
        if self.template.is_plain(self.tokenizer):
            return set()
        return marks_in(self.tokenizer, "".join(self.template.turns(self.tokenizer, "x")))

    @cached_property
    def _end_token(self) -> str:
        return self.template.end(self.tokenizer)

    @cached_property
    def _end(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(self._end_token))  # type: ignore[arg-type]

    def _prompt(self, instruction: str, input: str) -> list[int]:
        of = self._of_prompt
        if self.special_tokens == "text":
            instruction, input = of.marked(instruction), of.marked(input)
        return of.ids(self.template.render(self.tokenizer, instruction, input))

    def _shortened(self, example: Example, whole: list[int]) -> list[int]:
        """Returns the prompt's token ids within the limit; `whole` holds the ids before the cut."""
        if len(whole) <= self.max_prompt_length:
            return whole
        if self.truncation == "right":
            return whole[: self.max_prompt_length]
        instruction, input = example.instruction, example.input
        if input:
            ids = self._longest(input, lambda text: self._prompt(instruction, text))
            if len(ids) <= self.max_prompt_length:
                return ids
        return self._longest(instruction, lambda text: self._prompt(text, ""))

    def _longest(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Returns `encode` of the longest beginning of `text` that fits; of "" if none fits."""
        return encode(text[: self._fitting(text, encode)])

    def _fitting(self, text: str, encode: Callable[[str], list[int]]) -> int:
        """Returns the length of the longest beginning of `text` that fits, by bisection; 0 if none fits."""
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if len(encode(text[:middle])) <= self.max_prompt_length:
                low = middle
            else:
                high = middle - 1
        return low


def _with(conversation: Conversation, messages: tuple[Message, ...]) -> Conversation:
    """`conversation` with other messages, the last of which counts."""
    return replace(conversation, messages=messages, given=len(messages) - 1 if conversation.given else 0)
