"""Items of the queue, and the conversion of logged values to Python floats."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

SAID_NAMES = 5  # so many names with bad values are told of one by one
MANY_NAMES = 2000


class Barrier:
    """A marker in the queue: set when all that was queued before it is on the disk."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.event = threading.Event()
        self.ok = False


class Deferred:
    """A record that the thread builds, once `value` (an array, perhaps on a device) is ready."""

    def __init__(self, value: Any, make: Callable[[Any], dict]) -> None:
        self.value = value
        self.make = make


class Conversion:
    """Turns logged values into floats; used by the worker's thread.

    Attributes:
        devices: of the first device array that was logged.
    """

    def __init__(self, warn: Callable[[str, str, str], None]) -> None:
        self.devices: list[Any] = []
        self._warn = warn
        self._names: set[str] = set()
        self._refused: set[str] = set()  # names with a value that is not one number

    def numbers(self, item: dict, force: bool) -> dict[str, float]:
        """Convert one `log()`; a value that is no number is left out and told of once.

        Args:
            item: metric name -> number or array of one element.
            force: leave out arrays that are not ready, as the process is ending.
        """
        values = item if plain(item) else self._convert(item, force)
        return values if self._names.issuperset(values) else self._new_names(values)

    def _convert(self, item: dict, force: bool) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, value in item.items():
            if force and not ready(value):
                continue  # the device hangs; the process is ending
            try:
                if isinstance(value, str | bytes | bytearray):
                    raise TypeError("text")
                if not self.devices and hasattr(value, "devices"):
                    self.devices = sorted(value.devices(), key=lambda device: device.id)
                take = getattr(value, "item", None)  # arrays of one element of any shape
                numbers[name] = float(value if take is None else take())
            except Exception as error:
                self._refused.add(name)
                if len(self._refused) <= SAID_NAMES:
                    self._warn(
                        f"value:{name}",
                        f"{name}={type(value).__name__} is not one number ({error})"[:300],
                        "log scalars; use run.histogram for arrays and run.text for text",
                    )
                else:
                    self._warn("values", "more names hold what is not one number", "see above")
        return numbers

    def _new_names(self, values: dict[str, float]) -> dict[str, float]:
        # A lone surrogate could be printed and sent by nobody.
        clean = {str(n).encode("utf-8", "replace").decode(): v for n, v in values.items()}
        for reserved in ("step", "time"):
            if clean.pop(reserved, None) is not None:
                self._warn(
                    f"reserved:{reserved}",
                    f"the metric name {reserved!r} is taken by the line's own key",
                    f"call it train/{reserved}",
                )
        self._names.update(clean)
        if len(self._names) > MANY_NAMES:
            self._warn(
                "names",
                f"{len(self._names)} metric names in one run make every list of them slow",
                "put what varies into the step, or log every n-th layer",
            )
        return clean


def ready(value: Any) -> bool:
    """Return True where converting `value` waits for no device (jax.Array.is_ready).

    True also where it is deleted or cannot say: the conversion then fails at once and says why.
    """
    try:
        deleted = getattr(value, "is_deleted", None)
        if deleted is not None and deleted():
            return True  # jaxlib 0.10.2 ends the process where is_ready is asked after delete()
        probe = getattr(value, "is_ready", None)
        return probe is None or bool(probe())
    except Exception:  # a donated array
        return True


def plain(item: dict) -> bool:
    """Return True where every value is a Python float."""
    return {*map(type, item.values())} == {float}


def all_ready(item: dict) -> bool:
    """Return True where every value of one `log()` is on the host or copied without waiting."""
    try:
        if all(map(ready, item.values())):
            for value in item.values():  # start all copies, then take them one by one
                copy = getattr(value, "copy_to_host_async", None)
                if copy is not None:
                    copy()
            return True
        return False
    except Exception:  # a deleted (donated) array: `Conversion` says so
        return True
