"""Blocks of thoughts (`<think>…</think>`) in answers."""

import re
from dataclasses import replace

from amid.data.examples import Conversation, Example, Message
from amid.data.rows import has_text

THOUGHTS = re.compile(r"<(/?)(?:\w+:)?think(?:ing)?>|\[(/?)THINK\]")
"""Where a model's thoughts begin and end."""

NO_THOUGHT = re.compile(r"<(\w+:)?think(ing)?>\s*(</(\w+:)?think(ing)?>\s*)?|\[THINK\]\s*(\[/THINK\]\s*)?")
"""An empty thought, or the beginning of one."""

EMPTY_AT_THE_END = re.compile(rf"(?:{NO_THOUGHT.pattern})\Z")
"""The same at the end of a prompt."""

_BLOCK = re.compile(
    r"<(?:\w+:)?think(?:ing)?>(.*?)</(?:\w+:)?think(?:ing)?>\s*|\[THINK\](.*?)\[/THINK\]\s*", re.DOTALL
)
"""A whole block, and the white space after it."""

_REST = re.compile(r"\A.*?(?:</(?:\w+:)?think(?:ing)?>|\[/THINK\])\s*", re.DOTALL)
"""The rest of a block that the prompt has opened."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Further fields of a message that hold thoughts."""


def cut_thoughts(text: str) -> str:
    """`text` without its blocks of thoughts."""
    return _REST.sub("", _BLOCK.sub("", text))


def thoughts_of(text: str) -> list[str]:
    """The thoughts in `text`, without white space around them; empty ones are left out."""
    return [said for found in _BLOCK.finditer(text) if (said := (found[1] or found[2] or "").strip())]


def without_thoughts(conversation: Conversation) -> Conversation:
    """`conversation` without thoughts in its answers."""
    return replace(conversation, messages=tuple(map(_without, conversation.messages)))


def example_without_thoughts(example: Example) -> Example:
    """`example` without blocks of thoughts in its answers, and without outputs of thoughts alone."""
    talk = example.conversation
    return replace(
        example,
        outputs=tuple(filter(has_text, map(cut_thoughts, example.outputs))),
        conversation=None if talk is None else without_thoughts(talk),
    )


def _without(message: Message) -> Message:
    if message["role"] != "assistant":
        return message
    kept = {name: value for name, value in message.items() if name not in REASONING}
    return {**kept, "content": cut_thoughts(message["content"])}
