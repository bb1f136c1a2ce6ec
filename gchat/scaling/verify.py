"""The TPU compiler's own answer: a run's real programs compiled ahead of time, with no TPU.

`compile_run` runs this file in processes of their own, because the platform must be chosen before
JAX starts and because libtpu ends the process when it is unhappy. Such a process compiles the very
program that a run would (`gchat.train_step`) for the fleet's topology: the update, and the scoring
of an evaluation while the whole state of training stays where it is. The compiler lays out
memory in the first tenth of its time and then generates code for minutes, so it is stopped in
between. That it can generate the code as well is found out by a second compilation, on the newer
chips with an option that makes the code smaller (`checking_options`).
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gaia.config import parse, to_dict
from gaia.errors import ConfigError, GaiaError
from gaia.extras import install
from gaia.runtime import start
from gaia.xla_flags import checking_options
from gchat.config import TrainConfig
from gchat.scaling.sku import Fleet, parse_fleet

# JAX keeps to the CPU; libtpu may be open in other processes, and asks no metadata server.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
}
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
Program = Literal["train_step", "evaluation"]
"""Names of the jitted functions, by which the compiler names what it dumps."""
_ANSWER = "compiled: "
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class CompilerFailed(GaiaError):
    """The compiler could not be asked, or gave an answer that is not about memory."""

    exit_status = 1


@dataclass(frozen=True)
class Compiled:
    """The compiler's answer about one program, or a run's two, per device."""

    fits: bool
    peak_bytes: int
    """The program's peak; where it does not fit, what it would have needed. Of two, the higher."""
    limit_bytes: int
    """Memory that the compiler has; 0 where it did not say (it does when something is too big)."""
    argument_bytes: int
    """State and batch; 0 where it does not fit."""
    compile_seconds: float
    collectives: dict[str, int]
    """Times that each collective stands in the program's text (a loop's body once)."""
    message: str
    """The compiler's sentence where it does not fit."""
    evaluation_bytes: int = 0
    """Peak of an evaluation, with the state of training in memory; 0 where it was not asked for."""


def check_can_verify(fleet: Fleet) -> None:
    """Raises ConfigError where the compiler cannot be asked about this fleet."""
    if not fleet.is_tpu:
        raise ConfigError(
            f"--verify cannot compile for {fleet.name}: GPU programs compile only on that GPU",
            "leave it out; GPU figures are estimates",
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "--verify needs the TPU compiler, which is not installed",
            f"{install('aot')} (no TPU is needed)",
        )


def compile_run(config: TrainConfig, fleet: Fleet, *, memory_only: bool = False) -> Compiled:
    """The training step's answer, with the memory of an evaluation beside the state of training.

    Args and errors as of `compile_step`. An evaluation's code is part of the step's, so only its
    memory is asked for; so it is with the steps of several updates that a batch ramp has.
    """
    step = compile_step(config, fleet, memory_only=memory_only)
    for parts in config.training.ramp.kinds[1:]:
        if step.fits:
            ramped = _ask(config, fleet, math.inf, memory_only=True, parts=parts)
            seconds = step.compile_seconds + ramped.compile_seconds
            larger = max(step, ramped, key=lambda asked: (not asked.fits, asked.peak_bytes))
            step = replace(larger, compile_seconds=seconds)
    if not step.fits:
        return step
    scoring = _ask(config, fleet, math.inf, memory_only=True, program="evaluation")
    return replace(
        step,
        fits=scoring.fits,
        peak_bytes=max(step.peak_bytes, scoring.peak_bytes),
        limit_bytes=scoring.limit_bytes,
        compile_seconds=step.compile_seconds + scoring.compile_seconds,
        message=scoring.message,
        evaluation_bytes=scoring.peak_bytes,
    )


def compile_step(
    config: TrainConfig,
    fleet: Fleet,
    *,
    timeout: float = math.inf,
    memory_only: bool = False,
) -> Compiled:
    """Compiles the training step of a derived configuration for a fleet.

    Args:
        config: derived; its mesh fits the fleet.
        fleet: TPU slices.
        timeout: most seconds to wait, for each of the two compilations.
        memory_only: leave out the second one, in which code is generated.

    Raises:
        ConfigError: the compiler cannot be asked.
        CompilerFailed: it did not answer, or failed for another reason than memory.
    """
    check_can_verify(fleet)
    memory = _ask(config, fleet, timeout, memory_only=True)
    if memory_only or not memory.fits:
        return memory
    whole = _ask(config, fleet, timeout, memory_only=False)  # raises where there is no code
    seconds = memory.compile_seconds + whole.compile_seconds
    return replace(memory, compile_seconds=seconds)


def _ask(
    config: TrainConfig,
    fleet: Fleet,
    timeout: float,
    *,
    memory_only: bool,
    program: Program = "train_step",
    parts: int = 1,
) -> Compiled:
    """One compilation: as a run would, up to the layout of memory; or whole, for checking.

    `parts`: updates of the step.
    """
    request = {"config": to_dict(config), "fleet": fleet.name, "checking": not memory_only}
    request |= {"program": program, "parts": parts}
    began = time.monotonic()

    def seconds() -> float:
        return time.monotonic() - began

    with tempfile.TemporaryDirectory(prefix="gchat-verify-") as name:
        folder = Path(name)
        # The user's own XLA flags are for the device at hand, not for this topology.
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re={program}"
        environment = os.environ | ENVIRONMENT | {"XLA_FLAGS": dump if memory_only else ""}
        (folder / "request").write_text(json.dumps(request))
        with (
            open(folder / "request") as asked,
            open(folder / "answer", "w") as answered,
            open(folder / "errors", "w") as complained,
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", "gchat.scaling.verify"],
                stdin=asked,
                stdout=answered,
                stderr=complained,
                env=environment,
            )
        try:
            while process.poll() is None:
                if memory_only and (answer := read_dump(folder, program, seconds())):
                    return answer
                if seconds() > timeout:
                    raise CompilerFailed(
                        f"the TPU compiler did not finish within {timeout:.0f} s", "allow it more"
                    )
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        return _read_answer(folder, fleet, process.returncode)


def _read_answer(folder: Path, fleet: Fleet, status: int) -> Compiled:
    lines = (folder / "answer").read_text().splitlines()
    answer = next((line for line in reversed(lines) if line.startswith(_ANSWER)), None)
    if answer is None:
        errors = (folder / "errors").read_text(errors="replace").strip().splitlines()
        last = errors[-1] if errors else "nothing was printed"
        raise CompilerFailed(f"the TPU compiler ended with status {status}: {last}")
    said = json.loads(answer.removeprefix(_ANSWER))
    if "error" in said:
        raise CompilerFailed(f"the TPU compiler refused {fleet.name}: {said['error']}")
    return Compiled(**said)


def read_dump(folder: Path, program: Program, seconds: float) -> Compiled | None:
    """The answer from what the compiler has dumped so far; None where memory is not laid out."""
    # Written after the report and the assignment, so these are whole when it is there.
    if not list(folder.glob(f"*{program}*after_buffer_assignment.txt")):
        return None
    (report,) = folder.glob(f"*{program}*memory-usage-report.txt")
    (assignment,) = folder.glob(f"*{program}*buffer-assignment.txt")
    (text,) = folder.glob(f"*{program}*after_optimizations.txt")
    peak = re.search(r"color=0\)\s*Total bytes: (\d+)", report.read_text())
    arguments = re.findall(r"^allocation \d+: size (\d+), parameter", assignment.read_text(), re.M)
    if peak is None:
        raise CompilerFailed("the TPU compiler's memory report has another form than expected")
    return Compiled(
        fits=True,
        peak_bytes=int(peak[1]),
        limit_bytes=0,
        argument_bytes=sum(map(int, arguments)),
        compile_seconds=seconds,
        collectives=_collectives(text.read_text()),
        message="",
    )


def _collectives(text: str) -> dict[str, int]:
    # An asynchronous collective stands there as a start and a done.
    counts = {name: len(re.findall(rf"\b{name}(?:-start)?\(", text)) for name in COLLECTIVES}
    return {name: count for name, count in counts.items() if count}


def read_exhausted(message: str) -> tuple[int, int] | None:
    """Bytes needed and bytes there, from a RESOURCE_EXHAUSTED; None if it is about no HBM."""
    size = r"([\d.]+)([KMGT]?)i?B?"
    forms = (
        rf"Used {size} of {size} hbm",
        rf"\({size}\) exceeds available HBM \({size}\)",
    )
    for form in forms:
        if match := re.search(form, message, flags=re.IGNORECASE | re.DOTALL):
            need, unit, have, have_unit = match.groups()
            return int(float(need) * _UNITS[unit]), int(float(have) * _UNITS[have_unit])
    return None


def topology_devices(fleet: Fleet) -> list[Any]:
    """The fleet's devices as the compiler describes them; they hold no memory and run nothing."""
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if fleet.chips_per_slice == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if fleet.chip.key == "v4":
        options["chip_config_name"] = "megacore"
    if fleet.slices > 1:
        options["num_slices"] = fleet.slices
    description = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{fleet.chip.key}:{fleet.topology}", **options
    )
    return list(description.devices)


def lower_program(config: TrainConfig, fleet: Fleet, program: Program, parts: int) -> Any:
    """A program of a derived configuration's run, lowered for the fleet's topology."""
    from gaia.parallel import make_mesh
    from gchat.scaling.layout import layout_of

    config = replace(config, mesh=layout_of(config, fleet).as_mesh())
    mesh = make_mesh(config.mesh, topology_devices(fleet))
    if program == "train_step":
        traced = _trace_step(config, mesh, parts)
    else:
        traced = _trace_evaluation(config, mesh)
    return traced.lower(lowering_platforms=("tpu",))


def _trace_step(config: TrainConfig, mesh: Any, parts: int) -> Any:
    from gchat.train_state import abstract_batch, abstract_state, graphdef
    from gchat.train_step import make_train_step

    step = make_train_step(graphdef(config), config, mesh, parts=parts)
    return step.trace(abstract_state(config, mesh), abstract_batch(config, mesh))


def _trace_evaluation(config: TrainConfig, mesh: Any) -> Any:
    import jax

    from gaia.data.batch import Batch
    from gchat.train_state import abstract_rows, abstract_state, graphdef
    from gchat.train_step import eval_rows, scorer_program

    score = scorer_program(graphdef(config), config, mesh)

    # What it does not read stays an argument, as the optimizer's state stays in a run's memory.
    def evaluation(state: Any, batch: Batch) -> Any:
        return score(state.params, batch)

    rows = abstract_rows(eval_rows(mesh, config.model.seq_len), config, mesh)
    jitted = jax.jit(evaluation, keep_unused=True)
    return jitted.trace(abstract_state(config, mesh), Batch(rows, rows, rows, rows))


def compile_here(
    config: TrainConfig, fleet: Fleet, checking: bool, program: Program, parts: int
) -> Compiled:
    """One compilation without a process of its own: the environment must have been set.

    Raises:
        Exception: whatever the compiler raises beside out-of-memory.
    """
    lowered = lower_program(config, fleet, program, parts)
    began = time.monotonic()
    try:
        options = checking_options(fleet.chip.key) if checking else {}
        compiled = lowered.compile(compiler_options=options)
    except Exception as error:
        sizes = read_exhausted(str(error)) if "RESOURCE_EXHAUSTED" in str(error) else None
        if sizes is None:
            raise
        seconds = time.monotonic() - began
        first = str(error).strip().splitlines()[0]
        return Compiled(False, sizes[0], sizes[1], 0, seconds, {}, first)
    seconds = time.monotonic() - began
    memory = compiled.memory_analysis()
    return Compiled(
        fits=True,
        peak_bytes=memory.peak_memory_in_bytes,
        limit_bytes=0,
        argument_bytes=memory.argument_size_in_bytes,
        compile_seconds=seconds,
        collectives=_collectives(compiled.as_text() or ""),
        message="",
    )


def _main() -> None:
    request = json.load(sys.stdin)
    config = parse(TrainConfig, [], preset=request["config"])
    # As a run would, but for the cache: programs for absent devices cannot be read back from it.
    start(matmul_precision=config.model.matmul_precision, compile_cache=False)
    try:
        fleet = parse_fleet(request["fleet"])
        asked = (request[name] for name in ("checking", "program", "parts"))
        answer = asdict(compile_here(config, fleet, *asked))
    except Exception as error:
        answer = {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
    print(_ANSWER + json.dumps(answer))


if __name__ == "__main__":
    _main()
