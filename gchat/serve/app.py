"""The application: which path is answered by what."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from gchat.serve import chat, completions, llama, responses, responses_body, tokens
from gchat.serve.bodies import Strict, read_json
from gchat.serve.errors import ApiError
from gchat.serve.forward import forward
from gchat.serve.guard import Guard
from gchat.serve.metrics import CONTENT_TYPE
from gchat.serve.service import Service
from gchat.serve.sse import ClientGone
from gchat.serve.upstream import Upstream

OWNER = "gchat"
"""`owned_by` of runs in the list of models."""
Answer = Callable[[Service, Any, HttpRequest, dict[str, Any]], Awaitable[Response]]

POSTS: dict[str, tuple[type[Strict], Answer]] = {
    "/v1/chat/completions": (chat.ChatBody, chat.chat),
    "/v1/completions": (completions.CompletionBody, completions.completions),
    "/v1/responses": (responses_body.ResponsesBody, responses.responses),
    "/tokenize": (tokens.TokenizeBody, tokens.tokenize),
    "/detokenize": (tokens.DetokenizeBody, tokens.detokenize),
    "/completion": (llama.LlamaBody, llama.completion),
}
"""Questions to a model: the body that a path takes, for the description, and what answers it."""


def make_app(service: Service, *, max_bytes: int = 4 << 20, body_s: float = 60.0) -> ASGIApp:
    """The ASGI application of a server.

    Args:
        service: its state.
        max_bytes: of a request's body.
        body_s: seconds for a body to come.
    """
    app = FastAPI(title="gchat serve", docs_url=None, redoc_url=None)
    _add_facts(app, service)
    for path, (body, answer) in POSTS.items():
        _add_post(app, service, path, body, answer)
    _describe_bodies(app, service)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGone, _gone)
    app.add_exception_handler(RecursionError, _too_deep)
    app.add_exception_handler(Exception, _bug)
    paths = [path for route in app.routes if (path := getattr(route, "path", None))]
    return Guard(app, service, paths, max_bytes=max_bytes, body_s=body_s)


def _add_post(
    app: FastAPI, service: Service, path: str, body: type[Strict], answer: Answer
) -> None:
    async def route(request: HttpRequest) -> Response:
        data = await read_json(request)
        model = service.model(data.get("model"), named)
        if isinstance(model, Upstream):
            return await forward(service, model, request, data)
        return await answer(service, model, request, data)

    named = body.model_fields["model"].is_required()
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    described = {"required": True, "content": {"application/json": {"schema": schema}}}
    app.add_api_route(
        path, route, methods=["POST"], name=path, response_class=JSONResponse,
        description=answer.__doc__ or "", openapi_extra={"requestBody": described},
    )  # fmt: skip


def _describe_bodies(app: FastAPI, service: Service) -> None:
    """Adds the bodies' schemas to the description: routes read their bodies themselves."""
    bodies = [(body, "validation") for body, _ in POSTS.values()]
    _, made = models_json_schema(bodies, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        described = plain()
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(made.get("$defs", {}))
        names = list(service.models)
        for body, _ in POSTS.values():  # so that whoever reads it can ask
            schemas[body.__name__]["properties"]["model"] = {"type": "string", "enum": names}
        return described

    app.openapi = openapi  # type: ignore[method-assign]


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    def health() -> Response:
        """Tells whether questions are answered."""
        if service.leaving:
            return JSONResponse({"status": "shutting down"}, 503)
        if service.driver.needed and not service.driver.alive:
            return JSONResponse({"status": "the engine has stopped"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/v1/models")
    def models() -> Response:
        """Lists the models."""
        listed = [describe(model) for model in service.models.values()]
        return JSONResponse({"object": "list", "data": listed})

    @app.get("/tokenizer_info")
    def tokenizer_info(model: str | None = None) -> Response:
        """Facts of a model's tokenizer."""
        chosen = service.model(model, named=False)
        if isinstance(chosen, Upstream):
            raise ApiError(404, f"{chosen.name!r} is an upstream's model: its tokenizer is there")
        return JSONResponse(tokens.info(chosen))

    @app.get("/props")
    def props(model: str | None = None) -> Response:
        """Facts of a model by llama.cpp's names."""
        chosen = service.model(model, named=False)
        return JSONResponse(
            {
                "default_generation_settings": {"n_ctx": chosen.seq_len},
                "total_slots": chosen.queue.slots,
                "model_alias": chosen.name,
                "is_sleeping": False,
            }
        )

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> Response:
        """Describes one model."""
        return JSONResponse(describe(service.model(name)))


def describe(model: Any) -> dict[str, Any]:
    """`Model` of the list of models; `max_model_len` is vLLM's."""
    facts = {"id": model.name, "object": "model", "created": model.created, "owned_by": OWNER}
    return facts | ({} if model.seq_len is None else {"max_model_len": model.seq_len})


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────


async def _api_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: "no such path; see /openapi.json", 405: "not by this method"}.get(
        error.status_code, str(error.detail)
    )
    return await _api_error(
        request, ApiError(error.status_code, message, headers=error.headers, code=None)
    )


async def _gone(_: HttpRequest, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; nginx's number, for the log


async def _too_deep(request: HttpRequest, _: Exception) -> Response:
    """Only what a client sent is nested deeply here."""
    message = "the body is nested too deeply"
    return await _api_error(request, ApiError(400, message, code="invalid_json"))


async def _bug(_: HttpRequest, __: Exception) -> Response:
    # The traceback is in the server's log.
    return JSONResponse(ApiError(500, "an error of the server; its log has it").body(), 500)
