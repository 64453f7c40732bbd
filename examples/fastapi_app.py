"""A web service that inverts the images that it is sent.

    pip install '.[cpu]' fastapi uvicorn
    PYINV_BUNDLE=faces.bundle uvicorn --app-dir examples fastapi_app:app
    curl --data-binary @photo.png http://localhost:8000/invert

Without PYINV_BUNDLE it serves the generator of digits that comes with pyinv.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

import pyinv
from pyinv.demo import BUNDLE

app = FastAPI(title="pyinv")
# One Inverter for all requests: it may be used by several threads at once.
inverter = pyinv.Inverter(os.environ.get("PYINV_BUNDLE", BUNDLE))


@app.post("/invert")
async def invert(request: Request, recipe: str = "default", seed: int = 0) -> dict[str, Any]:
    """Find the latent of the image file in the request's body."""
    body = await request.body()
    try:
        # In another thread, because an inversion takes longer than the event loop may wait.
        return await run_in_threadpool(find_latent, body, recipe, seed)
    except pyinv.InputError as error:  # not an image
        raise HTTPException(422, str(error)) from error
    except pyinv.RuleError as error:  # no such recipe
        raise HTTPException(400, str(error)) from error


def find_latent(body: bytes, recipe: str, seed: int) -> dict[str, Any]:
    """Return the latent of an image file as JSON values."""
    image = pyinv.load_images(io.BytesIO(body), inverter.manifest)
    inversion = inverter.invert(image, recipe=recipe, seed=seed)
    return {
        "latent": inversion.latents[0].tolist(),
        "loss": finite(inversion.loss[0]),
        "psnr": None if inversion.psnr is None else finite(inversion.psnr[0]),
        "status": pyinv.Status(int(inversion.status[0])).name.lower(),
    }


def finite(value: np.floating[Any]) -> float | None:
    """Return the value, or None in place of NaN and infinity, which JSON does not have."""
    return float(value) if np.isfinite(value) else None
