"""Run a step that is repeated many times as one CUDA graph.

A step of training or of an attack launches hundreds of small kernels. Launching them one by one may
take a CPU longer than a GPU needs to compute them. A graph launches them all at once.

A step can be captured if it reads and writes tensors at fixed addresses, and if the CPU reads
nothing of what it computes. Tensors that are updated between its calls must be updated in place.
"""

import os
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.base import console

VARIABLE = "PIPELINE_CUDA_GRAPHS"
WARM_UP = 3  # calls before capturing, in which libraries allocate and choose their kernels

Step = Callable[..., Tensor]


class CudaGraphs:
    """The way of torch.cuda.graph, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, step: Step, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the result of a call on the stream that captures, as torch's manual asks for."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = step(*inputs)
        current.wait_stream(self._stream)
        return output

    def capture(self, step: Step, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        """Return a function that repeats the step on the present content of `inputs`.

        The step itself is not run. Raises RuntimeError for a step that cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
            output = step(*inputs)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def graphs_for(device: torch.device) -> CudaGraphs | None:
    """Return the way to capture steps on a device, or None if there is none.

    CUDA graphs were not run on a GPU yet, so they are used only where VARIABLE is 1.
    """
    asked_for = device.type == "cuda" and os.environ.get(VARIABLE) == "1"
    return CudaGraphs(device) if asked_for else None


def is_capturing(device: torch.device) -> bool:
    """Return whether kernels are being captured now, and not run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Captured:
    """A step that takes tensors and returns one, and is captured after a few calls.

    The first form of inputs (shapes and dtypes) that was seen WARM_UP times is captured. Inputs of
    another form, such as a last, smaller batch, run as they are. If capturing fails, all calls run
    as they are, and one line says so. Every call does the step's work exactly once.
    """

    def __init__(self, step: Step, what: str, graphs: CudaGraphs) -> None:
        self._step, self._what, self._graphs = step, what, graphs
        self._seen: Counter[object] = Counter()
        self._failed = False
        self._form: object = None
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        form = tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in inputs)
        if self._replay is None and not self._failed:
            if self._seen[form] < WARM_UP:
                self._seen[form] += 1
                return self._graphs.warm_up(self._step, inputs)
            self._capture(form, inputs)
        if self._replay is None or form != self._form:
            return self._step(*inputs)
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new)
        return self._replay().clone()  # the next replay overwrites it

    def _capture(self, form: object, inputs: tuple[Tensor, ...]) -> None:
        self._form, self._inputs = form, tuple(tensor.clone() for tensor in inputs)
        try:
            self._replay = self._graphs.capture(self._step, self._inputs)
        except RuntimeError as error:
            self._failed, self._inputs = True, ()
            reason = " ".join(str(error).split())[:150]
            console.say_once(
                f"{self._what} cannot be captured in a CUDA graph ({reason}):"
                " continuing without a graph"
            )


def captured(step: Step, what: str, graphs: CudaGraphs | None) -> Step:
    """Return the step, captured if `graphs` is a way to do that, and unchanged if it is None."""
    return step if graphs is None else Captured(step, what, graphs)
