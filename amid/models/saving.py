"""A student as one folder that plain transformers, vLLM and llama.cpp load."""

from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from amid.models.vocabulary import output_rows


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a model and its tokenizer into a folder from which other programs get the answers of this one.

    Its files name the token that ends an answer, that for padding, and the most tokens that the model has
    positions for; rows of padded embeddings are never drawn.

    Args:
        model: a model without adapters.
        tokenizer: its EOS must end the answers that the model was trained on
            (`amid.data.Template.tokenizer_of_model`).
        folder: the folder to write; it is made if it does not exist.
    """
    agree_with_tokenizer(model, tokenizer)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        tokenizer.model_max_length = int(positions)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def agree_with_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the model's configurations the special tokens of `tokenizer`, and nothing else on how to answer.

    Otherwise a model goes on after the end of its answers wherever `generate` is called on it.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: token for name in names if (token := getattr(tokenizer, name)) is not None}
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        for name, token in ids.items():
            setattr(config, name, token)
        vars(config).pop("task_specific_params", None)  # such as GPT-2's, which make a pipeline sample
    padded = list(range(len(tokenizer), output_rows(model)))
    model.generation_config = GenerationConfig(**ids, suppress_tokens=padded or None)
