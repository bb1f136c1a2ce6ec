"""`gchat synth VERB`: data that a program writes, and the queues of such work."""

import collections
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from gaia.errors import ConfigError
from gchat.client import Budget
from gchat.endpoint_client import KEY_VARIABLE, EndpointClient, read_key
from gchat.synth import docstrings, identity, qpt, queue_cli
from gchat.synth.asked import Asking
from gchat.synth.generating import Generate
from gchat.synth.persona import Persona, read_persona
from gchat.synth.showing import Filter, Show, Styles
from gchat.synth.writing import check_out, write_rows

OPENROUTER = "OPENROUTER_API_KEY"


@dataclass(frozen=True, kw_only=True)
class _Out:
    out: Path
    """File of conversations to write, one JSON object per line."""
    seed: int = 0
    """Same seed, same rows."""
    overwrite: bool = False
    """Replace --out."""
    json: bool = False
    """Print one JSON object."""

    def say(self, facts: dict[str, Any], sentence: str) -> None:
        """Prints what came out."""
        facts = {"out": str(self.out), **facts}
        print(json.dumps(facts) if self.json else f"{self.out}: {sentence}")


@dataclass(frozen=True, kw_only=True)
class Identity(_Out):
    """Write conversations that teach a model who it is, and to say so only when it is asked.

    Offline from templates, or with --endpoint by a model behind any OpenAI-compatible address, such
    as https://openrouter.ai/api/v1 (its key is read from OPENROUTER_API_KEY).

    gchat synth identity --name Kibo --about persona.md --out identity.jsonl
    """

    name: str
    """Name of the model."""
    about: Path
    """File with facts: a line `- maker: …`, and as you like kind, purpose, built on, and prose."""
    count: int = 1000
    """Number of conversations; 45% of them are about anything else."""
    endpoint: str | None = None
    """Address of a server that writes the conversations in place of the templates."""
    model: str | None = None
    """Name of the endpoint's model; needed where it has several."""
    key_env: str | None = None
    """Variable with the endpoint's API key; OPENROUTER_API_KEY or GAIA_API_KEY when left out."""
    concurrency: int = 8
    """Requests that are open at once at the endpoint."""
    max_requests: int | None = None
    """Cap on requests to the endpoint, repetitions included."""
    dry_run: bool = False
    """Say how many requests the endpoint would get, and send none."""

    def run(self) -> None:
        """Writes the file and prints how many rows of which kind it holds."""
        if self.endpoint is None:
            defaults = {"model": None, "key_env": None, "concurrency": 8, "max_requests": None}
            for name, default in defaults.items():
                if getattr(self, name) != default:
                    option = name.replace("_", "-")
                    raise ConfigError(f"--{option} has no effect without --endpoint", "drop it")
        persona = read_persona(self.name, self.about)
        check_out(self.out, overwrite=self.overwrite)
        rows = identity.conversations(persona, self.count, seed=self.seed)
        if self.dry_run:
            sent = 0 if self.endpoint is None else len(rows)
            said = f"{sent:,} requests at least; none was sent"
            print(json.dumps({"requests": sent}) if self.json else said)
            return
        if self.endpoint is None:
            return self._write(persona, rows, 0)
        asking = Asking(persona, rows, self.out, self._client())
        self._write(persona, *asking.run())
        asking.forget()

    def _write(self, persona: Persona, rows: list[identity.Row], rejected: int) -> None:
        count = write_rows(self.out, (row.to_json(persona) for row in rows))
        itself = sum(row.about_itself for row in rows)
        categories = collections.Counter(row.category for row in rows)
        facts = {"rows": count, "about_itself": itself, "categories": dict(categories)}
        facts["rejected"] = rejected
        said = f"{count:,} conversations, {itself:,} about {persona.name}, the others without it"
        if rejected:
            said += f"; {rejected:,} that the endpoint wrote were of no use"
        self.say(facts, said)

    def _client(self) -> EndpointClient:
        variable = self.key_env or (OPENROUTER if os.environ.get(OPENROUTER) else KEY_VARIABLE)
        key = read_key(variable)
        if self.key_env is not None and not key:
            raise ConfigError(f"the variable {variable} is not set", "check --key-env")
        assert self.endpoint is not None
        return EndpointClient(
            self.endpoint,
            model=self.model,
            key=key,
            concurrency=self.concurrency,
            budget=Budget(self.max_requests, None),
        )


@dataclass(frozen=True, kw_only=True)
class Qpt(_Out):
    """Write passages of text as answers to questions in 28 phrasings (Q-PT).

    gchat synth qpt articles/ --out qpt.jsonl
    """

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or globs of .txt, .md, .jsonl (also .gz, .bz2, .xz, .zst) or .parquet."""
    text_column: str = "text"
    """Field of .jsonl and .parquet files that holds the text; "title" says what it is about."""
    passage_chars: int = 1500
    """Characters of a passage, about; it ends where a sentence does."""
    per_passage: int = 1
    """Questions to each passage, 1 to 28."""
    max_bad: int = 0
    """Number of documents that may be unreadable before the work stops; they are left out."""

    def run(self) -> None:
        """Writes the file and prints how many rows it holds."""
        if not self.inputs:
            raise ConfigError("no input is given", "name files of text")
        check_out(self.out, overwrite=self.overwrite)
        documents = qpt.Documents(self.inputs, self.text_column, self.max_bad)
        styles: collections.Counter[str] = collections.Counter()

        def counted() -> Any:
            for row in qpt.pairs(
                documents.rows(), seed=self.seed, chars=self.passage_chars,
                per_passage=self.per_passage,
            ):  # fmt: skip
                styles[row["style"]] += 1
                yield row

        count = write_rows(self.out, counted())
        facts = {"rows": count, "styles": dict(styles), "bad": documents.bad}
        said = ", ".join(f"{n:,} {style}" for style, n in styles.items())
        self.say(facts, f"{count:,} passages as answers ({said})")


@dataclass(frozen=True, kw_only=True)
class Docstrings(_Out):
    """Write questions on functions, answered by their docstrings, of what is installed; offline.

    gchat synth docstrings --out functions.jsonl --held-out unseen.jsonl
    """

    held_out: Path
    """File for the questions on functions of modules that are kept out of --out."""
    held_out_share: float = 0.1
    """Share of modules that are kept out, chosen by the hash of their names."""
    count: int | None = None
    """Number of functions; all when left out."""
    packages: tuple[str, ...] = ()
    """Top-level modules to read, such as json os jax; those that gchat requires when left out."""
    workers: int = 2
    """Number of processes; the result does not depend on it."""

    def run(self) -> None:
        """Writes both files and prints how many rows they hold."""
        for path in (self.out, self.held_out):
            check_out(path, overwrite=self.overwrite)
        if self.out.resolve() == self.held_out.resolve():
            raise ConfigError("--out and --held-out are one file", "name two")
        functions = docstrings.functions(self.packages, self.workers)
        train, unseen = docstrings.pairs(
            functions, count=self.count, share=self.held_out_share, seed=self.seed
        )
        write_rows(self.held_out, unseen)
        write_rows(self.out, train)
        facts = {"rows": len(train), "held_out": str(self.held_out), "held_out_rows": len(unseen)}
        modules = len({row["module"] for row in unseen})
        self.say(
            facts,
            f"{len(train):,} questions on functions; {self.held_out}: {len(unseen):,} on those of "
            f"{modules:,} other modules",
        )


VERBS = {
    "identity": Identity, "qpt": Qpt, "docstrings": Docstrings, "generate": Generate,
    "show": Show, "styles": Styles, "filter": Filter, **queue_cli.VERBS,
}  # fmt: skip
