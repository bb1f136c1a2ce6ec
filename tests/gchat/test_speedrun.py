"""The speedrun's plan: what it chooses, what it refuses, and that a dry run touches nothing."""

import time

import pytest

from gaia import runtime
from gaia.errors import ConfigError, GaiaError
from gchat import speedrun
from gchat.__main__ import main
from gchat.config import preset_path

V6E = runtime.Machine("tpu", "TPU v6 lite", 8, 0, 1)
CPU = runtime.Machine("cpu", "cpu", 1, 0, 1)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretends to be a machine with a stated peak, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAIA_DEADLINE", raising=False)

    def pretend(found: runtime.Machine, peak: float, hardware: str | None = None) -> None:
        monkeypatch.setattr(runtime, "start", lambda **_: found)
        monkeypatch.setattr(runtime, "peak_flops", lambda *_: (peak, "a stated peak"))
        monkeypatch.setattr(runtime, "accelerator_hardware", lambda: hardware)

    return pretend


def test_dry_run_on_a_cpu_prints_the_plan_and_writes_nothing(machine, tmp_path, capsys):
    machine(CPU, 4.6e11)
    assert main(["speedrun", "--stages=base", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for part in ("cpu` preset", "offline corpus", "0.10 h", "$0.00", "depth 4", "FLOP", "GiB"):
        assert part in printed
    assert list(tmp_path.iterdir()) == []


AMX = "flags\t\t: fpu avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8\n"


@pytest.mark.parametrize(("flags", "said"), [(AMX, 1), (AMX.replace("amx_bf16 ", ""), 0), ("", 0)])
def test_a_cpu_with_amx_says_what_is_not_used(machine, monkeypatch, tmp_path, capsys, flags, said):
    """/proc/cpuinfo as Linux writes it on Sapphire Rapids, a block of lines for each thread."""
    machine(CPU, 4.6e11)
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: amx_bf16 by name\n{flags}\n" * 2)
    monkeypatch.setattr(runtime, "CPUINFO", info)
    assert main(["speedrun", "--stages=base", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("this CPU has AMX tiles") == said
    info.unlink()
    assert not runtime.has_amx()  # another system


def test_a_faster_cpu_trains_more_but_never_more_than_the_preset(machine, capsys):
    tokens = []
    for peak in (1e11, 4.6e11, 1e14):
        machine(CPU, peak)
        config = speedrun.load([], preset="cpu")
        plan = speedrun.Plan(config, CPU, peak, time.monotonic() + 360, strict=True)
        plan.fit_steps()
        tokens.append(plan.config.training.tokens)
    assert tokens[0] < tokens[1] < tokens[2] == 2293760


def test_a_faster_cpu_trains_a_deeper_model(machine):
    depths = []
    for peak in (2e10, 1e11, 2.5e11, 1e12):
        machine(CPU, peak)
        config = speedrun.load([], preset="cpu")
        plan = speedrun.Plan(config, CPU, peak, time.monotonic() + 360, strict=False)
        plan.choose_size(fixed_depth=False)
        depths.append(plan.config.model.depth)
    assert depths == [2, 2, 3, 4]
    machine(CPU, 2e10)
    plan.choose_size(fixed_depth=True)
    assert plan.config.model.depth == 4  # what the user or the file says stays


def test_the_cpu_preset_by_path_leaves_the_depth_to_the_plan(machine, tmp_path, capsys):
    machine(CPU, 2e10)
    shipped = str(preset_path("cpu"))
    assert main(["speedrun", shipped, "--stages=base", "--dry-run"]) == 0
    assert "model: depth 2 " in capsys.readouterr().out
    own = tmp_path / "own.yaml"
    own.write_text("base: cpu\n")
    assert main(["speedrun", str(own), "--stages=base", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "model: depth 4 " in printed and f"the depth is that of {own}" in printed


def test_a_text_that_looks_like_help_is_a_text(machine, capsys):
    machine(CPU, 4.6e11)
    assert (
        main(["speedrun", "--stages=base", "--dry-run", "--eval.prompts", "-h", "--depth", "2"])
        == 0
    )
    printed = capsys.readouterr().out
    assert printed.startswith("no accelerator here") and "usage:" not in printed
    assert main(["plan", "--sku", "v6e-8", "--run.name", "-h"]) == 0
    assert "usage:" not in capsys.readouterr().out


def test_a_length_that_was_asked_for_stays(machine, monkeypatch):
    """Preparing the data takes time, but does not shorten what was accepted before."""
    machine(CPU, 4.6e11)
    config = speedrun.load(["--training.tokens", "2000000"], preset="cpu")
    plan = speedrun.Plan(
        config, CPU, 4.6e11, time.monotonic() + 360, strict=False, length_asked=True
    )
    plan.choose_size(fixed_depth=False)
    monkeypatch.setattr(plan, "_deadline", time.monotonic() + 60)
    plan.fit_steps()
    assert plan.config.training.tokens == 2_000_000


def test_an_accelerator_gets_the_largest_depth_that_ends_in_time(machine, capsys):
    machine(V6E, 8 * 918e12)
    depths = []
    for hours in ("0.5", "24"):
        assert main(["speedrun", "--stages=base", "--dry-run", "--hours", hours]) == 0
        printed = capsys.readouterr().out
        assert "climbmix" in printed and "8 x TPU v6 lite" in printed
        depths.append(int(printed.split("model: depth ")[1].split()[0]))
        minutes = float(printed.split("training about ")[1].split()[0])
        assert minutes < 60 * float(hours)
    assert depths[0] < depths[1]


def test_dollars_follow_the_price_of_the_machine(machine, monkeypatch, capsys):
    machine(V6E, 8 * 918e12)
    monkeypatch.setenv("GAIA_PRICE_PER_HOUR", "21.6")
    assert main(["speedrun", "--stages=base", "--dry-run", "--hours", "2"]) == 0
    assert "at most $43.20 at $21.60/h" in capsys.readouterr().out


def test_data_that_gml_brought_is_used_unless_other_data_is_named(machine, monkeypatch, capsys):
    machine(CPU, 4.6e11)
    monkeypatch.setenv("GAIA_DATA", "gs://bucket/tokens")
    assert main(["speedrun", "--stages=base", "--dry-run"]) == 0
    assert "data: gs://bucket/tokens" in capsys.readouterr().out
    for own in (["--data-dir", "mine"], ["--data.source", "text", "--data.input", "a.txt"]):
        assert main(["speedrun", "--stages=base", "--dry-run", *own]) == 0
        assert "gs://bucket" not in capsys.readouterr().out


def test_the_deadline_of_the_machine_is_the_budget(machine, monkeypatch, capsys):
    machine(V6E, 8 * 918e12)
    monkeypatch.setenv("GAIA_DEADLINE", str(time.time() + 2 * 3600))
    assert main(["speedrun", "--stages=base", "--dry-run"]) == 0
    assert "plan: 1.80 h (this machine's deadline" in capsys.readouterr().out
    monkeypatch.setenv("GAIA_DEADLINE", str(time.time() + 60))
    assert main(["speedrun", "--stages=base", "--dry-run"]) == 2
    assert "GAIA_DEADLINE" in capsys.readouterr().err
    for text in ("abc", "1,5", "nan", "inf", "2026-11-28"):
        monkeypatch.setenv("GAIA_DEADLINE", text)
        assert main(["speedrun", "--stages=base", "--dry-run"]) == 2
        said = capsys.readouterr().err
        assert f"GAIA_DEADLINE is {text!r}; use seconds" in said and said.count("\n") == 1


def test_unused_accelerator_hardware_stops_it(machine, capsys):
    machine(CPU, 4.6e11, hardware="an NVIDIA GPU")
    assert main(["speedrun", "--stages=base", "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert "NVIDIA" in message and "--allow-cpu" in message and message.count("\n") == 1
    assert main(["speedrun", "--stages=base", "--dry-run", "--allow-cpu"]) == 0


def test_an_unreachable_hub_stops_it_before_anything_is_written(machine, monkeypatch, tmp_path):
    machine(V6E, 8 * 918e12)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", _refuse)
    with pytest.raises(GaiaError, match="--offline"):
        speedrun.main(["--depth", "4", "--data.shards", "1"])
    assert not (tmp_path / "runs").exists()


def _refuse(*_args, **_kwargs):
    raise ConnectionError("no route to host")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--hours", "0"], "--hours is 0"),
        (["--hours", "soon"], "--hours is 'soon'"),
        (["--data.source", "web"], "--data.source"),
        (["--data.source", "text"], "data.input is None"),
        (["--data.input", "a.txt"], "data.source is docs"),
        (["--hours", "0.001"], "raise --hours"),
        (["--depht", "3"], "perhaps you meant --depth"),
        (["missing.yaml"], "missing.yaml"),
        (["--training.tokens", "100000000"], "the 100,000,000 training tokens asked for take"),
        (["--training.tokens-per-param", "20"], "raise --hours, or ask for at most"),
        (["--resume"], "--dry-run with --resume"),
        (["--allow-restart"], "--allow-restart is given without --resume"),
        (["--hours", "nan"], "--hours is nan"),
    ],
)
def test_bad_options_are_one_line(machine, capsys, args, named):
    machine(CPU, 4.6e11)
    assert main(["speedrun", "--stages=base", "--dry-run", *args]) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1


def test_a_taken_run_folder_is_refused_before_data_is_prepared(machine, tmp_path):
    machine(CPU, 4.6e11)
    (tmp_path / "runs" / "cpu").mkdir(parents=True)
    (tmp_path / "runs" / "cpu" / "config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run"):
        speedrun.main([])
