"""The small classifier: it learns, a seed decides its weights, and its layers can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from pyinv.errors import DeviceError, InputError, RunError  # noqa: E402
from pyinv.models.classifier import Classifier  # noqa: E402
from pyinv.training.classifier import accuracy, train_classifier  # noqa: E402

SHORT: dict[str, Any] = {"width": 4, "iterations": 3, "batch_size": 16, "threads": 1}


def stripes(count: int, *, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Noisy gray images with stripes that lie or stand, which no mean of pixels tells apart."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 120, (count, 1, 12, 12), dtype=np.uint8)
    images[:, :, ::4] += np.uint8(120)
    labels = ["lying", "standing"] * (count // 2)
    images[1::2] = images[1::2].transpose(0, 1, 3, 2)
    return images, labels


def weights(classifier: Classifier) -> torch.Tensor:
    return torch.cat([tensor.flatten().float() for tensor in classifier.state_dict().values()])


def test_it_learns() -> None:
    images, labels = stripes(64)
    lines: list[str] = []
    classifier = train_classifier(
        images, labels, width=4, iterations=40, batch_size=16, threads=1, progress=lines.append
    )
    assert classifier.classes == ("lying", "standing")
    assert not classifier.training
    unseen, right = stripes(50, seed=1)
    assert accuracy(classifier, unseen, right) == 1.0
    assert accuracy(classifier, unseen, right[::-1]) == 0.0
    assert len(lines) == 10
    assert lines[-1].startswith("iteration 40 of 40: loss ")


def test_the_same_seed_gives_the_same_weights() -> None:
    images, labels = stripes(32)
    state = torch.random.get_rng_state()
    one = train_classifier(images, labels, seed=1, **SHORT)
    assert torch.equal(torch.random.get_rng_state(), state)  # which is the caller's
    torch.rand(3)
    other = train_classifier(images, labels, seed=1, **SHORT)
    assert torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(one), weights(train_classifier(images, labels, seed=2, **SHORT)))


def test_labels_may_be_numbers() -> None:
    images, labels = stripes(32)
    numbers = [int(label == "standing") for label in labels]
    assert train_classifier(images, numbers, **SHORT).classes == ("0", "1")


def test_mirroring_changes_what_it_sees() -> None:
    images, labels = stripes(32)
    plain = train_classifier(images, labels, **SHORT)
    assert not torch.equal(
        weights(plain), weights(train_classifier(images, labels, mirror=True, **SHORT))
    )


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_layers(shape: tuple[int, int, int]) -> None:
    classifier = Classifier(shape[0], ("a", "b", "c"), 4).eval()
    image = torch.rand(2, *shape)
    assert classifier(image).shape == (2, 3)
    sizes = {}
    for name in Classifier.LAYERS:
        image = classifier.get_submodule(name)(image)
        sizes[name] = tuple(image.shape[1:])
    edge = shape[1]
    assert sizes == {
        "layer1": (4, edge, edge),
        "layer2": (8, edge // 2, edge // 2),
        "layer3": (8, edge // 2, edge // 2),
        "layer4": (16, edge // 4, edge // 4),
        "layer5": (16, edge // 4, edge // 4),
    }


def test_its_features_make_a_perceptual_loss() -> None:
    pytest.importorskip("onnxscript", reason="export needs onnxscript")
    from pyinv.export import perceptual

    images, labels = stripes(32)
    classifier = train_classifier(images, labels, **SHORT)
    loss = perceptual(classifier, ("layer1", "layer4"))
    one, other = torch.from_numpy(images[:4]).float().div(127.5).sub(1).chunk(2)
    first = [classifier.layer1(x) for x in (one, other)]
    fourth = [classifier.layer4(classifier.layer3(classifier.layer2(x))) for x in first]
    expected = (one - other).abs().mean((1, 2, 3))
    for a, b in (first, fourth):
        expected = expected + (a - b).abs().mean((1, 2, 3)) / 2
    torch.testing.assert_close(loss(one, other), expected.detach())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "these images have no labels, and a classifier needs them"),
        ({"labels": ["a", "b"]}, "expected one label per image, [32], got [2]"),
        ({"labels": ["a"] * 32}, "labels must be of two classes or more, all are 'a'"),
        ({"images": np.zeros((32, 1, 12, 12), np.float32)}, "got float32 [32, 1, 12, 12]"),
        ({"images": np.zeros((32, 12, 12), np.uint8)}, "got uint8 [32, 12, 12]"),
        ({"images": np.zeros((32, 1, 7, 12), np.uint8)}, "at least 8x8 pixels, got 7x12"),
        ({"value_range": (1, 0)}, "value_range must be (low, high)"),
        ({"iterations": 0}, "iterations must be"),
        ({"batch_size": 1}, "batch_size must be"),
        ({"learning_rate": 0.0}, "learning_rate must be a number > 0, got 0.0"),
        ({"width": 0}, "channels and width must be at least 1, got 1 and 0"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    images, labels = stripes(32)
    with pytest.raises(InputError) as caught:
        train_classifier(**{"images": images, "labels": labels, **SHORT, **changes})
    assert message in str(caught.value)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(DeviceError):
        train_classifier(*stripes(32), device="cuda:99", **SHORT)


def test_a_training_that_diverges_says_so() -> None:
    with pytest.raises(RunError, match="train with a lower learning_rate"):
        train_classifier(*stripes(32), learning_rate=1e38, **SHORT)


@pytest.mark.parametrize("classes", [("a",), ("a", "a")])
def test_classes_must_differ(classes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="at least two names, each once"):
        Classifier(1, classes)
