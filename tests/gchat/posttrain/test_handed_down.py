"""A later stage takes over every rate of its base's optimizer, and the decays of its end."""

from dataclasses import replace

import pytest

import tiny
from gaia.config import to_yaml
from gchat.posttrain import dpo, rl, sft, start

RATES = {"lr": 1e-2, "embed_lr": 2e-2, "head_lr": 3e-2, "gain_lr": 4e-2, "matrix_lr": 5e-2}


def stage(verb, folder, optim, *args):
    """The optimizer of a stage that begins with a run of 200 steps."""
    config = tiny.train_config()
    (folder / "config.yaml").write_text(to_yaml(replace(config, optim=optim)))
    words = start.spelled(["--base", str(folder), "--output", str(folder / "next"), *args])
    return start._given(verb, words, resume=False).optim


@pytest.mark.parametrize("verb", [sft.VERB, rl.VERB], ids=lambda v: v.name)
def test_every_rate_keeps_its_ratio_to_the_one_that_is_given(verb, tmp_path):
    base = replace(tiny.train_config().optim, name="muon", **RATES)
    ours = stage(verb, tmp_path, base, "--lr", "1e-5")
    rates = [field for field in vars(base) if field == "lr" or field.endswith("_lr")]
    assert sorted(rates) == sorted(RATES)  # one that is added is scaled too
    got = {name: getattr(ours, name) for name in rates}
    assert got == pytest.approx({name: rate / 1000 for name, rate in RATES.items()})
    typed = stage(verb, tmp_path, base, "--lr", "1e-5", "--optim.gain-lr", "0.7")
    assert typed.gain_lr == 0.7


def test_decays_are_those_of_the_bases_last_step(tmp_path):
    base = replace(
        tiny.train_config().optim, name="muon", weight_decay=0.1, matrix_weight_decay=0.3,
        weight_decay_steps=("0.05@100", "0.02@199", "0.01@200"),
        matrix_weight_decay_steps=("0.2@400",), embed_weight_decay=0.4,
    )  # fmt: skip
    ours = stage(sft.VERB, tmp_path, base)
    assert (ours.weight_decay, ours.matrix_weight_decay) == (0.02, 0.3)
    assert ours.weight_decay_steps == ours.matrix_weight_decay_steps == ()
    given = stage(sft.VERB, tmp_path, base, "--optim.weight-decay-steps", "0.5@3")
    assert (given.weight_decay, given.weight_decay_steps) == (0.02, ("0.5@3",))
    for verb in (dpo.VERB, rl.VERB):  # these decay nothing, at any step
        ours = stage(verb, tmp_path, base)
        decays = (ours.weight_decay, ours.embed_weight_decay, ours.matrix_weight_decay)
        assert decays == (0.0, 0.0, 0.0) and ours.weight_decay_steps == ()
