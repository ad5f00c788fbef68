#!/usr/bin/env python3
"""Writes tests/fixtures/gguf_blocks.bin: random blocks of every GGUF type with the values of the package `gguf`.

    pip install gguf==0.19.0 numpy
    python scripts/make_gguf_fixtures.py

For each type: its name (8 bytes, padded with zeros), the number of blocks (u32), the blocks, and their values (f32), all
little-endian. Scales are finite: among them are zeros of both signs, subnormal and large numbers.
"""

import struct
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

BLOCKS = 12
TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
# Offsets of the f16 scales in a block.
SCALES = {
    "F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
}
SPECIAL = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x0400, 0x3C00]


def main():
    rng = np.random.default_rng(15)
    out = bytearray()
    for name in TYPES:
        kind = GGMLQuantizationType[name]
        block_len, block_bytes = GGML_QUANT_SIZES[kind]
        blocks = BLOCKS if block_len > 1 else 8 * BLOCKS
        data = rng.integers(0, 256, (blocks, block_bytes), dtype=np.uint8)
        if name in ("F32", "BF16"):
            data[:, -1] &= 0xBF  # Below 2, so finite.
        for at in SCALES.get(name, []):
            bits = rng.integers(0, 1 << 16, blocks).astype(np.uint16)
            bits[: len(SPECIAL)] = rng.permutation(SPECIAL)[:blocks]
            bits[(bits >> 10 & 31) == 31] ^= 0x4000
            data[:, at : at + 2] = bits.reshape(-1, 1).view(np.uint8)
        values = dequantize(data, kind).astype(np.float32)
        assert np.isfinite(values).all() and values.size == blocks * block_len, name
        out += name.encode().ljust(8, b"\0") + struct.pack("<I", blocks) + data.tobytes() + values.tobytes()
    path = Path(__file__).parent.parent / "tests/fixtures/gguf_blocks.bin"
    path.write_bytes(out)
    print(f"{path}: {len(out)} bytes")


if __name__ == "__main__":
    main()
