"""Runs torchattacks' attacks, and leaves the attacked model as it was.

The same seed gives the same images.
"""

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.attacks import params
from pipeline.networks.memory_fit import fitted

if TYPE_CHECKING:
    from torchattacks.attack import Attack
from pipeline.attacks.ascent import margin

# Parameters that the user cannot choose. The threat model is fixed, the classes come from the data,
# and the randomness comes from our seed.
FIXED = {"norm": "Linf", "verbose": False, "seed": 0}
# The attacks in which torchattacks gives eps another name.
EPS_NAMES = {"PIFGSM": "max_epsilon", "PIFGSMPP": "max_epsilon"}
# In these attacks only the sign counts, of one gradient per step, so the gradient's scale is free.
SIGN_ALONE = ("FGSM", "FFGSM", "RFGSM", "BIM", "PGD", "TPGD")
SPELLINGS = {"gaussian": "guassian"}  # of PGDRS's noise_type, as torchattacks spells it


def build(spec: params.Attack, network: nn.Module, n_classes: int) -> "Attack":
    """Return the torchattacks attack of `spec`, against a network that takes images in [0, 1].

    torchattacks takes the mean of the loss. Where only the sign of a gradient counts, the gradient
    is scaled so that it does not underflow. Raises InputError for an attack that needs more classes
    than there are.
    """
    # Imported here, because it loads scipy's statistics. This saves training 0.7 s.
    import torchattacks

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
    # torchattacks' own margin loss runs only on the CPU.
    if spec.attack == "UPGD" and given["loss"] == "margin":
        attack.loss = lambda images, labels, _: margin(attack.get_logits(images), labels)
    if spec.attack in SIGN_ALONE:
        logits = attack.get_logits
        attack.get_logits = lambda *inputs: scaled(logits(*inputs))
    return attack


def scaled(logits: Tensor) -> Tensor:
    """Return the same logits (B, n_classes), but scale the gradients that go back through them.

    Each image's gradient is scaled by a power of two. This changes nothing but the exponent, so
    signs stay. A gradient that is small because the network is sure of a class then reaches the
    pixels.

    Where the loss itself has a gradient of zero in float32, for leads of more than 103, there is
    nothing to scale.
    """
    if logits.requires_grad:
        logits.register_hook(_near_one)  # type: ignore[no-untyped-call]
    return logits


def _near_one(gradients: Tensor) -> Tensor:
    """Return gradients (B, n_classes), each row scaled by a power of two.

    Each row's largest gradient is then between a half and one, as far as float32's exponents reach.
    """
    _, exponents = torch.frexp(gradients.abs().amax(1, keepdim=True))
    # Built from its bits. torch.ldexp takes a power, which may be inexact on some devices.
    factors = ((127 - exponents).clamp(1, 254) << 23).view(torch.float32)
    return gradients * factors.to(gradients.dtype)


def perturb(attack: "Attack", images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Return adversarial images in [0, 1] for one batch.

    `images` (B, 3, H, W) are in [0, 1], `labels` are (B,). Attacks draw from torch's global
    generator. It is therefore seeded only for this batch and restored afterwards. APGD, FAB and
    Square seed it themselves, and get the same seed. An attack that runs out of memory starts again
    where its model is `InParts`.
    """
    members = attack._autoattack.attacks if hasattr(attack, "_autoattack") else []
    for one in (attack, *members):
        if hasattr(one, "seed"):
            one.seed = seed
    devices = [images.device] if images.device.type == "cuda" else []

    def attacked() -> Tensor:
        torch.manual_seed(seed)
        adv_images: Tensor = attack(images, labels)
        return adv_images.detach()

    with torch.random.fork_rng(devices=devices):
        return fitted(attack.model, images, attacked)
