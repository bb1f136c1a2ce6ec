"""Loops compiled by numba as an XLA custom call on CPU, on all threads of XLA's pool.

XLA runs one custom call at a time, on one thread, but lends its pool to it. A call fills in a job,
offers it to the pool, and then works on it itself: whoever comes takes the next part until none is
left. So a thread that never comes is not waited for, and one that comes late finds nothing, or
helps the job that lies there now. What makes that safe: the parts left are counted down by one
atomic addition, which alone decides who has a part; a job is offered by one atomic exchange after
all else of it is written; and who holds a part holds the job, which ends when all parts are done.

One handler serves all loops. Its first operand is the number of a loop in a table of addresses, and
not the address itself, which a program from the compile cache would bring from another process.

Needs numba. Layout of the C structs: xla/ffi/api/c_api.h of jaxlib 0.10, interface 0.3.
"""

import ctypes
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.extending import intrinsic

TARGET = "gaia_cpu_loop"

# Offsets in bytes: XLA_FFI_CallFrame, _Metadata_Extension, _Buffer, _Api.
_FRAME_EXTENSION, _FRAME_API, _FRAME_CONTEXT, _FRAME_ARGUMENTS, _FRAME_RESULTS = 8, 16, 24, 72, 112
_EXTENSION_TYPE, _EXTENSION_METADATA, _METADATA_VERSION = 8, 24, 24
_BUFFER_DATA, _BUFFER_DIMS = 24, 40
_API_SCHEDULE, _API_THREADS = 136, 144
_METADATA_TYPE = 1
_FFI_VERSION = (0, 3)

# Words of a job: parts left to take (0 or fewer: none), parts done, all parts, address of the loop,
# of the operands, of the results; 1 while a call owns it; then a question to XLA, here because
# numba frees an array of its own before an address in it is used.
_LEFT, _DONE, _PARTS, _LOOP, _OPERANDS, _RESULTS, _OWNED, _QUESTION, _WORDS = *range(8), 12
_JOBS = np.zeros((256, _WORDS), np.int64)  # far more than calls in flight at once
_TURN = np.zeros(1, np.int64)
_LOOPS = np.zeros(64, np.int64)
_PARTS_A_THREAD = 4  # so that a thread that comes late finds a part, and not half of the work
_PATIENCE = 20_000  # looks at parts that others work on, before the processor is given away

_jobs, _turn, _loops = _JOBS.ctypes.data, _TURN.ctypes.data, _LOOPS.ctypes.data
_give_way = ctypes.CDLL(None).sched_yield
_give_way.restype, _give_way.argtypes = ctypes.c_int, ()
_kept: list[object] = []  # machine code that XLA may call until the process ends
_kept_loops: list[object] = []

_WORD = ir.IntType(64)


def _compiled(generator: Callable) -> Any:
    """A function of compiled code, without the context that its generator takes first."""
    return intrinsic(generator)


@_compiled
def pointer(typing_context, address):
    """Compiled: an address as the pointer that `carray` takes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@_compiled
def _call(typing_context, function, a, b):
    """Compiled: calls the C function of two words at an address."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_WORD, [_WORD, _WORD]).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), list(arguments[1:]))

    return types.int64(types.int64, types.int64, types.int64), generate


def _atomic(operation: str) -> Any:
    """Compiled: changes a word that other threads use, and returns what it was."""

    @_compiled
    def changed(typing_context, address, n):
        def generate(context, builder, signature, arguments):
            place = builder.inttoptr(arguments[0], _WORD.as_pointer())
            return builder.atomic_rmw(operation, place, arguments[1], "seq_cst")

        return types.int64(types.int64, types.int64), generate

    return changed


_add, _swap = _atomic("add"), _atomic("xchg")


@_compiled
def _load(typing_context, address):
    """Compiled: a word that other threads write."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(types.int64), generate


@njit
def word(address):
    """Compiled: the int64 at an address."""
    return carray(pointer(address), 1, np.int64)[0]


@njit
def data(buffers, i):
    """Compiled: address of the elements of buffer i of a list."""
    return word(word(buffers + 8 * i) + _BUFFER_DATA)


@njit
def dim(buffers, i, axis):
    """Compiled: length of an axis of buffer i of a list."""
    return word(word(word(buffers + 8 * i) + _BUFFER_DIMS) + 8 * axis)


def seen(*files: str) -> int:
    """A number of this file's text and that of others, for loops that numba keeps compiled.

    numba compiles anew when the file of a kept function changes, and not when one whose functions
    it took in does. A value that the function closes over is looked at, though.
    """
    text = b"".join(Path(file).read_bytes() for file in (__file__, *files))
    return zlib.crc32(text)


def known(loops: list[Any]) -> list[int]:
    """Gives loops numbers and makes XLA know `TARGET`, which runs them.

    Its first operand is int32 [2 or more]: number of the loop, parts, and what the loop likes.

    Args:
        loops: addresses of C functions `void loop(int64 *job, int64 part)`; parts of one job run
            at the same time. `operands(job)` and `results(job)` are its lists of buffers, for
            `data` and `dim`; operand 0 is the one above.

    Returns:
        The number of each loop; the same in every process that imports the modules of loops in the
        same order, as programs from the compile cache need.
    """
    first = len(_kept_loops)
    for number, loop in enumerate(loops, first):
        _LOOPS[number] = loop.address
        _kept_loops.append(loop)
    if not first:
        handler = _handler()
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
        jax.ffi.register_ffi_target(TARGET, capsule(handler.address, None, None), platform="cpu")
    return [*range(first, len(_kept_loops))]


@njit
def operands(job):
    """Compiled: the list of operands of a job at an address."""
    return word(job + 8 * _OPERANDS)


@njit
def results(job):
    """Compiled: the list of results of a job at an address."""
    return word(job + 8 * _RESULTS)


@njit
def parts_of(job):
    """Compiled: the number of parts of a job at an address."""
    return word(job + 8 * _PARTS)


@njit
def _take_parts(job):
    while True:
        left = _add(job + 8 * _LEFT, -1)
        if left <= 0:
            return
        _call(word(job + 8 * _LOOP), job, left - 1)
        _add(job + 8 * _DONE, 1)


@njit
def _own_job():
    """A job that no other call uses; one whose thread sleeps may keep its own for long."""
    while True:
        job = _jobs + (_add(_turn, 1) % len(_JOBS)) * (8 * _WORDS)
        if _swap(job + 8 * _OWNED, 1) == 0:
            return job


def _handler() -> Callable:
    """A C function that takes XLA's call frame and returns no error."""

    @cfunc(types.void(types.int64))
    def helper(job):
        _take_parts(job)

    helper_address: Any = helper.address
    _kept.append(helper)

    @cfunc(types.int64(types.int64))
    def handler(frame):
        extension = word(frame + _FRAME_EXTENSION)
        if extension != 0:
            kind = carray(pointer(extension + _EXTENSION_TYPE), 1, np.int32)[0]
            if kind == _METADATA_TYPE:  # XLA asks for which interface this was written
                metadata = word(extension + _EXTENSION_METADATA)
                version = carray(pointer(metadata + _METADATA_VERSION), 2, np.int32)
                version[0], version[1] = _FFI_VERSION
                return 0
        api, context = word(frame + _FRAME_API), word(frame + _FRAME_CONTEXT)
        job = _own_job()
        fields = carray(pointer(job), _WORDS, np.int64)
        fields[_OPERANDS], fields[_RESULTS] = (
            word(frame + _FRAME_ARGUMENTS),
            word(frame + _FRAME_RESULTS),
        )
        asked = carray(pointer(data(fields[_OPERANDS], 0)), 2, np.int32)
        fields[_LOOP] = word(_loops + 8 * asked[0])

        question, address = fields[_QUESTION:], job + 8 * _QUESTION
        question[0], question[1], question[2], question[3] = 32, 0, context, address + 32
        _call(word(api + _API_THREADS), address, 0)
        threads = max(1, min(question[4], asked[1]))
        parts = min(threads * _PARTS_A_THREAD, asked[1]) if threads > 1 else 1
        fields[_DONE], fields[_PARTS] = 0, parts
        _swap(job + 8 * _LEFT, parts)  # from here on it is there for the taking
        question[0], question[3], question[4] = 40, helper_address, job
        for _ in range(threads - 1):
            _call(word(api + _API_SCHEDULE), address, 0)
        _take_parts(job)
        looks = 0
        while _load(job + 8 * _DONE) < parts:
            looks += 1
            if looks > _PATIENCE:
                _give_way()
        _swap(job + 8 * _OWNED, 0)
        return 0

    _kept.append(handler)
    return handler
