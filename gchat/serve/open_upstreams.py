"""Upstreams, asked for what they have before this server answers anybody."""

from pathlib import Path
from typing import Any

from gaia.errors import ConfigError
from gchat.chat_format import format_of
from gchat.endpoint_client import EndpointClient, base_url, read_key
from gchat.serve.fair_queue import FairQueue
from gchat.serve.llama_upstream import LlamaModel
from gchat.serve.options import Answering
from gchat.serve.service import Service
from gchat.serve.upstream import Address, Upstream
from gchat.tokenizer import Tokenizer


def open_upstreams(options: Answering, service: Service) -> dict[str, Any]:
    """Models of all upstreams by name.

    Raises:
        ConfigError: an address cannot be used, or a name is there twice.
        ClientError: an upstream cannot be reached.
    """
    key = read_key(
        options.upstream_key_env,
        Path(options.upstream_key_file) if options.upstream_key_file else None,
    )
    models: dict[str, Any] = {}
    for given in options.upstream:
        name, url = _named(given)
        queue = FairQueue(options.upstream_slots, options.max_queue)
        address = Address(base_url(url), key, queue, options.timeout)
        if options.upstream_api == "completion":
            opened: list[Any] = [_llama(options, service, name, address)]
        else:
            opened = _listed(options, name, address)
        for model in opened:
            if model.name in models or model.name in service.models:
                raise ConfigError(
                    f"two models are called {model.name!r}", "give --upstream NAME=URL"
                )
            models[model.name] = model
    return models


def _named(given: str) -> tuple[str | None, str]:
    """(name, address) of NAME=URL or URL; a query may hold an equals sign too."""
    name, equals, url = given.partition("=")
    return (name, url) if equals and "/" not in name else (None, given)


def _listed(options: Answering, name: str | None, address: Address) -> list[Upstream]:
    client = EndpointClient(address.url, model="", server="openai", key=address.key, tries=1)
    try:
        ids = client.models()
    finally:
        client.close()
    if name is not None and len(ids) != 1:
        some = ", ".join(list(ids)[:10])
        raise ConfigError(
            f"the upstream {name!r} has {len(ids)} models ({some})", "give its URL without a name"
        )
    return [Upstream(name or one, one, address, options.max_tokens) for one in ids]


def _llama(options: Answering, service: Service, name: str | None, address: Address) -> LlamaModel:
    assert options.upstream_tokenizer is not None  # checked with the options
    tokenizer = Tokenizer.load(options.upstream_tokenizer)
    client = EndpointClient(address.root, model="", server="llama.cpp", key=address.key, tries=1)
    try:
        facts = client.get("props")
    finally:
        client.close()
    try:
        window = int(facts["default_generation_settings"]["n_ctx"])
        path = str(facts.get("model_alias") or facts.get("model_path") or "llama.cpp")
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{address.root}/props tells no n_ctx", "give the address of llama.cpp's server"
        ) from None
    return LlamaModel(
        name or Path(path).stem,
        address,
        format_of(tokenizer, wanted=options.format),
        window,
        service.metrics,
        options.max_tokens,
    )
