"""`gearbox weights`, which builds or fetches weights before the engines start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.lib.sample_catalog import make_card
from deployments.cli import app
from serve.card import weights_digest

Run = Callable[..., "tuple[int, str]"]


def make_variant(folder: Path, name: str) -> str:
    """Finished weights; returns their digest."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(name.encode())
    digest = weights_digest(folder)
    make_card(name, digest=digest).save(folder)
    return digest


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with these variants; its exit code and what it said."""
    monkeypatch.setenv("GEARBOX_CACHE_DIR", str(tmp_path / "models/.cache"))

    def call(variants: list[dict[str, object]], *arguments: str) -> tuple[int, str]:
        config = tmp_path / "platform.yaml"
        settings = {
            "model": {"name": "m", "source": "org/name@v1"},
            "access": {"allow_anonymous": True},
            "variants": variants,
        }
        config.write_text(yaml.safe_dump(settings))
        into = str(tmp_path / "models/catalog")
        result = CliRunner().invoke(app, ["weights", "--config", str(config), "--into", into, *arguments])
        return result.exit_code, result.output

    return call


def test_weights_of_stores_and_volumes_are_linked_under_the_requested_names(run: Run, tmp_path: Path):
    digest = make_variant(tmp_path / "store/int8", "int8")
    make_variant(tmp_path / "volume/full", "full")
    variants = [
        {"name": "full", "weights": str(tmp_path / "volume/full")},
        {"name": "int8", "weights": f"file://{tmp_path}/store/int8", "digest": digest},
    ]
    assert run(variants, "--as=int8=int8-1a2b")[0] == 0
    catalog = tmp_path / "models/catalog"
    assert sorted(link.name for link in catalog.iterdir()) == ["full", "int8-1a2b"]
    assert (catalog / "full").resolve() == tmp_path / "volume/full"
    assert (catalog / "int8-1a2b/card.json").is_file()
    assert not (catalog / "int8-1a2b").readlink().is_absolute(), "the volume is mounted elsewhere in other pods"


def test_links_still_lead_there_when_the_volume_is_mounted_elsewhere(run: Run, tmp_path: Path):
    make_variant(tmp_path / "store/int8", "int8")
    run([{"name": "int8", "weights": f"file://{tmp_path}/store/int8"}])
    (tmp_path / "models").rename(tmp_path / "mounted")
    assert (tmp_path / "mounted/catalog/int8/card.json").is_file()


def test_a_link_moves_to_other_weights(run: Run, tmp_path: Path):
    for name in ("old", "new"):
        make_variant(tmp_path / f"store/{name}", name)
        run([{"name": "int8", "weights": f"file://{tmp_path}/store/{name}"}])
        assert (tmp_path / "models/catalog/int8/model.safetensors").read_text() == name


def test_only_the_requested_weights_are_fetched_and_with_cards_only_their_card(run: Run, tmp_path: Path):
    for name in ("full", "int8"):
        make_variant(tmp_path / f"store/{name}", name)
    variants = [{"name": name, "weights": f"file://{tmp_path}/store/{name}"} for name in ("full", "int8")]
    assert run(variants, "--only=int8", "--cards")[0] == 0
    catalog = tmp_path / "models/catalog"
    assert [link.name for link in catalog.iterdir()] == ["int8"]
    assert [file.name for file in (catalog / "int8/").resolve().iterdir()] == ["card.json"]
    assert run(variants, "--only=int8")[0] == 0
    assert (catalog / "int8/model.safetensors").is_file(), "the whole variant is another folder than its card"


@pytest.mark.parametrize(
    ("variant", "arguments", "code", "says"),
    [
        ({"weights": "ftp://x/y"}, (), 2, "unsupported store ftp://"),
        ({"weights": "file:///nowhere"}, (), 1, "int8: file:///nowhere cannot be read"),
        ({"weights": "/nowhere"}, (), 1, "int8: variant 'int8': no card.json in /nowhere"),
        ({"weights": "/nowhere", "digest": "short"}, (), 2, "digest"),
        ({"recipe": "int8", "digest": "sha256:" + "0" * 64}, (), 2, "has a digest, but a recipe makes other weights"),
        ({"weights": "/nowhere"}, ("--only=fast",), 2, "'fast' does not exist; choose from int8"),
        ({"weights": "/nowhere"}, ("--as=int8",), 2, "expected VARIANT=LINK"),
        ({"weights": "/nowhere"}, ("--as=int8=../up",), 2, "expected VARIANT=LINK"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, variant, arguments, code, says):
    got, said = run([{"name": "int8", **variant}], *arguments)
    assert (got, says in " ".join(said.split())) == (code, True), said


def test_other_weights_than_the_digest_says_are_refused(run: Run, tmp_path: Path):
    make_variant(tmp_path / "volume/int8", "int8")
    code, said = run([{"name": "int8", "weights": str(tmp_path / "volume/int8"), "digest": "sha256:" + "0" * 64}])
    assert code == 1
    assert "not sha256:000" in said
    assert not (tmp_path / "models/catalog/int8").exists()
