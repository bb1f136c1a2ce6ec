"""Makes fakes importable, by their files: on the path, fakes/google.py would hide `google`."""

import importlib.util
import sys
from pathlib import Path

for _name in ("hub", "wikimedia"):
    _file = Path(__file__).parents[2] / "fakes" / f"{_name}.py"
    _spec = importlib.util.spec_from_file_location(_name, _file)
    assert _spec and _spec.loader
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
