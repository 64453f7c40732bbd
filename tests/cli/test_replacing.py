"""Existing files: inputs are never replaced, others only with --overwrite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyinv.atomic_files import OutputFile, refuse_inputs
from pyinv.cli import main
from pyinv.errors import OutputError

HELD = b"what was there before"


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "0-image.png"
    Image.new("L", (8, 8)).save(path)
    return path


def run(capsys, *arguments: object) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed to standard error."""
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "name"),
    [("generate", "out.npz"), ("generate", "out.png"), ("invert", "out.npz")],
)
def test_a_file_is_replaced_only_if_asked(capsys, bundle_path, image, tmp_path, command, name):
    out = tmp_path / name
    out.write_bytes(HELD)
    read = [image, "--max-steps", 1] if command == "invert" else []
    arguments = [command, bundle_path, *read, "-o", out]
    code, message = run(capsys, *arguments)
    assert code == 1
    assert f"{out}: exists; give another name, or pass --overwrite" in message
    assert out.read_bytes() == HELD
    assert run(capsys, *arguments, "--overwrite")[0] == 0
    assert out.read_bytes() != HELD


def test_encode_asks_too(capsys, bundle_path, image, tmp_path):
    out = tmp_path / "out.npz"
    out.write_bytes(HELD)
    assert "exists" in run(capsys, "encode", bundle_path, image, "-o", out)[1]
    with_option = run(capsys, "encode", bundle_path, image, "-o", out, "--overwrite")[1]
    assert "has no encoder" in with_option
    assert "is an input" in run(capsys, "encode", bundle_path, out, "-o", out, "--overwrite")[1]
    assert out.read_bytes() == HELD


@pytest.mark.parametrize("option", ["images", "--init", "--weights", "latents"])
def test_an_input_is_never_replaced(capsys, bundle_path, image, tmp_path, option):
    path = tmp_path / "in.npz"
    np.savez(path, images=np.zeros((1, 1, 8, 8), np.float32))
    before = path.read_bytes()
    alias = tmp_path / "alias.npz"
    alias.symlink_to(path)
    arguments = {
        "images": ["invert", bundle_path, path],
        "latents": ["generate", bundle_path, "--latents", path],
    }.get(option, ["invert", bundle_path, image, option, path])
    for out in (path, alias):
        code, message = run(capsys, *arguments, "-o", out, "--overwrite")
        assert code == 1
        assert f"{out}: is an input, and inputs are never replaced" in message
        assert path.read_bytes() == before


def test_pictures_replace_no_others_and_no_inputs(capsys, bundle_path, image, tmp_path):
    before = image.read_bytes()
    arguments = ["invert", bundle_path, image, "-o", tmp_path / "a.npz", "--max-steps", 1]
    pictures = tmp_path / "0-0-image.png"  # what the run calls its picture
    pictures.write_bytes(HELD)
    code, message = run(capsys, *arguments, "--save-images", tmp_path)
    assert (code, pictures.read_bytes()) == (1, HELD)
    assert f"{pictures}: exists" in message
    assert not (tmp_path / "a.npz").exists()
    pictures.unlink()
    pictures.symlink_to(image)
    code, message = run(capsys, *arguments, "--save-images", tmp_path, "--overwrite")
    assert (code, image.read_bytes()) == (1, before)
    assert f"{pictures}: is an input" in message
    pictures.unlink()
    code, _ = run(capsys, *arguments, "--save-images", tmp_path, "--overwrite")
    assert code in (0, 3)
    assert pictures.exists()


def test_generated_pictures_replace_no_others(capsys, bundle_path, tmp_path):
    held = tmp_path / "1.png"
    held.write_bytes(HELD)
    arguments = ["generate", bundle_path, "-n", 2, "-o", f"{tmp_path}/"]
    assert run(capsys, *arguments)[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]
    assert held.read_bytes() == HELD
    assert run(capsys, *arguments, "--overwrite")[0] == 0


def test_a_symbolic_link_is_followed(tmp_path):
    real = tmp_path / "real.bin"
    real.write_bytes(HELD)
    link = tmp_path / "link.bin"
    link.symlink_to(real)
    with OutputFile(link, overwrite=True) as output:
        output.write(lambda file: file.write(b"new"))  # type: ignore[arg-type, return-value]
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.bin", "real.bin"]


@pytest.mark.parametrize("held", ["report.html", "numbers.json"])
def test_a_report_replaces_only_reports(capsys, bundle_path, tmp_path, held):
    path = tmp_path / held
    path.write_bytes(HELD)
    code, message = run(
        capsys, *("reproduce", "lipton", "--generator", bundle_path, "-o", tmp_path)
    )
    assert (code, path.read_bytes()) == (1, HELD)
    assert f"{path}: exists and is not a report's; give another folder" in message


def test_a_report_is_not_written_into_a_bundle(capsys, bundle_path):
    arguments = ("reproduce", "lipton", "--generator", bundle_path, "-o", bundle_path)
    assert "is an input" in run(capsys, *arguments)[1]


def test_an_export_does_not_replace_the_folder_of_its_input(capsys, bundle_path):
    pytest.importorskip("torch")
    source = bundle_path / "forward.onnx"
    options = ("--latent-shape", 4, "--prior", "normal", "--overwrite")
    arguments = ("export", source, "-o", bundle_path, *options)
    code, message = run(capsys, *arguments)
    assert code == 1
    assert f"{bundle_path}: contains the input {source}, and inputs are never replaced" in message
    assert source.exists()


def test_a_training_does_not_delete_its_data(capsys, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "configuration.json").write_text("{}")
    data = tmp_path / "samples"
    data.mkdir()
    Image.new("L", (32, 32)).save(data / "1.png")
    arguments = ("train", "gan", "--data", data, "-o", tmp_path, "--overwrite")
    code, message = run(capsys, *arguments, "--image-size", 32, "--channels", 1)
    assert code == 1
    assert "contains the input" in message
    assert (data / "1.png").exists()


def test_inputs_that_do_not_exist_are_ignored(tmp_path):
    refuse_inputs(tmp_path, [tmp_path / "nothing", "module:factory"], within=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="contains the input"):
        refuse_inputs(tmp_path, [tmp_path / "file"], within=True)
