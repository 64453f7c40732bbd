"""The service as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException

from pyinv import __version__
from pyinv.inverter import Inverter
from pyinv.recipes import Recipe
from pyinv.serving.answers import error_answer, json_answer
from pyinv.serving.documentation import ENDPOINTS, Endpoint, page
from pyinv.serving.limits import Limits
from pyinv.serving.refusals import RETRY
from pyinv.serving.service import Service, State

__all__ = ["create_app"]


def create_app(
    inverter: Inverter,
    *,
    recipes: Iterable[str | Recipe] = ("default",),
    seed: int = 0,
    limits: Limits | None = None,
    workers: int = 2,
) -> FastAPI:
    """Return the service as an ASGI application, for uvicorn or any other server.

    The application must be served by one process, whose requests then share the lanes of the
    inverter's streams. ``app.state.service`` is its ``Service``.

    Args:
        inverter: inverts; its batch size is the number of lanes of each stream.
        recipes: names or recipes that requests may ask for, by name; the first is the default.
        seed: the seed of requests that give none.
        limits: what a client may ask for.
        workers: threads that decode images, at least 1.

    Raises:
        InputError: an argument out of range, two recipes of one name, or a bundle whose targets
            affect one another (``batch_norm="batch"``).
        RuleError, BundleError: a recipe does not exist, or does not fit the bundle.
    """
    service = Service(inverter, recipes, seed, limits or Limits(), workers)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="pyinv",
        description='Finds the latents behind images. Errors are JSON: {"error": "one line"}.',
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # would load scripts from another server
        redoc_url=None,
    )
    app.state.service = service

    for endpoint in ENDPOINTS:
        app.add_api_route(
            f"/{endpoint.name}",
            _route(service, endpoint),
            methods=["POST"],
            summary=endpoint.summary,
            description=endpoint.description,
            response_class=Response,
            responses=endpoint.responses,
            openapi_extra=endpoint.openapi(list(service.recipes)),
        )

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        text = page(list(service.recipes), str(request.base_url))
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/healthz", summary="Whether the process is alive", tags=["operations"])
    async def healthz() -> Response:
        bundle = inverter.bundle.digest
        return json_answer({"status": "ok", "bundle": bundle, "version": __version__})

    @app.get("/readyz", summary="Whether requests are accepted", tags=["operations"])
    async def readyz() -> Response:
        if service.state is State.READY:
            return json_answer({"status": "ready"})
        return error_answer(503, f"the service is {service.state.value}", RETRY)

    @app.get("/metrics", summary="Measurements for Prometheus", tags=["operations"])
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        names = ", ".join(f"POST /{endpoint.name}" for endpoint in ENDPOINTS)
        text = f"{error.detail}: {request.method} {request.url.path}; expected {names} or GET /docs"
        return error_answer(error.status_code, text, error.headers)

    return app


def _route(service: Service, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        return await service.respond(request, endpoint)

    return route
