"""Peak rates of accelerators, of which the utilization of a run is a share."""

import re

import jax

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
"""Floating-point operations a second of one device in dense products of bfloat16, by words of its kind, as makers publish them
(v5 lite: v5e, v5: v5p, v6 lite: v6e). Where several are in a kind, the first counts."""


def peak_flops(device: jax.Device) -> float | None:
    """The peak of a device, operations a second; None where its kind is not in the table."""
    words = (name for name in PEAKS if re.search(rf"\b{name}\b", device.device_kind))
    return PEAKS.get(next(words, ""))
