"""Other programs that read exports, found on this machine and run as processes of their own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gaia.errors import ConfigError, GaiaError

PROGRAM = Path(__file__).with_name("reference.py")
LLAMA_CPP = "GAIA_LLAMA_CPP"
"""Environment variable: folder with llama.cpp's libraries."""
_PACKAGES = ("torch", "transformers")
_NEEDS = "--llama-cpp DIR (or GAIA_LLAMA_CPP) names the folder that holds libllama"


class ProgramFailed(GaiaError):
    """Another program read a file and failed."""

    exit_status = 1


def llama_cpp(given: Path | None) -> Path | None:
    """The folder of llama.cpp's libraries; None where there is none.

    Searched are `given` and what lies in it, `$GAIA_LLAMA_CPP`, the folders of llama.cpp's programs
    on the path, and the package llama-cpp-python.

    Raises:
        ConfigError: there is none in `given`.
    """
    if given is not None:
        folder = next(_libraries(given), None)
        if folder is None:
            raise ConfigError(
                f"llama_cpp = {str(given)!r} holds no libllama", "give the folder of its libraries"
            )
        return folder
    places = [Path(os.environ[LLAMA_CPP])] if os.environ.get(LLAMA_CPP) else []
    for name in ("llama-quantize", "llama-cli", "llama-server"):
        if (program := shutil.which(name)) is not None:
            home = Path(program).resolve().parent
            places += [home, home.parent / "lib"]
    spec = find_spec("llama_cpp")
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / "lib")
    return next((folder for place in places for folder in _libraries(place)), None)


def _libraries(place: Path) -> Iterator[Path]:
    """Folders at and below a place that hold libllama."""
    if place.is_dir():
        for pattern in ("libllama.so*", "libllama.*.so*", "libllama*.dylib"):
            yield from sorted({path.parent.resolve() for path in place.rglob(pattern)})


def needed_llama_cpp(given: Path | None, what: str) -> Path:
    """The same where nothing goes without it.

    Raises:
        ConfigError: there is none.
    """
    folder = llama_cpp(given)
    if folder is None:
        raise ConfigError(f"{what} is made by llama.cpp's library, and there is none", _NEEDS)
    return folder


def transformers_python(given: Path | None) -> Path | None:
    """A Python that has transformers and torch; None where this one has not and none is given.

    Raises:
        ConfigError: the given one has not.
    """
    if given is None:
        has = all(find_spec(name) for name in _PACKAGES)
        return Path(sys.executable) if has else None
    probe = "; ".join(
        ["import importlib.util as u", *(f"u.find_spec({name!r}).name" for name in _PACKAGES)]
    )
    try:
        done = subprocess.run([given, "-c", probe], capture_output=True, check=False)
    except OSError as error:
        raise ConfigError(
            f"python = {str(given)!r} cannot run ({error.strerror})", _PYTHON
        ) from None
    if done.returncode:
        raise ConfigError(f"python = {str(given)!r} lacks torch or transformers", _PYTHON)
    return given


_PYTHON = "give the python of an environment that has torch and transformers"


def ask(program: str, job: Mapping[str, Any], *, where: Path) -> dict[str, np.ndarray]:
    """Runs a job of `reference.py`.

    Args:
        program: "transformers" or "llama.cpp".
        job: as described there.
        where: the Python, or the folder of llama.cpp's libraries.

    Raises:
        ProgramFailed: with the program's last line.
    """
    with tempfile.TemporaryDirectory(prefix="gaia-") as scratch:
        given, answer = Path(scratch) / "job.json", Path(scratch) / "answer.npz"
        given.write_text(json.dumps(job), encoding="utf-8")
        python = where if program == "transformers" else Path(sys.executable)
        rest = [] if program == "transformers" else [where]
        _run([python, PROGRAM, program, given, answer, *rest], f"{program} on {job['model']}")
        with np.load(answer) as arrays:
            return dict(arrays)


def quantize(source: Path, out: Path, folder: Path, ftype: int) -> None:
    """Lets llama.cpp make a quantised file of one in F32.

    Raises:
        ProgramFailed: with its last line.
    """
    command = [sys.executable, PROGRAM, "quantize", source, out, folder, ftype]
    _run(command, f"llama.cpp quantising {out.name}")


def _run(command: Sequence[Any], what: str) -> None:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1].strip()[:200] if lines else f"exit status {done.returncode}"
        raise ProgramFailed(f"{what}: {reason}", "see --debug, or leave that program out")
