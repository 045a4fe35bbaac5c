import copy

import pytest
import torch
from torch.nn import functional
from torchvision import models

from pipeline.networks import matrix_products, small_maps

LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def trained_looking(architecture, dtype=torch.float64):
    """A network whose BatchNorms have statistics and weights worth folding."""
    torch.manual_seed(0)
    network = models.get_model(architecture, num_classes=5).to(dtype)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network


def images(size, dtype=torch.float64):
    return torch.rand(6, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("resnet18", 32), ("resnet18", 33), ("resnet18", 64), ("resnet50", 32)],
)
def test_frozen_logits_and_image_gradients_are_torchvisions(architecture, size):
    network = trained_looking(architecture).eval()
    frozen = matrix_products.Frozen(network, size, torch.float64)
    results = []
    for forward in (network, frozen):
        x = images(size).requires_grad_()
        logits = forward(x)
        results.append(
            (logits.detach(), torch.autograd.grad(functional.cross_entropy(logits, LABELS), x)[0])
        )
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("architecture", "size", "patches"),
    [("resnet18", 32, False), ("resnet50", 32, True), ("resnet18", 33, True)],
)
def test_training_loss_gradients_and_statistics_are_torchvisions(
    architecture, size, patches, monkeypatch
):
    monkeypatch.setattr(
        small_maps, "_is_by_patches", lambda _, weight, __: patches and weight.shape[2] == 3
    )
    theirs = trained_looking(architecture).train()
    ours = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    x = images(size)
    loss = functional.cross_entropy(theirs(x), LABELS)
    loss.backward()
    our_loss = functional.cross_entropy(
        matrix_products.training_logits(ours, x, torch.float64), LABELS
    )
    our_loss.backward()
    assert abs(loss.item() - our_loss.item()) < 1e-12
    for (name, parameter), (_, own) in zip(
        theirs.named_parameters(), ours.named_parameters(), strict=True
    ):
        assert (parameter.grad - own.grad).abs().max() < 1e-10 * max(
            1, parameter.grad.abs().max()
        ), name
    for (name, buffer), (_, own) in zip(theirs.named_buffers(), ours.named_buffers(), strict=True):
        torch.testing.assert_close(own, buffer, rtol=1e-12, atol=1e-12, msg=name)


def test_weight_gradients_of_bfloat16_maps_are_those_of_a_convolution():
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(16, 8, 3, 2, 1, bias=False)
    maps = torch.randn(32, 8, 8, 16).bfloat16().requires_grad_()
    weight = convolution.weight.detach().bfloat16().requires_grad_()
    ours = small_maps.product(maps, weight, None, convolution)
    assert type(ours.grad_fn).__name__ == "_ConvolutionBackward"
    gradient = torch.randn_like(ours)
    found = torch.autograd.grad(ours, (maps, weight), gradient)
    theirs = functional.conv2d(maps.permute(0, 3, 1, 2), weight, None, 2, 1).permute(0, 2, 3, 1)
    expected = torch.autograd.grad(theirs, (maps, weight), gradient)
    assert torch.equal(ours, theirs)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("width", "size", "stride"),
    [(1, 4, 2), (3, 8, 1), (3, 4, 2), (3, 2, 1), (3, 2, 2), (3, 1, 1), (7, 32, 2)],
)
def test_a_scale_multiplies_the_outputs_before_they_are_rounded(width, size, stride):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 5, width, width, generator=generator)
    scale = torch.rand(8, generator=generator) + 0.5
    ours = small_maps.form(weight, size, stride, torch.bfloat16, scale)
    scaled = weight * scale.view(-1, 1, 1, 1)
    assert torch.equal(ours, small_maps.form(scaled, size, stride, torch.bfloat16))


def test_the_original_is_not_touched():
    network = trained_looking("resnet18").train()
    before = copy.deepcopy(network.state_dict())
    frozen = matrix_products.Frozen(network, 32, torch.float64)
    frozen(images(32).requires_grad_()).sum().backward()
    assert network.training
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in network.parameters()
    )
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all((before[name] == tensor).all() for name, tensor in network.state_dict().items())


def test_bfloat16_stays_close_and_gives_float32_logits():
    network = trained_looking("resnet18", torch.float32).eval()
    x = images(32, torch.float32)
    logits = matrix_products.Frozen(network, 32, torch.bfloat16)(x)
    assert logits.dtype == torch.float32
    assert (logits - network(x)).norm() / network(x).norm() < 0.05
