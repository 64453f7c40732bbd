"""Images in and out: files, folders and arrays to what a bundle expects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyinv.bundle import Manifest
from pyinv.errors import InputError
from pyinv.images import (
    check_images,
    load_images,
    load_named_images,
    resize_pixels,
    save_grid,
    save_images,
    to_uint8,
)
from support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def gray(bundle) -> Manifest:
    """Images of [1, 8, 8] in [-1, 1]."""
    return bundle.manifest


@pytest.fixture(scope="session")
def colour(tmp_path_factory) -> Manifest:
    """Images of [3, 8, 8] in [-1, 1]."""
    path = tmp_path_factory.mktemp("bundles") / "colour.bundle"
    write_tiny_bundle(path, channels=3)
    return Manifest.read(path)


def write(path: Path, pixels: object, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def as_range(pixels: object) -> np.ndarray:
    """What 0..255 pixels are in [-1, 1]."""
    return np.asarray(pixels, dtype=np.float64) / 127.5 - 1


def test_gray_file_is_scaled_to_the_value_range(tmp_path, gray):
    loaded = load_images(write(tmp_path / "a.png", RAMP), gray)
    assert loaded.shape == (1, 1, 8, 8)
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded[0, 0], as_range(RAMP), atol=1e-6)


def test_gray_file_fills_every_channel_of_a_colour_bundle(tmp_path, colour):
    loaded = load_images(write(tmp_path / "a.png", RAMP), colour)
    np.testing.assert_allclose(loaded[0], np.stack([as_range(RAMP)] * 3), atol=1e-6)


def test_colour_file_becomes_luma_in_a_gray_bundle(tmp_path, gray):
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    loaded = load_images(write(tmp_path / "red.png", red), gray)
    np.testing.assert_allclose(loaded, as_range(0.299 * 255), atol=1 / 127)  # Rec. 601


def test_transparency_is_laid_on_white(tmp_path, colour):
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:4, :, 3] = 255  # above: opaque black; below: transparent black
    loaded = load_images(write(tmp_path / "a.png", pixels), colour)
    np.testing.assert_array_equal(loaded[0, :, :4], -1)
    np.testing.assert_array_equal(loaded[0, :, 4:], 1)


def test_sixteen_bit_gray_keeps_its_scale(tmp_path, gray):
    wide = RAMP.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "wide.png")
    loaded = load_images(tmp_path / "wide.png", gray)
    np.testing.assert_allclose(loaded[0, 0], as_range(RAMP), atol=1e-6)


@pytest.mark.parametrize("name", ["a.jpg", "a.bmp", "a.webp", "a.tif", "a.gif", "a.ppm"])
def test_usual_formats_are_read(tmp_path, colour, name):
    loaded = load_images(write(tmp_path / name, np.full((8, 8, 3), 128), quality=95), colour)
    np.testing.assert_allclose(loaded, as_range(128), atol=3 / 127)


def test_exif_rotation_is_applied(tmp_path, gray):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    loaded = load_images(write(tmp_path / "a.png", RAMP, exif=exif), gray)
    np.testing.assert_allclose(loaded[0, 0], as_range(RAMP[::-1, ::-1]), atol=1e-6)


def test_crop_keeps_the_centre_and_the_proportions(tmp_path, gray):
    wide = np.zeros((16, 64), dtype=np.uint8)
    wide[:, 24:40] = 255  # the middle square, and nothing else, is white
    path = write(tmp_path / "wide.png", wide)
    cropped = load_images(path, gray)[0, 0]
    stretched = load_images(path, gray, fit="stretch")[0, 0]
    np.testing.assert_allclose(cropped[:, 1:-1], 1, atol=1e-6)
    assert cropped.min() > 0.8  # the filter at the edge sees a little of what is cropped
    assert stretched[0, 0] == pytest.approx(-1, abs=0.02)
    assert stretched[4, 4] > 0.5


def test_shrinking_averages_rather_than_drops(tmp_path, gray):
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    loaded = load_images(write(tmp_path / "board.png", board), gray)
    np.testing.assert_allclose(loaded, 0, atol=0.02)


@pytest.mark.parametrize("size", [(9, 30), (80, 33)])
def test_resizing_many_images_is_resizing_each_in_two_dimensions(size):
    pixels = np.random.default_rng(0).random((3, 40, 23, 2), dtype=np.float32)
    resized = resize_pixels(pixels, *size, "stretch")
    for image, row in zip(pixels, resized, strict=True):
        for channel in range(2):
            plane = Image.fromarray(image[..., channel])
            expected = plane.resize(size[::-1], Image.Resampling.BICUBIC)
            np.testing.assert_allclose(row[..., channel], np.clip(expected, 0, 1), atol=1e-6)


def test_folder_is_searched_in_natural_order(tmp_path, gray):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("10.png", "2.png", "sub/1.PNG", ".hidden/0.png", "._3.png"):
        write(tmp_path / name, RAMP)
    (tmp_path / "notes.txt").write_text("no image")
    images, names = load_named_images(tmp_path, gray)
    assert [Path(name).relative_to(tmp_path).as_posix() for name in names] == [
        "2.png",
        "10.png",
        "sub/1.PNG",
    ]
    assert len(images) == 3


def test_several_paths_keep_their_order(tmp_path, gray):
    np.save(tmp_path / "two.npy", np.stack([RAMP, RAMP]))
    one = write(tmp_path / "one.png", RAMP)
    _, names = load_named_images([tmp_path / "two.npy", one], gray)
    assert names == [f"{tmp_path}/two.npy[0]", f"{tmp_path}/two.npy[1]", str(one)]


GRAY_LAYOUTS = [(2, 1, 8, 8), (2, 8, 8, 1), (2, 8, 8), (8, 8), (1, 8, 8)]
COLOUR_LAYOUTS = [(2, 3, 8, 8), (2, 8, 8, 3), (3, 8, 8), (8, 8, 3)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", GRAY_LAYOUTS + COLOUR_LAYOUTS)
def test_array_files_are_recognised(tmp_path, gray, colour, shape, dtype):
    manifest = colour if 3 in shape else gray
    random = np.random.default_rng(0)
    if dtype == np.uint8:
        array = random.integers(0, 256, shape, dtype=np.uint8)
        values = as_range(array)
    else:
        array = values = random.uniform(-1, 1, shape).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    loaded = load_images(tmp_path / "a.npy", manifest)
    channels = manifest.image_shape[0]
    if 3 in shape:
        batched = values if values.ndim == 4 else values[None]
        expected = batched if batched.shape[1] == 3 else batched.transpose(0, 3, 1, 2)
    else:
        expected = values.reshape(-1, 1, 8, 8)
    assert loaded.shape[1:] == (channels, 8, 8)
    np.testing.assert_allclose(loaded, expected, atol=1e-6)


def test_array_of_another_size_is_resized(tmp_path, gray):
    np.save(tmp_path / "a.npy", np.full((2, 28, 28), 128, dtype=np.uint8))
    np.testing.assert_allclose(load_images(tmp_path / "a.npy", gray), as_range(128), atol=1e-6)


def test_npz_gives_its_images(tmp_path, gray):
    images = np.zeros((2, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "a.npz", latents=np.zeros((2, 6)), images=images)
    np.savez(tmp_path / "b.npz", images)
    assert load_images([tmp_path / "a.npz", tmp_path / "b.npz"], gray).shape == (4, 1, 8, 8)


def test_ambiguous_layout_is_refused(tmp_path, colour):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 16, 3), dtype=np.float32))
    with pytest.raises(InputError, match="could be either"):
        load_images(tmp_path / "a.npy", colour)


def test_saved_images_load_as_they_were(tmp_path, colour):
    images = np.random.default_rng(1).uniform(-1, 1, (3, 3, 8, 8)).astype(np.float32)
    paths = save_images(images, tmp_path, (-1, 1), names=["a", "b", "c"])
    assert [path.name for path in paths] == ["a.png", "b.png", "c.png"]
    np.testing.assert_allclose(load_images(paths, colour), images, atol=1 / 255 + 1e-6)


def test_grid_holds_every_image(tmp_path):
    images = np.full((5, 1, 8, 8), -1, dtype=np.float32)
    save_grid(images, tmp_path / "grid.png", (-1, 1), columns=3)
    with Image.open(tmp_path / "grid.png") as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (17, 26)
    assert np.sum(sheet == 0) == 5 * 64


def test_pixels_are_rounded_and_clipped():
    images = np.array([-2, -1, 0, 0.999, 1, 2], dtype=np.float32).reshape(1, 1, 1, 6)
    np.testing.assert_array_equal(to_uint8(images, (-1, 1)).ravel(), [0, 0, 128, 255, 255, 255])


def test_checked_images_are_not_copied(gray):
    images = np.zeros((2, 1, 8, 8), dtype=np.float32)
    assert np.shares_memory(check_images(images, gray), images)


def test_rounding_beyond_the_range_is_let_through(gray):
    check_images(np.full((1, 1, 8, 8), 1.00019, dtype=np.float32), gray)
    with pytest.raises(InputError, match=r"must be in \[-1, 1\], got \[1.001, 1.001\]"):
        check_images(np.full((1, 1, 8, 8), 1.001, dtype=np.float32), gray)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_converted(gray, dtype):
    assert check_images(np.zeros((1, 1, 8, 8), dtype=dtype), gray).dtype == np.float32


class OnlyDlpack:
    """An array of some other library."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def test_dlpack_array_is_shared(gray):
    images = np.zeros((2, 1, 8, 8), dtype=np.float32)
    assert np.shares_memory(check_images(OnlyDlpack(images), gray), images)


def test_array_on_another_device_is_refused(gray):
    with pytest.raises(InputError, match="in this machine's memory"):
        check_images(OnlyDlpack(np.zeros((2, 1, 8, 8), dtype=np.float32), (2, 0)), gray)


def test_torch_tensor_is_shared_even_with_a_gradient(gray):
    torch = pytest.importorskip("torch")
    images = torch.zeros(2, 1, 8, 8, requires_grad=True)
    checked = check_images(images, gray)
    with torch.no_grad():
        images[0] = 0.5
    np.testing.assert_array_equal(checked[0], 0.5)


def test_torch_channels_last_tensor_keeps_its_meaning(colour):
    torch = pytest.importorskip("torch")
    images = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    np.testing.assert_array_equal(check_images(images, colour), images.numpy())


def test_torch_bfloat16_is_refused_with_the_mend(gray):
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"\.float\(\)"):
        check_images(torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16), gray)
