"""Order and rows of text that is tokenized while it is trained on: nothing is counted beforehand.

    unit: a part of the text, tokenized as a whole when a batch needs it
    lane: takes every L-th unit of the endless sequence of epochs, and gives B / L rows of a batch

In a prepared data set the rows of every shard are counted, so that any row may follow any other.
Of text, only units that were read are counted; a lane needs no others: its rows are those of its
units one after another, permuted inside each (with a single lane, the order of shards in windows of
one). So the order is a function of (text, seed, B), the
same for any number of processes, and a process tokenizes only what its own rows lie in. An epoch
permutes the units; lanes enter it at slightly different steps.

A resumed run needs the number of rows of the units before its place: they are kept in a file, and
what is missing there is read and counted again.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gaia import storage
from gaia.data.batch import Batch
from gaia.data.chunks import Stream
from gaia.data.order import permutation
from gaia.data.packing import Packing
from gaia.data.read_ahead import ReadAhead
from gaia.data.rows import Decoded, assemble
from gaia.errors import DataError

MAX_LANES = 64
_ROW_BITS = 31  # of a row id; the others are the place of its unit in the endless sequence
_ROW = (1 << _ROW_BITS) - 1


def lanes_of(batch_size: int, units: int) -> int:
    """L: the largest power of two, up to 64, that divides the batch and is no more than the units.

    It depends on nothing that a resumed run may change.
    """
    lanes = 1
    while 2 * lanes <= min(MAX_LANES, units) and batch_size % (2 * lanes) == 0:
        lanes *= 2
    return lanes


class LaneRows:
    """Rows of units of text by random access; units are tokenized in background threads.

    Args:
        name: of the text, for errors.
        names: of the units.
        read: tokenizes one unit; its documents begin with BOS.
        seq_len: T.
        bos_id: the id of BOS.
        packing: how the documents of a unit become rows.
        held: units in memory at most.
        threads: background threads.
        counts: file that keeps the number of rows of units; None keeps them in memory.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        read: Callable[[int], Stream],
        *,
        seq_len: int,
        bos_id: int,
        packing: Packing = "split",
        held: int = 8,
        threads: int = 1,
        counts: Path | None = None,
    ) -> None:
        self.name, self.seq_len = name, seq_len
        self.packing: Packing = packing
        self.unit_names = names
        self.order: LaneOrder | None = None
        self._read, self._bos_id = read, bos_id
        self._file = counts
        self._lock = threading.Lock()
        self._counts = _read_counts(counts) if counts is not None else {}
        self._written = set(self._counts)
        self._decoded = ReadAhead(self._decode, name=name, capacity=held, threads=threads)

    def __len__(self) -> int:
        """Rows of the units counted so far."""
        with self._lock:
            return sum(self._counts.values())

    def _decode(self, unit: int) -> Decoded:
        try:
            rows = Decoded(self._read(unit), self.seq_len, self.packing, self._bos_id)
        except ValueError as error:
            raise DataError(f"{self.unit_names[unit]}: {error}", "use another --packing") from error
        self._note(unit, len(rows))
        return rows

    def _note(self, unit: int, rows: int) -> None:
        with self._lock:
            known = self._counts.setdefault(unit, rows)
            if known != rows:
                raise DataError(
                    f"{self.unit_names[unit]} of {self.name} makes {rows} rows, and made {known} "
                    "before",
                    "put the old text back, or start a new run",
                )
            if self._file is not None and unit not in self._written:
                self._written.add(unit)
                # Only saves reading the unit again: a full disk costs no more than that.
                with contextlib.suppress(OSError):
                    storage.make_folder(self._file.parent)
                    with open(self._file, "a", encoding="ascii") as file:
                        file.write(f"\n{unit} {rows} .")  # the dot says that the line is whole

    def count(self, unit: int) -> int:
        """Rows of one unit, which is read where that is not known."""
        with self._lock:
            known = self._counts.get(unit)
        return len(self._decoded.get(unit)) if known is None else known

    def is_counted(self, unit: int) -> bool:
        """True where the rows of a unit are known."""
        with self._lock:
            return unit in self._counts

    def is_empty(self) -> bool:
        """True where all units were counted and none has a row."""
        with self._lock:
            return len(self._counts) == len(self.unit_names) and not any(self._counts.values())

    def ahead(self, units: Sequence[int]) -> None:
        """Begins to tokenize units in the background."""
        self._decoded.ahead(units)

    def gather(self, row_ids: np.ndarray) -> Batch:
        """Rows [B] by the ids that LaneOrder gives them."""
        assert self.order is not None
        ordinals = row_ids >> _ROW_BITS
        unit_of = {int(o): self.order.unit(int(o)) for o in set(ordinals.tolist())}
        part_B = np.array([unit_of[o] for o in ordinals.tolist()])
        return assemble(part_B, row_ids & _ROW, self._decoded.get, self.seq_len, self.packing)

    def locate(self, row_id: int) -> tuple[str, int]:
        """The unit's name and the row in it."""
        assert self.order is not None
        return self.unit_names[self.order.unit(row_id >> _ROW_BITS)], row_id & _ROW

    def describe(self) -> str:
        """One sentence on how rows are made."""
        lanes = 1 if self.order is None else self.order.lanes
        return (
            f"text: {len(self.unit_names):,} units tokenized as they are needed, in {lanes} lanes; "
            f"packing: {self.packing}, rows of {self.seq_len}"
        )

    def metrics(self) -> dict[str, float]:
        """Units that were read so far, at least once each."""
        with self._lock:
            return {"data/units": float(len(self._counts))}

    def close(self) -> None:
        """Lets go of the units and ends the threads."""
        self._decoded.close()


class LaneOrder:
    """Order of the rows of units: a pure function of (units, seed, batch size, position).

    Args:
        rows: counts units, and reads them ahead.
        batch_size: B.
        seed: any integer.
    """

    def __init__(self, rows: LaneRows, batch_size: int, seed: int) -> None:
        self.lanes = lanes_of(batch_size, len(rows.unit_names))
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self._share = batch_size // self.lanes
        self._ends: dict[int, list[int]] = {}  # of each lane: its rows up to each of its units
        self._begun: dict[int, int] = {}  # of each lane: the last unit that was read ahead
        self._epochs: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._rows_of: dict[int, tuple[int, np.ndarray]] = {}  # of each lane: the unit in use
        self._lock = threading.RLock()
        rows.order = self

    def __len__(self) -> int:
        """Rows counted so far."""
        return len(self._rows)

    def unit(self, ordinal: int) -> int:
        """The unit at a place of the endless sequence."""
        epoch, at = divmod(ordinal, len(self._rows.unit_names))
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = permutation(len(self._rows.unit_names), self._seed, epoch)
                while len(self._epochs) > 4:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(epoch)
            return int(self._epochs[epoch][at])

    def row_ids(self, start: int, count: int) -> np.ndarray:
        """Row ids [count] int64 at positions start, start+1, …; reads the units of all lanes."""
        return self.at(np.arange(start, start + count))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Row ids int64 at any positions of the endless sequence of batches."""
        step, place = np.divmod(positions, self._batch_size)
        lane = place // self._share
        index = step * self._share + place % self._share
        ids = np.empty(len(positions), np.int64)
        with self._lock:
            lanes = sorted(set(lane.tolist()))
            if not self._ends:  # all at once, or each would be waited for alone
                firsts = [self.unit(number) for number in lanes]
                self._rows.ahead([unit for unit in firsts if not self._rows.is_counted(unit)])
            for number in lanes:
                here = lane == number
                ids[here] = self._of_lane(number, index[here])
        return ids

    def _of_lane(self, lane: int, index: np.ndarray) -> np.ndarray:
        ends = self._ends.setdefault(lane, [])
        while not ends or ends[-1] <= index.max():
            unit = self.unit(lane + len(ends) * self.lanes)
            ends.append((ends[-1] if ends else 0) + self._rows.count(unit))
            if self._rows.is_empty():
                raise DataError(
                    f"{self._rows.name} has no row of seq_len = {self._rows.seq_len}",
                    "use more text or a smaller seq_len",
                )
        turn = np.searchsorted(ends, index, side="right")
        last = int(turn.max())
        if self._begun.get(lane) != last:
            self._begun[lane] = last
            self._rows.ahead([self.unit(lane + (last + i) * self.lanes) for i in (0, 1)])
        ids = np.empty(len(index), np.int64)
        for each in sorted(set(turn.tolist())):
            here = turn == each
            before = ends[each - 1] if each else 0
            ordinal = lane + each * self.lanes
            known, rows = self._rows_of.get(lane, (-1, index))
            if known != ordinal:
                # As BatchOrder does it for shards in windows of one: with one lane it is its order.
                place = divmod(ordinal, len(self._rows.unit_names))
                rows = permutation(ends[each] - before, self._seed, *place)
                self._rows_of[lane] = ordinal, rows
            ids[here] = (ordinal << _ROW_BITS) | rows[index[here] - before]
        return ids


def _read_counts(file: Path) -> dict[int, int]:
    """Rows by unit; lines that a killed process left torn are passed over."""
    counts = {}
    with contextlib.suppress(FileNotFoundError):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            parts = line.split()
            if len(parts) == 3 and parts[2] == "." and parts[0].isdigit() and parts[1].isdigit():
                counts[int(parts[0])] = int(parts[1])
    return counts
