"""Generated input of every kind: it is read, or refused in one line, and nothing else happens.

For longer than here: python -m pytest tests/fuzz --fuzz 100000
"""

from __future__ import annotations

import pytest

from support.fuzzing import problems

for package in ("torch", "onnx", "pyarrow", "fastapi", "httpx2"):
    pytest.importorskip(package)

CASES = {
    "fuzz.archives": 800,
    "fuzz.convolutions": 1000,
    "fuzz.image_files": 1500,
    "fuzz.manifests": 4000,
    "fuzz.onnx_files": 500,
    "fuzz.serve_bodies": 300,
    "fuzz.torchscript_files": 200,
}


@pytest.mark.slow
@pytest.mark.parametrize("module", CASES)
def test_generated_cases(module: str, request: pytest.FixtureRequest) -> None:
    if module == "fuzz.torchscript_files":
        pytest.importorskip("pyinv._torch")
    count = request.config.getoption("--fuzz") or CASES[module]
    assert problems(module, range(count)) == []
