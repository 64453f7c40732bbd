"""Audio files: WAV to float arrays, with the standard library."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import InputError, reading

__all__ = ["WAV_SUFFIXES", "read_wav"]

WAV_SUFFIXES = (".wav", ".wave")


def read_wav(path: Path) -> NDArray[np.float32]:
    """Read a WAV file of PCM samples with 8, 16, 24 or 32 bits.

    Returns:
        float32 [channels, frames] in [-1, 1): an integer sample divided by 2^(bits - 1).

    Raises:
        InputError: the file cannot be read, is truncated, or holds other samples than PCM.
    """
    remedy = "save it as 16-bit PCM, or its values as .npy"
    with reading(path, "WAV file of PCM samples", remedy), wave.open(str(path), "rb") as file:
        width, channels, frames = file.getsampwidth(), file.getnchannels(), file.getnframes()
        data = file.readframes(frames)
    if width not in (1, 2, 3, 4):
        raise InputError(f"{path}: expected 8, 16, 24 or 32 bits per sample, got {8 * width}")
    if len(data) != frames * channels * width:
        raise InputError(
            f"{path}: expected {frames} frames of audio, got "
            f"{len(data) // (channels * width)}; the file is truncated"
        )
    samples = _integers(data, width).reshape(frames, channels)
    return np.ascontiguousarray(samples.T / 2.0 ** (8 * width - 1), dtype=np.float32)


def _integers(data: bytes, width: int) -> NDArray[np.int32]:
    """Return little-endian samples as signed integers."""
    if width == 1:  # unsigned, as opposed to all others
        return np.frombuffer(data, np.uint8).astype(np.int32) - 128
    if width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return padded.view("<i4").ravel().astype(np.int32) >> 8
    return np.frombuffer(data, f"<i{width}").astype(np.int32)
