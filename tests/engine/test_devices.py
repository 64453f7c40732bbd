"""Which device a name stands for, and what is said where there is none."""

from __future__ import annotations

import pytest

from pyinv import _core
from pyinv.devices import available_devices, open_device, resolve_device
from pyinv.errors import DeviceError, OutOfMemoryError
from support.backends import Backend


@pytest.fixture
def gpus(request, monkeypatch):
    """A build and a machine with so many GPUs; None: a build without CUDA."""
    count = request.param
    monkeypatch.setattr(_core, "built_with_cuda", lambda: count is not None)
    monkeypatch.setattr(_core, "cuda_device_count", lambda: count or 0)
    return count


@pytest.mark.parametrize(
    ("gpus", "device", "runtime_has_cuda", "name"),
    [
        (None, "cpu", True, "cpu"),
        (None, "auto", True, "cpu"),
        (0, "auto", True, "cpu"),
        (1, "auto", True, "cuda:0"),
        (1, "auto", False, "cpu"),
        (2, "cpu", True, "cpu"),
        (2, "cuda", True, "cuda:0"),
        (2, "cuda:1", True, "cuda:1"),
    ],
    indirect=["gpus"],
)
def test_names(gpus, device, runtime_has_cuda, name):
    assert resolve_device(device, runtime_has_cuda=runtime_has_cuda) == name
    assert len(available_devices()) == 1 + (gpus or 0)


@pytest.mark.parametrize(
    ("gpus", "device", "problem"),
    [
        (None, "cuda", "this build has no CUDA, got device='cuda'; use device=\"cpu\""),
        (0, "cuda:1", "no GPU was found, got device='cuda:1'; use device=\"cpu\""),
        (1, "cuda:1", "there is 1 GPU, got device='cuda:1'; use cuda:0"),
        (2, "cuda:2", "there are 2 GPUs, got device='cuda:2'; use cuda:0 or cuda:1"),
        (2, "gpu", "or \"auto\", got 'gpu'"),
        (2, "cuda:-1", "got 'cuda:-1'"),
        (2, 0, "got 0"),
    ],
    indirect=["gpus"],
)
def test_what_is_not_there(gpus, device, problem):
    with pytest.raises(DeviceError) as error:
        resolve_device(device, runtime_has_cuda=True)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(_core.cuda_device_count() > 0, reason="there is a GPU")
def test_a_full_gpu_is_one_clear_error(monkeypatch):
    def cuda_device(index):
        raise _core.OutOfMemory(f"GPU {index} has no room for another 64 bytes")

    monkeypatch.setattr(_core, "cuda_device", cuda_device)
    with pytest.raises(OutOfMemoryError) as error:
        open_device("cuda:1")
    assert str(error.value) == (
        "cuda:1 has no memory left (GPU 1 has no room for another 64 bytes); "
        'free some, or use device="cpu"'
    )


def test_a_promised_gpu_that_is_missing_fails_the_test(monkeypatch):
    monkeypatch.delenv("PYINV_REQUIRE_CUDA", raising=False)
    with pytest.raises(pytest.skip.Exception):
        Backend("onnx", "cuda").require()
    monkeypatch.setenv("PYINV_REQUIRE_CUDA", "1")
    with pytest.raises(pytest.fail.Exception, match="PYINV_REQUIRE_CUDA=1, but "):
        Backend("onnx", "cuda").require()
