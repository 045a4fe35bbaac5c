"""Imports torchvision's models without torch's compiler, which takes longer than they do.

One operator for object detection asks the compiler, `torch._dynamo`, a question when it is called.
For that, torchvision imports all of it, which takes 1.6 of the 4.1 s that a process would need to
start (2 cores of an AMD EPYC). Here that import waits for the call. Whatever else needs the
compiler, such as torch's optimizers, imports it as usual.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch as torch  # so that only torchvision is imported in the block below

ASKED = "torch._dynamo.utils"


class _Later(ModuleType):
    """Stands for a module of functions, which is imported when one of them is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):  # `inspect` looks at those of every module
            raise AttributeError(name)
        return lambda *given, **named: getattr(import_module(self.__name__), name)(*given, **named)


@contextmanager
def _later(name: str) -> Iterator[None]:
    """Let what is imported in the block receive a module's functions without importing it."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        del sys.modules[name]


with _later(ASKED):
    from torchvision import models as models
