"""Small models of several families, of random weights, and prompts for them."""

import random

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from amid.data.builtin import tokenizer

TOKENS = tokenizer()
VOCAB = len(TOKENS)
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.5,
    "eos_token_id": TOKENS.eos_token_id,
    "pad_token_id": TOKENS.pad_token_id,
}
MLP = {"intermediate_size": 32, "num_key_value_heads": 1}
FAMILIES = {
    "llama": MLP,
    "gpt2": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.5},
    "qwen2": MLP,
    "qwen3": {**MLP, "head_dim": 8},
    "mistral": {**MLP, "sliding_window": 5},
    "gemma2": {**MLP, "head_dim": 8, "sliding_window": 5},
    "gemma3_text": {**MLP, "head_dim": 8, "sliding_window": 5, "sliding_window_pattern": 2},
    "bloom": {},
}


def network(family="llama", eos_bias=0.0, **fields):
    """A model of random weights; `eos_bias` is added to the logit of EOS."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES.get(family, {}), **fields})
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig()

    def more_eos(module, inputs, logits):
        logits[..., TOKENS.eos_token_id] += eos_bias
        return logits

    model.get_output_embeddings().register_forward_hook(more_eos)
    return model


def prompts_of(lengths, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(2, VOCAB) for _ in range(length)] for length in lengths]


PROMPTS = prompts_of([3, 17, 1, 9, 12, 5, 8, 2, 11, 4, 7])
