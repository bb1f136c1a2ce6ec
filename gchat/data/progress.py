"""Progress of long work with data: one kind of bar for all verbs."""

from tqdm import tqdm


def progress_bar(
    label: str, total: int | None, progress: bool | None = None, unit: str = "B", delay: float = 0
) -> tqdm:
    """A bar in bytes of text (or another unit) with rate and time left.

    Args:
        progress: show it; None shows it on a terminal, so that logs stay readable.
        delay: seconds before it appears.
    """
    hidden = None if progress is None else not progress
    return tqdm(desc=label, total=total, unit=unit, unit_scale=True, disable=hidden, delay=delay)
