"""`make release`, one source of the version, and what a forge runs.

Seen to fail: a version in CITATION.cff alone.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

import lightning_lrnn

RELEASE: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "release.py"))
release = RELEASE["release"]
BUILD = "import pathlib as p; d = p.Path('dist'); d.mkdir(exist_ok=True)\n" + "\n".join(
    f"(d / 'lightning_lrnn-0.2.0{end}').touch()" for end in ("-py3-none-any.whl", ".tar.gz")
)
CHANGELOG = """# Changelog

## [Unreleased]

### Added

- This.

## [0.1.0] - 2020-01-01

- That.
"""


def git(folder: Path, *words: str) -> str:
    words = ("-c", "user.name=n", "-c", "user.email=e", *words)
    return subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "n")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "e")
    (tmp_path / "lightning_lrnn").mkdir()
    (tmp_path / "lightning_lrnn" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 0.1.0\n")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / ".gitignore").write_text("dist/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_release(checkout: Path) -> None:
    notes = release(checkout, "0.2.0", "2030-01-02", [sys.executable, "-c", BUILD])
    assert notes.read_text() == "### Added\n\n- This.\n"
    assert '__version__ = "0.2.0"' in (checkout / "lightning_lrnn" / "__init__.py").read_text()
    assert (checkout / "CITATION.cff").read_text() == "cff-version: 1.2.0\nversion: 0.2.0\n"
    changelog = (checkout / "CHANGELOG.md").read_text()
    assert "## [Unreleased]\n\n## [0.2.0] - 2030-01-02\n\n### Added\n\n- This.\n" in changelog
    assert git(checkout, "status", "--porcelain") == ""
    assert git(checkout, "rev-parse", "v0.2.0^{}") == git(checkout, "rev-parse", "HEAD")
    assert "### Added" in git(checkout, "tag", "-n9", "v0.2.0")
    with pytest.raises(SystemExit, match=r"there is a tag v0\.2\.0 already"):
        release(checkout, "0.2.0", "2030-01-02", [])
    with pytest.raises(SystemExit, match="has nothing under"):
        release(checkout, "0.3.0", "2030-01-02", [])


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("0.2", "three numbers"),
        ("", "three numbers"),
        ("0.0.9", "before the present version 0.1.0"),
    ],
)
def test_versions_that_cannot_be(checkout: Path, version: str, sentence: str) -> None:
    with pytest.raises(SystemExit, match=sentence):
        release(checkout, version, "2030-01-02", [])


def test_nothing_is_left_of_a_release_that_fails(checkout: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        release(checkout, "0.2.0", "2030-01-02", [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(SystemExit, match=r"no wheel and sdist of 0\.3\.0"):
        release(checkout, "0.3.0", "2030-01-02", [sys.executable, "-c", BUILD])
    assert git(checkout, "status", "--porcelain") == git(checkout, "tag") == ""
    (checkout / "CITATION.cff").write_text("mine")
    with pytest.raises(SystemExit, match="not committed"):
        release(checkout, "0.2.0", "2030-01-02", [])


def test_one_version_everywhere() -> None:
    version = lightning_lrnn.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert 'attr = "lightning_lrnn.__version__"' in (ROOT / "pyproject.toml").read_text()


def test_a_forge_runs_what_a_developer_runs() -> None:
    def runs(name: str) -> list[str]:
        workflow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
        (job,) = workflow["jobs"].values()
        return [step["run"] for step in job["steps"] if "run" in step]

    assert runs("checks.yml")[-1] == ".ci/run"
    assert runs("nightly.yml")[-2:] == [".ci/run", "make nightly"]
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert {"name", "description", "body"} <= yaml.safe_load(form.read_text()).keys()


def test_pre_commit_has_the_pinned_ruff() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pinned = re.search(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned and repo["rev"] == f"v{pinned[1]}"


def test_targets_that_contributing_names_exist() -> None:
    page, makefile = ((ROOT / name).read_text() for name in ("CONTRIBUTING.md", "Makefile"))
    for target in re.findall(r"^make (\w+)", page, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert len(page.splitlines()) < 60
