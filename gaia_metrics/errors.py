"""The base error of gaia_metrics; the same shape as the other packages' base errors."""


class MetricsError(Exception):
    """A mistake the user can mend. The CLI prints it on one line and exits with 2.

    Only `init`, the queries and the CLI raise it; nothing that a training loop calls does.

    Args:
        problem: what is wrong, naming the field and its value.
        remedy: what to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class FormatError(MetricsError):
    """A segment, spool file or run.json is damaged or was written by a newer version."""
