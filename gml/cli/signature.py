"""Command line signatures built from the dataclasses that declare options (`gml.options`)."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from gml.options import Option, from_typed, options_of


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replaces each parameter that is a dataclass of options by these options.

    The command line library sees one parameter per option; the function gets the dataclass.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            parameters += _parameters(kind)
        else:
            # Keywords only: an argument without a default may follow options that have one.
            changed = {"annotation": kind, "kind": inspect.Parameter.KEYWORD_ONLY}
            parameters.append(parameter.replace(**changed))

    @functools.wraps(function)
    def call(**typed: Any) -> Any:
        for name, kind in groups.items():
            values = {option: typed.pop(option) for option in options_of(kind)}
            typed[name] = from_typed(kind, values)
        return function(**typed)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _parameters(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind)
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    return [
        _parameter(name, option, hints[name], defaults[name])
        for name, option in options_of(kind).items()
    ]


def _parameter(name: str, option: Option, kind: Any, default: Any) -> inspect.Parameter:
    limits: dict[str, Any] = dict(option.limits)
    declared = typer.Option(*option.flags, help=option.help, **limits)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default if option.typed is None else option.default,
        annotation=Annotated[option.typed or kind, declared],
    )
