"""The providers by name; each is imported only when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gml.errors import UsageError

if TYPE_CHECKING:
    from gml.config import Config
    from gml.providers.base import Provider
    from gml.store import Store

NAMES = ("google", "lambda", "aws", "local")


def get(name: str, config: Config, store: Store) -> Provider:
    """The provider of that name; raises UsageError for an unknown one."""
    if name == "google":
        from gml.providers.google.provider import GoogleProvider

        return GoogleProvider(config, store)
    if name == "lambda":
        from gml.providers.lambda_cloud import LambdaProvider

        return LambdaProvider(config, store)
    if name == "aws":
        from gml.providers.aws import AwsProvider

        return AwsProvider(config, store)
    if name == "local":
        from gml.providers.local import LocalProvider

        return LocalProvider(config, store)
    raise UsageError(f"--provider {name!r} is unknown", f"use one of {', '.join(NAMES)}")
