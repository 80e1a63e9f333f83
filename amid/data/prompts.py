"""From an example to token ids: the template around it, the limits on its length, the counted tokens."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from amid.data.examples import Example
from amid.data.row_text import RowText, marks_in, special_tokens
from amid.errors import InputError, first_line
from amid.settings import check_arguments, check_data, nodes

IGNORE = -100
"""The label of a token that is not counted."""

Truncation = Literal["input", "right"]
"""The part that is cut from a prompt over the limit."""

CHAT_VARIABLES = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""The variables that `chat="auto"` gives to a chat template. With them Qwen3 answers without a part for
thoughts, and Llama 3 writes this date into its system message in place of today's date."""

_DATE = datetime(2024, 7, 26)
"""The same date, for templates that ask for today's by `strftime_now`: prompts do not depend on the day."""

_ASKS_FOR_TODAY = re.compile(r"\bstrftime_now\(\s*(['\"])(.*?)\1\s*\)")

_ASKED, _ANSWERED = "amid-question", "amid-answer"
"""Messages that are rendered to find how a chat template writes messages."""

THOUGHTS = re.compile(r"<(/?)(?:\w+:)?think(?:ing)?>|\[(/?)THINK\]")
"""Where a model's thoughts begin and end."""

_NO_THOUGHT = re.compile(r"<(\w+:)?think(ing)?>\s*(</(\w+:)?think(ing)?>\s*)?|\[THINK\]\s*(\[/THINK\]\s*)?")
"""An empty thought, or the beginning of one."""

SpecialTokens = Literal["text", "tokens"]
"""How to read a special token of the tokenizer that is written in a row."""


@dataclass(frozen=True)
class Template:
    """The prompt of an example: format strings, and the chat template around them where there is one.

    Args:
        without_input: the prompt of an example without input, with the field `{instruction}`.
        with_input: the prompt of an example with input, with the fields `{instruction}` and `{input}`.
        chat: variables of the tokenizer's own chat template (for example `{enable_thinking: false}`; it
            ignores those that it does not know), in which the formatted text is the user's message. A
            response then ends with the token that ends a turn, whatever the tokenizer's EOS is. null for
            the text as it stands. "auto": `CHAT_VARIABLES` where the tokenizer has a chat template, null
            where it has none.

    Raises:
        InputError: for a format string without its fields, or with others, and for another `chat`.
    """

    without_input: str
    with_input: str
    chat: Mapping[str, Any] | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        check_arguments("data.template.", nodes.Template, vars(self))

    def render(self, tokenizer: PreTrainedTokenizerBase, instruction: str, input: str) -> str:
        """The prompt's text, BOS included where the chat template writes it.

        Raises:
            InputError: if a chat template is wanted and the tokenizer has none.
        """
        text = (self.with_input if input else self.without_input).format(instruction=instruction, input=input)
        return text if self.is_plain(tokenizer) else self._conversation(tokenizer, text, answer=None)

    def end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The token that ends a response: EOS, or in a chat template the end of a turn.

        Raises:
            InputError: if there is no such token, or a chat template is wanted and the tokenizer has none.
        """
        if self.is_plain(tokenizer):
            if tokenizer.eos_token is None:
                raise InputError(
                    "tokenizer has no EOS token, so no response could end; choose another tokenizer"
                )
            return str(tokenizer.eos_token)
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        after = self._around_answer(tokenizer)[1].lstrip()
        if not after:  # some templates end a turn only where another one follows
            after = self._around_answer(tokenizer, goes_on=True)[1].lstrip()
        ends = [token for token in special if after.startswith(token)]
        if not ends:
            raise InputError(
                f"the tokenizer's chat template ends a turn with {after!r}, which is no special token, so "
                "nothing could stop an answer; use data.template.chat=null"
            )
        return max(ends, key=len)

    def heading(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Returns the text that the chat template writes before an answer but not at the end of a prompt.

        White space and thoughts do not count. It is empty if a prompt ends with all that begins an answer.
        """
        if self.is_plain(tokenizer):
            return ""
        prompt = self._conversation(tokenizer, _ASKED, answer=None)
        texts = (text.partition(_ASKED)[2] for text in (prompt, self._around_answer(tokenizer)[0]))
        asked, answered = (_NO_THOUGHT.sub("", text).strip() for text in texts)
        return answered.removeprefix(asked).strip() if answered.startswith(asked) else ""

    def turns(self, tokenizer: PreTrainedTokenizerBase, response: str) -> tuple[str, str]:
        """A prompt and `response` as they are trained on, and as the chat template itself writes the two."""
        prompt = self._conversation(tokenizer, "x", answer=None)
        return prompt + response, self._conversation(tokenizer, "x", answer=response)

    def made_from(self, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
        """Returns all that decides the prompt besides the example and the tokens."""
        plain = self.is_plain(tokenizer)
        chat = None if plain else [dict(self._variables), tokenizer.chat_template]
        return [self.without_input, self.with_input, chat]

    def choice(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Says whether prompts stand in the tokenizer's chat template, and how to change that.

        None where there is no choice: `chat` is null, and the tokenizer has no chat template.
        """
        if not self.is_plain(tokenizer):
            return (
                f"Prompts stand in the tokenizer's chat template, and an answer ends with "
                f"{self.end(tokenizer)} (data.template.chat=null for the text as it stands)"
            )
        if tokenizer.chat_template is not None:
            return (
                "Prompts stand as they are, without the chat template that the tokenizer has "
                "(data.template.chat=auto for it)"
            )
        return None if self.chat is None else "Prompts stand as they are: the tokenizer has no chat template"

    def tokenizer_of_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The tokenizer to save with a model that was trained on these prompts, for use in other programs.

        Its EOS is the token that ends a response. Its chat template makes the same prompts as this template,
        and needs no variable; it has no chat template if prompts are used as they are. It adds no BOS or EOS
        to a text, since prompts hold only the text of the template.

        Raises:
            InputError: see `end`.
        """
        saved = copy.deepcopy(tokenizer)
        saved.eos_token = self.end(tokenizer)
        if saved.pad_token is None:
            saved.pad_token = saved.eos_token
        for name in ("add_bos_token", "add_eos_token"):
            saved.init_kwargs[name] = False  # which is written, and so read by other programs
            setattr(saved, name, False)
        if self.is_plain(tokenizer):
            saved.chat_template = None
            return saved
        told = {
            name: f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
            for name, value in self._variables.items()
        }
        if saved.eos_token != tokenizer.eos_token:
            told["eos_token"] = f"{{% set eos_token = {tokenizer.eos_token or ''!r} %}}"

        def completed(text: str) -> str:
            text = _dated(text)
            before = "".join(line for name, line in told.items() if name in text)
            return f"{before}{{{{ '' }}}}{text}" if before else text  # '': a newline that begins it stays

        templates: Any = saved.chat_template
        if isinstance(templates, dict):
            saved.chat_template = {name: completed(text) for name, text in templates.items()}
        else:
            saved.chat_template = completed(templates)
        return saved

    def is_plain(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether prompts stand as they are, in no chat template."""
        return self.chat is None or (self.chat == "auto" and tokenizer.chat_template is None)

    @property
    def _variables(self) -> Mapping[str, Any]:
        return self.chat if isinstance(self.chat, Mapping) else CHAT_VARIABLES

    def _around_answer(self, tokenizer: PreTrainedTokenizerBase, goes_on: bool = False) -> tuple[str, str]:
        """Returns the text that the chat template writes before and after an answer, perhaps with one more
        message after it.

        Raises:
            InputError: if it does not write messages as they are.
        """
        written = self._conversation(tokenizer, _ASKED, _ANSWERED, goes_on)
        before, answer, after = written.partition(_ANSWERED)
        if not answer or _ASKED not in self._conversation(tokenizer, _ASKED, answer=None):
            raise InputError(
                "the tokenizer's chat template does not write the text of a message as it is, as one for "
                "images may not; use data.template.chat=null, or a tokenizer with another template"
            )
        return before, after

    def _conversation(
        self, tokenizer: PreTrainedTokenizerBase, message: str, answer: str | None, goes_on: bool = False
    ) -> str:
        if tokenizer.chat_template is None:
            raise InputError(
                "data.template.chat needs the tokenizer of a chat model, and this one has no chat template; "
                "use data.template.chat=null, or a model that was tuned to follow instructions"
            )
        turns = [{"role": "user", "content": message}]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        if goes_on:
            turns.append({"role": "user", "content": message})
        try:
            text = tokenizer.apply_chat_template(
                turns,
                chat_template=_dated(tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=answer is None,
                **self._variables,
            )
        except Exception as error:  # a template is a program, which may fail in any way
            raise InputError(
                f"the tokenizer's chat template refuses the prompt ({first_line(error)}); give it other "
                "variables (data.template.chat={NAME: VALUE}), or data.template.chat=null for the text as it "
                "stands"
            ) from error
        return str(text)


def _dated(chat_template: str) -> str:
    """A chat template that writes `_DATE` in place of the day on which it is used."""
    return _ASKS_FOR_TODAY.sub(lambda found: repr(_DATE.strftime(found[2])), chat_template)


class Encoded(NamedTuple):
    """An example as token ids, and what it lost to the limits on length."""

    ids: list[int]
    """Token ids of prompt, response (the first output) and EOS."""
    n_prompt: int
    """The length of the prompt."""
    prompt_cut: bool
    """Whether the prompt lost its end."""
    response_cut: bool
    """Whether the response lost its end, and with it EOS."""


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

    Raises:
        InputError: if the template alone does not fit the limits, nothing can end a response, or
            `truncation` or `special_tokens` is neither of its two.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_prompt_length: int
    max_length: int
    truncation: Truncation = "input"
    special_tokens: SpecialTokens = "text"

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
        """The prompt's token ids, at most `max_prompt_length`."""
        return self._shortened(example, self._prompt(example.instruction, example.input))

    def example(self, example: Example) -> Encoded:
        """The example's token ids, at most `max_length`."""
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

    def special_in_prompt(self, example: Example) -> set[str]:
        """The special tokens that the row itself writes into the prompt of `example`."""
        return self._of_prompt.written(f"{example.instruction}\0{example.input}")

    def special_in(self, text: str) -> set[str]:
        """The special tokens that are written in a text without a template."""
        return self._of_text.written(text)

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
    def _end(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(self.template.end(self.tokenizer)))  # type: ignore[arg-type]

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
        """Returns `encode` of the longest beginning of `text` that fits, by bisection; of "" if none fits."""
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if len(encode(text[:middle])) <= self.max_prompt_length:
                low = middle
            else:
                high = middle - 1
        return encode(text[:low])
