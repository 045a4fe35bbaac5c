"""Name the recipes that are compared, and write the params of a project that trains them all."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from pipeline import presets

SELECTED = 500  # images that choose the epochs
# The time constants of averages, as shares of all steps.
EMA, LONG_EMA, PRESET_EMA = 0.093, 0.19, 0.2306

Entry = dict[str, Any]
SINGLE_STEP = {"steps": 1, "random_start": True}
LOWER_LR: Entry = {"lr": 0.05, "mix": {"clean": 0.325, "fgsm": 0.175, "pgd": 0.5}}
HIGHER_LR: Entry = {"lr": 0.1, "mix": {"clean": 0.4, "fgsm": 0.2, "pgd": 0.4}}
HALF_CLEAN = {"clean": 0.5, "fgsm": 0.15, "pgd": 0.35}


def _refreshed(**changes: Any) -> tuple[str, Entry]:
    return "refreshed", {"batch_size": 128, **LOWER_LR, **changes}


# What differs from the preset's models. Here `ema` is a time constant, and `epochs` is a share of
# those of the setting. The order is that of work.
RECIPES: dict[str, tuple[str, Entry]] = {
    "static": ("robust", {"best_on": "robust"}),
    "refreshed, as in the preset": ("refreshed", {"epochs": 0.8, "ema": PRESET_EMA}),
    "refreshed": _refreshed(),
    "refreshed, half of the epochs": _refreshed(epochs=0.5),
    "refreshed + regularise": _refreshed(refresh={"regularise": 10.0}),
    "online PGD-10": ("online", {}),
    "online PGD-10, lr 0.1": ("online", {"lr": 0.1}),
    "online N-FGSM": (
        "online",
        {"clean_weight": 0.0, "adversary": {**SINGLE_STEP, "noise": 2.0, "alpha": "eps/1"}},
    ),
    "online FGSM-RS": (
        "online",
        {"clean_weight": 0.0, "adversary": {**SINGLE_STEP, "alpha": "10/255"}},
    ),
    "refreshed + onecycle": _refreshed(schedule="onecycle", lr=0.1, warmup_epochs=3),
    "refreshed + more clean": _refreshed(mix=HIGHER_LR["mix"]),
    "refreshed + more clean, lr 0.1": _refreshed(**HIGHER_LR),
    "refreshed + more clean, lr 0.1 + trades": _refreshed(**HIGHER_LR, loss="trades", beta=6.0),
    "refreshed + more clean, lr 0.1 + trades, beta 3": _refreshed(
        **HIGHER_LR, loss="trades", beta=3.0
    ),
    "refreshed + more clean, lr 0.1 + smoothing": _refreshed(**HIGHER_LR, label_smoothing=0.4),
    "refreshed + more clean, lr 0.1, 1.2 of the epochs": _refreshed(**HIGHER_LR, epochs=1.2),
    "refreshed + more clean, lr 0.1, 0.6 of the epochs": _refreshed(**HIGHER_LR, epochs=0.6),
    "refreshed + half clean": _refreshed(mix=HALF_CLEAN),
    "refreshed + regularise 2": _refreshed(refresh={"regularise": 2.0}),
    "refreshed + smoothing": _refreshed(label_smoothing=0.4),
    "refreshed + long EMA": _refreshed(ema=LONG_EMA),
    "refreshed + trades": _refreshed(loss="trades", beta=6.0),
}


def content(setting: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the params of a project with one model for every row and seed."""
    found: dict[str, Any] = YAML(typ="safe").load(presets.complete("cifar10-cpu"))
    own = {**found["finetuned"], **found["online"]}
    n_images = setting["images"] + SELECTED + setting["judged"]
    found["data"].update(n_images=n_images, n_val=SELECTED, n_test=setting["judged"])
    found["clean"]["epochs"] = setting["clean_epochs"]
    found["selection"]["n_images"] = SELECTED
    found.update(finetuned={}, online={})
    for seed in seeds:
        for row, (base, changes) in RECIPES.items():
            entry = _merged(own[base], {"seed": seed, **changes})
            entry["epochs"] = round(setting["epochs"] * changes.get("epochs", 1))
            if entry.get("ema") is not None:
                window = changes.get("ema", EMA) * _steps(entry, setting)
                entry["ema"] = round(1 - 1 / max(window, 2), 5)
            found["online" if base == "online" else "finetuned"][model(row, seed)] = entry
    found["export"]["model"] = model("refreshed", seeds[0])
    found["evaluate"].update(
        models=["clean", *found["finetuned"], *found["online"]],
        n_eval=setting["judged"],
        grid=None,
        ensemble=setting["ensemble"],
    )
    few = {"n_eval": 40, "eps": ["8/255", 1], "steps": [10, 40], "restarts": 2, "queries": 100}
    found["evaluate"]["curves"].update(few)
    return found


def _merged(entry: Entry, changes: Entry) -> Entry:
    merged = copy.deepcopy(entry)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _steps(entry: Entry, setting: Mapping[str, Any]) -> int:
    """Return the steps of a training."""
    n_clean = round(entry.get("batch_size", 128) * entry.get("mix", {"clean": 1})["clean"])
    return int(entry["epochs"] * setting["images"] // n_clean)


def model(row: str, seed: int) -> str:
    """Return the name of the model of a row."""
    name = re.sub("[^a-z0-9]+", "_", row.lower().replace("-", ""))
    return f"{name}_{seed}"
