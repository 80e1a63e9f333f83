"""From an example to token ids: the template around it, the limits on its length, the counted tokens."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from amid.data.examples import Example
from amid.errors import InputError

IGNORE = -100
"""The label of a token that is not counted."""


@dataclass(frozen=True)
class Template:
    """The prompt of an example, as format strings.

    Args:
        without_input: with the field `{instruction}`, for examples whose input is empty.
        with_input: with the fields `{instruction}` and `{input}`.
    """

    without_input: str
    with_input: str

    def __post_init__(self) -> None:
        for name, text, fields in (
            ("without_input", self.without_input, {"instruction": "i"}),
            ("with_input", self.with_input, {"instruction": "i", "input": "x"}),
        ):
            missing = [field for field in fields if "{" + field + "}" not in text]
            if missing:
                raise InputError(f"template.{name}={text!r} lacks {{{missing[0]}}}; add it")
            try:
                text.format(**fields)
            except (KeyError, IndexError, ValueError) as error:
                raise InputError(
                    f"template.{name}={text!r} has another field than {', '.join(fields)} ({error!r}); "
                    "write a literal brace twice"
                ) from error

    def render(self, instruction: str, input: str) -> str:
        """The prompt's text."""
        if input:
            return self.with_input.format(instruction=instruction, input=input)
        return self.without_input.format(instruction=instruction)


@dataclass(frozen=True)
class Encoder:
    """Turns examples into token ids, within the limits on length.

    Args:
        tokenizer: with an EOS token.
        template: the prompt around an example.
        max_prompt_length: tokens of a prompt at most. A longer one loses the end of its input, and where
            that is not enough the end of its instruction; the template stays whole.
        max_length: tokens of prompt, response and EOS at most. A longer response is cut, and then has
            no EOS.

    Raises:
        InputError: if the template alone does not fit the limits, or the tokenizer has no EOS token.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_prompt_length: int
    max_length: int

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise InputError("tokenizer has no EOS token, so no response could end; choose another tokenizer")
        longest = max(len(self._ids(self.template.render("", input))) for input in ("", " "))
        if self.max_prompt_length < longest + 1:
            raise InputError(
                f"data.max_prompt_length={self.max_prompt_length} is below what the template itself needs; "
                f"use at least {longest + 1}"
            )
        if self.max_length <= self.max_prompt_length:
            raise InputError(
                f"data.max_length={self.max_length} leaves no room for a response after a prompt of up to "
                f"data.max_prompt_length={self.max_prompt_length} tokens; use at least "
                f"{self.max_prompt_length + 1}, or lower data.max_prompt_length (to {longest + 1} at least)"
            )

    def prompt(self, example: Example) -> list[int]:
        """The prompt's token ids, at most `max_prompt_length`."""
        instruction, input = example.instruction, example.input
        ids = self._ids(self.template.render(instruction, input))
        if len(ids) <= self.max_prompt_length:
            return ids
        if input:
            ids = self._longest(input, lambda text: self._ids(self.template.render(instruction, text)))
            if len(ids) <= self.max_prompt_length:
                return ids
        return self._longest(instruction, lambda text: self._ids(self.template.render(text, "")))

    def response(self, text: str, room: int) -> list[int]:
        """The response's token ids with EOS, cut to `room` tokens."""
        return [*self._ids(text), int(self.tokenizer.eos_token_id)][:room]

    def example(self, example: Example) -> tuple[list[int], int]:
        """Token ids of prompt, response (the first output) and EOS, and the length of the prompt."""
        prompt = self.prompt(example)
        return prompt + self.response(example.outputs[0], self.max_length - len(prompt)), len(prompt)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _longest(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """`encode` of the longest beginning of `text` that fits, by bisection; of no text if none does."""
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if len(encode(text[:middle])) <= self.max_prompt_length:
                low = middle
            else:
                high = middle - 1
        return encode(text[:low])
