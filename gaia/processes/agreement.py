"""One process asks, all processes do it after the same step, and no step waits for it."""

import threading

from gaia.processes.group import Group


class Agreement:
    """Makes all processes do a thing after the same step, whoever asked for it, without waiting.

    A process that was asked publishes the step it is at and goes no further than its end until
    process 0 has published the largest of all; everyone goes on to that one. The publishing is
    done by the group's background thread, so that a process that waits for others inside a
    collective takes part too, and training pays one lock per step.

    Args:
        group: the processes.
        step: finished steps at the start.
    """

    def __init__(self, group: Group, step: int) -> None:
        self._group, self._position = group, step
        self._asked: set[str] = set()
        self._voted: set[str] = set()
        self._at: dict[str, int] = {}
        self._rounds: dict[str, int] = {}
        self._changed = threading.Condition()
        if group.count > 1:
            group.attach(self)

    def ask(self, name: str) -> None:
        """Asks for `name` to be done soon. Safe in a signal handler."""
        self._asked.add(name)

    def due(self, step: int) -> set[str]:
        """Returns what is to be done now that `step` steps are finished; the next step follows."""
        if self._group.count == 1:
            due, self._asked = self._asked, set()
            return due
        with self._changed:
            while self._voted - self._at.keys():
                self._changed.wait()
            due = {tag.split("/")[0] for tag, at in self._at.items() if at == step}
            for name in due:
                tag = self._tag(name)
                self._voted.discard(tag)
                del self._at[tag]
                self._asked.discard(name)
                self._rounds[name] = self._rounds.get(name, 0) + 1
            self._position = step + 1
            return due

    def _tag(self, name: str) -> str:
        """`NAME/ROUND`: a request that can be repeated needs new keys each time."""
        return f"{name}/{self._rounds.get(name, 0)}"

    def serve(self, live: dict[str, str]) -> None:
        """One look at what the others published, in the group's background thread."""
        known = {key.split("/")[1] for key in live if key.startswith("asked/")}
        for name in sorted(known | set(self._asked)):
            with self._changed:
                tag = self._tag(name)
                asked = f"asked/{tag}" in live
                if asked:
                    self._voted.add(tag)  # from here on due() waits, so the position stays
                position = self._position
            if asked:
                self._vote(tag, position, live)
            elif name in self._asked:
                self._group.tell(f"asked/{tag}", "")
        if self._group.first:
            self._sweep(live)

    def _sweep(self, live: dict[str, str]) -> None:
        """Removes what nobody reads any more: all have voted in the round after it."""
        for key in live:
            parts = key.split("/")  # asked|vote|at, name, round, …
            if len(parts) > 2 and int(parts[2]) < self._rounds.get(parts[1], 0) - 1:
                self._group.forget(key)

    def _vote(self, tag: str, position: int, live: dict[str, str]) -> None:
        mine = f"vote/{tag}/{self._group.index}"
        if mine not in live:
            self._group.tell(mine, str(position))
        votes = [int(v) for key, v in live.items() if key.startswith(f"vote/{tag}/")]
        if self._group.first and len(votes) == self._group.count and f"at/{tag}" not in live:
            self._group.tell(f"at/{tag}", str(max(votes)))
        if f"at/{tag}" in live:
            with self._changed:
                self._at[tag] = int(live[f"at/{tag}"])
                self._changed.notify_all()
