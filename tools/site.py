"""Builds the site: `make docs`.

A link that leads nowhere is an error, and so is a page that loads anything from the network: the
site can be read, and searched, from a disk.

MkDocs takes one folder of pages, and the pages of this repository lie in several and link to files
beside them. So what they link to is copied first, as it lies here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "site-pages"
SITE = ROOT / "build" / "site"
LOADED = re.compile(
    r"""<(?:script|img|iframe|link\b[^>]*rel="stylesheet")\b[^>]*(?:src|href)="(https?:[^"]*)"""
)
SHOWN = ("*.md", "LICENSE", "docs", "cuda_src", "examples", "benchmarks/results")
"""What is copied: the pages, and the files that they link to."""


def main() -> None:
    """Copies the pages and the files that are linked, and builds."""
    shutil.rmtree(PAGES, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *SHOWN],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = PAGES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    command = [Path(sys.executable).with_name("mkdocs"), "build", "--clean"]
    # Of the generator itself: that its next version will be another program.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    if status := subprocess.run(command, cwd=ROOT, env=environment).returncode:
        sys.exit(status)
    for page in SITE.rglob("*.html"):
        if loaded := LOADED.findall(page.read_text()):
            sys.exit(f"{page.relative_to(SITE)} loads from the network: {', '.join(loaded)}")
    print(f"built {SITE / 'index.html'}")


if __name__ == "__main__":
    main()
