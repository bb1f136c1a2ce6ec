"""`gchat picture`: RUN/live.png of any run, now."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from gaia.config import parse
from gchat.run import live
from gchat.run.checkpoints import read_run


@dataclass(frozen=True)
class Picture:
    """Draw a run in one picture, RUN/live.png: sizes, schedule, curves, the judge's rate.

    While training, --run.picture-seconds 60 keeps it up to date.

    gchat picture runs/ww2
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""

    def draw(self) -> None:
        """Draws it and prints its path."""
        read_run(str(self.run))
        print(live.draw(self.run))


def main(args: list[str]) -> None:
    """Runs the verb."""
    parse(Picture, args, prog="gchat picture", description=Picture.__doc__).draw()
