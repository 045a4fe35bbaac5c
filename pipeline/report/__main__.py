"""Stage `report`: everything that the run made and measured -> one page for people."""

from pipeline.audit.project import Project
from pipeline.base import console, files
from pipeline.networks import device
from pipeline.report import page


def report() -> str:
    parser = console.path_arguments(__doc__, project="project folder", out="HTML file")
    args = parser.parse_args()

    content = page.render(Project(args.project, device.choose()))
    files.write_bytes(args.out, content)
    size = f"{len(content) / 2**20:.1f} MiB"
    if len(content) > page.MOST_BYTES:
        console.say(
            f"warning: {args.out}: too large to send around (expected at most "
            f"{page.MOST_BYTES / 2**20:.0f} MiB, found {size}); name fewer models in "
            "evaluate.models, since each brings its own pictures"
        )
    return f"{args.out}: open it in a browser ({size} in one file)"


if __name__ == "__main__":
    console.run(report)
