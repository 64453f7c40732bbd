"""Datasets: images to train on and to invert, read from files in their original formats.

``load_dataset`` reads one split as uint8 [N, C, H, W] at the requested size; ``to_range`` scales it
to a generator's value range. Nothing is unpacked to disk or downloaded.
"""

from __future__ import annotations

import io
import math
import operator
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pyinv.array_files import opened
from pyinv.errors import InputError, one_line, reading
from pyinv.gzip_files import opened_gzip
from pyinv.images import (
    FILE_CHANNELS,
    IMAGE_SUFFIXES,
    RANGE_SLACK,
    check_fit,
    check_value_range,
    convert_pixels,
    image_names,
    read_pixels,
    resize_pixels,
    to_pillow,
)
from pyinv.size_limits import check_bytes
from pyinv.validation import as_numpy, shape_text

__all__ = ["DATASET_FORMATS", "SPLITS", "Dataset", "load_dataset", "to_range"]

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]  # channels, height, width
PathLike = str | os.PathLike[str]

SPLITS = ("train", "test")

DATASET_FORMATS = """\
a folder of IDX files (MNIST: train-images-idx3-ubyte and t10k-images-idx3-ubyte, .gz or not), or \
one such file; an Omniglot zip or its folder (alphabet/character/drawing.png), or a folder with \
both (images_background and images_evaluation, or images_background_small1 and _small2); a folder \
of image files, or one with the folders train and test, also as one zip; a .npy or .npz file \
(images, or train_images and test_images)"""
"""The formats that ``load_dataset`` reads, for help texts."""

EXPECTED = (
    "expected a folder of IDX files, of Omniglot zips or of images, or one IDX, .zip, .npy or "
    ".npz file"
)

# Names of training and test images that lie side by side, as zips or folders.
PAIRS = (
    ("images_background", "images_evaluation"),
    ("images_background_small1", "images_background_small2"),
    ("train", "test"),
)
VALIDATION = ("val", "valid", "validation")  # allowed beside train and test, but never read
IDX_IMAGES = re.compile(r"(?P<set>.*?)-?images[-.]idx3-ubyte(\.gz)?", re.IGNORECASE)
IDX_SPLITS = {"train": "train", "t10k": "test", "test": "test"}
NPZ_NAMES = {"train": ("train_images", "x_train"), "test": ("test_images", "x_test")}
NPZ_LABELS = {"train": ("train_labels", "y_train"), "test": ("test_labels", "y_test")}
CHUNK = 256  # images resized at a time: fast, and only a few megabytes
IDX_UBYTE = 0x08  # the element type of all images and labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a dataset.

    Attributes:
        name: "omniglot" for Omniglot's files, otherwise the name of the folder or file in lower
            case, such as "mnist".
        images: uint8 [N, C, H, W], N >= 1, in the order of the files.
        labels: one per image, such as "7" or "Balinese/character01"; None if unknown.
        split: "train" or "test".
        source: the files that the images came from.
    """

    name: str
    images: Pixels
    labels: tuple[str, ...] | None
    split: str
    source: str

    def __len__(self) -> int:
        return len(self.images)


def load_dataset(
    path: PathLike,
    *,
    split: str = "train",
    image_shape: Sequence[int],
    fit: str = "crop",
) -> Dataset:
    """Read one split of a dataset, with all images converted to one shape.

    Args:
        path: one of

            - a folder with IDX files, as MNIST is distributed: ``train-images-idx3-ubyte`` and
              ``t10k-images-idx3-ubyte``, and the label files if they exist, all with or without
              ``.gz``; or one of the image files;
            - an Omniglot zip, or its unpacked folder: ``alphabet/character/drawing.png``;
            - a folder with two of them, as zips or unpacked: ``images_background`` (train) and
              ``images_evaluation`` (test), or else ``images_background_small1`` and ``_small2``.
              The test split has only alphabets that are not among the training images;
            - a folder of image files, searched recursively in natural order, or one with the
              folders (or zips) ``train`` and ``test``; or one zip of either. An image's label is
              the path of its folder, at most two levels;
            - a .npy file, or a .npz file with ``images`` (and ``labels``), or with ``train_images``
              and ``test_images`` (or ``x_train`` and ``x_test``). uint8, or floating point in
              [0, 1] or [-1, 1]. [N, C, H, W], [N, H, W, C] or, for gray images, [N, H, W].
        split: "train" or "test". A single file or folder of images is a training set, unless its
            name says that it is a test set (``t10k-…``, ``images_evaluation``).
        image_shape: (C, H, W) of the result; C is 1, 3 or 4. Images of another size are resized
            (antialiased bicubic, never padded). Colour is converted to gray (Rec. 601), gray is
            repeated for colour, and transparent images are composited on white.
        fit: how to resize images with another aspect ratio: "crop" keeps the centre, "stretch"
            keeps the whole image.

    Returns:
        the split, in the same order on every machine.

    Raises:
        InputError: the path is missing, damaged, of an unknown format or ambiguous; the split does
            not exist; a wrong argument.
    """
    shape = _check_shape(image_shape)
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    check_fit(fit)
    root = Path(path)
    try:
        if root.is_dir():
            return _load_folder(root, split, shape, fit)
        if not root.exists():
            raise InputError(f"{root}: no such file or folder; {EXPECTED}")
        return _load_file(root, split, shape, fit)
    except MemoryError:
        raise InputError(
            f"{root}: its images do not fit into memory as uint8 [N, {shape_text(shape)}]; "
            "choose a smaller image_shape"
        ) from None
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({one_line(error)})") from None


def to_range(images: Any, value_range: tuple[float, float]) -> NDArray[np.float32]:
    """Scale uint8 images to a value range.

    Args:
        images: uint8, any shape.
        value_range: (low, high), the values of 0 and 255, such as (0, 1) or (-1, 1).

    Returns:
        float32 of the same shape: ``low + (high - low) * images / 255``, exact at both ends.

    Raises:
        InputError: images of another dtype, or an invalid range.
    """
    array = as_numpy(images, "images", "uint8")
    if array.dtype != np.uint8:
        raise InputError(
            f"images must be uint8, got {array.dtype}; only 0-255 pixels have a known range"
        )
    low, high = check_value_range(value_range)
    # Looking up the 256 possible values makes no intermediate copies.
    levels = low + (high - low) * (np.arange(256) / 255)
    scaled: NDArray[np.float32] = levels.astype(np.float32)[array]
    return scaled


def _check_shape(image_shape: Sequence[int]) -> Shape:
    try:
        sizes = tuple(operator.index(size) for size in image_shape)
    except TypeError:
        sizes = ()
    if len(sizes) != 3 or min(sizes) < 1 or sizes[0] not in FILE_CHANNELS:
        raise InputError(
            "image_shape must be (channels, height, width), with 1, 3 or 4 channels and sizes from "
            f"1, got {image_shape!r}; MNIST is (1, 28, 28)"
        )
    return sizes[0], sizes[1], sizes[2]


def _load_folder(root: Path, split: str, shape: Shape, fit: str) -> Dataset:
    idx_files = sorted(file for file in root.iterdir() if IDX_IMAGES.fullmatch(file.name))
    pairs = [pair for pair in PAIRS if any(_part(root, name) for name in pair)]
    if idx_files and pairs:
        raise InputError(
            f"{root}: holds IDX files and {_part(root, pairs[0][0]) or _part(root, pairs[0][1])}, "
            "which are two datasets; name one of them"
        )
    if idx_files:
        return _load_idx(_choose_idx(root, idx_files, split), _name(root), split, shape, fit)
    if pairs:
        return _load_pair(root, pairs, split, shape, fit)
    return _load_lone_tree(root, split, shape, fit)


def _load_file(path: Path, split: str, shape: Shape, fit: str) -> Dataset:
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _load_arrays(path, split, shape, fit)
    if suffix in IMAGE_SUFFIXES:
        raise InputError(f"{path}: an image is not a dataset; give the folder that contains it")
    if suffix == ".zip":
        return _load_zip(path, split, shape, fit)
    _refuse_unless(split, _set_of(path), path)
    return _load_idx(path, _name(path.absolute().parent), split, shape, fit)


def _set_of(path: Path) -> str:
    """Return which split a single set is, by its name; "train" by default."""
    if IDX_IMAGES.fullmatch(path.name):
        return _idx_split(path)
    return "test" if path.name.startswith("images_evaluation") else "train"


def _refuse_unless(split: str, held: str, path: Path) -> None:
    if split == held:
        return
    what = "training" if held == "train" else "test"
    raise InputError(
        f"{path}: this is one set of {what} images and has no {split} split; give a folder with "
        "both IDX files, both Omniglot zips or the folders train and test, or a .npz file with "
        "train_images and test_images"
    )


def _name(path: Path) -> str:
    name = path.resolve().name if path.name in ("", "..") else path.name
    for suffix in (".gz", ".zip", ".npy", ".npz"):
        name = name.removesuffix(suffix)
    return name.lower()


# IDX: the format of MNIST's files (Y. LeCun, C. Cortes and C. Burges, "The MNIST database of
# handwritten digits"). Big-endian: two zero bytes, the element type, the number of axes; one uint32
# per axis; the elements.


def _idx_split(file: Path) -> str:
    match = IDX_IMAGES.fullmatch(file.name)
    word = match["set"].lower().rpartition("-")[2] if match else ""
    return IDX_SPLITS.get(word, "train")


def _choose_idx(root: Path, files: list[Path], split: str) -> Path:
    chosen = [file for file in files if _idx_split(file) == split]
    # Prefer the unpacked file if both exist, as torchvision leaves them.
    plain = {file.name.removesuffix(".gz"): file for file in reversed(chosen)}
    if len(plain) > 1:
        raise InputError(
            f"{root}: expected one set of {split} images, found {', '.join(sorted(plain))}; "
            "name the file"
        )
    if not plain:
        missing = "train-images-idx3-ubyte" if split == "train" else "t10k-images-idx3-ubyte"
        raise InputError(
            f"{root}: no {split} split, only {', '.join(file.name for file in files)}; "
            f"add {missing} or {missing}.gz"
        )
    return next(iter(plain.values()))


def _load_idx(path: Path, name: str, split: str, shape: Shape, fit: str) -> Dataset:
    images = _read_idx(path, 3, "images")
    labels = None
    labels_path = _idx_labels(path)
    if labels_path is not None:
        numbers = _read_idx(labels_path, 1, "labels")
        if len(numbers) != len(images):
            raise InputError(
                f"{labels_path}: {len(numbers)} labels for the {len(images)} images in "
                f"{path.name}; the two files do not belong together"
            )
        labels = tuple(str(number) for number in numbers.tolist())
    return Dataset(name, _fit_all(images[..., None], shape, fit), labels, split, str(path))


def _idx_labels(images_path: Path) -> Path | None:
    name = images_path.name.removesuffix(".gz")
    plain = re.sub("images([-.])idx3", r"labels\1idx1", name, flags=re.IGNORECASE)
    if plain == name:
        return None
    beside = (images_path.with_name(plain), images_path.with_name(plain + ".gz"))
    return next((file for file in beside if file.is_file()), None)


def _read_idx(path: Path, axes: int, what: str) -> Pixels:
    size = 4 + 4 * axes
    magic = bytes((0, 0, IDX_UBYTE, axes))
    with reading(path, "IDX file", "download it again"), opened_gzip(path) as stream:
        header = stream.read(size)
        if len(header) < size or header[:4] != magic:
            raise InputError(
                f"{path}: not an IDX file of {what}: expected it to begin with {magic.hex()}, got "
                f"{header[:4].hex() or 'nothing'}; {EXPECTED}"
            )
        sizes = tuple(int(size) for size in np.frombuffer(header, ">u4", axes, 4))
        expected = math.prod(sizes)
        check_bytes(str(path), expected, path.stat().st_size)
        data = stream.read(expected)
        got = len(data) + len(stream.read(1))
    if got != expected:
        more = "more" if got > expected else str(got)
        raise InputError(
            f"{path}: an IDX header for [{shape_text(sizes)}], {expected} bytes, followed by "
            f"{more} bytes; download it again"
        )
    if expected == 0:
        raise InputError(f"{path}: an IDX file without {what}; give one that contains {what}")
    return np.frombuffer(data, np.uint8).reshape(sizes)


# Image files in folders and zips.


@dataclass(frozen=True)
class _Tree:
    """Image files in a folder or zip; names are relative to it, in natural order."""

    path: Path
    names: list[PurePath]
    open: Callable[[PurePath], Any]  # returns a path or file for read_pixels


@contextmanager
def _open_tree(path: Path) -> Iterator[_Tree]:
    if path.is_dir():
        names = [name for name in image_names(path) if (path / name).is_file()]
        if not names:
            _refuse_empty(path, sorted(entry.name for entry in path.iterdir()))
        yield _Tree(path, names, lambda name: path / name)
        return
    with reading(path, "zip", "download it again"):
        archive = zipfile.ZipFile(path)
    with archive:
        # As paths, which normalise entry names: ./a.png becomes a.png.
        entries: dict[PurePath, str] = {PurePosixPath(entry): entry for entry in archive.namelist()}
        names = image_names(path, entries)
        if not names:
            _refuse_empty(path, sorted(archive.namelist()))
        yield _Tree(path, names, lambda name: _open_entry(archive, path, entries[name]))


def _open_entry(archive: zipfile.ZipFile, path: Path, entry: str) -> io.BytesIO:
    with reading(f"{path}: {entry}", "part of the zip", "download the zip again"):
        info = archive.getinfo(entry)
        check_bytes(f"{path}: {entry}", info.file_size, path.stat().st_size)
        return io.BytesIO(archive.read(info))


def _refuse_empty(path: Path, found: list[str]) -> NoReturn:
    got = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    raise InputError(f"{path}: no images in it, found {got or 'nothing'}; {EXPECTED}")


def _part(root: Path, name: str) -> Path | None:
    """Return one half of a pair in ``root``, a folder or a zip; None if it does not exist."""
    return next((part for part in (root / name, root / f"{name}.zip") if part.exists()), None)


def _load_lone_tree(path: Path, split: str, shape: Shape, fit: str) -> Dataset:
    if split != _set_of(path):
        with _open_tree(path):  # first report if there are no images at all
            _refuse_unless(split, _set_of(path), path)
    return _load_tree(path, split, shape, fit)


def _load_zip(path: Path, split: str, shape: Shape, fit: str) -> Dataset:
    with _open_tree(path) as tree:
        tops = {name.parts[0] for name in tree.names}
    if tops.issuperset(SPLITS) and tops.issubset((*SPLITS, *VALIDATION)):
        return _load_tree(path, split, shape, fit, inside=split)
    return _load_lone_tree(path, split, shape, fit)


def _load_pair(
    root: Path, pairs: list[tuple[str, str]], split: str, shape: Shape, fit: str
) -> Dataset:
    # Prefer a complete pair, so that both splits come from the same one.
    names = max(pairs, key=lambda pair: sum(_part(root, name) is not None for name in pair))
    train, test = (_part(root, name) for name in names)
    chosen = train if split == "train" else test
    if names == SPLITS:
        _refuse_others(root, train, test)
    if chosen is None:
        missing = names[SPLITS.index(split)]
        raise InputError(f"{root}: no {split} split; add {missing}.zip or the folder {missing}")
    if names == SPLITS:
        return replace(_load_tree(chosen, split, shape, fit), name=_name(root))
    seen: set[str] = set()
    if split == "test" and train is not None:
        with _open_tree(train) as tree:
            seen = {_alphabet(tree.path, name) for name in tree.names}
    return _load_tree(chosen, split, shape, fit, without=seen)


def _refuse_others(root: Path, train: Path | None, test: Path | None) -> None:
    """Raise if other images beside train and test make it unclear whether those are splits."""
    part = train or test
    assert part is not None
    entries = sorted(root.iterdir())
    others = [str(name) for name in image_names(root, [PurePath(entry.name) for entry in entries])]
    if train is None or test is None:
        # A single one may be a class of that name.
        others += [
            entry.name
            for entry in entries
            if entry != part
            and entry.is_dir()
            and not entry.name.startswith(".")
            and entry.name.lower() not in VALIDATION
            and image_names(entry)
        ]
    if others:
        raise InputError(
            f"{root}: holds {others[0]} beside {part.name}, so it is unclear which images to read; "
            "move one of them, or give a folder inside"
        )


def _alphabet(path: Path, name: PurePath) -> str:
    if len(name.parts) < 3:
        raise InputError(f"{path}: expected alphabet/character/drawing.png, found {name}")
    return name.parts[-3]


def _load_tree(
    path: Path,
    split: str,
    shape: Shape,
    fit: str,
    *,
    without: set[str] | None = None,
    inside: str = "",
) -> Dataset:
    """Read all image files of a folder or zip, or of one folder inside, except some alphabets."""
    with _open_tree(path) as tree:
        names = [name for name in tree.names if not inside or name.parts[0] == inside]
        source = str(path / inside)
        if without:
            names = [name for name in names if _alphabet(path, name) not in without]
            left_out = sorted(without & {_alphabet(path, name) for name in tree.names})
            source += f" without {', '.join(left_out)}" if left_out else ""
        if not names:
            raise InputError(
                f"{path}: all of its alphabets are among the training images, so none is unseen; "
                "give another test set"
            )
        images = np.empty((len(names), *shape), dtype=np.uint8)
        for row, name in enumerate(names):
            images[row] = _quantised(read_pixels(tree.open(name), str(path / name), *shape, fit))
    folders = [name.relative_to(inside).parent for name in names]
    labels = tuple("/".join(folder.parts[-2:]) for folder in folders)
    omniglot = all(re.fullmatch(r"character\d+", name.parent.name) for name in names)
    return Dataset(
        name="omniglot" if omniglot else _name(path),
        images=images,
        labels=labels if all(labels) else None,
        split=split,
        source=source,
    )


# NumPy files.


def _load_arrays(path: Path, split: str, shape: Shape, fit: str) -> Dataset:
    with opened(path) as file:
        if isinstance(file, np.ndarray):
            _refuse_unless(split, "train", path)
            images, labels = file, None
        else:
            images, labels = _choose_arrays(file, path, split)
    images = _channels_last(images, path)
    texts = None
    if labels is not None:
        if labels.size != len(images):
            raise InputError(
                f"{path}: expected one label per image, [{len(images)}], got "
                f"[{shape_text(labels.shape)}]"
            )
        texts = tuple(str(label) for label in labels.reshape(-1).tolist())
    fitted = _fit_all(_bytes(images, path), shape, fit)
    return Dataset(_name(path), fitted, texts, split, str(path))


def _choose_arrays(loaded: Any, path: Path, split: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    names = loaded.files
    images = next((name for name in NPZ_NAMES[split] if name in names), None)
    labels = next((name for name in NPZ_LABELS[split] if name in names), None)
    if images is None and not any(name in names for both in NPZ_NAMES.values() for name in both):
        _refuse_unless(split, "train", path)
        images = "images" if "images" in names else names[0] if len(names) == 1 else None
        labels = "labels" if "labels" in names else None
    if images is None:
        raise InputError(
            f"{path}: no {split} images; expected images or {split}_images, found "
            f"{', '.join(names) or 'nothing'}"
        )
    return loaded[images], None if labels is None else loaded[labels]


def _channels_last(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return the array as [N, H, W, C], or raise if its layout is wrong or ambiguous."""
    expected = f"{path}: expected images [N, C, H, W], [N, H, W, C] or, gray, [N, H, W]"
    got = f"got [{shape_text(array.shape)}]"
    if array.size == 0:
        raise InputError(f"{expected}, {got}, which is empty")
    if array.ndim == 3 and array.shape[2] not in FILE_CHANNELS[1:]:
        return array[..., None]
    if array.ndim == 4:
        first, last = array.shape[1] in FILE_CHANNELS, array.shape[3] in FILE_CHANNELS
        if first and last and array.shape[1:] != (1, 1, 1):
            raise InputError(f"{expected}, {got}, which could be either")
        if first:
            return array.transpose(0, 2, 3, 1)
        if last:
            return array
    raise InputError(f"{expected}, {got}; C is 1, 3 or 4")


def _bytes(images: NDArray[Any], path: Path) -> Pixels:
    """Return images as uint8, from uint8 or from floats in [0, 1] or [-1, 1]."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise InputError(
            f"{path}: expected uint8 (0-255) or floating images, got {images.dtype}; convert them"
        )
    lowest, highest = float(images.min()), float(images.max())
    low = -1 if lowest < -RANGE_SLACK else 0
    slack = RANGE_SLACK * (1 - low)
    if not (lowest >= low - slack and highest <= 1 + slack):  # NaN too
        raise InputError(
            f"{path}: expected floating images in [0, 1] or [-1, 1], got [{lowest:.4g}, "
            f"{highest:.4g}]; rescale them, or save them as uint8"
        )
    pixels = np.empty(images.shape, dtype=np.uint8)
    for row, image in enumerate(images):  # one at a time, to bound memory
        unit = (image - low) / (1 - low)
        pixels[row] = np.rint(unit.clip(0, 1) * 255)
    return pixels


def _quantised(unit: NDArray[Any]) -> Pixels:
    """Return [..., H, W, C] pixels from 0 to 1 as uint8 [..., C, H, W]."""
    pixels: Pixels = np.rint(unit * np.float32(255)).astype(np.uint8)
    return np.moveaxis(pixels, -1, -3)


def _fit_all(images: Pixels, shape: Shape, fit: str) -> Pixels:
    """Return uint8 [N, H, W, C] images as [N, *shape]."""
    channels, height, width = shape
    if images.shape[1:] == (height, width, channels):
        # Copies only memory-mapped and read-only arrays, and arrays in another layout.
        return np.require(images.transpose(0, 3, 1, 2), requirements=["C", "W"])
    fitted = np.empty((len(images), *shape), dtype=np.uint8)
    for start in range(0, len(images), CHUNK):
        unit = _unit(images[start : start + CHUNK], channels)
        fitted[start : start + CHUNK] = _quantised(resize_pixels(unit, height, width, fit))
    return fitted


def _unit(images: Pixels, channels: int) -> NDArray[np.float32]:
    """Return uint8 [N, H, W, C] images as float32 from 0 to 1, with the given channel count."""
    if images.shape[3] == channels:
        return images.astype(np.float32) / np.float32(255)
    return np.stack([convert_pixels(to_pillow(image), channels) for image in images])
