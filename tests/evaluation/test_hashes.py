"""Hashes, colour histograms and what is done to images, by hand and by what must not change."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pyinv.errors import DependencyError, InputError
from pyinv.evaluation import (
    change_colour,
    colour_histogram,
    gaussian_blur,
    hash_similarity,
    histogram_intersection,
    image_hash,
    occlude,
)
from pyinv.extras import install_command

imagehash = pytest.importorskip("imagehash")


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def solid(*rgb: float, size: int = 4) -> np.ndarray:
    """An image of one colour, [1, 3, size, size]."""
    return np.broadcast_to(np.float32(rgb)[None, :, None, None], (1, 3, size, size))


# Hashes


def test_dhash_tells_which_neighbour_is_brighter():
    """Of 9 x 8 pixels nothing is resized, and each bit is one comparison."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (8, 9)) / 255
    expected = image[:, 1:] > image[:, :-1]
    np.testing.assert_array_equal(image_hash(image[None, None])[0], expected.ravel())


def test_dhash_similarity_by_hand():
    image = np.zeros((8, 9))
    image[:, ::2] = 1  # down, up, down, up ...: half of the bits are set
    other = np.zeros((8, 9))  # none is
    quarter = image.copy()
    quarter[:4] = 0
    images = np.stack([image, image, image])[:, None]
    found = np.stack([image, other, quarter])[:, None]
    np.testing.assert_array_equal(hash_similarity(images, found), [1, 0.5, 0.75])


@pytest.mark.parametrize("kind", ["dhash", "phash"])
@pytest.mark.parametrize("size", [4, 8])
def test_hashes_are_the_librarys(kind, size):
    """Of images in another range and in colour, too."""
    images = random_images(3, 3, 20, 24)
    hashes = image_hash(images, kind, hash_size=size, value_range=(-1, 1))
    assert hashes.shape == (3, size * size)
    for image, bits in zip(images, hashes, strict=True):
        pixels = np.uint8(np.rint((image.transpose(1, 2, 0) + 1) * 127.5))
        theirs = getattr(imagehash, kind)(Image.fromarray(pixels), hash_size=size)
        np.testing.assert_array_equal(bits, theirs.hash.ravel())


def test_similarity_is_one_minus_the_librarys_distance():
    images, others = random_images(4, 1, 16, 16), random_images(4, 1, 16, 16, seed=1)
    found = hash_similarity(images, others, "phash", hash_size=6, value_range=(-1, 1))
    for one, other, similarity in zip(images, others, found, strict=True):
        pillows = [
            Image.fromarray(np.uint8(np.rint((image[0] + 1) * 127.5))) for image in (one, other)
        ]
        distance = imagehash.phash(pillows[0], 6) - imagehash.phash(pillows[1], 6)
        assert similarity == pytest.approx(1 - distance / 36)


def test_unrelated_images_have_about_half_of_their_bits_in_common():
    images, others = random_images(200, 1, 16, 16), random_images(200, 1, 16, 16, seed=1)
    for kind in ("dhash", "phash"):
        assert hash_similarity(images, others, kind, value_range=(-1, 1)).mean() == pytest.approx(
            0.5, abs=0.03
        )


def test_phash_outlives_a_blur_that_moves_few_frequencies():
    """A picture with large parts, as the hash is made for."""
    picture = Image.new("L", (64, 64))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 20, 40, 60), fill=220)
    draw.rectangle((30, 4, 60, 30), fill=120)
    image = np.asarray(picture)[None, None] / np.float32(255)
    blurred = gaussian_blur(image, 1)
    assert hash_similarity(image, blurred, "phash")[0] > 0.85
    assert hash_similarity(image, 1 - image, "phash")[0] < 0.3


# Colours


def test_a_colour_falls_into_the_bin_of_its_axes():
    cases = {
        (0, 0, 0): (255 * 16 // 511, 510 * 16 // 1021, 0),
        (1, 1, 1): (255 * 16 // 511, 510 * 16 // 1021, 7),
        (1, 0, 0): (510 * 16 // 511, 255 * 16 // 1021, 255 * 8 // 766),
        (0, 0, 1): (255 * 16 // 511, 15, 255 * 8 // 766),
    }
    for colour, place in cases.items():
        histogram = colour_histogram(solid(*colour))[0].reshape(16, 16, 8)
        assert histogram[place] == 1
        assert histogram.sum() == 1


def test_a_histogram_counts_shares_of_pixels():
    image = solid(1, 1, 1).copy()
    image[:, :, :1] = 0  # a quarter is black
    histogram = colour_histogram(image)[0]
    assert sorted(histogram[histogram > 0]) == [0.25, 0.75]
    gray = colour_histogram(image[:, :1])[0]
    np.testing.assert_array_equal(gray, histogram)
    np.testing.assert_array_equal(colour_histogram(2 * image - 1, value_range=(-1, 1))[0], gray)


def test_histogram_intersection_by_hand():
    one = [[3, 1, 0], [4, 0, 0], [0, 2, 2]]
    other = [[1, 1, 2], [0, 4, 0], [0, 2, 2]]
    np.testing.assert_array_equal(histogram_intersection(one, other), [0.5, 0, 1])


def test_a_histogram_knows_no_places():
    images = random_images(2, 3, 8, 8)
    mirrored = images[:, :, :, ::-1]
    both = [colour_histogram(some, value_range=(-1, 1)) for some in (images, mirrored)]
    np.testing.assert_allclose(histogram_intersection(*both), 1)
    np.testing.assert_allclose(
        histogram_intersection(both[0][:1], both[0][1:]),
        np.minimum(both[0][0], both[0][1]).sum(),
        rtol=1e-6,
    )


# What is done to images


def test_a_hue_of_a_third_turn_hands_the_channels_on():
    images = random_images(2, 3, 4, 4)
    turned = change_colour(images, hue=120, value_range=(-1, 1))
    # Red's content is now in green, green's in blue, blue's in red.
    np.testing.assert_allclose(turned, images[:, [2, 0, 1]], atol=1e-6)
    back = change_colour(turned, hue=-120, value_range=(-1, 1))
    np.testing.assert_allclose(back, images, atol=1e-6)


def test_gray_has_no_hue():
    images = random_images(2, 1, 4, 4)
    changed = change_colour(images, hue=77, saturation=3, value_range=(-1, 1))
    np.testing.assert_allclose(changed, images, atol=1e-6)
    colour = np.repeat(images, 3, axis=1)
    changed = change_colour(colour, hue=77, saturation=3, value_range=(-1, 1))
    np.testing.assert_allclose(changed, colour, atol=1e-6)


def test_saturation_contrast_and_brightness_by_hand():
    image = solid(0.5, 0.25, 0.75)
    gray = change_colour(image, saturation=0)
    np.testing.assert_allclose(gray, 0.5, atol=1e-6)
    flat = change_colour(image, contrast=0.5, brightness=0.25)
    np.testing.assert_allclose(flat[0, :, 0, 0], [0.75, 0.625, 0.875], atol=1e-6)
    # Of the span, and clipped to the range.
    bright = change_colour(4 * image - 2, brightness=0.5, value_range=(-2, 2))
    np.testing.assert_allclose(bright[0, :, 0, 0], [2, 1, 2], atol=1e-6)


def test_an_occlusion_covers_its_share_and_nothing_else():
    images = random_images(2, 3, 10, 20)
    hidden = occlude(images, top=0.3, left=0.1, height=0.2, width=0.6, value=-1)
    covered = hidden != images
    assert covered[:, :, 3:5, 2:14].all()
    assert covered.sum() == 2 * 3 * 2 * 12
    assert (hidden[covered] == -1).all()
    over_the_border = occlude(images, top=0.9, left=0.9, height=1, width=1, value=0)
    assert (over_the_border == 0).sum() == 2 * 3 * 1 * 2


def test_a_blur_is_the_gaussian_of_its_width():
    pytest.importorskip("scipy")
    image = np.zeros((1, 1, 31, 31), np.float32)
    image[0, 0, 15, 15] = 1
    blurred = gaussian_blur(image, 2)[0, 0]
    offset = np.arange(31) - 15
    kernel = np.where(abs(offset) <= 8, np.exp(-(offset**2) / 8), 0)
    expected = np.outer(kernel, kernel) / kernel.sum() ** 2
    np.testing.assert_allclose(blurred, expected, atol=1e-7)
    # Neither images nor channels run into one another, and an even image stays so.
    two = np.stack([np.zeros((3, 8, 8)), np.ones((3, 8, 8))])
    np.testing.assert_allclose(gaussian_blur(two, 3), two, atol=1e-6)
    np.testing.assert_array_equal(gaussian_blur(image, 0), image)


IMAGES = np.zeros((2, 3, 8, 8), np.float32)
PROBLEMS = {
    "kind": (lambda: image_hash(IMAGES, "ahash"), "kind must be one of dhash, phash"),
    "size": (lambda: image_hash(IMAGES, hash_size=1), "hash_size must be a whole number >= 2"),
    "channels": (lambda: image_hash(np.zeros((2, 2, 8, 8))), r"C of 1 or 3, got \[2, 2, 8, 8\]"),
    "range": (lambda: image_hash(IMAGES - 1), r"in the value_range \[0, 1\], got \[-1, -1\]"),
    "NaN": (lambda: image_hash(IMAGES * math.nan), "must be numbers, got NaN"),
    "pairs": (lambda: hash_similarity(IMAGES, IMAGES[:1]), "must have the same shape"),
    "empty": (lambda: histogram_intersection([[1.0]], [[0.0]]), "none of others may be empty"),
    "sigma": (lambda: gaussian_blur(IMAGES, -1), "sigma must be a finite number at least 0"),
    "saturation": (lambda: change_colour(IMAGES, saturation=-1), "saturation must be"),
    "colour": (lambda: change_colour(IMAGES[:, :2]), "C of 1 or 3"),
    "share": (
        lambda: occlude(IMAGES, top=2, left=0, height=1, width=1, value=0),
        "top must be a finite number at least 0 and at most 1",
    ),
    "nothing": (
        lambda: occlude(IMAGES, top=0, left=0, height=0.01, width=1, value=0),
        "covers no pixel",
    ),
    "no images": (lambda: gaussian_blur(IMAGES[0], 1), r"must be \[N, C, H, W\]"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_wrong_argument_is_said_in_one_line(problem):
    call, message = PROBLEMS[problem]
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("imagehash", lambda: image_hash(IMAGES)),
        ("scipy.ndimage", lambda: gaussian_blur(IMAGES, 1)),
    ],
)
def test_a_missing_library_is_named_with_its_command(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=re.escape(install_command("papers"))):
        call()
