"""A roll call on the coordinator's port, by which processes find one another before JAX does.

JAX aborts a process, with a C++ stack trace, when a peer never joins, and does not say which one.
So process 0 first calls the roll over plain TCP: it knows who is missing when time is up, tells
those who came, and hands the port over to JAX once everyone is there.

One line each way: `gaia COUNT INDEX`, then `go` or what is wrong.
"""

import contextlib
import socket
import time

from gaia.errors import GaiaError

_RETRY_SECONDS = 0.2
_LONGEST_LINE = 1000


class RendezvousError(GaiaError):
    """The processes of a run did not come together."""


def roll_call(address: str, count: int, index: int, seconds: float) -> None:
    """Returns once all `count` processes are there.

    Args:
        address: HOST:PORT of process 0, the same on every process.
        count: number of processes.
        index: of this process.
        seconds: to wait for the others.

    Raises:
        RendezvousError: naming the processes that are missing, or what does not fit.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise RendezvousError(f"the coordinator is {address!r}", "give --coordinator HOST:PORT")
    deadline = time.monotonic() + seconds
    if index == 0:
        _call(int(port), count, seconds, deadline)
    else:
        _answer(host.strip("[]"), int(port), count, index, seconds, deadline)


def _call(port: int, count: int, seconds: float, deadline: float) -> None:
    try:
        server = _listen(port)
    except OSError as error:
        raise RendezvousError(
            f"process 0 cannot listen on port {port} ({error.strerror})",
            "end the program that uses it, or choose another port in --coordinator",
        ) from None
    present: dict[int, socket.socket] = {}
    with contextlib.closing(server):
        try:
            while len(present) < count - 1:
                missing = [str(i) for i in range(1, count) if i not in present]
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    names = ", ".join(missing)
                    raise RendezvousError(
                        f"of {count} processes these did not join within {seconds:g} s: {names}",
                        "start them with the same --coordinator, or wait longer (--join-seconds)",
                    ) from None
                _admit(peer, count, present)
        except RendezvousError as error:
            _tell(present, error.problem)
            raise
        _tell(present, "go")


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _admit(peer: socket.socket, count: int, present: dict[int, socket.socket]) -> None:
    """Notes a process that called; a stranger is sent away, a contradiction ends the roll call."""
    peer.settimeout(5.0)
    try:
        words = _line(peer).split()
    except OSError:
        words = []
    if len(words) != 3 or words[0] != "gaia" or not (words[1] + words[2]).isdigit():
        peer.close()
        return
    their_count, index = int(words[1]), int(words[2])
    if index in present and not _alive(present[index]):
        present.pop(index).close()  # it was started again, or lost its connection
    if their_count != count or not 0 < index < count or index in present:
        if index in present:
            problem = f"two processes call themselves {index}"
        else:
            problem = f"process {index} expects {their_count} processes, process 0 expects {count}"
        present[-1] = peer  # to be told as well
        raise RendezvousError(problem, "give each process its own --process-id, and all one count")
    present[index] = peer


def _alive(peer: socket.socket) -> bool:
    """Tells whether the other side still holds the connection (it sends nothing while it waits)."""
    peer.settimeout(0.0)
    try:
        return peer.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _tell(present: dict[int, socket.socket], line: str) -> None:
    for peer in present.values():
        with contextlib.suppress(OSError):
            peer.settimeout(5.0)
            peer.sendall(line.encode() + b"\n")
        peer.close()


def _answer(host: str, port: int, count: int, index: int, seconds: float, deadline: float) -> None:
    """Calls process 0 until it has an answer."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise RendezvousError(
                f"process 0 at {host}:{port} did not answer process {index} within {seconds:g} s",
                "start it with the same --coordinator, and let the port through",
            )
        try:
            with socket.create_connection((host, port), timeout=left) as peer:
                peer.sendall(f"gaia {count} {index}\n".encode())
                # Process 0 gives up at its own deadline and says why: leave it time to.
                peer.settimeout(max(1.0, deadline - time.monotonic()) + 10.0)
                answer = _line(peer)
        except OSError:
            answer = ""
        if answer == "go":
            return
        if answer:
            raise RendezvousError(answer, "see process 0")
        time.sleep(min(_RETRY_SECONDS, max(0.0, left)))


def _line(peer: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n") and len(data) < _LONGEST_LINE:
        part = peer.recv(_LONGEST_LINE)
        if not part:
            break
        data += part
    return data.decode(errors="replace").strip()
