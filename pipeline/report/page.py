"""Write the page: one HTML file that needs no network, no scripts and no other file."""

import base64
import hashlib
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from pipeline.audit.project import Project
from pipeline.evaluate import meanings, table
from pipeline.report import findings, gallery, origins
from pipeline.report.results import Results

MOST_BYTES = 3 * 2**20


def render(project: Project) -> bytes:
    """Return the page of a project that was run and audited.

    The same files give the same bytes. Text from data, such as class names, is escaped, and the
    page's Content-Security-Policy allows nothing but its own style and the pictures inside it.
    """
    results = Results(project)
    stages = origins.stages(project)
    preset, differences = origins.preset_differences(project)
    style = Markup(_template("style.css"))  # noqa: S704 - the project's own file
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    text = (
        _environment()
        .get_template("page.html")
        .render(
            style=style,
            style_digest=digest,
            settings=project.settings,
            clean=project.images(project.clean),
            answer=findings.answer(results),
            gallery=gallery.gallery(results),
            curves=findings.curves(results),
            histories=findings.histories(results),
            grader=findings.grader(results),
            survived=findings.SURVIVED,
            metrics=results.metrics,
            number=table.number,
            meanings=meanings.FAILED,
            classes=findings.classes(results),
            stages=stages,
            graph=origins.graph(stages),
            costs=origins.spent(project, stages),
            passes={model: found["attack_passes"] for model, found in results.metrics.items()},
            audited=origins.audited(project),
            preset=preset,
            differences=differences,
            versions=origins.versions(results),
            hashes=origins.hashes(project),
        )
    )
    return text.encode()


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return resources.files("pipeline.report").joinpath("templates", name).read_text("utf-8")
