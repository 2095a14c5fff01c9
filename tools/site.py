"""Builds the site: `make docs`. A link that leads nowhere is an error.

MkDocs takes one folder of pages, and the pages of this repository lie in several and link to files
beside them. So what they link to is copied first, as it lies here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "site-pages"
SHOWN = ("*.md", "LICENSE", "docs", "cuda_src", "examples", "benchmarks/results")
"""The pages, and what they link to."""


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
    print(f"built {ROOT / 'build' / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
