import lightning as L
import pytest
import torch
from families import TOKENS, network

from amid.errors import InputError
from amid.models.limits import check_ignores_what_follows
from amid.models.placement import input_device, is_spread
from amid.models.source import ModelSource
from amid.teacher.cache import TeacherCache
from amid.teacher.signals import LiveTeacher

AWAY = {
    "embeddings": {"model.embed_tokens": "disk", "lm_head": "disk", "model.layers.0": "cpu"},
    "layers": {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.layers.0": "disk"},
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    network(tie_word_embeddings=request.param, num_hidden_layers=3).save_pretrained(folder)
    return folder


def spread(saved, what):
    rest = {"model.layers.1": "cpu", "model.layers.2": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    return ModelSource(str(saved), device_map=AWAY[what] | rest)


@pytest.mark.parametrize("what", AWAY)
def test_a_teacher_with_weights_on_the_disk_has_the_same_states_and_head(saved, what):
    model = spread(saved, what).load(TOKENS)
    assert is_spread(model)
    assert any(weight.is_meta for weight in model.parameters())
    assert input_device(model) == torch.device("cpu")
    check_ignores_what_follows(model)
    teacher, whole = LiveTeacher(model), LiveTeacher(ModelSource(str(saved)).load(TOKENS))
    assert torch.equal(teacher.head.weight, whole.head.weight)
    teacher.to(torch.device("cpu"))
    ids = torch.randint(2, 900, (2, 21))
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    states = teacher.hidden({"input_ids": ids}, everywhere)
    assert torch.equal(states, whole.hidden({"input_ids": ids}, everywhere))
    assert any(weight.is_meta for weight in model.parameters()), "it stays where it is"


def test_its_cache_is_that_of_the_whole_teacher(saved, tmp_path, make_tokens):
    source, tokens = spread(saved, "layers"), make_tokens
    assert source.fingerprint() == ModelSource(str(saved)).fingerprint()
    fabric = L.Fabric(accelerator="cpu", devices=1)
    cache = TeacherCache(tmp_path, source.fingerprint(), "32-true", [tokens])
    with cache.lock():
        cache.write(LiveTeacher(source.load(TOKENS)), fabric, 64, share=1.0)
    stored = cache.open()
    whole = LiveTeacher(ModelSource(str(saved)).load(TOKENS))
    for row in range(len(tokens)):
        ids, n_prompt, *_ = tokens[row]
        positions = torch.zeros(1, len(ids), dtype=torch.bool)
        positions[:, n_prompt - 1 : -1] = True
        batch = {"input_ids": ids.unsqueeze(0), "rows": torch.tensor([row])}
        assert torch.equal(stored.hidden(batch, positions), whole.hidden(batch, positions))


@pytest.fixture
def make_tokens():
    from amid.data.tokens import Tokens

    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 14, 20])
    ids = torch.randint(2, 900, (int(lengths.sum()),), generator=generator)
    return Tokens(ids, lengths.cumsum(0), torch.tensor([3, 5, 2]))


def test_what_cannot_be_spread(saved):
    with pytest.raises(InputError, match=r"quantization=int8 with device_map=auto: a model that is"):
        ModelSource(str(saved), device_map="auto", quantization="int8")
    with pytest.raises(InputError, match="device_map=everywhere must be auto, balanced or sequential"):
        ModelSource(str(saved), device_map="everywhere")
    assert not is_spread(ModelSource(str(saved), device_map="auto").load(TOKENS)), "one device is enough"


def test_a_mapping_gives_each_module_one_device(saved):
    def refusal(device_map):
        with pytest.raises(InputError) as error:
            ModelSource(str(saved), device_map=device_map).load(TOKENS)
        return str(error.value)

    parts = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu"}
    assert "has no device for lm_head; add it" in refusal(parts)
    unknown = refusal(parts | {"model.norms": "cpu"})
    assert unknown.startswith("model device_map.model.norms=cpu: LlamaForCausalLM has no such module")
    assert unknown.endswith("did you mean 'model.norm'?")
    nested = refusal({"model": "cpu", "lm_head": "cpu", "model.layers.1": "disk"})
    assert "model has a device too, and model.layers.1 is in it" in nested
    for device in (7, "cuda:7"):
        message = refusal({"": device})
        assert message.startswith(f"model device_map.={device}: this machine does not have this device (")
        assert message.endswith("); use auto, or a device that there is")
    layers = ModelSource(str(saved), device_map=parts | {"lm_head": "cpu"}).load(TOKENS)
    assert all(weight.is_meta for weight in layers.model.layers.parameters())
    teacher, whole = LiveTeacher(layers), LiveTeacher(ModelSource(str(saved)).load(TOKENS))
    ids = torch.arange(2, 20).unsqueeze(0)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    states = [of.hidden({"input_ids": ids}, everywhere) for of in (teacher, whole)]
    assert torch.equal(*states)
