"""The verbs of `gchat data`: frozen dataclasses whose fields are the options."""

import dataclasses
import inspect
import json
import sys
from pathlib import Path

import tyro

from gaia.config import parse
from gaia.data.lengths import LENGTHS, write_lengths
from gaia.data.manifest import Manifest, load_manifest
from gaia.data.shards import verify
from gaia.errors import ConfigError
from gchat.data import prepare as preparation
from gchat.data.chat_command import Chats, prepare_files
from gchat.data.chats import COUNTS
from gchat.data.curation import options as curation
from gchat.data.curation.scores import Maker
from gchat.data.download import Download
from gchat.data.own_tokenizer import check_tokenizer
from gchat.data.show import Show
from gchat.data.upload import Uploaded, upload

__all__ = ["VERBS", "Chat", "Count", "Curate", "Download", "Lengths", "Prepare", "Show", "Upload",
           "Verify"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prepare(preparation.Options):
    """Turn text into token shards. Run again after an interruption, it goes on."""

    def run(self) -> Manifest:
        """Prepares and prints what came out."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _report(preparation.prepare(**options), self.out)


@dataclasses.dataclass(frozen=True)
class Chat(Chats):
    """Turn conversations into token shards with loss masks. Run again, it goes on."""

    json: bool = False
    """Print one JSON object."""

    def run(self) -> Manifest:
        """Prepares and prints what came out."""
        manifest = prepare_files(self)
        counts = json.loads((self.out.expanduser() / COUNTS).read_text(encoding="utf-8"))
        if self.json:
            facts = {"tokens": manifest.tokens("train"), "learned": manifest.learned}
            print(json.dumps({"out": str(self.out), **facts, **counts}))
            return manifest
        print(f"{self.out}: {counts['conversations']:,} conversations, {manifest.describe()}")
        return manifest


@dataclasses.dataclass(frozen=True)
class Curate(curation.Options):
    """Take out what is not worth training on: rules, copies, near-copies, a report."""

    def run(self, scorer: Maker | None = None) -> dict:
        """Curates and prints what each rule took.

        Args:
            scorer: recipe of the scorer of a trained run, where `--perplexity.scorer run:DIR`.
        """
        from gchat.data.curation import report
        from gchat.data.curation.curate import curate

        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(curation.Options)}
        result = curate(curation.Options(**values), scorer)
        for rule in result["removed"]:
            print(f"  {rule['rule']:32} {rule['documents']:>10,} documents")
        print(f"{self.out}: {report.summary(result)}; see {self.out / report.MARKDOWN}")
        return result


@dataclasses.dataclass(frozen=True)
class Count:
    """Print how many tokens a data set holds."""

    data_dir: tyro.conf.Positional[str]
    """Local folder or gs:// prefix."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> Manifest:
        """Reads the manifest and prints tokens and shards."""
        manifest = load_manifest(self.data_dir)
        if self.json:
            facts = {
                "tokens": manifest.tokens("train"),
                "shards": len(manifest.train),
                "val_tokens": manifest.tokens("val"),
                "documents": manifest.documents,
                "text_bytes": manifest.text_bytes,
                "vocab_size": manifest.tokenizer.vocab_size,
            }
            if manifest.learned is not None:
                facts["learned"] = manifest.learned
            print(json.dumps(facts))
        else:
            print(manifest.count())
        return manifest


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise ConfigError(f"threads is {threads}", "use 1 or more")


@dataclasses.dataclass(frozen=True)
class Verify:
    """Read every shard again and compare counts and checksums with the manifest."""

    data_dir: tyro.conf.Positional[str]
    """Local folder or gs:// prefix."""
    threads: int = 4
    """Number of shards read at a time."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> Manifest:
        """Prints one line when all is well; raises DataError naming the bad shards otherwise."""
        _check_threads(self.threads)
        manifest = verify(self.data_dir, threads=self.threads)
        check_tokenizer(self.data_dir, manifest)
        size = sum(shard.bytes for shard in manifest.train + manifest.val)
        if self.json:
            shards = len(manifest.train + manifest.val)
            print(json.dumps({"verified": True, "shards": shards, "bytes": size}))
        else:
            print(f"verified {manifest.count()}, {size:,} bytes: every checksum and count is right")
        return manifest


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Count the lengths of the documents, for packing. `prepare` has done so since it packs."""

    data_dir: tyro.conf.Positional[Path]
    """Local folder of the data set."""
    threads: int = 4
    """Number of shards read at a time."""

    def run(self) -> Manifest:
        """Writes lengths.npz beside the shards."""
        _check_threads(self.threads)
        manifest = load_manifest(self.data_dir)
        write_lengths(self.data_dir, manifest, threads=self.threads)
        print(f"{self.data_dir / LENGTHS}: lengths of {manifest.documents['train']:,} documents")
        return manifest


@dataclasses.dataclass(frozen=True)
class Upload:
    """Copy a prepared data set to a bucket. Run again after an interruption, it goes on."""

    data_dir: tyro.conf.Positional[Path]
    """Folder of the data set."""
    uri: tyro.conf.Positional[str]
    """gs://bucket/prefix."""
    force: bool = False
    """Replace objects of other content instead of refusing."""
    threads: int = 8
    """Number of objects sent at a time."""
    zone: str | None = None
    """Zone of the machines that will read it, such as us-east5-b; default: this machine's."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> Uploaded:
        """Uploads and prints bytes and cost, with a warning where the regions differ."""
        done = upload(
            self.data_dir, self.uri, force=self.force, threads=self.threads, zone=self.zone
        )
        if done.warning:
            print(f"warning: {done.warning}", file=sys.stderr)
        print(json.dumps(dataclasses.asdict(done)) if self.json else done.sentence())
        return done


VERBS = {
    "prepare": Prepare,
    "chat": Chat,
    "curate": Curate,
    "download": Download,
    "count": Count,
    "verify": Verify,
    "lengths": Lengths,
    "show": Show,
    "upload": Upload,
}


Verb = Prepare | Chat | Curate | Download | Count | Verify | Lengths | Show | Upload


def parse_verb(verb: str, args: list[str]) -> Verb:
    """The command of one verb with its options."""
    command = VERBS[verb]
    return parse(command, args, prog=f"gchat data {verb}", description=inspect.getdoc(command))


def _report(manifest: Manifest, out: Path) -> Manifest:
    print(f"{out}: {manifest.describe()}")
    return manifest
