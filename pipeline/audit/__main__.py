"""Stage `audit`: everything that the run made and recorded -> one JSON of verdicts and measures.

The stage fails where anything differs from its record.
"""

from pipeline.audit import audit
from pipeline.base import console
from pipeline.networks import device


def audit_run() -> str:
    parser = console.path_arguments(
        __doc__,
        project="project folder",
        metrics="JSON with the verdicts and measures",
    )
    args = parser.parse_args()

    rows = audit.audit(args.project, device.choose())
    audit.write(args.metrics, rows)
    console.say(audit.table([row for row in rows if row.verdict != "ok"]))
    return f"{args.metrics}: {audit.verdict(rows)}; `python -m pipeline audit` prints every row"


if __name__ == "__main__":
    console.run(audit_run)
