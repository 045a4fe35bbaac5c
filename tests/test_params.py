import inspect
import re

import pytest
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline import params
from pipeline.attacks import library
from pipeline.base.errors import InputError
from tests import samples
from tests.conftest import ROOT

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_has_the_same_keys(path):
    params.load(path)
    assert keys(YAML(typ="safe").load(path.read_text())) == keys(YAML(typ="safe").load((ROOT / "presets/quickstart.yaml").read_text()))


def keys(content, depth=0):
    """The keys of the sections and of what stands in them; entries of attacks and threats differ by attack."""
    if not isinstance(content, dict) or depth == 2:
        return None
    return {
        key: keys(value, depth + 1) if key not in ("attacks", "rounds", "variants", "online", "mix", "models", "threats") else None
        for key, value in content.items()
    }


def test_committed_params_are_the_quickstart():
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "presets/quickstart.yaml").read_bytes()


@pytest.mark.parametrize(("name", "wanted"), params.ATTACK_PARAMETERS.items())
def test_attack_table_equals_the_constructors(name, wanted):
    accepted = set(inspect.signature(getattr(torchattacks, name)).parameters) - {"model", *library.FIXED, "n_classes"}
    assert accepted == {library.EPS_NAMES.get(name, "eps"), *wanted}


def test_every_parameter_of_every_attack_has_its_values():
    used = {(name, key) for name, keys in params.ATTACK_PARAMETERS.items() for key in keys if key != "alpha"}
    assert {key if (name, key) not in params.VALUES else (name, key) for name, key in used} == set(params.VALUES)


WORDS = [(*key, allowed) if isinstance(key, tuple) else (None, key, allowed) for key, allowed in params.VALUES.items()]


@pytest.mark.parametrize(("attack", "key", "words"), [entry for entry in WORDS if isinstance(entry[2], params.Words)])
def test_words_are_those_in_torchattacks_source(attack, key, words):
    attack = attack or next(name for name, keys in params.ATTACK_PARAMETERS.items() if key in keys)
    source = inspect.getsource(inspect.getmodule(getattr(torchattacks, attack)))
    compared = re.findall(rf'if (?:self\.)?{key} == "(\w+)"', source)
    assert set(words.words) - (set(library.SPELLINGS) if key == "noise_type" else set()) == set(compared)


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
    params.Attack.model_validate(entry)
    with pytest.raises(ValueError, match=re.escape(f"{key}: expected {expected}, found {value!r}")):
        params.Attack.model_validate({**entry, key: value})


@given(st.integers(1, 255))
def test_levels_are_read_as_fractions_and_decimals(numerator):
    assert params.parse_level(f"{numerator}/255") == numerator / 255 == params.parse_level(repr(numerator / 255))


@pytest.mark.parametrize("value", [8, 8.0, "8", 0, -0.1, True, None, "eight", "1/0", float("nan"), float("inf"), "9/8", [1]])
def test_levels_out_of_range_are_refused_with_a_hint(value):
    with pytest.raises(ValueError, match="write 8/255, not 8"):
        params.parse_level(value)


@given(st.integers(2, 512), st.lists(st.integers(1, 100), min_size=1, max_size=4))
def test_batch_counts_sum_exactly(batch_size, parts):
    total = sum(parts)
    mix = dict(zip([params.CLEAN, "a", "b", "c"], (part / total for part in parts), strict=False))
    try:
        counts = params.batch_counts(mix, batch_size)
    except ValueError as error:
        assert "at least one image" in str(error)
        return
    assert sum(counts.values()) == batch_size
    assert all(abs(counts[name] - mix[name] * batch_size) <= (0.5 if name != params.CLEAN else len(mix)) + 1e-9 for name in mix)


def test_the_published_mix():
    assert params.batch_counts({"clean": 0.5, "fgsm": 0.25, "pgd": 0.25}, 128) == {"clean": 64, "fgsm": 32, "pgd": 32}


CHANGES = [
    ("data.source", "digit", "data.source: expected 'digits', 'npz'"),
    ("data.n_val", 0, "data.n_val: expected greater than or equal to 1, found 0"),
    ("clean.epochs", "12", "clean.epochs: expected a valid integer, found '12'"),
    ("clean.epochs", None, "clean.epochs: expected a value, found none"),
    ("clean.lr", float("nan"), "clean.lr: expected a finite number, found nan"),
    ("clean.warmup_epochs", 1000.0, "clean.warmup_epochs: expected at most epochs"),
    ("clean.unknown", 1, "clean.unknown: expected no such key, found one"),
    ("attacks.pgd.eps", 8.0, r"attacks.pgd.eps: expected more than 0 and at most 1, .* \(write 8/255, not 8\), found 8.0"),
    ("attacks.pgd.eps", 0.001, "attacks.pgd.eps: expected at least 1/255"),
    ("attacks.pgd.alpha", 2, r"attacks.pgd.alpha: expected .*write 8/255"),
    ("attacks.pgd.steps", 0, "attacks.pgd.steps: expected a whole number of at least 1, found 0"),
    ("attacks.pgd.steps", None, "attacks.pgd.steps: expected a value, PGD takes"),
    ("attacks.pgd.stepz", 3, "attacks.pgd.stepz: expected only alpha, attack, eps, random_start, steps for PGD"),
    ("attacks.pgd.random_start", 1, "attacks.pgd.random_start: expected true or false, found 1"),
    ("attacks.fgsm.attack", "CW", "attacks.fgsm.attack: expected one of FGSM"),
    ("attacks.clean", {"attack": "FGSM", "eps": 0.1}, "attacks.clean: expected another name"),
    ("attacks.x", {"attack": "UPGD", "eps": 0.1, "alpha": 0.1, "steps": 1, "random_start": True, "loss": 3, "decay": 1.0, "eot_iter": 1},
     "attacks.x.loss: expected ce, dlr or margin, found 3"),
    ("attacks.x", {"attack": "MIFGSM", "eps": 0.1, "alpha": 0.1, "steps": 1, "decay": "1"}, "attacks.x.decay: expected a number"),
    ("evaluate.threats.x", {"attack": "AutoAttack", "eps": 0.1, "version": "Standard", "restarts": 1},
     "evaluate.threats.x.version: expected standard, plus or rand, found 'Standard'"),
    ("finetune.mix.clean", 0.6, r"finetune.mix: expected fractions that sum to 1, found 0.6 \+ 0.25 \+ 0.25 = 1.1"),
    ("finetune.mix", {"fgsm": 0.5, "pgd": 0.5}, "finetune.mix: expected a fraction of clean images"),
    ("finetune.mix", {"clean": 0.999, "fgsm": 0.001}, "finetune.mix.fgsm: expected at least one image in a batch of 128"),
    ("finetune.mix", {"clean": 0.5, "fgsn": 0.5}, r"finetune.mix.fgsn: expected clean, a name .* \(fgsm, pgd\) or, .* \(here none\)"),
    ("model.weights", "IMAGENET1K_V3", r"model.weights: expected IMAGENET1K_V1, IMAGENET1K_V2, null or, .*, found 'IMAGENET1K_V3'$"),
    ("model", {"architecture": "resnet18", "weights": "IMAGENET1K_V2"}, "model.weights: expected IMAGENET1K_V1, null"),
    ("model.weights", "own.pth", r"model.weights: expected .*, for resnet50, a .pth or .pt file in models/pretrained/, which DVC watches,"
     r" found 'own.pth' \(mv own.pth models/pretrained/\)$"),
    ("model.weights", "/a b/own.pt", r"model.weights: .* found '/a b/own.pt' \(mv '/a b/own.pt' models/pretrained/\)$"),
    ("model.weights", "models/pretrained/../own.pt", r"model.weights: .* \(mv models/pretrained/../own.pt models/pretrained/\)$"),
    ("model.weights", "./models/pretrained//own.pt", r"model.weights: .* \(write models/pretrained/own.pt\)$"),
    ("model.weights", "models/pretrained/own.bin", r"model.weights: .* found 'models/pretrained/own.bin'$"),
    ("model.weights", "models/pretrained/.pth", r"model.weights: .* found 'models/pretrained/.pth'"),
    ("evaluate.threats", {}, "evaluate.threats: expected dictionary should have at least 1 item"),
    ("evaluate.threats.worst", {"attack": "FGSM", "eps": 0.1, "restarts": 1}, "evaluate.threats.worst: expected another name"),
    ("evaluate.curves.threat", "fgsm", r"evaluate.curves.threat: expected a threat whose attack is PGD \(pgd\), found 'fgsm'"),
    ("evaluate.curves.restarts", 1, "evaluate.curves.restarts: expected greater than or equal to 2"),
    ("evaluate.curves.steps", [1, 20], "evaluate.curves.steps: expected more than that threat's own 20 as the last value, found 20"),
    ("evaluate.curves.steps", [40, 20], "evaluate.curves.steps: expected rising values"),
    ("evaluate.curves.eps", ["8/255"], "evaluate.curves.eps: expected 1, at which every image must fall, as the last value"),
    ("evaluate.grid.eps", [8], "evaluate.grid.eps.0: expected more than 0 and at most 1"),
    ("evaluate.grid.alphas", ["eps/inf"], r"evaluate.grid.alphas.0: expected a level .*found 'eps/inf'"),
    ("finetune.batch_size", 2**31, "finetune.batch_size: expected less than 2147483648"),
    ("evaluate.grid.alphas", ["eps/x"], r"evaluate.grid.alphas.0: expected a level \(2/255\), eps/steps, or eps divided by a number"),
    (
        "evaluate.ensemble",
        {"members": "all", "eps": 8, "n_eval": 5, "iterations": 9, "targets": 9},
        "evaluate.ensemble.eps: expected more than 0 and at most 1",
    ),
    ("evaluate.ensemble.members", "three", "evaluate.ensemble.members: expected 'first_two' or 'all', found 'three'"),
    ("attacks", {}, "attacks: expected at least one entry, found none"),
    ("rounds", {}, "rounds: expected at least one entry, found none"),
    ("export.min_clean", 1, "export.min_clean: expected"),
    ("export.model", "other", r"export.model: expected a model of rounds, variants or online \(clean, robust, refreshed\), found 'other'"),
    ("rounds.clean.next", "clean", "rounds.clean.next: expected a new name, found 'clean' again"),
    ("rounds.other", {"next": "x"}, "rounds.other: expected a chain that starts at clean"),
    ("rounds.robust", {"next": "robust2"}, "evaluate.models.robust2: expected an entry for every model"),
    ("evaluate.models.stranger", {"stored": "clean"}, "evaluate.models.stranger: expected a model of rounds"),
    ("variants.x", {"of": "robust"}, r"variants.x.of: expected an attacked model \(clean\), found 'robust'"),
    ("variants.x", {"of": "clean", "epochs": 0}, "variants.x.epochs: expected greater than or equal to 1, found 0"),
    ("variants.x", {"of": "clean", "epoch": 1}, "variants.x.epoch: expected no such key, found one"),
    ("variants.x", {"of": "clean", "refresh": {"every": 1}}, "variants.x.refresh.steps: expected a value, found none"),
    ("variants.x", {"of": "clean", "mix": {"clean": 0.5, "y": 0.5}}, "variants.x.mix.y: expected clean, a name from attacks"),
    ("variants.x", {"of": "clean", "mix": {"clean": 0.5, "a-b-c": 0.5}}, "variants.x.mix.a-b-c: expected string should match pattern"),
    ("variants.x", {"of": "clean"}, "evaluate.models.x: expected an entry for every model"),
    ("variants.robust", {"of": "clean"}, "variants.robust: expected a name that no other model has"),
    ("finetune.refresh", {"every": 1, "steps": 1, "alpha": "eps/0", "warm_start": True}, "finetune.refresh.alpha: expected a level"),
    ("finetune.refresh", {"every": 1, "steps": 1, "alpha": "eps", "warm_start": True},
     r"finetune.refresh.alpha: expected .* \(eps/4; eps/1 is all of it\), found 'eps'"),
    ("finetune.ema", 1.0, "finetune.ema: expected less than 1, found 1.0"),
    ("attacks.pgd.eps", {"uniform": [0.1]}, "attacks.pgd.eps.uniform: expected list should have at least 2 items"),
    ("attacks.pgd.eps", {"normal": [0.1, 0.1]}, r"attacks.pgd.eps: expected \{uniform: \[low, high\]\} or \{normal"),
    ("attacks.pgd.eps", {"uniform": [0.2, 0.1]}, r"attacks.pgd.eps: expected the lower bound first, found \[0.2, 0.1\]"),
    ("attacks.pgd.eps", {"uniform": [0.001, 0.1]}, "attacks.pgd.eps: expected at least 1/255"),
    ("evaluate.threats.pgd.eps", {"uniform": [0.1, 0.2]}, "evaluate.threats.pgd.eps: expected more than 0 and at most 1"),
    ("selection.steps", 0, "selection.steps: expected greater than or equal to 1, found 0"),
    ("evaluate.models.robust.stored", "robust", "evaluate.models.robust.stored: expected an attacked model"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), CHANGES, ids=[f"{key}={value}"[:40] for key, value, _ in CHANGES])
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
    YAML().dump(raw_params, path)
    with pytest.raises(InputError, match=message) as caught:
        params.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("data: [\n", r":\d+: not YAML"), ("a: 1\na: 2\n", "duplicate key"), ("\x00", "not YAML"), ("", "expected"), ("- 1", "expected")],
)
def test_files_that_are_no_params(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        params.load(path)


def test_a_missing_file_names_where_to_get_one(tmp_path):
    with pytest.raises(InputError, match="no such file; .* gives one to start from"):
        params.load(tmp_path / "params.yaml")


def test_more_restarts_are_tried_than_the_threat_has(raw_params):
    raw_params["evaluate"]["threats"]["pgd"]["restarts"] = 3
    with pytest.raises(ValueError, match="curves.restarts: expected more than that threat's own 3, found 3"):
        params.Params.model_validate(raw_params)


def test_exponents_are_numbers_as_dvc_reads_them(settings):
    assert settings.clean.weight_decay == 5e-4


def test_a_variant_may_mix_the_sets_of_other_attacked_models(raw_params):
    mix = {"clean": 0.5, "pgd": 0.25, "robust-pgd": 0.25}
    raw_params["variants"]["x"] = {"of": "clean", "mix": mix}
    raw_params["rounds"]["robust"] = {"next": "robust2"}
    raw_params["evaluate"]["models"].update(x={"stored": "clean"}, robust2={"stored": "robust"})
    settings = params.Params.model_validate(raw_params)
    assert settings.recipe("x").counts == {"clean": 64, "pgd": 32, "robust-pgd": 32}
    assert [settings.parent_of(name) for name in settings.models] == ["clean", "clean", "robust", "clean", "clean"]

    raw_params["variants"]["x"]["of"] = "robust"
    with pytest.raises(ValueError, match=r"variants.x.mix.robust-pgd: expected clean, .* \(clean-fgsm, clean-pgd\), found 'robust-pgd'"):
        params.Params.model_validate(raw_params)
    del raw_params["variants"]["x"], raw_params["evaluate"]["models"]["x"]
    raw_params["finetune"]["mix"] = mix
    with pytest.raises(ValueError, match=r"finetune.mix.robust-pgd: expected clean, .* in a variant, .* \(here none\), found 'robust-pgd'"):
        params.Params.model_validate(raw_params)


def test_a_variant_is_finetune_with_what_it_changes(raw_params, tmp_path):
    raw_params["variants"]["x"] = {"of": "clean", "epochs": 3, "refresh": {"every": 1, "steps": 2, "alpha": "eps/2", "warm_start": True}}
    raw_params["evaluate"]["models"]["x"] = {"stored": "clean"}
    YAML().dump(raw_params, tmp_path / "params.yaml")
    settings = params.load(tmp_path / "params.yaml")
    assert settings.recipe(None) == settings.finetune
    recipe = settings.recipe("x")
    assert (recipe.epochs, recipe.refresh.alpha) == (3, "eps/2")
    assert recipe.model_copy(update={"epochs": settings.finetune.epochs, "refresh": None}) == settings.finetune
    assert settings.models == ["clean", "robust", "refreshed", "x"]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("robust", r"online.x.start: expected clean or \{architecture: …, weights: …\}, found 'robust'"),
        (
            {"architecture": "vgg", "weights": None},
            "online.x.start.architecture: expected 'resnet18', 'resnet34' or 'resnet50', found 'vgg'",
        ),
        (
            {"architecture": "resnet18", "weights": "IMAGENET1K_V2"},
            r"online.x.start.weights: expected IMAGENET1K_V1, null or, .*, found 'IMAGENET1K_V2'$",
        ),
        (
            {"architecture": "resnet18", "weights": "../own.pth"},
            r"online.x.start.weights: expected .* found '../own.pth' \(mv ../own.pth models/pretrained/\)$",
        ),
    ],
)
def test_online_training_starts_from_the_clean_model_or_a_fresh_one(raw_params, tmp_path, start, message):
    adversary = {"eps": 0.1, "eps_per": "image", "alpha": 0.1, "steps": 1, "random_start": True, "loss": "margin", "target": "none"}
    weights = {"clean_weight": 0.5, "adv_weight": 0.5, "best_on": "robust", "adversary": {**adversary, "against": "self"}}
    raw_params["evaluate"]["models"]["x"] = {"stored": "clean"}
    for value in ("clean", {"architecture": "resnet18", "weights": None}):
        raw_params["online"] = {"x": {**raw_params["clean"], "start": value, **weights}}
        YAML().dump(raw_params, tmp_path / "params.yaml")
        settings = params.load(tmp_path / "params.yaml")
        assert settings.models == ["clean", "robust", "refreshed", "x"]
        assert list(settings.starts) == (["model"] if value == "clean" else ["model", "online.x.start"])
    raw_params["online"]["x"]["start"] = start
    YAML().dump(raw_params, tmp_path / "params.yaml")
    with pytest.raises(InputError, match=message):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(("step", "expected"), [("eps/4", 0.025), ("eps/2.5", 0.04), ("eps/steps", 0.02), (0.3, 0.3)])
def test_step_sizes_are_levels_or_shares_of_eps(step, expected):
    assert params.step_size(params.parse_step(step), 0.1, 5) == pytest.approx(expected)
    assert params.parse_step("2/255") == 2 / 255


@pytest.mark.parametrize("step", ["eps/0", "eps/-1", "eps/", "eps/x", "eps", 2])
def test_other_step_sizes_are_refused(step):
    with pytest.raises(ValueError, match="expected"):
        params.parse_step(step)


@given(st.floats(0, 1, exclude_max=True))
def test_spreads_stay_within_their_bounds_and_grow_with_the_share(share):
    uniform = params.Spread.model_validate({"uniform": ["2/255", "10/255"]})
    assert uniform.quantile(share) == pytest.approx((2 + 8 * share) / 255)
    normal = params.Spread.model_validate({"normal": ["8/255", "4/255"], "within": ["1/255", "16/255"]})
    assert 1 / 255 <= normal.quantile(share) <= 16 / 255
    assert normal.quantile(share) <= normal.quantile(min(share + 0.01, 1))


def test_half_of_a_symmetric_normal_lies_below_its_mean():
    assert params.Spread.model_validate({"normal": [0.1, 0.02], "within": [0.05, 0.15]}).quantile(0.5) == pytest.approx(0.1)
