"""The one base error of gaia: every message names the field, its value and the remedy."""


class GaiaError(Exception):
    """A mistake the user can mend. The CLIs print it on one line and exit with 2.

    Args:
        problem: what is wrong, naming the field and its value.
        remedy: what to do about it.
    """

    exit_status = 2
    """What a CLI exits with: 2 for bad input, 1 where work was begun and failed."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class ConfigError(GaiaError):
    """A configuration field has a value that cannot work."""


class DataError(GaiaError):
    """A corpus, shard or manifest is missing, damaged or does not match."""


class CheckpointError(GaiaError):
    """A checkpoint is missing, damaged, or belongs to another run."""
