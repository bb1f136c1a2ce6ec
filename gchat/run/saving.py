"""Schedule of checkpoints: by steps, or by the clock of one process."""

import time

from gchat.run_config import CheckpointConfig


class SaveSchedule:
    """Tells when the next checkpoint is due.

    Args:
        config: steps and minutes between checkpoints.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        self._config = config
        self.saved(0)

    def saved(self, step: int) -> None:
        """Notes that a checkpoint of `step` begins now, or that the loop starts there."""
        self._step, self._at = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Returns whether a checkpoint is due after `step` steps; the same on every process."""
        every = self._config.every_steps
        return bool(every) and step % every == 0 and step > self._step

    def overdue(self) -> bool:
        """Returns whether a checkpoint is due by this process's clock."""
        minutes = self._config.every_minutes
        return bool(minutes) and time.monotonic() - self._at > 60 * minutes
