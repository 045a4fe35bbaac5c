"""Runs signed-gradient ascent, for what torchattacks' PGD cannot do."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.memory_fit import fitted


def ascend(
    network: nn.Module,
    images: Tensor,
    start: Tensor,
    labels: Tensor,
    *,
    eps: Tensor | float,
    alpha: Tensor | float,
    steps: int,
    loss: str = "cross_entropy",
    towards: bool = False,
) -> Tensor:
    """Return the result of signed-gradient steps from `start` (B, C, H, W).

    Each step is projected to the eps ball around `images` and to [0, 1] (Madry et al., ICLR 2018).

    This serves what torchattacks' PGD cannot do: begin at a stored perturbation, give each image
    its own `eps` and `alpha` (B, 1, 1, 1), use another loss, or go `towards` labels that are wrong.
    From the images themselves, it takes the same steps as torchattacks' PGD.
    """
    sign = -1 if towards else 1
    adv_images = start.detach()

    def gradient() -> Tensor:
        at = adv_images.detach().requires_grad_()
        return torch.autograd.grad(LOSSES[loss](network(at), labels), at)[0]

    for _ in range(steps):
        moved = adv_images + sign * alpha * fitted(network, images, gradient).sign()
        adv_images = (images + (moved - images).clamp(-eps, eps)).clamp(0, 1)  # type: ignore[arg-type]
    return adv_images


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the lead of the best wrong class, summed over the batch (Carlini and Wagner, 2017)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (others.max(1).values - own[:, 0]).sum()


# The losses are sums. A mean divides every image's gradient by the size of the batch, until some
# gradients underflow.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": partial(functional.cross_entropy, reduction="sum"),
    "margin": margin,
}
