"""Encoders in bundles: written by export or added later, run by both runtimes, and begun from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.manifests import manifest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import pyinv  # noqa: E402
from pyinv import recipes  # noqa: E402
from pyinv.bundle import Bundle, FileRecord, Manifest  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import BundleError, ExportError, InputError, OutputError  # noqa: E402
from pyinv.export import add_encoder, export  # noqa: E402
from pyinv.images import load_images  # noqa: E402
from pyinv.solvers import Adam  # noqa: E402
from support.tolerances import assert_close  # noqa: E402

LATENT, IMAGE = (6, 1, 1), (3, 8, 8)


class Generator(nn.Module):
    """Latent [B, 6, 1, 1], and perhaps a condition [B, 2], to an image [B, 3, 8, 8]."""

    def __init__(self, condition: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6 + condition, 24), nn.ReLU(), nn.Linear(24, 192), nn.Tanh()
        )

    def forward(self, latent, *condition):
        return self.layers(torch.cat([latent.flatten(1), *condition], 1)).view(-1, *IMAGE)


class Encoder(nn.Module):
    """Image, and perhaps a condition, to a latent of the generator's shape, with batch norm."""

    def __init__(self, condition: int = 0, channels: int = 3, size: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)
        )
        self.last = nn.Linear(8 * (size // 2) ** 2 + condition, 6)

    def forward(self, image, *condition):
        features = self.features(image).flatten(1)
        return self.last(torch.cat([features, *condition], 1)).view(-1, *LATENT)


def seeded(module):
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=random))
    return module


@pytest.fixture(scope="module")
def encoder():
    # In training mode: what is exported is its eval mode.
    return seeded(Encoder()).train()


@pytest.fixture(scope="module")
def encoding(tmp_path_factory, encoder):
    """A bundle for both runtimes that can encode."""
    path = tmp_path_factory.mktemp("encoders") / "encoding.bundle"
    return export(
        seeded(Generator()),
        path,
        latent_shape=LATENT,
        prior=pyinv.Normal(),
        losses=("mse",),
        encoder=encoder,
        runtimes=("onnx", "torchscript"),
    )


@pytest.fixture(params=["onnx", "torchscript"])
def inverter(request, encoding):
    if request.param == "torchscript":
        pytest.importorskip("pyinv._torch", exc_type=ImportError)
    return pyinv.Inverter(encoding, runtime=request.param, threads=1)


@pytest.fixture
def images(inverter):
    return inverter.generate(inverter.sample(5))


def expected(encoder, images, *condition):
    encoder.eval()
    with torch.no_grad():
        return encoder(torch.from_numpy(images), *condition).numpy()


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_encode_is_the_encoder(inverter, images, encoder, batch):
    latents = inverter.encode(images, batch_size=batch)
    assert latents.shape == (5, *LATENT)
    assert latents.dtype == np.float32
    np.testing.assert_allclose(latents, expected(encoder, images), rtol=1e-5, atol=1e-5)


def test_inversions_begin_at_the_encoders_latents(inverter, images):
    encoded = inverter.encode(images)
    begins, _ = inverter.evaluate(encoded, images)
    recipe = recipes.adam(manifest()).replace(max_steps=20)
    first = inverter.invert(images, recipe=recipe, init="encoder", trace_every=1)
    np.testing.assert_allclose(first.trace[:, 0], begins, rtol=1e-4)
    same = inverter.invert(images, recipe=recipe.replace(start="encoder"))
    given = inverter.invert(images, recipe=recipe, init=encoded)
    np.testing.assert_array_equal(first.latents, same.latents)
    assert_close(first.latents, given.latents, "latent, other batch")
    assert first.recipe["start"] == "encoder"
    drawn = inverter.invert(images, recipe=recipe)
    assert np.abs(drawn.latents - first.latents).max() > 1e-2


def test_latents_given_come_before_the_encoder(inverter, images):
    recipe = recipes.adam(manifest()).replace(max_steps=5)
    latents = inverter.sample(5, seed=3)
    asked = inverter.invert(images, recipe=recipe.replace(start="encoder"), init=latents)
    given = inverter.invert(images, recipe=recipe, init=latents)
    np.testing.assert_array_equal(asked.latents, given.latents)


def test_restarts_are_drawn_as_before(inverter, images):
    """With a step of nearly nothing, an attempt ends where it begins."""
    still = pyinv.Stage(Adam(1e-12), max_steps=1, loss_tolerance=1e-12)
    recipe = pyinv.Recipe("still", (still,), restarts=3)
    drawn = inverter.invert(images, recipe=recipe, seed=4, trace_every=1)
    encoded = inverter.invert(images, recipe=recipe, seed=4, init="encoder", trace_every=1)
    assert set(encoded.attempts) == {4}
    begins, _ = inverter.evaluate(inverter.encode(images), images)
    # The three restarts are the same draws; only the first attempts differ.
    restarts = inverter.invert(
        images, recipe=recipe, seed=4, init=1e3 * np.ones((5, 6)), trace_every=1
    )
    np.testing.assert_allclose(encoded.loss, np.minimum(begins, restarts.loss), rtol=1e-4)
    assert np.all(drawn.loss <= restarts.loss + 1e-6)


def test_precise_and_reconstruct_take_the_encoders_start(inverter, images):
    found = inverter.invert(images, recipe="precise", init="encoder")
    assert found.counts()["converged_tolerance"] == 5
    found = inverter.invert(images, recipe="reconstruct", init="encoder")
    assert found.loss.max() < 1e-2


def test_a_recipes_name_says_what_an_encoders_start_changes(inverter, images, encoding):
    manifest = inverter.manifest
    encoded = recipes.get("precise", manifest, start="encoder")
    found = inverter.invert(images, recipe="precise", init="encoder")
    assert found.recipe == encoded.fit(manifest.prior).describe()
    assert recipes.get("egan", manifest, start="encoder").start == "encoder"


def test_conditions_reach_the_encoder(tmp_path):
    encoder = seeded(Encoder(condition=2)).eval()
    path = export(
        seeded(Generator(condition=2)),
        tmp_path / "b",
        latent_shape=LATENT,
        prior=pyinv.Uniform(),
        losses=("mse",),
        condition_shape=2,
        normal_equations=False,
        encoder=encoder,
    )
    inverter = pyinv.Inverter(path, threads=1)
    condition = np.random.default_rng(0).random((3, 2), dtype=np.float32)
    images = inverter.generate(inverter.sample(3), conditions=condition)
    wanted = expected(encoder, images, torch.from_numpy(condition))
    np.testing.assert_allclose(inverter.encode(images, conditions=condition), wanted, atol=1e-5)
    recipe = recipes.lipton(manifest()).replace(max_steps=2)
    found = inverter.invert(images, recipe=recipe, conditions=condition, init="encoder")
    assert np.isfinite(found.loss).all()
    with pytest.raises(InputError, match="needs conditions"):
        inverter.encode(images)


# ---- bundles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_an_encoder_may_ask_for_the_batchs_size(encoding, tmp_path, runtime):
    if runtime == "torchscript":
        pytest.importorskip("pyinv._torch", exc_type=ImportError)
    path = add_encoder(encoding, Mean(), tmp_path / "b")
    latents = pyinv.Inverter(path, runtime=runtime, threads=1).encode(np.zeros((3, *IMAGE)))
    np.testing.assert_array_equal(latents.reshape(3, 6), [range(6)] * 3)


class Mean(nn.Module):
    """The same latent for every image."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.arange(6.0))

    def forward(self, image):
        return self.mean.expand(image.shape[0], 6)


def test_an_encoder_is_added_to_a_bundle_alone(encoding, encoder, tmp_path):
    other = seeded(Encoder())
    with torch.no_grad():
        other.last.bias.add_(1.0)
    path = add_encoder(encoding, other, tmp_path / "b", name="other", origin={"by": "test"})
    before, after = Bundle.open(encoding).manifest, Bundle.open(path).manifest
    assert after.has_encoder
    assert (after.name, after.origin) == ("other", {"by": "test"})
    kept = [name for name in before.files if not name.startswith("encode")]
    assert {name: after.files[name] for name in kept} == {name: before.files[name] for name in kept}
    assert set(after.files) == set(before.files)
    assert [f for f in after.functions if f.name != "encode"] == [
        f for f in before.functions if f.name != "encode"
    ]
    inverter = pyinv.Inverter(path, threads=1)
    images = inverter.generate(inverter.sample(3))
    np.testing.assert_allclose(inverter.encode(images), expected(other, images), atol=1e-5)
    # The one that it was added to is as it was.
    untouched = pyinv.Inverter(encoding, threads=1).encode(images)
    np.testing.assert_allclose(untouched, expected(encoder, images), atol=1e-5)


def test_a_bundle_can_get_its_encoder_in_place(tmp_path, bundle_path, encoder):
    flat = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)))
    path = add_encoder(bundle_path, flat, tmp_path / "b")
    with pytest.raises(OutputError, match="exists and is not empty"):
        add_encoder(path, flat, path)
    add_encoder(path, flat, path, overwrite=True)
    assert Bundle.open(path).manifest.has_encoder


def test_the_manifest_holds_encode_for_each_runtime_or_for_none(encoding):
    described = json.loads((encoding / "manifest.json").read_text())
    manifest = Manifest.from_description(described)
    assert manifest.encode().file == "encode.onnx"
    assert manifest.encode("torchscript").method == "encode"
    functions = described["functions"]
    for changed in (functions[:-1], [*functions, functions[-1]]):
        with pytest.raises(BundleError, match='"encode" once for each runtime, or for none; torch'):
            Manifest.from_description({**described, "functions": changed})


@pytest.mark.parametrize(
    ("make", "problem"),
    {
        "channels": (lambda: Encoder(channels=1), "does not take this bundle's images [B, 3, 8,"),
        "image size": (lambda: Encoder(size=16), "does not take this bundle's images [B, 3, 8, 8]"),
        "latent size": (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)),
            "must return latents [B, 6, 1, 1] or [B, 6], as this bundle has them; it returned "
            "[2, 5] for 2 images",
        ),
        "dropout": (
            lambda: nn.Sequential(nn.Flatten(), AlwaysDrop(), nn.Linear(192, 6)),
            "returned different latents for the same images",
        ),
        "tuple": (lambda: Pair(), "must return latents [B, 6, 1, 1] or [B, 6], it returned tuple"),
        "nan": (lambda: Constant(float("nan")), "must return finite latents"),
        "integers": (lambda: Whole(), "must return floats, it returned torch.int64"),
        "statistics": (
            lambda: nn.Sequential(
                nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(192, 6)
            ),
            "the encoder's batch norm has no running statistics",
        ),
        "batch": (lambda: Centred(), "another latent for an image that was alone in its batch"),
        "not a module": (lambda: "encoder", "encoder must be a torch.nn.Module, got str"),
    }.values(),
)
def test_an_encoder_that_does_not_fit_is_refused(encoding, tmp_path, make, problem):
    with pytest.raises(ExportError) as error:
        add_encoder(encoding, make(), tmp_path / "b")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


class AlwaysDrop(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class Whole(nn.Module):
    def forward(self, image):
        return image.flatten(1)[:, :6].long()


class Pair(nn.Module):
    def forward(self, image):
        return image.flatten(1)[:, :6], image


class Centred(nn.Module):
    def forward(self, image):
        rows = image.flatten(1)[:, :6]
        return rows - rows.mean(0)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, image):
        return image.flatten(1)[:, :6] * 0 + self.value


def test_what_needs_an_encoder_says_how_to_get_one(bundle_path):
    inverter = pyinv.Inverter(bundle_path, threads=1)
    images = inverter.generate(inverter.sample(2))
    recipe = recipes.lipton(manifest()).replace(start="encoder")
    for ask in (
        lambda: inverter.encode(images),
        lambda: inverter.invert(images, init="encoder"),
        lambda: inverter.invert(images, recipe=recipe),
    ):
        with pytest.raises(BundleError, match="has no encoder; train one with `pyinv train enc"):
            ask()
    with pytest.raises(InputError, match="init must be latents or \"encoder\", got 'coder'"):
        inverter.invert(images, init="coder")


def test_a_graph_that_gives_other_latents_is_refused(encoding, tmp_path):
    """The manifest's checksum holds, and the graph is another bundle's."""
    small = tmp_path / "small"
    export(
        nn.Sequential(nn.Linear(4, 192), nn.Unflatten(1, IMAGE), nn.Tanh()),
        small,
        latent_shape=4,
        prior=pyinv.Normal(),
        losses=("mse",),
        encoder=nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
    )
    mixed = add_encoder(encoding, Encoder(), tmp_path / "mixed")
    for name in ("encode.onnx", "encode_weights.bin"):
        (mixed / name).write_bytes((small / name).read_bytes())
    manifest = json.loads((mixed / "manifest.json").read_text())
    for name in ("encode.onnx", "encode_weights.bin"):
        record = FileRecord.of(mixed / name)
        manifest["files"][name] = {"bytes": record.bytes, "sha256": record.sha256}
    (mixed / "manifest.json").write_text(json.dumps(manifest))
    inverter = pyinv.Inverter(mixed, threads=1)
    images = inverter.generate(inverter.sample(2))
    with pytest.raises(BundleError, match=r"should give latent \[2, 6\], gave \[2, 4\]"):
        inverter.encode(images)


# ---- the command line ----------------------------------------------------------------------------


def test_encode_and_invert_on_the_command_line(encoding, tmp_path, capsys):
    inverter = pyinv.Inverter(encoding, threads=1)
    images = inverter.generate(inverter.sample(4))
    np.save(tmp_path / "images.npy", images)
    source, out = str(tmp_path / "images.npy"), tmp_path / "latents.npz"
    assert main(["encode", str(encoding), source, "-o", str(out), "--threads", "1"]) == 0
    with np.load(out) as written:
        np.testing.assert_allclose(written["latents"], inverter.encode(images), atol=1e-5)
        assert len(written["sources"]) == 4
    plain = str(tmp_path / "latents.npy")
    assert main(["encode", str(encoding), source, "-o", plain, "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["latent_shape"] == list(LATENT)
    assert np.load(plain).shape == (4, *LATENT)
    inverted = str(tmp_path / "inverted.npz")
    options = ["--init", "encoder", "--max-steps", "3", "--threads", "1", "--json", "-q"]
    assert main(["invert", str(encoding), source, "-o", inverted, *options]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["start"] == "encoder"
    assert main(["info", str(encoding)]) == 0
    assert "encoder           yes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["encode"], ["invert", "--init", "encoder", "--max-steps", "3", "-q"]]
)
def test_the_command_line_fits_images_as_asked(encoding, tmp_path, command):
    inverter = pyinv.Inverter(encoding, threads=1)
    wide = np.zeros((16, 64, 3), dtype=np.uint8)
    wide[:, 24:40] = 255
    source, out = tmp_path / "wide.png", tmp_path / "out.npz"
    Image.fromarray(wide).save(source)
    short = recipes.get("default", inverter.manifest, start="encoder").replace(max_steps=3)
    found = []
    for fit in ("crop", "stretch"):
        options = [str(encoding), str(source), "-o", str(out), "--threads", "1", "--fit", fit]
        options += ["--overwrite"]
        assert main([*command, *options]) == 0
        images = load_images([source], inverter.manifest, fit=fit)
        expected = inverter.encode(images)
        if command[0] == "invert":
            expected = inverter.invert(images, recipe=short).latents
        with np.load(out) as written:
            np.testing.assert_allclose(written["latents"], expected, atol=1e-4)
        found.append(expected)
    assert not np.allclose(*found, atol=1e-2)


def test_errors_of_encode_come_before_any_work(encoding, bundle_path, tmp_path, capsys):
    out = str(tmp_path / "latents.npz")
    assert main(["encode", str(bundle_path), "missing.png", "-o", out]) == 1
    assert "has no encoder" in capsys.readouterr().err
    assert main(["invert", str(bundle_path), "missing.png", "-o", out, "--init", "encoder"]) == 1
    assert "has no encoder" in capsys.readouterr().err
    assert main(["encode", str(encoding), "missing.png", "-o", "latents.txt"]) == 1
    assert "ends in .npz or .npy" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_export_takes_an_encoder_on_the_command_line(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def generator():\n"
        "    return nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)), nn.Tanh())\n"
        "def encoder():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    )
    file = tmp_path / "mine.py"
    options = ["--latent-shape", "4", "--prior", "normal", "--loss", "mse"]
    options += ["--encoder", f"{file}:encoder"]
    command = ["export", f"{file}:generator", "-o", str(tmp_path / "b"), *options]
    assert main(command) == 0, capsys.readouterr().err
    assert Bundle.open(tmp_path / "b").manifest.has_encoder


def test_encode_needs_no_torch(encoding, tmp_path: Path):
    np.save(tmp_path / "images.npy", np.zeros((2, *IMAGE), dtype=np.float32))
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, pyinv\n"
        f"inverter = pyinv.Inverter({str(encoding)!r}, runtime='onnx')\n"
        f"print(inverter.encode(numpy.load({str(tmp_path / 'images.npy')!r})).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 6, 1, 1)"


class Constants(nn.Module):
    """A latent for each image, whatever the images are; the batch is read as a number."""

    def forward(self, image):
        return torch.zeros(len(image), 6)


def test_an_encoder_that_cannot_be_written_is_refused_in_one_line(encoding, tmp_path):
    with pytest.raises(ExportError) as error:
        add_encoder(encoding, Constants(), tmp_path / "b")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
