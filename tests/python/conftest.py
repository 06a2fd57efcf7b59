"""Shared: random arrays whose seed is the test's, NumPy's float dtypes, and a note when PyTorch is absent."""

import importlib.util
import zlib

import numpy as np
import pytest

try:
    import ml_dtypes

    BFLOAT16 = [np.dtype(ml_dtypes.bfloat16)]
except ImportError:
    BFLOAT16 = []

DTYPES = [np.dtype(np.float32), np.dtype(np.float16)] + BFLOAT16
# Half the distance between two neighbours at 1: the rounding of a result.
EPSILON = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def pytest_report_header(config):
    missing = [name for name in ("torch", "ml_dtypes") if importlib.util.find_spec(name) is None]
    lines = [f"tessera: {name} is not installed; its tests are skipped" for name in missing]
    from tessera import _core

    if not _core.cuda_devices().isdigit():
        lines.append(f"tessera: {_core.cuda_devices()}; tests on CUDA tensors are skipped")
    return lines


@pytest.fixture
def rng(request):
    """Random numbers of the test's own; the seed is its name's."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
