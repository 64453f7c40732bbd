"""The commands that messages advise: they install what an extra of pyproject.toml names."""

import re
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from pyinv import extras

PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()


@pytest.fixture(autouse=True)
def _forget():
    extras.install_command.cache_clear()
    yield
    extras.install_command.cache_clear()


def listed(extra):
    (line,) = re.findall(rf"^{extra} = \[(.*)\]", PROJECT, re.MULTILINE)
    return re.findall(r'"([^"]+)"', line)


@pytest.mark.parametrize("extra", ["cpu", "cuda", "export", "jobs", "plots"])
def test_the_command_names_the_packages_of_an_extra(extra):
    words = shlex.split(extras.install_command(extra))
    assert words[:2] == ["pip", "install"]
    assert words[2:] == listed(extra)


@pytest.mark.parametrize("extra", ["papers", "examples"])
def test_extras_that_include_others(extra):
    words = shlex.split(extras.install_command(extra))[2:]
    assert not any(word.startswith("pyinv") for word in words)
    own = [package for package in listed(extra) if not package.startswith("pyinv")]
    assert own
    assert set(own) | set(listed("export")) | set(listed("plots")) == set(words)
    assert len(set(words)) == len(words)


def test_without_metadata(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras.importlib.metadata, "requires", missing)
    assert extras.install_command("export") == "pip install 'pyinv[export]'"
