"""Write every dashboard's JSON into the chart."""

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from helm.dashboards import retrieval, router, tenants, tradeoffs, variants
from helm.dashboards.queries import FOLDER

DASHBOARDS = (tradeoffs, variants, router, retrieval, tenants)


def rendered() -> dict[str, str]:
    """The text of each dashboard's file, by the file's name."""
    encoder = JSONEncoder(indent=2, sort_keys=True)
    built = (module.build() for module in DASHBOARDS)
    return {f"{dashboard.uid}.json": encoder.encode(dashboard) + "\n" for dashboard in built}


def main() -> None:
    """Write the files, and remove those of dashboards that no longer exist."""
    files = rendered()
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        if old.name not in files:
            old.unlink()
    for name, text in files.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
