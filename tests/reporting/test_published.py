import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from amid.config.compose import register_resolvers
from amid.config.folders import CONF
from amid.config.identity import _WAYS_TO_COMPUTE
from amid.config.run_names import LIMITS, further_settings
from amid.reporting import build_table
from amid.reporting.published import (
    against_published,
    beside_published,
    other_pairs,
    published,
    published_score,
)
from amid.results import Score

register_resolvers()
SETS = ("dolly", "selfinst", "vicuna", "sni", "unni")
PAIR = {"model": "gpt2_xl_to_gpt2", "data": "dolly", "settings": "text=adaptive"}
ALONE = {"assistant": "none", "alpha": None, "lam": None, "order": "pq"}
ABKD = ALONE | {"method": "abkd"}
GKD = ALONE | {"method": "gkd", "divergence": "jensen_shannon"}


class TestPublished:
    def test_each_figure_says_where_it_is_from(self):
        assert all(figures.source and figures.second_hand is True for figures in published())
        (amid,) = [figures for figures in published() if figures.labels["method"] == "amid"]
        assert amid.values["Avg"] == 23.40
        for figures in published():
            sets = [value for name, value in figures.values.items() if name != "Avg"]
            assert not sets or abs(sum(sets) / len(sets) - figures.values["Avg"]) < 0.011

    def test_only_runs_of_the_same_pair_data_and_setting(self, make_run):
        runs = [
            make_run((26.0,), sets=SETS, **PAIR),
            make_run((26.0,), sets=SETS, **PAIR, lam=0.5),
            make_run((21.0,), sets=SETS[:1], **PAIR, **ABKD),
        ]
        table = build_table(runs)
        section = against_published(table)
        assert len(section.lines) == 2
        cells = {
            line[0].split()[0]: dict(zip(section.heads[1:], line[1:], strict=True)) for line in section.lines
        }
        assert cells["AMiD"]["dolly"] == "26.00 / 26.44† (-0.44)"
        assert cells["AMiD"]["Avg"] == "26.00 / 23.40† (+2.60)"
        assert cells["ABKD"]["dolly"] == "21.00 / 25.49† (-4.49)"
        assert cells["ABKD"]["vicuna"] == "– / 17.36†"
        assert other_pairs(table) is None
        assert beside_published(table) is None

    @pytest.mark.parametrize(
        ("labels", "belongs"),
        [
            ({"settings": "text=adaptive"}, True),
            (
                {
                    "settings": "data.plain_text=a,b.txt,experiment=dolly_gpt2,"
                    "text=adaptive,trainer.devices=[1]"
                },
                True,
            ),
            ({"settings": None}, False),  # on the data, where the published scripts are on adaptive text
            ({"settings": "text=student"}, False),
            ({"settings": "text=adaptive,trainer.max_steps=10"}, False),
            ({"settings": "assistant.detach_student=true,text=adaptive"}, False),
            ({**ABKD, "settings": None}, True),
            ({**ABKD, "settings": "text=adaptive"}, True),
            ({**ABKD, "settings": "text=student"}, False),
            ({**ABKD, "settings": None, "divergence": "kl"}, False),
            ({**GKD, "settings": None}, True),
            ({**GKD, "settings": None, "divergence": "kl"}, False),
            ({**GKD, "settings": "optimizer.lr=1"}, False),
        ],
    )
    def test_a_figure_belongs_to_the_published_settings_alone(self, make_run, labels, belongs):
        table = build_table([make_run(sets=SETS, **PAIR | labels)])
        assert (against_published(table) is not None) == belongs
        score = published_score(table, table.rows[0], "rouge_l", "dolly")
        assert (score is not None) == belongs

    def test_what_changes_no_result_is_free(self, make_run):
        of_nodes = LIMITS | _WAYS_TO_COMPUTE
        keys = {f"{node}.{key}" for node, of in of_nodes.items() if node != "sft" for key in of}
        keys |= {f"model.{role}.sft.{key}" for role in ("teacher", "student") for key in of_nodes["sft"]}
        overrides = [f"{key}=1" for key in keys]
        settings = further_settings(["text=adaptive", *overrides])
        assert against_published(build_table([make_run(**PAIR | {"settings": settings})])) is not None

    @pytest.mark.parametrize("method", ["gkd", "taid", "distillm_srkl", "abkd", "amid"])
    def test_the_labels_are_those_of_the_method_s_preset(self, method):
        (figures,) = [figures for figures in published() if figures.labels["method"] == method]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [f"method={method}"], return_hydra_config=True)
        objective = instantiate(cfg.objective)
        of_preset = {"divergence": cfg.hydra.runtime.choices.divergence, "order": objective.order}
        if objective.assistant is not None:
            of_preset |= {name: getattr(objective.assistant, name) for name in ("alpha", "lam")}
        assert {"method": method, **of_preset}.items() >= figures.labels.items()

    @pytest.mark.parametrize(
        ("sets", "average"), [(SETS, "29.00 / 23.29† (+5.71)"), (("dolly", "vicuna"), "– / 23.29†")]
    )
    def test_an_average_is_compared_over_the_sets_of_its_table_alone(self, make_run, sets, average):
        section = against_published(build_table([make_run((29.0,), sets=sets, **PAIR, method="teacher")]))
        (line,) = section.lines
        assert dict(zip(section.heads, line, strict=True))["Avg"] == average

    def test_a_run_that_diverged_is_no_number(self, make_run):
        run = make_run(sets=("dolly",), **PAIR | GKD)
        run.scores["dolly"].clear()
        run.training["diverged_step"] = 3.0
        (line,) = against_published(build_table([run])).lines
        assert line[1:3] == ["diverged / 24.58†", "diverged / 11.78†"]

    def test_no_figure_belongs_to_another_pair(self, make_run):
        table = build_table([make_run()])
        assert against_published(table) is None
        assert "gpt2_xl_to_gpt2 on dolly" in other_pairs(table)


class TestBesidePublished:
    """AMiD above GKD by 3.63, ABKD by 1.64 and the teacher by 0.11, as published."""

    def lines(self, runs):
        section = beside_published(build_table(runs))
        return {line[0]: dict(zip(section.heads[1:], line[1:], strict=True)) for line in section.lines}

    def test_one_training_seed_points_a_way(self, make_run):
        runs = [make_run((60.0,)), make_run((58.0,), **GKD), make_run((61.5,), **ABKD), make_run(method="kd")]
        found = self.lines(runs)
        assert found["AMiD"] == {
            "Ours": "60.00",
            "Published": "23.40†",
            **dict.fromkeys(("Δ ours", "Δ published", "Direction"), "–"),
        }
        assert found["GKD"] == {
            "Ours": "58.00",
            "Published": "19.77†",
            "Δ ours": "+2.00",
            "Δ published": "+3.63†",
            "Direction": "one seed: same way",
        }
        assert found["ABKD"]["Direction"] == "one seed: other way"
        assert list(found) == ["GKD", "ABKD", "AMiD"]

    def test_several_seeds_agree_or_do_not(self, make_run):
        runs = [
            make_run((score,), seed=seed, **labels)
            for seed in (1, 2)
            for score, labels in ((60.0 + seed, {}), (50.0 + 1.5 * seed, GKD), (70.0 + seed, ABKD))
        ]
        found = self.lines(runs)
        assert (found["GKD"]["Δ ours"], found["GKD"]["Direction"]) == ("+9.25 ± 0.25", "agrees")
        assert (found["ABKD"]["Δ ours"], found["ABKD"]["Direction"]) == ("-10.00 ± 0.00", "does not agree")

    def test_within_the_spread_and_diverged(self, make_run):
        ours = [make_run((score,), seed=seed) for seed, score in ((1, 60.0), (2, 62.0))]
        gkd = [make_run((score,), seed=seed, **GKD) for seed, score in ((1, 61.0), (2, 60.5))]
        assert self.lines([*ours, *gkd])["GKD"]["Direction"] == "within the spread"
        gkd[1].training["diverged_step"] = 5.0
        assert self.lines([*ours, *gkd])["GKD"]["Direction"] == "a run diverged"

    def test_the_note_says_what_is_other_than_published(self, make_run):
        note = beside_published(build_table([make_run(), make_run(**GKD)])).note
        assert "of gpt2_xl_to_gpt2 on dolly)" in note
        assert "[AMiD] arXiv 2510.15982 (†: read second-hand)" in note
        assert "Our experiment differs: model tiny, data builtin; AMiD without text=adaptive." in note
        runs = [
            make_run(**PAIR | {"settings": s})
            for s in ("text=adaptive,trainer.max_steps=10", "text=adaptive")
        ]
        assert "Our experiment differs: trainer.max_steps=10." in beside_published(build_table(runs)).note

    def test_methods_of_other_settings_or_pairs_are_not_compared(self, make_run):
        runs = [
            make_run((60.0,), settings="optimizer.lr=1"),
            make_run((58.0,), settings="optimizer.lr=2", **GKD),
            make_run((57.0,), settings="optimizer.lr=1", **GKD),
            make_run((56.0,), settings="optimizer.lr=1", model="other", **GKD),
        ]
        found = self.lines(runs)
        differences = {name: line["Δ ours"] for name, line in found.items()}
        assert differences == {
            "AMiD Model=tiny settings=optimizer.lr=1": "–",
            "GKD Model=other settings=optimizer.lr=1": "–",
            "GKD Model=tiny settings=optimizer.lr=1": "+3.00",
            "GKD Model=tiny settings=optimizer.lr=2": "–",
        }

    def test_a_free_setting_does_not_part_methods(self, make_run):
        runs = [
            make_run((60.0,), settings=None),
            make_run((61.0,), settings="objective.fused=false,text=adaptive"),
            make_run((58.0,), settings=None, **GKD),
        ]
        assert self.lines(runs)["GKD"]["Δ ours"] == "+3.00"  # to AMiD as published, on adaptive text

    def test_without_a_score_or_a_published_method_there_is_none(self, make_run):
        unscored = make_run()
        unscored.scores["dolly"] = {"exact_match": Score.over_seeds([12.5])}
        assert beside_published(build_table([unscored])) is None
        assert beside_published(build_table([make_run(lam=0.5), make_run(method="kd")])) is None
