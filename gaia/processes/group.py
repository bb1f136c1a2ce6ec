"""The processes of a run: how they start together, tell each other things, agree and end.

Arrays travel between processes inside jitted programs only. What is said here (a run id, an error,
the step to stop at) goes through the key-value store of JAX's coordination service, in process 0.

Where the processes of a run come from, first match: `--coordinator --num-processes --process-id`;
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (`gml` sets them on every host of a
slice); Cloud TPU metadata, Slurm, Open MPI or Kubernetes as JAX detects them. Else there is one.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gaia.config import parse
from gaia.errors import ConfigError, GaiaError
from gaia.processes.rendezvous import RendezvousError, roll_call

_POLL_SECONDS = 0.25
_LINGER_SECONDS = 10.0
_LIVE = "gaia/live/"
_ABORT = "abort"


@dataclass(frozen=True)
class DistributedConfig:
    """Place of this process among those of the run; not stored in the run folder."""

    coordinator: str | None = None
    """HOST:PORT of process 0; default JAX_COORDINATOR_ADDRESS."""
    num_processes: int | None = None
    """Processes of the run; default JAX_NUM_PROCESSES. 1 turns all detection off."""
    process_id: int | None = None
    """Number of this process, from 0; default JAX_PROCESS_ID."""
    join_seconds: int = 300
    """Seconds to wait for every process at the start."""
    heartbeat_seconds: int = 100
    """A process that is silent for so long is taken for dead and the others end."""


OPTIONS = tuple("--" + name.replace("_", "-") for name in DistributedConfig.__dataclass_fields__)


def take_options(args: Sequence[str]) -> tuple[DistributedConfig, list[str]]:
    """Splits `--coordinator …` and its like off a command line.

    Raises:
        ConfigError: a value of the wrong type.
    """
    own: list[str] = []
    rest: list[str] = []
    items = iter(args)
    for item in items:
        name, equals, value = item.partition("=")
        if name.replace("_", "-") not in OPTIONS:
            rest.append(item)
            continue
        own += [name, value if equals else next(items, "")]
    config = parse(DistributedConfig, own)
    for field in ("join_seconds", "heartbeat_seconds"):
        if getattr(config, field) < 1:
            raise ConfigError(f"{field} is {getattr(config, field)}", "use 1 or more")
    return config, rest


class Served(Protocol):
    """An object that a group's background thread calls regularly; see agreement.py."""

    def serve(self, live: dict[str, str]) -> None:
        """Takes one look at what all processes have told."""


class Group:
    """The processes of a run, seen from one of them. `Group()` is a run of one process.

    Attributes:
        index: of this process, from 0.
        count: of all processes.
    """

    def __init__(self, index: int = 0, count: int = 1, client: Any = None) -> None:
        self.index, self.count = index, count
        self._client = client
        self._calls = 0
        self._closed = client is None
        self._served: Served | None = None
        self._at_abort: list[Callable[[], object]] = []
        self._abort_lock = threading.Lock()
        if client is not None:
            threading.Thread(target=self._watch, name="gaia-group", daemon=True).start()

    @property
    def first(self) -> bool:
        """True on process 0: the one that prints, writes the run folder and reports."""
        return self.index == 0

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """Returns on every process what `make()` returns on process 0 (anything JSON can hold)."""
        if self.count == 1:
            return make()
        self._calls += 1
        key = f"gaia/share/{self._calls}"
        if self.first:
            value = make()
            self._client.key_value_set(key, json.dumps(value))
            return value
        return json.loads(self._get(key))

    def all_gather(self, value: Any, name: str = "") -> list[Any]:
        """The `value` of every process, in order. `name`: for calls from other threads, unique."""
        if self.count == 1:
            return [value]
        if not name:
            self._calls += 1
            name = str(self._calls)
        self._client.key_value_set(f"gaia/gather/{name}/{self.index}", json.dumps(value))
        if self.first:
            keys = [f"gaia/gather/{name}/{i}" for i in range(self.count)]
            values = [json.loads(self._get(key)) for key in keys]
            self._client.key_value_set(f"gaia/gather/{name}/all", json.dumps(values))
            return values
        return json.loads(self._get(f"gaia/gather/{name}/all"))

    def _get(self, key: str) -> str:
        """Waits for a key. A peer that died ends this process from another thread."""
        while True:
            try:
                return self._client.blocking_key_value_get(key, 10_000)
            except Exception as error:  # jaxlib's own kind; its text is the only difference
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def at_abort(self, function: Callable[[], object]) -> None:
        """Has `function` called (for ten seconds at most) when another process has failed."""
        self._at_abort.append(function)

    def attach(self, served: "Served") -> None:
        """Has the background thread call `served.serve` about four times a second."""
        self._served = served

    def close(self) -> None:
        """Lets go of the others, once all are here; what follows is this process's own affair."""
        if not self._closed:
            self.all_gather("bye")
            self._closed = True
            import jax

            jax.distributed.shutdown()

    def abort(self, error: BaseException) -> None:
        """Tells the others that this process fails, so that they end too instead of waiting."""
        if self._closed:
            return
        self._closed = True
        status = getattr(error, "exit_status", 1)
        text = " ".join(str(error).split())[:500] or type(error).__name__
        notice = json.dumps({"process": self.index, "text": text, "status": status})
        with contextlib.suppress(Exception):  # another one may have failed first
            self._client.key_value_set(_LIVE + _ABORT, notice)
        if self.first:  # the notice lives in this process: wait until the others have read it
            deadline = time.monotonic() + 10.0
            while time.monotonic() < deadline:
                with contextlib.suppress(Exception):
                    if len(self._client.key_value_dir_get("gaia/ack/")) >= self.count - 1:
                        break
                time.sleep(_POLL_SECONDS)
        # JAX's own exit handler would wait for all the others for minutes.
        _exit_within(15.0, status)

    def _watch(self) -> None:
        """Background thread: looks for a failure of another process, and serves the agreement."""
        while not self._closed:
            try:
                told = dict(self._client.key_value_dir_get(_LIVE))
            except Exception:
                if not self._closed:
                    time.sleep(2.0)  # JAX notices too; whoever comes first ends the process
                    self._end("process 0, the coordinator, is gone", 1)
                return
            live = {key.removeprefix(_LIVE): value for key, value in told.items()}
            if _ABORT in live and not self._closed:
                notice = json.loads(live[_ABORT])
                with contextlib.suppress(Exception):
                    self._client.key_value_set(f"gaia/ack/{self.index}", "")
                self._end(f"process {notice['process']} failed: {notice['text']}", notice["status"])
                return
            if self._served is not None:
                with contextlib.suppress(Exception):  # tried again in a moment
                    self._served.serve(live)
            time.sleep(_POLL_SECONDS)

    def tell(self, key: str, value: str) -> None:
        """Puts a value where the background thread of every process sees it."""
        self._client.key_value_set(_LIVE + key, value, allow_overwrite=True)

    def forget(self, key: str) -> None:
        """Removes what `tell` has put there."""
        self._client.key_value_delete(_LIVE + key)

    def _end(self, problem: str, status: int) -> None:
        """Ends this process from the background thread: the main one may hang in a collective."""
        with self._abort_lock:
            if self._closed:
                return
            self._closed = True
        sys.stderr.write(f"process {self.index}: {problem}\n")
        sys.stderr.flush()
        for function in self._at_abort:
            thread = threading.Thread(target=function, daemon=True)
            thread.start()
            thread.join(10.0)
        if self.first:
            # JAX kills those who lose the coordinator, in the middle of what they say.
            time.sleep(_LINGER_SECONDS)
        os._exit(status or 1)


def _exit_within(seconds: float, status: int) -> None:
    timer = threading.Timer(seconds, os._exit, (status or 1,))
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def joined(config: DistributedConfig) -> Iterator[Group]:
    """Joins the processes of this run; from here on all end when one of them fails.

    Processes other than 0 print nothing to stdout inside.

    Raises:
        GaiaError: the processes did not come together.
    """
    group = join(config)
    with contextlib.ExitStack() as stack:
        if not group.first:
            devnull = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(devnull))
        try:
            yield group
            group.close()
        except BaseException as error:
            shown = _plain(error) if group.count > 1 else error
            group.abort(shown)
            if shown is error:
                raise
            raise shown from error


def _plain(error: BaseException) -> BaseException:
    """Reports a collective that broke because a peer died, on one line without a traceback."""
    text = " ".join(str(error).split())
    broken = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "heartbeat")
    if isinstance(error, GaiaError) or not any(word in text for word in broken):
        return error
    time.sleep(4 * _POLL_SECONDS)  # if the peer said why it failed, the other thread ends us now
    lost = GaiaError(
        f"a collective failed: another process has died ({text[:200]})", "go on with --resume"
    )
    lost.exit_status = 1
    return lost


def join(config: DistributedConfig) -> Group:
    """Starts distributed JAX where this run has several processes."""
    resolved, devices = _resolve(config)
    address, count, index = resolved.coordinator, resolved.num_processes, resolved.process_id
    if address is None or count is None or index is None or count == 1:
        return Group()
    if not 0 <= index < count:
        raise ConfigError(f"process_id is {index} of {count} processes", "number them from 0")
    import jax

    # Its handler would take SIGTERM away from ours; see guards.StopRequest.
    jax.config.update("jax_enable_preemption_service", False)
    roll_call(address, count, index, config.join_seconds)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            local_device_ids=devices,
            initialization_timeout=config.join_seconds,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise RendezvousError(f"distributed JAX did not start: {error}", "see process 0") from error
    from jax._src.distributed import global_state  # JAX has no public name for its client

    return Group(index, count, global_state.client)


def _resolve(config: DistributedConfig) -> tuple[DistributedConfig, Sequence[int] | None]:
    """Fills in what was left out, from environment or cluster; and this process's devices."""
    if config.num_processes == 1:
        return config, None
    known = replace(
        config,
        coordinator=config.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        num_processes=_number(config.num_processes, "JAX_NUM_PROCESSES"),
        process_id=_number(config.process_id, "JAX_PROCESS_ID"),
    )
    given = (known.coordinator, known.num_processes, known.process_id)
    if None not in given or known.num_processes == 1:
        return known, None
    if any(value is not None for value in given) and not _in_cluster():
        names = zip(("--coordinator", "--num-processes", "--process-id"), given, strict=True)
        missing = ", ".join(name for name, value in names if value is None)
        raise ConfigError(f"not set: {missing}", "several processes need all three")
    if not _in_cluster():
        return known, None
    from jax._src.clusters import ClusterEnv

    try:
        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            *given, None, None, config.join_seconds
        )
    except Exception as error:  # metadata server, Kubernetes and Slurm each fail in their own way
        raise RendezvousError(
            f"the other processes could not be detected ({' '.join(str(error).split())[:200]})",
            "give --coordinator, --num-processes and --process-id, or --num-processes 1",
        ) from error
    complete = replace(known, coordinator=address, num_processes=count, process_id=index)
    return complete, devices


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    if not text.isdigit():
        raise ConfigError(f"{variable} is {text!r}", "use a number")
    return int(text)


def _in_cluster() -> bool:
    """Tells whether to ask JAX's detection, which may query a metadata server, or Kubernetes."""
    env = os.environ
    on_tpu = env.get("JAX_PLATFORMS", "tpu").startswith("tpu") and (
        os.path.exists("/dev/accel0") or "TPU_WORKER_HOSTNAMES" in env or "TPU_NAME" in env
    )
    many = any(env.get(name, "1") != "1" for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    return on_tpu or many or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= env.keys()
