"""Weights in the files of other programs: trainers' checkpoints, wrappers, normalisation."""

import argparse
import functools
import io
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors
from torch import nn

from pipeline import networks
from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.base.untrusted import torch_files
from pipeline.networks.params import Model
from tests import narrow, samples

pytestmark = pytest.mark.usefixtures("narrow_resnet18")
FOLDER = "models/pretrained"
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2471, 0.2435, 0.2616])
torch.manual_seed(9)
OFFICIAL = samples.without_counts(narrow.NarrowResNet())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FOLDER).mkdir(parents=True)
    console.say_once.cache_clear()
    return tmp_path / FOLDER


def taken(content, name="own.pth", save=torch.save, **options):
    """Return the tensors to start from that a file gives."""
    with Path(FOLDER, name).open("wb") as file:
        save(content, file)
    model = Model(architecture="resnet18", weights=f"{FOLDER}/{name}", **options)
    return networks.pretrained_weights(model).state_dict


def expect_official(found):
    assert found.keys() == {name for name in OFFICIAL if not name.startswith("fc.")}
    assert all(torch.equal(tensor, OFFICIAL[name]) for name, tensor in found.items())


def prefixed(prefix, tensors=OFFICIAL):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def changed(tensors=OFFICIAL):
    return {**tensors, "conv1.weight": tensors["conv1.weight"] + 1}


def refused(content, message, **options):
    with pytest.raises(InputError, match=f"^model.weights: {FOLDER}/own.pth: {message}") as caught:
        taken(content, **options)
    assert "\n" not in str(caught.value)


PREFIXES = [
    *("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "0.", "1."),
    *("module.model.", "_orig_mod.module.", "model.net.1.", "student.encoder.0.module."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_stripped_and_said(capsys, prefix):
    expect_official(taken(prefixed(prefix)))
    assert capsys.readouterr().out == (
        f"model.weights: {FOLDER}/own.pth: took 100 tensors without the prefix '{prefix}', "
        "without the last layer\n"
    )


def test_a_plain_state_dict_needs_no_line(capsys):
    expect_official(taken(OFFICIAL))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model_state_dict", "model", "net", "ema", "anything"],
)
def test_trainers_checkpoints_are_opened(capsys, key):
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(3))])
    content = {
        "epoch": 3,
        key: prefixed("module."),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, path=Path("x")),
    }
    expect_official(taken(content))
    assert capsys.readouterr().out == (
        f"model.weights: {FOLDER}/own.pth: took 100 tensors below '{key}' without the prefix "
        "'module.', without the last layer; left 'epoch', 'optimizer', 'args'\n"
    )


class Callback:
    """Stands for a class of Lightning, as a key and as a value."""


def test_lightning_checkpoints_are_opened(capsys):
    content = {
        "epoch": 1,
        "pytorch-lightning_version": "1.4.0",
        "state_dict": {**prefixed("model."), "criterion.weight": torch.ones(10)},
        "callbacks": {Callback: {"best": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "lr_schedulers": [functools.partial(Callback, 1)],
        "hyper_parameters": {"backbone": "resnet18", "own": Callback()},
    }
    expect_official(taken(content, "last.ckpt"))
    assert "'pytorch-lightning_version', 'callbacks', 'optimizer_states'" in capsys.readouterr().out


def test_averaged_models_are_opened():
    average = torch.optim.swa_utils.AveragedModel(narrow.NarrowResNet())
    found = taken(average.state_dict())
    assert torch.equal(found["conv1.weight"], average.module.conv1.weight)
    assert "n_averaged" not in found


def robustness(mean, std):
    """A checkpoint as MadryLab's package writes it, with the network twice."""
    tensors = {
        "module.normalizer.new_mean": mean[:, None, None],
        "module.normalizer.new_std": std[:, None, None],
        **prefixed("module.model."),
        "module.attacker.normalize.new_mean": mean[:, None, None],
        "module.attacker.normalize.new_std": std[:, None, None],
        **prefixed("module.attacker.model."),
    }
    return {"model": tensors, "optimizer": {}, "schedule": None, "epoch": 150, "amp": None}


def test_robustness_checkpoints_are_opened_with_their_remedy(capsys):
    refused(
        robustness(MEAN, STD),
        "expected no normalisation, or one of mean 0, found module.normalizer.new_mean 0.4914, "
        "0.4822, 0.4465, .* write model.ignore_normalisation: true to take the weights as they are",
    )
    expect_official(taken(robustness(MEAN, STD), ignore_normalisation=True))
    assert capsys.readouterr().out == (
        f"model.weights: {FOLDER}/own.pth: took 100 tensors below 'model' without the prefix "
        "'module.model.', without the last layer; left 'optimizer', 'schedule', 'epoch', 'amp', "
        "'module.normalizer', 'module.attacker'\n"
    )


@pytest.mark.parametrize("names", ["new_mean new_std", "mean std", "normalize.mean normalize.std"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_std_is_folded_into_the_first_layer(capsys, names, prefix):
    mean, std = names.split()
    content = {mean: torch.zeros(3), std: STD, **prefixed(prefix)}
    network = networks.build(
        Model(architecture="resnet18", weights=None), 3, 0, networks.SCRATCH
    ).eval()
    network.load_state_dict({**network.state_dict(), **taken(content)})
    plain = networks.build(Model(architecture="resnet18", weights=None), 3, 0).eval()
    body = {name: tensor for name, tensor in OFFICIAL.items() if not name.startswith("fc.")}
    plain.load_state_dict({**plain.state_dict(), **body})
    images = torch.rand(2, 3, 32, 32)
    expected = plain(images / STD.view(1, 3, 1, 1))
    torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-4)
    assert "; conv1.weight is divided by the std 0.2471, 0.2435, 0.2616; left" in (
        capsys.readouterr().out
    )


def test_normalisations_that_cannot_be_folded_are_refused():
    zeros = torch.zeros(3)
    refused(
        {"a.mean": zeros, "a.std": STD, "b.std": STD + 1, **prefixed("1.")},
        "expected one normalisation, found a.mean, a.std, b.std that differ",
    )
    refused({"0.std": zeros, **prefixed("1.")}, "expected a std above 0 for each channel, found 0")
    refused(
        {"0.std": torch.full((3,), 1e-40), **prefixed("1.")},
        "conv1.weight: expected finite numbers in float32, found NaN or infinity",
    )
    expect_official(taken({"0.mean": zeros, "0.std": torch.ones(3), **prefixed("1.")}))
    expect_official(taken({"target.std": torch.ones(7), **prefixed("1.")}))


@pytest.mark.parametrize(
    "mean",
    [
        {"0.mu": MEAN.view(1, 3, 1, 1)},
        {"0._mean": MEAN},
        {"0.pixel_mean": MEAN},
        {"0.mean": torch.tensor(0.5)},
        {"0.mean": (255 * MEAN).long()},
    ],
)
def test_a_mean_is_found_under_its_usual_names_and_forms(mean):
    refused({**mean, **prefixed("1.")}, "expected no normalisation, or one of mean 0, found 0.")


@pytest.mark.parametrize("name", ["0.sigma", "0._std", "0.pixel_std"])
def test_one_std_for_all_channels_is_folded(name, capsys):
    found = taken({name: torch.tensor(0.5), **prefixed("1.")})
    assert torch.equal(found["conv1.weight"], OFFICIAL["conv1.weight"] * 2)


def test_of_equal_copies_the_shortest_prefix_is_taken(capsys):
    expect_official(taken({**prefixed("teacher."), **OFFICIAL, **prefixed("ema.")}))
    assert "without the prefix" not in capsys.readouterr().out
    refused(
        {**prefixed("student."), **prefixed("teacher.", changed())},
        "expected one network, found 2 that differ: student., teacher.; save the state_dict of the",
    )


def test_of_different_copies_the_first_known_key_is_taken(capsys):
    other = changed()
    for content in (
        {"model_ema": other, "state_dict": OFFICIAL},
        {"other": other, "ema": OFFICIAL},
        {"ema": {"state_dict": other}, "model": {"module": OFFICIAL}},
    ):
        expect_official(taken(content))
    assert "below 'model' and 'module', without" in capsys.readouterr().out
    refused(
        {"first": OFFICIAL, "second": other},
        "expected one network, found 2 that differ: no prefix below 'first', no prefix below 'sec",
    )


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.ckpt", "a.pth.tar", "a.safetensors"])
def test_any_ending_holds_any_kind_of_file(name):
    expect_official(taken(OFFICIAL, name))
    expect_official(
        taken(prefixed("net."), name, lambda content, file: file.write(safetensors.save(content)))
    )
    expect_official(taken(OFFICIAL, name, lambda content, file: pickle.dump(content, file)))


def test_damaged_safetensors_are_refused():
    whole = safetensors.save(OFFICIAL)
    with pytest.raises(InputError, match=r"not a file of tensors that can be read safely \(is it"):
        taken(None, save=lambda _, file: file.write(whole[:-4]))


def test_a_pickled_network_is_refused_with_what_to_save():
    network = narrow.NarrowResNet()
    remedy = r"save model.state_dict\(\) instead, where its class is defined$"
    name = "'tests.narrow.NarrowResNet'"
    refused(network, f"expected a state_dict, .* found a whole network, {name}, pickled; {remedy}")
    refused(
        {"epoch": 3, "model": network},
        f".* found a whole network, {name}, pickled under 'model'; {remedy}",
    )
    script = io.BytesIO()
    with pytest.warns((DeprecationWarning, FutureWarning)):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    refused(
        script.getvalue(),
        "not a file of tensors .* it is TorchScript; save module.state_dict",
        save=lambda content, file: file.write(content),
    )


def test_a_head_that_fits_is_kept(capsys):
    found = taken(prefixed("module."), keep_head=True)
    assert torch.equal(found["fc.weight"], OFFICIAL["fc.weight"])
    assert "took 102 tensors without the prefix 'module.', with the" in capsys.readouterr().out
    model = Model(architecture="resnet18", weights=f"{FOLDER}/own.pth", keep_head=True)
    network = networks.build(model, 1000, 0, networks.pretrained_weights(model))
    assert torch.equal(network.fc.bias, OFFICIAL["fc.bias"])
    message = (
        "^model.keep_head: expected a last layer for 5 classes, found one for 1000 in "
        f"{FOLDER}/own.pth; write keep_head: false for a new one$"
    )
    with pytest.raises(InputError, match=message):
        networks.build(model, 5, 0, networks.pretrained_weights(model))


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ({}, "none"),
        ({"fc.weight": torch.ones(3, 9), "fc.bias": torch.ones(3)}, "'fc.weight' 3x9"),
        ({"fc.1.weight": torch.ones(3, 64)}, "'fc.1.weight' 3x64 in float32"),
    ],
)
def test_a_head_of_another_form_is_refused(head, found):
    body = {name: tensor for name, tensor in OFFICIAL.items() if not name.startswith("fc.")}
    expect_official(taken({**body, **head}))
    refused(
        {**body, **head},
        f"expected fc.weight of 64 features and fc.bias, which keep_head: .*, found {found}",
        keep_head=True,
    )


def test_tensors_that_share_memory_are_read_once(monkeypatch):
    reads = []
    read = torch_files._read
    monkeypatch.setattr(torch_files, "_read", lambda *key: reads.append(key) or read(*key))
    flat = torch.cat([tensor.flatten() for tensor in OFFICIAL.values()])
    views, place = {}, 0
    for name, tensor in OFFICIAL.items():
        views[name] = flat[place : place + tensor.numel()].view(tensor.shape)
        place += tensor.numel()
    expect_official(taken({"model": views, "ema": views}))
    assert len([key for key in reads if key[2] == 4 * place]) == 1


def test_a_damaged_tensor_is_refused():
    file = io.BytesIO()
    torch.save(OFFICIAL, file)
    whole = file.getvalue()
    place = re.search(re.escape(OFFICIAL["layer4.1.conv2.weight"].numpy().tobytes()[:64]), whole)
    damaged = whole[: place.start()] + b"\1" + whole[place.start() + 1 :]
    refused(
        damaged,
        r"not a file of tensors that can be read safely \(is it whole\?\)",
        save=lambda content, file: file.write(content),
    )
