"""What the service says about itself: OpenAPI, and a page with a form for each endpoint."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyinv.serving.parameters import PARAMETERS

__all__ = ["ENDPOINTS", "Endpoint", "page"]

_BINARY = {"type": "string", "format": "binary"}
_IMAGES = "images"
_LATENTS = "latents"


@dataclass(frozen=True)
class Endpoint:
    """One way to call the service.

    Args:
        name: its path.
        summary: what it does.
        description: what it takes and gives.
        parameters: the names of what it takes beside the body.
        files: the fields of files in its form.
        formats: the media types of its answers.
        example: an answer in JSON, or None.
    """

    name: str
    summary: str
    description: str
    parameters: tuple[str, ...]
    files: tuple[str, ...]
    formats: tuple[str, ...]
    example: Any = None

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """The answers, as OpenAPI describes them."""
        content: dict[str, Any] = {kind: {"schema": _BINARY} for kind in self.formats}
        if self.example is not None:
            content["application/json"] = {"example": self.example}
        errors = {
            400: "A parameter is wrong",
            408: "The body arrived too slowly",
            413: "The body, an image or the number of images is too large",
            415: "A file of another type",
            422: "A file is damaged, or of another shape or range",
            503: "The queue is full, or the service is loading or draining; try again",
            504: "The timeout is over",
        }
        refused: dict[int | str, dict[str, Any]] = {
            status: {
                "description": text,
                "content": {"application/json": {"example": {"error": text}}},
            }
            for status, text in errors.items()
        }
        return {200: {"description": self.summary, "content": content}, **refused}

    def openapi(self, recipes: Sequence[str]) -> dict[str, Any]:
        """Return the parameters and the body, as OpenAPI describes them."""
        parameters = []
        for name in self.parameters:
            parameter = PARAMETERS[name]
            schema = parameter.schema | self._choices(name, recipes)
            described = {"name": name, "in": "query", "schema": schema}
            parameters.append({**described, "description": parameter.description})
        properties: dict[str, Any] = {
            _IMAGES: {"type": "array", "items": _BINARY, "description": "PNG, JPEG or .npy files"},
            _LATENTS: {**_BINARY, "description": "a .npy file, or JSON"},
        }
        form = {"type": "object", "properties": {name: properties[name] for name in self.files}}
        content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
        if self.files == (_IMAGES,):
            content |= {kind: {"schema": _BINARY} for kind in ("image/png", "image/jpeg")}
        if len(self.files) == 1:
            content["application/x-npy"] = {"schema": _BINARY}
        if self.files == (_LATENTS,):
            content["application/json"] = {"example": {"latents": [[0.1, -0.7, 1.2]]}}
        return {"parameters": parameters, "requestBody": {"required": True, "content": content}}

    def _choices(self, name: str, recipes: Sequence[str]) -> dict[str, Any]:
        if name == "recipe":
            return {"enum": list(recipes), "default": recipes[0]}
        if name == "format":
            return {"enum": [kind.rpartition("/")[2].removeprefix("x-") for kind in self.formats]}
        return {}

    def form(self, recipes: Sequence[str]) -> str:
        """Return the endpoint as HTML: what it does, and a form to try it."""
        lines = [
            f"<h2>POST /{self.name}</h2>",
            f"<p>{html.escape(self.summary)}. {html.escape(self.description)}</p>",
            f'<form method="post" action="{self.name}" enctype="multipart/form-data">',
        ]
        for name in self.files:
            many = " multiple" if name == _IMAGES else ""
            lines.append(f'<label>{name} <input type="file" name="{name}"{many}></label>')
        for name in self.parameters:
            schema = PARAMETERS[name].schema | self._choices(name, recipes)
            hint = html.escape(PARAMETERS[name].description, quote=True)
            if "enum" in schema:
                options = "".join(f"<option>{html.escape(one)}</option>" for one in schema["enum"])
                field = f'<select name="{name}"><option value=""></option>{options}</select>'
            else:
                field = f'<input name="{name}">'
            lines.append(f'<label title="{hint}">{name} {field}</label>')
        lines.append("<button>Send</button></form>")
        return "\n".join(lines)


_COMMON = ("conditions", "timeout")
_JSON, _NPY, _PNG = "application/json", "application/x-npy", "image/png"

ENDPOINTS = (
    Endpoint(
        "invert",
        "Find the latents of images",
        "The body is a PNG or JPEG file, a .npy file of one or more images, or a form with such "
        "files. The answer is that of Inverter.invert with the same ids and seed, up to rounding.",
        ("recipe", "effort", "loss", "seed", "id", "fit", "format", *_COMMON),
        (_IMAGES,),
        (_JSON, _NPY),
        {
            "recipe": "default",
            "seed": 0,
            "results": [
                {
                    "id": 0,
                    "loss": 9.7e-09,
                    "psnr": 86.1,
                    "status": "converged_tolerance",
                    "steps": 41,
                    "attempts": 1,
                    "latent": [0.1, -0.7, 1.2],
                }
            ],
        },
    ),
    Endpoint(
        "encode",
        "Find approximate latents of images with the bundle's encoder",
        "The body is as for invert.",
        ("fit", "format", *_COMMON),
        (_IMAGES,),
        (_JSON, _NPY),
        {"latents": [[0.1, -0.7, 1.2]]},
    ),
    Endpoint(
        "generate",
        "Generate the images of latents",
        "The body is a .npy file, or JSON. The answer is a PNG, with several images a grid, or a "
        ".npy file of floats in the bundle's value range.",
        ("format", *_COMMON),
        (_LATENTS,),
        (_PNG, _NPY),
    ),
    Endpoint(
        "evaluate",
        "Compare images with those of latents",
        "The body is a form with images and as many latents. The answer has the loss of each image "
        "and its gradient with respect to the latent.",
        ("loss", "fit", *_COMMON),
        (_IMAGES, _LATENTS),
        (_JSON,),
        {"name": "mse", "results": [{"loss": 0.02, "gradient": [0.001, -0.004, 0.002]}]},
    ),
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
form { border: 1px solid #8886; border-radius: 6px; padding: .7rem; display: grid; gap: .4rem }
label { display: grid; grid-template-columns: 7rem 1fr; align-items: center }
button { justify-self: start; padding: .3rem 1.2rem }
:root { color-scheme: light dark }
"""


def page(recipes: Sequence[str], address: str) -> str:
    """Return the page of the documentation. It needs no script and no other server.

    Args:
        recipes: those that are served.
        address: the service's own, which ends in a slash.
    """
    forms = "\n".join(endpoint.form(recipes) for endpoint in ENDPOINTS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>pyinv</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>pyinv</h1>
<p>This service finds the latents behind images. Parameters may be in the URL or in the form. The
description for programs is <a href="openapi.json">openapi.json</a>.</p>
<pre>curl --data-binary @photo.png {html.escape(address)}invert</pre>
{forms}
<p><a href="healthz">healthz</a> · <a href="readyz">readyz</a> · <a href="metrics">metrics</a></p>
</body>
</html>
"""
