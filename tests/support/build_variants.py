"""Build the variants of the tests' platforms in advance: `python -m tests.support.build_variants`."""

import signal
import sys
import tempfile
from pathlib import Path

import yaml

from deployments.cli import main
from tests.support.platform import local_settings

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("the build was stopped"))  # so that its subprocesses end too
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "platform.yaml"
        config.write_text(yaml.safe_dump(local_settings()))
        sys.argv[1:] = ["weights", "--config", str(config), "--into", f"{folder}/weights"]
        main()
