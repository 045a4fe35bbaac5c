"""Runs signed-gradient ascent, for what torchattacks' PGD cannot do."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.captured import CudaGraphs, Step, captured
from pipeline.networks.memory_fit import fitted


class Ascent:
    """Signed-gradient ascent, with the loss `loss`, away from labels or `towards` them.

    This serves what torchattacks' PGD cannot do: begin at a stored perturbation, give each image
    its own `eps` and `alpha`, use another loss, or go `towards` labels that are wrong. From the
    images themselves, it takes the same steps as torchattacks' PGD.

    Where `graphs` is given, the step is captured. The captured step is kept from call to call, as
    long as they attack the same network. Its weights may be updated in place between the calls.
    """

    def __init__(
        self,
        *,
        loss: str = "cross_entropy",
        towards: bool = False,
        graphs: CudaGraphs | None = None,
    ) -> None:
        self._loss, self._sign, self._graphs = LOSSES[loss], -1 if towards else 1, graphs
        self._network: nn.Module | None = None
        self._step: Step = self._moved

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        start: Tensor,
        labels: Tensor,
        *,
        eps: Tensor | float,
        alpha: Tensor | float,
        steps: int,
    ) -> Tensor:
        """Return the result of `steps` steps from `start` (B, C, H, W).

        Each step is projected to the eps ball around `images` and to [0, 1] (Madry et al., ICLR
        2018). `eps` and `alpha` are numbers, or tensors (B, 1, 1, 1).
        """
        if network is not self._network:
            self._network = network
            self._step = captured(self._moved, "an attack's step", self._graphs)
        if self._graphs is not None:
            eps, alpha = (_for_each(size, images) for size in (eps, alpha))
        adv_images = start.detach()
        for _ in range(steps):
            adv_images = self._step(adv_images, images, labels, eps, alpha)
        return adv_images

    def _moved(
        self,
        adv_images: Tensor,
        images: Tensor,
        labels: Tensor,
        eps: Tensor | float,
        alpha: Tensor | float,
    ) -> Tensor:
        """Return images (B, C, H, W) after one step."""
        network = self._network
        assert network is not None

        def gradient() -> Tensor:
            at = adv_images.detach().requires_grad_()
            return torch.autograd.grad(self._loss(network(at), labels), at)[0]

        moved = adv_images + self._sign * alpha * fitted(network, images, gradient).sign()
        return (images + (moved - images).clamp(-eps, eps)).clamp(0, 1)  # type: ignore[arg-type]


def _for_each(size: Tensor | float, images: Tensor) -> Tensor:
    """Return a size (B, 1, 1, 1) for each image."""
    if isinstance(size, Tensor):
        return size
    return torch.full((len(images), 1, 1, 1), size, device=images.device)


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
