"""The text around an example: format strings, and the chat template of a tokenizer."""

import copy
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from amid.data.examples import Conversation, Message
from amid.data.row_text import with_marks
from amid.data.thoughts import NO_THOUGHT
from amid.errors import InputError, first_line
from amid.settings import check_arguments, nodes

CHAT_VARIABLES = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""The variables that `chat="auto"` gives to a chat template. With them Qwen3 answers without a part for
thoughts, and Llama 3 writes this date into its system message in place of today's date."""

_DATE = datetime(2024, 7, 26)
"""The same date, for templates that ask for today's by `strftime_now`: prompts do not depend on the day."""

_ASKS_FOR_TODAY = re.compile(r"\bstrftime_now\(\s*(['\"])(.*?)\1\s*\)")

_ASKED, _ANSWERED = "amid-question", "amid-answer"
"""Messages that are rendered to find how a chat template writes messages."""

Thinking = Literal["keep", "cut"]
"""What becomes of blocks of thoughts in the answers of rows."""

_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
"""The mark in a chat template where the text of an answer begins."""


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
            where it has none. The messages of a conversation stand in a chat template as they are. Without
            one, each question stands in the format strings, and each answer ends with EOS.
        system: the system message of rows that have none; without a chat template, a text before the prompt.
        thinking: "cut": blocks of thoughts in the answers of rows (`<think>…</think>`) are cut out; "keep":
            they stay, and the chat template decides.

    Raises:
        InputError: for a format string without its fields, or with others, and for another `chat`, `system`
            or `thinking`.
    """

    without_input: str
    with_input: str
    chat: Mapping[str, Any] | Literal["auto"] | None = "auto"
    system: str | None = None
    thinking: Thinking = "keep"

    def __post_init__(self) -> None:
        check_arguments("data.template.", nodes.Template, vars(self))

    def render(self, tokenizer: PreTrainedTokenizerBase, instruction: str, input: str) -> str:
        """The prompt's text, BOS included where the chat template writes it.

        Raises:
            InputError: if a chat template is wanted and the tokenizer has none.
        """
        text = (self.with_input if input else self.without_input).format(instruction=instruction, input=input)
        if self.is_plain(tokenizer):
            return text if self.system is None else f"{self.system}\n\n{text}"
        asked = self.opened(Conversation(({"role": "user", "content": text},)))
        return self.rendered(tokenizer, asked, add_generation_prompt=True)

    def opened(self, conversation: Conversation) -> Conversation:
        """`conversation` with the template's system message, if it has none of its own."""
        if self.system is None or conversation.messages[0]["role"] == "system":
            return conversation
        messages = ({"role": "system", "content": self.system}, *conversation.messages)
        return replace(conversation, messages=messages, given=conversation.given and conversation.given + 1)

    def plain_turns(self, conversation: Conversation) -> list[tuple[str, str]]:
        """The turns of a conversation without a chat template: the text of each prompt, and its answer.

        Raises:
            InputError: if it has messages of tools.
        """
        if conversation.tools or any(
            m["role"] == "tool" or m.get("tool_calls") for m in conversation.messages
        ):
            raise InputError(
                f"{conversation.place}: a conversation with tools needs a chat template; use the tokenizer "
                "of a chat model, or leave the row out"
            )
        roles = [message["role"] for message in conversation.messages]
        messages, first = [message["content"] for message in conversation.messages], roles.index("user")
        before = "".join(f"{text}\n\n" for text in messages[:first])  # system message and greeting
        asked = [self.without_input.format(instruction=text) for text in messages[first::2]]
        return [
            (before * (number == 0) + ask, answer)
            for number, (ask, answer) in enumerate(zip(asked, messages[first + 1 :: 2], strict=True))
        ]

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
        asked, answered = (NO_THOUGHT.sub("", text).strip() for text in texts)
        return answered.removeprefix(asked).strip() if answered.startswith(asked) else ""

    def turns(self, tokenizer: PreTrainedTokenizerBase, response: str) -> tuple[str, str]:
        """A prompt and `response` as they are trained on, and as the chat template itself writes the two."""
        prompt = self._conversation(tokenizer, "x", answer=None)
        return prompt + response, self._conversation(tokenizer, "x", answer=response)

    def made_from(self, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
        """Returns all that decides the prompt besides the example and the tokens."""
        plain = self.is_plain(tokenizer)
        chat = None if plain else [dict(self._variables), tokenizer.chat_template]
        return [self.without_input, self.with_input, chat, *([] if self.system is None else [self.system])]

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
        if self.system is not None:
            told["messages"] = (
                "{% if messages[0].role != 'system' %}{% set messages = [{'role': 'system', 'content': "
                f"{self.system!r}}}] + messages %}}{{% endif %}}"
            )

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
        turns: list[Message] = [{"role": "user", "content": message}]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        if goes_on:
            turns.append({"role": "user", "content": message})
        return self.rendered(tokenizer, Conversation(tuple(turns)), add_generation_prompt=answer is None)

    def rendered(
        self,
        tokenizer: PreTrainedTokenizerBase,
        conversation: Conversation,
        n: int | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of the first `n` messages of a conversation in the chat template; None for all messages.

        Raises:
            InputError: if the tokenizer has no chat template, or it refuses the messages.
        """
        if tokenizer.chat_template is None:
            raise InputError(
                "data.template.chat needs the tokenizer of a chat model, and this one has no chat template; "
                "use data.template.chat=null, or a model that was tuned to follow instructions"
            )
        messages = conversation.messages[:n]
        tools = _tools(conversation)
        try:
            text = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,
                chat_template=self._dated(tokenizer, tools),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{**self._variables, **conversation.variables},
            )
        except Exception as error:  # a template is a program, which may fail in any way
            raise InputError(self._refusal(tokenizer, conversation, first_line(error))) from error
        return with_marks(str(text))

    def marks(
        self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation
    ) -> list[tuple[int, int]] | None:
        """The characters of a rendered conversation between `{% generation %}` marks; None without marks."""
        tools = _tools(conversation)
        if not _MARK.search(self._dated(tokenizer, tools)):
            return None
        (text,), (spans,) = _render(  # apply_chat_template would tokenise too, without special tokens as text
            conversations=[[dict(message) for message in conversation.messages]],
            tools=tools,
            chat_template=self._dated(tokenizer, tools),
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **self._variables, **conversation.variables},
        )
        return [(len(with_marks(text[:begin])), len(with_marks(text[:end]))) for begin, end in spans]

    def _dated(self, tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None) -> str:
        return _dated(tokenizer.get_chat_template(tools=tools))

    def _refusal(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation, why: str) -> str:
        """The message of an error about a conversation that the chat template refuses."""
        first, *others = conversation.messages
        where = f"{conversation.place}: " if conversation.place else ""
        if first["role"] == "system" and others:
            own = first["content"] == self.system
            try:
                self.rendered(tokenizer, replace(conversation, messages=tuple(others)))
            except InputError:
                pass
            else:
                remedy = (
                    "use data.template.system=null" if own else "write its text into the first user message"
                )
                return (
                    f"{where}the tokenizer's chat template refuses a system message ({why}); {remedy}, or "
                    "use data.template.chat=null for prompts without the chat template"
                )
        return (
            f"{where}the tokenizer's chat template refuses the "
            f"{'prompt' if not where else 'conversation'} ({why}); give it other variables "
            "(data.template.chat={NAME: VALUE}), or data.template.chat=null for the text as it stands"
        )


_render: Callable[..., Any] = render_jinja_template
"""Returns the text of each conversation and the characters between marks, whatever its annotation says."""


def _tools(conversation: Conversation) -> list[Any] | None:
    return [dict(tool) for tool in conversation.tools] or None  # some templates take [] for tools


@functools.cache
def _dated(chat_template: str) -> str:
    """A chat template that writes `_DATE` in place of the day on which it is used."""
    return _ASKS_FOR_TODAY.sub(lambda found: repr(_DATE.strftime(found[2])), chat_template)
