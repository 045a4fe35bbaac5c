"""torchattacks' attacks, run so that the same seed gives the same images and the attacked model stays as it was."""

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.attacks import params
from pipeline.networks.memory_fit import fitted

if TYPE_CHECKING:
    from torchattacks.attack import Attack
from pipeline.attacks.ascent import margin

# Parameters that are not the user's to choose: the threat model is fixed, classes come from the data, randomness from our seed.
FIXED = {"norm": "Linf", "verbose": False, "seed": 0}
EPS_NAMES = {
    "PIFGSM": "max_epsilon",
    "PIFGSMPP": "max_epsilon",
}  # where torchattacks calls eps otherwise
SIGN_ALONE = (
    "FGSM",
    "FFGSM",
    "RFGSM",
    "BIM",
    "PGD",
    "TPGD",
)  # counts in these, of one gradient a step, so its scale is free
SPELLINGS = {"gaussian": "guassian"}  # of PGDRS's noise_type, as torchattacks spells it


def build(spec: params.Attack, network: nn.Module, n_classes: int) -> "Attack":
    """The torchattacks attack that `spec` describes, against a network that takes images in [0, 1].

    Where the sign of a gradient is all that counts, it is scaled so that it does not underflow: torchattacks takes the mean of the loss.
    Raises InputError for an attack that needs more classes than there are.
    """
    import torchattacks  # here, since scipy's statistics come with it: 0.7 s that training need not wait for

    params.expect_classes({spec.attack: spec}, n_classes)
    constructor = getattr(torchattacks, spec.attack)
    accepted = inspect.signature(constructor).parameters
    fixed = {
        name: value for name, value in {**FIXED, "n_classes": n_classes}.items() if name in accepted
    }
    given = {
        EPS_NAMES.get(spec.attack, name) if name == "eps" else name: value
        for name, value in spec.parameters.items()
    }
    if spec.attack == "PGDRS":
        given["noise_type"] = SPELLINGS.get(given["noise_type"], given["noise_type"])
    attack = constructor(network, **fixed, **given)
    if (
        spec.attack == "UPGD" and given["loss"] == "margin"
    ):  # torchattacks' own runs on the CPU only
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
