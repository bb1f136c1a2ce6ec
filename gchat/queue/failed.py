"""An attempt that failed, told by the one who made it to the worker."""

from gaia.errors import GaiaError


class Failed(GaiaError):
    """An attempt without a result.

    Args:
        reason: for people; failures are counted by what stands before its first colon.
        retry: another attempt may do better; False sends the item to the dead letter.
        after_s: seconds until the next attempt; the worker's own back-off when left out.
        pause_s: the fault is not the item's (a limit of the endpoint, no connection): the whole
            worker waits so many seconds, and the item spends no attempt.
        fatal: no other item would fare better (a wrong key, a spent budget): the worker stops,
            and the item goes back untouched.
        cost: US dollars that the attempt took.
    """

    exit_status = 1

    def __init__(
        self,
        reason: str,
        *,
        retry: bool = True,
        after_s: float | None = None,
        pause_s: float | None = None,
        fatal: bool = False,
        cost: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.retry, self.after_s, self.pause_s = retry, after_s, pause_s
        self.fatal, self.cost = fatal, cost

    def __reduce__(self) -> tuple:
        return type(self), (self.problem,), self.__dict__
