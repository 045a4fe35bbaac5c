"""torchattacks' attacks, run so that the same seed gives the same images and the attacked model stays as it was."""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import params
from pipeline.in_parts import fitted

if TYPE_CHECKING:
    from torchattacks.attack import Attack

Network = TypeVar("Network", bound=nn.Module)

# Parameters that are not the user's to choose: the threat model is fixed, classes come from the data, randomness from our seed.
FIXED = {"norm": "Linf", "verbose": False, "seed": 0}
EPS_NAMES = {"PIFGSM": "max_epsilon", "PIFGSMPP": "max_epsilon"}  # where torchattacks calls eps otherwise
SIGN_ALONE = ("FGSM", "FFGSM", "RFGSM", "BIM", "PGD", "TPGD")  # counts in these, of one gradient a step, so its scale is free
SPELLINGS = {"gaussian": "guassian"}  # of PGDRS's noise_type, as torchattacks spells it


def frozen_copy(network: Network) -> Network:
    """A copy for attacks to use: evaluation mode, no gradients for parameters, channels last; the original is not touched.

    torchattacks changes its model's mode and does not restore it after an error, so it is never given the caller's own.
    """
    return copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def build(spec: params.Attack, network: nn.Module, n_classes: int) -> "Attack":
    """The torchattacks attack that `spec` describes, against a network that takes images in [0, 1].

    Where the sign of a gradient is all that counts, it is scaled so that it does not underflow: torchattacks takes the mean of the loss.
    Raises InputError for an attack that needs more classes than there are.
    """
    import torchattacks  # here, since scipy's statistics come with it: 0.7 s that training need not wait for

    params.expect_classes({spec.attack: spec}, n_classes)
    constructor = getattr(torchattacks, spec.attack)
    accepted = inspect.signature(constructor).parameters
    fixed = {name: value for name, value in {**FIXED, "n_classes": n_classes}.items() if name in accepted}
    given = {EPS_NAMES.get(spec.attack, name) if name == "eps" else name: value for name, value in spec.parameters.items()}
    if spec.attack == "PGDRS":
        given["noise_type"] = SPELLINGS.get(given["noise_type"], given["noise_type"])
    attack = constructor(network, **fixed, **given)
    if spec.attack == "UPGD" and given["loss"] == "margin":  # torchattacks' own runs on the CPU only
        attack.loss = lambda images, labels, _: margin(attack.get_logits(images), labels)
    if spec.attack in SIGN_ALONE:
        logits = attack.get_logits
        attack.get_logits = lambda *inputs: scaled(logits(*inputs))
    return attack


def scaled(logits: Tensor) -> Tensor:
    """The same logits (B, n_classes); gradients that go back through them are scaled, each image's by a power of two.

    A power of two changes nothing but the exponent, so signs stay, and a gradient that is small because the network is sure of a class
    reaches the pixels. Where the loss itself has a gradient of zero in float32, for leads of more than 103, there is nothing to scale.
    """
    if logits.requires_grad:
        logits.register_hook(_near_one)  # type: ignore[no-untyped-call]
    return logits


def _near_one(gradients: Tensor) -> Tensor:
    """Gradients (B, n_classes), scaled so that each row's largest is between a half and one, as far as float32's exponents reach."""
    _, exponents = torch.frexp(gradients.abs().amax(1, keepdim=True))
    # From its bits, since torch.ldexp takes a power, which need not be exact on every device.
    factors = ((127 - exponents).clamp(1, 254) << 23).view(torch.float32)
    return gradients * factors.to(gradients.dtype)


def perturb(attack: "Attack", images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Adversarial images in [0, 1] for one batch.

    `images` (B, 3, H, W) in [0, 1], `labels` (B,). Attacks draw from torch's global generator, and some reset it: it is seeded for this
    batch alone and restored afterwards. An attack that runs out of memory begins again where its model is `InParts`.
    """
    devices = [images.device] if images.device.type == "cuda" else []

    def attacked() -> Tensor:
        torch.manual_seed(seed)
        adv_images: Tensor = attack(images, labels)
        return adv_images.detach()

    with torch.random.fork_rng(devices=devices):
        return fitted(attack.model, images, attacked)


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
    """Signed-gradient steps from `start` (B, C, H, W), projected to the eps ball around `images` and to [0, 1] (Madry et al., ICLR 2018).

    For what torchattacks' PGD cannot do: begin at a stored perturbation, give each image its own `eps` and `alpha` (B, 1, 1, 1), use
    another loss, or go `towards` labels that are wrong. From the images themselves it takes the same steps as torchattacks' PGD.
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
    """By how much the best wrong class leads, summed over the batch (Carlini and Wagner, 2017)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (others.max(1).values - own[:, 0]).sum()


# Sums, not means: a mean divides every image's gradient by the size of the batch, until some underflow.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": partial(functional.cross_entropy, reduction="sum"),
    "margin": margin,
}


def batch_seed(*numbers: int) -> int:
    """A seed that depends on all the numbers and differs for neighbours (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def eps_levels(eps: float) -> int:
    """How many of the 255 steps between stored pixels fit into `eps`: 8 for 8/255, 7 for 0.03."""
    return int(np.floor(eps * 255 + 1e-6))


def quantise(adv_images: Tensor, images: Tensor, eps: Tensor | float) -> Tensor:
    """Adversarial images as uint8, rounded to nearest and then projected: no pixel leaves the eps ball or [0, 255].

    `adv_images` (B, 3, H, W) in [0, 1], `images` the clean ones as uint8, `eps` one for all, or (B, 1, 1, 1) in whole steps between stored
    pixels. Rounding alone could leave the ball by half a step.
    """
    levels = eps.mul(255).round().to(torch.int16) if isinstance(eps, Tensor) else eps_levels(eps)
    clean = images.to(torch.int16)
    rounded = adv_images.mul(255).round_().clamp_(0, 255).to(torch.int16)
    return rounded.clamp(clean - levels, clean + levels).clamp_(0, 255).to(torch.uint8)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what an attack gives."""
    return {f"versions.{name}": version(name) for name in ("torch", "torchvision", "torchattacks", "h5py")}
