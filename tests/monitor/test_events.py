from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

import lenet.monitor.events  # noqa: F401


@given(data=st.binary(max_size=40))
def test_checksums_are_tensorboards(data: bytes) -> None:
    # Castagnoli's CRC of 32 bits, from its polynomial, bit by bit.
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert pywrap_tensorflow.crc32c(data) == crc ^ 0xFFFFFFFF
