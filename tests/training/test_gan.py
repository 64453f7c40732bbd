"""Training a GAN: what an iteration does, and that stopping and going on changes nothing."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyinv import interrupts
from pyinv.bundle import Bundle
from pyinv.cli import main
from pyinv.cores import usable_cores
from pyinv.demo import DIGITS
from pyinv.errors import DeviceError, InputError, OutputError, RunError
from pyinv.extras import install_command
from pyinv.inverter import Inverter
from pyinv.models import get_model
from pyinv.priors import Normal, Uniform
from pyinv.training import CONFIGURATIONS, GanConfiguration, get_configuration
from support.paths import REPOSITORY

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from pyinv.training import gan, train_gan  # noqa: E402
from pyinv.training.adversaries import Adversaries, with_statistics  # noqa: E402
from pyinv.training.draws import Purpose, draw_labels, draw_latents, random  # noqa: E402
from pyinv.training.loop import grid_due  # noqa: E402

SMALL = GanConfiguration(
    "small",
    "egan-pixel-shuffle",
    (1, 32, 32),
    prior=Normal(),
    latent_size=5,
    width=2,
    batch_size=8,
    iterations=6,
    real_labels=(0.7, 1.2),
    fake_labels=(0.0, 0.3),
    averaging=0.9,
)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """64 real digits, uint8 [64, 1, 32, 32]."""
    with np.load(DIGITS) as file:
        unit = (file["images"] + 1) / 2
    return np.rint(unit * 255).astype(np.uint8).repeat(2, axis=2).repeat(2, axis=3)


@pytest.fixture
def unexported(monkeypatch):
    """Trainings that end before the export, which takes longer than they do."""
    monkeypatch.setattr(gan, "_export", lambda *arguments: None)


def train(folder: Path, digits: np.ndarray, configuration=SMALL, **options: Any):
    options = {"data_name": "digits", "threads": 1, **options}
    return train_gan(configuration, digits, folder, **options)


def read(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ, to the last bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = [name for name in {**a, **b} if name not in a or name not in b]
        both = [name for name in a if name in b]
        return names + [
            d for name in both for d in differences(a[name], b[name], f"{where}/{name}")
        ]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for row, pair in pairs for d in differences(*pair, f"{where}/{row}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [where]


@pytest.fixture(scope="module")
def straight(digits, tmp_path_factory) -> dict[str, Any]:
    """The checkpoint of a training that was never stopped."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "_export", lambda *arguments: None)
        train(folder, digits)
    return read(folder)


# What an iteration does


def test_iterations_are_those_of_the_equations(digits):
    """Twice the two steps again, written with PyTorch's plain Adam and no shortcut."""
    trained = Adversaries(SMALL, digits, torch.device("cpu"))
    generator = copy.deepcopy(trained.networks["generator"])
    discriminator = copy.deepcopy(trained.networks["discriminator"])
    mean = [parameter.detach().clone() for parameter in generator.parameters()]
    rate, betas = SMALL.learning_rate, (SMALL.beta1, 0.999)
    solve_g = torch.optim.Adam(generator.parameters(), rate, betas, foreach=False)
    solve_d = torch.optim.Adam(discriminator.parameters(), rate, betas, foreach=False)
    order = torch.randperm(64, generator=random(0, Purpose.ORDER, 0))
    for t in range(2):
        real = torch.from_numpy(digits[order[8 * t : 8 * t + 8].numpy()]).float() / 127.5 - 1
        z = torch.randn(8, 5, generator=random(0, Purpose.LATENTS, t))
        labels = torch.rand(16, generator=random(0, Purpose.LABELS, t))
        on_real, on_fake = labels[:8] * 0.5 + 0.7, labels[8:] * 0.3

        def entropy(logit, label):
            p = torch.sigmoid(logit)
            return -(label * torch.log(p) + (1 - label) * torch.log(1 - p)).mean()

        d_loss = entropy(discriminator(real), on_real) + entropy(
            discriminator(generator(z).detach()), on_fake
        )
        solve_d.zero_grad()
        d_loss.backward()
        solve_d.step()
        g_loss = -functional.logsigmoid(discriminator(generator(z))).mean()
        solve_g.zero_grad()
        g_loss.backward()
        solve_g.step()
        decay = min(0.9, (1 + t) / (10 + t))
        for average, now in zip(mean, generator.parameters(), strict=True):
            average.copy_(decay * average + (1 - decay) * now.detach())

        assert trained.step() == pytest.approx((d_loss.item(), g_loss.item()), rel=1e-4)
    for name, expected in (
        ("generator", generator.parameters()),
        ("discriminator", discriminator.parameters()),
        ("averaged", mean),
    ):
        for found, wanted in zip(trained.networks[name].parameters(), expected, strict=True):
            # Adam's first steps are of the learning rate's size, whatever the gradient's.
            torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * rate)


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(digits):
    adversaries = Adversaries(SMALL, digits[:20], torch.device("cpu"))
    epochs = [torch.cat([adversaries._real(2 * epoch + i) for i in (0, 1)]) for epoch in (0, 1)]
    for shown in epochs:
        pixels = {image.numpy().tobytes() for image in shown}
        assert len(pixels) == 16
        assert pixels <= {
            (np.float32(image) * np.float32(2 / 255) - 1).tobytes() for image in digits[:20]
        }
    assert not torch.equal(*epochs)


def test_labels_are_drawn_for_each_image_from_the_interval():
    labels = draw_labels((0.7, 1.2), 10_000, random(0, Purpose.LABELS, 3))
    assert len(labels.unique()) > 9_000
    counts = torch.histc(labels, bins=5, min=0.7, max=1.2)
    assert counts.sum() == 10_000
    assert (counts - 2_000).abs().max() < 5 * 2_000**0.5
    assert draw_labels((1.0, 1.0), 3, random(0, Purpose.LABELS)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("prior", "mean", "std"),
    [(Uniform(-1, 3), 1, Uniform(-1, 3).std), (Normal(2, 0.5), 2, 0.5)],
)
def test_latents_are_drawn_from_the_prior(prior, mean, std):
    drawn = draw_latents(prior, 2_000, 50, random(0, Purpose.LATENTS))
    assert drawn.shape == (2_000, 50)
    assert drawn.mean().item() == pytest.approx(mean, abs=5 * std / 100_000**0.5)
    assert drawn.std().item() == pytest.approx(std, rel=0.02)
    if isinstance(prior, Uniform):
        assert -1 <= drawn.min() < -0.99 < 2.99 < drawn.max() <= 3


def test_draws_differ_by_seed_purpose_and_number():
    keys = [(0, Purpose.LATENTS, 0), (1, Purpose.LATENTS, 0), (0, Purpose.LABELS, 0)]
    keys.append((0, Purpose.LATENTS, 1))
    drawn = {torch.rand(1, generator=random(*key)).item() for key in keys}
    assert len(drawn) == 4
    assert torch.rand(1, generator=random(*keys[0])).item() in drawn


def test_weights_begin_as_dcgans(digits):
    networks = Adversaries(SMALL.replace(width=32), digits, torch.device("cpu")).networks
    weights = networks["generator"].layers[1].weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    norm = networks["discriminator"].layers[3]
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert norm.bias.abs().max() == 0


def test_a_sampler_has_the_statistics_of_generated_batches(digits):
    adversaries = Adversaries(SMALL, digits, torch.device("cpu"))
    for _ in range(3):
        adversaries.step()
    sampler = adversaries.sampler()
    assert not sampler.training
    averaged = adversaries.networks["averaged"]
    for found, wanted in zip(sampler.parameters(), averaged.parameters(), strict=True):
        assert torch.equal(found, wanted)
    first = averaged.layers[:2]  # up to the first batch norm
    latents = [
        torch.randn(8, 5, generator=random(0, Purpose.STATISTICS, number)) for number in range(32)
    ]
    with torch.no_grad():
        batches = [first(batch).transpose(0, 1).reshape(8, -1) for batch in latents]
    mean = torch.stack([batch.mean(1) for batch in batches]).mean(0)
    variance = torch.stack([batch.var(1) for batch in batches]).mean(0)
    torch.testing.assert_close(sampler.layers[2].running_mean, mean)
    torch.testing.assert_close(sampler.layers[2].running_var, variance)


def test_statistics_of_a_network_with_two_inputs():
    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return self.norm(one + other)

    given = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(0))
    network = Sum()
    measured = with_statistics(network, ((each, each) for each in given))
    torch.testing.assert_close(measured.norm.running_mean, 2 * given.mean((0, 1)))
    assert (network.norm.running_mean == 0).all()


def test_without_averaging_the_last_weights_are_exported(digits):
    adversaries = Adversaries(SMALL.replace(averaging=0), digits, torch.device("cpu"))
    adversaries.step()
    assert set(adversaries.networks) == {"generator", "discriminator"}
    latest = adversaries.networks["generator"].parameters()
    for found, wanted in zip(adversaries.sampler().parameters(), latest, strict=True):
        assert torch.equal(found, wanted)


# Stopping and going on


def after(iteration: int, action) -> Any:
    """A progress function that acts once the iteration is reported."""
    return lambda now: action() if now["iteration"] == iteration else None


def stop() -> None:
    raise KeyboardInterrupt


def test_a_run_goes_on_to_the_same_bits(digits, straight, tmp_path, unexported):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", digits, progress=after(3, stop))
    assert read(tmp_path / "run")["iteration"] == 3
    # The caller's random numbers are none of the training's business.
    torch.manual_seed(99)
    train(tmp_path / "run", digits)
    assert differences(read(tmp_path / "run"), straight) == []


@pytest.mark.parametrize(
    "configuration",
    [
        SMALL.replace(iterations=9),
        SMALL.replace(iterations=9, averaging=0),
        SMALL.replace(
            model="creswell", image_shape=(1, 28, 28), width=None, batch_size=4, iterations=7
        ),
    ],
    ids=["averaged", "last weights", "creswell"],
)
def test_a_run_goes_on_in_a_later_epoch(digits, tmp_path, unexported, configuration):
    """Of 20 images, an epoch is 2 batches of 8, or 5 of 4."""
    images = digits[:20, :, :28, :28] if configuration.model == "creswell" else digits[:20]
    train(tmp_path / "straight", images, configuration)
    for iteration in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", images, configuration, progress=after(iteration, stop))
    train(tmp_path / "run", images, configuration)
    assert differences(read(tmp_path / "run"), read(tmp_path / "straight")) == []


def test_one_training_at_a_time_runs_in_a_folder(digits, straight, tmp_path, unexported):
    folder, refused = tmp_path / "run", []

    def second():
        with pytest.raises(OutputError, match="another training is running in this folder") as one:
            train(folder, digits, overwrite=True)
        refused.append(one)

    train(folder, digits, progress=after(3, second))
    assert refused
    assert differences(read(folder), straight) == []


def test_without_its_checkpoint_a_training_is_not_begun_anew(digits, tmp_path, unexported):
    folder = tmp_path / "run"
    train(folder, digits, SMALL.replace(iterations=1))
    (folder / "checkpoint.pt").unlink()
    losses = (folder / "losses.csv").read_bytes()
    with pytest.raises(InputError, match=r"checkpoint\.pt: missing, .*--overwrite"):
        train(folder, digits)
    assert (folder / "losses.csv").read_bytes() == losses
    train(folder, digits, SMALL.replace(iterations=1), overwrite=True)
    assert read(folder)["iteration"] == 1


def test_losses_lost_in_a_crash_are_written_again(digits, tmp_path, unexported):
    folder = tmp_path / "run"
    train(folder, digits, SMALL.replace(iterations=1))
    losses = (folder / "losses.csv").read_bytes()
    (folder / "losses.csv").unlink()
    train(folder, digits, SMALL.replace(iterations=1))
    assert (folder / "losses.csv").read_bytes() == losses


def test_what_decides_only_the_export_may_change(digits, straight, tmp_path, unexported):
    train(tmp_path / "run", digits, SMALL.replace(iterations=2))
    changed = SMALL.replace(losses=("l1",), batch_norm=("batch",), name="other", source="here")
    train(tmp_path / "run", digits, changed)
    found = read(tmp_path / "run")
    del found["configuration"]
    assert differences(found, {k: v for k, v in straight.items() if k != "configuration"}) == []


@pytest.mark.parametrize("iterations", [10, 25, 3000])
def test_there_are_ten_sample_grids(iterations):
    due = [number for number in range(1, iterations + 1) if grid_due(number, iterations)]
    assert len(due) == 10
    assert due[-1] == iterations


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_short_memory_is_not_called_damage(digits, tmp_path, monkeypatch, unexported, error):
    train(tmp_path / "run", digits, SMALL.replace(iterations=1))

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)) as raised:
        train(tmp_path / "run", digits)
    assert raised.value is error


def test_ctrl_c_within_an_iteration_waits_for_its_end(
    digits, straight, tmp_path, monkeypatch, unexported
):
    average = Adversaries._average

    def interrupted(self, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        average(self, number)

    said = []
    with monkeypatch.context() as patch:
        patch.setattr(Adversaries, "_average", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", digits, say=said.append)
    assert said[-3] == "stopping after this iteration"
    assert said[-2].startswith("iteration 3 of 6: losses: discriminator ")
    assert said[-1] == "the checkpoint holds 3 of 6 iterations"
    assert (tmp_path / "run" / "samples" / "00000003.png").exists()
    assert read(tmp_path / "run")["iteration"] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(tmp_path / "run", digits)
    assert differences(read(tmp_path / "run"), straight) == []


@pytest.mark.parametrize("name", ["discriminator", "generator"])
def test_an_iteration_torn_apart_is_not_kept(
    digits, straight, tmp_path, monkeypatch, unexported, name
):
    """A second Ctrl-C, or a handler of the caller's, may come between the two updates."""
    update = Adversaries._update
    folder = tmp_path / "run"
    train(folder, digits, SMALL.replace(iterations=2))

    def torn(self, which, loss):
        update(self, which, loss)
        if which == name and self.iteration == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Adversaries, "_update", torn)
        with pytest.raises(KeyboardInterrupt):
            train(folder, digits)
    assert read(folder)["iteration"] == 2
    train(folder, digits)
    assert differences(read(folder), straight) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_the_second_ctrl_c_does_not_wait_unless_it_follows_at_once(
    digits, tmp_path, monkeypatch, unexported, at_once
):
    average = Adversaries._average

    def twice(self, number):
        os.kill(os.getpid(), signal.SIGINT)
        if not at_once:
            monkeypatch.setattr(interrupts, "TOGETHER", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        assert at_once, "the iteration went on"
        average(self, number)

    monkeypatch.setattr(Adversaries, "_average", twice)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", digits)
    assert (tmp_path / "run" / "checkpoint.pt").exists() == at_once


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="finds a file's name in /proc")
def test_ctrl_c_while_a_checkpoint_is_written_waits_for_its_end(
    digits, tmp_path, monkeypatch, unexported
):
    fsync = os.fsync

    def interrupted(handle):
        if "checkpoint.pt" in os.readlink(f"/proc/self/fd/{handle}"):
            os.kill(os.getpid(), signal.SIGINT)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", digits, checkpoint_seconds=0)
    monkeypatch.undo()
    # Asked for during iteration 1's checkpoint, and again during the last one.
    assert read(tmp_path / "run")["iteration"] == 2
    assert not list((tmp_path / "run").rglob("*.part"))


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_when_checkpoints_are_written_changes_nothing(
    digits, straight, tmp_path, unexported, seconds
):
    train(tmp_path / "run", digits, checkpoint_seconds=seconds)
    assert differences(read(tmp_path / "run"), straight) == []


def test_a_training_may_be_made_longer(digits, straight, tmp_path, unexported):
    train(tmp_path / "run", digits, SMALL.replace(iterations=2))
    train(tmp_path / "run", digits)
    assert differences(read(tmp_path / "run"), straight) == []
    with pytest.raises(InputError, match="6 iterations are done, got iterations=2; ask for 6"):
        train(tmp_path / "run", digits, SMALL.replace(iterations=2))


def test_another_failure_keeps_what_was_done(digits, tmp_path, unexported):
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", digits, progress=after(5, lambda: 1 / 0))
    assert read(tmp_path / "run")["iteration"] == 5


def test_the_callers_torch_is_left_as_it_was(digits, tmp_path, unexported):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(tmp_path / "run", digits)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)


# What goes wrong


def full_disk(name: str, monkeypatch, *, spared: int = 0) -> None:
    """Let the disk be full when a file of this name is written, but for the first few times."""
    write, left = os.fsync, [spared]

    def fsync(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        if name in path and path.endswith(".part"):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="finds a file's name in /proc")
@pytest.mark.parametrize("name", ["checkpoint.pt", "losses.csv", "00000003.png"])
def test_a_full_disk_leaves_the_last_checkpoint(
    digits, straight, tmp_path, monkeypatch, unexported, name
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_disk(name, patch, spared=0 if name.endswith("png") else 2)
        with pytest.raises(OutputError) as error:
            train(folder, digits, checkpoint_seconds=0)
    assert "\n" not in str(error.value)
    assert name in str(error.value)
    assert "No space left on device" in str(error.value)
    assert ("the previous file is unchanged" in str(error.value)) == (name != "00000003.png")
    assert read(folder)["iteration"] in (2, 3)
    assert not list(folder.rglob("*.part"))
    train(folder, digits)
    assert differences(read(folder), straight) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "damaged, or not a checkpoint"),
        (lambda raw: b"", "damaged, or not a checkpoint"),
        (lambda raw: b"weights", "damaged, or not a checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_named(digits, tmp_path, unexported, damage, message):
    folder = tmp_path / "run"
    train(folder, digits, SMALL.replace(iterations=2))
    path = folder / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as error:
        train(folder, digits)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "--overwrite" in str(error.value)
    assert "\n" not in str(error.value)


def drop(*path: str):
    def change(state):
        for name in path[:-1]:
            state = state[name]
        del state[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(format=2), "format is 2, and this pyinv reads 1"),
        (drop("iteration"), "damaged (no 'iteration')"),
        (drop("networks", "averaged"), "damaged (no 'averaged')"),
        (drop("networks", "generator", "layers.1.weight"), "layers.1.weight"),
        (drop("solvers", "discriminator"), "damaged (no 'discriminator')"),
        (drop("configuration", "beta1"), "needs the field 'beta1'"),
        (drop("data", "sha256"), "sha256"),
        (lambda state: state.update(iteration=1), "1 iterations with 2 losses"),
        (
            lambda state: state["configuration"].update(learning_rate=0.1),
            "from another training, whose learning_rate is 0.1 and not 0.0002",
        ),
    ],
)
def test_a_checkpoint_with_a_wrong_field_is_refused(digits, tmp_path, unexported, change, message):
    folder = tmp_path / "run"
    train(folder, digits, SMALL.replace(iterations=2))
    state = read(folder)
    change(state)
    torch.save(state, folder / "checkpoint.pt")
    with pytest.raises(InputError) as error:
        train(folder, digits)
    assert message in str(error.value)
    assert str(folder / "checkpoint.pt") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_would_run_code_does_not(digits, tmp_path, unexported):
    folder = tmp_path / "run"
    train(folder, digits, SMALL.replace(iterations=1))
    torch.save({"format": 1, "path": Path("x")}, folder / "checkpoint.pt")
    with pytest.raises(InputError, match="damaged, or not a checkpoint"):
        train(folder, digits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.1}, "whose learning_rate is 0.0002 and not 0.1"),
        ({"prior": Uniform()}, "whose prior is normal with mean 0"),
        ({"width": 3}, "whose width is 2 and not 3"),
        ({"real_labels": (1, 1)}, "whose real_labels is [0.7, 1.2] and not [1.0, 1.0]"),
        ({"seed": 1, "batch_size": 4}, "whose batch_size is 8 and not 4"),
    ],
)
def test_a_folder_of_another_configuration_is_refused(
    digits, tmp_path, unexported, change, message
):
    folder = tmp_path / "run"
    train(folder, digits, SMALL.replace(iterations=1))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as error:
        train(folder, digits, SMALL.replace(**change))
    assert message in str(error.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_trained_on_other_images_is_refused(digits, tmp_path, unexported):
    train(tmp_path / "run", digits, SMALL.replace(iterations=1))
    for others in (digits[:40], digits[::-1]):
        with pytest.raises(InputError, match="whose data are 64 other images"):
            train(tmp_path / "run", others)


def test_overwriting_takes_away_a_trainings_files_and_no_others(
    digits, straight, tmp_path, unexported
):
    folder = tmp_path / "run"
    train(folder, digits, SMALL.replace(seed=5))
    (folder / "notes.txt").write_text("mine")
    (folder / "samples" / "00000099.png").write_bytes(b"old")
    train(folder, digits, overwrite=True)
    assert differences(read(folder), straight) == []
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "samples" / "00000099.png").exists()


def test_a_folder_of_something_else_is_refused(digits, tmp_path):
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="contains files but no training"):
            train(tmp_path, digits, overwrite=overwrite)
    with pytest.raises(OutputError, match="expected a folder, and this is a file"):
        train(tmp_path / "file", digits)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"images": np.zeros((9, 1, 28, 28), np.uint8)}, InputError, "got uint8 [9, 1, 28, 28]"),
        ({"images": np.zeros((9, 1, 32, 32))}, InputError, "got float64 [9, 1, 32, 32]"),
        ({"images": np.zeros((7, 1, 32, 32), np.uint8)}, InputError, "a batch of 8, got 7"),
        ({"configuration": SMALL.replace(training_images=5)}, InputError, "a batch of 8, got 5"),
        ({"threads": 0}, InputError, "threads must be a whole number >= 1"),
        ({"device": "tpu"}, DeviceError, 'device must be "cpu", "cuda"'),
        ({"device": "cuda:99"}, DeviceError, "GPUs, got device='cuda:99'"),
        ({"progress": 3}, InputError, "progress must be None, True or a function"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(digits, tmp_path, options, error, message):
    arguments = {"configuration": SMALL, "images": digits, **options}
    images, configuration = arguments.pop("images"), arguments.pop("configuration")
    with pytest.raises(error) as raised:
        train(tmp_path / "run", images, configuration, **arguments)
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_ends_with_the_last_checkpoint(digits, tmp_path, unexported):
    folder = tmp_path / "run"
    with pytest.raises(RunError) as error:
        train(folder, digits, SMALL.replace(learning_rate=1e30), checkpoint_seconds=0)
    assert "the training has diverged: after iteration" in str(error.value)
    assert "no checkpoint was written" in str(error.value)
    assert not (folder / "checkpoint.pt").exists()


def test_a_diverged_training_does_not_replace_a_good_checkpoint(
    digits, tmp_path, monkeypatch, unexported
):
    folder, average = tmp_path / "run", Adversaries._average

    def spoiled(self, number):
        average(self, number)
        if number == 3:  # seen in the weights alone, by the losses of the next iteration
            with torch.no_grad():
                self.networks["generator"].layers[1].weight[0, 0, 0, 0] = float("nan")

    monkeypatch.setattr(Adversaries, "_average", spoiled)
    with pytest.raises(RunError, match=r"checkpoint.pt is from before\. Train with a lower"):
        train(folder, digits, checkpoint_seconds=0)
    assert read(folder)["iteration"] == 3


# What a training leaves


def test_a_finished_training(digits, tmp_path, monkeypatch):
    folder = tmp_path / "deep" / "run"
    seen = []
    configuration = SMALL.replace(batch_norm=("eval", "batch"))
    trained = train(folder, digits, configuration, progress=seen.append)

    assert [now["iteration"] for now in seen] == [1, 2, 3, 4, 5, 6]
    lines = (folder / "losses.csv").read_text().splitlines()
    assert lines[0] == "iteration,discriminator,generator"
    rows = np.array([line.split(",") for line in lines[1:]], dtype=float)
    np.testing.assert_array_equal(rows[:, 0], range(1, 7))
    assert np.float32(rows[:, 1]).tolist() == [now["discriminator_loss"] for now in seen]
    assert np.float32(rows[:, 2]).tolist() == [now["generator_loss"] for now in seen]
    pictures = sorted(path.name for path in (folder / "samples").iterdir())
    assert pictures == [f"{number:08d}.png" for number in range(1, 7)]
    described = json.loads((folder / "configuration.json").read_text())
    assert GanConfiguration.from_description(described["configuration"]) == configuration
    assert described["data"]["images"] == 64

    assert set(trained.bundles) == {"eval", "batch"}
    generator = get_model(configuration.model).generator(5, (1, 32, 32), width=2)
    generator.load_state_dict(torch.load(trained.weights, weights_only=True))
    latents = draw_latents(Normal(), 9, 5, random(0, Purpose.SAMPLES))
    for mode, path in trained.bundles.items():
        manifest = Bundle.open(path).manifest
        assert (manifest.batch_norm, manifest.prior) == (mode, Normal())
        assert manifest.losses == ("mse", "whitened")
        # What the recipe precise needs, and what images that depend on one another have not.
        found = [manifest.has_normal_equations(loss) for loss in manifest.losses]
        assert found == [mode == "eval"] * 2
        assert manifest.origin == {
            "configuration": configuration.describe(),
            "data": "digits",
            "images": 64,
            "iterations": 6,
        }
        with torch.no_grad():
            expected = generator.train(mode == "batch")(latents).numpy()
        # One lane for each image, so that all are in one batch.
        found = Inverter(path, threads=1, batch_size=9).generate(latents.numpy())
        np.testing.assert_allclose(found, expected, atol=2e-5)

    # Again: nothing is trained, and no file is touched.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(Adversaries, "step", lambda self: pytest.fail("trained again"))
    said = []
    assert train(folder, digits, configuration, say=said.append) == trained
    assert said == [
        f"{folder}: all 6 iterations were done before; generator.bundle and generator-batch.bundle "
        "are there already"
    ]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    # A bundle that was lost or damaged is exported again, from the checkpoint.
    (trained.bundles["batch"] / "weights.bin").write_bytes(b"")
    train(folder, digits, configuration)
    Bundle.open(trained.bundles["batch"])
    assert trained.bundles["eval"].stat().st_mtime_ns == before[trained.bundles["eval"]]


# Configurations


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_describes_itself(name):
    configuration = get_configuration(name)
    assert configuration.name == name
    described = json.loads(json.dumps(configuration.describe()))
    assert GanConfiguration.from_description(described) == configuration


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "creswell",
            {
                "batch_size": 128,
                "learning_rate": 0.002,
                "iterations": 500,
                "training_images": 50_000,
                "latent_size": 100,
            },
        ),
        ("creswell-omniglot", {"batch_size": 128, "learning_rate": 0.002, "iterations": 2000}),
        (
            "lipton",
            {"prior": Uniform(-1, 1), "latent_size": 100, "batch_size": 64, "learning_rate": 2e-4},
        ),
        (
            "egan",
            {
                "image_shape": (3, 64, 64),
                "prior": Normal(0, 1),
                "real_labels": (0.7, 1.2),
                "fake_labels": (0.0, 0.3),
                "batch_size": 64,
                "learning_rate": 2e-4,
                "latent_size": 100,
            },
        ),
    ],
)
def test_configurations_are_the_papers(name, published):
    configuration = get_configuration(name)
    assert {field: getattr(configuration, field) for field in published} == published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vae"}, "model must be one of"),
        ({"image_shape": (1, 48, 48)}, "got 1x48x48"),
        ({"prior": "normal"}, "such as pyinv.Normal() or pyinv.Uniform(-1, 1), got 'normal'"),
        ({"latent_size": 0}, "latent_size must be a whole number >= 1, got 0"),
        ({"batch_size": 1}, "batch_size must be a whole number >= 2, got 1"),
        ({"iterations": 2.5}, "iterations must be a whole number >= 1, got 2.5"),
        ({"learning_rate": 0}, "learning_rate must be a number > 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number > 0, got nan"),
        ({"beta1": 1}, "beta1 must be a number >= 0 and < 1, got 1"),
        ({"averaging": -0.1}, "averaging must be a number >= 0 and < 1"),
        ({"real_labels": (1, 0)}, "real_labels must be two numbers, the lower first"),
        ({"fake_labels": 0.3}, "fake_labels must be two numbers"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"training_images": 0}, "training_images must be a whole number >= 1"),
        (
            {"batch_norm": ("train",)},
            "batch_norm must be a list of some of eval, batch, each once; got ['train']",
        ),
        (
            {"losses": ()},
            "losses must be a list of some of mse, whitened, l1, bce, each once; got []",
        ),
        ({"losses": ("ssim",)}, "each once; got ['ssim']"),
        (
            {"losses": "mse"},
            "losses must be a list of some of mse, whitened, l1, bce, each once; got 'mse'",
        ),
        ({"batch_norm": 3}, "batch_norm must be a list of"),
        ({"image_shape": 32}, "image_shape must be (channels, height, width), got 32"),
        ({"width": "64"}, "width must be a whole number >= 1, got '64'"),
        ({"width": 0}, "width must be a whole number >= 1, got 0"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(change, message):
    with pytest.raises(InputError) as error:
        SMALL.replace(**change)
    assert message in str(error.value)


def test_the_documented_configurations_are_those_that_there_are():
    page = REPOSITORY / "docs" / "training.md"
    table = page.read_text(encoding="utf-8").partition("| `--config`")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    named = {name: row for row in rows for name in re.findall("`(.+?)`", row[0])}
    assert set(named) == set(CONFIGURATIONS)
    for name, (_, model, size, prior, batch, rate, iterations, _) in named.items():
        found = get_configuration(name)
        height, width = found.image_shape[1:]
        # An empty cell, or one that says so, is the same as in the row above.
        for cell, expected in (
            (re.search("`(.+?)`", model), found.model),
            (size, f"{height}×{width}"),
            (prior, found.prior.kind()),
            (batch, f"{found.batch_size}"),
            (rate, f"{found.learning_rate:g}"),
            (re.sub("[^0-9]", "", iterations), f"{found.iterations}"),
        ):
            text = cell[1] if isinstance(cell, re.Match) else (cell or "")
            assert text in ("", "the same", expected), (name, text)


def test_an_unknown_configuration_is_refused():
    with pytest.raises(InputError, match="configuration must be one of creswell, "):
        get_configuration("stylegan")


# The command


@pytest.fixture
def data(digits, tmp_path) -> Path:
    path = tmp_path / "digits.npy"
    np.save(path, digits)
    return path


def command(data: Path, folder: Path, *more: object) -> list[str]:
    words = ["train", "gan", "--data", data, "-o", folder, "--config", "egan-32"]
    words += ["--batch-size", 4, "--iterations", 2, "--threads", 1, *more]
    return [str(word) for word in words]


def test_the_command_trains_and_says_what_it_wrote(data, tmp_path, capsys, unexported):
    folder = tmp_path / "run"
    changed = ("--prior", "uniform", "--seed", 3, "--learning-rate", 0.001, "--json")
    assert main(command(data, folder, *changed, "--model", "dcgan")) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["bundles"] == {"eval": str(folder / "generator.bundle")}
    found = GanConfiguration.from_description(result["configuration"])
    assert found == get_configuration("egan-32").replace(
        batch_size=4,
        iterations=2,
        prior=Uniform(),
        seed=3,
        learning_rate=0.001,
        model="dcgan",
        source=get_configuration("egan-32").source
        + "; changed: model, prior, iterations, batch_size, learning_rate, seed",
    )
    assert read(folder)["configuration"] == found.describe()
    assert "training egan-32 on 64 images of digits, 1x32x32" in err


def test_the_command_changes_size_and_channels(data, tmp_path, capsys, unexported):
    assert main(command(data, tmp_path / "run", "--image-size", 64, "--channels", 3, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["configuration"]["image_shape"] == [3, 64, 64]


def test_the_command_changes_to_a_model_without_a_width(data, tmp_path, capsys, unexported):
    more = ("--config", "lipton-32", "--model", "creswell", "--image-size", 28, "--json")
    assert main(command(data, tmp_path / "run", *more)) == 0
    found = json.loads(capsys.readouterr().out)["configuration"]
    assert (found["model"], found["width"], found["image_shape"]) == ("creswell", None, [1, 28, 28])
    assert found["source"].endswith("; changed: model, iterations, batch_size, image_shape, width")


def test_the_command_can_be_interrupted(data, tmp_path, capsys, monkeypatch, unexported):
    average = Adversaries._average

    def interrupted(self, number):
        if number == 0:
            os.kill(os.getpid(), signal.SIGINT)
        average(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Adversaries, "_average", interrupted)
        assert main(command(data, tmp_path / "run")) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert read(tmp_path / "run")["iteration"] == 1
    assert main(command(data, tmp_path / "run")) == 0
    assert "continuing after iteration 1 of 2" in capsys.readouterr().err


def test_the_command_trains_with_as_many_threads_as_asked(
    data, tmp_path, capsys, monkeypatch, unexported
):
    step, asked, used = Adversaries.step, usable_cores() + 1, []

    def counted(self):
        used.append(torch.get_num_threads())
        return step(self)

    monkeypatch.setattr(Adversaries, "step", counted)
    assert main(command(data, tmp_path / "run", "--threads", asked)) == 0
    assert used == [asked, asked]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--config", "stylegan"), "configuration must be one of"),
        (("--data", "nowhere"), "nowhere: no such file or folder"),
        (("--image-size", "48"), "makes images of"),
        (("--iterations", "0"), "iterations must be a whole number >= 1"),
        (("--batch-size", "65"), "a batch of 65, got 64"),
        (("--device", "tpu"), "device must be"),
    ],
)
def test_the_command_refuses_in_one_line(data, tmp_path, capsys, more, message):
    assert main(command(data, tmp_path / "run", *more)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if message in line and "error" in line]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_the_command_needs_torch_only_to_train(data, tmp_path):
    program = """
import sys
sys.modules["torch"] = None
from pyinv.cli import main
assert main(["train", "gan", "--help"]) == 0
assert main(["train"]) == 2
sys.exit(main(sys.argv[1:]))
"""
    words = [sys.executable, "-c", program, *command(data, tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(install_command("export"))
    assert "Traceback" not in done.stderr
    for name in CONFIGURATIONS:
        assert name in done.stdout
