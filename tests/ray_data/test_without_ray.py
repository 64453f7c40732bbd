"""What pyinv.ray says where Ray is missing."""

from __future__ import annotations

import importlib
import sys

import pytest

from pyinv import DependencyError


def test_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pyinv.ray", raising=False)
    with pytest.raises(
        DependencyError, match=r"pyinv\.ray needs Ray Data .*; run: pip install .*ray"
    ):
        importlib.import_module("pyinv.ray")
