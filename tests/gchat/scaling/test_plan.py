"""`gchat plan`: what it reads, refuses and prints; its counts against the trainer's own arrays."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

from gaia.errors import ConfigError
from gaia.parallel import AXES, MeshConfig
from gaia.runtime import Machine
from gchat.__main__ import main
from gchat.config import TrainConfig, load
from gchat.model_shape import all_params, matmul_params
from gchat.scaling.counts import state_bytes
from gchat.scaling.exhaustion import OutOfMemory, exhaustion_explained
from gchat.scaling.layout import Layout, layout_of
from gchat.scaling.memory import estimate_memory
from gchat.scaling.plan import derived, make_plan
from gchat.scaling.published import points
from gchat.scaling.roofline import step_time
from gchat.scaling.search import best, candidates, fit_hint, search
from gchat.scaling.sku import parse_fleet
from gchat.scaling.verify import Compiled, check_can_verify, read_exhausted
from gchat.train_state import abstract_state

V6E = parse_fleet("v6e-8")


def config_of(*args: str, preset: str = "speedrun") -> TrainConfig:
    return derived(load(list(args), preset=preset))[0]


def test_a_plan_knows_every_batch_of_a_ramp_in_epochs():
    ramp = config_of("--training.batch-ramp", "4@0", "2@1epoch", "1@2.5epochs").training.ramp
    assert ramp.kinds == (1, 2, 4)


@pytest.mark.parametrize(
    ("text", "chip", "slices", "chips"),
    [
        ("v6e-8", "v6e", 1, 8),
        ("v6e-2x4", "v6e", 1, 8),
        ("v5p-128", "v5p", 1, 64),
        ("2*v6e-256", "v6e", 2, 512),
        ("2xv6e-256", "v6e", 2, 512),
        ("v6e-8 + v6e-8", "v6e", 2, 16),
        ("8xH100", "h100", 1, 8),
        ("2*8xH100", "h100", 2, 16),
        ("rtx4090", "rtx4090", 1, 1),
        ("2xRTX5070Ti", "rtx5070ti", 1, 2),
        ("RTX 4070 Ti Super", "rtx4070ti-super", 1, 1),
        ("1xA6000", "a6000", 1, 1),
    ],
)
def test_fleets_are_read_and_their_names_read_back(text, chip, slices, chips):
    fleet = parse_fleet(text)
    assert (fleet.chip.key, fleet.slices, fleet.chips) == (chip, slices, chips)
    assert parse_fleet(fleet.name) == fleet


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--sku", "v6e-9"], ["v6e-9", "v6e-8"]),
        (["--sku", "v6f-8"], ["v6f-8", "nearest", "v6e-8"]),
        (["--sku", "v6e-8+v5e-8"], ["mixes chip generations", "v6e, v5e"]),
        (["--sku", "v6e-8+v6e-16"], ["mixes sizes"]),
        (["--sku", "9999*v6e-8"], ["9999"]),
        ([], ["--sku is missing"]),
        (["--sku", "8xH100", "--verify"], ["--verify", "8xH100"]),
        (["--sku", "8xH100", "--search"], ["--verify", "8xH100"]),
        (["--sku", "v6e-8", "--mesh.tensor", "3"], ["tensor 3", "8 devices"]),
        (["--sku", "v6e-8", "--mesh.tensor", "8"], ["heads is 12", "mesh.tensor 8"]),
        (["--sku", "v6e-8", "--batch-size", "12"], ["12", "mesh.fsdp 8"]),
        (["--sku", "2*v6e-8", "--mesh.replica", "3"], ["mesh", "3"]),
        (["--sku", "v6e-8", "--mesh.tensro", "2"], ["--mesh.tensor"]),
        (["nowhere.yaml", "--sku", "v6e-8"], ["nowhere.yaml", "does not exist"]),
        (["--sku", "v6e-8", "--depth", "0"], ["model.depth is 0"]),
        (["--sku", "rtx4091"], ["rtx4091", "rtx4090"]),
        (["--sku", "9xrtx4090"], ["9 cards", "use 1 to 8"]),
        (["--sku", "rtx4090", "--leave", "much"], ["--leave is 'much'", "1GB"]),
        (["--sku", "rtx4090", "--leave", "1e9"], ["--leave is '1e9'"]),
        (["--sku", "rtx4090", "--leave", "30GB"], ["leaves nothing", "leave less"]),
        (["--sku", "rtx4090", "--leave"], ["--leave"]),
        (["--sku", "rtx4090", "--largest", "--depth", "8"], ["--depth", "--largest"]),
        (["--sku", "v6e-8", "--largest", "--search"], ["--largest and --search"]),
        (["--sku", "v6e-8", "--memory-only"], ["--memory-only", "add --verify"]),
        (
            ["--sku", "rtx4090", "--batch-size", "9999", "--largest", "--model.remat=full"],
            ["depth 1", "--batch-size"],
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(args, words, capsys):
    assert main(["plan", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_json_holds_what_the_issue_names(capsys):
    assert main(["plan", "--sku", "v6e-8", "--batch-size", "256", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = {"params", "optimizer", "gradients", "activations", "logits", "collectives"}
    assert parts < set(found["hbm"])
    assert sum(v for k, v in found["hbm"].items() if k != "total") == found["hbm"]["total"]
    assert found["flops_per_token"] > 6 * 7e8 and found["params"] > 8e8
    assert found["rows_per_device"] == 32 and found["chips"] == 8
    assert found["cost_usd"] == pytest.approx(found["hours"] * 8 * 2.70)
    assert found["hours"] == pytest.approx(found["step"]["seconds"] * found["steps"] / 3600)
    assert found["best"]["fits"] and found["estimate"] and not found["verified"]


def test_a_gpu_plan_says_that_it_is_an_estimate(capsys):
    assert main(["plan", "--sku", "8xH100"]) == 0
    assert "every figure is an estimate" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("sizes", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 4, 1)])
def test_state_bytes_are_those_of_the_trainers_own_arrays(optimizer, sizes):
    """Every leaf of the real state, divided as the mesh divides it."""
    config = config_of("--depth", "4", "--optim.name", optimizer, "--batch-size", "64")
    state = abstract_state(config, jax.sharding.AbstractMesh(sizes, AXES))

    def device_bytes(tree) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    assert state_bytes(config, Layout(*sizes)) == (
        device_bytes(state.params),
        device_bytes(state.opt_state),
    )
    s, depth = config.model.sizes, config.model.depth
    kernels = 4 * s.dim**2 + 3 * s.dim * s.hidden
    gains = depth * 2 * (s.dim + config.model.head_dim) + s.dim
    assert matmul_params(config.model) == depth * kernels + s.dim * s.padded_vocab
    tables = 2 * s.dim * s.padded_vocab
    assert all_params(config.model) == depth * kernels + gains + tables
    each_moment = depth * kernels * (1 if optimizer == "muon" else 2) + 2 * (gains + tables)
    whole = jax.tree.leaves(state.opt_state)
    assert sum(x.size for x in whole if x.ndim) == each_moment


def test_memory_grows_with_rows_and_falls_with_rematerialisation_and_shards():
    def total(rows: int, remat: str, sku: str = "v6e-8") -> int:
        fleet = parse_fleet(sku)
        config = config_of("--batch-size", str(rows * fleet.devices), "--model.remat", remat)
        return estimate_memory(config, layout_of(config, fleet)).total

    assert total(4, "full") < total(4, "dots") < total(4, "none")
    assert total(4, "dots") < total(8, "dots") < total(16, "dots")
    assert total(4, "dots", "v6e-16") < total(4, "dots", "v6e-8")
    accumulated = config_of("--batch-size", "128", "--training.grad-accum", "4")
    whole = config_of("--batch-size", "128")
    memory = [estimate_memory(c, layout_of(c, V6E)).total for c in (accumulated, whole)]
    assert memory[0] < memory[1]


def test_step_time_follows_work_chips_and_networks():
    config = config_of("--batch-size", "512")
    base = step_time(config, layout_of(config, V6E), V6E)
    assert base.seconds == pytest.approx(
        base.products + base.attention + base.head + base.memory + base.optimizer + base.ici
    )
    assert 0.2 < base.mfu < 0.75
    more = parse_fleet("v6e-16")
    assert step_time(config, layout_of(config, more), more).seconds < base.seconds
    deeper = config_of("--batch-size", "512", "--depth", "32")
    assert step_time(deeper, layout_of(deeper, V6E), V6E).seconds > base.seconds
    full = replace(config, model=replace(config.model, remat="full"))
    assert step_time(full, layout_of(full, V6E), V6E).seconds > base.seconds
    two = parse_fleet("2*v6e-8")
    between = step_time(config, layout_of(config, two), two)
    assert between.dcn > 0 == base.dcn
    split = replace(config, mesh=MeshConfig(tensor=4))
    assert step_time(split, layout_of(split, V6E), V6E).ici > base.ici


def test_published_step_times_are_met_within_a_fifth():
    """The four points that were published; published.toml says which the shares were chosen on."""
    errors = {p.name: p.error for p in points()}
    named = [
        n for n in errors if n.startswith(("Llama 3.1 8B", "Llama 3.1 70B, v6e", "Llama 2 7B"))
    ]
    named += [n for n in errors if n.startswith("nanochat-jax")]
    assert len(named) == 4
    assert {n: round(errors[n], 2) for n in named if abs(errors[n]) > 0.2} == {}
    assert not all(p.chosen for p in points())


def test_candidates_keep_the_step_and_come_in_order_of_time():
    config = config_of("--batch-size", "256")
    plans = candidates(config, V6E)
    assert [p.time.seconds for p in plans] == sorted(p.time.seconds for p in plans)
    assert {p.config.training.batch_size for p in plans} == {256}
    assert {p.config.model.remat for p in plans} == {"none", "dots", "attention", "full"}
    for plan in plans:
        rows = plan.layout.row_groups * plan.config.training.grad_accum
        assert 256 % rows == 0 and plan.layout.devices == 8
    found = best(config, V6E)
    assert (
        found and found.fits and found.time.seconds == min(p.time.seconds for p in plans if p.fits)
    )
    assert best(config_of("--depth", "96", "--batch-size", "256"), parse_fleet("v5e-1")) is None


def test_search_takes_the_first_that_the_compiler_accepts():
    config, asked = config_of("--batch-size", "256"), []

    def compiler(tried: TrainConfig, fleet) -> Compiled:
        asked.append(tried)
        fits = len(asked) > 2
        peak = (10 if fits else 40) * 2**30
        return Compiled(fits, peak, 31 * 2**30, 0, 1.0, {}, "" if fits else "too big")

    found = search(config, V6E, compiler=compiler)
    assert found.fits and found.peak_bytes == 10 * 2**30 and len(asked) == 3
    assert found.config == asked[-1]
    # What is asked after a refusal asks for less.
    totals = [make_plan(c, V6E).memory.total for c in asked]
    assert totals[2] < totals[1] < totals[0]

    def refusing(tried: TrainConfig, fleet) -> Compiled:
        return Compiled(False, 40 * 2**30, 31 * 2**30, 0, 1.0, {}, "too big")

    with pytest.raises(ConfigError, match="nothing of this model fits v6e-8"):
        search(config, V6E, compiler=refusing)


def test_the_hint_after_exhaustion_fits_and_keeps_the_batch():
    config = config_of("--batch-size", "512", "--model.remat", "none")
    machine = Machine("tpu", "TPU v6 lite", 8, 0, 1)
    assert not make_plan(config, V6E).fits
    hint = fit_hint(config, machine)
    words = hint.replace(":", "").split()
    accum = int(words[words.index("--training.grad-accum") + 1])
    remat = words[words.index("--model.remat") + 1]
    mended = config_of(
        "--batch-size", "512", "--model.remat", remat, "--training.grad-accum", str(accum)
    )
    assert make_plan(mended, V6E).fits
    huge = config_of("--depth", "96", "--batch-size", "512")
    assert "take more devices" in fit_hint(huge, Machine("tpu", "TPU v5 lite", 1, 0, 1))
    assert "grad_accum" in fit_hint(config, Machine("cpu", "cpu", 1, 0, 1))


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 37.46G of 31.25G hbm. "
         "Exceeded hbm capacity by 6.21G.", (37.46, 31.25)),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
         "temporaries (87.86G) exceeds available HBM (31.25G).", (87.86, 31.25)),
    ],
)  # fmt: skip
def test_the_compilers_refusal_is_read(message, sizes):
    assert read_exhausted(message) == tuple(int(s * 2**30) for s in sizes)
    assert read_exhausted("RESOURCE_EXHAUSTED: scoped vmem limit") is None


def test_gpus_and_missing_compilers_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="compile only on that GPU"):
        check_can_verify(parse_fleet("1xH200"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"-e .\.\[aot\]"):
        check_can_verify(V6E)


def test_exhaustion_in_a_run_is_one_line_with_what_fits():
    config = config_of("--batch-size", "512", "--model.remat", "none")
    machine = Machine("tpu", "TPU v6 lite", 8, 0, 1)
    with (
        pytest.raises(OutOfMemory, match=r"Attempting to reserve 3G; .*--training.grad-accum"),
        exhaustion_explained(config, machine),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Attempting to reserve 3G.\nmore")
    with pytest.raises(jax.errors.JaxRuntimeError), exhaustion_explained(config, machine):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_the_largest_model_is_the_deepest_that_fits(capsys):
    """Against a scan of every depth; memory left free, and rows worked on at once, are kept."""
    asked = ["--sku", "rtx4070ti-super", "--batch-size", "3", "--leave", "1GB", "--largest"]
    assert main(["plan", *asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    card = parse_fleet("rtx4070ti-super")
    limit = int(card.chip.hbm_bytes * 0.9) - 10**9
    assert answer["limit_bytes"] == limit and answer["rows_per_device"] == 3
    assert [row["remat"] for row in answer["largest"]] == ["full", "attention", "dots", "none"]
    for row in answer["largest"]:
        sizes = [
            make_plan(config_of("--depth", str(d), "--batch-size", "3", "--model.remat",
                                row["remat"]), card).memory.total
            for d in range(row["depth"] - 2, row["depth"] + 3)
        ]  # fmt: skip
        assert sizes == sorted(sizes) and row["peak_bytes"] == sizes[2]
        assert sizes[2] <= limit < sizes[3]
    assert main(["plan", *asked, "--model.remat", "dots"]) == 0
    said = capsys.readouterr().out
    assert "remat dots, 3 rows per device" in said and "remat full" not in said
    assert "MEM_FRACTION=0.84" in said


def test_the_largest_model_divides_over_its_mesh_and_splits_a_step_that_nobody_typed(capsys):
    asked = ["plan", "--sku", "v6e-8", "--mesh.tensor", "4", "--largest", "--json"]
    assert main([*asked, "--model.remat", "full"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (row,) = answer["largest"]
    assert row["dim"] // 128 % 4 == 0 and row["grad_accum"] > 1 and answer["fits"]
    longer = config_of("--depth", str(row["depth"] + 8), "--mesh.tensor", "4",
                       "--training.grad-accum", "256", "--model.remat", "full")  # fmt: skip
    assert not make_plan(longer, V6E).fits


def test_memory_left_free_counts_against_the_compilers_figure_too():
    compiled = Compiled(True, 20 * 2**30, 0, 0, 1.0, {}, "")
    plan = make_plan(config_of("--training.grad-accum", "16"), V6E)
    assert replace(plan, compiled=compiled).fits
    less = replace(plan, fleet=replace(V6E, left_bytes=12 * 2**30))
    assert not replace(less, compiled=compiled).fits
    scored = replace(compiled, evaluation_bytes=5 * 2**30)
    assert replace(plan, compiled=scored).why.endswith("an evaluation takes 5.00 GiB)")


def test_a_plan_stays_on_the_host():
    """libtpu, where it is installed without a TPU, has nothing to say."""
    command = [sys.executable, "-m", "gchat", "plan", "--sku", "v6e-1", "--depth", "4"]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "v6e-1: 1 x TPU v6e" in done.stdout and done.stderr == ""


def test_the_second_page_example_divides_over_512_chips(capsys):
    assert main(["plan", "--sku", "2*v6e-256", "--depth", "32"]) == 0
    assert "hidden 5632" in capsys.readouterr().out


def test_the_first_example_of_the_page_fits(capsys):
    """`gchat plan --sku v6e-8`: the preset's batch is cut as the speedrun would cut it."""
    assert main(["plan", "--sku", "v6e-8"]) == 0
    said = capsys.readouterr().out
    assert "  fits: " in said and "does not fit: " not in said
    assert "memory: grad_accum 16 and remat none were chosen" in said
    assert main(["plan", "--sku", "v6e-8", "--training.grad-accum", "1"]) == 0
    assert "does not fit: " in capsys.readouterr().out  # what is typed is planned as typed
