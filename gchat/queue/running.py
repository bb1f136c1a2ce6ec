"""A worker as a program: signals stop it, and whoever waits sees how it goes."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable

from gchat.queue.protocol import Queue, QueueError
from gchat.queue.rules import Rules, Tally
from gchat.queue.threads import Threads
from gchat.queue.worker import Do, work

_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_worker(
    queue: Queue,
    do: Do,
    rules: Rules | None = None,
    *,
    concurrency: int | None = None,
    lease_s: float | None = None,
    wait: bool | None = None,
    name: str = "",
    watch: Callable[[Tally], None] | None = None,
    every_s: float = 1.0,
) -> tuple[Tally, signal.Signals | None]:
    """`work`, stopped by SIGTERM, SIGHUP and Ctrl-C; a second signal gives running items no time.

    Args:
        queue: to take from.
        do: see `work`.
        rules: see `work`, as for all that follow.
        concurrency: in place of that of the rules.
        lease_s: in place of that of the rules.
        wait: in place of that of the rules.
        name: of the worker.
        watch: called with the counts so far, in a thread of its own, and once more at the end.
        every_s: seconds between two calls of `watch`.

    Returns:
        What was done, and the signal that ended it.
    """
    tally, told = Tally(), list[signal.Signals]()

    async def main() -> None:
        stop, hurry = asyncio.Event(), asyncio.Event()
        with _signals(told, stop, hurry):
            watcher = asyncio.create_task(_watch(tally, watch, every_s))
            try:
                await work(
                    queue, do, rules=rules, concurrency=concurrency, lease_s=lease_s, wait=wait,
                    stop=stop, hurry=hurry, name=name, tally=tally,
                )  # fmt: skip
            finally:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
                if watch is not None:
                    with contextlib.suppress(QueueError):
                        watch(tally)

    asyncio.run(main())
    return tally, told[0] if told else None


@contextlib.contextmanager
def _signals(told: list[signal.Signals], stop: asyncio.Event, hurry: asyncio.Event):
    loop = asyncio.get_running_loop()

    def hear(number: signal.Signals) -> None:
        (hurry if told else stop).set()
        told.append(number)
        if len(told) == 1:
            with contextlib.suppress(OSError):  # SIGHUP says that the terminal is gone
                sys.stderr.write(
                    f"\n{number.name}: finishing what runs, giving back the rest "
                    "(again to give back all at once)\n"
                )

    # nohup has SIGHUP ignored, and a shell's background job SIGINT: that stays so.
    heard = [number for number in _HEARD if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in heard}
    for number in heard:
        loop.add_signal_handler(number, hear, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


async def _watch(tally: Tally, watch: Callable[[Tally], None] | None, every_s: float) -> None:
    """Lets the watcher look beside the work: a queue may take minutes to count what it holds."""
    begun, thread = time.monotonic(), Threads(1, "watch")
    try:
        while watch is not None:
            await asyncio.sleep(every_s)
            tally.wall_s = time.monotonic() - begun
            with contextlib.suppress(QueueError):  # the work itself says what is wrong, if it lasts
                await thread.run(watch, tally)
    finally:
        thread.close()
