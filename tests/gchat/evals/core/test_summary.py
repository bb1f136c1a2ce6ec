"""CORE's arithmetic against published scores, and its intervals against simulation."""

import json
from pathlib import Path

import numpy as np
import pytest

from gaia.errors import ConfigError
from gchat.evals.core import summary
from gchat.evals.core.tasks import TASKS, VERSIONS, chosen
from gchat.evals.counts import Count

GPT2 = json.loads((Path(__file__).parents[3] / "golden/core_gpt2.json").read_text())
DCLM = Path(__file__).parents[5] / "shared/data/core/dclm_published.jsonl"
PUBLISHED = {"124M": 0.113891, "355M": 0.184903, "774M": 0.214641, "XL": 0.256525}


@pytest.mark.parametrize("size", PUBLISHED)
def test_gpt2s_published_scores(size):
    # The accuracies have six digits; a mean of 22 is off by half a unit of the last, and the
    # baselines stretch it (1 / (1 - .62) for boolq).
    accuracies = GPT2[size]["accuracy"]
    assert summary.core(accuracies, "core_v1") == pytest.approx(PUBLISHED[size], abs=1.1e-6)
    assert summary.core(accuracies, "core_v2") == pytest.approx(GPT2[size]["core_v2"], abs=1.1e-6)


@pytest.mark.skipif(not DCLM.exists(), reason="needs dclm_published.jsonl in ../shared/data/core")
def test_dclms_published_scores():
    lines = [json.loads(line) for line in DCLM.read_text().splitlines()]
    assert len(lines) == 156
    for line in lines:
        for version, key in (("core_v1", "Core_v1"), ("core_v2", "Core_v2")):
            assert summary.core(line["icl"], version) == pytest.approx(line[key], abs=1e-12)


def test_guessing_all_tasks():
    """Chance by the number of choices; -.0007 and -.026 are computed by hand in DCLM's terms."""
    two = ("copa", "piqa", "winograd", "winogrande", "boolq")
    chance = {t.name: 0.0 if t.kind == "language_modeling" else 0.25 for t in TASKS}
    chance |= dict.fromkeys(two, 0.5)
    by_hand = {
        "core_v1": (0.05 / 0.8 * 2 + 0.159 / 0.909 - 0.12 / 0.38) / 22,
        "core_v2": (-0.153 / 0.597 - 0.12 / 0.38) / 22,
    }
    for version, rounded in (("core_v1", -0.0007), ("core_v2", -0.026)):
        score = summary.core(chance, version)
        assert score == pytest.approx(by_hand[version], abs=1e-12)
        assert score == pytest.approx(rounded, abs=6e-5 if version == "core_v1" else 6e-4)


def test_wilsons_interval():
    """Examples of Newcombe 1998 (Statistics in Medicine 17, table I, method 3)."""
    for right, of, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert Count(right, of).interval == pytest.approx((low, high), abs=5e-5)
    assert Count(20, 20).interval == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


def test_intervals_of_the_score_hold_what_they_promise():
    rng = np.random.default_rng(0)
    for items in (16, 100):
        p = {task.name: rng.uniform(0, 0.9) for task in TASKS}
        p |= {"jeopardy": 0.0, "bigbench_operators": 0.02}
        inside = {version: 0 for version in VERSIONS}
        for _ in range(400):
            counts = {name: Count(int(rng.binomial(items, q)), items) for name, q in p.items()}
            for version in VERSIONS:
                low, high = summary.core_interval(counts, version)
                inside[version] += low <= summary.core(p, version) <= high
        for version in VERSIONS:
            assert 0.92 <= inside[version] / 400 <= 0.99


def test_a_part_of_the_tasks_is_no_core_score():
    figures = summary.summary({"copa": Count(60, 100), "jeopardy": Count(0, 0)})
    assert list(figures["tasks"]) == ["copa"]
    row = figures["tasks"]["copa"]
    assert row["centred_core_v1"] == figures["partial_core_v1"] == pytest.approx(0.2)
    low, high = Count(60, 100).interval
    assert row["centred_core_v2_interval"] == pytest.approx([2 * low - 1, 2 * high - 1])
    assert "core_v1" not in figures and "core_v2" not in figures
    text = summary.table(figures, ["jeopardy"])
    assert "mean over 1 of 22 tasks: no CORE score" in text
    assert "not in the bundle: jeopardy" in text


def test_names_of_tasks():
    assert [task.name for task in chosen(["piqa", "copa"])] == ["copa", "piqa"]
    assert chosen([]) == TASKS and len(TASKS) == 22
    with pytest.raises(ConfigError, match="'winogrand', which is no task of CORE; did you mean wi"):
        chosen(["copa", "winogrand"])
