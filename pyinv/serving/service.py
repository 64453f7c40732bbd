"""What the service does with a request: limits, deadlines, and the streams that requests share."""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pyinv.advice import peak_ratio
from pyinv.errors import InputError, PyinvError, one_line
from pyinv.inverter import Inverter
from pyinv.recipes import Recipe
from pyinv.serving.answers import (
    chosen_format,
    error_answer,
    finite,
    json_answer,
    npy_answer,
    png_answer,
)
from pyinv.serving.bodies import Body, File, images_of, latents_of, read_body, split_body
from pyinv.serving.documentation import Endpoint
from pyinv.serving.lanes import Lanes, LanesPool, Result, StreamKey
from pyinv.serving.limits import Limits
from pyinv.serving.metrics import Metrics
from pyinv.serving.parameters import Parameters
from pyinv.serving.refusals import RETRY, Refusal, refused
from pyinv.validation import whole_number

__all__ = ["Service", "State"]

FloatArray = NDArray[np.float32]
T = TypeVar("T")

_logger = logging.getLogger("pyinv.serving")
_JSON_AT_ONCE = 4096  # numbers that are written as JSON without a thread of their own


class State(enum.Enum):
    """Whether the service accepts requests."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Call:
    """A request whose body has been read."""

    parameters: Parameters
    body: Body
    accept: str
    admit: Callable[[int], None]  # to the queue, this many images in all; may raise a Refusal

    def format(self, formats: Sequence[str]) -> str:
        """Return the format of the answer; the first is the default."""
        return chosen_format(self.parameters.text("format", formats), self.accept, formats)


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
    ) -> Response:
        """Return the answer to a request, or what is wrong with it."""
        started = time.perf_counter()
        self.requests += 1
        self.metrics.under_way.inc()
        try:
            response = await self._answered(request, endpoint)
        except Refusal as refusal:
            response = error_answer(refusal.status, str(refusal), refusal.headers)
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody gets it, but it is counted
        except InputError as error:
            response = error_answer(422, one_line(error))
        except (PyinvError, MemoryError) as error:
            _logger.error("%s: %s", endpoint.name, one_line(error))
            response = error_answer(500, one_line(error))
        except Exception as error:
            _logger.exception("%s: an error within pyinv", endpoint.name)
            response = error_answer(500, f"an error within pyinv: {type(error).__name__}")
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
    ) -> Response:
        loop = asyncio.get_running_loop()
        started = loop.time()
        if self.state is not State.READY:
            raise Refusal(503, f"the service is {self.state.value}; try again later", RETRY)
        query = list(request.query_params.multi_items())
        in_url = Parameters(query, endpoint.parameters)
        deadline = started + in_url.timeout(self.limits)
        held = admitted = 0
        full = Refusal(503, "the queue is full; try again later", RETRY)

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > self.limits.max_held:
                raise Refusal(503, "too many bodies at once; try again later", RETRY)
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
            return await _unless_gone(request, getattr(self, endpoint.name)(call), deadline)
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
        kind = call.format(("json", "npy"))
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
            return npy_answer(latents, {"Pyinv-Status": statuses})
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
            psnr = finite(float(peak_ratio(result.loss, self.inverter.manifest.value_range)))
        return {
            "id": id,
            "loss": finite(result.loss),
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
        kind = call.format(("json", "npy"))
        images = await self._images(call, call.body.files)
        conditions = call.parameters.conditions(self.inverter.manifest, len(images))
        found = await self._pass(self.inverter._start, images, conditions)
        latents = found.reshape(len(images), *self.inverter.manifest.latent_shape)
        if kind == "npy":
            return npy_answer(latents)
        return await self._as_json({"latents": latents}, latents.size)

    async def generate(self, call: Call) -> Response:
        """Generate the images of latents."""
        manifest = self.inverter.manifest
        pictures = len(manifest.image_shape) == 3 and manifest.image_shape[0] in (1, 3, 4)
        kind = call.format(("png", "npy") if pictures else ("npy",))
        latents = await self._decode(latents_of, _latents(call), manifest, self.limits)
        call.admit(len(latents))
        call.parameters.conditions(manifest, len(latents))
        conditions = call.parameters.given_conditions()
        images = await self._pass(self.inverter.generate, latents, conditions=conditions)
        if kind == "npy":
            return npy_answer(images)
        return await self._decode(png_answer, images, manifest.value_range)

    async def evaluate(self, call: Call) -> Response:
        """Return the losses between images and those of latents."""
        manifest = self.inverter.manifest
        call.format(("json",))
        loss = call.parameters.text("loss") or manifest.losses[0]
        with refused(400):
            manifest.objective(loss, self.inverter.runtime)
        file = _latents(call)
        others = [one for one in call.body.files if one is not file]
        images = await self._images(call, others)
        latents = await self._decode(latents_of, file, manifest, self.limits)
        if len(latents) != len(images):
            raise Refusal(422, f"give one latent per image, got {len(latents)} for {len(images)}")
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
        call.admit(len(images))
        return images

    async def _as_json(self, values: Mapping[str, Any], size: int) -> Response:
        if size <= _JSON_AT_ONCE:
            return json_answer(values)
        return await self._decode(json_answer, values)


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
        raise Refusal(
            504,
            "the answer was not found in time, and the request was cancelled; raise timeout, or "
            "send fewer images",
        )
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
