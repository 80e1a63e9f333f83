import pytest

from amid.reporting import build_table
from amid.reporting.published import against_published, other_pairs, published


class TestPublished:
    def test_each_figure_says_where_it_is_from(self):
        assert all(figures.source and figures.second_hand is True for figures in published())
        (amid,) = [figures for figures in published() if figures.labels["method"] == "amid"]
        assert amid.values["Avg"] == 23.40
        for figures in published():
            sets = [value for name, value in figures.values.items() if name != "Avg"]
            assert not sets or abs(sum(sets) / len(sets) - figures.values["Avg"]) < 0.011

    def test_only_runs_of_the_same_pair_data_and_setting(self, make_run):
        sets = ("dolly", "selfinst", "vicuna", "sni", "unni")
        theirs = {"model": "gpt2_xl_to_gpt2", "data": "dolly"}
        runs = [
            make_run((26.0,), sets=sets, **theirs),
            make_run((26.0,), sets=sets, **theirs, lam=0.5),
            make_run((21.0,), sets=sets[:1], **theirs, method="abkd", alpha=None, lam=None, order="pq"),
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

    @pytest.mark.parametrize(
        ("sets", "average"),
        [
            (("dolly", "selfinst", "vicuna", "sni", "unni"), "29.00 / 23.29† (+5.71)"),
            (("dolly", "vicuna"), "– / 23.29†"),
        ],
    )
    def test_an_average_is_compared_over_the_sets_of_its_table_alone(self, make_run, sets, average):
        theirs = {"model": "gpt2_xl_to_gpt2", "data": "dolly", "method": "teacher"}
        section = against_published(build_table([make_run((29.0,), sets=sets, **theirs)]))
        (line,) = section.lines
        assert dict(zip(section.heads, line, strict=True))["Avg"] == average

    def test_no_figure_belongs_to_another_pair(self, make_run):
        table = build_table([make_run()])
        assert against_published(table) is None
        assert "gpt2_xl_to_gpt2 on dolly" in other_pairs(table)
