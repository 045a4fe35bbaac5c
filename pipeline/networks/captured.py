"""Run a step that is repeated many times as one CUDA graph.

A step of training or of an attack launches hundreds of small kernels. Launching them one by one may
take a CPU longer than a GPU needs to compute them. A graph launches them all at once.

A step can be captured if it reads and writes tensors at fixed addresses, and if the CPU reads
nothing of what it computes. Tensors that are updated between its calls must be updated in place.

`Captured` is a step that is captured whole. `CapturedNetwork` captures only what a network computes
inside steps that cannot be captured, such as those of torchattacks.
"""

import gc
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.base import console
from pipeline.base.errors import InputError

VARIABLE = "PIPELINE_CUDA_GRAPHS"
WARM_UP = 3  # calls before capturing, in which libraries allocate and choose their kernels
MOST_PIXELS = 1_024 * 32 * 32  # of a batch whose passes through a network are captured

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
        # torchattacks refers to networks in circles. Their graphs hold memory until they are found.
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
            output = step(*inputs)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def graphs_for(device: torch.device) -> CudaGraphs | None:
    """Return the way to capture steps on a device, or None if there is none.

    There is none on a CPU, nor where the environment variable VARIABLE is 0. Raises InputError if
    it is neither 0 nor 1.
    """
    wanted = os.environ.get(VARIABLE, "1")
    if wanted not in ("0", "1"):
        raise InputError(f"{VARIABLE}: expected 0 or 1, found {wanted!r}")
    return CudaGraphs(device) if wanted == "1" and device.type == "cuda" else None


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
            _say_failed(self._what, error)


def captured(step: Step, what: str, graphs: CudaGraphs | None) -> Step:
    """Return the step, captured if `graphs` is a way to do that, and unchanged if it is None."""
    return step if graphs is None else Captured(step, what, graphs)


class CapturedNetwork(nn.Module):
    """A frozen network whose forward and backward passes are captured, for attacks on it.

    Batches are filled up with black images to the next power of two, so that few sizes occur and an
    image gets the same kernels in all of them. No image influences another in these networks, whose
    BatchNorm is frozen. The first WARM_UP batches of a size are computed as they are, and the next
    one captures. Batches of more than MOST_PIXELS are never filled up nor captured: a GPU needs
    longer to compute them than a CPU to launch them. If capturing fails, one line says so, and
    nothing is captured any more. Gradients of gradients cannot be computed.
    """

    def __init__(self, network: nn.Module, graphs: CudaGraphs) -> None:
        super().__init__()
        self.network = network
        self._graphs: CudaGraphs | None = graphs
        self._seen: Counter[object] = Counter()
        self._passes: dict[object, _Passes] = {}
        self.eval()  # torchattacks restores the mode that it finds

    def forward(self, images: Tensor) -> Tensor:
        size = 1 << (len(images) - 1).bit_length()
        if size * images.shape[2] * images.shape[3] > MOST_PIXELS:
            return self.network(images)  # type: ignore[no-any-return]
        # A captured product keeps the precision that was allowed when it was captured.
        matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
        allowed = matmul.fp32_precision, conv.fp32_precision
        form = size, images.shape[1:], images.dtype, allowed
        self._seen[form] += 1
        if form not in self._passes and self._graphs is not None and self._seen[form] > WARM_UP:
            self._capture(form, images, size)
        if form not in self._passes:
            filled = torch.cat([images, images.new_zeros(size - len(images), *images.shape[1:])])
            return self.network(filled)[: len(images)]  # type: ignore[no-any-return]
        if not (torch.is_grad_enabled() and images.requires_grad):
            return self._passes[form].logits(images)
        logits: Tensor = _Replayed.apply(images, self._passes[form])
        return logits

    def _capture(self, form: object, images: Tensor, size: int) -> None:
        assert self._graphs is not None
        try:
            self._passes[form] = _Passes(self.network, images, size, self._graphs)
        except RuntimeError as error:
            self._graphs = None
            self._passes.clear()  # their memory may be what was missing
            _say_failed("a network", error)


class _Passes:
    """The captured forward and backward pass of a network for up to `size` images.

    The graphs keep what the last forward pass left for the backward pass. `n_forward` counts the
    forward passes, so that an older one can be recognised.
    """

    def __init__(self, network: nn.Module, images: Tensor, size: int, graphs: CudaGraphs) -> None:
        self._network, self.n_forward = network, 0
        with torch.inference_mode(False):
            self._images = images.new_zeros(size, *images.shape[1:]).requires_grad_()
            self._upstream = torch.zeros_like(graphs.warm_up(self._forward, ()))
            graphs.warm_up(self._backward, ())
            del self._logits  # with the activations of the warm-up
            self._replay_forward = graphs.capture(self._forward, ())
            self._replay_backward = graphs.capture(self._backward, ())

    def _forward(self) -> Tensor:
        with torch.enable_grad():
            self._logits: Tensor = self._network(self._images)
        logits: Tensor = self._logits.detach()
        return logits

    def _backward(self) -> Tensor:
        gradients = torch.autograd.grad(
            self._logits, self._images, self._upstream, retain_graph=True
        )
        return gradients[0]

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, n_classes) of images (B, 3, H, W)."""
        self.n_forward += 1
        with torch.no_grad():
            self._images[: len(images)] = images
        return self._replay_forward()[: len(images)].clone()  # the next one overwrites it

    def gradient(self, upstream: Tensor) -> Tensor:
        """Return the gradient (B, 3, H, W) of the last images from that of their logits."""
        n = len(upstream)
        self._upstream[:n] = upstream
        return self._replay_backward()[:n].clone()


class _Replayed(torch.autograd.Function):
    """The logits of images by captured passes."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, passes: _Passes) -> Tensor:
        logits = passes.logits(images)
        ctx.save_for_backward(images)
        ctx.passes, ctx.number = passes, passes.n_forward
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        if ctx.number != ctx.passes.n_forward:
            ctx.passes.logits(*ctx.saved_tensors)
            ctx.number = ctx.passes.n_forward
        return ctx.passes.gradient(upstream), None


def captured_network(network: nn.Module, device: torch.device) -> nn.Module:
    """Return a frozen network for attacks, with captured passes where the device has graphs."""
    graphs = graphs_for(device)
    return network if graphs is None else CapturedNetwork(network, graphs)


def _say_failed(what: str, error: RuntimeError) -> None:
    reason = " ".join(str(error).split())[:150]
    console.say_once(
        f"{what} cannot be captured in a CUDA graph ({reason}): continuing without a graph"
    )
