"""Compute convolutions on small maps as products of matrices.

At 32x32 pixels the last stages of a ResNet work on maps of 4x4, 2x2 and 1x1. There, convolution
kernels spend most of their time on padding. `form` brings a weight into the form that suits its
maps, and `product` applies it. Maps are kept with channels last, (B, H, W, C), so that no product
needs a copy. The function is the same:

- A 1x1 kernel is a matrix, at any size.
- On maps of up to 2x2, and from 4x4 to 2x2, a 3x3 kernel is a matrix from the whole map to the
  whole map. It holds the kernel's taps, and zeros where an output does not see an input.
- On maps of up to 7x7, the gradient of a 3x3 kernel in bfloat16 on a CPU is a product with the
  patches of the maps.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def form(
    weight: Tensor, size: int, stride: int, dtype: torch.dtype, scale: Tensor | None = None
) -> Tensor:
    """Return a weight (O, C, k, k) in the form that suits maps of `size`, in `dtype`.

    That is a matrix, or the weight itself. `scale` (O,) multiplies its outputs before they are
    rounded to `dtype`; it is for weights that need no gradient.
    """
    n_out, n_in, width, _ = weight.shape
    if width == 3 and _is_whole_map(size, stride):
        matrix: Tensor = _WholeMap.apply(weight, scale, size, stride, dtype)
        return matrix
    if scale is not None:
        weight = weight * scale.view(-1, 1, 1, 1)
    weight = weight.to(dtype)
    return weight.view(n_out, n_in) if width == 1 else weight


def product(maps: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    """Return a convolution (B, H', W', O) of maps (B, H, W, C).

    `weight` is what `form` made of the convolution's weight.
    """
    stride = conv.stride[0]
    if weight.dim() == 4:
        if _is_by_patches(maps, weight, stride):
            found: Tensor = _Convolution.apply(maps, weight, stride)
            return found
        return functional.conv2d(
            maps.permute(0, 3, 1, 2), weight, bias, stride, conv.padding[0]
        ).permute(0, 2, 3, 1)
    # The maps become a matrix, because a product with strided maps is many times slower.
    rows = (
        maps[:, ::stride, ::stride].reshape(-1, conv.in_channels)
        if conv.kernel_size[0] == 1
        else maps.reshape(len(maps), -1)
    )
    size = -(-maps.shape[1] // stride)
    return functional.linear(rows, weight, bias).view(len(maps), size, size, conv.out_channels)


def _is_whole_map(size: int, stride: int) -> bool:
    """Return whether one product over the whole map is the fastest form."""
    return size <= 2 or (size == 4 and stride == 2)


def _is_by_patches(maps: Tensor, weight: Tensor, stride: int) -> bool:
    """Return whether the gradient of a weight is faster as a product with patches."""
    return (
        weight.requires_grad
        and weight.shape[2] == 3
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and maps.shape[1] <= 7 * stride
    )


@cache
def _joined(size: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Return which tap of a 3x3 kernel with a padding of 1 joins an output to an input.

    Each entry is the places of the output and the input in their maps, and the row and column of
    the tap. Pairs that no tap joins are left out.
    """
    places = range(0, size, stride)
    return [
        (i * len(places) + j, y * size + x, y - oy + 1, x - ox + 1)
        for i, oy in enumerate(places)
        for j, ox in enumerate(places)
        for y in range(size)
        for x in range(size)
        if abs(y - oy) <= 1 and abs(x - ox) <= 1
    ]


class _WholeMap(torch.autograd.Function):
    """The matrix (H'*W'*O, H*W*C) of a 3x3 kernel (O, C, 3, 3) on maps of one size.

    Each block of the matrix is one tap. Kernels whose channels are last in memory are read and
    written in rows. The gradient of a tap is summed in the kernel's own dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scale: Tensor | None,
        size: int,
        stride: int,
        dtype: torch.dtype,
    ) -> Tensor:
        n_out, n_in = weight.shape[:2]
        ctx.of = size, stride, weight.dtype
        shape = (-(-size // stride)) ** 2, n_out, size**2, n_in
        joined = _joined(size, stride)
        make = weight.new_empty if len(joined) == shape[0] * shape[2] else weight.new_zeros
        matrix = make(shape, dtype=dtype)
        for output, seen, row, column in joined:
            block, tap = matrix[output, :, seen], weight[:, :, row, column]
            if scale is None:
                block.copy_(tap)
            else:
                torch.mul(tap, scale.view(-1, 1), out=block)
        return matrix.view(shape[0] * n_out, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        size, stride, dtype = ctx.of
        n_outputs, n_inputs = (-(-size // stride)) ** 2, size**2
        blocks = gradient.view(n_outputs, len(gradient) // n_outputs, n_inputs, -1)
        joined = _joined(size, stride)
        unwritten = {(row, column) for _, _, row, column in joined}
        make = gradient.new_empty if len(unwritten) == 9 else gradient.new_zeros
        found = make((blocks.shape[1], 3, 3, blocks.shape[3]), dtype=dtype)
        for output, seen, row, column in joined:
            tap, block = found[:, row, column], blocks[output, :, seen]
            if (row, column) in unwritten:
                tap.copy_(block)
                unwritten.remove((row, column))
            else:
                tap.add_(block)
        return found.permute(0, 3, 1, 2), None, None, None, None


class _Convolution(torch.autograd.Function):
    """A 3x3 convolution (B, H', W', O) of maps (B, H, W, C) with a padding of 1.

    The gradient of its weight is one product with the 3x3 patches of the maps.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.stride = stride
        found = functional.conv2d(maps.permute(0, 3, 1, 2), weight, None, stride, 1)
        return found.permute(0, 2, 3, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        maps, weight = ctx.saved_tensors
        n_out, n_in = weight.shape[:2]
        strides = [ctx.stride] * 2
        of_maps = torch.ops.aten.convolution_backward(
            *(gradient.permute(0, 3, 1, 2), maps.permute(0, 3, 1, 2), weight, None),
            *(strides, [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]),
        )[0]
        rows = gradient.reshape(-1, n_out)
        of_weight = (rows.t() @ _patches(maps, ctx.stride)).view(n_out, 3, 3, n_in)
        return of_maps.permute(0, 2, 3, 1), of_weight.permute(0, 3, 1, 2), None


def _patches(maps: Tensor, stride: int) -> Tensor:
    """Return the 3x3 patches (B*H'*W', 9*C) of maps (B, H, W, C) with a padding of 1."""
    padded = functional.pad(maps, (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3)
    return patches.reshape(-1, 9 * maps.shape[3])
