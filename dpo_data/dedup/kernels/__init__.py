"""Loops over Arrow buffers and hashes that numba compiles. Only functions import them, since numba takes a while to load.

`text` goes from UTF-8 to hashes, `sets` compares sets of hashes. Neither calls into the other: numba keeps what it compiled by
the file that a kernel is in, and would not see that a function of another file has changed.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a function at its first call, keep it on disk, and let other threads run while it does."""
    compiled: Function = njit(nogil=True, cache=True)(function)
    return compiled
