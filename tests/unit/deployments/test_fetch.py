"""Weights fetched from object stores: complete and verified, or not at all."""

import shutil
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from benchmarks.lib.object_stores import S3, Hub, serving
from benchmarks.lib.sample_catalog import make_card
from deployments.fetch import FetchError, fetch, is_uri, pinned
from serve.card import CARD_FILE, load_card, weights_digest


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A bucket with one variant in a folder of it."""
    folder = tmp_path / "bucket/gears/int8"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * 100_000)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text("{}")
    make_card("int8", digest=weights_digest(folder)).save(folder)
    return folder


@pytest.fixture
def s3(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(name, value)
    return made


def copy(uri: str, folder: Path, digest: str | None = None, **options: bool) -> list[tuple[float, float]]:
    progress: list[tuple[float, float]] = []
    fetch(uri, digest, folder, lambda done, total: progress.append((done, total)), **options)
    return progress


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("weights", "answer"),
    [("/models/int8", False), ("int8", False), ("s3://b/x", True), ("gs://b/x", True), ("hf://org/name@v1", True),
     ("hf://org/name@v1/gears/int8", True), ("file:///models/int8", True)],
)  # fmt: skip
def test_a_store_is_distinguished_from_a_folder(weights: str, answer: bool):
    assert is_uri(weights) is answer


@pytest.mark.parametrize(
    ("weights", "says"), [("ftp://x/y", "unsupported store ftp://"), ("hf://org/name", "hf://ORG/NAME@REVISION")]
)
def test_a_store_that_nobody_can_read_is_refused_before_anything_starts(weights: str, says: str):
    with pytest.raises(FetchError, match=says):
        is_uri(weights)


def test_a_variant_is_copied_from_s3_with_progress(s3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(S3, s3.parents[1]) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        progress = copy("s3://models/gears/int8", tmp_path / "got", load_card(s3).weights_digest)
    assert files(tmp_path / "got") == files(s3)
    assert progress[-1] == (sum(map(len, files(s3).values())),) * 2


def test_a_variant_is_copied_from_a_hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(Hub, made.parents[1]) as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        copy("hf://org/name@v1/gears/int8", tmp_path / "got", load_card(made).weights_digest)
    assert files(tmp_path / "got") == files(made)


def test_the_card_alone_for_who_decides(s3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(S3, s3.parents[1]) as (url, requested):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        copy("s3://models/gears/int8", tmp_path / "got", cards_only=True)
    assert list(files(tmp_path / "got")) == [CARD_FILE]
    assert not any("safetensors" in path for path in requested)


def test_what_is_there_is_not_copied_again(made: Path, tmp_path: Path):
    copy(f"file://{made}", tmp_path / "got")
    shutil.rmtree(made)
    assert copy(f"file://{made}", tmp_path / "got") == []


def test_processes_that_want_the_same_copy_it_once(made: Path, tmp_path: Path):
    progress: list[list[tuple[float, float]]] = []
    threads = [
        threading.Thread(target=lambda: progress.append(copy(f"file://{made}", tmp_path / "got"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(bool, progress)) == [False, False, False, True]
    assert files(tmp_path / "got") == files(made)


def test_what_was_left_of_an_attempt_that_was_killed_is_replaced(made: Path, tmp_path: Path):
    (tmp_path / "got").mkdir()
    (tmp_path / "got/model.safetensors").write_bytes(b"half")
    copy(f"file://{made}", tmp_path / "got")
    assert files(tmp_path / "got") == files(made)


def test_partial_copies_of_killed_downloads_are_removed_but_not_those_of_another_folder(made: Path, tmp_path: Path):
    others = [".got-card-a1b2c3d_", ".got-a1b2", "got-a1b2c3d_"]
    for name in (".got-a1b2c3d_", *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    copy(f"file://{made}", tmp_path / "got")
    left = {entry.name for entry in tmp_path.iterdir() if entry.is_dir()}
    assert left == {"bucket", "got", *others}


def nothing_is_left(folder: Path) -> bool:
    return not folder.exists() and not [f for f in folder.parent.iterdir() if f.is_dir() and f.name.startswith(".got")]


def test_other_weights_than_the_digest_says_are_refused(made: Path, tmp_path: Path):
    with pytest.raises(FetchError, match="the configuration sha256:000"):
        copy(f"file://{made}", tmp_path / "got", "sha256:" + "0" * 64)
    assert nothing_is_left(tmp_path / "got")


def test_weights_that_their_card_does_not_describe_are_refused(made: Path, tmp_path: Path):
    (made / "model.safetensors").write_bytes(b"x" * 100_000)
    with pytest.raises(FetchError, match="does not match the weights"):
        copy(f"file://{made}", tmp_path / "got")
    assert nothing_is_left(tmp_path / "got")


def test_a_folder_without_a_card_is_no_variant(made: Path, tmp_path: Path):
    (made / CARD_FILE).unlink()
    with pytest.raises(FetchError, match=r"no card\.json: not a variant"):
        copy(f"file://{made}", tmp_path / "got")


@pytest.fixture
def tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow tries three times, after pauses of some seconds."""
    from pyarrow import fs

    once = fs.AwsDefaultS3RetryStrategy(max_attempts=1)
    monkeypatch.setattr(fs, "S3FileSystem", partial(fs.S3FileSystem, retry_strategy=once))


@pytest.mark.usefixtures("tried_once")
def test_a_store_that_is_away_is_one_line(s3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"^s3://models/gears/int8 cannot be read: [^\n]+$"):
        copy("s3://models/gears/int8", tmp_path / "got")
    assert nothing_is_left(tmp_path / "got")


@pytest.mark.usefixtures("tried_once")
def test_a_store_that_breaks_off_leaves_nothing(s3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(S3, s3.parents[1], cut_after=50_000) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(FetchError):
            copy("s3://models/gears/int8", tmp_path / "got")
    assert nothing_is_left(tmp_path / "got")


ESCAPES = [
    "models/gears/int8/../../../../outside", "models/gears/int8//etc/outside", "models/gears/int8/a/./outside",
    r"models/gears/int8/..\outside", "models/gears/int8/sub/../../outside", "models/gears/int8/a\x00b",
]  # fmt: skip


@pytest.mark.parametrize("key", ESCAPES)
def test_a_key_that_leads_out_of_the_folder_is_refused_and_nothing_is_written(
    made: Path, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
):
    """Of any store that Arrow lists: what each of them lets through differs."""
    from pyarrow import fs

    class Listing:
        """A store that lists one more key."""

        def get_file_info(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
            card = fs.FileInfo("models/gears/int8/card.json", type=fs.FileType.File, size=1)
            return [card, fs.FileInfo(key, type=fs.FileType.File, size=4)]

        def open_input_stream(self, path: str, compression: None) -> object:
            raise AssertionError("nothing is read before all names are known to be good")

    monkeypatch.setattr("deployments.fetch._store", lambda uri: (Listing(), "models/gears/int8"))
    with pytest.raises(FetchError, match="may lead out of its folder"):
        copy("s3://models/gears/int8", tmp_path / "a/b/c/got")
    assert nothing_is_left(tmp_path / "a/b/c/got")


def test_an_s3_bucket_with_a_key_that_leads_out_is_refused(s3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(S3, s3.parents[1], more_names=("gears/int8/../../../outside",)) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(FetchError):
            copy("s3://models/gears/int8", tmp_path / "a/b/got")
    assert nothing_is_left(tmp_path / "a/b/got")
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("name", ["../../outside", "gears/int8/../../../outside", r"gears/int8/..\outside"])
def test_a_hub_that_lists_a_name_that_leads_out_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    with serving(Hub, made.parents[1], more_names=(name,)) as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with suppress(FetchError):  # some of them match no pattern and are not requested at all
            copy("hf://org/name@v1/gears/int8", tmp_path / "a/b/c/got")
    written = {f.name for f in tmp_path.rglob("*outside*")}
    assert not written


def test_a_file_that_links_elsewhere_is_copied_as_a_file(made: Path, tmp_path: Path):
    (tmp_path / "shared.json").write_text("{}")
    (made / "generation_config.json").symlink_to(tmp_path / "shared.json")
    copy(f"file://{made}", tmp_path / "got")
    assert not (tmp_path / "got/generation_config.json").is_symlink()


@pytest.mark.parametrize("weights", ["hf://org/name@v1/../..", "hf://org/..@v1", "hf://../name@v1", "hf://o/n@../x"])
def test_a_hub_address_with_dots_for_names_is_refused(weights: str):
    with pytest.raises(FetchError, match="hf://ORG/NAME@REVISION"):
        is_uri(weights)


def test_a_branch_is_known_by_the_commit_it_is_at(made: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(Hub, made.parents[1], commit="b" * 40) as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert pinned("hf://org/name@v1/gears/int8") == f"hf://org/name@{'b' * 40}/gears/int8"
        with pytest.raises(FetchError, match="which commit org/name@gone is at"):
            pinned("hf://org/name@gone")


def test_a_commit_is_known_without_the_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    uri = f"hf://org/name@{'c' * 40}/gears/int8"
    assert pinned(uri) == uri
    assert pinned("s3://models/int8") == "s3://models/int8"
    with pytest.raises(FetchError, match=r"org/name@COMMIT, its 40 hexadecimal digits$"):
        pinned("hf://org/name@main")
