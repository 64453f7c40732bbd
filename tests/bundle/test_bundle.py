"""Bundles: what is written comes back, and nothing damaged is opened."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyinv.bundle import Bundle, FileRecord, Manifest
from pyinv.conditions import Condition
from pyinv.errors import BundleError
from pyinv.priors import Normal, Uniform
from support.tiny_bundle import write_tiny_bundle


def test_manifest_comes_back_from_disk(tmp_path):
    write_tiny_bundle(
        tmp_path / "b", prior=Normal(1, 2), losses=("l1", "mse"), condition_size=3, channels=3
    )
    bundle = Bundle.open(tmp_path / "b")
    manifest = bundle.manifest
    assert manifest == Manifest.from_description(manifest.describe())
    assert manifest.prior == Normal(1, 2)
    assert manifest.losses == ("l1", "mse")
    assert manifest.conditions == {"condition": Condition(3)}
    assert manifest.image_shape == (3, 8, 8)
    assert bundle.file(manifest.objective("l1")) == tmp_path / "b" / "objective_l1.onnx"
    assert bundle.file(manifest.forward()).is_file()


# Of the tiny bundle's mse.
OPERATORS = ["Gemm", "Identity", "Mul", "ReduceMean", "Reshape", "Sub", "Tanh"]


def test_manifest_is_written_as_the_format_says(bundle_path):
    described = json.loads((bundle_path / "manifest.json").read_text())
    assert described["format"] == "pyinv-bundle"
    assert described["format_version"] == 1
    assert described["prior"] == Uniform().describe()
    assert described["functions"][:2] == [
        {"name": "forward", "runtime": "onnx", "file": "forward.onnx"},
        {
            "name": "objective",
            "loss": "mse",
            "runtime": "onnx",
            "file": "objective_mse.onnx",
            "operators": OPERATORS,
            "input_operators": ["Gemm", "Reshape"],
        },
    ]
    assert set(described["files"]) == {
        "forward.onnx",
        "objective_mse.onnx",
        "objective_l1.onnx",
        "objective_bce.onnx",
        "weights.bin",
    }


def test_a_bundle_for_two_runtimes(changed_bundle):
    manifest = Bundle.open(changed_bundle).manifest
    assert manifest.runtimes == ("onnx",)
    script(changed_bundle)
    bundle = Bundle.open(changed_bundle)
    manifest = bundle.manifest
    assert manifest == Manifest.from_description(manifest.describe())
    assert manifest.runtimes == ("onnx", "torchscript")
    assert manifest.losses == ("mse",)
    assert manifest.forward() == manifest.forward("onnx")
    assert manifest.forward().method is None
    assert manifest.forward("torchscript").method == "forward"
    objective = manifest.objective("mse", runtime="torchscript")
    assert objective.method == "objective_mse"
    assert bundle.file(objective) == changed_bundle / "functions.pt"
    assert manifest.objective("mse").file == "objective_mse.onnx"


def test_missing_runtime_is_named_with_the_export_option(bundle):
    for ask in (bundle.manifest.forward, lambda r: bundle.manifest.objective("mse", r)):
        with pytest.raises(BundleError) as error:
            ask("torchscript")
        assert str(error.value) == (
            "this bundle is for onnx, not for torchscript; export it again with "
            'runtimes=(..., "torchscript") or `pyinv export --runtime torchscript`, or choose '
            "another runtime"
        )
        with pytest.raises(BundleError, match="unknown runtime 'tvm'; this pyinv has onnx, torchs"):
            ask("tvm")


def solved(path: Path, *losses: str, runtime: str = "onnx", **wrong: Any) -> None:
    """Give the bundle normal equations of some losses, with what is wrong with them."""
    described = json.loads((path / "manifest.json").read_text())
    for loss in losses:
        function = {"name": "normal_equations", "loss": loss, "runtime": runtime}
        if runtime == "onnx":
            function["file"] = file = f"normal_equations_{loss}.onnx"
            function.update(operators=["Gemm", "MatMul"], input_operators=["Gemm"])
            (path / file).write_bytes(b"graph")
            described["files"][file] = {
                "bytes": 5,
                "sha256": FileRecord.of(path / file).sha256,
            }
        else:
            function.update(file="functions.pt", method=f"normal_equations_{loss}")
        described["functions"].append({**function, "bytes_per_target": 4096, **wrong})
    (path / "manifest.json").write_text(json.dumps(described))


def test_normal_equations_are_found_by_their_loss(changed_bundle):
    script(changed_bundle)
    solved(changed_bundle, "mse")
    solved(changed_bundle, "mse", runtime="torchscript", bytes_per_target=2**40)
    bundle = Bundle.open(changed_bundle)
    manifest = bundle.manifest
    assert manifest == Manifest.from_description(manifest.describe())
    assert manifest.losses == ("mse",)
    assert bundle.file(manifest.normal_equations("mse")).name == "normal_equations_mse.onnx"
    assert manifest.normal_equations("mse").bytes_per_target == 4096
    function = manifest.normal_equations("mse", "torchscript")
    assert (function.method, function.bytes_per_target) == ("normal_equations_mse", 2**40)
    assert manifest.objective("mse").bytes_per_target is None
    assert "bytes_per_target" not in manifest.objective("mse").describe()
    assert manifest.has_normal_equations("mse")
    assert manifest.has_normal_equations("mse", "torchscript")
    assert not manifest.has_normal_equations("mse", "tvm")


def test_missing_normal_equations_are_named_with_the_export_option(tmp_path):
    write_tiny_bundle(tmp_path / "b", losses=("mse", "l1"))
    manifest = Bundle.open(tmp_path / "b").manifest
    assert not manifest.has_normal_equations("mse")
    mend = (
        "export it again with `pyinv export --loss mse --loss l1 --normal-equations`, or choose a "
        "recipe without Levenberg-Marquardt, and leave uncertainty out"
    )
    with pytest.raises(BundleError) as error:
        manifest.normal_equations("mse")
    assert str(error.value) == (
        "this bundle has no normal equations of the loss 'mse', nor of any other; " + mend
    )
    solved(tmp_path / "b", "mse")
    manifest = Bundle.open(tmp_path / "b").manifest
    with pytest.raises(BundleError) as error:
        manifest.normal_equations("l1")
    assert str(error.value) == (
        "this bundle has no normal equations of the loss 'l1', only of mse; " + mend
    )
    with pytest.raises(BundleError, match="no loss 'whitened', only mse, l1; choose"):
        manifest.normal_equations("whitened")
    with pytest.raises(BundleError, match="not for torchscript; export it again with"):
        manifest.normal_equations("mse", "torchscript")
    # Asked for by name, mse alone would be without whitened.
    write_tiny_bundle(tmp_path / "plain")
    with pytest.raises(BundleError, match="the default losses: `pyinv export` without --loss"):
        Bundle.open(tmp_path / "plain").manifest.normal_equations("mse")
    write_tiny_bundle(tmp_path / "plain", losses=("mse",))
    long = dataclasses.replace(Bundle.open(tmp_path / "plain").manifest, latent_shape=(513,))
    with pytest.raises(BundleError, match="at most 512 components, and this bundle's has 513"):
        long.normal_equations("mse")


def test_file_record_is_the_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert FileRecord.of(tmp_path / "abc") == FileRecord(3, digest)  # FIPS 180-4's example


def test_every_copy_of_a_bundle_has_the_same_digest(bundle, bundle_path, tmp_path):
    assert re.fullmatch("sha256:[0-9a-f]{64}", bundle.digest)
    copy = shutil.copytree(bundle_path, tmp_path / "copy", copy_function=shutil.copyfile)
    described = json.loads((copy / "manifest.json").read_text())
    rearranged = dict(reversed(described.items()))
    (copy / "manifest.json").write_text(json.dumps(rearranged, indent="\t"))
    (copy / "README.md").write_text("no part of the bundle")
    assert Bundle.open(copy).digest == bundle.digest
    assert Bundle.open(copy, verify=False).digest == bundle.digest
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    assert bundle.digest == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def exported_again(path: Path) -> None:
    """Change a weight, and the manifest with it."""
    flip_a_bit(path)
    described = json.loads((path / "manifest.json").read_text())
    described["files"]["weights.bin"]["sha256"] = FileRecord.of(path / "weights.bin").sha256
    (path / "manifest.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    "change",
    [
        exported_again,
        lambda path: change_manifest(name="Tiny")(path),
        lambda path: change_manifest(origin={"epoch": 3})(path),
        lambda path: change_manifest(of_a_later_version=1)(path),
    ],
    ids=["a weight", "name", "origin", "an entry of a later version"],
)
def test_what_is_in_a_bundle_changes_its_digest(changed_bundle, change):
    before = Bundle.open(changed_bundle).digest
    change(changed_bundle)
    assert Bundle.open(changed_bundle).digest != before


def test_latent_of_several_axes_is_flattened(tmp_path):
    write_tiny_bundle(tmp_path / "b", latent_shape=(6, 1, 1))
    assert Bundle.open(tmp_path / "b").manifest.latent_size == 6


@pytest.mark.parametrize(
    ("loss", "how"),
    [
        ("whitened", 'losses=(..., "whitened") or `pyinv export --loss whitened`'),
        ("perceptual", "losses=(..., pyinv.export.perceptual(network)) or `pyinv export"),
        ("lpips", 'losses={..., "lpips": function}, where function is one of torch, (image, targ'),
    ],
)
def test_a_missing_loss_is_named_with_what_exports_it(bundle, loss, how):
    with pytest.raises(BundleError) as error:
        bundle.manifest.objective(loss)
    assert str(error.value).startswith(
        f"this bundle has no loss '{loss}', only mse, l1, bce; choose one of them, or export it "
        f"again with {how}"
    )


def text(content: bytes | str) -> Callable[[Path], None]:
    """Write the manifest with this in place of its name."""
    new = content.encode() if isinstance(content, str) else content

    def change(path: Path) -> None:
        manifest = path / "manifest.json"
        old = manifest.read_bytes()
        assert b'"name": "tiny"' in old
        manifest.write_bytes(old.replace(b'"name": "tiny"', new))

    return change


def at_the_manifest(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / "manifest.json").unlink()
        make(path / "manifest.json")

    return change


def change_manifest(**changes):
    def change(path: Path) -> None:
        manifest = path / "manifest.json"
        described = json.loads(manifest.read_text())
        for name, value in changes.items():
            if value is None:
                del described[name]
            else:
                described[name] = value
        manifest.write_text(json.dumps(described))

    return change


def flip_a_bit(path: Path) -> None:
    weights = bytearray((path / "weights.bin").read_bytes())
    weights[100] ^= 1
    (path / "weights.bin").write_bytes(weights)


def truncate(path: Path) -> None:
    weights = path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])


def replace_by_folder(path: Path) -> None:
    (path / "weights.bin").unlink()
    (path / "weights.bin").mkdir()


def script(path: Path, **wrong: Any) -> None:
    """Give the bundle a TorchScript forward and objective too, with what is wrong with them."""
    described = json.loads((path / "manifest.json").read_text())
    (path / "functions.pt").write_bytes(b"code")
    described["files"]["functions.pt"] = {
        "bytes": 4,
        "sha256": FileRecord.of(path / "functions.pt").sha256,
    }
    common = {"runtime": "torchscript", "file": "functions.pt"}
    forward = {"name": "forward", **common, "method": "forward"}
    objective = {"name": "objective", "loss": "mse", **common, "method": "objective_mse"}
    added = wrong.get("functions", [{**forward, **wrong}, objective])
    described["functions"] += [{**common, **function} for function in added]
    (path / "manifest.json").write_text(json.dumps(described))


def scripted(**wrong: Any) -> Callable[[Path], None]:
    return lambda path: script(path, **wrong)


def solving(*losses: str, **wrong: Any) -> Callable[[Path], None]:
    return lambda path: solved(path, *losses, **wrong)


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        for each in changes:
            each(path)

    return change


FORWARD = {"name": "forward", "runtime": "onnx", "file": "forward.onnx"}
OBJECTIVE = {"name": "objective", "loss": "mse", "runtime": "onnx", "file": "objective_mse.onnx"}
DAMAGES = [
    (flip_a_bit, "weights.bin: its SHA-256 is not the manifest's"),
    (truncate, "weights.bin: expected 4800 bytes, found 4799"),
    (replace_by_folder, "weights.bin: expected a file"),
    (lambda path: (path / "forward.onnx").unlink(), "forward.onnx: missing from the bundle"),
    (lambda path: (path / "manifest.json").unlink(), "it has no manifest.json"),
    (lambda path: (path / "manifest.json").write_text('{"format"'), "not valid JSON"),
    (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"), "not valid JSON"),
    (lambda path: (path / "manifest.json").write_text("[1]"), "must be an object, got an array"),
    (text('"name": "a", "name": "b"'), 'expected each key once, but "name" came before'),
    (text('"x": 1e999'), "expected a number within the range of a double"),
    (text(f'"x": {"1" * 400}'), "expected a number within the range of a double"),
    (text(f'"x": {"1" * 5000}'), "expected a number within the range of a double"),
    (text('"x": ' + "[" * 100_000), "expected at most 64 levels"),
    (text('"name": "a\\ud800"'), "expected the second half of a surrogate pair"),
    (text(b'"name": "\xff"'), "expected UTF-8"),
    (text('"name": "a\\u0000"'), 'must have no control characters, got "a\\u0000"'),
    (text('"name": "\\u001b[2Jhi"'), 'must have no control characters, got "\\u001b[2Jhi"'),
    (text('"name": "\\u009b2J"'), 'must have no control characters, got "\\u009b2J"'),
    (text('"name": "a\\nb"'), 'must have no control characters, got "a\\u000ab"'),
    (text('"origin": {"a\\u001bc": 1}'), 'must have no control characters, got "a\\u001bc"'),
    (text('"name": null'), "manifest.json.name must not be null"),
    (change_manifest(exporter=3), "manifest.json.exporter must be an object, got 3"),
    (change_manifest(format_version=True), "format_version must be a whole number, got true"),
    (change_manifest(prior={"kind": "normal", "std": None}), "prior.std must not be null"),
    (change_manifest(conditions=[{"name": "", "kind": "label", "classes": 2}]), "is not empty"),
    (
        change_manifest(conditions=[{"name": "a", "kind": "label", "classes": 2**24 + 1}]),
        "classes must be a whole number from 1 to 16777216",
    ),
    (
        change_manifest(conditions=[{"name": "a", "kind": "label", "classes": 2}] * 2),
        "conditions[1].name is that of another condition",
    ),
    (
        change_manifest(observation_shape=[3]),
        'both the function "observe" and an observation_shape, or neither',
    ),
    (at_the_manifest(os.mkfifo), "manifest.json must be a file"),
    (at_the_manifest(lambda path: path.symlink_to("/dev/zero")), "manifest.json must be a file"),
    (
        at_the_manifest(lambda path: path.write_bytes(b" " * 2**20 + b"{}")),
        "must hold at most 1048576 bytes",
    ),
    (at_the_manifest(lambda path: path.mkdir()), "manifest.json must be a file"),
    (change_manifest(format="gltf"), "is not a pyinv bundle's"),
    (change_manifest(format_version=2), "has format_version 2 and this pyinv reads up to 1"),
    (change_manifest(format_version="1"), "format_version must be a whole number"),
    (change_manifest(latent_shape=None), 'manifest.json has no "latent_shape"'),
    (change_manifest(latent_shape=[0]), "latent_shape[0] must be a whole number >= 1, got 0"),
    (change_manifest(latent_shape=[2**16, 2**15]), "latent_shape must hold at most 2147483647"),
    (change_manifest(image_shape=[]), "image_shape must be one size or more"),
    (change_manifest(value_range=[1, 1]), "value_range must be"),
    (change_manifest(value_range=[0, math.inf]), "not valid JSON: line 1, column"),
    (change_manifest(value_range=[-math.inf, 0]), "not valid JSON: line 1, column"),
    (change_manifest(value_range=[math.nan, 1]), "not valid JSON: line 1, column"),
    (change_manifest(value_range=3), "value_range must be an array, got 3"),
    (
        change_manifest(prior={"kind": "cauchy"}),
        'prior.kind must be one of uniform, normal, got "cauchy"',
    ),
    (change_manifest(batch_norm="train"), 'batch_norm must be "eval" or "batch"'),
    (change_manifest(functions=[]), 'must hold a "forward" and an "objective"'),
    (change_manifest(functions=[FORWARD]), 'one "objective" or more'),
    (
        change_manifest(functions=[{**FORWARD, "method": "m"}]),
        "only functions for torchscript have one",
    ),
    (scripted(method=None), "functions[2].method must not be null"),
    (scripted(method="a b"), 'the name of a method in its file, got "a b"'),
    (
        scripted(functions=[{"name": "forward", "method": "forward"}]),
        'one "objective" or more for torchscript',
    ),
    (
        scripted(functions=[{"name": "objective", "loss": "mse", "method": "m"}]),
        'one "forward" for torchscript',
    ),
    (
        scripted(
            functions=[
                {"name": "forward", "method": "forward"},
                {"name": "objective", "loss": "l1", "method": "objective_l1"},
            ]
        ),
        "the same losses for each runtime; onnx has no l1",
    ),
    (solving("l1"), 'normal equations for onnx of the loss "l1", which has no objective'),
    (solving("mse", "mse"), "a loss's normal equations for onnx once"),
    (solving("mse", loss=None), "functions[2].loss must not be null"),
    (solving("mse", bytes_per_target=None), "functions[2].bytes_per_target must not be null"),
    (solving("mse", bytes_per_target=0), "bytes_per_target must be a whole number >= 1, got 0"),
    (solving("mse", bytes_per_target=1.5), "bytes_per_target must be a whole number, got 1.5"),
    (solving("mse", operators=[]), "functions[2].operators must be at least one operator"),
    (
        solving("mse", input_operators=[]),
        "functions[2].input_operators must be at least one operator",
    ),
    (solving("mse", operators="Gemm"), 'operators must be an array, got "Gemm"'),
    (solving("mse", operators=[1]), "operators[0] must be a text, got 1"),
    (change_manifest(functions=[FORWARD, OBJECTIVE]), 'functions[1] has no "operators"'),
    (both(scripted(), solving("mse")), "for each runtime; torchscript has none of mse"),
    (
        both(solving("mse"), change_manifest(batch_norm="batch")),
        'with batch_norm "batch" images depend on one another',
    ),
    (
        change_manifest(functions=[{**FORWARD, "runtime": "tvm"}]),
        'runtime must be onnx or torchscript, which is what this pyinv has, got "tvm"',
    ),
    (
        change_manifest(functions=[{**FORWARD, "file": "x.onnx"}]),
        'functions[0].file must be a name in files, got "x.onnx"',
    ),
    (
        change_manifest(files={"../weights.bin": {"bytes": 1, "sha256": "0"}}, functions=[]),
        'files must hold plain file names, got "../weights.bin"',
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_bundle_is_refused_in_one_line_that_names_it(changed_bundle, damage, message):
    Bundle.open(changed_bundle)
    damage(changed_bundle)
    with pytest.raises(BundleError) as error:
        Bundle.open(changed_bundle)
    assert message in str(error.value)
    assert str(error.value).startswith(str(changed_bundle))
    assert str(error.value).isprintable()


def test_opening_without_verification_still_sees_a_wrong_size(changed_bundle):
    flip_a_bit(changed_bundle)
    Bundle.open(changed_bundle, verify=False)
    truncate(changed_bundle)
    with pytest.raises(BundleError, match="expected 4800 bytes"):
        Bundle.open(changed_bundle, verify=False)


def test_newer_format_says_how_to_upgrade(changed_bundle):
    change_manifest(format_version=9)(changed_bundle)
    with pytest.raises(BundleError, match="pip install --upgrade pyinv"):
        Bundle.open(changed_bundle)


def test_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(BundleError, match="a bundle is a folder, and this is a file"):
        Bundle.open(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.open(tmp_path / "nowhere")


def test_the_error_for_a_trainings_folder_names_its_bundle(changed_bundle, tmp_path):
    changed_bundle.rename(tmp_path / "generator.bundle")
    with pytest.raises(BundleError) as error:
        Bundle.open(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: not a pyinv bundle, it has no manifest.json; give its bundle, "
        f"{tmp_path / 'generator.bundle'}"
    )
