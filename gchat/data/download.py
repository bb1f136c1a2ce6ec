"""Download ClimbMix shards and tokenize them into records.

    python -m gchat.data.download -n 8                # GPT-2 tokenizer, under $GAIA_HOME/data
    python -m gchat.data.download -n 170 --tokenizer bpe --out DIR

The same as `gchat data download`; nanochat's shard naming, its last shard as validation.
"""

import sys

import tyro

from gaia.errors import GaiaError
from gchat.data.cli import Download


def main(args: list[str] | None = None) -> int:
    """Runs the command; returns the exit status (2 and one line for a mistake of the user)."""
    command = tyro.cli(Download, prog="python -m gchat.data.download", args=args)
    try:
        command.run()
    except GaiaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
