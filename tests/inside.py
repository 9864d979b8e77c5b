"""A trainer's child within the test's own process: what it does is the same, and TRL is imported once for all tests."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_data.trainer.child import do


class Inside:
    """In place of a Child of `train`. `heard` holds every message; `ends_at` is the stage and step at which it dies."""

    heard: list[dict[str, Any]] = []
    ends_at: tuple[str, int] | None = None

    def __init__(self, target: str, logger: str, env: dict[str, str]):
        self._told: deque[Any] = deque()
        self._env = env
        type(self).heard = []

    def send(self, message: Any) -> None:
        self._job = message

    def receive(self) -> Any:
        if not self._told:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in self._env.items():
                    patch.setenv(name, value)
                do(self._job, SimpleNamespace(send=self._hear))  # type: ignore[arg-type]
        return self._told.popleft()

    def close(self) -> None: ...

    def _hear(self, message: dict[str, Any]) -> None:
        self.heard.append(message)
        self._told.append(message)
        if self.ends_at and (message.get("stage"), message.get("step")) == self.ends_at:
            raise Died


class Died(Exception):
    """As if the process had been killed."""
