"""The scaling dashboard: one page of sliders over the functions of `gchat plan`.

FastAPI answers, htmx asks: each move of a slider fetches the results again and puts the choice
into the address, so that an address is a plan one can share. Nothing is computed in the browser.
"""

import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gaia.errors import ConfigError
from gaia.hardware import chips, dated, skus
from gaia.parallel import MeshConfig
from gchat.config import TrainConfig, TrainingConfig
from gchat.model import GPTConfig
from gchat.model_shape import all_params
from gchat.scaling.plan import Plan, derived, describe
from gchat.scaling.search import best, candidates
from gchat.scaling.sku import Fleet, fleet_of, parse_fleet

WEB = Path(__file__).parent / "web"
STYLE = "style.css"
STATIC = {"htmx.min.js": "text/javascript", STYLE: "text/css"}


class Controls(BaseModel):
    """Values of the sliders; also the address of the page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: int = Field(24, ge=1, le=128)
    width: int = Field(1536, ge=128, le=16384)
    heads: int = Field(12, ge=1, le=128)
    vocab: int = Field(50304, ge=256, le=262144)
    seq: int = Field(2048, ge=128, le=131072)
    batch: int = Field(256, ge=1, le=8192)
    tokens: float = Field(10.0, gt=0, le=100_000)
    tensor: int = Field(1, ge=1, le=8)
    sequence: int = Field(1, ge=1, le=16)
    sku: str = Field("v6e-8", max_length=40)
    optimizer: Literal["muon", "adamw"] = "muon"


# name, title, unit, least, most, step
SLIDERS = (
    ("depth", "depth", "layers", 1, 128, 1),
    ("width", "width", "features", 128, 16384, 128),
    ("heads", "heads", "", 1, 128, 1),
    ("vocab", "vocabulary", "tokens", 256, 262144, 128),
    ("seq", "sequence", "tokens", 128, 131072, 128),
    ("batch", "batch", "rows per step", 1, 8192, 1),
    ("tokens", "training tokens", "billions", 0.5, 1000, 0.5),
    ("tensor", "mesh: tensor", "devices", 1, 8, 1),
    ("sequence", "mesh: sequence", "devices", 1, 16, 1),
)


def make_app(*, hosts: list[str] | None = None) -> FastAPI:
    """The application; `hosts` are the names it answers to (all when left out)."""
    app = FastAPI(title="gchat dashboard", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["*"])
    pages = templates()

    @app.get("/", response_class=HTMLResponse)
    def page(controls: Annotated[Controls, Query()]) -> str:
        return pages.get_template("page.html").render(view(controls))

    @app.get("/results", response_class=HTMLResponse)
    def results(controls: Annotated[Controls, Query()]) -> HTMLResponse:
        html = pages.get_template("results.html").render(view(controls), moved=True)
        return HTMLResponse(html, headers={"HX-Replace-Url": f"/?{address(controls)}"})

    @app.get("/web/{name}")
    def static(name: str) -> FileResponse:
        if name not in STATIC:
            raise HTTPException(404)
        return FileResponse(WEB / name, media_type=STATIC[name])

    @app.exception_handler(RequestValidationError)
    def refused(_: Request, error: RequestValidationError) -> HTMLResponse:
        first = error.errors()[0]
        text = f"{first['loc'][-1]} is {str(first.get('input'))[:40]!r}: {first['msg']}"
        return HTMLResponse(pages.from_string("<p class=bad>{{ t }}</p>").render(t=text), 422)

    return app


def templates() -> Environment:
    """The pages' templates."""
    pages = Environment(
        loader=FileSystemLoader(WEB), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pages.filters["gib"] = lambda size: f"{size / 2**30:.2f}"
    return pages


def controls_of(query: str) -> Controls:
    """The controls of a page's address, or of its query alone.

    Raises:
        ConfigError: naming the first value that cannot be.
    """
    pairs = dict(parse_qsl(query.rpartition("?")[2], keep_blank_values=True))
    try:
        return Controls.model_validate(pairs)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"--plan: {name} is {str(first.get('input'))[:40]!r}: {first['msg']}",
            "copy the address of `gchat dashboard`, or name its sliders: 'depth=24&sku=v6e-8'",
        ) from None


def address(controls: Controls) -> str:
    """The query that brings these controls back."""
    return urlencode(controls.model_dump())


def config_of(controls: Controls) -> TrainConfig:
    """The derived configuration that the sliders ask for.

    Raises:
        ConfigError: the sizes do not fit together.
    """
    if controls.width % controls.heads:
        raise ConfigError(
            f"heads {controls.heads} does not divide width {controls.width}", "move one of them"
        )
    base = TrainConfig()
    config = TrainConfig(
        model=GPTConfig(
            depth=controls.depth,
            dim=controls.width,
            heads=controls.heads,
            head_dim=controls.width // controls.heads,
            vocab_size=controls.vocab,
            padded_vocab_size=-(-controls.vocab // 128) * 128,
            seq_len=controls.seq,
        ),
        optim=type(base.optim)(name=controls.optimizer, warmup_steps=0),
        training=TrainingConfig(batch_size=controls.batch, tokens=round(controls.tokens * 1e9)),
        mesh=MeshConfig(tensor=controls.tensor, sequence=controls.sequence),
    )
    return derived(config)[0]


def view(controls: Controls) -> dict[str, Any]:
    """Everything the templates show; `problem` is one line where the sizes do not go together."""
    known: dict[str, Any] = {
        "controls": controls.model_dump(),
        "sliders": SLIDERS,
        "dated": dated(),
        "problem": "",
        "moved": False,
        "static": False,
        "chosen": None,
        "grid": [],
        "params": 0,
        "address": address(controls),
    }
    try:
        config, fleet = config_of(controls), parse_fleet(controls.sku)
        known["params"] = all_params(config.model)
        known["grid"] = grid(config)
        known["chosen"] = chosen(config, fleet)
    except ConfigError as error:
        known["problem"] = str(error)
    return known


def chosen(config: TrainConfig, fleet: Fleet) -> dict[str, Any]:
    """The SKU that is looked at: its best plan, or the one that comes nearest to fitting."""
    plan, fits = _best_or_smallest(config, fleet)
    parts = [(name, size) for name, size in asdict(plan.memory).items() if size]
    scale = max(plan.memory.total, plan.limit_bytes)
    other = best(config, fleet)
    return {
        "plan": plan,
        "fits": fits,
        "how": describe(plan),
        "bar": [(name, size, 100 * size / scale) for name, size in parts],
        "limit_at": 100 * plan.limit_bytes / scale,
        "hours": plan.seconds / 3600,
        "cost": plan.cost_usd(),
        "spot": plan.cost_usd(spot=True),
        "parts_of_step": _step_parts(plan),
        "better": _better(plan, other),
    }


def grid(config: TrainConfig) -> list[dict[str, Any]]:
    """A row for each chip: its slices from small to large, each with its verdict; then cards."""
    rows = []
    for key, chip in chips().items():
        sizes = [fleet_of(item) for item in skus().values() if item.chip.key == key]
        if sizes:
            rows.append({"title": chip.name, "cells": [_cell(config, fleet) for fleet in sizes]})
    cards = [parse_fleet(key) for key, chip in chips().items() if chip.owned]
    rows.append({"title": "cards of one's own", "cells": [_cell(config, card) for card in cards]})
    return rows


def _cell(config: TrainConfig, fleet: Fleet) -> dict[str, Any]:
    cell: dict[str, Any] = {"sku": fleet.name, "chips": fleet.chips, "hours": None, "cost": None}
    try:
        plan, fits = _best_or_smallest(config, fleet)
    except ConfigError as error:
        return cell | {"state": "undivided", "why": str(error)}
    if not fits:
        return cell | {"state": "bad", "why": plan.why}
    return cell | {
        "state": "good",
        "why": f"{describe(plan)}: {plan.why}",
        "hours": plan.seconds / 3600,
        "cost": plan.cost_usd(),
    }


def _best_or_smallest(config: TrainConfig, fleet: Fleet) -> tuple[Plan, bool]:
    plans = candidates(config, fleet, fixed_mesh=True)
    fitting = next((plan for plan in plans if plan.fits), None)
    if fitting is not None:
        return fitting, True
    return min(plans, key=lambda plan: plan.memory.total), False


def _step_parts(plan: Plan) -> list[tuple[str, float]]:
    names = ("products", "attention", "head", "memory", "optimizer", "ici", "dcn")
    return [(n, 1e3 * getattr(plan.time, n)) for n in names if getattr(plan.time, n) > 0]


def _better(plan: Plan, other: Plan | None) -> str:
    """A sentence on a faster mesh, where it gains more than the estimate's noise."""
    if other is None or (plan.fits and other.time.seconds > 0.97 * plan.time.seconds):
        return ""
    return f"{describe(other)}: step {other.time.seconds:.3f} s, {other.why}"


def serve(host: str, port: int) -> None:
    """Serves until interrupted; prints the address.

    Raises:
        ConfigError: the port cannot be used.
    """
    import uvicorn

    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"{host}:{port} cannot be used ({error})", "choose another --port") \
            from error  # fmt: skip
    local = host in ("127.0.0.1", "localhost", "::1")
    app = make_app(hosts=["127.0.0.1", "localhost"] if local else None)
    print(f"dashboard: http://{host}:{listener.getsockname()[1]}", flush=True)
    print("Ctrl-C ends it", file=sys.stderr)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
