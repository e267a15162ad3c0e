"""Download a variant's weights from an object store or Hugging Face: verified, and completely or not at all."""

import asyncio
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock

from compression.build.source import SourceError, resolve_hub_commit
from compression.files import safe_relative_path
from serve.card import CARD_FILE, CardError, check_card, load_card

#: `s3://`, `gs://` and `abfs://` are read by Arrow's filesystems, which take credentials from the environment.
SCHEMES = ("s3", "gs", "abfs", "abfss", "hf", "file")
_URI = re.compile(r"^([a-z0-9]+)://")
# no part begins with a dot: it could lead to another folder
_HUB = re.compile(r"^hf://(\w[\w.-]*/\w[\w.-]*)@(\w[\w.-]*)((?:/\w[\w.-]*)*)$")
_SCRATCH = re.compile(r"[a-z0-9_]{8}")  # end of the names that mkdtemp makes
_CHUNK = 16 << 20
_LOG = logging.getLogger("ray.serve")

OnProgress = Callable[[float, float], None]


class FetchError(Exception):
    """Weights that could not be downloaded or verified; one line."""


def is_uri(weights: str) -> bool:
    """Whether `weights` is the URI of a store rather than a folder. Raises `FetchError` for an unsupported or malformed URI."""
    match = _URI.match(weights)
    if match and match[1] not in SCHEMES:
        raise FetchError(f"'{weights}': unsupported store {match[1]}://; supported are {', '.join(SCHEMES)}")
    if match and match[1] == "hf" and not _HUB.match(weights):
        raise FetchError(
            f"'{weights}': expected hf://ORG/NAME@REVISION, followed by /FOLDER if the card is in a folder"
        )
    return match is not None


def pinned(uri: str) -> str:
    """Replace the branch or tag in a Hugging Face `uri` with its current commit, which identifies a copy. Other URIs stay.

    Raises:
        FetchError: the hub does not answer, or has no such repository or revision.
    """
    match = _HUB.match(uri)
    if match is None:
        return uri
    try:
        return f"hf://{match[1]}@{resolve_hub_commit(match[1], match[2])}{match[3]}"
    except SourceError as error:
        raise FetchError(f"{uri}: {error}") from error


async def wait_for_file(file: Path) -> None:
    """Wait until `file` exists: in a cluster, a job that is not ordered before the replicas downloads or builds it."""
    if not file.is_file():
        _LOG.warning("waiting for %s", file)
    while not file.is_file():  # noqa: ASYNC110  # another pod creates it
        await asyncio.sleep(1)


def fetch(uri: str, digest: str | None, folder: Path, on_progress: OnProgress, cards_only: bool = False) -> None:
    """Download `uri` to `folder`, unless `folder` is complete. The folder appears only after its content is verified.

    Args:
        digest: expected digest of the weights; None accepts the one on the card that comes with them.
        on_progress: called with the bytes copied and the total bytes.
        cards_only: download the card without the weights, for gateways.

    Raises:
        FetchError: the store cannot be read, holds no variant, or a variant with another digest.
    """
    if (folder / CARD_FILE).is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if (folder / CARD_FILE).is_file():  # another process has downloaded it meanwhile
            return
        _remove_leftovers(folder)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _copy(uri, scratch, on_progress, cards_only)
            card = load_card(scratch)
            if digest is not None and card.weights_digest != digest:
                raise FetchError(f"{uri}: the card states {card.weights_digest}, the configuration {digest}")
            if not cards_only:
                check_card(card, scratch)
            scratch.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)  # a folder without a card is left over from an earlier attempt
            scratch.rename(folder)
        except CardError as error:
            raise FetchError(f"{uri}: {error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove the partial copies of downloads to `folder` that were killed; the folder's lock must be held."""
    prefix = f".{folder.name}-"  # scratch folders of FOLDER-card begin so, too
    for entry in folder.parent.iterdir():
        if entry.name.startswith(prefix) and _SCRATCH.fullmatch(entry.name.removeprefix(prefix)):
            shutil.rmtree(entry, ignore_errors=True)


def _copy(uri: str, scratch: Path, on_progress: OnProgress, cards_only: bool) -> None:
    match = _HUB.match(uri)
    try:
        if match:
            _from_hub(match[1], match[2], match[3].strip("/"), scratch, on_progress, cards_only)
        else:
            _from_store(uri, scratch, on_progress, cards_only)
    except FetchError:
        raise
    except Exception as error:  # Arrow, the hub and the network raise types of their own
        raise FetchError(
            f"{uri} cannot be read: {' '.join(str(error).split())[:500] or type(error).__name__}"
        ) from error


def _from_store(uri: str, scratch: Path, on_progress: OnProgress, cards_only: bool) -> None:
    from pyarrow import fs

    store, root = _store(uri)
    entries = store.get_file_info(fs.FileSelector(root, recursive=True))
    files = [info for info in entries if info.type == fs.FileType.File]
    if cards_only:
        files = [info for info in files if info.path == f"{root}/{CARD_FILE}"]
    if not any(info.path == f"{root}/{CARD_FILE}" for info in files):
        raise FetchError(f"{uri}: no {CARD_FILE}: not a variant made by 'gearbox compress'")
    done, total = 0, sum(info.size for info in files)
    # all names are checked before anything is written
    names = [safe_relative_path(info.path.removeprefix(f"{root}/")) for info in files]
    for info, name in zip(files, names, strict=True):
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with store.open_input_stream(info.path, compression=None) as source, target.open("wb") as copy:
            while chunk := source.read(_CHUNK):
                copy.write(chunk)
                done += len(chunk)
                on_progress(done, total)


def _store(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    if uri.startswith("s3://"):  # Arrow reads the credentials of the AWS SDK, but not its endpoint
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        address = urlparse(endpoint) if endpoint else None
        store = fs.S3FileSystem(
            **({"region": region} if region else {}),
            **({"endpoint_override": address.netloc, "scheme": address.scheme} if address else {}),
            connect_timeout=10,
            request_timeout=60,
        )
        return store, uri.removeprefix("s3://").rstrip("/")
    store, root = fs.FileSystem.from_uri(uri)
    return store, root.rstrip("/")


def _from_hub(name: str, revision: str, folder: str, scratch: Path, on_progress: OnProgress, cards_only: bool) -> None:
    from huggingface_hub import snapshot_download

    pattern = CARD_FILE if cards_only else "*"
    # what a killed process leaves there is removed with `scratch`
    with tempfile.TemporaryDirectory(dir=scratch) as copy:
        snapshot_download(
            name,
            revision=revision,
            local_dir=copy,
            allow_patterns=f"{folder}/{pattern}" if folder else pattern,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
        shutil.rmtree(Path(copy, ".cache"), ignore_errors=True)  # metadata of the hub client
        if not Path(copy, folder).is_dir():
            raise FetchError(f"{name}@{revision} has no folder {folder}")
        for file in Path(copy, folder).iterdir():
            file.rename(scratch / file.name)
    size = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
    on_progress(size, size)
