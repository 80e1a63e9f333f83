"""`amid evaluate`."""

import json
import shutil

import peft
import pytest
import torch
from command_line import run
from families import network
from gguf_files import write_gguf
from transformers import AutoConfig, AutoModelForCausalLM

from amid import results
from amid.data.builtin import tokenizer
from amid.errors import InputError
from amid.models.source import ModelSource, load_tokenizer


def test_evaluate_without_a_model_or_a_whole_seed_says_what_it_takes(tmp_path, capsys):
    assert run("evaluate", f"output_dir={tmp_path}") == 1
    err = capsys.readouterr().err
    assert "or a model and data, model.student.path=MODEL data=dolly" in err
    assert run("evaluate", f"output_dir={tmp_path}", "model.student.path=any") == 1
    assert "data=builtin is for models that were trained on it" in capsys.readouterr().err
    assert run("evaluate", f"output_dir={tmp_path}", "model.student.path=any", "seed=1.5") == 1
    assert "seed=1.5 must be a whole number" in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))


def test_a_refused_evaluation_leaves_no_folder(tmp_path):
    assert run("evaluate", "run=nope", f"output_dir={tmp_path / 'scores'}") == 1
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=nope,none"], "run 1 of 2 (run=nope): result nope does not exist"),
        (
            ["run=nope", "generation.top_p=0.9,2"],
            "run 2 of 2 (generation.top_p=2): generation.top_p=2 must be",
        ),
        (["seed=1,x", "run=nope"], "run 2 of 2 (seed=x): seed=x must be a whole number"),
        (
            ["data=jsonl", "model.student.path=/no", "+data.test.m=no.jsonl,none.jsonl"],
            "run 1 of 2 (+data.test.m=no.jsonl): data.test.m=no.jsonl: data file no.jsonl cannot be read",
        ),
        (
            ["data=jsonl", "model.student.path=/no,/none"],
            "run 1 of 2 (model.student.path=/no): the tokenizer of model.student.path='/no'",
        ),
        (["data=jsonl", "name=a,b"], "run 1 of 2 (name=a): give a finished run to score"),
    ],
)
def test_several_evaluations_one_of_which_would_be_refused_start_none(tmp_path, capsys, arguments, message):
    assert run("evaluate", "-m", *arguments, f"output_dir={tmp_path / 'scores'}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"amid: {message}")
    assert line.endswith("; nothing was started")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_evaluate_on_other_data_keeps_the_folder_of_each_run(quick, finished, tmp_path, jsonl):
    path = jsonl({"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"})
    assert run("train", *quick, "seed=2") == 0
    shutil.copytree(finished, tmp_path / "runs" / finished.name)
    out = f"output_dir={tmp_path / 'scores'}"
    for directory in (tmp_path / "runs").iterdir():
        assert run("evaluate", f"run={directory}", f"+data.test.mine={path}", out) == 0
    scored = results.load_all(tmp_path / "scores")
    assert len(scored) == 2
    assert all(set(result.scores) == {"open", "closed", "mine"} for result in scored)
    assert all(result.timings["evaluate"] > 0 for result in scored)
    assert {result.labels["method"] for result in scored} == {"amid"}
    assert {result.seed for result in scored} == {1, 2}
    assert len({result.config_hash for result in scored}) == 2
    trained = results.load(directory).labels["settings"]
    assert scored[0].labels["settings"] == f"{trained},data.test.mine={path}"
    assert run("evaluate", f"run={directory}", "seed=3", out) == 1
    model = tmp_path / "model"
    shutil.copytree(next((tmp_path / "runs").iterdir()) / "checkpoints" / "best", model)
    sets = ["data=jsonl", "data/template=builtin", f"+data.test.mine={path}", "generation.max_new_tokens=3"]
    for pair in ("tiny", "gpt2_xl_to_gpt2"):
        given = [f"model={pair}", f"model.student.path={model}", *sets]
        assert run("evaluate", *given, f"output_dir={tmp_path / pair}") == 0


def test_a_model_with_nan_in_its_weights_is_refused_in_a_line(tmp_path, jsonl, capsys):
    model = network()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    path = jsonl({"instruction": "a", "output": "b"})
    given = ["data=jsonl", "data/template=builtin", f"+data.test.mine={path}", "generation.max_new_tokens=3"]
    given += [f"model.student.path={tmp_path / 'model'}", f"output_dir={tmp_path / 'scores'}"]
    capsys.readouterr()
    assert run("evaluate", *given) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"model.student.path={tmp_path}/model gives logits that are NaN or infinite" in line
    assert "traceback" not in line


def cut_off(*_):
    raise InputError("no more")


@pytest.mark.slow
def test_what_an_evaluation_is_given_goes_before_what_its_run_had(
    finished, tmp_path, jsonl, capsys, monkeypatch
):
    folder = finished
    path = jsonl({"instruction": "say it", "output": "it"})
    out = f"output_dir={tmp_path / 'again'}"
    given = [f"run={folder}", out, f"data.test.open={path}", "~data.test.closed", "data/metrics=summary"]
    assert run("evaluate", *given, "name=teacher") == 0
    (again,) = [results.load(file) for file in (tmp_path / "again").glob("*/result.json")]
    assert list(again.scores) == ["open"]
    assert {"rouge_l", "rouge_1", "rouge_2"} <= again.scores["open"].keys()
    assert again.labels["method"] == "teacher"
    (evaluation,) = (tmp_path / "again").iterdir()
    capsys.readouterr()
    assert run("evaluate", *given, "name=teacher") == 0
    assert (
        f"{evaluation} is finished already; to score it anew, delete the folder\n" in capsys.readouterr().out
    )
    scores = (evaluation / "result.json").read_bytes()
    other = shutil.copytree(folder, tmp_path / "other")
    assert run("evaluate", *given, f"run={other}", f"hydra.run.dir={evaluation}") == 1
    assert f"holds the scores of another model, {folder}" in capsys.readouterr().err
    assert (evaluation / "result.json").read_bytes() == scores
    jsonl({"instruction": "say this", "output": "this"})
    with monkeypatch.context() as patched:
        patched.setattr("amid.cli.evaluate.evaluate_sets", cut_off)
        assert run("evaluate", *given, "name=teacher") == 1
    assert not (evaluation / "result.json").exists()
    assert run("evaluate", *given, "name=teacher") == 0
    assert results.load(evaluation).config_hash != again.config_hash
    capsys.readouterr()
    assert run("evaluate", f"run={evaluation}", out) == 1
    assert "has no student in checkpoints/best; give a training run" in capsys.readouterr().err


def test_a_model_that_is_evaluated_has_its_own_name(finished, tmp_path, jsonl):
    path = jsonl({"instruction": "say it", "output": "it"})
    given = [f"model.student.path={finished / 'checkpoints' / 'best'}", f"+data.test.own={path}"]
    given += ["data=jsonl", "data/template=builtin", "data.max_length=40", "data.max_prompt_length=16"]
    out = f"output_dir={tmp_path / 'scores'}"
    assert run("evaluate", *given, out, "generation.seeds=[1]") == 0
    (scored,) = [results.load(file) for file in (tmp_path / "scores").glob("*/result.json")]
    assert (scored.labels["method"], scored.labels["model"]) == ("best", "best")


@pytest.mark.parametrize("kind", ["hub", "adapters", "gguf"])
def test_models_from_elsewhere_score_as_their_plain_copies(kind, hub, tmp_path, jsonl):
    tok = tokenizer()
    path = {"hub": "owner/name@v2", "adapters": str(tmp_path / "adapters"), "gguf": "owner/name/a.gguf"}[kind]
    if kind == "gguf":
        write_gguf(tmp_path / "a.gguf", tok, vocabulary=len(tok))
        hub.add("owner/name", {"a.gguf": (tmp_path / "a.gguf").read_bytes()})
    else:
        network().save_pretrained(tmp_path / "model")
        tok.save_pretrained(tmp_path / "model")
        hub.add("owner/name", tmp_path / "model", revision="v2")
    if kind == "adapters":
        config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(network(), config)
        adapted.peft_config["default"].base_model_name_or_path = "owner/name@v2"
        adapted.save_pretrained(tmp_path / "adapters")
    own = load_tokenizer(path)
    ModelSource(path).load(own).save_pretrained(tmp_path / "plain")
    own.save_pretrained(tmp_path / "plain")
    rows = jsonl(*({"instruction": word, "output": word} for word in ("one", "two", "three")))
    given = ["data=jsonl", "data/template=builtin", f"+data.test.own={rows}", "generation.max_new_tokens=6"]
    for place, out in ((path, "one"), (tmp_path / "plain", "other")):
        assert run("evaluate", f"model.student.path={place}", *given, f"output_dir={tmp_path / out}") == 0
    ((one,), (other,)) = (results.load_all(tmp_path / out) for out in ("one", "other"))
    for name, score in one.scores["own"].items():
        assert score.values == pytest.approx(other.scores["own"][name].values, rel=1e-5, nan_ok=True)
    answers = [next((tmp_path / out).rglob("own-10.jsonl")).read_text() for out in ("one", "other")]
    texts = [[json.loads(line)["answers"][0]["text"] for line in text.splitlines()] for text in answers]
    assert texts[0] == texts[1]
    assert any(texts[0])
    assert one.labels["method"] == {"hub": "name@v2", "adapters": "adapters", "gguf": "a.gguf"}[kind]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ([], "Prompts stand in the tokenizer's chat template, and an answer ends with <end>"),
        (["data.template.chat=null"], "without the chat template that the tokenizer has"),
    ],
    ids=["by_the_tokenizer", "null"],
)
def test_a_chat_model_named_by_its_path_is_asked_in_its_chat_template(
    setting, said, tmp_path, jsonl, capsys, monkeypatch
):
    tok = tokenizer()
    tok.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tok.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=len(tok), **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tok.save_pretrained(tmp_path / "model")
    path = jsonl({"instruction": "say it", "output": "it"})
    seen = []

    def decode(self, model, tokenizer, sets, *_, **__):
        seen.append(sets["own"])
        cut_off()

    monkeypatch.setattr("amid.generation.Sampling._decode_sets", decode)
    given = [f"model.student.path={tmp_path / 'model'}", "data=jsonl", f"+data.test.own={path}"]
    assert run("evaluate", *given, *setting, f"output_dir={tmp_path / 'scores'}") == 1
    assert said in capsys.readouterr().out
    ((prompt,),) = seen
    assert tok.decode(prompt).startswith("Below" if setting else "<user>Below")
