"""`make release VERSION=1.2.3`: version, changelog, wheel and sdist, commit, tag, notes.

Publishes nothing. Whatever fails leaves the files as they were.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

PACKAGE, CITATION, CHANGELOG = "lightning_lrnn/__init__.py", "CITATION.cff", "CHANGELOG.md"
VERSION = re.compile(r"\d+\.\d+\.\d+")
UNRELEASED = "## [Unreleased]\n"


def release(root: Path, version: str, date: str, build: list[str]) -> Path:
    """Makes a release in a checkout.

    Args:
        root: of the repository.
        version: of the release, such as 1.2.3.
        date: of the release, as YYYY-MM-DD.
        build: the command that builds into `dist` and checks what it built.

    Returns:
        The file with the notes.

    Raises:
        SystemExit: with a sentence, if there is nothing to release or it cannot be.
    """
    texts = {name: (root / name).read_text(encoding="utf-8") for name in (PACKAGE, CITATION)}
    now = re.search(r'^__version__ = "(.*)"$', texts[PACKAGE], re.M)
    if now is None:
        raise SystemExit(f"{PACKAGE} has no __version__")
    if not VERSION.fullmatch(version):
        raise SystemExit(f"a version is three numbers such as 1.2.3, got {version!r}")
    if _git(root, "status", "--porcelain"):
        raise SystemExit("there are changes that are not committed; commit or stash them")
    if _git(root, "tag", "--list", f"v{version}"):
        raise SystemExit(f"there is a tag v{version} already")
    if _numbers(version) < _numbers(now[1]):
        raise SystemExit(f"{version} is before the present version {now[1]}")
    changelog = (root / CHANGELOG).read_text(encoding="utf-8")
    notes = notes_of(changelog)
    try:
        (root / PACKAGE).write_text(
            texts[PACKAGE].replace(now[0], f'__version__ = "{version}"'), encoding="utf-8"
        )
        (root / CITATION).write_text(
            re.sub(r"^version: .*$", f"version: {version}", texts[CITATION], flags=re.M),
            encoding="utf-8",
        )
        dated = f"{UNRELEASED}\n## [{version}] - {date}\n"
        (root / CHANGELOG).write_text(changelog.replace(UNRELEASED, dated), encoding="utf-8")
        subprocess.run(build, cwd=root, check=True)
        wheels = list((root / "dist").glob(f"lightning_lrnn-{version}*.whl"))
        sdists = list((root / "dist").glob(f"lightning_lrnn-{version}.tar.gz"))
        if not (wheels and sdists):
            raise SystemExit(f"{' '.join(build)} has left no wheel and sdist of {version} in dist")
        _git(root, "commit", "--quiet", "-m", f"Release {version}", PACKAGE, CITATION, CHANGELOG)
    except BaseException:
        _git(root, "checkout", "HEAD", "--", PACKAGE, CITATION, CHANGELOG)
        raise
    file = root / "dist" / "notes.md"
    file.write_text(notes, encoding="utf-8")
    # Headings of Markdown would be comments otherwise.
    _git(root, "tag", "-a", f"v{version}", "--cleanup=verbatim", "-F", str(file))
    return file


def notes_of(changelog: str) -> str:
    """The entries that are not released yet.

    Raises:
        SystemExit: if there are none.
    """
    _, _, rest = changelog.partition(UNRELEASED)
    notes = re.split(r"^## ", rest, maxsplit=1, flags=re.M)[0].strip()
    if not notes:
        raise SystemExit(f"{CHANGELOG} has nothing under {UNRELEASED.strip()!r}")
    return notes + "\n"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=root, check=True, stdout=subprocess.PIPE, encoding="utf-8"
    )
    return done.stdout.strip()


def main() -> None:
    """Releases the checkout that this file is in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    version = parser.parse_args().version
    root = Path(__file__).resolve().parent.parent
    notes = release(root, version, datetime.date.today().isoformat(), ["make", "build"])
    print(
        f"\nv{version} is committed and tagged, and in dist with {notes.name}. To publish it:\n"
        f"  git push origin HEAD v{version}\n"
        f"  {sys.executable} -m twine upload dist/*.whl dist/*.tar.gz"
    )


if __name__ == "__main__":
    main()
