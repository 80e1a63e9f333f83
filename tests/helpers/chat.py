"""A small tokenizer with the special tokens and the chat template of a family of chat models."""

import re
from pathlib import Path

from tokenizers.processors import TemplateProcessing

from amid.data.builtin import tokenizer

TEMPLATES = Path(__file__).parents[1] / "data" / "chat_templates"
"""Chat templates of our own, which write the text that families publish, with `{% generation %}` marks."""
FAMILIES = ("qwen2.5", "qwen3", "llama3", "gemma", "smollm2")
TURNS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>"]
TURNS += ["<|start_header_id|>", "<|end_header_id|>"]
_MARKS = re.compile(r"\{%-? (end)?generation -?%\}")


def template_of(family, marks=True):
    """The chat template of a family, with its marks or without."""
    text = (TEMPLATES / f"{family}.jinja").read_text()
    return text if marks else _MARKS.sub("", text)


def chat_tokenizer(template, adds_bos=True):
    """A tokenizer with a chat template; it may add BOS to texts, as those of Llama and Gemma do."""
    tok = tokenizer()
    tok.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": TURNS})
    tok.add_tokens(["<think>", "</think>"])
    if adds_bos:
        tok.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tok.bos_token_id)]
        )
    tok.chat_template = template
    return tok


def messages(*texts, system=None):
    """Messages of the user and the assistant, in turn."""
    roles = [] if system is None else [{"role": "system", "content": system}]
    return roles + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
