import copy
import inspect
import re

import pytest
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML, MappingNode

from pipeline import document, presets
from pipeline.attacks import library
from pipeline.attacks.parameters import ATTACK_PARAMETERS, VALUES, Words
from pipeline.attacks.params import Attack
from pipeline.base import params
from pipeline.base.errors import InputError
from pipeline.base.values import CLEAN, Section, Spread, parse_level, parse_step, step_size
from pipeline.harden.params import batch_counts
from pipeline.prepare.params import Store
from tests import samples
from tests.conftest import ROOT

yaml = YAML(typ="safe")  # the one in C
yaml.sort_base_mapping_type_on_output = False

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "params.yaml").write_text(presets.complete(name))
    settings = document.load(tmp_path / "params.yaml")
    own = document.load(ROOT / "params.yaml")
    assert (settings == own) == (name == "quickstart")
    assert (
        settings.evaluate.threats["pgd"].eps
        == settings.attacks["pgd"].eps
        == settings.selection.eps
    )


def test_committed_params_are_the_quickstart():
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "presets/quickstart.yaml").read_bytes()


def written(node, seen):
    """Count the values of a YAML node, each anchor's and each list's once."""
    if any(node is other for other in seen):
        return 0
    seen.append(node)
    if not isinstance(node, MappingNode):
        return 1
    return sum(written(value, seen) for _, value in node.value)


def test_the_quickstart_writes_at_most_70_values():
    root = YAML(typ="safe", pure=True).compose(ROOT / "params.yaml")
    assert written(root, []) <= 70


@pytest.mark.parametrize(("name", "wanted"), ATTACK_PARAMETERS.items())
def test_attack_table_equals_the_constructors(name, wanted):
    accepted = set(inspect.signature(getattr(torchattacks, name)).parameters) - {
        "model",
        *library.FIXED,
        "n_classes",
    }
    assert accepted == {library.EPS_NAMES.get(name, "eps"), *wanted}


def test_every_parameter_of_every_attack_has_its_values():
    used = {
        (name, key) for name, keys in ATTACK_PARAMETERS.items() for key in keys if key != "alpha"
    }
    assert {key if (name, key) not in VALUES else (name, key) for name, key in used} == set(VALUES)


WORDS = [
    (*key, allowed) if isinstance(key, tuple) else (None, key, allowed)
    for key, allowed in VALUES.items()
]


@pytest.mark.parametrize(
    ("attack", "key", "words"), [entry for entry in WORDS if isinstance(entry[2], Words)]
)
def test_words_are_those_in_torchattacks_source(attack, key, words):
    attack = attack or next(name for name, keys in ATTACK_PARAMETERS.items() if key in keys)
    source = inspect.getsource(inspect.getmodule(getattr(torchattacks, attack)))
    compared = re.findall(rf'if (?:self\.)?{key} == "(\w+)"', source)
    assert set(words.words) - (set(library.SPELLINGS) if key == "noise_type" else set()) == set(
        compared
    )


PARAMETERS = [
    ("DIFGSM", "decay", -0.1, "a number of at least 0 and at most 1"),
    ("DIFGSM", "decay", 2.0, "a number of at least 0 and at most 1"),
    ("DIFGSM", "diversity_prob", 1.5, "a number of at least 0 and at most 1"),
    ("DIFGSM", "resize_rate", 1.0, "a number of at least 0.125 and below 1"),
    ("DIFGSM", "resize_rate", 0.1, "a number of at least 0.125 and below 1"),
    ("TIFGSM", "kernel_name", "gauss", "gaussian, linear or uniform"),
    ("TIFGSM", "len_kernel", 4, "an odd number of at least 1 and at most 255"),
    ("TIFGSM", "len_kernel", 5.0, "an odd number of at least 1 and at most 255"),
    ("TIFGSM", "nsig", 0, "a number above 0 and at most 10"),
    ("SINIFGSM", "m", 63, "a whole number of at least 1 and at most 62"),
    ("VMIFGSM", "N", 0, "a whole number of at least 1"),
    ("VMIFGSM", "beta", -1, "a number of at least 0"),
    ("VNIFGSM", "beta", -1, "a number of at least 0"),
    ("FAB", "beta", 1.5, "a number above 0 and at most 1"),
    ("FAB", "alpha_max", 1.1, "a number of at least 0 and at most 1"),
    ("FAB", "eta", 0.9, "a number of at least 1"),
    ("FAB", "multi_targeted", "yes", "true or false"),
    ("APGD", "loss", "cross_entropy", "ce or dlr"),
    ("APGD", "rho", 1.5, "a number above 0 and at most 1"),
    ("UPGD", "loss", ["ce"], "ce, dlr or margin"),
    ("Square", "loss", "dlr", "ce or margin"),
    ("Square", "p_init", 0, "a number above 0 and at most 1"),
    ("Square", "n_queries", 1.5, "a whole number of at least 1"),
    ("AutoAttack", "version", True, "standard, plus or rand"),
    ("Jitter", "scale", 0, "a number above 0"),
    ("Jitter", "std", -0.1, "a number of at least 0"),
    ("PGDRS", "noise_type", "normal", "gaussian, guassian or uniform"),
    ("PGDRS", "noise_sd", -0.1, "a number of at least 0"),
    ("PGDRS", "batch_max", 1, "at least noise_batch_size (2), the noisy copies of one image"),
    ("PIFGSM", "momentum", -1, "a number of at least 0 and at most 1"),
    ("PIFGSM", "prob", 2, "a number of at least 0 and at most 1"),
    ("PIFGSM", "amplification", 0, "a number above 0"),
    ("PIFGSMPP", "project_factor", -1, "a number of at least 0"),
    ("SPSA", "delta", 0, "a number of at least 1e-06 and at most 1"),
    ("SPSA", "lr", 0, "a number above 0"),
    ("SPSA", "lr", float("nan"), "a number above 0"),
    ("SPSA", "lr", True, "a number above 0"),
    ("SPSA", "nb_sample", 2**31, "a whole number of at least 1"),
]


@pytest.mark.parametrize(("attack", "key", "value", "expected"), PARAMETERS)
def test_values_that_an_attack_cannot_use_are_refused(attack, key, value, expected):
    entry = samples.attack_entry(attack)
    Attack.model_validate(entry)
    with pytest.raises(ValueError, match=re.escape(f"{key}: expected {expected}, found {value!r}")):
        Attack.model_validate({**entry, key: value})


@given(st.integers(1, 255))
def test_levels_are_read_as_fractions_and_decimals(numerator):
    assert parse_level(f"{numerator}/255") == numerator / 255 == parse_level(repr(numerator / 255))


@pytest.mark.parametrize(
    "value",
    [8, 8.0, "8", 0, -0.1, True, None, "eight", "1/0", float("nan"), float("inf"), "9/8", [1]],
)
def test_levels_out_of_range_are_refused_with_a_hint(value):
    with pytest.raises(ValueError, match="write 8/255, not 8"):
        parse_level(value)


@given(st.integers(2, 512), st.lists(st.integers(1, 100), min_size=1, max_size=4))
def test_batch_counts_sum_exactly(batch_size, parts):
    total = sum(parts)
    mix = dict(zip([CLEAN, "a", "b", "c"], (part / total for part in parts), strict=False))
    try:
        counts = batch_counts(mix, batch_size)
    except ValueError as error:
        assert "at least one image" in str(error)
        return
    assert sum(counts.values()) == batch_size
    assert all(
        abs(counts[name] - mix[name] * batch_size) <= (0.5 if name != CLEAN else len(mix)) + 1e-9
        for name in mix
    )


def test_the_published_mix():
    assert batch_counts({"clean": 0.5, "fgsm": 0.25, "pgd": 0.25}, 128) == {
        "clean": 64,
        "fgsm": 32,
        "pgd": 32,
    }


ADVERSARY = {
    "eps": 0.1, "eps_per": "image", "alpha": 0.1, "steps": 1, "random_start": True,
    "loss": "cross_entropy", "target": "none", "against": "self",
}  # fmt: skip
ONLINE = {
    "start": "clean", "clean_weight": 0.5, "adv_weight": 0.5, "best_on": "robust",
    "adversary": ADVERSARY,
}  # fmt: skip
CHANGES = [
    ("data.source", "digit",
     r"data.source: expected digits, npz, .*, found 'digit'; did you mean digits\?"),
    ("store.compression", "zip", "store.compression: expected no such key"),
    ("data.n_val", 0, "data.n_val: expected 1 or more, or from_source, found 0"),
    ("data.path", "", "data.path: expected a file or folder apart from .*, found ''"),
    ("data.path", "data", "data.path: expected a file or folder apart from .*, found 'data'"),
    ("data.path", "models/x", "data.path: expected .*, such as data/raw, found 'models/x'"),
    ("adopted", {"m": {"architecture": "resnet18", "file": "models/my model.pt"}},
     "adopted.m.file: expected a path of letters, .*rename the file.*found 'models/my model.pt'"),
    ("adopted", {"m": {"architecture": "resnet18", "file": "m.pt;id"}},
     "adopted.m.file: expected a path of letters, digits and .*found 'm.pt;id'"),
    ("clean.epochs", "12", "clean.epochs: expected a whole number, found '12'"),
    ("training.momentum", None, "training.momentum: expected a value, found none"),
    ("training.epochs", "12", "training.epochs: expected a whole number, found '12'"),
    ("training.unknown", 1, "training.unknown: expected no such key, found one"),
    ("training", None, "training: expected a value, found none"),
    ("data.seed", 1, "data.seed: expected no such key, seed alone holds for it, found one"),
    ("seed", -1, "seed: expected at least 0, found -1"),
    ("precision", "fp16", "params.yaml: precision: expected auto, fp32 or bf16, found 'fp16'$"),
    ("finetuned.robust.of", "robust",
     r"finetuned.robust.of: expected an attacked model \(clean\), found 'robust'"),
    ("data.arrays", {"images": "x", "labels": "y"},
     r"data.arrays: expected no such key for source digits \(only for npz, npy, hdf5\), found one"),
    ("data.arrays", {"images": "x", "labels": "y", "val_images": "z"},
     "data.arrays: expected val_images and val_labels together, found one of them"),
    ("data.follow_links", True, "data.follow_links: expected no such key for source digits"),
    ("data.skip_broken", True, "data.skip_broken: expected no such key for source digits"),
    ("data.n_val", "from_source",
     "data.n_val: expected a number for source digits, found from_source"),
    ("data.n_test", "from_source",
     "data.n_test: expected a number for source digits, found from_source"),
    ("data.n_test", -1, "data.n_test: expected 0 or more, or from_source, found -1"),
    ("data.arrays", {"images": "x", "labels": "y", "test_labels": "z"},
     "data.arrays: expected test_images and test_labels together, found one of them"),
    ("data.n_vall", 3, r"data.n_vall: expected no such key, found one; did you mean n_val\?"),
    ("data.image_size", 4, "data.image_size: expected at least 8, found 4"),
    ("clean.momentun", 1,
     r"clean.momentun: expected no such key, found one; did you mean momentum\?"),
    ("attacks.FGSM", {"attack": "FGSM", "eps": 0.1},
     "attacks.FGSM: expected a name of small letters, .*, found 'FGSM'; write fgsm"),
    ("attacks.fgsm.attack", "PDG", r"attacks.fgsm.attack: expected one of .*; did you mean PGD\?"),
    ("mix.clean", "150 %", r"mix.clean: expected more than 0 .* \(write 0.25, 1/4 or 25 %\), fou"),
    ("mix.clean", 50, r"mix.clean: expected more than 0 and at most 1 \(write 0.25, 1/4 or 25 %\)"),
    ("clean", 3, "clean: expected keys with values"),
    ("evaluate.models", "clean", r"evaluate.models: expected a list \(\[a, b\]\), found 'clean'"),
    ("data.path", "/", "data.path: expected a file or folder apart from .*, found '/'"),
    ("data.path", "..", "data.path: expected a file or folder apart from .*, found '..'"),
    ("data.path", 3, "data.path: expected text, found 3"),
    ("store", {1: 2}, "store.1: expected a name, found 1"),
    ("finetuned.robust.refresh", True, r"finetuned.robust.refresh: expected keys with values"),
    ("clean.lr", float("nan"), "clean.lr: expected a finite number, found nan"),
    ("clean.warmup_epochs", 1000.0, "clean.warmup_epochs: expected at most epochs"),
    ("clean.unknown", 1, "clean.unknown: expected no such key, found one"),
    ("attacks.pgd.eps", 8.0,
     r"attacks.pgd.eps: expected more than 0 and at most 1, .* \(write 8/255, not 8\), found 8.0"),
    ("attacks.pgd.eps", 0.001, "attacks.pgd.eps: expected at least 1/255"),
    ("attacks.pgd.alpha", 2, r"attacks.pgd.alpha: expected .*write 8/255"),
    ("attacks.pgd.steps", 0, "attacks.pgd.steps: expected a whole number of at least 1, found 0"),
    ("attacks.pgd.steps", None, "attacks.pgd.steps: expected a value, PGD takes"),
    ("attacks.pgd.stepz", 3,
     "attacks.pgd.stepz: expected only alpha, attack, eps, random_start, steps for PGD"),
    ("attacks.pgd.random_start", 1, "attacks.pgd.random_start: expected true or false, found 1"),
    ("attacks.fgsm.attack", "CW", "attacks.fgsm.attack: expected one of FGSM"),
    ("attacks.clean", {"attack": "FGSM", "eps": 0.1}, "attacks.clean: expected another name"),
    ("attacks.x", {"attack": "UPGD", "eps": 0.1, "alpha": 0.1, "steps": 1, "random_start": True,
      "loss": 3, "decay": 1.0, "eot_iter": 1},
     "attacks.x.loss: expected ce, dlr or margin, found 3"),
    ("attacks.x", {"attack": "MIFGSM", "eps": 0.1, "alpha": 0.1, "steps": 1, "decay": "1"},
     "attacks.x.decay: expected a number"),
    ("evaluate.threats.x",
     {"attack": "AutoAttack", "eps": 0.1, "version": "standart", "restarts": 1},
     "evaluate.threats.x.version: expected standard, plus or rand, found 'standart'; "
     r"did you mean standard\?"),
    ("mix.clean", 0.6, r"mix: expected fractions that sum to 1, found 0.6 \+ 0.25 \+ 0.25 = 1.1"),
    ("mix", {"fgsm": 0.5, "pgd": 0.5}, "mix: expected a fraction of clean images"),
    ("mix", {"clean": 0.999, "fgsm": 0.001},
     "mix.fgsm: expected at least one image in a batch of 128"),
    ("mix", {"clean": 0.5, "fgsn": 0.5},
     r"mix.fgsn: expected clean, a name .* \(fgsm, pgd\) or .* \(here none\)"),
    ("model.weights", "IMAGENET1K_V3",
     r"model.weights: expected IMAGENET1K_V1, IMAGENET1K_V2, null or, .*, found 'IMAGENET1K_V3'$"),
    ("model", {"architecture": "resnet18", "weights": "IMAGENET1K_V2"},
     "model.weights: expected IMAGENET1K_V1, null"),
    ("model.weights", "own.pth",
     r"model.weights: expected .*, for resnet50, a .pth, .pt, .ckpt, .pth.tar or .safetensors file"
     r" in models/pretrained/, which DVC watches,"
     r" found 'own.pth' \(mv own.pth models/pretrained/\)$"),
    ("model.weights", "/a b/own.pt",
     r"model.weights: .* found '/a b/own.pt' \(mv '/a b/own.pt' models/pretrained/\)$"),
    ("model.weights", "models/pretrained/../own.pt",
     r"model.weights: .* \(mv models/pretrained/../own.pt models/pretrained/\)$"),
    ("model.weights", "./models/pretrained//own.pt",
     r"model.weights: .* \(write models/pretrained/own.pt\)$"),
    ("model.weights", "models/pretrained/own.bin",
     r"model.weights: .* found 'models/pretrained/own.bin'$"),
    ("model.weights", "models/pretrained/.pth.tar",
     r"model.weights: .* found 'models/pretrained/.pth.tar'"),
    ("model.keep_head", True, r"model.keep_head: expected false with weights: null"),
    ("model.weights", "models/pretrained/.pth",
     r"model.weights: .* found 'models/pretrained/.pth'"),
    ("evaluate.threats", {}, "evaluate.threats: expected 1 or more entries, found {}"),
    ("evaluate.threats.worst", {"attack": "FGSM", "eps": 0.1, "restarts": 1},
     "evaluate.threats.worst: expected another name"),
    ("evaluate.curves.threat", "fgsm",
     r"evaluate.curves.threat: expected a threat whose attack is PGD \(pgd\), found 'fgsm'"),
    ("evaluate.curves.restarts", 1,
     "evaluate.curves.restarts: expected at least 2"),
    ("evaluate.curves.steps", [1, 20],
     "evaluate.curves.steps: expected more than that threat's own 20 as the last value, found 20"),
    ("evaluate.curves.steps", [40, 20], "evaluate.curves.steps: expected rising values"),
    ("evaluate.curves.eps", ["8/255"],
     "evaluate.curves.eps: expected 1, at which every image must fall, as the last value"),
    ("evaluate.grid.eps", [8], "evaluate.grid.eps.0: expected more than 0 and at most 1"),
    ("evaluate.grid.alphas", ["eps/inf"],
     r"evaluate.grid.alphas.0: expected a level .*found 'eps/inf'"),
    ("training.batch_size", 2**31, "training.batch_size: expected less than 2147483648"),
    ("evaluate.grid.alphas", ["eps/4", "eps/4"],
     "evaluate.grid.alphas: expected each value once, found"),
    ("evaluate.grid.steps", [5, 10, 5], "evaluate.grid.steps: expected each value once, found"),
    ("evaluate.grid.alphas", ["eps/x"],
     r"evaluate.grid.alphas.0: expected a level \(2/255\), eps/steps, or eps divided by a number"),
    ("evaluate.ensemble.targets", 2,
     "evaluate.ensemble.targets: expected at least 3, found 2"),
    ("evaluate.ensemble.members", "three",
     "evaluate.ensemble.members: expected first_two or all, found 'three'"),
    ("attacks", {}, "attacks: expected 1 or more entries, found {}"),
    ("attacked", [], "attacked: expected 1 or more entries"),
    ("attacked", ["other"], "attacked: expected some of clean, robust, refreshed, each once"),
    ("attacked", ["clean", "clean"],
     "attacked: expected some of clean, robust, refreshed, each once, found 'clean'"),
    ("sources", ["robust"], "sources: expected some of clean, each once, found 'robust'"),
    ("export.min_clean", 1, "export.min_clean: expected"),
    ("export.model", "other",
     "export.model: expected auto or one of clean, robust, refreshed, found 'other'"),
    ("export.score", {"clean": 0, "fgsm": 0, "pgd": 0},
     "export.score: expected a weight above 0, found none"),
    ("export.score", {"max_eps": 8}, "export.score.max_eps: expected"),
    ("export", {"model": "auto", "min_clean": 0.5, "score": {"max_eps": "1/255"}},
     "export.model: expected a name, found auto, which needs an eps of evaluate.grid up to exp"),
    ("evaluate.models", ["clean", "robust"],
     "evaluate.models: expected every model, 'refreshed' is missing"),
    ("evaluate.models", ["clean", "x"],
     "evaluate.models: expected some of clean, robust, refreshed, each once, found 'x'"),
    ("evaluate.stored", "robust",
     r"evaluate.stored: expected an attacked model \(clean\), found 'robust'"),
    ("finetuned.x", {"of": "robust"}, "finetuned.x.best_on: expected a value, found none"),
    ("finetuned.robust.epochs", 0,
     "finetuned.robust.epochs: expected at least 1, found 0"),
    ("finetuned.robust.epoch", 1, "finetuned.robust.epoch: expected no such key, found one"),
    ("finetuned.robust.refresh", {"every": 1},
     "finetuned.robust.refresh.steps: expected a value, found none"),
    ("finetuned.robust.mix", {"clean": 0.5, "y": 0.5},
     "finetuned.robust.mix.y: expected clean, a name from attacks"),
    ("finetuned.robust.mix", {"clean": 0.5, "a-b-c": 0.5},
     "finetuned.robust.mix.a-b-c: expected a name of small letters, digits and _ "),
    ("finetuned.clean", {"of": "clean", "best_on": "mixed", "refresh": None},
     "finetuned.clean: expected a name that no other model has"),
    ("finetuned.refreshed.refresh", {"every": 1, "steps": 1, "alpha": "eps/0", "warm_start": True},
     "finetuned.refreshed.refresh.alpha: expected a level"),
    ("finetuned.refreshed.refresh", {"every": 1, "steps": 1, "alpha": "eps", "warm_start": True},
     r"finetuned.refreshed.refresh.alpha: expected .* \(eps/4; eps/1 is all of it\), found 'eps'"),
    ("training.ema", 1.0, "training.ema: expected less than 1, found 1.0"),
    ("finetuned.refreshed.refresh.regularise", 0.0,
     "finetuned.refreshed.refresh.regularise: expected more than 0, found 0.0"),
    ("finetuned.refreshed.refresh.reset", 0,
     "finetuned.refreshed.refresh.reset: expected at least 1, found 0"),
    ("finetuned.refreshed.loss", "trades",
     "finetuned.refreshed.beta: expected a number with loss: trades, and none without it, "
     "found None with loss: trades"),
    ("finetuned.refreshed.beta", 6.0,
     "finetuned.refreshed.beta: expected .*, found 6.0 with loss: cross_entropy"),
    ("finetuned.refreshed.loss", "mart",
     "finetuned.refreshed.loss: expected cross_entropy or trades, found 'mart'"),
    ("finetuned.x", {"of": "clean", "best_on": "mixed", "refresh": None, "loss": "trades",
                     "beta": 6.0},
     "finetuned.x.loss: expected cross_entropy where the stored images are not refreshed, or"),
    ("finetuned.x", {"of": "clean", "best_on": "mixed", "loss": "trades", "beta": 6.0,
                     "refresh": {"every": 1, "steps": 1, "alpha": "eps/1", "warm_start": True,
                                 "regularise": 1.0}},
     "finetuned.x.loss: expected cross_entropy where .* compares them already, found trades"),
    ("online.x", {**ONLINE, "loss": "trades", "beta": 6.0},
     "online.x.clean_weight: expected 0 with loss: trades, in which every .* one, found 0.5"),
    ("online.x", {**ONLINE, "adversary": {**ADVERSARY, "noise": 2.0, "random_start": False}},
     "online.x.adversary.noise: expected random_start: true with it, found noise: 2.0 without"),
    ("attacks.pgd.eps", {"uniform": [0.1]},
     "attacks.pgd.eps.uniform: expected 2 or more entries"),
    ("attacks.pgd.eps", {"normal": [0.1, 0.1]},
     r"attacks.pgd.eps: expected \{uniform: \[low, high\]\} or \{normal"),
    ("attacks.pgd.eps", {"uniform": [0.2, 0.1]},
     r"attacks.pgd.eps: expected the lower bound first, found \[0.2, 0.1\]"),
    ("attacks.pgd.eps", {"uniform": [0.001, 0.1]}, "attacks.pgd.eps: expected at least 1/255"),
    ("evaluate.threats.pgd.eps", {"uniform": [0.1, 0.2]},
     "evaluate.threats.pgd.eps: expected more than 0 and at most 1"),
    ("selection.steps", 0, "selection.steps: expected at least 1, found 0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "message"), CHANGES, ids=[f"{key}={value}"[:40] for key, value, _ in CHANGES]
)
def test_bad_values_are_named_with_their_key(raw_params, tmp_path, key, value, message):
    *sections, last = key.split(".")
    section = raw_params
    for name in sections:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    path = tmp_path / "params.yaml"
    yaml.dump(raw_params, path)
    with pytest.raises(InputError, match=message) as caught:
        document.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


SPELLINGS = [
    ("mix", {"clean": "1/3", "fgsm": "1/3", "pgd": "1/3"}, 1 / 3, lambda s: s.mix["fgsm"]),
    ("mix", {"clean": "50 %", "fgsm": "25%", "pgd": 0.25}, 0.25, lambda s: s.mix["fgsm"]),
    ("attacks.pgd.eps", "8 / 255", 8 / 255, lambda s: s.attacks["pgd"].eps),
    ("attacks.pgd.alpha", "eps / 4", 8 / 255, lambda s: s.attacks["pgd"].parameters["alpha"]),
    ("attacks.pgd.attack", "pgd", "PGD", lambda s: s.attacks["pgd"].attack),
    ("data.source", "Digits", "digits", lambda s: s.data.source),
    (
        "data",
        {
            "source": "npz",
            "path": "x.npz",
            "image_size": 8,
            "n_images": None,
            "n_val": "From_Source",
        },
        "from_source",
        lambda s: s.data.n_val,
    ),
    ("model.architecture", "ResNet50", "resnet50", lambda s: s.model.architecture),
    ("model.weights", "imagenet1k_v1", "IMAGENET1K_V1", lambda s: s.model.weights),
    ("training.optimizer", "SGD", "sgd", lambda s: s.clean.optimizer),
    ("evaluate.ensemble.members", "All", "all", lambda s: s.evaluate.ensemble.members),
]


@pytest.mark.parametrize(
    ("key", "value", "meaning", "read"), SPELLINGS, ids=[f"{e[0]}={e[1]}"[:40] for e in SPELLINGS]
)
def test_other_spellings_mean_the_same(raw_params, tmp_path, key, value, meaning, read):
    section = raw_params
    *sections, last = key.split(".")
    for name in sections:
        section = section[name]
    section[last] = value
    yaml.dump(raw_params, tmp_path / "params.yaml")
    assert read(document.load(tmp_path / "params.yaml")) == meaning


def leaves(value, where=()):
    """Yield the path of every value, and of every mapping and list."""
    yield where
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*where, key))


@pytest.mark.parametrize("wrong", [{"a": 1}, [], 7.5, True, "x y", -1, None])
def test_no_error_has_the_words_of_a_library(raw_params, monkeypatch, wrong):
    words = re.compile(r"dictionary|valid|instance|Input|should|boolean|integer|string|pydantic")
    for where in list(leaves(raw_params))[1:]:
        changed = copy.deepcopy(raw_params)
        section = changed
        for part in where[:-1]:
            section = section[part]
        section[where[-1]] = wrong
        monkeypatch.setattr(params, "read", lambda _, changed=changed: changed)
        try:
            document.load(params.FILE)
        except InputError as error:
            assert not words.search(str(error)), (where, str(error))
            assert "expected" in str(error), (where, str(error))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [\n", r":\d+: not YAML"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("\x00", "not YAML"),
        ("", "expected"),
        ("- 1", "expected"),
    ],
)
def test_files_that_are_no_params(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        document.load(path)


def test_a_missing_file_names_where_to_get_one(tmp_path):
    with pytest.raises(InputError, match="no such file; .* gives one to start from"):
        document.load(tmp_path / "params.yaml")


def loaded(content, folder):
    yaml.dump(content, folder / "params.yaml")
    return document.load(folder / "params.yaml")


def test_more_restarts_are_tried_than_the_threat_has(raw_params, tmp_path):
    raw_params["evaluate"]["threats"]["pgd"]["restarts"] = 3
    with pytest.raises(
        InputError, match="curves.restarts: expected more than that threat's own 3, found 3"
    ):
        loaded(raw_params, tmp_path)


def test_exponents_are_numbers_as_dvc_reads_them(settings):
    assert settings.clean.weight_decay == 5e-4


def test_fine_tuning_mixes_the_sets_of_sources(raw_params, tmp_path):
    raw_params["finetuned"]["x"] = {"of": "robust", "best_on": "mixed", "refresh": None}
    raw_params["finetuned"]["x"]["mix"] = {"clean": 0.5, "pgd": 0.25, "clean-pgd": 0.25}
    raw_params.update(attacked=["clean", "robust"])
    raw_params["evaluate"]["models"].append("x")
    with pytest.raises(
        InputError,
        match=r"finetuned.x.mix.clean-pgd: expected clean, .* \(here none\), found 'clean-pgd'",
    ):
        loaded(raw_params, tmp_path)
    settings = loaded({**raw_params, "sources": ["clean"]}, tmp_path)
    assert settings.finetuned["x"].counts == {"clean": 64, "pgd": 32, "clean-pgd": 32}
    assert settings.models == ["clean", "robust", "refreshed", "x"]
    assert settings.architecture_of("x") == "resnet50"


def test_trainings_share_what_they_do_not_set(raw_params, tmp_path):
    raw_params["training"].update(epochs=5, lr=0.3)
    raw_params["clean"].update(epochs=6, lr=0.1, seed=7)
    raw_params["finetuned"]["refreshed"].update(lr=0.02)
    settings = loaded(raw_params, tmp_path)
    trainings = settings.clean, settings.finetuned["robust"], settings.finetuned["refreshed"]
    assert [training.epochs for training in trainings] == [6, 5, 5]
    assert [training.lr for training in trainings] == [0.1, 0.3, 0.02]
    assert [training.seed for training in trainings] == [7, 0, 0]
    assert settings.finetuned["robust"].mix == {"clean": 0.5, "fgsm": 0.25, "pgd": 0.25}
    assert settings.data.seed == settings.generate.seed == settings.evaluate.seed == 0


@pytest.mark.parametrize("missing", ["lr", "epochs"])
def test_what_no_training_has_is_missing_where_all_share_it(raw_params, tmp_path, missing):
    del raw_params["training"][missing]
    message = rf"yaml: training\.{missing}: expected a value, found none$"
    with pytest.raises(InputError, match=message):
        loaded(raw_params, tmp_path)


class Two(Section):
    store: Store


def test_a_stage_cannot_read_what_it_does_not_declare(tmp_path):
    settings = params.load(ROOT / "params.yaml", Two, ["store"])
    with pytest.raises(AttributeError):
        _ = settings.model
    with pytest.raises(InputError, match="store: expected a value, found none"):
        params.load(ROOT / "params.yaml", Two, ["seed"])
    with pytest.raises(InputError, match="model: expected no such key"):
        params.load(ROOT / "params.yaml", Two, ["store", "model.weights"])
    assert params.chosen({"a": {"b": 1, "c": 2}, "d": 3}, ["a.b", "d.x", "e"]) == {"a": {"b": 1}}


ANCHORS = [
    ("a: *x\n", "expected a value above that &x marks, found none|not YAML: .*undefined alias"),
    (
        "a: &a [1]\nb: &b [*a, *a]\n",
        r":2: expected single values in what an anchor marks, found \*a, which is several",
    ),
    (
        "a: &a [" + "1, " * 300 + "1]\nb: [" + "*a, " * 99 + "*a]\n",
        "expected at most 20,000 values with every anchor written out",
    ),
]


@pytest.mark.parametrize(("text", "message"), ANCHORS)
def test_anchors_are_bounded(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        params.read(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            "robust",
            r"online.x.start: expected clean or \{architecture: …, weights: …\}, found 'robust'",
        ),
        (
            {"architecture": "vgg", "weights": None},
            "online.x.start.architecture: expected resnet18, resnet34 or resnet50, found 'vgg'",
        ),
        (
            {"architecture": "resnet18", "weights": "IMAGENET1K_V2"},
            r"online.x.start.weights: expected IMAGENET1K_V1, null or, .*, found 'IMAGENET1K_V2'$",
        ),
        (
            {"architecture": "resnet18", "weights": "../own.pth"},
            r"online.x.start.weights: expected .* found '../own.pth' \(mv ../own.pth "
            r"models/pretrained/\)$",
        ),
    ],
)
def test_online_training_starts_from_clean_or_from_weights(raw_params, tmp_path, start, message):
    adversary = {
        "eps": 0.1,
        "eps_per": "image",
        "alpha": 0.1,
        "steps": 1,
        "random_start": True,
        "loss": "margin",
        "target": "none",
    }
    weights = {
        "clean_weight": 0.5,
        "adv_weight": 0.5,
        "best_on": "robust",
        "adversary": {**adversary, "against": "self"},
    }
    raw_params["evaluate"]["models"].append("x")
    for value in ("clean", {"architecture": "resnet18", "weights": None}):
        raw_params["online"] = {"x": {"start": value, **weights}}
        yaml.dump(raw_params, tmp_path / "params.yaml")
        settings = document.load(tmp_path / "params.yaml")
        assert settings.models == ["clean", "x", "robust", "refreshed"]
        assert list(settings.starts) == (
            ["model"] if value == "clean" else ["model", "online.x.start"]
        )
    raw_params["online"]["x"]["start"] = start
    yaml.dump(raw_params, tmp_path / "params.yaml")
    with pytest.raises(InputError, match=message):
        document.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("step", "expected"), [("eps/4", 0.025), ("eps/2.5", 0.04), ("eps/steps", 0.02), (0.3, 0.3)]
)
def test_step_sizes_are_levels_or_shares_of_eps(step, expected):
    assert step_size(parse_step(step), 0.1, 5) == pytest.approx(expected)
    assert parse_step("2/255") == 2 / 255


@pytest.mark.parametrize("step", ["eps/0", "eps/-1", "eps/", "eps/x", "eps", 2])
def test_other_step_sizes_are_refused(step):
    with pytest.raises(ValueError, match="expected"):
        parse_step(step)


@given(st.floats(0, 1, exclude_max=True))
def test_spreads_stay_within_bounds_and_grow_with_the_share(share):
    uniform = Spread.model_validate({"uniform": ["2/255", "10/255"]})
    assert uniform.quantile(share) == pytest.approx((2 + 8 * share) / 255)
    normal = Spread.model_validate({"normal": ["8/255", "4/255"], "within": ["1/255", "16/255"]})
    assert 1 / 255 <= normal.quantile(share) <= 16 / 255
    assert normal.quantile(share) <= normal.quantile(min(share + 0.01, 1))


def test_half_of_a_symmetric_normal_lies_below_its_mean():
    assert Spread.model_validate({"normal": [0.1, 0.02], "within": [0.05, 0.15]}).quantile(
        0.5
    ) == pytest.approx(0.1)
