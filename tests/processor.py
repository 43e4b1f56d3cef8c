"""Native levels run where the device has their products: tests of others are skipped."""

import pytest
import torch

from tmpdiff_bench.levels import Device, Level, reason_against


def reason(level: str, device: str = "cpu") -> str | None:
    """Why a native level doesn't run here."""
    return reason_against(Level.parse(level), Device.of(torch.device(device)))


def needs(level: str, device: str = "cpu") -> pytest.MarkDecorator:
    """Skip where a native level doesn't run."""
    why = reason(level, device)
    return pytest.mark.skipif(bool(why), reason=f"{level}: {why}")


RUNNING = [level for level in ("native:bf16", "native:w8a8") if not reason(level)]
