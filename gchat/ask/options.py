"""Options that the verbs which ask a model share: which one, how tokens are drawn, what form."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from gaia.errors import ConfigError
from gchat.chat_format import ChatFormat, Wanted, read_format
from gchat.client import Budget, Client
from gchat.endpoint_client import KEY_VARIABLE, EndpointClient, read_key
from gchat.engine import grammar as grammars
from gchat.engine.grammar import Grammar
from gchat.engine.requests import SamplingConfig, check_draft

if TYPE_CHECKING:
    from gchat.engine_client import EngineClient
    from gchat.run.loading import LoadedRun


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The way tokens are drawn, and the form an answer must have."""

    max_tokens: int = 512
    """Limit of the tokens to add."""
    temperature: float = 0.8
    """0 always takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens that together reach this probability."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Make tokens that occurred less likely; 1 is off."""
    seed: int = 0
    """Same seed, same text."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    schema: str | None = None
    """File with a JSON schema that answers must fit."""
    regex: str | None = None
    """Regular expression that whole answers must match."""
    choice: tuple[str, ...] = ()
    """Texts of which an answer must be one."""

    def sampling(self) -> SamplingConfig:
        """Raises ConfigError naming the option that cannot work."""
        config = SamplingConfig(
            self.temperature, self.top_k, self.top_p, self.seed, self.min_p, self.repetition_penalty
        )
        config.check()
        return config

    def grammar(self) -> Grammar | None:
        """Raises ConfigError where two forms are asked for, or one is none."""
        return grammar_of(self.schema, self.regex, self.choice)


def grammar_of(
    schema_file: str | None, regex: str | None, choice: tuple[str, ...]
) -> Grammar | None:
    """The form that an answer must have; None for any.

    Raises:
        ConfigError: more than one is given, the file cannot be read, or is no schema.
    """
    given = [name for name, value in
             (("--schema", schema_file), ("--regex", regex), ("--choice", choice))
             if value not in (None, ())]  # fmt: skip
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are given", "an answer has one form: choose one")
    if schema_file is not None:
        try:
            text = Path(schema_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(f"--schema {schema_file!r}: {reason}", "check the path") from None
        return grammars.json_schema(text)
    if regex is not None:
        return grammars.regex(regex)
    return grammars.choice(choice) if choice else None


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model that is asked: a run, or an endpoint."""

    of_both: ClassVar[tuple[str, ...]] = ()
    """Options of endpoints that have a meaning for runs too, in a verb of its own."""

    run: str | None = None
    """Folder of the run."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible server in place of a run: http://HOST:8000/v1."""
    format: Wanted = "auto"
    """Tags around messages: those the run was trained on (auto), those it has (chat), native,
    chatml, or none (text)."""
    tools: bool = True
    """Let a run's answers call the calculator, where its tokenizer has the tags for it."""
    weights: Literal["float32", "bfloat16", "int8"] | None = None
    """Format of a run's weights; that of its matrix products when left out."""
    kv: Literal["int8"] | None = None
    """Format of a run's keys and values; that of its matrix products when left out."""
    speculate: int = 0
    """Tokens that a step drafts out of a run's own text and checks (prompt lookup); 0 is off."""
    model: str | None = None
    """Name of the endpoint's model; needed where it has several."""
    server: Literal["openai", "vllm", "llama.cpp"] | None = None
    """Kind of endpoint, which decides the names of options; asked for when left out."""
    key_env: str = KEY_VARIABLE
    """Environment variable with the endpoint's API key."""
    key_file: str | None = None
    """File with the API key, in place of the variable."""
    tries: int = 5
    """Attempts of a request that fails for a while (429, 5xx, no connection)."""
    timeout: float = 600.0
    """Longest wait for a piece of an endpoint's answer, in seconds."""

    def check(self) -> None:
        """Raises ConfigError where the options do not go together."""
        if (self.run is None) == (self.endpoint is None):
            given = "neither --run nor" if self.run is None else "both --run and"
            raise ConfigError(f"{given} --endpoint is given", "give one of them")
        check_draft(self.speculate)
        others = _ENDPOINT_ONLY if self.run is not None else _RUN_ONLY
        defaults = {field.name: field.default for field in fields(self)}
        for name in others:
            if name in self.of_both or name not in defaults:
                continue
            if getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"--{name.replace('_', '-')} has no effect with "
                    f"--{'run' if self.run is not None else 'endpoint'}",
                    "leave it out",
                )

    def open_run(self, slots: int) -> "EngineClient":
        """Loads the run; raises CheckpointError where it cannot be used."""
        # An endpoint is asked without jax, which takes seconds to import.
        from gchat.run.loading import load_run

        assert self.run is not None
        return self.client_of(load_run(self.run), slots)

    def client_of(self, loaded: "LoadedRun", slots: int) -> "EngineClient":
        """The client of a run that is loaded already."""
        from gchat.engine.tools import Tools, has_tools
        from gchat.engine_client import EngineClient

        assert self.run is not None
        tokenizer = loaded.tokenizer
        chat_format = read_format(self.run, tokenizer, wanted=self.format)
        calls = self.tools and chat_format.kind == "native" and has_tools(tokenizer)
        return EngineClient(
            loaded.engine(slots=slots, weights=self.weights, kv=self.kv, speculate=self.speculate),
            tokenizer,
            chat_format,
            model=self._name(loaded, chat_format, calls),
            slots=slots,
            tools=Tools(tokenizer) if calls else None,
        )

    def _name(self, loaded: "LoadedRun", chat_format: ChatFormat, calls: bool) -> str:
        """Name of the run for records: two of one name are one model asked in one way.

        A folder's name and a step alone are not: every speedrun has its `sft`.
        """
        template = chat_format.template.text if chat_format.template else None
        asked = [chat_format.kind, template, calls, self.weights, self.kv]
        deciding = json.dumps([loaded.digest, loaded.tokenizer.sha256, *asked])
        named = hashlib.sha256(deciding.encode()).hexdigest()[:8]
        return f"{Path(str(self.run)).resolve().name}@{loaded.step}-{named}"

    def open_endpoint(
        self, *, concurrency: int = 1, budget: Budget | None = None
    ) -> EndpointClient:
        """Connects to the endpoint.

        Raises:
            ConfigError: the address or the key cannot be used.
            ClientError: it does not answer.
        """
        assert self.endpoint is not None
        key = read_key(self.key_env, Path(self.key_file) if self.key_file else None)
        if not key and self.key_env != KEY_VARIABLE:
            raise ConfigError(f"the variable {self.key_env} is not set", "check --key-env")
        return EndpointClient(
            self.endpoint,
            model=self.model,
            server=self.server,
            key=key,
            tries=self.tries,
            timeout_s=self.timeout,
            concurrency=concurrency,
            budget=budget,
        )

    def open(self) -> Client:
        """The client for one question at a time."""
        self.check()
        return self.open_endpoint() if self.run is None else self.open_run(slots=1)


_RUN_ONLY = ("format", "tools", "weights", "kv", "speculate", "slots")
_ENDPOINT_ONLY = (
    "model", "server", "key_env", "key_file", "tries", "timeout", "concurrency", "max_requests",
    "max_total_tokens",
)  # fmt: skip
