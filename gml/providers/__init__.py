"""One file per provider behind the protocol in `base.py`; only `get` lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gml.errors import UsageError

if TYPE_CHECKING:
    from gml.config import Config
    from gml.providers.base import Provider
    from gml.store import Store

NAMES = ("google", "lambda", "local")


def get(name: str, config: Config, store: Store) -> Provider:
    """The provider of that name; its module is imported only now."""
    if name == "google":
        from gml.providers.google import GoogleProvider

        return GoogleProvider(config, store)
    if name == "lambda":
        from gml.providers.lambda_cloud import LambdaProvider

        return LambdaProvider(config, store)
    if name == "local":
        from gml.providers.local import LocalProvider

        return LocalProvider(config, store)
    raise UsageError(f"--provider {name!r} is not known", f"use one of {', '.join(NAMES)}")


def configured(config: Config, store: Store) -> list[Provider]:
    """Every provider that has credentials or hosts here; looking is enough, nothing is called."""
    return [p for p in (get(n, config, store) for n in NAMES) if p.ready()]
