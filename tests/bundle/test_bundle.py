"""Bundles: what is written comes back, and nothing damaged is opened."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
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
    (lambda path: (path / "manifest.json").write_text("[1]"), "not a pyinv bundle"),
    (change_manifest(format="gltf"), "not a pyinv bundle"),
    (change_manifest(format_version=2), "format_version is 2 and this pyinv reads up to 1"),
    (change_manifest(format_version="1"), "format_version must be a whole number"),
    (change_manifest(latent_shape=None), "the manifest has no 'latent_shape'"),
    (change_manifest(latent_shape=[0]), "latent_shape must be"),
    (change_manifest(latent_shape=[2**16, 2**15]), "latent_shape must hold at most 2147483647"),
    (change_manifest(image_shape=[]), "image_shape must be one axis or more"),
    (change_manifest(value_range=[1, 1]), "value_range must be"),
    (change_manifest(value_range=[0, math.inf]), "two finite numbers, low below high; got [0.0, i"),
    (change_manifest(value_range=[-math.inf, 0]), "two finite numbers, low below high; got [-inf"),
    (change_manifest(value_range=[math.nan, 1]), "two finite numbers, low below high; got [nan"),
    (change_manifest(value_range=3), "an entry of the wrong type"),
    (change_manifest(prior={"kind": "cauchy"}), "unknown prior 'cauchy'"),
    (change_manifest(batch_norm="train"), 'batch_norm must be "eval" or "batch"'),
    (change_manifest(functions=[]), 'exactly one "forward"'),
    (change_manifest(functions=[FORWARD]), 'one "objective" or more'),
    (change_manifest(functions=[{**FORWARD, "method": "m"}]), "only torchscript has methods"),
    (scripted(method=None), "the name of a method of functions.pt, got None"),
    (scripted(method="a b"), "the name of a method of functions.pt, got 'a b'"),
    (
        scripted(functions=[{"name": "forward", "method": "forward"}]),
        'one "objective" or more for torchscript',
    ),
    (
        scripted(functions=[{"name": "objective", "loss": "mse", "method": "m"}]),
        'exactly one "forward" for torchscript',
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
    (solving("l1"), "normal equations for onnx of the loss 'l1', which has no objective"),
    (solving("mse", "mse"), "a loss's normal equations for onnx once"),
    (solving("mse", loss=None), "normal equations for onnx of the loss None"),
    (solving("mse", bytes_per_target=None), "needs bytes_per_target, a whole number >= 1, got Non"),
    (solving("mse", bytes_per_target=0), "needs bytes_per_target, a whole number >= 1, got 0"),
    (solving("mse", bytes_per_target=1.5), "needs bytes_per_target, a whole number >= 1, got 1.5"),
    (solving("mse", operators=[]), "normal_equations needs operators, a list of the names of ONNX"),
    (solving("mse", input_operators=[]), "normal_equations needs input_operators, a list of"),
    (solving("mse", operators="Gemm"), "operators must be a list of names, got 'Gemm'"),
    (solving("mse", operators=[1]), "operators must be a list of names, got [1]"),
    (change_manifest(functions=[FORWARD, OBJECTIVE]), "objective needs operators, a list of"),
    (both(scripted(), solving("mse")), "for each runtime; torchscript has none of mse"),
    (
        both(solving("mse"), change_manifest(batch_norm="batch")),
        'with batch_norm "batch" images depend on one another',
    ),
    (change_manifest(functions=[{**FORWARD, "runtime": "tvm"}]), "needs runtime 'tvm'"),
    (change_manifest(functions=[{**FORWARD, "file": "x.onnx"}]), "names x.onnx, not in files"),
    (
        change_manifest(files={"../weights.bin": {"bytes": 1, "sha256": "0"}}, functions=[]),
        "plain file names, got '../weights.bin'",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message for _, message in DAMAGES])
def test_damaged_bundle_is_refused_in_one_line_that_names_it(changed_bundle, damage, message):
    Bundle.open(changed_bundle)
    damage(changed_bundle)
    with pytest.raises(BundleError) as error:
        Bundle.open(changed_bundle)
    assert message in str(error.value)
    assert str(error.value).startswith(str(changed_bundle))
    assert "\n" not in str(error.value)


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
