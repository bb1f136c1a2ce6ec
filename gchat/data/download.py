"""Download ClimbMix shards and tokenize them into records.

    python -m gchat.data.download -n 8                # GPT-2 tokenizer, under $GAIA_HOME/data
    python -m gchat.data.download -n 170 --tokenizer bpe --out DIR

The same as `gchat data download`; nanochat's shard naming, its last shard as validation.
"""

import sys

from gaia.config import parse
from gaia.errors import run_cli
from gchat.data.cli import Download


def main(args: list[str]) -> None:
    """Runs the command; a broken download goes on when it is run again."""
    parse(Download, args, prog="python -m gchat.data.download", description=__doc__).run()


if __name__ == "__main__":
    sys.exit(run_cli("gchat", main, sys.argv[1:]))
