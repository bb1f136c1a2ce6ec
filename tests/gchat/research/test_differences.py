"""Differences between runs that forbid to compare their figures: those that are found and said."""

import pytest
import yaml

from gaia.errors import GaiaError
from gchat.config import CONFIG
from gchat.research import compare
from gchat.research.cells import Result


def trained(folder, name, **config):
    run = folder / name
    run.mkdir()
    (run / CONFIG).write_text(yaml.safe_dump(config))
    return [Result("i", name, "", 1, "done", 2.0, 100, 1.0, 1.0, run_dir=str(run))]


def test_data_tokenizer_and_evaluation_must_agree_and_places_need_not(tmp_path):
    same = {"data": {"vocab_size": 300, "cache_dir": "a"}, "eval": {"tokens": 400}}
    runs = {
        "main": trained(tmp_path, "main", **same, optim={"lr": 1.0}),
        "rate": trained(tmp_path, "rate", **same, optim={"lr": 2.0}),
        "place": trained(tmp_path, "place", **same | {"data": same["data"] | {"cache_dir": "b"}}),
        "ids": trained(tmp_path, "ids", **same | {"data": same["data"] | {"vocab_size": 500}}),
        "text": trained(tmp_path, "text", **same | {"eval": {"tokens": 40}}),
        "failed": [Result("i", "failed", "", 1, "failed", None, 0, 0.0, 0.0)],
    }
    assert compare._differences(runs) == [
        "data.vocab_size is 300 in main and 500 in ids",
        "eval.tokens is 400 in main and 40 in text",
    ]


def test_a_run_that_lost_its_config_is_one_line(tmp_path):
    runs = {"main": trained(tmp_path, "main", data={}), "idea": trained(tmp_path, "idea", data={})}
    (tmp_path / "idea" / CONFIG).unlink()
    with pytest.raises(GaiaError, match=f"lost its {CONFIG}") as refused:
        compare._differences(runs)
    assert "\n" not in str(refused.value)
