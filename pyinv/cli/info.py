"""``pyinv info``: describe this installation or a bundle."""

from __future__ import annotations

import argparse
import platform
import textwrap
from collections.abc import Mapping
from importlib import util
from typing import Any

from pyinv import __version__, _core
from pyinv.bundle import Bundle, Manifest
from pyinv.cli.console import Console
from pyinv.cores import usable_cores
from pyinv.devices import available_devices
from pyinv.errors import PyinvError, printable
from pyinv.extras import install_command

__all__ = ["add_parser", "run"]

ORIGIN_WIDTH = 80  # characters per line


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "info",
        parents=[shared],
        help="describe a bundle, or this installation",
        description="Describe a bundle and verify its files; without one, describe this "
        "installation.",
    )
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a bundle's folder or address")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    if arguments.bundle is None:
        found = _installation()
    else:
        bundle = Bundle.open(arguments.bundle)
        found = {"path": str(bundle.path), "digest": bundle.digest, **bundle.manifest.describe()}
        found["losses"] = list(bundle.manifest.losses)
        found["normal_equations"] = _solved(bundle.manifest)
        found["encoder"] = bundle.manifest.has_encoder
    if console.json:
        console.result(found)
    else:
        rows = found if arguments.bundle is None else _bundle_rows(bundle)
        width = max(map(len, rows))
        for name, value in rows.items():
            text = printable(str(value)).replace("\n", "\n" + " " * (width + 2))
            print(f"{name.replace('_', ' '):<{width}}  {text}")


def _installation() -> dict[str, Any]:
    from pyinv.recipes import RECIPES

    return {
        "pyinv": __version__,
        "python": platform.python_version(),
        "onnxruntime": _runtime("onnx"),
        "torchscript": _runtime("torchscript"),
        "cuda": _cuda(),
        "devices": _devices(),
        "cores": usable_cores(),
        "export": "torch found" if util.find_spec("torch") else install_command("export"),
        "recipes": ", ".join(RECIPES),
    }


def _runtime(name: str) -> str:
    try:
        from pyinv import runtimes

        loaded = runtimes.load(name)
        return f"{loaded}, {'with' if loaded.has_cuda else 'without'} CUDA"
    except (PyinvError, ImportError) as error:
        return f"not usable: {' '.join(str(error).split())}"


def _cuda() -> str:
    if not _core.built_with_cuda():
        return "not in this build; build pyinv where a CUDA compiler is found"
    return "in this build" if _core.cuda_device_count() else "in this build, but no GPU is found"


def _devices() -> str:
    names = available_devices()
    gpus = (f"{name} ({_core.cuda_device_name(i)})" for i, name in enumerate(names[1:]))
    return ", ".join((names[0], *gpus))


def _solved(manifest: Manifest) -> list[str]:
    """Return the losses with normal equations."""
    return [loss for loss in manifest.losses if manifest.has_normal_equations(loss)]


def _target(manifest: Manifest) -> str:
    return f"{list(manifest.target_shape)}, observations of images, any finite values"


def _bundle_rows(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    low, high = manifest.value_range
    size = sum(record.bytes for record in manifest.files.values())
    origin = {f"origin_{name}": _wrapped(_text(value)) for name, value in manifest.origin.items()}
    return {
        "bundle": bundle.path,
        "name": manifest.name or "-",
        "latent": f"{list(manifest.latent_shape)}, {manifest.prior}",
        "image": f"{list(manifest.image_shape)}, values in [{low:g}, {high:g}]"
        + ("" if manifest.is_picture else ", not a picture"),
        **({"target": _target(manifest)} if manifest.observes else {}),
        **({"weights": "per pixel, for invert(weights=...)"} if manifest.weights else {}),
        "conditions": ", ".join(f"{name}: {one}" for name, one in manifest.conditions.items())
        or "-",
        "losses": ", ".join(manifest.losses),
        "normal_equations": ", ".join(_solved(manifest)) or "-",
        "encoder": "yes" if manifest.has_encoder else "no; pyinv train encoder adds one",
        "runtimes": ", ".join(manifest.runtimes),
        "batch_norm": manifest.batch_norm,
        "size": f"{size / 1e6:.2f} MB in {len(manifest.files)} files, checksums verified",
        "digest": bundle.digest,
        "exported_by": ", ".join(f"{name} {value}" for name, value in manifest.exporter.items()),
        **origin,
    }


def _text(value: Any, *, inside: bool = False) -> str:
    """Return a JSON value as text; an object ``inside`` another one gets brackets."""
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, Mapping):
        text = ", ".join(f"{name}={_text(item, inside=True)}" for name, item in value.items())
        return f"({text})" if inside else text
    if isinstance(value, list):
        return f"[{', '.join(_text(item, inside=True) for item in value)}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(text, ORIGIN_WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)
