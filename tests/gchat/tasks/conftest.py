"""Makes the fake hub importable, by its file: on the path, fakes/google.py would hide `google`."""

import importlib.util
import sys
from pathlib import Path

_file = Path(__file__).parents[2] / "fakes" / "hub.py"
_spec = importlib.util.spec_from_file_location("hub", _file)
assert _spec and _spec.loader
sys.modules["hub"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["hub"])
