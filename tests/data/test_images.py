"""Images in and out: files, folders and arrays to what a bundle expects."""

from __future__ import annotations

import io
import os
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyinv.array_files import read_array
from pyinv.bundle import Bundle, Manifest
from pyinv.errors import DependencyError, InputError
from pyinv.images import (
    check_images,
    load_images,
    load_named_images,
    resize_pixels,
    save_grid,
    save_images,
    to_uint8,
)
from pyinv.jobs.opening import open_source
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


def test_open_files_are_read_like_their_paths(tmp_path, colour):
    images = np.random.default_rng(1).uniform(-1, 1, (2, 3, 9, 12)).astype(np.float32)
    paths = save_images(images, tmp_path, (-1, 1))
    expected = load_images(paths, colour)
    np.testing.assert_array_equal(
        load_images(io.BytesIO(paths[0].read_bytes()), colour), expected[:1]
    )
    with paths[1].open("rb") as file:
        np.testing.assert_array_equal(load_images([paths[0], file], colour), expected)
    with pytest.raises(InputError, match="the image: not a readable image"):
        load_images(io.BytesIO(b"no image"), colour)


def test_grid_holds_every_image(tmp_path):
    images = np.full((5, 1, 100, 80), -1, dtype=np.float32)
    save_grid(images, tmp_path / "grid.png", (-1, 1), columns=3)
    with Image.open(tmp_path / "grid.png") as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (201, 242)
    assert np.sum(sheet == 0) == 5 * 8000


@pytest.mark.parametrize(
    ("shape", "zoom"), [((4, 1, 16, 16), 8), ((4, 3, 28, 40), 3), ((1600, 1, 16, 16), 3)]
)
def test_a_grid_enlarges_small_images_by_a_whole_factor(tmp_path, shape, zoom):
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    save_grid(images, tmp_path / "grid.png", (-1, 1))
    with Image.open(tmp_path / "grid.png") as picture:
        sheet = np.asarray(picture).reshape(picture.height, picture.width, shape[1])
    assert sheet.shape[1] <= 2048 + 64 * zoom
    first = to_uint8(images[:1], (-1, 1))[0]
    height, width = shape[2] * zoom, shape[3] * zoom
    np.testing.assert_array_equal(sheet[:height:zoom, :width:zoom], first)
    np.testing.assert_array_equal(sheet[zoom - 1 : height : zoom, zoom - 1 : width : zoom], first)
    assert (sheet[:, width : width + zoom] == 255).all()


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


# Targets that are not pictures


def manifest_of(tmp_path: Path, *shape: int) -> Manifest:
    write_tiny_bundle(tmp_path / "b", image_shape=shape)
    return Manifest.read(tmp_path / "b")


@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 2, 2, 2), (1, 1, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_of_any_shape_are_read(tmp_path, shape, dtype):
    manifest = manifest_of(tmp_path, *shape)
    values = np.random.default_rng(0).uniform(-1, 1, (3, *shape)).astype(dtype)
    np.save(tmp_path / "several.npy", values)
    np.savez(tmp_path / "one.npz", values[0])
    found, names = load_named_images([tmp_path / "several.npy", tmp_path / "one.npz"], manifest)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values[[0, 1, 2, 0]].astype(np.float32))
    assert [name.rpartition("/")[2] for name in names] == [
        "several.npy[0]",
        "several.npy[1]",
        "several.npy[2]",
        "one.npz[0]",
    ]
    np.testing.assert_array_equal(check_images(values, manifest), values.astype(np.float32))


def test_arrays_of_other_channels_keep_three_axes(tmp_path):
    manifest = manifest_of(tmp_path, 2, 8, 8)
    values = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 2)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    found = load_images(tmp_path / "a.npy", manifest)
    np.testing.assert_array_equal(found, values.transpose(0, 3, 1, 2))


def sound(path: Path, samples: np.ndarray, width: int) -> Path:
    """Write integers [C, T] to a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(width)
        file.setframerate(8000)
        stored = samples.T.astype("<i4") + (128 if width == 1 else 0)
        data = stored.copy(order="C").view(np.uint8).reshape(-1, 4)[:, :width]
        file.writeframes(data.tobytes())
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files_are_scaled_to_one(tmp_path, width, channels):
    manifest = manifest_of(tmp_path, channels, 6)
    full = 2 ** (8 * width - 1)
    samples = np.resize([0, 1, -1, full // 2, full - 1, -full, 3], (channels, 6))
    found = load_images(sound(tmp_path / "a.wav", samples, width), manifest)
    np.testing.assert_array_equal(found, (samples / full).astype(np.float32)[None])


def test_a_folder_of_wav_files(tmp_path):
    manifest = manifest_of(tmp_path, 4)
    (tmp_path / "in" / "part").mkdir(parents=True)
    for value, name in enumerate(("2.wav", "10.WAV", "part/1.wav")):
        sound(tmp_path / "in" / name, np.full((1, 4), value), 2)
    (tmp_path / "in" / "notes.txt").touch()
    found, names = load_named_images(tmp_path / "in", manifest)
    assert found.shape == (3, 4)
    assert names == [str(tmp_path / "in" / name) for name in ("2.wav", "10.WAV", "part/1.wav")]
    np.testing.assert_array_equal(found[:, 0] * 2**15, [0, 1, 2])


def text_file(path: Path) -> Path:
    path.write_text("hello")
    return path


def array_file(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def cut_sound(path: Path) -> Path:
    whole = sound(path, np.zeros((2, 8)), 2)
    whole.write_bytes(whole.read_bytes()[:-6])
    return whole


def float_sound(path: Path) -> Path:
    whole = sound(path, np.zeros((2, 8)), 4).read_bytes()
    path.write_bytes(whole[:20] + struct.pack("<H", 3) + whole[22:])
    return path


BAD_TARGETS = {
    "a picture": (
        (40,),
        lambda path: text_file(path / "a.png"),
        "a.png: this bundle's targets are not pictures (shape [40]); give a .npy or .npz file of "
        "floats [N, 40], a .parquet file or .wav files",
    ),
    "a picture for audio": (
        (2, 8),
        lambda path: text_file(path / "a.png"),
        "not pictures (shape [2, 8]); give a .npy or .npz file of floats [N, 2, 8], or .wav files",
    ),
    "audio for volumes": (
        (1, 2, 2, 2),
        lambda path: sound(path / "a.wav", np.zeros((1, 8)), 2),
        "not pictures (shape [1, 2, 2, 2]); give a .npy or .npz file of floats [N, 1, 2, 2, 2]",
    ),
    "a picture of two channels": (
        (2, 8, 8),
        lambda path: text_file(path / "a.png"),
        "not pictures (shape [2, 8, 8]); give a .npy or .npz file of floats [N, 2, 8, 8]",
    ),
    "an empty folder": ((2, 8), lambda path: path, "not pictures (shape [2, 8]); give a .npy"),
    "a folder": ((1, 2, 2, 2), lambda path: path, "not pictures (shape [1, 2, 2, 2]); give"),
    "another length": (
        (2, 8),
        lambda path: sound(path / "a.wav", np.zeros((2, 7)), 2),
        "a.wav: expected 2 channel(s) of 8 frames, got 2 of 7; cut, pad or mix it",
    ),
    "other channels": (
        (8,),
        lambda path: sound(path / "a.wav", np.zeros((2, 8)), 2),
        "a.wav: expected 1 channel(s) of 8 frames, got 2 of 8",
    ),
    "no WAV": (
        (2, 8),
        lambda path: text_file(path / "a.wav"),
        "a.wav: not a readable WAV file of PCM samples, or truncated (",
    ),
    "an empty file": (
        (2, 8),
        lambda path: array_file(path / "a.npy", np.zeros(0)).rename(path / "a.wav"),
        "a.wav: not a readable WAV file of PCM samples, or truncated (",
    ),
    "truncated audio": (
        (2, 8),
        lambda path: cut_sound(path / "a.wav"),
        "a.wav: expected 8 frames of audio, got 6; the file is truncated",
    ),
    "floats in WAV": (
        (2, 8),
        lambda path: float_sound(path / "a.wav"),
        "not a readable WAV file of PCM samples, or truncated (unknown format: 3); save it as",
    ),
    "another shape": (
        (5,),
        lambda path: array_file(path / "a.npy", np.zeros((2, 6))),
        "a.npy: expected floats [N, 5] or [5], got [2, 6]; reshape it",
    ),
    "no row": (
        (5,),
        lambda path: array_file(path / "a.npy", np.zeros((0, 5))),
        "a.npy: expected floats [N, 5] or [5], got [0, 5]",
    ),
    "integers": (
        (5,),
        lambda path: array_file(path / "a.npy", np.zeros((2, 5), np.uint8)),
        "a.npy: expected floats [N, 5], got uint8; convert it",
    ),
    "out of range": (
        (5,),
        lambda path: array_file(path / "a.npy", np.full((2, 5), 3.0)),
        "a.npy: the values must be finite and in [-1, 1], got [3, 3]; rescale them",
    ),
    "NaN": (
        (5,),
        lambda path: array_file(path / "a.npy", np.full((2, 5), np.nan)),
        "a.npy: the values must be finite and in [-1, 1], got [nan, nan]",
    ),
}


@pytest.mark.parametrize(("shape", "make", "message"), BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_other_targets_are_refused_in_one_line(tmp_path, shape, make, message):
    manifest = manifest_of(tmp_path, *shape)
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in")
    with pytest.raises(InputError) as error:
        load_images(path, manifest)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


BAD_ARRAYS = [
    ((5,), (5,), "images must be float32 [N, 5], got [5]; add a batch axis: images[None]"),
    ((5,), (2, 6), "got [2, 6]; the generator's outputs have the shape [5]"),
    ((5,), (2, 1, 5), "they need 2 axes and have 3"),
    ((1, 8), (3, 8), "add a channel axis: images[:, None]"),
    ((2, 8), (3, 8), "they need 3 axes and have 2"),
    ((1, 2, 2, 2), (3, 2, 2, 2), "add a channel axis: images[:, None]"),
]


@pytest.mark.parametrize(("shape", "got", "message"), BAD_ARRAYS)
def test_arrays_of_another_shape_are_refused(tmp_path, shape, got, message):
    with pytest.raises(InputError) as error:
        check_images(np.zeros(got, np.float32), manifest_of(tmp_path, *shape))
    assert message in str(error.value)


def test_only_pictures_are_written_as_pictures(tmp_path):
    for call in (
        lambda: save_images(np.zeros((2, 5), np.float32), tmp_path, (-1, 1)),
        lambda: save_grid(np.zeros((2, 5), np.float32), tmp_path / "a.png", (-1, 1)),
    ):
        with pytest.raises(InputError, match=r"pictures must be \[N, C, H, W\], got \[\d, 5\]"):
            call()


def test_numeric_columns_of_a_table_are_vectors(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet files need pyarrow")
    from pyarrow import parquet

    manifest = manifest_of(tmp_path, 3)
    path = tmp_path / "a.parquet"
    columns = {
        "a": pyarrow.array([0.5, -0.25]),
        "name": pyarrow.array(["x", "y"]),
        "b": pyarrow.array([0, 1]),
        "c": pyarrow.array([0.125, 1.0], pyarrow.float32()),
    }
    parquet.write_table(pyarrow.table(columns), path)
    found = load_images(path, manifest)
    np.testing.assert_array_equal(found, [[0.5, 0, 0.125], [-0.25, 1, 1]])
    del columns["b"]
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(InputError, match="expected 3 numeric columns, one per value of a target, "):
        load_images(path, manifest)
    columns["b"] = pyarrow.array([None, 1.0])
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(InputError, match=r"a.parquet: the values must be finite"):
        load_images(path, manifest)
    path.write_text("hello")
    with pytest.raises(InputError, match=r"a.parquet: not a readable Parquet file"):
        load_images(path, manifest)


def test_tables_need_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(DependencyError, match=r"needs pyarrow: pip install pyarrow"):
        load_images(tmp_path / "a.parquet", manifest_of(tmp_path, 3))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes pipes")
@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", "a.txt", "a-idx3-ubyte", "a.parquet"])
def test_pipes_and_devices_are_refused(bundle_path, tmp_path, name):
    manifest = Bundle.open(bundle_path).manifest
    path = tmp_path / name
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(path)
        with pytest.raises(InputError, match="a pipe or device"):
            load_images(path, manifest)
        with pytest.raises(InputError, match="a pipe or device"):
            read_array(path, "latents")
        with pytest.raises(InputError, match="a pipe or device"):
            open_source([path], manifest, fit="crop")
        path.unlink()
