"""A judge over a benchmark: its folder is a function of data and judge, however often the run was interrupted."""

import json
import re
import shutil
from dataclasses import asdict

import pytest

from eval.aggregate_command import aggregate
from eval.answer_run import run_infobench
from eval.benchmark_run import run_benchmark
from eval.benchmarks import BENCHMARKS
from eval.data.answered import read_infobench
from eval.judges.judge import Drawn
from eval.main import main
from eval.run_command import JUDGED
from eval.run_report import Voted
from patarm_core.benchmarks.infobench import ALL_ASKED
from tests.eval.data import layouts
from tests.eval.fake_judge import FakeJudge

ROWS = {
    "rm_bench": ("chat_filtered.json", layouts.listed, [layouts.rm_bench_row(number) for number in range(4)]),
    "rewardbench": ("rb.jsonl", layouts.lines, [layouts.rewardbench_row(number=number) for number in range(4)]),
    "rewardbench2": ("rb2.jsonl", layouts.lines, [layouts.rewardbench2_row(name=str(name)) for name in range(4)]),
    "rmb": ("rmb.json", layouts.listed, [layouts.rmb_pair(0), layouts.rmb_pair(1), *map(layouts.rmb_list, range(4))]),
    "hep": ("python.jsonl", layouts.lines, [layouts.hep_row(number) for number in range(4)]),
    "llmbar": ("Natural.json", layouts.listed, [layouts.llmbar_row(input=f"Say {i}.") for i in range(4)]),
    "judgebench": ("jb.jsonl", layouts.lines, [layouts.judgebench_row(str(name)) for name in range(4)]),
}
CASES = [
    (name, mode)
    for name in BENCHMARKS
    for mode in ("pointwise", "pairwise")
    if (name, mode) != ("rewardbench2", "pairwise")
]


@pytest.fixture
def data_of(tmp_path):
    def read(name: str):
        file, write, rows = ROWS[name]
        return BENCHMARKS[name].read(write(tmp_path / name / file, rows))

    return read


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def of_reports(folder) -> dict[str, bytes]:
    return {name: text for name, text in contents(folder).items() if name != "judgments.jsonl"}


def metrics(voted: Voted) -> list[dict]:
    return [asdict(metric) for metric in voted.report.metrics]


@pytest.mark.parametrize("name, mode", CASES)
def test_rows_give_the_aggregation_the_numbers_of_the_report(name, mode, data_of, tmp_path):
    voted = run_benchmark(name, data_of(name), FakeJudge(mode), [1, 4], tmp_path / "run")
    for number, one in enumerate(voted):
        file = tmp_path / "run" / ("rows.jsonl" if number == 0 else f"rows/{one.label}.jsonl")
        again = aggregate(BENCHMARKS[name].aggregation, file)
        assert [asdict(metric) for metric in again.metrics] == metrics(one)
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    judgments = [json.loads(line) for line in (tmp_path / "run" / "judgments.jsonl").read_text().splitlines()]
    assert told["num_unparsed"] == sum(one["error"] is not None for one in judgments) and told["num_failed"] == 0


def test_every_benchmark_has_its_command():
    assert set(JUDGED) == set(BENCHMARKS)


def test_ids_that_recur_reach_the_report(tmp_path):
    """As in RewardBench: the second `x` is `x.2` in the rows, too, whose ids no aggregation takes twice."""
    data = BENCHMARKS["rm_bench"].read(layouts.listed(tmp_path / "chat.json", [layouts.rm_bench_row()] * 2))
    run_benchmark("rm_bench", data, FakeJudge(), [1], tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["chat/8", "chat/8.2"]


class Knowing(FakeJudge):
    """Prefers the right one of the texts in `ROWS`."""

    def drawn(self, question, vote):
        known = {"text": "judgment", "seed": vote}
        right = [response.startswith(("good", "def f(x):\n    return x")) for response in question.responses]
        return (
            Drawn(choice="AB"[right.index(True)], **known) if len(right) == 2 else Drawn(score=float(right[0]), **known)
        )


@pytest.mark.parametrize("name, mode", CASES)
def test_a_judge_that_knows_has_all_right_in_every_order(name, mode, data_of, tmp_path):
    for one in run_benchmark(name, data_of(name), Knowing(mode), [1, 2], tmp_path / "run"):
        assert {metric.value for metric in one.report.metrics} == {1.0} and one.report.num_ties == 0


class Coarse(FakeJudge):
    """Prefers the one, prefers the other, gives both the same, cannot be read: by the item's number."""

    def drawn(self, question, vote):
        number, side = map(int, re.search(r"(\d+)#(\d+)$", question.id).groups())
        score = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (None, 1.0))[number][side % 2]
        return Drawn(text="judgment", seed=vote, score=score, error="unparsed" if score is None else None)


@pytest.mark.parametrize("name", [name for name, mode in CASES if mode == "pointwise" and name != "rewardbench2"])
def test_one_vote_says_the_same_by_majority_and_by_average(name, data_of, tmp_path):
    """The vote is for the side with the higher score; a tie and an unparsed judgment are counted alike, too."""
    voted = {one.label: one for one in run_benchmark(name, data_of(name), Coarse(), [1, 4], tmp_path / "run")}
    average, majority = (voted[f"{policy}@1"].report for policy in ("average", "majority"))
    assert average.num_ties > 0 and average.num_unparsed > 0
    assert majority == average


def test_ties_of_a_judge_that_compares_are_counted_as_ties(data_of, tmp_path):
    class Undecided(FakeJudge):
        def drawn(self, question, vote):
            return Drawn(text="judgment", choice="tie", seed=vote)

    (voted,) = run_benchmark("llmbar", data_of("llmbar"), Undecided("pairwise"), [1], tmp_path / "run")
    assert (voted.report.num_ties, voted.report.num_unparsed) == (8, 0)


def test_rows_of_other_votes_do_not_stay_behind(data_of, tmp_path):
    data = data_of("rm_bench")
    for votes, files in (([1, 2, 4], 5), ([1, 4], 3)):
        run_benchmark("rm_bench", data, FakeJudge(), votes, tmp_path / "run")
        assert len(list((tmp_path / "run" / "rows").iterdir())) == files


@pytest.mark.parametrize("name, mode", [("rm_bench", "pointwise"), ("judgebench", "pairwise")])
def test_an_interrupted_run_ends_as_one_that_was_not(name, mode, data_of, tmp_path):
    data = data_of(name)
    run_benchmark(name, data, FakeJudge(mode), [1, 2], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(name, data, FakeJudge(mode, order=1, stop_after=3), [1, 2], tmp_path / "cut")
    with open(tmp_path / "cut" / "judgments.jsonl", "a") as file:
        file.write('{"question": "half a li')  # as a kill leaves it
    later = FakeJudge(mode, order=2)
    run_benchmark(name, data, later, [1, 2], tmp_path / "cut")
    assert of_reports(tmp_path / "cut") == of_reports(tmp_path / "whole")
    lines = [sorted((tmp_path / run / "judgments.jsonl").read_text().splitlines()) for run in ("cut", "whole")]
    assert lines[0] == lines[1] and len(later.asked) == len(lines[0]) // 2 - 3
    before, nobody = contents(tmp_path / "cut"), FakeJudge(mode, stop_after=0)
    run_benchmark(name, data, nobody, [1, 2], tmp_path / "cut")
    assert contents(tmp_path / "cut") == before


def test_fewer_votes_come_from_the_same_judgments(data_of, tmp_path):
    data = data_of("rm_bench")
    of_more = run_benchmark("rm_bench", data, FakeJudge(), [1, 2, 4], tmp_path / "more")
    of_one = run_benchmark("rm_bench", data, FakeJudge(), [1], tmp_path / "one")
    by_label = {one.label: metrics(one) for one in of_more}
    assert list(by_label) == [f"{policy}@{n}" for policy in ("average", "majority") for n in (4, 2, 1)]
    assert all(metrics(one) == by_label[one.label] for one in of_one)


def test_what_got_no_reply_is_counted_and_asked_again_on_request(data_of, tmp_path):
    data = data_of("rewardbench")
    run_benchmark("rewardbench", data, FakeJudge(), [2], tmp_path / "right")
    lost = tuple(f"{data.items[0].id}#{i}" for i in range(2))
    voted = run_benchmark("rewardbench", data, FakeJudge(fails=lost), [2], tmp_path / "run")
    assert "4 of 16 judgments got no reply; --retry asks again" in (tmp_path / "run" / "report.md").read_text()
    assert voted[0].report.num_unparsed >= 1
    again = FakeJudge()
    run_benchmark("rewardbench", data, again, [2], tmp_path / "run", retry=True)
    assert sorted(again.asked) == sorted(lost)
    assert of_reports(tmp_path / "run") == of_reports(tmp_path / "right")


def test_a_folder_takes_no_other_judge_and_no_other_data(data_of, tmp_path):
    data = data_of("rm_bench")
    run_benchmark("rm_bench", data, FakeJudge(), [1], tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"seed 0, now 1"):
        run_benchmark("rm_bench", data, FakeJudge(fingerprint={"seed": 1}), [1], tmp_path / "run")
    with pytest.raises(ValueError, match="data"):
        run_benchmark("rm_bench", data.first(2), FakeJudge(), [1], tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_judge_that_compares_cannot_rank_many(data_of, tmp_path):
    with pytest.raises(ValueError, match="pointwise judge"):
        run_benchmark("rewardbench2", data_of("rewardbench2"), FakeJudge("pairwise"), [1], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_runs_a_benchmark_and_goes_on(tiny_judge, tmp_path, capsys):
    data = layouts.listed(tmp_path / "chat_filtered.json", ROWS["rm_bench"][2])
    command = [
        "rm_bench", "--model", str(tiny_judge), "--data", str(data), "--votes", "1,2", "--out", str(tmp_path / "run"),
        "--template", "bare", "--max-completion-tokens", "24", "--first", "2",
    ]  # fmt: skip
    assert main(command) == 0
    first = capsys.readouterr()
    assert "average@2" in first.out and "not the whole" in first.out.lower()
    assert "math (529)" in first.err
    before = contents(tmp_path / "run")
    assert len((tmp_path / "run" / "judgments.jsonl").read_text().splitlines()) == 2 * 6 * 2
    assert main(command) == 0
    assert contents(tmp_path / "run") == before and capsys.readouterr().out == first.out
    assert main(["aggregate", "rm_bench", str(tmp_path / "run" / "rows.jsonl")]) == 0
    assert main([*command, "--seed", "1"]) == 1
    assert "seed" in capsys.readouterr().err


def test_infobench_asks_about_recorded_outputs_or_those_of_a_model(tiny_judge, tmp_path, capsys):
    rows = [layouts.infobench_row(f"task_{i}", output=f"Title {i}") for i in range(2)]
    data = layouts.lines(tmp_path / "infobench.jsonl", rows)
    model = shutil.copytree(tiny_judge, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    command = ["infobench", "--data", str(data), "--judge-model", str(model), "--max-completion-tokens", "8"]
    assert main([*command, "--out", str(tmp_path / "recorded")]) == 0
    # The tiny judge says neither yes nor no: a chat ends with its first question, and nothing counts as a silent no.
    told = json.loads((tmp_path / "recorded" / "report.json").read_text())
    assert told["num_unparsed"] == told["num_judgments"] == 2
    every = told["voting"][0]["report"]["policies"][ALL_ASKED][0]
    assert every["num"] == 4  # two questions each, of which one was asked
    assert main([*command, "--model", str(model), "--out", str(tmp_path / "answered")]) == 0
    assert len((tmp_path / "answered" / "responses.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    assert main(["infobench", "--data", str(data), "--out", str(tmp_path / "none")]) == 1
    assert "who answers yes or no" in capsys.readouterr().err


def test_infobench_asks_in_a_chat_that_grows_as_published(tmp_path):
    """The first turn holds the text, a later one the bare question; every answer stays in the chat."""

    class Yes(FakeJudge):
        def drawn(self, question, vote):
            chats.append([turn["content"] for turn in question.prompt] + list(question.responses))
            return Drawn(text="YES", score=1.0)

    chats = []
    row = layouts.infobench_row("task", output="A title")
    run_infobench(read_infobench(layouts.lines(tmp_path / "infobench.jsonl", [row])), None, Yes(), tmp_path / "run")
    first, second = chats
    asked = row["decomposed_questions"]
    assert '"A title"' in first[0] and first[0].endswith(f"Question:\n{asked[0]}\n")
    assert second == [first[0], "YES", f"{asked[1]}\n"]


def test_ifeval_has_a_model_answer_and_goes_on_where_it_was_cut(tiny_judge, tmp_path, capsys):
    long = {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"relation": "less than"}]}
    long["kwargs"][0]["num_words"] = 3
    rows = [layouts.ifeval_row(1000), layouts.ifeval_row(1001, prompt="Write little.", **long)]
    data = layouts.lines(tmp_path / "input_data.jsonl", rows)
    command = ["ifeval", "--model", str(tiny_judge), "--data", str(data), "--max-completion-tokens", "8"]
    run = tmp_path / "run"
    assert main([*command, "--out", str(run)]) == 0
    told, err = capsys.readouterr()
    assert "response/s" in err and "judgment/s" not in err
    before, report = contents(run), json.loads((run / "report.json").read_text())
    written = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    assert [row["key"] for row in written] == [1000, 1001] and all(row["response"] for row in written)
    again = aggregate("ifeval", run / "rows.jsonl")
    assert json.loads(json.dumps(asdict(again))) == report["voting"][0]["report"]
    assert "Prompt strict" in told and "number_words" in told
    lines = (run / "responses.jsonl").read_bytes().splitlines(keepends=True)
    (run / "responses.jsonl").write_bytes(lines[0] + lines[1][:20])
    (run / "report.json").unlink()
    assert main([*command, "--out", str(run)]) == 0
    assert {**contents(run), "responses.jsonl": b""} == {**before, "responses.jsonl": b""}
    assert (run / "responses.jsonl").read_bytes().splitlines()[0] + b"\n" == lines[0]
    wrong = layouts.lines(tmp_path / "wrong.jsonl", [layouts.ifeval_row(5, instruction_id_list=["no:such"])])
    for arguments, message in (
        ([*command[:3], "--data", str(wrong)], f'{wrong}:1: instruction_id_list[0]: is "no:such"'),
        (["ifeval", "--data", str(data)], "name who answers"),
        ([*command, "--endpoint", "http://x"], "name who answers"),
        (["ifeval", "--data", str(data), "--endpoint", "http://x"], "--endpoint-model: missing"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "none")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_response_that_was_not_given_is_counted_and_asked_for_again(tmp_path):
    rows = [layouts.infobench_row(f"task_{i}") for i in range(3)]
    data = read_infobench(layouts.lines(tmp_path / "infobench.jsonl", rows))
    run_infobench(data, FakeJudge(), FakeJudge(), tmp_path / "right")
    run_infobench(data, FakeJudge(fails=("task_1",)), FakeJudge(), tmp_path / "run")
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    assert told["num_failed"] == 1 and "timeout: no reply within N s" in told["errors"]
    run_infobench(data, FakeJudge(), FakeJudge(), tmp_path / "run", retry=True)
    assert (tmp_path / "run" / "report.json").read_bytes() == (tmp_path / "right" / "report.json").read_bytes()


def test_every_number_of_a_report_has_its_interval_and_n(data_of, tmp_path):
    run_benchmark("rewardbench", data_of("rewardbench"), FakeJudge(), [1, 4], tmp_path / "run")
    told = aggregate("rewardbench", tmp_path / "run" / "rows.jsonl")
    text = (tmp_path / "run" / "report.md").read_text()
    shown = [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines() if re.match(r"\| .*\d%", line)
    ]
    assert len(shown) == 3 * len(told.metrics)  # the headline, every way to vote, the other rules
    for cells in shown[len(told.metrics) :]:
        for cell in cells:  # a composite of prompts that are alike has none
            assert cell == "-" or re.fullmatch(r"[\d.]+%( \([\d.]+% - [\d.]+%\))?, \d+", cell), cell
    left_out = {m.name.partition(" ")[0]: m for m in told.policies["ties and unparsed left out"]}
    assert left_out["Overall"].num == left_out["Micro"].num < 4
    micro = next(m for m in told.policies["tie = half, unparsed = half"] if m.name.startswith("Micro"))
    assert f"{micro.value:.1%} ({micro.low:.1%} - {micro.high:.1%}), {micro.num}" in text


@pytest.mark.parametrize(
    "rows, message",
    [
        ("", "holds no rows"),
        ('{"subset": "hep-go"}\n', "score_chosen"),
        ('{"subset": "hep-go", "score_chosen": 1, "score_rejected": 0}\n\n{"subset": "hep"}\n', "hep"),
        ('{"subset": "hep-go", "score_chosen": "x", "score_rejected": 0}\n', "score_chosen"),
        ("{\n", "rows.jsonl:1"),
    ],
)
def test_rows_that_cannot_be_used_are_one_line(rows, message, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(rows)
    assert main(["aggregate", "rewardbench", str(file)]) == 1
    told = capsys.readouterr().err.strip()
    assert message in told and str(file) in told and "\n" not in told


@pytest.mark.parametrize("name, order", [("judgebench", "given"), ("llmbar", "given"), ("rm_bench", "drawn")])
def test_two_games_of_a_pair_are_read_in_two_orders(name, order, data_of, tmp_path, monkeypatch, capsys):
    opened = []

    def open_judge(options):
        opened.append(options.order)
        return FakeJudge("pairwise", stop_after=2 if len(opened) == 1 else None)

    monkeypatch.setattr("eval.judges.spec.open_judge", open_judge)
    data_of(name)
    command = [name, "--data", str(tmp_path / name), "--votes", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 130
    assert capsys.readouterr().err.endswith("the same command goes on where judgments were being written\n")
    assert main(command) == 0 and opened == [order, order]
