"""Bundles: directories with an exported generator's graphs, weights and manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import _core
from pyinv.conditions import Input, input_from_description
from pyinv.errors import BundleError, InputError
from pyinv.priors import Prior, prior_from_description

__all__ = ["Bundle", "FileRecord", "Function", "Manifest"]

FORMAT = "pyinv-bundle"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
RUNTIMES = ("onnx", "torchscript")
BATCH_NORM_MODES = ("eval", "batch")
BUILT_IN_LOSSES = ("mse", "l1", "bce", "whitened")
PICTURE_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA: what image files can store

MAX_SOLVED = _core.max_solved
"""The largest latent size for which normal equations are exported and solved."""
MAX_PRECONDITIONED = _core.max_preconditioned
"""The most components of a latent for which a bundle has a preconditioner."""


@dataclass(frozen=True)
class FileRecord:
    """A file's entry in the manifest: its size in bytes and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileRecord:
        """Return the record of the file at ``path``."""
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            size = 0
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
        return cls(bytes=size, sha256=digest.hexdigest())


@dataclass(frozen=True)
class Function:
    """One graph of a bundle.

    Args:
        name: "forward", "objective", "normal_equations", "encode" or "observe".
        runtime: "onnx" or "torchscript".
        file: the graph's file name in the bundle.
        loss: the loss of an objective or of normal equations; None for forward and encode.
        method: the method of a TorchScript file; None for ONNX, where each file has one graph.
        bytes_per_target: for normal equations, an upper bound on the memory per target in a batch;
            None for other functions.
        operators: for an objective or normal equations in an ONNX file, the operators in the file.
            They determine how the engine can run it on a GPU. Operators outside ONNX's own domain
            appear as "domain:name". Empty for other functions.
        input_operators: the operators that read an input of the graph.
    """

    name: str
    runtime: str
    file: str
    loss: str | None = None
    method: str | None = None
    bytes_per_target: int | None = None
    operators: tuple[str, ...] = ()
    input_operators: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return the manifest's entry for this function."""
        described: dict[str, Any] = {"name": self.name}
        if self.loss is not None:
            described["loss"] = self.loss
        described.update(runtime=self.runtime, file=self.file)
        if self.method is not None:
            described["method"] = self.method
        if self.bytes_per_target is not None:
            described["bytes_per_target"] = self.bytes_per_target
        if self.operators:
            described["operators"] = list(self.operators)
            described["input_operators"] = list(self.input_operators)
        return described


@dataclass(frozen=True)
class Manifest:
    """A bundle's description, the content of manifest.json.

    Args:
        latent_shape: shape of one latent, without the batch axis.
        image_shape: shape of one image, without the batch axis: (C, H, W), or any other shape that
            the generator returns, such as (n,) or (C, T).
        value_range: the (lowest, highest) value of an image: black and white.
        prior: distribution of the components of a latent.
        functions: the graphs. Each runtime has one "forward" and at least one "objective", with one
            objective per loss and the same losses for all runtimes. A loss may also have
            "normal_equations", and the bundle one "encode" and one "observe", each either for all
            runtimes or for none.
        files: every file of the bundle except the manifest, with its size and SHA-256.
        batch_norm: "eval" folds running statistics into the weights; "batch" uses the statistics
            of the images in a batch.
        conditions: what the generator takes beside the latent, by name.
        weights: whether targets may have weights, per pixel.
        observation_shape: shape of one target if targets are observations of images, which may
            have any values: if the bundle has the function "observe". Otherwise None.
        preconditioner: the file with the matrix P that ``LBFGS`` starts from, float32 [d, d],
            little-endian; None if there is none. P is the inverse of the average of J^T J over the
            prior, J being the Jacobian of the targets, after adding 0.3 of the mean of its diagonal
            to the diagonal. Its scale has no meaning.
        bounded: whether generated images lie in ``value_range``. A generator without a final
            activation may exceed it; its images are then accepted as targets unchanged.
        name: name of the generator.
        exporter: versions of the software that wrote the bundle.
        origin: where the generator comes from, such as its training settings; any JSON values.

    Raises:
        BundleError: an invalid value.
    """

    latent_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    value_range: tuple[float, float]
    prior: Prior
    functions: tuple[Function, ...]
    files: Mapping[str, FileRecord]
    batch_norm: str = "eval"
    conditions: Mapping[str, Input] = field(default_factory=dict)
    weights: bool = False
    observation_shape: tuple[int, ...] | None = None
    preconditioner: str | None = None
    bounded: bool = True
    name: str = ""
    exporter: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.describe())

    @property
    def latent_size(self) -> int:
        """The number of components of a latent, d."""
        return math.prod(self.latent_shape)

    @property
    def image_size(self) -> int:
        """The number of values of an image, the product of ``image_shape``."""
        return math.prod(self.image_shape)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """The shape of one target: the ``observation_shape`` if there is one, or an image's."""
        return self.image_shape if self.observation_shape is None else self.observation_shape

    @property
    def target_size(self) -> int:
        """The number of values of a target, the product of ``target_shape``."""
        return math.prod(self.target_shape)

    @property
    def observes(self) -> bool:
        """Whether targets are observations A(x) of images x, rather than images."""
        return any(function.name == "observe" for function in self.functions)

    @property
    def is_picture(self) -> bool:
        """Whether an image is a picture: [C, H, W] with 1, 3 or 4 channels (gray, RGB, RGBA)."""
        return _is_picture(self.image_shape)

    @property
    def targets_are_pictures(self) -> bool:
        """Whether a target has the shape of a picture."""
        return _is_picture(self.target_shape)

    @property
    def condition_size(self) -> int:
        """The number of floats that hold one target's conditions; 0 when there are none."""
        return sum(condition.columns for condition in self.conditions.values())

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that this bundle can minimise, in the manifest's order."""
        objectives = (f for f in self.functions if f.name == "objective")
        return tuple(dict.fromkeys(f.loss for f in objectives if f.loss is not None))

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes that can run this bundle, in the manifest's order."""
        return tuple(dict.fromkeys(function.runtime for function in self.functions))

    @property
    def has_encoder(self) -> bool:
        """Whether the bundle has an encoder, which turns images into latents in one pass."""
        return any(function.name == "encode" for function in self.functions)

    def encode(self, runtime: str | None = None) -> Function:
        """Return the function that turns images into latents.

        Args:
            runtime: "onnx" or "torchscript"; the bundle's first by default.

        Raises:
            BundleError: the bundle has no encoder; the message says how to get one.
        """
        for function in self._functions_for(runtime):
            if function.name == "encode":
                return function
        raise BundleError(
            "this bundle has no encoder; train one with `pyinv train encoder BUNDLE`, add your own "
            "with pyinv.export.add_encoder, or start from the prior"
        )

    def observe(self, runtime: str | None = None) -> Function:
        """Return the function that turns images into targets.

        Args:
            runtime: "onnx" or "torchscript"; the bundle's first by default.

        Raises:
            BundleError: the bundle's targets are images.
        """
        for function in self._functions_for(runtime):
            if function.name == "observe":
                return function
        raise BundleError(
            "this bundle's targets are its images; export it again with observe=..., or "
            "`pyinv export --observe`"
        )

    def forward(self, runtime: str | None = None) -> Function:
        """Return the function that turns latents into images.

        Args:
            runtime: "onnx" or "torchscript"; the bundle's first by default.

        Raises:
            BundleError: the bundle has none for this runtime; the message says how to get one.
        """
        return next(f for f in self._functions_for(runtime) if f.name == "forward")

    def objective(self, loss: str, runtime: str | None = None) -> Function:
        """Return the objective with this loss.

        Args:
            loss: one of ``losses``.
            runtime: "onnx" or "torchscript"; the bundle's first by default.

        Raises:
            BundleError: the bundle has none; the message says how to get one.
        """
        for function in self._functions_for(runtime):
            if function.name == "objective" and function.loss == loss:
                return function
        if loss in BUILT_IN_LOSSES:
            how = f'losses=(..., "{loss}") or `pyinv export --loss {loss}`'
        elif loss == "perceptual":
            how = "losses=(..., pyinv.export.perceptual(network)) or `pyinv export --features`"
        else:
            how = (
                f'losses={{..., "{loss}": function}}, where function is one of torch, '
                "(image, target) -> [B]"
            )
        raise BundleError(
            f"this bundle has no loss {loss!r}, only {', '.join(self.losses)}; choose one of them, "
            f"or export it again with {how}"
        )

    def normal_equations(self, loss: str, runtime: str | None = None) -> Function:
        """Return the normal equations of this loss.

        Args:
            loss: one of ``losses``.
            runtime: "onnx" or "torchscript"; the bundle's first by default.

        Raises:
            BundleError: the bundle has none; the message says how to get them.
        """
        for function in self._functions_for(runtime):
            if function.name == "normal_equations" and function.loss == loss:
                return function
        if self.batch_norm != "eval":
            raise BundleError(
                "this bundle takes batch-norm statistics over the batch, and normal equations are "
                'of each image alone; export it again with batch_norm="eval", or choose a recipe '
                "without Levenberg-Marquardt"
            )
        if self.latent_size > MAX_SOLVED:
            raise BundleError(
                f"normal equations are for latents of at most {MAX_SOLVED} components, and this "
                f"bundle's has {self.latent_size}; choose a recipe without Levenberg-Marquardt, "
                "and leave uncertainty out"
            )
        if loss not in self.losses:
            self.objective(loss, runtime)  # says what losses there are
        others = ", ".join(other for other in self.losses if self.has_normal_equations(other))
        if set(self.losses) <= {"mse", "whitened"}:
            how = "the default losses: `pyinv export` without --loss"
        else:
            how = " ".join(("`pyinv export", *(f"--loss {name}" for name in self.losses)))
            how += " --normal-equations`"
        raise BundleError(
            f"this bundle has no normal equations of the loss {loss!r}, "
            f"{f'only of {others}' if others else 'nor of any other'}; export it again with {how}, "
            "or choose a recipe without Levenberg-Marquardt, and leave uncertainty out"
        )

    def has_normal_equations(self, loss: str, runtime: str | None = None) -> bool:
        """Whether the bundle has normal equations of this loss, for this runtime or its first."""
        runtime = self.runtimes[0] if runtime is None else runtime
        return any(
            function.name == "normal_equations"
            and function.loss == loss
            and function.runtime == runtime
            for function in self.functions
        )

    def _functions_for(self, runtime: str | None) -> list[Function]:
        runtime = self.runtimes[0] if runtime is None else runtime
        found = [function for function in self.functions if function.runtime == runtime]
        if found:
            return found
        known = ", ".join(RUNTIMES)
        raise BundleError(
            f"this bundle is for {', '.join(self.runtimes)}, not for {runtime}; export it again "
            f'with runtimes=(..., "{runtime}") or `pyinv export --runtime {runtime}`, or choose '
            "another runtime"
            if runtime in RUNTIMES
            else f"unknown runtime {runtime!r}; this pyinv has {known}"
        )

    def describe(self) -> dict[str, Any]:
        """Return the content of manifest.json."""
        conditions = [{"name": name, **one.describe()} for name, one in self.conditions.items()]
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "exporter": dict(self.exporter),
            "name": self.name,
            **({"origin": dict(self.origin)} if self.origin else {}),
            "latent_shape": list(self.latent_shape),
            "image_shape": list(self.image_shape),
            "value_range": list(self.value_range),
            **(
                {}
                if self.observation_shape is None
                else {"observation_shape": list(self.observation_shape)}
            ),
            **({"weights": True} if self.weights else {}),
            **({"preconditioner": self.preconditioner} if self.preconditioner else {}),
            **({} if self.bounded else {"bounded": False}),
            **({"conditions": conditions} if conditions else {}),
            "prior": self.prior.describe(),
            "batch_norm": self.batch_norm,
            "functions": [function.describe() for function in self.functions],
            "files": {
                name: {"bytes": record.bytes, "sha256": record.sha256}
                for name, record in self.files.items()
            },
        }

    @classmethod
    def from_description(cls, described: Any) -> Manifest:
        """Return the manifest for the output of ``describe()``.

        Raises:
            BundleError: not a pyinv manifest, from a newer pyinv, or a wrong or missing entry.
        """
        _check(described)
        observation = described.get("observation_shape")
        low, high = described["value_range"]
        return cls(
            latent_shape=tuple(described["latent_shape"]),
            image_shape=tuple(described["image_shape"]),
            value_range=(float(low), float(high)),
            prior=prior_from_description(described["prior"]),
            functions=tuple(
                Function(
                    name=function["name"],
                    runtime=function["runtime"],
                    file=function["file"],
                    loss=function.get("loss"),
                    method=function.get("method"),
                    bytes_per_target=function.get("bytes_per_target"),
                    operators=tuple(function.get("operators", ())),
                    input_operators=tuple(function.get("input_operators", ())),
                )
                for function in described["functions"]
            ),
            files={
                name: FileRecord(bytes=record["bytes"], sha256=record["sha256"])
                for name, record in described["files"].items()
            },
            batch_norm=described["batch_norm"],
            conditions={
                entry["name"]: input_from_description(
                    {key: value for key, value in entry.items() if key != "name"}
                )
                for entry in described.get("conditions", ())
            },
            weights=described.get("weights", False),
            observation_shape=None if observation is None else tuple(observation),
            preconditioner=described.get("preconditioner"),
            bounded=described.get("bounded", True),
            name=described.get("name", ""),
            exporter=described.get("exporter", {}),
            origin=described.get("origin", {}),
        )

    def write(self, directory: str | os.PathLike[str]) -> Path:
        """Write manifest.json into ``directory`` and return its path."""
        path = Path(directory) / MANIFEST_NAME
        path.write_text(json.dumps(self.describe(), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Read and validate manifest.json in ``directory``, without reading the other files.

        Raises:
            BundleError: the manifest is missing or invalid; the message starts with the directory.
        """
        content = _read_manifest(Path(directory))
        return parse_manifest(content, os.fspath(directory))[0]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk.

    Args:
        path: the bundle's directory, absolute.
        manifest: the bundle's manifest.
        digest: "sha256:" and 64 hexadecimal digits, the same for every copy of the bundle: the
            SHA-256 of the manifest, which holds those of all files, as JSON with sorted keys and
            no spaces.
    """

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Open the bundle in the directory ``path``, or at an address.

        Args:
            path: the directory that ``pyinv.export`` wrote; or an address, text with "://", as in
                ``from_pretrained``. A path that exists is never an address.
            verify: check the SHA-256 of every file. It takes 0.7 seconds per GB on x86 processors
                with instructions for it, and up to 4 on others. If False, only check that each file
                exists and has the right size; ONNX files and their weights are still checked when
                they are loaded.

        Raises:
            BundleError: the bundle is missing, incomplete, truncated, modified or from a newer
                pyinv, or is not a pyinv bundle.
        """
        if isinstance(path, str) and is_address(path):
            from pyinv.download import open_address

            return open_address(path, verify=verify)
        content = _read_manifest(Path(path))
        manifest, digest = parse_manifest(content, os.fspath(path))
        with _translated():
            _core.check_files(path, content, contents=verify)
        # Files are opened later, perhaps from another working directory.
        return cls(Path(path).absolute(), manifest, digest)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
    ) -> Bundle:
        """Open a bundle from a folder, a repository of the Hugging Face hub, or a URL.

        Args:
            source: the first that applies of

                - the path of a folder that exists;
                - "hf://USER/NAME", perhaps with "@REVISION" and "/FOLDER" after it, or the URL of a
                  bundle's folder in any protocol of fsspec, such as "s3://...", "gs://..." and
                  "https://...";
                - "USER/NAME", short for "hf://USER/NAME".
            revision: for the hub: a branch, tag or commit; None means the main branch.
            cache_dir: the folder for downloaded bundles; None means ``$PYINV_CACHE``,
                ``$XDG_CACHE_HOME/pyinv`` or ``~/.cache/pyinv``.
            token: for the hub: a token; None for the one that is logged in, False for none.

        Raises:
            BundleError: there is no bundle, it is damaged or access is denied; or it cannot be
                reached and the cache has no copy.
            DependencyError: a package is missing; the message says how to install it.
            InputError: a malformed address, or an argument that does not apply to it.
            OutputError: the cache cannot be written to.
        """
        if not isinstance(source, str) or os.path.exists(source):
            address = None
        elif is_address(source):
            address = source
        else:
            from pyinv.hub import is_repository

            address = f"hf://{source}" if is_repository(source) else None
        if address is not None:
            from pyinv.download import open_address

            return open_address(address, revision=revision, cache_dir=cache_dir, token=token)
        if revision is not None:
            raise InputError(f"{source}: a folder has no revision; leave it out")
        return cls.open(source)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Upload the bundle to a repository of the Hugging Face hub, in one commit.

        The repository also gets a model card, README.md, made from the manifest, unless it has one.
        Other files in the repository stay as they are.

        Args:
            repository: "USER/NAME"; created if necessary.
            private: whether a new repository is private; None leaves it to the hub's settings. An
                existing public repository is refused if True.
            revision: the branch; created if necessary. None means the main branch.
            commit_message: None names the bundle's digest.
            license: the licence's identifier for the model card, such as "apache-2.0"; None states
                no licence.
            token: a token that may write; None for the one that is logged in.

        Returns:
            the address of what was uploaded, "hf://USER/NAME@COMMIT".

        Raises:
            BundleError: the bundle is damaged, or access is denied, or the hub cannot be reached.
            DependencyError: huggingface_hub is missing.
            InputError: a malformed repository name.
            OutputError: the repository is public and ``private`` is True.
        """
        from pyinv.hub import push

        return push(
            self,
            repository,
            private=private,
            revision=revision,
            commit_message=commit_message,
            license=license,
            token=token,
        )

    def file(self, function: Function) -> Path:
        """Return the path of a function's graph."""
        return self.path / function.file

    def preconditioner(self) -> NDArray[np.float32] | None:
        """Return the symmetric matrix that ``LBFGS`` starts from, [d, d]; None if there is none.

        Raises:
            BundleError: the file cannot be read, or does not hold such a matrix.
        """
        if self.manifest.preconditioner is None:
            return None
        path = self.path / self.manifest.preconditioner
        try:
            values = np.fromfile(path, dtype="<f4")
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
        size = self.manifest.latent_size
        matrix = values.astype(np.float32, copy=False)
        if values.size == size**2 and np.isfinite(values).all():
            matrix = matrix.reshape(size, size)
            if (matrix.diagonal() > 0).all() and np.array_equal(matrix, matrix.T):
                return matrix
        raise BundleError(
            f"{path}: must hold a symmetric matrix of {size} x {size} finite numbers, positive on "
            "the diagonal; export or copy the bundle again"
        )


def parse_manifest(content: bytes, source: str) -> tuple[Manifest, str]:
    """Return the manifest that a file holds, and the bundle's digest.

    Args:
        content: the content of manifest.json.
        source: the bundle's directory or address.

    Raises:
        BundleError: the manifest is invalid; the message starts with ``source``.
    """
    with _translated(f"{source}: "):
        _core.check_manifest(content)
    described = json.loads(content)
    manifest = Manifest.from_description(described)
    # Of what was read rather than of ``manifest``, so that it does not depend on this version.
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return manifest, f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def is_address(source: str) -> bool:
    """Whether a bundle's source is an address, with "://", rather than a path that exists."""
    return "://" in source and not os.path.exists(source)


def _read_manifest(directory: Path) -> bytes:
    if not directory.exists():
        raise BundleError(
            f"{directory}: no such bundle; expected the folder that export wrote, or an address "
            "such as hf://USER/NAME"
        )
    trained = directory / "generator.bundle"
    if trained.is_dir() and not (directory / MANIFEST_NAME).exists():
        raise BundleError(
            f"{directory}: not a pyinv bundle, it has no {MANIFEST_NAME}; give its bundle, "
            f"{trained}"
        )
    with _translated():
        return _core.read_manifest(directory)


def _check(described: Any) -> None:
    """Raise BundleError unless the engine's reader accepts the description."""
    try:
        content = json.dumps(described, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest must hold JSON values ({error})") from None
    with _translated():
        _core.check_manifest(content)


@contextlib.contextmanager
def _translated(prefix: str = "") -> Iterator[None]:
    """Make the engine's errors about bundles BundleErrors."""
    try:
        yield
    except RuntimeError as error:
        raise BundleError(f"{prefix}{error}") from None


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in PICTURE_CHANNELS
