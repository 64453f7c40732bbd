"""Everything wrong that people hand in: one clear line, before any work, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyinv import runtimes
from pyinv.cli import main
from pyinv.conditions import Label
from pyinv.errors import (
    BundleError,
    DependencyError,
    DeviceError,
    InputError,
    PyinvError,
    RuleError,
)
from pyinv.images import load_images
from pyinv.inverter import Inverter
from pyinv.penalties import MomentPenalty
from pyinv.priors import Normal
from pyinv.recipes import Recipe, Stage
from pyinv.result import Inversion
from pyinv.solvers import LBFGS, Adam, LevenbergMarquardt
from support.tiny_bundle import LATENT, write_tiny_bundle

GOOD = np.zeros((2, 1, 8, 8), dtype=np.float32)


def changed(index: Any, value: float) -> np.ndarray:
    images = GOOD.copy()
    images[index] = value
    return images


# Through the API

BAD_IMAGES: list[tuple[Any, str]] = [
    (np.zeros((2, 1, 9, 8), np.float32), "got [2, 1, 9, 8]; resize them to 8 x 8"),
    (np.zeros((2, 3, 8, 8), np.float32), "1-channel images, these have 3"),
    (np.zeros((1, 8, 8), np.float32), "add a batch axis: images[None]"),
    (np.zeros((2, 8, 8), np.float32), "add a channel axis: images[:, None]"),
    (np.zeros((2, 8, 8, 1), np.float32), "put channels first: images.transpose(0, 3, 1, 2)"),
    (np.zeros((8,), np.float32), "they need 4 axes and have 1"),
    (np.float32(3), "they need 4 axes and have 0"),
    (np.zeros((2, 1, 8, 8), np.uint8), "got uint8; scale them: images.astype('float32') / 255"),
    (np.zeros((2, 1, 8, 8), np.int64), "got int64; convert them to floats"),
    (np.zeros((2, 1, 8, 8), bool), "got bool"),
    (np.zeros((2, 1, 8, 8), complex), "got complex128; give an array of numbers"),
    ("photos", "got str; read files with pyinv.load_images('photos', inverter.manifest)"),
    (Path("photos"), "; read files with pyinv.load_images('photos', inverter.manifest)"),
    (["a.png", "b.png"], "got list; read files with pyinv.load_images(paths, inverter.manifest)"),
    (
        [Image.new("L", (8, 8))] * 2,
        "got uint8; scale them: numpy.asarray(images, 'float32') / 255 * 2 - 1",
    ),
    (None, "got NoneType; give an array of numbers"),
    ([[1.0], [2.0, 3.0]], "got list; give an array of numbers"),
    (GOOD[:0], "got no image"),
    (changed((1, 0, 3, 3), np.nan), "image 1 holds NaN or infinity"),
    (changed((0, 0, 3, 3), np.inf), "image 0 holds NaN or infinity"),
    (changed(0, 200), "got [0, 200]; if they are 0 to 255, use images / 255 * 2 - 1"),
    (changed(0, -1.5), "must be in [-1, 1], got [-1.5, 0]; rescale them to [-1, 1]"),
    (changed(0, 1.2), "or clip them; if they are noisy, export the generator with a value_range"),
]


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES, ids=[m for _, m in BAD_IMAGES])
def test_bad_images_are_refused(inverter, images, message):
    for call in (
        lambda: inverter.invert(images),
        lambda: inverter.evaluate(np.zeros((2, LATENT), np.float32), images),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value)
        assert str(error.value).startswith("images must be ")
        assert "\n" not in str(error.value)


SECOND_ORDER = Recipe("second", Stage(LevenbergMarquardt()))
NEEDS_EXPORT = (
    "export it again with `pyinv export --loss mse --loss l1 --loss bce --normal-equations`"
)
BAD_CALLS: list[tuple[Callable[[Inverter], Any], type[PyinvError], str]] = [
    (
        lambda i: i.invert(GOOD, recipe="lbfgs"),
        RuleError,
        "unknown recipe 'lbfgs'; there are default",
    ),
    (
        lambda i: i.invert(GOOD, recipe="best"),
        RuleError,
        'did you mean effort="best" (in the shell, --effort best)?',
    ),
    (lambda i: i.invert(GOOD, recipe=Adam(0.1)), InputError, "must be a name or a pyinv.Recipe"),
    (lambda i: i.invert(GOOD, recipe="egan"), RuleError, "draws from a normal prior, but this one"),
    (
        lambda i: i.invert(GOOD, recipe=Recipe("x", Stage(Adam(0.1), loss="lpips"))),
        BundleError,
        "this bundle has no loss 'lpips', only mse, l1, bce; choose one of them, or export it",
    ),
    (
        lambda i: i.invert(GOOD, loss="lpips"),
        BundleError,
        "this bundle has no loss 'lpips', only mse, l1, bce; choose one of them, or export it",
    ),
    (lambda i: i.invert(GOOD, loss=np.mean), RuleError, "got a function; its gradient is made at"),
    (lambda i: i.invert(GOOD, loss=3), RuleError, "loss must be a loss's name such as"),
    (lambda i: i.evaluate(np.zeros((2, 6)), GOOD, loss="ssim"), BundleError, "no loss 'ssim'"),
    (lambda i: i.invert(GOOD, max_steps=0), RuleError, "max_steps must be a whole number >= 1"),
    (lambda i: i.invert(GOOD, max_steps=2.5), RuleError, "max_steps must be a whole number >= 1"),
    (lambda i: i.invert(GOOD, restarts=-1), RuleError, "restarts must be a whole number >= 0"),
    (lambda i: i.invert(GOOD, seed=-1), InputError, "seed must be a whole number >= 0"),
    (lambda i: i.invert(GOOD, seed=2**64), InputError, "seed must be a whole number >= 0 and <="),
    (lambda i: i.invert(GOOD, seed=0.5), InputError, "seed must be a whole number"),
    (lambda i: i.invert(GOOD, trace_every=-1), InputError, "trace_every must be"),
    (lambda i: i.invert(GOOD, progress="bar"), InputError, "progress must be None, True or a"),
    (lambda i: i.invert(GOOD, conditions=np.zeros((2, 1))), InputError, "takes no conditions"),
    (lambda i: i.invert(GOOD, init=np.zeros((1, 6))), InputError, "init must be float32 [2, 6]"),
    (lambda i: i.invert(GOOD, init=np.zeros((2, 5))), InputError, "got [2, 5]; reshape it"),
    (lambda i: i.invert(GOOD, init=np.full((2, 6), np.nan)), InputError, "init must be finite"),
    (
        lambda i: i.invert(GOOD, true_latents=np.zeros((1, 6))),
        InputError,
        "true_latents must be float32 [2, 6]",
    ),
    (lambda i: i.invert(GOOD, true_latents=np.zeros((2, 5))), InputError, "got [2, 5]; reshape it"),
    (
        lambda i: i.invert(GOOD, true_latents=np.full((2, 6), np.nan)),
        InputError,
        "true_latents must be finite",
    ),
    (
        lambda i: i.invert(GOOD, true_latents="z"),
        InputError,
        "true_latents must be float32 [2, 6], got str",
    ),
    (lambda i: i.invert(GOOD, target_ids=[0]), InputError, "target_ids must be 2 whole numbers"),
    (lambda i: i.invert(GOOD, target_ids=[0, -1]), InputError, "got -1 to 0"),
    (lambda i: i.invert(GOOD, target_ids=[0, 2**47]), InputError, "from 0 to below 2^47"),
    (lambda i: i.invert(GOOD, target_ids=[0.0, 1.0]), InputError, "got float64 [2]"),
    (lambda i: i.generate(np.zeros((3, 5))), InputError, "latents must be float32 [N, 6]"),
    (lambda i: i.generate(np.zeros(6)), InputError, "got [6]; add a batch axis in front"),
    (lambda i: i.generate(np.zeros((0, 6))), InputError, "got 0 rows; give at least one row"),
    (lambda i: i.generate(np.full((1, 6), np.inf)), InputError, "row 0 is not"),
    (lambda i: i.generate(np.zeros((1, 6)), batch_size=0), InputError, "batch_size must be"),
    (
        lambda i: i.evaluate(np.zeros((3, 6)), GOOD),
        InputError,
        "got 3 rows; give one row per target",
    ),
    (lambda i: i.invert(GOOD, recipe="precise"), BundleError, NEEDS_EXPORT),
    (lambda i: i.invert(GOOD, recipe="reconstruct"), BundleError, NEEDS_EXPORT),
    (lambda i: i.invert(GOOD, recipe=SECOND_ORDER), BundleError, NEEDS_EXPORT),
    (
        lambda i: i.invert(GOOD, recipe=SECOND_ORDER.replace(loss="ssim")),
        BundleError,
        "no loss 'ssim'",
    ),
    (lambda i: i.check_uncertainty(), BundleError, NEEDS_EXPORT),
    (lambda i: i.invert(GOOD, noise=0.1), InputError, 'noise is for recipe="reconstruct"'),
    (
        lambda i: i.invert(GOOD, recipe="reconstruct", noise=-1),
        InputError,
        "noise must be a number > 0 and <= 1e",
    ),
    (lambda i: i.uncertainty(np.zeros((2, 6)), GOOD), BundleError, NEEDS_EXPORT),
    (
        lambda i: i.uncertainty(np.zeros((2, 6)), GOOD, noise=0),
        InputError,
        "noise must be a number > 0",
    ),
    (
        lambda i: i.normal_equations(np.zeros((2, 6)), GOOD, loss="l1"),
        BundleError,
        "no normal equations of the loss 'l1'",
    ),
    (
        lambda i: i.sample(0),
        InputError,
        "n must be a whole number >= 1 and <= 140737488355328, got 0",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS, ids=[m for _, _, m in BAD_CALLS])
def test_bad_argument_is_refused(inverter, call, kind, message):
    with pytest.raises(kind) as error:
        call(inverter)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"device": "cuda:99"}, DeviceError, "got device='cuda:99'; use "),
        ({"device": "tpu"}, DeviceError, 'device must be "cpu", "cuda", "cuda:1" (a number)'),
        ({"device": None}, DeviceError, 'or "auto", got None'),
        ({"runtime": "tensorrt"}, InputError, 'runtime must be "auto", "onnx" or "torchscript"'),
        ({"runtime": "torchscript"}, BundleError, "export it again"),
        ({"tf32": 1}, InputError, "tf32 must be True or False, got 1"),
        ({"batch_size": 0}, InputError, 'batch_size must be a whole number >= 1 or "auto", got 0'),
        ({"batch_size": "many"}, InputError, "or \"auto\", got 'many'"),
        ({"threads": 0}, InputError, "threads must be a whole number >= 1 and <= 1024, got 0"),
        ({"threads": 1.5}, InputError, "threads must be"),
    ],
)
def test_bad_inverter_is_refused(bundle_path, options, kind, message):
    with pytest.raises(kind) as error:
        Inverter(bundle_path, **options)
    assert message in str(error.value)


def test_default_recipe_does_not_fit_by_accident(normal_bundle_path):
    with pytest.raises(RuleError, match="StochasticClip draws uniformly and needs a uniform prior"):
        Inverter(normal_bundle_path).invert(GOOD, recipe="lipton")


@pytest.mark.parametrize(("count", "batch_size"), [(1, 64), (5, 1)])
def test_batch_norm_over_a_batch_of_one_is_refused(tmp_path, count, batch_size):
    write_tiny_bundle(tmp_path / "b", batch_norm="batch", prior=Normal())
    inverter = Inverter(tmp_path / "b", batch_size=batch_size)
    with pytest.raises(InputError, match="needs groups of 2 or more targets"):
        inverter.invert(np.zeros((count, 1, 8, 8), np.float32))


@pytest.mark.parametrize("recipe", ["precise", "reconstruct", SECOND_ORDER])
def test_coupled_targets_have_no_normal_equations(tmp_path, recipe):
    write_tiny_bundle(tmp_path / "b", batch_norm="batch", prior=Normal())
    inverter = Inverter(tmp_path / "b", threads=1)
    with pytest.raises(BundleError, match='batch_norm="eval"'):
        inverter.invert(GOOD, recipe=recipe)
    with pytest.raises(BundleError, match=r'LBFGS needs targets .* batch_norm="eval"'):
        inverter.invert(GOOD, recipe=Recipe("matrix-free", (Stage(LBFGS(), max_steps=3),)))
    with pytest.raises(BundleError, match='batch_norm="eval"'):
        inverter.uncertainty(np.zeros((2, LATENT)), GOOD)


def test_stages_that_couple_targets_do_not_go_with_normal_equations(tmp_path):
    write_tiny_bundle(tmp_path / "b", prior=Normal(), normal_equations=("mse",))
    coupled = Stage(Adam(0.1), penalties=(MomentPenalty(over="batch"),))
    recipe = Recipe("both", (coupled, *SECOND_ORDER.stages))
    with pytest.raises(RuleError, match=r'affect one another, .*; give it over="latent"'):
        Inverter(tmp_path / "b", threads=1).invert(GOOD, recipe=recipe)
    recipe = Recipe("both", (coupled, Stage(LBFGS(), max_steps=3)))
    with pytest.raises(RuleError, match=r'LBFGS needs targets .*; give it over="latent"'):
        Inverter(tmp_path / "b", threads=1).invert(GOOD, recipe=recipe)


def test_arguments_of_normal_equations_are_checked_like_others(tmp_path):
    write_tiny_bundle(tmp_path / "b", normal_equations=("mse",))
    inverter = Inverter(tmp_path / "b", threads=1)
    latents = np.zeros((2, LATENT))
    for call in (inverter.normal_equations, inverter.uncertainty):
        for images, message in BAD_IMAGES:
            with pytest.raises(InputError) as error:
                call(latents, images)
            assert message in str(error.value)
        with pytest.raises(InputError, match="got 3 rows; give one row per target"):
            call(np.zeros((3, LATENT)), GOOD)
        with pytest.raises(InputError, match="latents must be finite"):
            call(np.full((2, LATENT), np.nan), GOOD)
        with pytest.raises(InputError, match="batch_size must be a whole number >= 1"):
            call(latents, GOOD, batch_size=0)
        with pytest.raises(InputError, match="takes no conditions"):
            call(latents, GOOD, conditions=latents)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "this bundle needs conditions, got none; give condition (float32 [B, 3])"),
        (np.zeros((2, 4)), "condition 'condition' must be float32 [2, 3], got [2, 4]"),
        (np.zeros((1, 3)), "got 1 rows; give one row per target"),
    ],
)
def test_bad_condition_is_refused(tmp_path, condition, message):
    write_tiny_bundle(tmp_path / "b", condition_size=3)
    with pytest.raises(InputError) as error:
        Inverter(tmp_path / "b").invert(GOOD, conditions=condition)
    assert message in str(error.value)


def test_file_that_is_no_inversion_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", latents=np.zeros(3))
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04nothing")
    for name, message in (
        ("a", "not a saved Inv"),
        ("b", "not a saved Inv"),
        ("c", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            Inversion.load(tmp_path / f"{name}.npz")


# Files, through the API and the command line


def truncated(path: Path, suffix: str) -> Path:
    """Half of a picture's file."""
    whole = path / f"whole{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    cut = path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return cut


def written(path: Path, name: str, content: bytes) -> Path:
    (path / name).write_bytes(content)
    return path / name


def saved(path: Path, array: Any) -> Path:
    np.save(path / "array.npy", array)
    return path / "array.npy"


def several(path: Path) -> Path:
    np.savez(path / "array.npz", a=GOOD, b=GOOD)
    return path / "array.npz"


def cut_array(path: Path) -> Path:
    whole = saved(path, GOOD)
    whole.write_bytes(whole.read_bytes()[:-7])
    return whole


def empty_folder(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


BAD_FILES: list[tuple[Callable[[Path], Path], str]] = [
    (lambda path: path / "nowhere.png", "nowhere.png: no such file or folder"),
    (empty_folder, "empty: no image files in this folder"),
    (lambda path: truncated(path, ".png"), "cut.png: not a readable image, or truncated"),
    (lambda path: truncated(path, ".jpg"), "cut.jpg: not a readable image, or truncated"),
    (lambda path: truncated(path, ".bmp"), "cut.bmp: not a readable image, or truncated"),
    (lambda path: written(path, "a.png", b""), "a.png: not a readable image"),
    (lambda path: written(path, "notes.txt", b"hello"), "notes.txt: only jobs read lists"),
    (lambda path: written(path, "a.npy", b""), "a.npy: not a readable .npy file"),
    (lambda path: written(path, "a.npy", b"text"), "no numeric array in it"),
    (lambda path: written(path, "a.npz", b"PK\x03\x04"), "a.npz: not a readable .npz file"),
    (cut_array, "array.npy: not a readable .npy file, or truncated"),
    (several, 'expected one array or one named "images", found a, b'),
    (lambda path: saved(path, GOOD[:0]), "got an empty array"),
    (lambda path: saved(path, GOOD.astype(int)), "expected uint8 (0-255) or floating images, got"),
    (lambda path: saved(path, np.zeros((2, 3, 8, 8))), "give it the bundle's 1 channel(s)"),
    (
        lambda path: saved(path, np.zeros(5)),
        "expected images [N, 1, 8, 8] or [N, 8, 8, 1], got [5]",
    ),
    (lambda path: saved(path, changed(1, np.nan)), "image 1 must be finite and in [-1, 1]"),
    (lambda path: saved(path, changed(1, 200)), "image 1 must be finite and in [-1, 1], got [200,"),
]


@pytest.mark.parametrize(("make", "message"), BAD_FILES, ids=[m for _, m in BAD_FILES])
def test_bad_image_file_is_named(capsys, bundle, bundle_path, tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(InputError) as error:
        load_images(path, bundle.manifest)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert_refused(capsys, message, "invert", bundle_path, path, "-o", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_no_paths_are_no_images(bundle):
    with pytest.raises(InputError, match="no images given"):
        load_images([], bundle.manifest)
    with pytest.raises(InputError, match="fit must be one of crop, stretch; got 'pad'"):
        load_images([], bundle.manifest, fit="pad")


# Through the command line


def assert_refused(capsys, message: str, *arguments: object) -> None:
    """The command exits with 1 and one line that holds the message."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 1
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("pyinv: error: ")]
    assert len(lines) == 1, err
    assert message in lines[0]
    assert "Traceback" not in err


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--recipe", "lbfgs"],
            "unknown recipe 'lbfgs'; there are default, adam, lipton, creswell",
        ),
        (["--recipe", "best"], 'did you mean effort="best" (in the shell, --effort best)?'),
        (["--recipe", "precise"], NEEDS_EXPORT),
        (["--recipe", "reconstruct", "--noise", "0.1"], NEEDS_EXPORT),
        (["--uncertainty"], NEEDS_EXPORT),
        (["--noise", "0.1"], "--noise is for --uncertainty and --recipe reconstruct"),
        (["--uncertainty", "--noise", "0"], "noise must be a number > 0"),
        (["--constraint", "soft"], "unknown constraint 'soft'"),
        (["--constraint", "hard_cutoff"], "needs a value for 'c'; an example is hard_cutoff:c=3"),
        (
            ["--constraint", "hard_cutoff:c=3"],
            "recipe default: HardCutoff draws from a normal prior",
        ),
        (["--constraint", "clip:low=2,high=1"], "low must be below high"),
        (["--recipe", "egan"], "draws from a normal prior, but this one is uniform"),
        (["--loss", "lpips"], "no loss 'lpips', only mse, l1, bce"),
        (["--device", "cuda:99"], "got device='cuda:99'; use "),
        (["--runtime", "tensorrt"], "runtime must be"),
        (["--max-steps", "0"], "max_steps must be a whole number >= 1"),
        (["--recipe", "lipton", "--learning-rate", "nan"], "learning_rate must be a finite number"),
        (["--recipe", "lipton", "--effort", "best"], "--effort is for --recipe default"),
        (["--restarts", "-1"], "restarts must be"),
        (["--seed", "-1"], "seed must be"),
        (["--batch-size", "few"], 'batch_size must be a whole number >= 1 or "auto"'),
        (["--threads", "0"], "threads must be"),
        (["--init", "nowhere.npy"], "nowhere.npy: no such file"),
    ],
)
def test_bad_option_is_refused(capsys, bundle_path, image, tmp_path, options, message):
    out = tmp_path / "out.npz"
    assert_refused(capsys, message, "invert", bundle_path, image, "-o", out, *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--constraint", "stochastic_clip"], "recipe default: StochasticClip draws uniformly"),
        (["--recipe", "lipton"], "recipe lipton: StochasticClip draws uniformly"),
        (["--recipe", "lipton"], "--constraint hard_cutoff:c=3), or the recipe default"),
        (["--constraint", "clip"], "--constraint clip:low=-3,high=3)"),
    ],
)
def test_constraint_that_does_not_fit_a_normal_prior(
    capsys, normal_bundle_path, image, tmp_path, options, message
):
    out = tmp_path / "out.npz"
    assert_refused(capsys, message, "invert", normal_bundle_path, image, "-o", out, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "this bundle also needs label (label, 10 classes); add --condition label=3"),
        (["--condition", "label=10"], "must be whole numbers from 0 to 9, got 10"),
        (["--condition", "label=FILE"], 'one named "label", found images, labels; rename it'),
        (["--condition", "label=SEVERAL"], "one for each target [1] or one for all, got [3]"),
    ],
)
def test_wrong_condition_is_refused_before_the_start(capsys, image, tmp_path, options, message):
    write_tiny_bundle(tmp_path / "b", condition_size=1)
    described = json.loads((tmp_path / "b" / "manifest.json").read_text())
    described["conditions"] = [{"name": "label", **Label(10).describe()}]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(described))
    np.savez(tmp_path / "file.npz", images=GOOD, labels=np.zeros(2))
    np.save(tmp_path / "several.npy", np.zeros(3))
    files = {"FILE": tmp_path / "file.npz", "SEVERAL": tmp_path / "several.npy"}
    for name, path in files.items():
        options = [option.replace(name, str(path)) for option in options]
    code = main(
        ["invert", str(tmp_path / "b"), str(image), "-o", str(tmp_path / "o.npz"), *options]
    )
    assert code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def damaged_bundles(path: Path) -> dict[str, tuple[Path, str]]:
    """Every way in which a bundle can be wrong, with what has to be said."""
    for name in ("truncated", "tampered", "foreign", "incomplete"):
        write_tiny_bundle(path / name)
    weights = path / "truncated" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    weights = path / "tampered" / "weights.bin"
    weights.write_bytes(bytes(100) + weights.read_bytes()[100:])
    (path / "foreign" / "manifest.json").write_text('{"format": "other"}')
    (path / "incomplete" / "objective_mse.onnx").unlink()
    return {
        "missing": (path / "nowhere", "no such bundle"),
        "truncated": (path / "truncated", "weights.bin: expected 4800 bytes, found 100"),
        "tampered": (path / "tampered", "weights.bin: its SHA-256 is not the manifest's"),
        "foreign": (path / "foreign", "not a pyinv bundle"),
        "incomplete": (path / "incomplete", "objective_mse.onnx: missing from the bundle"),
    }


@pytest.mark.parametrize("damage", ["missing", "truncated", "tampered", "foreign", "incomplete"])
def test_bad_bundle_is_refused_by_every_command(capsys, image, tmp_path, damage):
    bundle, message = damaged_bundles(tmp_path)[damage]
    out = tmp_path / "out.npz"
    assert_refused(capsys, message, "info", bundle)
    assert_refused(capsys, message, "generate", bundle, "-o", out)
    assert_refused(capsys, message, "invert", bundle, image, "-o", out)
    with pytest.raises(BundleError) as error:
        Inverter(bundle)
    assert message in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/out.npz", "nowhere does not exist; make it first"),
        ("image.png/out.npz", "cannot be written (Not a directory)"),
        ("folder.npz", "expected a file to write, and this is a folder"),
        ("out.txt", "expected a file name that ends in .npz"),
    ],
)
def test_output_that_cannot_be_written_is_refused_before_work(
    capsys, monkeypatch, bundle_path, image, tmp_path, output, message
):
    (tmp_path / "folder.npz").mkdir()
    monkeypatch.setattr(Inverter, "invert", lambda *_, **__: pytest.fail("work was begun"))
    assert_refused(capsys, message, "invert", bundle_path, image, "-o", tmp_path / output)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/a.png", "nowhere does not exist; make it first"),
        ("nowhere/folder/", "nowhere does not exist; make it first"),
        ("image.png/folder", "cannot be made (Not a directory)"),
        ("taken", "expected a folder, and this is a file"),
        ("a.jpg", "expected .npz, .npy, .png or a folder"),
    ],
)
def test_generate_refuses_such_outputs_too(capsys, bundle_path, image, tmp_path, output, message):
    (tmp_path / "taken").touch()
    assert_refused(capsys, message, "generate", bundle_path, "-o", f"{tmp_path}/{output}")


def test_folder_for_reconstructions_is_checked_before_work(
    capsys, monkeypatch, bundle_path, image, tmp_path
):
    monkeypatch.setattr(Inverter, "invert", lambda *_, **__: pytest.fail("work was begun"))
    assert_refused(
        capsys,
        "expected a folder, and this is a file",
        *("invert", bundle_path, image, "-o", tmp_path / "a.npz", "--save-images", image),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["generate", "{bundle}", "-o", "{path}/a.png"],
            "a.png: this bundle's targets are not pictures (shape [5]); write .npz or .npy",
        ),
        (
            ["generate", "{bundle}", "-o", "{path}/folder/"],
            "folder/: this bundle's targets are not pictures (shape [5]); write .npz or .npy",
        ),
        (
            [
                "invert",
                "{bundle}",
                "{path}/a.npy",
                "-o",
                "{path}/a.npz",
                "--save-images",
                "{path}/s",
            ],
            "--save-images: this bundle's targets are not pictures (shape [5]); leave it out, and "
            "use `pyinv generate {bundle} --latents {path}/a.npz -o OUT.npy`",
        ),
        (
            ["invert", "{bundle}", "{path}/image.png", "-o", "{path}/a.npz"],
            "image.png: this bundle's targets are not pictures (shape [5]); give a .npy or .npz",
        ),
        (
            ["train", "encoder", "{bundle}", "-o", "{path}/encoder"],
            "not pictures (shape [5]), and encoders are trained for images [C, H, W]; add an",
        ),
        (
            ["reproduce", "lipton", "--generator", "{bundle}", "-o", "{path}/paper"],
            "not pictures (shape [5]), and ",
        ),
    ],
)
def test_pictures_are_not_made_of_other_targets(
    capsys, image, tmp_path_factory, tmp_path, arguments, message
):
    if arguments[0] in ("train", "reproduce"):
        pytest.importorskip("torch")
    bundle = tmp_path_factory.mktemp("bundles") / "vectors.bundle"
    write_tiny_bundle(bundle, image_shape=(5,))
    names = {"bundle": bundle, "path": tmp_path}
    assert_refused(
        capsys, message.format(**names), *(argument.format(**names) for argument in arguments)
    )
    assert not [
        path for path in tmp_path.iterdir() if path.suffix in (".npz", ".png") and path != image
    ]


def test_full_disk_is_one_line(capsys, monkeypatch, bundle_path, image, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Inversion, "save", full)
    assert_refused(
        capsys,
        "a.npz: cannot be written (No space left on device)",
        *("invert", bundle_path, image, "-o", tmp_path / "a.npz", "--max-steps", 2),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png"]


@pytest.mark.parametrize(
    "message", ["no onnxruntime found: pip install onnxruntime", "two onnxruntimes are installed"]
)
def test_onnxruntime_that_cannot_be_used_is_one_line(
    capsys, monkeypatch, bundle_path, image, tmp_path, message
):
    def fail() -> None:
        raise DependencyError(message)

    monkeypatch.setattr(runtimes, "load_onnxruntime", fail)
    assert_refused(capsys, message, "invert", bundle_path, image, "-o", tmp_path / "a.npz")
    assert main(["info"]) == 0
    assert f"not usable: {message}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latents", "nowhere.npy"], "nowhere.npy: no such file"),
        (["-n", "0"], "n must be a whole number >= 1 and <= 140737488355328, got 0"),
        (["--condition", "nowhere.npy"], "this bundle takes no conditions; leave it out"),
    ],
)
def test_bad_latents_are_refused(capsys, bundle_path, tmp_path, options, message):
    assert_refused(capsys, message, "generate", bundle_path, "-o", tmp_path / "a.npz", *options)


def test_unexpected_failure_is_one_line_and_a_traceback_on_request(
    capsys, monkeypatch, bundle_path, image, tmp_path
):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(Inverter, "invert", fail)
    command = ["invert", str(bundle_path), str(image), "-o", str(tmp_path / "a.npz")]
    assert_refused(capsys, "ZeroDivisionError: surprise (an error within pyinv", *command)
    assert main([*command, "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere:make", "--latent-shape", "4"], "nowhere"),
        (["json:nothing", "--latent-shape", "4"], "nothing"),
        (["json:dumps", "--latent-shape", "4"], "dumps"),
    ],
)
def test_bad_factory_is_refused(capsys, tmp_path, arguments, message):
    pytest.importorskip("torch")
    pytest.importorskip("pyinv.export")
    assert_refused(capsys, message, "export", *arguments, "-o", tmp_path / "b", "--prior", "normal")


@pytest.mark.parametrize(
    "options",
    [
        ["--latent-shape", "0"],
        ["--latent-shape", "4,x"],
        ["--latent-shape", "4", "--prior", "cauchy"],
        ["--latent-shape", "4", "--prior", "uniform:1"],
        ["--latent-shape", "4", "--prior", "uniform:1,-1"],
        ["--latent-shape", "4", "--value-range", "0"],
    ],
)
def test_bad_export_usage_exits_with_2(capsys, tmp_path, options):
    assert main(["export", "m:f", "-o", str(tmp_path / "b"), *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_export_asks_for_the_prior(capsys, tmp_path):
    pytest.importorskip("torch")
    arguments = ["export", "json:dumps", "--latent-shape", "4", "-o", tmp_path / "b"]
    assert_refused(capsys, "--prior is required", *arguments)
    assert not (tmp_path / "b").exists()
