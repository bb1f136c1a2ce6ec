"""Download a data set and tokenize it into records: `gchat data download`.

python -m gchat.data.download -n 8                # ClimbMix, nanochat's shard naming
python -m gchat.data.download -n 170 --tokenizer bpe --out DIR
"""

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from gaia import storage
from gaia.config import parse
from gaia.data.manifest import Manifest
from gaia.errors import ConfigError, run_cli
from gchat.data import prepare as preparation
from gchat.data.sources import wikimedia

_OF_HUB = ("column", "shards", "revision")
_OF_WIKIPEDIA = ("lang", "date", "titles")
_SHARDS = 8


@dataclasses.dataclass(frozen=True)
class Download:
    """Download a data set and tokenize it into records. Run again, it goes on.

    Examples:
        gchat data download climbmix -n 8
        gchat data download fineweb-edu -n 2 --tokenizer bpe
        gchat data download hf://ORG/NAME/FOLDER --column body --revision v1.0
        gchat data download wikipedia --lang en --titles titles.txt
        gchat data download wikipedia --lang simple --date 20261101
    """

    data: tyro.conf.Positional[str] = "climbmix"
    """climbmix, fineweb, fineweb-edu, hf://ORG/NAME[/FOLDER] (its .parquet and .jsonl files), or
    wikipedia."""
    column: str | None = None
    """Field that holds the text (hf:// and fineweb); default text."""
    shards: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Number of files, -1 for all, default 8; ClimbMix's validation shard always comes along."""
    revision: str | None = None
    """Branch, tag or commit of a data set of the hub, pinned to its commit; default main."""
    lang: str | None = None
    """Language of Wikipedia, as in its address; default en."""
    date: str | None = None
    """Date of Wikipedia's dump, as 20261101; default latest, the newest finished one."""
    titles: str | None = None
    """Titles of Wikipedia's articles, separated by |, or a file with one per line: only the parts
    of the dump that hold them are fetched. Default: the whole dump."""
    out: Path | None = None
    """Folder of the data set; default $GAIA_HOME/data/DATA-TOKENIZER-SHARDS."""
    tokenizer: str = "gpt2"
    """Tokenizer: gpt2, bpe (trained on this text), or the path of a tokenizer.json."""
    vocab_size: int = 32768
    """Vocabulary of a trained bpe, special tokens included."""
    keep_text: bool = True
    """Keep the downloaded files under $GAIA_HOME."""
    workers: int = 0
    """Number of processes; 0 takes one per core."""
    overwrite: bool = False
    """Replace another data set in --out."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> Manifest:
        """Downloads, tokenizes, and prints what came out."""
        is_wikipedia = self.data == "wikipedia"
        for option in _OF_HUB if is_wikipedia else _OF_WIKIPEDIA:
            if (value := getattr(self, option)) is not None:
                raise ConfigError(f"{option} = {value!r} does not go with {self.data}", "drop it")
        source = self._wikipedia() if is_wikipedia else self._of_hub()
        out = self.out or storage.home() / "data" / self._label(source)
        manifest = preparation.prepare(
            **source,
            out=out,
            tokenizer=self.tokenizer,
            vocab_size=self.vocab_size,
            keep_text=self.keep_text,
            workers=self.workers,
            overwrite=self.overwrite,
        )
        if self.json:
            facts = {
                "out": str(out),
                "tokens": manifest.tokens("train"),
                "val_tokens": manifest.tokens("val"),
                "documents": manifest.documents,
                "text_bytes": manifest.text_bytes,
                "sources": manifest.sources,
                "revision": manifest.parameters.get("revision"),
            }
            print(json.dumps(facts))
        else:
            print(f"{out}: {manifest.describe()}")
        return manifest

    def _of_hub(self) -> dict[str, Any]:
        is_climbmix = self.data == "climbmix"
        if is_climbmix and self.column not in (None, "text"):
            raise ConfigError(f"column = {self.column!r}: ClimbMix has only text", "drop it")
        return {
            "source": "climbmix" if is_climbmix else "hub",
            "input": None if is_climbmix else self.data,
            "text_column": self.column or "text",
            "shards": _SHARDS if self.shards is None else self.shards,
            "revision": self.revision or "main",
        }

    def _wikipedia(self) -> dict[str, Any]:
        lang, date = self.lang or "en", self.date or "latest"
        if date == "latest" and self.out is None:  # its folder is named after the date
            date = wikimedia.find(lang, date).date
        return {
            "source": "wikipedia",
            "input": lang,
            "titles": self.titles,
            "revision": "main" if date == "latest" else date,
        }

    def _label(self, source: dict[str, Any]) -> str:
        """Name of the default folder."""
        name = Path(self.tokenizer).stem + (f"{self.vocab_size}" if self.tokenizer == "bpe" else "")
        if source["source"] != "wikipedia":
            label = re.sub(r"[^\w.-]+", "-", self.data.removeprefix("hf://"))
            return f"{label}-{name}-{source['shards']}"
        part = "" if self.titles is None else f"-{Path(self.titles).stem[:40]}"
        return re.sub(r"[^\w.-]+", "-", f"{source['input']}wiki-{source['revision']}{part}-{name}")


def main(args: list[str]) -> None:
    """Runs the command; a broken download goes on when it is run again."""
    parse(
        Download, args, prog="python -m gchat.data.download", description=inspect.getdoc(Download)
    ).run()


if __name__ == "__main__":
    sys.exit(run_cli("gchat", main, sys.argv[1:]))
