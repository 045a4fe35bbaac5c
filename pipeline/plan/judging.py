"""Count the passes of an evaluation.

An image that is wrong without an attack is not attacked, and one that has fallen is not attacked
again. How many these are is not known before the run, so shares are assumed. Everything else is
exact.
"""

from collections.abc import Iterator

from pipeline.attacks.params import Threat
from pipeline.evaluate import checks, diagnostics, ensemble, params, sweeps
from pipeline.evaluate.target import BATCH_SIZE
from pipeline.plan.work import Work, attacked, classified

RIGHT = 0.85  # share of the images that are right without an attack, as assumed
# Share of these that withstand the threat that the curves vary, as assumed.
STAYS_HARDENED = 0.4  # for models that are trained against fresh or refreshed attacks
STAYS_OTHER = 0.01
FP32 = "float32"  # the precision of all judging


class Judging:
    """Counts the work of judging one model.

    `stays` is the share of the images, of those that are right without an attack, that withstand.
    """

    def __init__(self, settings: params.Evaluate, architecture: str, stays: float) -> None:
        self._settings, self._architecture, self._stays = settings, architecture, stays

    def work(self, n_val: int, n_stored: int, n_classes: int) -> Iterator[Work]:
        """Yield all work on `n_val` images, with `n_stored` stored adversarial sets.

        Stored images are classified once, and no more by the attacks on them.
        """
        yield self._classified(n_val * (1 + n_stored))
        n = n_threat = min(self._settings.n_eval or n_val, n_val)
        for threat in self._settings.threats.values():
            yield from self._withstands(threat, n)
        if self._settings.ensemble is not None:
            n_ensemble = min(self._settings.ensemble.n_eval, n_val)
            yield from self._ensemble(self._settings.ensemble, n_ensemble, n_classes)
            n = min(n, n_ensemble)
        if self._settings.grid is not None:
            yield from self._grid(self._settings.grid, min(self._settings.grid.n_eval, n_val))
        n_curves = min(self._settings.curves.n_eval, n_val)
        yield from self._curves(n_curves)
        yield from self._checks(n_threat, n_curves)
        yield from self._converged(min(checks.ENOUGH, n))

    @property
    def _threat(self) -> Threat:
        return self._settings.threats[self._settings.curves.threat]

    def _classified(self, n_images: float) -> Work:
        return classified(self._architecture, n_images, BATCH_SIZE)

    def _attacked(self, threat: Threat, n_images: float, targets: int = 1) -> Iterator[Work]:
        """Yield one run of an attack, and the judgement of its images."""
        n = RIGHT * n_images
        yield attacked(self._architecture, threat, n, BATCH_SIZE, FP32, targets)
        yield self._classified(n)

    def _withstands(self, threat: Threat, n_images: float) -> Iterator[Work]:
        """Yield all restarts of a threat on images that were not attacked before."""
        yield from self._attacked(threat, n_images)
        for _ in range(threat.restarts - 1):
            yield from self._attacked(threat, n_images * self._stays)

    def _ensemble(self, settings: params.Ensemble, n_images: int, n_classes: int) -> Iterator[Work]:
        left_out = ensemble.left_out(settings, n_classes)
        targets, n = min(n_classes - 1, settings.targets), float(n_images)
        for name, threat in ensemble.threats(settings, self._threat.eps).items():
            if name not in left_out:
                is_aimed = name.endswith("_t")
                yield from self._attacked(threat, n, targets if is_aimed else 1)
                n = n_images * self._stays

    def _grid(self, settings: params.Grid, n_images: int) -> Iterator[Work]:
        fgsm = Threat.model_validate({"attack": "FGSM", "eps": "8/255"})
        for eps in settings.eps:
            yield from self._withstands(fgsm, n_images)
            for (_, alpha), steps in sweeps.grid_runs(settings, eps).items():
                yield from self._by_steps(n_images, steps, eps, alpha)

    def _by_steps(
        self, n_images: int, steps: list[int], eps: float, alpha: float
    ) -> Iterator[Work]:
        pgd = sweeps.pgd(eps, alpha, max(steps))
        n = RIGHT * n_images
        yield attacked(self._architecture, pgd, n, BATCH_SIZE, FP32)
        for _ in steps:
            yield self._classified(n)

    def _curves(self, n_images: int) -> Iterator[Work]:
        curves, threat = self._settings.curves, self._threat
        standing = float(n_images)
        for eps in curves.eps:
            yield from self._attacked(threat, standing)
            standing = n_images * self._stays ** (eps / threat.eps)
        steps = sorted({*curves.steps, threat.parameters["steps"]})
        yield from self._by_steps(n_images, steps, threat.eps, threat.parameters["alpha"])
        repeated = threat.model_copy(update={"restarts": curves.restarts})
        yield from self._withstands(repeated, n_images)

    def _checks(self, n_images: int, n_curves: int) -> Iterator[Work]:
        """Yield the checks of `diagnostics.diagnose`, on the threats' images and the curves'."""
        fgsm = {"attack": "FGSM", "eps": self._threat.eps, "restarts": 1}
        yield from self._attacked(Threat.model_validate(fgsm), n_images)
        square = diagnostics.square(self._threat.eps, self._settings.curves.queries)
        yield from self._attacked(square, n_curves * self._stays)
        # The outputs twice, and a gradient as three.
        yield self._classified(n_images * 5)

    def _converged(self, n_images: int) -> Iterator[Work]:
        """Yield the checks of `diagnostics.converged`."""
        threat, curves = self._threat, self._settings.curves
        longer = Threat.model_validate(
            {**threat.model_dump(), "steps": curves.steps[-1], "restarts": 1}
        )
        yield from self._attacked(longer, n_images * self._stays)
        for _ in range(curves.restarts - threat.restarts):
            yield from self._attacked(threat, n_images * self._stays)
