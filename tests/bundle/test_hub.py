"""Bundles in repositories of the hub: uploaded and downloaded by huggingface_hub itself.

It reads where the hub is when it is imported, so each program is a process of its own here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("huggingface_hub", reason="the hub needs huggingface_hub")

import pyinv
from pyinv.bundle import Bundle
from support.fake_hub import FakeHub, fake_hub

# What would change what the programs do, on the machine that runs the tests.
SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_CACHE_HOME", "PYINV_CACHE")


class Machine:
    """A user's machine: its programs see the hub, and share a cache."""

    def __init__(self, hub: FakeHub, home: Path) -> None:
        self.hub, self.home, self.cache = hub, home, home / "cache"

    def run(self, *command: str, token: str | None = None, **more: str) -> tuple[int, str, str]:
        """Run Python with these arguments; return the exit code, stdout and stderr."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
        environment |= {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_DISABLE_XET": "1",  # the hub's other protocol, without HTTP
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYINV_CACHE": str(self.cache),
            **({} if token is None else {"HF_TOKEN": token}),
            **more,
        }
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    def python(self, code: str, **more: Any) -> Any:
        """Run a program and return the JSON that it prints."""
        status, out, errors = self.run("-c", f"import json, pyinv\n{code}", **more)
        assert (status, errors) == (0, "")
        return json.loads(out)

    def info(self, bundle: str, **more: Any) -> tuple[int, str, str]:
        return self.run("-m", "pyinv", "info", "--json", bundle, **more)

    def push(self, path: Path, to: str = "ada/tiny", arguments: str = "") -> str:
        address: str = self.python(
            f"print(json.dumps(pyinv.Bundle.open({str(path)!r}).push_to_hub({to!r}, {arguments})))",
            token="hf_ada",
        )
        return address


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        yield running


@pytest.fixture
def machine(hub: FakeHub, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path)


INVERT = """
inverter = pyinv.Inverter.from_pretrained({source!r}, threads=1, batch_size=4)
latents = inverter.invert(inverter.generate(inverter.sample(3, seed=5)), max_steps=20).latents
print(json.dumps([str(inverter.bundle.path), inverter.bundle.digest, latents.tolist()]))
"""


def test_what_is_pushed_is_opened_elsewhere(hub, machine, bundle_path):
    local = pyinv.Inverter(bundle_path, threads=1, batch_size=4)
    address = machine.push(bundle_path)
    manifest = local.bundle.manifest
    held = hub.files("ada/tiny")
    assert set(held) == {".gitattributes", "README.md", "manifest.json", *manifest.files}
    assert held["weights.bin"] == (bundle_path / "weights.bin").read_bytes()
    assert any("/storage/" in request for request in hub.requests)  # the weights are a large file
    assert address == f"hf://ada/tiny@{hub.repositories['ada/tiny'].branches['main']}"

    path, digest, latents = machine.python(INVERT.format(source="ada/tiny"))
    assert digest == local.bundle.digest
    assert Path(path) == machine.cache / "bundles" / digest.removeprefix("sha256:")
    expected = local.invert(local.generate(local.sample(3, seed=5)), max_steps=20).latents
    np.testing.assert_array_equal(np.array(latents, dtype=np.float32), expected)
    assert sorted(hub.downloads()) == sorted(["manifest.json", *manifest.files])  # and no card
    assert {file.name for file in Path(path).iterdir()} == {"manifest.json", *manifest.files}

    # Again: the manifest alone, and offline not even that.
    status, out, errors = machine.info("hf://ada/tiny")
    assert (status, errors, json.loads(out)["path"]) == (0, "", path)
    assert hub.downloads().count("weights.bin") == 1
    requests = len(hub.requests)
    status, out, errors = machine.info("hf://ada/tiny", HF_HUB_OFFLINE="1")
    assert (status, errors, json.loads(out)["path"]) == (0, "", path)
    assert len(hub.requests) == requests


def test_the_model_card_is_made_from_the_manifest_once(hub, machine, bundle_path, tmp_path):
    machine.push(bundle_path, arguments="license='apache-2.0', private=True")
    assert hub.repositories["ada/tiny"].private
    card = hub.files("ada/tiny")["README.md"].decode()
    head, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(head) == {
        "library_name": "pyinv",
        "license": "apache-2.0",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["generator-inversion", "latent-inversion", "onnx"],
    }
    for line in (
        "# tiny",
        'inverter = pyinv.Inverter.from_pretrained("ada/tiny")',
        "inversion = inverter.invert(images)  # [N, 1, 8, 8]",
        "| latent | [6], uniform on [-1, 1] |",
        "| image | [1, 8, 8], values in [-1, 1] |",
        "| losses | mse, l1, bce |",
        f"| digest | {Bundle.open(bundle_path).digest} |",
    ):
        assert f"\n{line}\n" in body
    hub.repositories["ada/tiny"].commit("main", {"README.md": b"by hand"}, "a better card")
    status, out, _ = machine.run(
        *("-m", "pyinv", "push", "--json", str(bundle_path), "ada/tiny", "--message", "again"),
        token="hf_ada",
    )
    assert status == 0
    address = json.loads(out)["address"]
    assert hub.files("ada/tiny")["README.md"] == b"by hand"
    assert hub.repositories["ada/tiny"].messages[-1] == "again"
    assert hub.files("ada/tiny", address.partition("@")[2])["README.md"] == b"by hand"


def test_revisions(hub, machine, bundle_path, normal_bundle_path):
    hub.add("ada/tiny", bundle_path)
    first = f"hf://ada/tiny@{hub.repositories['ada/tiny'].branches['main']}"
    hub.add("ada/tiny", normal_bundle_path)
    machine.push(bundle_path, arguments="revision='uniform'")
    uniform, normal = Bundle.open(bundle_path).digest, Bundle.open(normal_bundle_path).digest
    found = machine.python(f"""
opened = [
    pyinv.Bundle.from_pretrained("ada/tiny"),
    pyinv.Bundle.from_pretrained("ada/tiny", revision="uniform"),
    pyinv.Bundle.from_pretrained("hf://ada/tiny@uniform"),
    pyinv.Bundle.open({first!r}),
]
try:
    pyinv.Bundle.from_pretrained("hf://ada/tiny@uniform", revision="main")
except pyinv.InputError as error:
    refused = str(error)
print(json.dumps([[bundle.digest for bundle in opened], refused]))
""")
    assert found[0] == [normal, uniform, uniform, uniform]
    assert found[1] == "hf://ada/tiny@uniform: has another revision than 'main'; give one of them"
    assert hub.downloads().count("weights.bin") == 2  # a bundle has one copy
    status, _, errors = machine.info("hf://ada/tiny@v9")
    assert (status, errors) == (1, "pyinv: error: hf://ada/tiny@v9: has no revision 'v9'\n")


def test_a_bundle_in_a_folder_of_a_repository(hub, machine, bundle_path):
    hub.add("ada/several", bundle_path, inside="sub/tiny.bundle/")
    status, out, _ = machine.info("hf://ada/several/sub/tiny.bundle")
    assert (status, json.loads(out)["digest"]) == (0, Bundle.open(bundle_path).digest)
    assert "sub/tiny.bundle/weights.bin" in hub.downloads()
    status, _, errors = machine.info("hf://ada/several")
    assert status == 1
    assert errors == (
        "pyinv: error: hf://ada/several: no pyinv bundle there, it has no manifest.json; give the "
        "address of the folder that export wrote\n"
    )


NOT_FOUND = (
    "no such repository, or a private one; give its name as USER/NAME and a token that may read "
    "it, or log in with `hf auth login`"
)


def test_private_repositories(hub, machine, bundle_path):
    hub.add("ada/tiny", bundle_path, private=True)
    for token in (None, "hf_bob"):
        status, _, errors = machine.info("hf://ada/tiny", token=token)
        assert (status, errors) == (1, f"pyinv: error: hf://ada/tiny: {NOT_FOUND}\n")
    assert machine.info("hf://ada/tiny", token="hf_ada")[0] == 0
    # What is in the cache does not help those who may not read it.
    assert machine.info("hf://ada/tiny", token="hf_bob")[0] == 1
    code = "print(json.dumps(pyinv.Bundle.from_pretrained('ada/tiny', token='hf_ada').digest))"
    assert machine.python(code) == Bundle.open(bundle_path).digest


def error_of(machine: Machine, code: str, **more: Any) -> str:
    """Return the kind and message of the error of a program."""
    return machine.python(
        f"try:\n    {code}\nexcept pyinv.PyinvError as error:\n"
        "    print(json.dumps(f'{type(error).__name__}: {error}'))",
        **more,
    )


def test_what_cannot_be_downloaded(hub, machine, bundle_path):
    expected = f"BundleError: hf://ada/nothing: {NOT_FOUND}"
    assert error_of(machine, "pyinv.Inverter.from_pretrained('ada/nothing')") == expected
    assert error_of(machine, "pyinv.Bundle.open('hf://ada')").startswith(
        "InputError: hf://ada: expected hf://USER/NAME, perhaps with @REVISION and /FOLDER"
    )
    assert error_of(machine, "pyinv.Bundle.open('hf://ada/x')", HF_HUB_OFFLINE="1") == (
        "BundleError: hf://ada/x: cannot be reached (HF_HUB_OFFLINE is set), and "
        f"{machine.cache} has no copy of it"
    )
    down = error_of(machine, "pyinv.Bundle.open('hf://ada/x')", HF_ENDPOINT="http://127.0.0.1:9")
    assert down.startswith("BundleError: hf://ada/x: cannot be reached (")
    assert "\n" not in down
    assert "access denied" in error_of(machine, "pyinv.Bundle.open('hf://ada/x')", token="hf_no")


def test_a_file_that_the_hub_damaged_is_refused(hub, machine, bundle_path):
    hub.add("ada/tiny", bundle_path)
    weights = (bundle_path / "weights.bin").read_bytes()
    oid = hashlib.sha256(weights).hexdigest()
    hub.stored[oid] = bytes([weights[0] ^ 1]) + weights[1:]
    status, _, errors = machine.info("hf://ada/tiny")
    assert status == 1
    assert errors == (
        "pyinv: error: hf://ada/tiny/weights.bin: its SHA-256 is not the manifest's, so it was "
        "changed or damaged; export or copy the bundle again\n"
    )
    assert list((machine.cache / "bundles").iterdir()) == []
    hub.stored[oid] = weights
    assert machine.info("hf://ada/tiny")[0] == 0


def test_what_cannot_be_pushed(hub, machine, changed_bundle):
    def push(arguments: str, token: str | None = "hf_ada") -> str:
        code = f"pyinv.Bundle.open({str(changed_bundle)!r}).push_to_hub({arguments})"
        return error_of(machine, code, token=token)

    denied = "access denied; give a token that has access, or log in with `hf auth login`"
    assert push("'ada/tiny'", token=None) == f"BundleError: hf://ada/tiny: {denied}"
    assert push("'bob/tiny'") == f"BundleError: hf://bob/tiny: {denied}"
    assert push("'tiny'") == "InputError: expected a repository USER/NAME, got 'tiny'"
    hub.add("ada/tiny", changed_bundle)
    held = hub.files("ada/tiny")
    assert push("'ada/tiny', private=True") == (
        "OutputError: hf://ada/tiny: exists and is public; make it private on the hub first, or "
        "choose another name"
    )
    weights = bytearray((changed_bundle / "weights.bin").read_bytes())
    weights[0] ^= 1
    (changed_bundle / "weights.bin").write_bytes(weights)
    assert "its SHA-256 is not the manifest's" in error_of(
        machine,
        f"pyinv.Bundle.open({str(changed_bundle)!r}, verify=False).push_to_hub('ada/tiny')",
        token="hf_ada",
    )
    assert hub.files("ada/tiny") == held
