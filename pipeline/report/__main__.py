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
    return f"{args.out}: open it in a browser ({len(content) / 2**20:.1f} MiB in one file)"


if __name__ == "__main__":
    console.run(report)
