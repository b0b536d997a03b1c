"""The site builds with all its links, asks no other address for anything, and a broken link fails the build."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .pages import ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed (make setup-dev)")
pytest.importorskip("material", reason="mkdocs-material is not installed (make setup-dev)")


def build(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """``make docs`` with the mkdocs.yml of ``folder``. Proxies that lead nowhere: what asks the network fails."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=folder, env={**os.environ, **nowhere}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / (name.with_name("index.html") if page.name == "README.md" else name)).is_file(), page
    assert "Semantic Versioning" in (site / "changelog.html").read_text()
    assert 'href="architecture.html"' in (site / "contributing.html").read_text()


def test_reading_it_asks_no_other_address(site: Path) -> None:
    """Links to other places are links; scripts, styles, fonts and pictures are the site's own."""
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(https?:)?//[^"]*"', text)
        loaded += re.findall(r'<link(?![^>]*rel="canonical")[^>]*\shref="(https?:)?//[^"]*"', text)
        assert not loaded, page


def test_code_in_tables_has_bars_without_backslashes(site: Path) -> None:
    assert "vllm:d1|archon:d1" in (site / "operations.html").read_text()
    for page in site.rglob("*.html"):
        assert not re.search(r"<code>[^<]*\\\|[^<]*</code>", page.read_text()), page


@pytest.mark.parametrize(
    ("text", "told"),
    [("[gone](no_such_page.md)", "no_such_page.md"), ("[gone](index.md#no-such-part)", "no-such-part")],
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, text: str, told: str) -> None:
    ours = yaml.load((ROOT / "mkdocs.yml").read_text().replace("!!python/object/apply:", "!ignored:"), _Loader)
    small = {key: ours[key] for key in ("site_name", "theme", "plugins", "validation")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(small))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\nA sentence.\n")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and told in done.stdout + done.stderr


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without making the objects that it names."""


_Loader.add_multi_constructor("!ignored:", lambda loader, suffix, node: suffix)
