import json

from eval.main import main

PROMPTS = [{"key": 7, "prompt": "Say tea.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_of_ifeval_take_their_instructions_from_the_prompts(tmp_path, capsys):
    rows, prompts = write(tmp_path / "r.jsonl", [{"key": 7, "response": "tea"}]), write(tmp_path / "p.jsonl", PROMPTS)
    assert main(["aggregate", "ifeval", rows, "--data", prompts]) == 0
    assert "punctuation:no_comma" in capsys.readouterr().out
    assert main(["aggregate", "ifeval", rows]) == 1
    assert "r.jsonl:1: instruction_id_list: missing" in capsys.readouterr().err
    assert main(["aggregate", "rmb", rows, "--data", prompts]) == 1
    assert "is for ifeval" in capsys.readouterr().err
