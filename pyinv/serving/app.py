"""The service's HTTP interface, an ASGI application."""

from __future__ import annotations

import asyncio
import enum
import functools
import io
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pyinv import __version__
from pyinv.advice import peak_ratio
from pyinv.errors import InputError, PyinvError, one_line
from pyinv.images import save_grid, to_pillow, to_uint8
from pyinv.inverter import Inverter
from pyinv.recipes import Recipe
from pyinv.serving.bodies import Body, File, images_of, latents_of, read_body, split_body
from pyinv.serving.documentation import ENDPOINTS, Endpoint, page
from pyinv.serving.lanes import Lanes, LanesPool, Result, StreamKey
from pyinv.serving.limits import Limits
from pyinv.serving.metrics import Metrics
from pyinv.serving.parameters import Parameters
from pyinv.serving.refusals import Refusal, refused
from pyinv.validation import whole_number

__all__ = ["Service", "State", "create_app"]

FloatArray = NDArray[np.float32]
T = TypeVar("T")

_logger = logging.getLogger("pyinv.serving")
_NPY = "application/x-npy"
_JSON_AT_ONCE = 4096  # numbers that are written as JSON without a thread of their own
_RETRY = {"Retry-After": "1"}


class State(enum.Enum):
    """Whether the service accepts requests."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


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
            _route(service, endpoint, getattr(service, endpoint.name)),
            methods=["POST"],
            summary=endpoint.summary,
            description=endpoint.description,
            response_class=Response,
            responses=endpoint.responses,
            openapi_extra=endpoint.openapi(list(service.recipes)),
        )
    documentation = page(list(service.recipes))

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
        return HTMLResponse(documentation, headers={"Content-Security-Policy": policy})

    @app.get("/healthz", summary="Whether the process is alive", tags=["operations"])
    async def healthz() -> Response:
        bundle = inverter.bundle.digest
        return _json({"status": "ok", "bundle": bundle, "version": __version__})

    @app.get("/readyz", summary="Whether requests are accepted", tags=["operations"])
    async def readyz() -> Response:
        if service.state is State.READY:
            return _json({"status": "ready"})
        return _error(503, f"the service is {service.state.value}", _RETRY)

    @app.get("/metrics", summary="Measurements for Prometheus", tags=["operations"])
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        names = ", ".join(f"POST /{endpoint.name}" for endpoint in ENDPOINTS)
        text = f"{error.detail}: {request.method} {request.url.path}; expected {names} or GET /docs"
        return _error(error.status_code, text, error.headers)

    return app


def _route(
    service: Service, endpoint: Endpoint, answer: Callable[[Call], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        return await service.respond(request, endpoint, answer)

    return route


@dataclass(frozen=True)
class Call:
    """A request whose body has been read."""

    parameters: Parameters
    body: Body
    accept: str
    images: Callable[[int], None]  # admits this many, or raises Refusal


class Service:
    """What the application does: requests, limits, and the streams they share.

    Attributes:
        state: whether requests are accepted.
        failure: why loading failed, or None.
        requests: the number of requests under way.
    """

    def __init__(
        self,
        inverter: Inverter,
        recipes: Iterable[str | Recipe],
        seed: int,
        limits: Limits,
        workers: int,
    ) -> None:
        self.inverter = inverter
        self.limits = limits
        self.seed = whole_number("seed", seed, at_least=0, at_most=2**64 - 1)
        self.recipes: dict[str, str | Recipe] = {}
        for recipe in recipes:
            name = recipe.name if isinstance(recipe, Recipe) else recipe
            if name in self.recipes:
                raise InputError(f"the recipe {name} is given twice; name one of them otherwise")
            inverter._session.plan(inverter._stream_recipe(recipe, {}, None, None, None, None))
            self.recipes[name] = recipe
        if not self.recipes:
            raise InputError("give at least one recipe to serve")
        self.state = State.LOADING
        self.failure: Exception | None = None
        self.requests = 0
        self._admitted = 0
        self._held = 0
        self._workers = whole_number("workers", workers, at_least=1)
        self._pool = LanesPool(inverter, self.recipes, limits.streams, self._failed)
        self.metrics = Metrics(
            inverter.bundle.digest, self._pool.open, lambda: self.state is State.READY
        )

    # Its life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start loading; requests are accepted once that is done."""
        self._decoders = ThreadPoolExecutor(self._workers, "pyinv-decode")
        # A pass takes all cores, so passes run one by one.
        self._passes = ThreadPoolExecutor(1, "pyinv-pass")
        self._loading = asyncio.ensure_future(self._load())

    async def _load(self) -> None:
        try:
            async with self._pool.lanes(StreamKey(next(iter(self.recipes)), None, None, self.seed)):
                pass
            if self.state is State.LOADING:
                self.state = State.READY
        except Exception as error:
            self.state, self.failure = State.FAILED, error

    def drain(self) -> None:
        """Accept no more requests. Those under way go on."""
        self.state = State.DRAINING

    async def close(self) -> None:
        """End everything."""
        self.state = State.DRAINING
        self._loading.cancel()
        await self._pool.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._passes.shutdown(wait=False, cancel_futures=True)

    def _failed(self) -> None:
        self.metrics.failures.inc()

    # Requests -------------------------------------------------------------------------------------

    async def respond(
        self,
        request: Request,
        endpoint: Endpoint,
        answer: Callable[[Call], Awaitable[Response]],
    ) -> Response:
        """Return the answer to a request, or what is wrong with it."""
        started = time.perf_counter()
        self.requests += 1
        self.metrics.under_way.inc()
        try:
            response = await self._answered(request, endpoint, answer)
        except Refusal as refusal:
            response = _error(refusal.status, str(refusal), refusal.headers)
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody gets it, but it is counted
        except InputError as error:
            response = _error(422, one_line(error))
        except (PyinvError, MemoryError) as error:
            _logger.error("%s: %s", endpoint.name, one_line(error))
            response = _error(500, one_line(error))
        except Exception as error:
            _logger.exception("%s: an error within pyinv", endpoint.name)
            response = _error(500, f"an error within pyinv: {type(error).__name__}")
        finally:
            self.requests -= 1
            self.metrics.under_way.dec()
        self.metrics.requests.labels(endpoint.name, str(response.status_code)).inc()
        self.metrics.seconds.labels(endpoint.name).observe(time.perf_counter() - started)
        return response

    async def _answered(
        self,
        request: Request,
        endpoint: Endpoint,
        answer: Callable[[Call], Awaitable[Response]],
    ) -> Response:
        loop = asyncio.get_running_loop()
        started = loop.time()
        if self.state is not State.READY:
            raise Refusal(503, f"the service is {self.state.value}; try again later", _RETRY)
        query = list(request.query_params.multi_items())
        in_url = Parameters(query, endpoint.parameters)
        deadline = started + in_url.timeout(self.limits)
        held = admitted = 0
        full = Refusal(503, "the queue is full; try again later", _RETRY)

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > self.limits.max_held:
                raise Refusal(503, "too many bodies at once; try again later", _RETRY)
            self._held += size
            held += size

        def admit(count: int) -> None:
            nonlocal admitted
            if self._admitted + count > self._most_admitted():
                raise full
            self._admitted += count
            admitted += count

        try:
            if self._admitted >= self._most_admitted():  # before the body is read
                raise full
            data = await read_body(request, self.limits, deadline, hold)
            body = await split_body(request.headers, data, self.limits)
            admit(1)
            parameters = Parameters([*query, *body.fields], endpoint.parameters)
            deadline = min(deadline, started + parameters.timeout(self.limits))
            accept = request.headers.get("accept", "")
            call = Call(parameters, body, accept, lambda count: admit(count - 1))
            return await _unless_gone(request, answer(call), deadline)
        finally:
            self._held -= held
            self._admitted -= admitted

    def _most_admitted(self) -> int:
        lanes = max((lanes.plan.lanes for lanes in self._pool.open()), default=1)
        return lanes + self.limits.queue

    async def _decode(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, function, *arguments)

    async def _pass(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        loop = asyncio.get_running_loop()
        run = functools.partial(function, *arguments, **named)
        return await loop.run_in_executor(self._passes, run)

    # Endpoints ------------------------------------------------------------------------------------

    async def invert(self, call: Call) -> Response:
        """Find the latents of images."""
        key = self._key(call.parameters)
        kind = _format(call, ("json", "npy"))
        images = await self._images(call, call.body.files)
        count = len(images)
        ids, seeds = call.parameters.ids(count)
        conditions = call.parameters.conditions(self.inverter.manifest, count)
        rows = images.reshape(count, -1)
        weights = np.ones_like(rows) if self.inverter.manifest.weights else None
        async with self._pool.lanes(key) as lanes:
            initial = None
            if lanes.plan.encodes:
                initial = await self._pass(self.inverter._start, images, conditions)
            results = await lanes.invert(rows, seeds, conditions, initial, weights)
        for result in results:
            self.metrics.targets.labels(result.status.name.lower()).inc()
        shape = self.inverter.manifest.latent_shape
        latents = np.stack([result.latent for result in results]).reshape(count, *shape)
        if kind == "npy":
            statuses = ",".join(result.status.name.lower() for result in results)
            return _npy(latents, {"Pyinv-Status": statuses})
        head = {"recipe": key.recipe, "seed": key.seed}
        described = [
            self._described(lanes, *row) for row in zip(ids, results, latents, strict=True)
        ]
        return await self._as_json({**head, "results": described}, latents.size)

    def _described(
        self, lanes: Lanes, id: str | int, result: Result, latent: FloatArray
    ) -> dict[str, Any]:
        psnr = None
        if lanes.plan.measures_mse:
            psnr = _finite(float(peak_ratio(result.loss, self.inverter.manifest.value_range)))
        return {
            "id": id,
            "loss": _finite(result.loss),
            "psnr": psnr,
            "status": result.status.name.lower(),
            "steps": result.steps,
            "attempts": result.attempts,
            "latent": latent,
        }

    async def encode(self, call: Call) -> Response:
        """Return the encoder's latents of images."""
        with refused(400):
            self.inverter.manifest.encode(self.inverter.runtime)
        kind = _format(call, ("json", "npy"))
        images = await self._images(call, call.body.files)
        conditions = call.parameters.conditions(self.inverter.manifest, len(images))
        found = await self._pass(self.inverter._start, images, conditions)
        latents = found.reshape(len(images), *self.inverter.manifest.latent_shape)
        if kind == "npy":
            return _npy(latents)
        return await self._as_json({"latents": latents}, latents.size)

    async def generate(self, call: Call) -> Response:
        """Generate the images of latents."""
        manifest = self.inverter.manifest
        pictures = len(manifest.image_shape) == 3 and manifest.image_shape[0] in (1, 3, 4)
        kind = _format(call, ("png", "npy") if pictures else ("npy",))
        latents = await self._decode(latents_of, _latents(call), manifest, self.limits)
        call.images(len(latents))
        call.parameters.conditions(manifest, len(latents))
        conditions = call.parameters.given_conditions()
        images = await self._pass(self.inverter.generate, latents, conditions=conditions)
        if kind == "npy":
            return _npy(images)
        png = await self._decode(_png, images, manifest.value_range)
        return Response(png, media_type="image/png")

    async def evaluate(self, call: Call) -> Response:
        """Return the losses between images and those of latents."""
        manifest = self.inverter.manifest
        _format(call, ("json",))
        loss = call.parameters.text("loss") or manifest.losses[0]
        with refused(400):
            manifest.objective(loss, self.inverter.runtime)
        file = _latents(call)
        others = [one for one in call.body.files if one is not file]
        images = await self._images(call, others)
        latents = await self._decode(latents_of, file, manifest, self.limits)
        if len(latents) != len(images):
            raise Refusal(422, f"{len(images)} images need as many latents, got {len(latents)}")
        call.parameters.conditions(manifest, len(images))
        conditions = call.parameters.given_conditions()
        losses, gradients = await self._pass(
            self.inverter.evaluate, latents, images, loss=loss, conditions=conditions
        )
        rows = zip(losses, gradients, strict=True)
        described = [{"loss": one, "gradient": gradient} for one, gradient in rows]
        return await self._as_json({"name": loss, "results": described}, gradients.size)

    def _key(self, parameters: Parameters) -> StreamKey:
        recipe = parameters.text("recipe", list(self.recipes)) or next(iter(self.recipes))
        seed = parameters.seed(self.seed)
        return StreamKey(recipe, parameters.text("loss"), parameters.text("effort"), seed)

    async def _images(self, call: Call, files: list[File]) -> FloatArray:
        fit = call.parameters.text("fit", ("crop", "stretch")) or "crop"
        manifest = self.inverter.manifest
        images = await self._decode(images_of, files, manifest, self.limits, fit)
        call.images(len(images))
        return images

    async def _as_json(self, values: Mapping[str, Any], size: int) -> Response:
        if size <= _JSON_AT_ONCE:
            return _json(values)
        return await self._decode(_json, values)


async def _unless_gone(request: Request, answer: Awaitable[Response], deadline: float) -> Response:
    """Return the answer; cancel it at the deadline, and if the client hangs up."""
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(request))
    try:
        done, _ = await asyncio.wait(
            {work, gone}, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED
        )
        if work in done:
            return work.result()
        if gone in done:
            raise ClientDisconnect
        raise Refusal(504, "the answer was not found in time; the request was given up")
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.wait({work, gone})
        if not work.cancelled():
            work.exception()  # was not asked for, if the client was gone first


async def _gone(request: Request) -> None:
    """Return once the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _latents(call: Call) -> File:
    files = call.body.files
    named = [file for file in files if file.field == "latents"]
    if len(named) > 1 or len(files) == 0 or (not named and len(files) > 1):
        raise Refusal(400, "expected one file of latents, called latents in a form")
    return (named or files)[0]


def _format(call: Call, formats: Sequence[str]) -> str:
    """Return the format of the answer: the first, unless the client asks for another."""
    asked = call.parameters.text("format", formats)
    if asked is not None:
        return asked
    types = {"json": "application/json", "npy": _NPY, "png": "image/png"}
    accepted = [kind.partition(";")[0].strip().lower() for kind in call.accept.split(",")]
    for kind in accepted:
        for name in formats:
            if kind == types[name]:
                return name
    anything = ("", "*/*", "application/*", "image/*", "text/html")
    if not any(kind in anything for kind in accepted):
        listed = " or ".join(types[name] for name in formats)
        raise Refusal(406, f"the answer is {listed}; change the header Accept")
    return formats[0]


def _png(images: FloatArray, value_range: tuple[float, float]) -> bytes:
    """Return one image, or several as a grid, as PNG."""
    file = io.BytesIO()
    if len(images) == 1:
        to_pillow(to_uint8(images, value_range)[0]).save(file, format="PNG")
    else:
        save_grid(images, file, value_range)
    return file.getvalue()


def _npy(array: FloatArray, headers: Mapping[str, str] | None = None) -> Response:
    file = io.BytesIO()
    np.save(file, array)
    return Response(file.getvalue(), media_type=_NPY, headers=headers)


def _json(values: Mapping[str, Any], status: int = 200, headers: Any = None) -> Response:
    text = json.dumps(values, default=_listed, allow_nan=False)
    return Response(text + "\n", status, headers, media_type="application/json")


def _listed(value: Any) -> Any:
    """Return a NumPy value as JSON values; null for NaN and infinity, which JSON does not have."""
    array = np.asarray(value)
    if not np.isfinite(array).all():
        finite = np.isfinite(array)
        array = array.astype(object)
        array[~finite] = None
    return array.tolist()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _error(status: int, message: str, headers: Any = None) -> Response:
    return _json({"error": " ".join(message.split())}, status, headers)
