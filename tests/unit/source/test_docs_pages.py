"""Documentation pages: links and anchors resolve, every page is reachable, and generated pages match the code."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "docker/*.md", "helm/gearbox/*.md") for path in ROOT.glob(pattern)
)


def prose(text: str) -> str:
    """The text without code blocks and code in a line."""
    return re.sub(r"`[^`]+`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^()\s]+)\)", prose(text)) if not re.match(r"[a-z]+:", link)]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page; a repeated one gets a number."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def problem(page: Path, link: str) -> str | None:
    target, _, anchor = link.partition("#")
    path = (page.parent / target).resolve() if target else page
    if not path.exists():
        return f"{page.relative_to(ROOT)}: there is no {link}"
    if anchor and anchor not in anchors(path):
        return f"{page.relative_to(ROOT)}: {link} has no such heading; there are {sorted(anchors(path))}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_anchor_resolves(page: Path) -> None:
    assert [wrong for link in links(page.read_text()) if (wrong := problem(page, link))] == []


def test_no_page_has_the_marks_of_an_unfinished_merge() -> None:
    assert [page.name for page in PAGES if re.search(r"^(<{7}|>{7}) ", page.read_text(), re.MULTILINE)] == []


def test_a_broken_link_or_anchor_is_found() -> None:
    page = ROOT / "README.md"
    assert links("[a](docs/x.md) ![b](c.png) [d](https://example.com) `[e](f)`") == ["docs/x.md", "c.png"]
    assert problem(page, "docs/there-is-none.md")
    assert problem(page, "docs/index.md#there-is-none")
    assert problem(page, "docs/index.md#how-to-guides") is None


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page.is_dir():
            waiting += page.glob("*.md")
        elif page.suffix == ".md" and page not in reached:
            reached.add(page)
            targets = [link.partition("#")[0] for link in links(page.read_text())]
            waiting += [(page.parent / target).resolve() for target in targets if target]
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - reached == set()


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_is_that_of_the_code(name: str) -> None:
    assert (generate.FOLDER / f"{name}.md").read_text() == generate.PAGES[name](), "run 'python -m docs.generate'"


def test_every_key_of_the_configuration_has_a_type_and_a_meaning() -> None:
    rows = [line.split(" | ") for line in generate.configuration().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if not row[1].strip() or not row[4].strip(" |")] == []
