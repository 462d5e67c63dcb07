import json

import pytest

from bench.main import main


def test_a_benchmark_compares_both_layouts_on_the_same_rollouts(tmp_path, capsys):
    assert main(["step", "--rollouts", "2,3", "--steps", "1", "--pairs", "2", "--out", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "step.json").read_text())["records"]
    assert [record["num_rollouts"] for record in records] == [2, 3]
    for record in records:
        # Flat: every rollout brings its context again.
        assert record["flat_tokens"] > record["tree_tokens"] > 0
        assert min(record["tree_s_min"], record["flat_s_min"], record["rollout_s_min"]) > 0
        assert record["flat_over_tree"] == pytest.approx(record["flat_s_median"] / record["tree_s_median"])
    assert (tmp_path / "step.md").read_text().strip() in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["0", "4,x"])
def test_a_number_of_rollouts_that_makes_no_sense_is_one_line(bad, capsys):
    assert main(["step", "--rollouts", bad]) == 1
    assert capsys.readouterr().err.startswith("error: ")
