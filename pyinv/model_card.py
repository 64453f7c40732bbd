"""Model cards: a bundle's manifest as the README.md of its repository on a hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyinv.bundle import Bundle, Manifest

__all__ = ["model_card"]


def model_card(bundle: Bundle, repository: str, *, license: str | None = None) -> str:
    """Return the card in Markdown, with metadata in YAML.

    Args:
        bundle: the bundle.
        repository: where it is uploaded to, USER/NAME.
        license: the licence's identifier, such as "apache-2.0"; None states none.
    """
    manifest = bundle.manifest
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _rows(bundle))
    arguments = "images, conditions=..." if manifest.conditions else "images"
    return f"""\
---
{_metadata(manifest, license)}
---

# {_cell(manifest.name) or repository}

A bundle for pyinv, which finds the latents behind this generator's images:

```python
import pyinv

inverter = pyinv.Inverter.from_pretrained("{repository}")
inversion = inverter.invert({arguments})  # {_batch(manifest.target_shape)}
latents = inversion.latents  # {_batch(manifest.latent_shape)}
```

| | |
|---|---|
{rows}
"""


def _metadata(manifest: Manifest, license: str | None) -> str:
    """Return the metadata. JSON's strings and lists are YAML."""
    entries: dict[str, Any] = {"library_name": "pyinv"}
    if license is not None:
        entries["license"] = license
    if manifest.is_picture and not manifest.conditions:
        entries["pipeline_tag"] = "unconditional-image-generation"
    entries["tags"] = ["generator-inversion", "latent-inversion", *manifest.runtimes]
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in entries.items())


def _rows(bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    low, high = manifest.value_range
    conditions = ", ".join(f"{name}: {one}" for name, one in manifest.conditions.items())
    solved = ", ".join(loss for loss in manifest.losses if manifest.has_normal_equations(loss))
    size = sum(record.bytes for record in manifest.files.values())
    rows = [
        ("latent", f"{list(manifest.latent_shape)}, {manifest.prior}"),
        ("image", f"{list(manifest.image_shape)}, values in [{low:g}, {high:g}]"),
        ("target", f"{list(manifest.target_shape)}, observations of images")
        if manifest.observes
        else ("", ""),
        ("conditions", conditions),
        ("losses", ", ".join(manifest.losses)),
        ("normal equations", solved),
        ("encoder", "yes" if manifest.has_encoder else ""),
        ("weights per pixel", "yes" if manifest.weights else ""),
        ("runtimes", ", ".join(manifest.runtimes)),
        ("size", f"{size / 1e6:.2f} MB"),
        ("exported by", ", ".join(f"{name} {value}" for name, value in manifest.exporter.items())),
        ("digest", bundle.digest),
    ]
    return [(name, value) for name, value in rows if value]


def _batch(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N', *map(str, shape)])}]"


def _cell(text: str) -> str:
    """Return free text as one line that has no meaning in a table."""
    return " ".join(text.replace("|", "\\|").split())
