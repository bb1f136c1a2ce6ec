"""The state of one server: its models, its limits, and how a question is asked."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest

from gchat.engine.requests import Request
from gchat.serve.asking import Asked
from gchat.serve.driver import Driver
from gchat.serve.errors import ApiError, leaving, printable
from gchat.serve.keys import NOBODY, Keys
from gchat.serve.limits import Rates
from gchat.serve.local_model import LocalModel
from gchat.serve.metrics import Metrics
from gchat.serve.usage import Usage

HOLDER = "gchat.holder"
"""Name in an ASGI scope under which the holder of a request's key stands."""


@dataclass(eq=False)
class Service:
    """One server.

    Attributes:
        models: by name.
        driver: that runs the engines.
        limit_s: seconds that an answer may take, waiting included.
        leaving: no new questions are taken.
    """

    models: dict[str, Any]
    driver: Driver
    metrics: Metrics
    keys: Keys = field(default_factory=Keys)
    rates: Rates = field(default_factory=lambda: Rates(None, None))
    limit_s: float = 600.0
    leaving: bool = False
    began: float = field(default_factory=time.monotonic)

    def model(self, name: Any, named: bool = True) -> Any:
        """The model of a name.

        Args:
            name: of the model.
            named: it must be given; else the first model is meant where it is not.

        Raises:
            ApiError: there is none.
        """
        if name is None and not named:
            return next(iter(self.models.values()))
        if not isinstance(name, str):
            raise ApiError(400, "model is missing: name one of /v1/models", param="model",
                           code="invalid_value")  # fmt: skip
        if name not in self.models:
            raise ApiError(
                404, f"the model {printable(name, 80)!r} is not served here; /v1/models lists "
                "those that are", param="model", code="model_not_found",
            )  # fmt: skip
        return self.models[name]

    def ask(
        self,
        http: HttpRequest,
        model: LocalModel,
        requests: Sequence[Request],
        *,
        calculator: bool = False,
    ) -> Asked:
        """Queues the prompts of one HTTP request.

        Raises:
            ApiError: the server is busy, or shutting down.
        """
        return self.ask_for(holder_of(http), model, requests, calculator=calculator)

    def ask_for(
        self,
        holder: str,
        model: LocalModel,
        requests: Sequence[Request],
        *,
        calculator: bool = False,
    ) -> Asked:
        """Queues prompts of one who holds a key or has an account.

        Raises:
            ApiError: the server is busy, or shutting down.
        """
        if self.leaving:
            raise leaving()

        def ended(usage: Usage) -> None:
            self.rates.used(holder, usage.prompt_tokens + usage.completion_tokens)
            self.metrics.tokens.labels(model.name, "prompt").inc(usage.prompt_tokens)
            self.metrics.tokens.labels(model.name, "cached").inc(usage.cached_tokens)

        return model.ask(holder, requests, self.limit_s, calculator=calculator, ended=ended)

    def end_all(self) -> None:
        """Ends all answers with an error: the time to finish them is over."""
        for model in self.models.values():
            model.end()


def holder_of(http: HttpRequest) -> str:
    """Name of the holder of the key that a request came with."""
    return http.scope.get(HOLDER, NOBODY)
