"""Bundles at URLs: downloaded once, verified, and never seen in part."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec", reason="URLs need fsspec")
pytest.importorskip("aiohttp", reason="URLs of http need aiohttp")
pytest.importorskip("filelock", reason="the cache needs filelock")

import pyinv  # noqa: E402
from pyinv.bundle import Bundle  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.download import cache_folder  # noqa: E402
from pyinv.errors import BundleError, DependencyError, InputError, OutputError, PyinvWarning  # noqa: E402
from support.bundle_server import BundleServer, bundle_server  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("PYINV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(changed_bundle: Path) -> Iterator[BundleServer]:
    """A server of ``changed_bundle``."""
    with bundle_server(changed_bundle.parent) as running:
        yield running


@pytest.fixture
def address(server: BundleServer, changed_bundle: Path) -> str:
    return f"{server.url}/{changed_bundle.name}"


def in_memory(path: Path) -> str:
    """Copy a bundle into fsspec's memory and return its address."""
    address = f"memory://bundles/{path.parent.name}-{path.name}"
    fsspec.filesystem("memory").put(str(path), address, recursive=True)
    return address


def bundles(cache: Path) -> list[str]:
    return sorted(folder.name for folder in (cache / "bundles").iterdir())


def drafts(cache: Path) -> list[Path]:
    return list(cache.glob("addresses/*/draft-*"))


def test_a_bundle_at_a_url_is_that_bundle(changed_bundle, address, cache):
    local = Bundle.open(changed_bundle)
    place = cache / "bundles" / local.digest.removeprefix("sha256:")
    sources = [in_memory(changed_bundle), address, address + "/", f"file://{changed_bundle}"]
    for source in sources:
        bundle = Bundle.from_pretrained(source)
        assert bundle == Bundle.open(source) == Bundle(place, local.manifest, local.digest)
        assert pyinv.Inverter.from_pretrained(source, threads=1, batch_size=3).batch_size == 3
    assert bundles(cache) == [place.name]
    assert drafts(cache) == []
    assert place.stat().st_mode == changed_bundle.stat().st_mode


def test_only_what_the_manifest_lists_is_downloaded_and_that_once(
    changed_bundle, server, address, cache
):
    (changed_bundle / "notes.txt").write_text("no part of the bundle")
    bundle = Bundle.open(address)
    Bundle.open(address)
    names = ["manifest.json", *bundle.manifest.files]
    assert sorted(file.name for file in bundle.path.iterdir()) == sorted(names)
    path = f"/{changed_bundle.name}"
    counts = {f"{path}/{name}": 1 for name in names} | {f"{path}/manifest.json": 2}
    assert dict(server.downloads) == counts


def test_what_changes_at_an_address_is_downloaded_again(changed_bundle, address, cache):
    before = Bundle.open(address)
    described = json.loads((changed_bundle / "manifest.json").read_text())
    (changed_bundle / "manifest.json").write_text(json.dumps(described | {"name": "newer"}))
    after = Bundle.open(address)
    assert after.manifest.name == "newer"
    assert after.digest == Bundle.open(changed_bundle).digest != before.digest
    assert Bundle.open(before.path).digest == before.digest  # still there for who uses it
    assert len(bundles(cache)) == 2


def test_commands_take_addresses(changed_bundle, address, cache, tmp_path, capsys):
    assert main(["generate", address, "-n", "2", "-o", str(tmp_path / "x.npy")]) == 0
    assert main(["info", "--json", address]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["digest"] == Bundle.open(changed_bundle).digest
    arguments = ["invert", address, str(tmp_path / "x.npy"), "-o", str(tmp_path / "z.npz")]
    assert main([*arguments, "--max-steps", "3", "--threads", "1"]) in (0, None)


def test_a_path_that_exists_is_never_an_address(changed_bundle, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    for name in ("user/name", "hf://user/name"):
        shutil.copytree(changed_bundle, name)
        assert Bundle.from_pretrained(name).path == (tmp_path / name).absolute()
        assert Bundle.open(name).path == (tmp_path / name).absolute()
    assert not cache.exists()
    with pytest.raises(InputError, match="user/name: a folder has no revision; leave it out"):
        Bundle.from_pretrained("user/name", revision="main")
    # Elsewhere than in from_pretrained, a name of two parts is a path.
    for source in ("other/name", Path("other/name")):
        with pytest.raises(BundleError, match="other/name: no such bundle; expected the folder th"):
            Bundle.open(source)
    with pytest.raises(BundleError, match="other/name: no such bundle"):
        Bundle.from_pretrained(Path("other/name"))
    with pytest.raises(BundleError, match="not-there: no such bundle"):
        Bundle.from_pretrained("not-there")


def test_the_place_of_the_cache(monkeypatch, tmp_path, changed_bundle, address):
    assert cache_folder("given") == Path("given")
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PYINV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/pyinv")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "pyinv"
    bundle = Bundle.from_pretrained(address, cache_dir=tmp_path / "mine")
    assert bundle.path.parent == tmp_path / "mine" / "bundles"


# Damage and trouble ---------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "weights.bin").read_bytes())
    content[100] ^= 1
    (path / "weights.bin").write_bytes(content)


def change_manifest(path: Path, **changes: Any) -> None:
    described = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(described | changes))


def list_as(path: Path, name: str) -> None:
    """Have the manifest list the weights once more, under another name."""
    files = json.loads((path / "manifest.json").read_text())["files"]
    change_manifest(path, files=files | {name: files["weights.bin"]})


def escape(path: Path) -> None:
    """Have the manifest list a file outside the bundle, which is there."""
    shutil.copy(path / "weights.bin", path.parent / "secret")
    list_as(path, "../secret")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "/weights.bin: its SHA-256 is not the manifest's, so it was changed or damag"),
        (lambda path: (path / "weights.bin").unlink(), ": weights.bin is missing from the bundle"),
        (lambda path: (path / "weights.bin").write_bytes(b""), "/weights.bin: expected 4800 bytes"),
        (lambda path: (path / "manifest.json").unlink(), ": no pyinv bundle there, it has no mani"),
        (lambda path: (path / "manifest.json").write_text("{"), ": manifest.json is not valid"),
        (
            lambda path: change_manifest(path, format_version=9),
            ": manifest.json has format_version 9",
        ),
        (escape, ': manifest.json.files must hold plain file names, got "../secret"'),
        (
            lambda path: list_as(path, "a\0b"),
            ": manifest.json.files must have no control characters",
        ),
    ],
)
def test_a_damaged_bundle_is_refused_and_not_kept(changed_bundle, address, cache, damage, message):
    damage(changed_bundle)
    with pytest.raises(BundleError) as error:
        Bundle.open(address)
    assert str(error.value).startswith(address + message)
    assert "\n" not in str(error.value)
    assert bundles(cache) == drafts(cache) == []


def test_a_damaged_copy_in_the_cache_is_replaced(address, changed_bundle, server):
    path = Bundle.open(address).path
    flip_a_bit(path)
    assert Bundle.open(address).path == path
    assert (path / "weights.bin").read_bytes() == (changed_bundle / "weights.bin").read_bytes()
    # So is an intact one of another bundle.
    change_manifest(path, name="another")
    assert Bundle.open(address).manifest.name == "tiny"
    assert server.downloads[f"/{changed_bundle.name}/weights.bin"] == 3


@pytest.mark.parametrize("trouble", ["down", 503])
def test_without_its_server_the_last_copy_is_opened_with_a_warning(
    changed_bundle, tmp_path, trouble, cache
):
    with bundle_server(changed_bundle.parent) as server:
        address = f"{server.url}/{changed_bundle.name}"
        if trouble == 503:
            server.status = 503
            with pytest.raises(BundleError) as error:
                Bundle.open(address)
            assert str(error.value).startswith(f"{address}: cannot be reached (")
            assert str(error.value).endswith(f"), and {cache} has no copy of it")
            server.status = 200
        digest = Bundle.open(address).digest
        if trouble == 503:
            server.status = 503
            with pytest.warns(PyinvWarning, match=f"opening the copy downloaded before, {digest}"):
                assert Bundle.open(address).digest == digest
            server.status = 403  # a copy does not give access
            with pytest.raises(BundleError, match="access denied"):
                Bundle.open(address)
    if trouble == "down":
        with pytest.warns(
            PyinvWarning, match=r"cannot be reached \(.*\); opening the copy"
        ) as said:
            assert Bundle.open(address).digest == digest
        assert said[0].filename == __file__
        flip_a_bit(cache / "bundles" / digest.removeprefix("sha256:"))
        with pytest.raises(BundleError, match="has no copy of it"):
            Bundle.open(address)


def test_addresses_that_are_refused(changed_bundle, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"nope://x/y: Protocol not known: nope"):
        Bundle.open("nope://x/y")
    with pytest.raises(
        InputError, match="memory://x: revision and token are for hf://USER/NAME; l"
    ):
        Bundle.from_pretrained("memory://x", revision="main")
    with pytest.raises(BundleError, match=r"memory://nothing: no pyinv bundle there"):
        Bundle.open("memory://nothing")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DependencyError, match=r"s3://bucket/b: .*s3fs"):
        Bundle.open("s3://bucket/b")
    (tmp_path / "file").touch()
    with pytest.raises(
        OutputError, match=r"file: cannot hold downloaded bundles \(.*\); make room"
    ):
        Bundle.from_pretrained(in_memory(changed_bundle), cache_dir=tmp_path / "file")


@pytest.mark.parametrize(
    ("package", "address"),
    [("fsspec.core", "s3://b"), ("filelock", "memory://b"), ("huggingface_hub", "hf://ada/b")],
)
def test_a_missing_package_is_named_with_the_command(monkeypatch, package, address):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError) as error:
        Bundle.open(address)
    message = f"{address}: bundles elsewhere need more packages: pip install 'huggingface_hub"
    assert str(error.value).startswith(message)


# Several at once ------------------------------------------------------------------------------


def start(address: str) -> subprocess.Popen[str]:
    code = (
        "import fsspec.implementations.http, filelock, pyinv\n"
        "print('ready', flush=True)\n"
        f"print(pyinv.Bundle.open({address!r}).path)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_that_open_one_address_download_it_once(server, address, changed_bundle, cache):
    server.gate = threading.Event()
    weights = f"/{changed_bundle.name}/weights.bin"
    processes = [start(address) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    wait_for(lambda: server.downloads[weights])
    time.sleep(1)  # enough for the other to come as far, if it did not wait
    assert bundles(cache) == []
    server.gate.set()
    paths = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert paths[0] == paths[1] == str(cache / "bundles" / bundles(cache)[0])
    assert server.downloads[weights] == 1


def test_two_addresses_of_one_bundle_at_once(server, address, changed_bundle, cache):
    server.gate = threading.Barrier(2)  # neither is in the cache when both are downloaded
    other = address.replace("127.0.0.1", "localhost")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(Bundle.open, [address, other])
    assert first == second
    assert bundles(cache) == [first.path.name]
    assert drafts(cache) == []
    assert server.downloads[f"/{changed_bundle.name}/weights.bin"] == 2


def test_what_a_killed_process_left_is_neither_used_nor_kept(
    server, address, changed_bundle, cache
):
    server.gate = threading.Event()
    process = start(address)
    wait_for(lambda: server.downloads[f"/{changed_bundle.name}/weights.bin"])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert bundles(cache) == []
    assert len(drafts(cache)) == 1
    server.gate.set()
    assert Bundle.open(address).digest == Bundle.open(changed_bundle).digest
    assert drafts(cache) == []
