"""Check the verdict of an evaluation against its checks, and these against their limits.

Nothing is attacked. Every check takes a project and yields rows.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.audit.evaluated import judged_images
from pipeline.audit.project import Project, Row, differing, judged
from pipeline.evaluate import checks, diagnostics
from pipeline.evaluate.checks import COLLAPSED, CONVERGED, LIMIT, Check
from pipeline.evaluate.judgement import WORST

HELD_OUT = "judged_images_not_held_out"
SHARES = {
    "fgsm_far_above_pgd": COLLAPSED,
    "black_box_finds_more": LIMIT,
    "transfer_finds_more": LIMIT,
    "stands_at_eps_1": LIMIT,
    "gradients_zero_or_not_finite": LIMIT,
    "outputs_are_probabilities": LIMIT,
    "outputs_are_random": LIMIT,
    HELD_OUT: LIMIT,
    "more_steps_find_more": CONVERGED,
    "more_restarts_find_more": CONVERGED,
}
RISES = ("fgsm_stronger_than_pgd", "fgsm_above_clean", "more_steps_raise_accuracy")
ON_FEW = ("black_box_finds_more", "stands_at_eps_1", "more_steps_raise_accuracy")  # as the curves
AFTER_ALL = ("more_steps_find_more", "more_restarts_find_more")


def verdict(project: Project, path: str) -> Iterator[Row]:
    """Check that each number has the result that its limit gives, and that the verdict follows."""
    metrics = project.metrics(path)
    found = metrics["diagnostics"]
    computed, counted = _computed(project, metrics), _counted(project, metrics)
    names, nothing = {*SHARES, *RISES, *counted, *computed}, _without_images(metrics)
    problems = [f"{name}: in one place only" for name in sorted(names ^ found["checks"].keys())]
    for name, check in found["checks"].items():
        if check["value"] is None and name not in nothing:
            problems.append(f"{name}: recorded as not run, although there are images for it")
        if check["value"] is not None and check["n"] != counted.get(name, check["n"]):
            problems.append(f"{name}: n: recorded {check['n']}, is {counted[name]}")
        problems += [f"{name}: {text}" for text in _problems(name, check, computed.get(name))]
    yield judged(
        "checks",
        "; ".join(problems[:2]),
        f"{len(names)}, each with the result that its limit gives",
        path,
    )
    results = {name: check["verdict"] for name, check in found["checks"].items()}
    wanted, failed = checks.verdict(results, checks.confirmed(metrics["robust"]))
    problem = f"recorded {found['verdict']}, the checks give {wanted}"
    agrees = (found["verdict"], found["failed"]) == (wanted, failed)
    yield judged("verdict", "" if agrees else problem, wanted, path)


def _computed(project: Project, metrics: Mapping[str, Any]) -> dict[str, Check | None]:
    """Return the checks that other numbers of the metrics give, or None where they do not."""
    clean, robust = metrics["clean"], metrics["robust"]
    images = judged_images(project, project.clean)
    right = np.arange(clean["n"]) < round(clean["accuracy"] * clean["n"])
    all_eps = [result["eps"] for name, result in robust.items() if name != WORST]
    eps = robust[metrics["diagnostics"]["threat"]]["eps"]
    # Else worst is about images that were also attacked at a greater eps.
    is_within = max(all_eps) <= eps + checks.SAME_EPS
    return {
        "eps_in_wrong_units": checks.units(all_eps),
        checks.HARDLY_ABOVE_GUESSING: checks.above_guessing(right, images.labels),
        HELD_OUT: checks.share(diagnostics.trained_on(project.images(project.clean), images)),
        checks.FAR_ABOVE: checks.far_above(robust[WORST], eps, metrics["transfer"])
        if is_within
        else None,
    }


def _counted(project: Project, metrics: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of images that each check is about.

    One that counts only images which are right has none here.
    """
    robust, threat = metrics["robust"], metrics["diagnostics"]["threat"]
    within = [
        result["n"]
        for name, result in robust.items()
        if name != WORST and result["eps"] <= robust[threat]["eps"] + checks.SAME_EPS
    ]
    n_judged, few = metrics["clean"]["n"], project.settings.evaluate.curves.n_eval
    counted = dict.fromkeys([*SHARES, *RISES], robust[threat]["n"])
    counted[HELD_OUT] = n_judged
    counted |= dict.fromkeys(ON_FEW, n_judged if few is None else min(few, n_judged))
    counted |= dict.fromkeys(AFTER_ALL, min(checks.ENOUGH, *within))
    del counted["fgsm_far_above_pgd"]
    return counted


def _without_images(metrics: Mapping[str, Any]) -> set[str]:
    """Return the checks that have nothing to count, and are therefore not run."""
    robust, transfer = metrics["robust"], metrics["transfer"]
    of_threat = robust[metrics["diagnostics"]["threat"]]
    found, largest = set(), of_threat["eps"] + checks.SAME_EPS
    if not any("eps" in one and checks.least_eps(one) <= largest for one in transfer.values()):
        found.add("transfer_finds_more")
    if checks.far_above(robust[WORST], of_threat["eps"], transfer).value is None:
        found.add(checks.FAR_ABOVE)
    if of_threat["accuracy"] == 0:  # else some image is right without an attack
        found.add("fgsm_far_above_pgd")
    return found


def _problems(name: str, check: Mapping[str, Any], computed: Check | None) -> Iterator[str]:
    """Yield what is wrong with a check's limit and result."""
    value, n = check["value"], check["n"]
    if value is None:
        computed = computed or checks.NOT_RUN
    elif name in SHARES:
        computed = checks.share(np.arange(n) < round(value * n), SHARES[name])
    if computed is not None:
        yield from differing(check, computed.as_metrics())
    elif name in RISES:
        if check["limit"] != LIMIT:
            yield f"limit: recorded {check['limit']}, is {LIMIT}"
        possible = {
            "failed": value > LIMIT,
            "passed": value <= LIMIT + checks.ROOM,
            "inconclusive": True,
        }
        if not possible.get(check["verdict"], False):
            yield f"recorded {check['verdict']} with {value:g}, the limit is {LIMIT:g}"
