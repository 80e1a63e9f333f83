"""Each pair of conf/model, trained for two steps on random miniatures of its architecture."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from amid import results
from amid.cli import main
from amid.config import CONF
from amid.data.builtin import tokenizer

PAIRS = [file.stem for file in CONF.glob("model/*.yaml") if file.stem != "tiny"]


def miniature(folder, family, vocab_size):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    more = {"llama": {"intermediate_size": 32, "num_key_value_heads": 1}, "gpt2": {"n_positions": 256}}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, **sizes, **more[family]
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pair", PAIRS)
def test_pair(pair, tmp_path, jsonl):
    pruned = pair == "smollm2_pruned"
    family = "llama" if pruned else "gpt2"
    teacher = miniature(tmp_path / "teacher", family, 1024)
    student = ["model.student.layers=[0,2]"] if pruned else [f"model.student.path={tmp_path / 'student'}"]
    if not pruned:
        miniature(tmp_path / "student", family, 1000)
    data = jsonl(*({"instruction": f"say {i}", "output": [f"word {i}", "x"]} for i in range(8)))
    status = main(
        [
            "train",
            f"model={pair}",
            "data=jsonl",
            *(f"data.{name}={data}" for name in ("train", "valid")),
            f"+data.test.mine={data}",
            f"model.teacher.path={teacher}",
            *student,
            "model.teacher.dtype=bfloat16",
            *(f"model.{role}.sft.trainer.max_steps=1" for role in ("teacher", "student")),
            "trainer.max_steps=2",
            "data.batch_size=4",
            "data.micro_batch_size=2",
            "data.max_prompt_length=150",
            "data.max_length=180",
            "generation.seeds=[1,2]",
            "generation.max_new_tokens=4",
            f"output_dir={tmp_path / 'runs'}",
            f"prepared_dir={tmp_path / 'prepared'}",
            f"data.cache_dir={tmp_path / 'cache'}",
        ]
    )
    assert status == 0
    (result,) = results.load_all(tmp_path / "runs")
    assert result.training["steps"] == 2
    assert result.scores["mine"]["self_bleu"].std is None
    assert len(list((tmp_path / "prepared").glob("*/result.json"))) == 2
