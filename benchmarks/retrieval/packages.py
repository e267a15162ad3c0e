"""Files of Debian and PyPI packages, downloaded with `apt-get` and `pip` into the cache folder; nothing is installed."""

import shutil
import subprocess
from pathlib import Path

from compression.build.source import SourceError, download_wheel
from deployments.state import cache_folder


class NoPackage(Exception):
    """A package could not be fetched; the message is one line."""


def unpacked(name: str) -> Path:
    """The folder with a package's files, fetched on the first call.

    Args:
        name: Debian's name, or a requirement of PyPI with the prefix `pypi:`.

    Raises:
        NoPackage: the registry does not have it, or is not reachable.
    """
    registry, _, package = name.rpartition(":")
    target = cache_folder() / "packages" / name.replace(":", "-")
    if target.exists():
        return target
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if registry == "pypi":
            download_wheel(package, part)
        else:
            _run(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package], part)
            archive = next(part.glob("*.deb"))
            _run(["dpkg-deb", "-x", archive.name, "."], part)
            archive.unlink()
    except (OSError, StopIteration, SourceError, subprocess.CalledProcessError) as error:
        output = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        where = "PyPI" if registry == "pypi" else "Debian"
        raise NoPackage(
            f"{where}'s package {package} could not be fetched: {output[-1] if output else error}"
        ) from error
    part.rename(target)
    return target


def _run(arguments: list[str], folder: Path) -> None:
    subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True)
