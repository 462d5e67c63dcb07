import json

import pytest

from bench.main import main

pytest.importorskip("httpx", reason="the extra `test` has it")
pytest.importorskip("uvicorn", reason="the extra `serve` has it")


@pytest.mark.slow
def test_nothing_is_lost_and_every_reply_is_the_engines(tmp_path, capsys):
    assert main(["serve", "--clients", "8", "--seconds", "3", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "serve.json").read_text())
    assert record["equal"] > 8 and record["refused_429"] > 0 and record["left"] > 0
    assert (record["different"], record["lost"], record["other"], record["pages_missing"]) == (0, 0, {}, 0)
    assert (tmp_path / "serve.md").read_text().strip() in capsys.readouterr().out


def test_numbers_that_make_no_sense_are_one_line(capsys):
    for bad in (["--clients", "0"], ["--seconds", "nan"]):
        assert main(["serve", *bad]) == 1
        assert capsys.readouterr().err.startswith("error: --clients and --seconds must be positive")
