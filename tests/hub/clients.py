"""Fresh processes in which huggingface_hub and datasets talk to a test hub: both read their settings when they are imported."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any
from unittest import mock


@contextmanager
def client(environment: Mapping[str, str]) -> Iterator[Callable[..., Any]]:
    """Calls functions of a module in one such process: `ask(function, *arguments)` gives what it returns or raises."""
    with mock.patch.dict(os.environ, environment), ProcessPoolExecutor(1, get_context("spawn")) as pool:

        def ask(function: Callable[..., Any], *arguments: Any) -> Any:
            return pool.submit(function, *arguments).result()

        yield ask


def in_client(environment: Mapping[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    """What one call gives in a process of its own."""
    with client(environment) as ask:
        return ask(function, *arguments)
