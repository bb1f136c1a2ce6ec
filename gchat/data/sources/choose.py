"""Options that name a text; every verb that reads text shares them."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from gaia.errors import ConfigError
from gchat.data.sources import climbmix, docs, hub, mediawiki, text, wikipedia
from gchat.data.sources.unit import Corpus


@dataclasses.dataclass(frozen=True)
class Source:
    """Names a text; shared by the verbs that read it."""

    source: Literal["text", "docs", "climbmix", "hub", "mediawiki", "wikipedia"] = "text"
    """Kind of text: your files (text), docstrings of the installed packages (docs, offline),
    ClimbMix, another data set of the Hugging Face hub (hub), a dump of Wikipedia or another
    MediaWiki (mediawiki: .xml, .bz2, .gz), or Wikipedia by language (wikipedia, downloaded)."""
    input: str | None = None
    """File, folder or glob of .txt, .md, .jsonl (also .gz, .bz2, .xz, .zst) or .parquet (source
    text), or of dumps (source mediawiki); hf://ORG/NAME[/FOLDER] or fineweb (source hub);
    a language such as en (source wikipedia)."""
    text_column: str = "text"
    """Field of .jsonl and .parquet files that holds the text."""
    document_chars: int = text.DOCUMENT_CHARS
    """.txt and .md files are cut at the first blank line after this many characters."""
    max_bad: int = 0
    """Number of documents that may be unreadable before the work stops; they are left out."""
    shards: int = 8
    """Number of files to fetch (sources climbmix and hub; -1 for all)."""
    revision: str = "main"
    """Branch, tag or commit (sources climbmix and hub), pinned to its commit; date of the dump as
    YYYYMMDD (source wikipedia), main for the latest."""
    keep_text: bool = True
    """Keep downloaded files under $GAIA_HOME."""
    titles: str | None = None
    """Titles of articles, separated by |, or a file with one per line (sources mediawiki
    and wikipedia)."""
    categories: str | None = None
    """Categories of articles, given like titles (source mediawiki)."""

    def corpus(self, revision: str | None = None, exclude: Path | None = None) -> Corpus:
        """Lists the text, and says on stderr which files of the input are not read.

        Args:
            revision: overrides the one given.
            exclude: the folder where results are written, which is no input.
        """
        if self.max_bad < 0:
            raise ConfigError(f"max_bad = {self.max_bad} is negative", "use 0 or more")
        made = dataclasses.replace(self._listed(revision, exclude), max_bad=self.max_bad)
        if made.left_out:
            print(f"not read of {self.input}: {made.left_out}", file=sys.stderr, flush=True)
        return made

    def _listed(self, revision: str | None, exclude: Path | None) -> Corpus:
        if self.source in ("docs", "climbmix") and self.input is not None:
            raise ConfigError(
                f"input = {self.input!r} does not go with source = {self.source!r}", "drop it"
            )
        if self.source == "docs":
            return docs.corpus()
        if self.source == "climbmix":
            return climbmix.corpus(
                self.shards, revision=revision or self.revision, keep=self.keep_text
            )
        if self.source not in ("text", "hub", "mediawiki", "wikipedia"):
            raise ConfigError(
                f"source = {self.source!r} is unknown",
                "use docs, text, climbmix, hub, mediawiki or wikipedia",
            )
        if self.input is None:
            raise ConfigError("input is not set", "give --input a file, folder or glob")
        if self.source == "hub":
            return hub.corpus(
                self.input,
                column=self.text_column,
                shards=self.shards,
                revision=revision or self.revision,
                keep=self.keep_text,
            )
        if self.source == "wikipedia":
            wikipedia.check_options(dataclasses.asdict(self))
            date = revision or self.revision
            date = "latest" if date == "main" else date
            return wikipedia.corpus(self.input, date=date, titles=self.titles)
        if self.source == "mediawiki":
            return mediawiki.corpus(
                self.input, titles=self.titles, categories=self.categories, exclude=exclude
            )
        return text.corpus(
            self.input,
            text_column=self.text_column,
            document_chars=self.document_chars,
            exclude=exclude,
        )
