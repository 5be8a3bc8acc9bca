"""G.711 A-law, which the session does not take: its bytes as 16-bit PCM (ITU-T G.711, table 1a)."""

import numpy as np


def alaw_to_s16le(data: bytes) -> bytes:
    """One byte a sample -> two, little-endian."""
    return np.take(ALAW, np.frombuffer(data, np.uint8)).tobytes()


def _alaw_table() -> np.ndarray:
    """What each byte means: sign, three bits of exponent, four of mantissa, every other bit inverted."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, code & 15
    magnitude = ((mantissa << 4) + np.where(exponent, 0x108, 8)) << np.maximum(exponent - 1, 0)
    table: np.ndarray = np.where(code & 0x80, magnitude, -magnitude).astype("<i2")
    return table


ALAW = _alaw_table()
