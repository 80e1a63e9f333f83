"""The example type shared by every source of instructions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
"""A message of a conversation: its `role` (system, user, assistant or tool), its `content`, and whatever else
a chat template reads in it, such as `tool_calls`."""


WEIGHTS = ("weight", "train", "loss")
"""Fields of a message that say whether an answer counts: 0 or 1 as for OpenAI, true or false as for axolotl
and ms-swift."""


def counts(message: Message) -> bool:
    """Whether a message is an answer of the assistant that no field of `WEIGHTS` excludes from the loss."""
    return message["role"] == "assistant" and all(message.get(name, 1) != 0 for name in WEIGHTS)


@dataclass(frozen=True)
class Conversation:
    """Messages of one or several turns. The last message is an answer of the assistant that counts."""

    messages: tuple[Message, ...]
    given: int = 0
    """The number of first messages that are a given prompt: no answer among them counts."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Descriptions of the tools, for the chat template."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template, which go before those of `amid.data.Template.chat`."""
    place: str = field(default="", compare=False)
    """Where it stands, for messages of errors: file and line."""

    @property
    def answers(self) -> list[int]:
        """The numbers of the messages that count (`counts`); none in the prompt or before any question."""
        first = max(self.given, [message["role"] for message in self.messages].index("user"))
        return [number for number in range(first, len(self.messages)) if counts(self.messages[number])]


@dataclass(frozen=True)
class Example:
    """One instruction with its optional input and its acceptable responses; training aims at the first.

    An example may also be a conversation: `instruction` is then the last question, `input` the messages
    before it, and the response the last answer. Or it may be plain text, a response without a prompt.
    """

    instruction: str
    input: str
    outputs: tuple[str, ...]
    fields: Mapping[str, str | int | float] = field(default_factory=dict, compare=False)
    """Further fields of its row, such as a category. No model sees them; scores can be split by them."""
    conversation: Conversation | None = None
    """The conversation, which models read in place of `instruction` and `input`."""
    is_text: bool = False
    """Whether it is plain text: models read its response alone, and all of its tokens count."""
