"""Options of `gchat serve`, and what they may not be."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from gaia.errors import ConfigError
from gaia.parallel import MeshConfig

UPSTREAM_KEY = "GCHAT_UPSTREAM_KEY"
"""Environment variable with the upstreams' key."""


@dataclass(frozen=True)
class Answering:
    """Models that a server answers with, and how it answers."""

    run: tuple[str, ...] = ()
    """Folders of runs, each by its own name or as NAME=FOLDER."""
    upstream: tuple[str, ...] = ()
    """Other servers behind this one: URL (all of its models) or NAME=URL (its only one)."""
    upstream_api: Literal["openai", "completion"] = "openai"
    """Protocol of upstreams: OpenAI's, or llama.cpp's own /completion with the prompt made here."""
    upstream_tokenizer: str | None = None
    """Run folder or tokenizer.json of the model that llama.cpp runs, for /completion."""
    upstream_key_env: str = UPSTREAM_KEY
    """Environment variable with the upstreams' API key."""
    upstream_key_file: str | None = None
    """File with the upstreams' API key, in place of the variable."""
    upstream_slots: int = 64
    """Requests that are open at once at each upstream; more wait their turn."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    step: str = "last"
    """Checkpoint: a number of steps, best (lowest validation bits per byte) or last."""
    format: Literal["auto", "chat", "text"] = "auto"
    """Tags around messages: those the run was trained on, chat (those it has), text (none)."""
    calculator: bool = True
    """Let answers call the calculator, where the tokenizer has the tags for it."""
    slots: int = 8
    """Answers that are decoded at once, for each run."""
    weights: Literal["float32", "bfloat16", "int8"] | None = None
    """Format of the weights; that of the run's matrix products when left out."""
    kv: Literal["int8"] | None = None
    """Format of keys and values; that of the run's matrix products when left out."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    max_tokens: int = 0
    """Limit of an answer's tokens; 0 is the model's window."""
    max_queue: int = 256
    """Answers that may wait for a row; more are refused with 429."""
    rate: float | None = None
    """Requests per minute and key; any number when left out."""
    token_rate: float | None = None
    """Tokens per minute and key, of prompts and answers; any number when left out."""
    max_body_mib: float = 4.0
    """Largest body of a request, in MiB."""
    timeout: float = 600.0
    """Longest time for an answer, waiting included, in seconds."""
    drain: float = 30.0
    """Time for answers that have begun when the server is told to stop, in seconds."""
    warm_up: bool = True
    """Compile everything before the first request comes."""

    def check(self) -> None:
        """Raises ConfigError naming the option that cannot work."""
        if not self.run and not self.upstream:
            raise ConfigError("neither --run nor --upstream is given", "name what to serve")
        if (self.upstream_api == "completion") != (self.upstream_tokenizer is not None):
            raise ConfigError(
                "only one of --upstream-api completion and --upstream-tokenizer is given",
                "give both, or neither",
            )
        self._check_effects()
        for name in ("slots", "max_queue", "upstream_slots"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}", "use at least 1"
                )
        for name in ("rate", "token_rate", "timeout", "max_body_mib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} is {value}", "use a number above 0")
        if not 0 <= self.drain < 86400:
            raise ConfigError(f"--drain is {self.drain}", "use seconds, 0 or more")
        if self.max_tokens < 0:
            raise ConfigError(f"--max-tokens is {self.max_tokens}", "use 0 or more")

    def _check_effects(self) -> None:
        """Raises ConfigError where an option has nothing to act on."""
        plain = Answering()
        for kind, names in (("run", _OF_RUNS), ("upstream", _OF_UPSTREAMS)):
            for name in names:
                if not getattr(self, kind) and getattr(self, name) != getattr(plain, name):
                    raise ConfigError(
                        f"--{name.replace('_', '-')} has no effect without --{kind}", "leave it out"
                    )

    def runs(self) -> dict[str, str]:
        """Folders by the names of their models.

        Raises:
            ConfigError: two have the same name.
        """
        named: dict[str, str] = {}
        for given in self.run:
            name, equals, folder = given.partition("=")
            if not equals:
                name, folder = Path(given).resolve().name, given
            if not name or not folder or name in named:
                raise ConfigError(f"--run {given!r} has no name of its own", "write NAME=FOLDER")
            named[name] = folder
        return named


@dataclass(frozen=True)
class Serve(Answering):
    """Serve trained runs with OpenAI's protocol.

    gchat serve --run runs/cpu                                   one model, on 127.0.0.1:8000
    gchat serve --run small=runs/cpu big=runs/d12 --api-keys keys.txt --host 0.0.0.0
    gchat serve --new-key alice --api-keys keys.txt              make a key, print it once
    """

    api_keys: str | None = None
    """File with hashes of API keys, or env:NAME; without it everybody may ask."""
    new_key: str | None = None
    """Make a key for this name, add its hash to --api-keys, print the key, and end."""

    def check(self) -> None:
        """Raises ConfigError naming the option that cannot work."""
        if self.new_key is None:
            super().check()
            return
        plain = Serve()
        for name in (one.name for one in fields(self)):
            if name not in _OF_KEYS and getattr(self, name) != getattr(plain, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} has no effect beside --new-key", "leave it out"
                )


_OF_KEYS = ("api_keys", "new_key")
_OF_RUNS = ("step", "calculator", "slots", "weights", "kv", "mesh", "warm_up")
_OF_UPSTREAMS = (
    "upstream_api", "upstream_tokenizer", "upstream_key_env", "upstream_key_file", "upstream_slots"
)  # fmt: skip
