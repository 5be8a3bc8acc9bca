"""Memory that the C library keeps although nobody uses it."""

import ctypes
import sys
from collections.abc import Callable

#: glibc's; None where memory is kept in other ways.
_trim: Callable[[int], int] | None = (
    getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
)


def give_back() -> None:
    """Hands free pages back to the system, some milliseconds' work.

    Left alone, glibc keeps what was freed below anything that is still used, and 64 MB at the end.
    """
    if _trim is not None:
        _trim(0)
