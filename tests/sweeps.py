"""Sweeps as the tests of research write them, and results."""

from gchat.research.cells import Result


def written(tmp_path, text):
    """The path of a sweep file of this text."""
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def result(**given):
    """A result of a cell that was trained, but for what is given."""
    values = {"id": "i", "variant": "v", "size": "", "seed": 1, "status": "done", "bpb": 2.0}
    return Result(**values | {"tokens": 100, "flops": 1.0, "seconds": 1.0} | given)
