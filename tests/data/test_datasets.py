"""Datasets: every format is read in order and exactly; every bad path gives a one-line error."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyinv.datasets import DATASET_FORMATS, Dataset, load_dataset, to_range
from pyinv.errors import InputError
from pyinv.images import load_images, to_uint8
from support.paths import REPOSITORY, SHARED

DATA = SHARED / "data"
MNIST, OMNIGLOT = DATA / "mnist", DATA / "omniglot"
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason="needs MNIST")
needs_omniglot = pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="needs Omniglot")

GRAY = (1, 6, 5)
DIGITS = (np.arange(3 * 6 * 5, dtype=np.uint8) * 2).reshape(3, 6, 5)
"""Three different gray images."""


def write_idx(path: Path, array: np.ndarray, *, magic: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    magic = 0x0800 | array.ndim if magic is None else magic
    data = struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def write_files(folder: Path, entries: dict[str, bytes]) -> Path:
    for name, data in entries.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def drawings(*characters: str, root: str = "") -> dict[str, bytes]:
    """Two drawings a character, given as "alphabet/character"; all of different gray."""
    return {
        f"{root}{character}/{index:04d}_{drawing:02d}.png": png(
            np.full((6, 5), 10 * index + drawing, np.uint8)
        )
        for index, character in enumerate(characters, 1)
        for drawing in (1, 2)
    }


def grays(dataset: Dataset) -> list[int]:
    """The first pixel of each image."""
    return [int(image.flat[0]) for image in dataset.images]


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder as MNIST comes, the training files packed and the test files not."""
    folder = tmp_path / "MNIST"
    write_idx(folder / "train-images-idx3-ubyte.gz", DIGITS)
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.array([7, 0, 3], np.uint8))
    write_idx(folder / "t10k-images-idx3-ubyte", DIGITS[::-1])
    return folder


@pytest.fixture
def omniglot(tmp_path: Path) -> Path:
    """A folder with two zips that share the alphabet Greek."""
    folder = tmp_path / "data"
    one, two = "images_background_small1", "images_background_small2"
    write_zip(
        folder / f"{one}.zip",
        {
            f"{one}/": b"",
            **drawings(
                "Greek/character02", "Greek/character10", "Korean/character01", root=f"{one}/"
            ),
            "__MACOSX/0001_01.png": b"no image",
            f"{one}/Greek/.DS_Store": b"no image",
            f"{one}/Greek/character02/._0001_01.png": b"no image",
        },
    )
    write_zip(
        folder / f"{two}.zip", drawings("Greek/character01", "Tagalog/character01", root=f"{two}/")
    )
    return folder


# IDX


def test_idx_folder_gives_both_splits(mnist):
    train = load_dataset(mnist, image_shape=GRAY)
    test = load_dataset(mnist, split="test", image_shape=GRAY)
    np.testing.assert_array_equal(train.images, DIGITS[:, None])
    np.testing.assert_array_equal(test.images, DIGITS[::-1, None])
    assert train.images.dtype == np.uint8
    assert train.images.flags.writeable  # PyTorch warns of arrays that are not
    assert (train.name, train.split, train.labels) == ("mnist", "train", ("7", "0", "3"))
    assert (test.name, test.split, test.labels) == ("mnist", "test", None)
    assert train.source == str(mnist / "train-images-idx3-ubyte.gz")
    assert len(train) == 3


def test_one_idx_file_is_the_split_that_its_name_says(mnist):
    train = load_dataset(mnist / "train-images-idx3-ubyte.gz", image_shape=GRAY)
    test = load_dataset(mnist / "t10k-images-idx3-ubyte", split="test", image_shape=GRAY)
    assert (train.name, train.labels) == ("mnist", ("7", "0", "3"))
    np.testing.assert_array_equal(test.images, DIGITS[::-1, None])


def test_idx_file_of_any_name_is_a_training_set(tmp_path):
    path = write_idx(tmp_path / "Letters" / "drawn.bin", DIGITS)
    assert load_dataset(path, image_shape=GRAY).name == "letters"


def test_idx_files_packed_and_unpacked_are_one_set(mnist):
    write_idx(mnist / "train-images-idx3-ubyte", DIGITS)
    dataset = load_dataset(mnist, image_shape=GRAY)
    assert dataset.source == str(mnist / "train-images-idx3-ubyte")
    assert dataset.labels == ("7", "0", "3")


@pytest.mark.parametrize(
    "name", ["emnist-letters-train-images-idx3-ubyte.gz", "train-images.idx3-ubyte"]
)
def test_other_spellings_of_idx_names_are_known(tmp_path, name):
    write_idx(tmp_path / name, DIGITS)
    labels = name.replace("images", "labels").replace("idx3", "idx1")
    write_idx(tmp_path / labels, np.array([1, 2, 3], np.uint8))
    assert load_dataset(tmp_path, image_shape=GRAY).labels == ("1", "2", "3")


# Omniglot


def test_omniglot_zip_is_read_in_natural_order_without_what_macos_adds(omniglot):
    dataset = load_dataset(omniglot / "images_background_small1.zip", image_shape=GRAY)
    assert dataset.name == "omniglot"
    assert grays(dataset) == [11, 12, 21, 22, 31, 32]
    assert dataset.labels == (
        *("Greek/character02",) * 2,
        *("Greek/character10",) * 2,
        *("Korean/character01",) * 2,
    )


def test_omniglot_test_images_are_of_unseen_alphabets(omniglot):
    train = load_dataset(omniglot, image_shape=GRAY)
    test = load_dataset(omniglot, split="test", image_shape=GRAY)
    assert grays(train) == [11, 12, 21, 22, 31, 32]
    assert test.labels == ("Tagalog/character01",) * 2
    assert grays(test) == [21, 22]
    assert test.source == f"{omniglot / 'images_background_small2.zip'} without Greek"


def test_whole_omniglot_comes_before_the_small_one(omniglot):
    whole = ("images_background", "images_evaluation")
    write_zip(omniglot / f"{whole[0]}.zip", drawings("Latin/character01"))
    assert len(load_dataset(omniglot, image_shape=GRAY)) == 6  # not without its other half
    write_files(omniglot / whole[1], drawings("Tengwar/character01"))  # unpacked
    assert load_dataset(omniglot, image_shape=GRAY).labels == ("Latin/character01",) * 2
    test = load_dataset(omniglot, split="test", image_shape=GRAY)
    assert test.labels == ("Tengwar/character01",) * 2


def test_images_evaluation_alone_is_a_test_set(tmp_path):
    path = write_zip(tmp_path / "images_evaluation.zip", drawings("Tengwar/character01"))
    assert len(load_dataset(path, split="test", image_shape=GRAY)) == 2


def test_unpacked_omniglot_is_the_same(omniglot, tmp_path):
    packed = omniglot / "images_background_small1.zip"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    one = load_dataset(packed, image_shape=GRAY)
    other = load_dataset(tmp_path / "unpacked", image_shape=GRAY)
    np.testing.assert_array_equal(one.images, other.images)
    assert one.labels == other.labels
    assert other.name == "omniglot"


def test_zip_is_read_where_it_lies(omniglot):
    before = sorted(omniglot.rglob("*"))
    load_dataset(omniglot, image_shape=GRAY)
    assert sorted(omniglot.rglob("*")) == before


# Image files


def test_folder_of_images_in_natural_order(tmp_path):
    names = ("10.png", "2.png", "a/1.png", ".hidden/0.png", "._3.png", "notes.txt")
    write_files(
        tmp_path / "Faces",
        {name: png(np.full((6, 5), index, np.uint8)) for index, name in enumerate(names)},
    )
    dataset = load_dataset(tmp_path / "Faces", image_shape=GRAY)
    assert grays(dataset) == [1, 0, 2]
    assert (dataset.name, dataset.labels) == ("faces", None)  # two of them lie in no folder


def test_names_that_differ_in_case_alone_keep_one_order(tmp_path):
    entries = {name: png(np.full((6, 5), ord(name[0]), np.uint8)) for name in ("b.png", "B.png")}
    one = write_zip(tmp_path / "one.zip", entries)
    other = write_zip(tmp_path / "other.zip", dict(reversed(entries.items())))
    assert grays(load_dataset(one, image_shape=GRAY)) == [ord("B"), ord("b")]
    assert grays(load_dataset(other, image_shape=GRAY)) == [ord("B"), ord("b")]


def test_folders_are_labels(tmp_path):
    image = png(DIGITS[0])
    write_files(tmp_path, {"cats/1.png": image, "dogs/1.png": image})
    assert load_dataset(tmp_path, image_shape=GRAY).labels == ("cats", "dogs")


def test_folders_train_and_test_are_the_splits(tmp_path):
    root = tmp_path / "Shapes"
    write_files(root, {"train/square/1.png": png(DIGITS[0]), "test/disc/1.png": png(DIGITS[1])})
    write_files(root, {"._1.png": b"macOS"})
    train = load_dataset(root, image_shape=GRAY)
    test = load_dataset(root, split="test", image_shape=GRAY)
    assert (train.name, train.labels) == ("shapes", ("square",))
    assert (test.name, test.labels) == ("shapes", ("disc",))
    np.testing.assert_array_equal(test.images[0, 0], DIGITS[1])


def test_a_zip_with_train_and_test_holds_both_splits(tmp_path):
    entries = {"train/square/1.png": png(DIGITS[0]), "test/disc/1.png": png(DIGITS[1])}
    path = write_zip(tmp_path / "Shapes.zip", {**entries, "val/disc/1.png": png(DIGITS[2])})
    train = load_dataset(path, image_shape=GRAY)
    test = load_dataset(path, split="test", image_shape=GRAY)
    assert (train.name, train.labels) == ("shapes", ("square",))
    assert (test.name, test.labels) == ("shapes", ("disc",))
    np.testing.assert_array_equal(test.images[0, 0], DIGITS[1])


def test_a_zip_with_other_folders_beside_train_and_test_is_one_set(tmp_path):
    names = ("train/1.png", "test/1.png", "bus/1.png")
    path = write_zip(tmp_path / "vehicles.zip", {name: png(DIGITS[0]) for name in names})
    assert load_dataset(path, image_shape=GRAY).labels == ("bus", "test", "train")


def test_zip_entries_with_untidy_names_are_read(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"./x//1.png": png(DIGITS[0])})
    assert load_dataset(path, image_shape=GRAY).labels == ("x",)


# NumPy files


@pytest.mark.parametrize(
    "array",
    [
        DIGITS,
        DIGITS[:, None],
        DIGITS[..., None],
        (DIGITS / 255).astype(np.float32),
        (DIGITS / 127.5 - 1).astype(np.float16),
        (DIGITS / 127.5 - 1)[:, None],
    ],
    ids=["NHW", "NCHW", "NHWC", "unit float32", "symmetric float16", "symmetric float64"],
)
def test_npy_file_in_every_layout_and_type(tmp_path, array):
    np.save(tmp_path / "digits.npy", array)
    dataset = load_dataset(tmp_path / "digits.npy", image_shape=GRAY)
    np.testing.assert_array_equal(dataset.images, DIGITS[:, None])
    assert (dataset.name, dataset.labels) == ("digits", None)


@pytest.mark.parametrize("names", ["{split}_images {split}_labels", "{kind}_{split}"])
def test_npz_file_with_both_splits(tmp_path, names):
    def name(split: str, kind: str) -> str:
        keras = f"{'x' if kind == 'images' else 'y'}_{split}"
        return keras if "kind" in names else f"{split}_{kind}"

    path = tmp_path / "d.npz"
    arrays = {
        name("train", "images"): DIGITS,
        name("train", "labels"): np.array(["a", "b", "c"]),
        name("test", "images"): DIGITS[:1],
        name("test", "labels"): np.array([[5]]),  # a column, as Keras has it
    }
    np.savez(path, **arrays)
    assert load_dataset(path, image_shape=GRAY).labels == ("a", "b", "c")
    test = load_dataset(path, split="test", image_shape=GRAY)
    assert test.labels == ("5",)
    np.testing.assert_array_equal(test.images, DIGITS[:1, None])


def test_shipped_digits_come_back_to_the_bit():
    path = REPOSITORY / "pyinv" / "data" / "digits.npz"
    dataset = load_dataset(path, image_shape=(1, 16, 16))
    with np.load(path) as file:
        expected = to_uint8(file["images"], (-1, 1)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(dataset.images, expected)
        assert dataset.labels == tuple(str(label) for label in file["labels"])


# Sizes and channels


def test_images_are_resized_and_not_padded(tmp_path):
    ramp = np.tile(np.arange(0, 224, 8, dtype=np.uint8), (28, 1))
    write_idx(tmp_path / "train-images-idx3-ubyte", ramp[None].repeat(600, axis=0))
    images = load_dataset(tmp_path, image_shape=(1, 32, 32)).images
    expected = Image.fromarray(ramp.astype(np.float32)).resize((32, 32), Image.Resampling.BICUBIC)
    assert images.shape == (600, 1, 32, 32)
    for image in images[[0, 255, 256, 599]]:  # on both sides of where one batch ends
        np.testing.assert_allclose(image[0], np.clip(expected, 0, 255), atol=0.501)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_datasets_and_targets_are_resized_alike(tmp_path, bundle, fit, channels):
    """What a generator trained on is what load_images makes of the same files."""
    from dataclasses import replace

    photo = np.random.default_rng(0).integers(0, 256, (50, 37, 3), dtype=np.uint8)
    write_files(tmp_path, {"photo.png": png(photo)})
    shape = (channels, 8, 8)
    dataset = load_dataset(tmp_path, image_shape=shape, fit=fit)
    targets = load_images(tmp_path, replace(bundle.manifest, image_shape=shape), fit=fit)
    np.testing.assert_array_equal(
        dataset.images, to_uint8(targets, bundle.manifest.value_range).transpose(0, 3, 1, 2)
    )


def test_gray_fills_colour_and_colour_becomes_luma(tmp_path):
    colour = np.zeros((2, 6, 5, 3), np.uint8)
    colour[..., 0] = 255
    np.save(tmp_path / "red.npy", colour)
    np.save(tmp_path / "gray.npy", DIGITS)
    gray = load_dataset(tmp_path / "red.npy", image_shape=GRAY).images
    np.testing.assert_array_equal(gray, np.full((2, 1, 6, 5), 76))  # 0.299 * 255
    filled = load_dataset(tmp_path / "gray.npy", image_shape=(3, 6, 5)).images
    np.testing.assert_array_equal(filled, np.repeat(DIGITS[:, None], 3, axis=1))


def test_one_bit_drawings_are_black_and_white(tmp_path):
    bits = np.array([[0, 1], [1, 0]], dtype=bool)
    write_files(tmp_path, {"a/b/c.png": png(bits)})
    images = load_dataset(tmp_path, image_shape=(1, 2, 2)).images
    np.testing.assert_array_equal(images[0, 0], bits * 255)


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1), (0, 255)])
def test_to_range_is_exact_at_both_ends_and_undone_by_to_uint8(value_range):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    scaled = to_range(levels, value_range)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == value_range
    np.testing.assert_array_equal(to_uint8(scaled, value_range).transpose(0, 3, 1, 2), levels)


# Real files


@needs_mnist
def test_mnist():
    test = load_dataset(MNIST, split="test", image_shape=(1, 28, 28))
    assert test.images.shape == (10_000, 1, 28, 28)
    assert test.labels is not None
    assert test.labels[:5] == ("7", "2", "1", "0", "4")  # as printed wherever MNIST is shown
    assert test.images.mean() / 255 == pytest.approx(0.1325, abs=1e-4)


@needs_mnist
def test_mnist_training_images_at_another_size():
    train = load_dataset(MNIST, image_shape=(1, 32, 32))
    assert train.images.shape == (60_000, 1, 32, 32)
    assert train.labels is not None
    assert train.labels[:5] == ("5", "0", "4", "1", "9")
    assert train.images.mean() / 255 == pytest.approx(0.1307, abs=2e-3)  # resizing keeps the ink


@needs_omniglot
def test_omniglot():
    train = load_dataset(OMNIGLOT, image_shape=(1, 28, 28))
    assert train.images.shape == (2_720, 1, 28, 28)
    assert train.labels is not None
    assert len(set(train.labels)) == 136
    assert train.labels[0] == "Balinese/character01"
    assert train.images.mean() > 200  # black on white
    test = load_dataset(OMNIGLOT, split="test", image_shape=(1, 28, 28))
    assert test.labels is not None
    assert {label.split("/")[0] for label in test.labels} == {
        "Japanese_(katakana)",
        "Sanskrit",
        "Tagalog",
    }


# Bad input


def nothing(folder: Path) -> Path:
    return folder


def idx(name: str = "train-images-idx3-ubyte", **options: Any) -> Callable[[Path], Path]:
    return lambda folder: write_idx(folder / name, DIGITS, **options)


def cut(make: Callable[[Path], Path], count: int, *, whole_folder: bool = False) -> Any:
    """The same file without its last bytes."""

    def damage(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[:-count])
        return folder if whole_folder else path

    return damage


def more(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """The same file with one byte behind it."""

    def damage(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes() + b"0")
        return path

    return damage


def flipped(make: Callable[[Path], Path], at: int) -> Callable[[Path], Path]:
    """The same file with one byte changed."""

    def damage(folder: Path) -> Path:
        path = make(folder)
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(data)
        return path

    return damage


def with_labels(count: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_idx(folder / "train-images-idx3-ubyte", DIGITS)
        write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(count, np.uint8))
        return folder

    return make


def files(*names: str, data: bytes | None = None) -> Callable[[Path], Path]:
    image = png(DIGITS[0]) if data is None else data
    return lambda folder: write_files(folder, dict.fromkeys(names, image))


def zipped(entries: dict[str, bytes], name: str = "a.zip") -> Callable[[Path], Path]:
    return lambda folder: write_zip(folder / name, entries)


def zips(**entries: Iterable[str]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name, characters in entries.items():
            write_zip(folder / f"{name}.zip", drawings(*characters))
        return folder

    return make


def array(value: Any, name: str = "a.npy") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / name, value)
        return folder / name

    return make


def arrays(**values: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "a.npz", **values)
        return folder / "a.npz"

    return make


def each(*makes: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for one in makes:
            one(folder)
        return folder

    return make


TEST = {"split": "test"}
OMNIGLOT_PNG = "Greek/character01/0001_01.png"
BAD: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    # the path
    "missing": (lambda folder: folder / "none", {}, "no such file or folder; expected a folder"),
    "name too long": (lambda folder: folder / ("x" * 300), {}, "cannot be read"),
    "empty folder": (nothing, {}, "no images in it, found nothing; expected a folder of IDX"),
    "folder of other files": (files("a.txt", "b.csv"), {}, "found a.txt, b.csv; expected"),
    "folder of other files, test": (files("a.txt"), TEST, "no images in it, found a.txt"),
    "another format": (
        lambda folder: files("a.csv", data=b"1,2,3")(folder) / "a.csv",
        {},
        "begin with 00000803, got 312c322c",
    ),
    "empty file": (lambda folder: files("a", data=b"")(folder) / "a", {}, "got nothing"),
    "one image": (
        lambda folder: files("a.png")(folder) / "a.png",
        {},
        "an image is not a dataset; give the folder",
    ),
    # IDX
    "IDX labels as images": (
        lambda folder: write_idx(folder / "train-labels-idx1-ubyte", np.zeros(9, np.uint8)),
        {},
        "begin with 00000803, got 00000801",
    ),
    "IDX of floats": (idx(magic=0x0D03), {}, "got 00000d03"),
    "IDX cut": (cut(idx(), 1), {}, r"header for \[3, 6, 5\], 90 bytes, followed by 89 bytes"),
    "IDX with more": (more(idx()), {}, r"\[3, 6, 5\], 90 bytes, followed by more bytes"),
    "IDX header cut": (cut(idx(), 92), {}, "begin with 00000803"),
    "IDX without images": (
        lambda folder: write_idx(folder / "a", np.zeros((0, 6, 5), np.uint8)),
        {},
        "an IDX file without images",
    ),
    "gzip cut": (cut(idx("a.gz"), 9), {}, "not a readable IDX file, or truncated"),
    "gzip damaged": (flipped(idx("a.gz"), 14), {}, "not a readable IDX file, or truncated"),
    "gzip with a wrong checksum": (flipped(idx("a.gz"), -8), {}, "CRC"),
    "damaged gzip in a folder": (
        cut(idx("train-images-idx3-ubyte.gz"), 9, whole_folder=True),
        {},
        "train-images-idx3-ubyte.gz: not a readable IDX file",
    ),
    "too few labels": (with_labels(2), {}, "2 labels for the 3 images in train-images-idx3-ubyte"),
    "no labels": (with_labels(0), {}, "an IDX file without labels"),
    "no IDX test images": (
        lambda folder: idx()(folder).parent,
        TEST,
        "no test split, only train-images-idx3-ubyte; add t10k-images-idx3-ubyte",
    ),
    "two IDX sets": (
        each(
            idx("emnist-digits-train-images-idx3-ubyte"),
            idx("emnist-mnist-train-images-idx3-ubyte.gz"),
        ),
        {},
        "expected one set of train images, found emnist-digits.*; name the file",
    ),
    "training file for a test": (idx(), TEST, "one set of training images and has no test split"),
    "test file for training": (
        idx("t10k-images-idx3-ubyte"),
        {},
        "one set of test images and has no train split",
    ),
    # zips and image files
    "no zip": (lambda folder: files("a.zip")(folder) / "a.zip", {}, "not a readable zip"),
    "zip cut": (cut(zipped(drawings("Greek/character01")), 30), {}, "not a readable zip"),
    "empty zip": (zipped({}), {}, "no images in it, found nothing"),
    "zip of other files": (zipped({"a.txt": b""}), {}, "no images in it, found a.txt"),
    "zip with a damaged entry": (
        flipped(zipped({OMNIGLOT_PNG: png(DIGITS[0])}), 80),
        {},
        f"{OMNIGLOT_PNG}: not a readable part of the zip, or truncated",
    ),
    "zip with a damaged image": (
        zipped({OMNIGLOT_PNG: png(DIGITS[0])[:-30]}),
        {},
        f"a.zip/{OMNIGLOT_PNG}: not a readable image, or truncated",
    ),
    "damaged image": (files("a/b.png", data=b"\x89PNG"), {}, "a/b.png: not a readable image"),
    "zip for a test": (
        zipped(drawings("Greek/character01")),
        TEST,
        "no test split; give a folder with both IDX files, both Omniglot zips",
    ),
    "images for a test": (files("a.png", "b.png"), TEST, "has no test split"),
    "images_evaluation for training": (
        zipped(drawings("Greek/character01"), "images_evaluation.zip"),
        {},
        "one set of test images",
    ),
    "half of Omniglot": (
        zips(images_background=["Greek/character01"]),
        TEST,
        "no test split; add images_evaluation.zip",
    ),
    "other half of Omniglot": (
        zips(images_background_small2=["Greek/character01"]),
        {},
        "no train split; add images_background_small1.zip",
    ),
    "no unseen alphabet": (
        zips(images_background=["Greek/character01"], images_evaluation=["Greek/character02"]),
        TEST,
        "all of its alphabets are among the training images",
    ),
    "Omniglot without alphabets": (
        each(
            zips(images_background=["Greek/character01"]),
            zipped({"1.png": png(DIGITS[0])}, "images_evaluation.zip"),
        ),
        TEST,
        "expected alphabet/character/drawing.png, found 1.png",
    ),
    # mixed
    "IDX and Omniglot": (
        each(idx(), zips(images_background_small1=["Greek/character01"])),
        {},
        "holds IDX files and .*images_background_small1.zip, which are two datasets; name one",
    ),
    "images beside train": (files("train/1.png", "2.png"), {}, "holds 2.png beside train"),
    "a class called train": (files("train/1.png", "bus/2.png"), {}, "holds bus beside train"),
    # NumPy
    "npy cut": (cut(array(DIGITS), 1), {}, "not a readable .npy file, or truncated"),
    "npy of objects": (array(np.array([{}, None])), {}, "no numeric array in it"),
    "npz cut": (cut(arrays(images=DIGITS), 30), {}, "not a readable .npz file, or truncated"),
    "npz damaged": (flipped(arrays(images=DIGITS), 200), {}, "not a readable .npz file"),
    "npy for a test": (array(DIGITS), TEST, "no test split; .* a .npz file with train_images"),
    "npz for a test": (
        arrays(train_images=DIGITS),
        TEST,
        "no test images; expected images or test_images, found train_images",
    ),
    "npz of other arrays": (
        arrays(a=DIGITS, b=DIGITS),
        {},
        "expected images or train_images, found a, b",
    ),
    "npz of nothing": (arrays(), {}, "found nothing"),
    "npz labels": (
        arrays(images=DIGITS, labels=np.zeros(2)),
        {},
        r"one label per image, \[3\], got \[2\]",
    ),
    "empty array": (array(DIGITS[:0]), {}, r"got \[0, 6, 5\], which is empty"),
    "one row of pixels": (array(DIGITS[0, 0]), {}, r"expected images \[N, C, H, W\].*got \[5\]"),
    "one colour image": (array(np.zeros((8, 8, 3), np.uint8)), {}, r"got \[8, 8, 3\]"),
    "seven channels": (array(np.zeros((2, 7, 8, 8), np.uint8)), {}, "C is 1, 3 or 4"),
    "either layout": (array(np.zeros((2, 3, 8, 3), np.uint8)), {}, "which could be either"),
    "whole numbers": (array(DIGITS.astype(np.int64)), {}, "expected uint8 .* got int64; convert"),
    "floats 0 to 255": (array(DIGITS.astype(float)), {}, r"got \[0, 178\]; rescale them"),
    "NaN": (array(np.full((2, 6, 5), np.nan)), {}, r"got \[nan, nan\]"),
    # arguments
    "split": (idx(), {"split": "valid"}, "split must be one of train, test; got 'valid'"),
    "fit": (idx(), {"fit": "pad"}, "fit must be one of crop, stretch; got 'pad'"),
    "no shape": (idx(), {"image_shape": None}, "image_shape must be .channels, height, width."),
    "a size": (idx(), {"image_shape": 28}, "got 28; MNIST is"),
    "two sizes": (idx(), {"image_shape": (28, 28)}, "image_shape must be"),
    "no height": (idx(), {"image_shape": (1, 0, 28)}, "sizes from 1"),
    "two channels": (idx(), {"image_shape": (2, 28, 28)}, "1, 3 or 4 channels"),
    "half a pixel": (idx(), {"image_shape": (1, 28.0, 28)}, "image_shape must be"),
    "too large": (idx(), {"image_shape": (1, 2**24, 2**24)}, "do not fit into memory"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(tmp_path, case):
    make, options, expected = BAD[case]
    path = make(tmp_path)
    with pytest.raises(InputError, match=expected) as caught:
        load_dataset(path, **{"image_shape": GRAY, **options})
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_unreadable_folder_is_told_in_one_line(tmp_path, monkeypatch):
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        load_dataset(tmp_path, image_shape=GRAY)


def test_zip_with_a_password_is_told_in_one_line(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(DIGITS[0])})
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[6] |= 1  # the flag of an encrypted entry, in both of its headers
    data[central + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"a.png: not a readable part of the zip.*password required"
    ):
        load_dataset(path, image_shape=GRAY)


@pytest.mark.parametrize(
    ("images", "value_range", "expected"),
    [
        (np.zeros((2, 2)), (0, 1), "images must be uint8, got float64"),
        ("abc", (0, 1), "images must be uint8"),
        (DIGITS, (1, 0), r"value_range must be \(low, high\)"),
        (DIGITS, None, "value_range must be"),
        (DIGITS, (0, float("inf")), "value_range must be"),
    ],
)
def test_to_range_refuses(images, value_range, expected):
    with pytest.raises(InputError, match=expected):
        to_range(images, value_range)


def test_formats_are_named_for_help_texts():
    assert "\n" not in DATASET_FORMATS
    for word in ("IDX", "Omniglot", ".npz", "train_images", "folder of image files"):
        assert word in DATASET_FORMATS


def test_links_to_files_are_followed(tmp_path):
    target = write_files(tmp_path / "there", {"a.png": png(DIGITS[0])})
    (tmp_path / "here").mkdir()
    os.symlink(target / "a.png", tmp_path / "here" / "a.png")
    os.symlink(target / "gone.png", tmp_path / "here" / "b.png")
    assert len(load_dataset(tmp_path / "here", image_shape=GRAY)) == 1


@pytest.mark.parametrize("other", ["val", "valid", "validation"])
def test_validation_images_may_lie_beside_a_lone_train(tmp_path, other):
    write_files(tmp_path, {"train/1.png": png(DIGITS[0]), f"{other}/2.png": png(DIGITS[1])})
    assert load_dataset(tmp_path, image_shape=GRAY).images.tolist() == [[DIGITS[0].tolist()]]


@pytest.mark.parametrize(("low", "error"), [(0, 1e-9), (0, 1e-5), (-1, 1e-5)])
def test_floats_may_be_rounded_across_their_range(tmp_path, low, error):
    unit = DIGITS.astype(np.float64) / 255
    unit.flat[0], unit.flat[-1] = -error, 1 + error
    np.save(tmp_path / "a.npy", unit * (1 - low) + low)
    expected = DIGITS.copy()
    expected.flat[-1] = 255
    found = load_dataset(tmp_path / "a.npy", image_shape=GRAY).images
    np.testing.assert_array_equal(found[:, 0], expected)
    found[:] = 0  # the caller's own, and not the file's
