"""The site has every page and everything public; `make docs` fails at a link that leads nowhere.

Seen to fail: a page that is not in the menu, a layer that is not in the reference, an option that a
script does not have.
"""

from __future__ import annotations

import importlib
import re

import pytest
from paths import ROOT

PUBLIC = ("", "nn", "modules", "data", "callbacks", "strategies", "backends")


def test_every_page_is_in_the_menu():
    settings = (ROOT / "mkdocs.yml").read_text()
    menu = re.findall(r": ((?:\w+/)?\w+\.md)$", settings, re.M)
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert pages == {page for page in menu if page.startswith("docs/")}
    assert len(menu) == len(set(menu)) and all((ROOT / page).is_file() for page in menu)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_scripts_have_the_options_that_a_page_names(page):
    for path, options in re.findall(r"python (\w+/\w+\.py)((?: -?[-\w./:=]+)*)", page.read_text()):
        script = (ROOT / path).read_text()
        for option in re.findall(r"--[a-z-]+", options):
            assert f'"{option}"' in script, f"{page.name}: {path} {option}"


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_in_the_reference(name):
    module = importlib.import_module(".".join(filter(None, ["lightning_lrnn", name])))
    shown = re.findall(r"^::: (lightning_lrnn\.\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    objects = []
    for path in shown:
        home, _, attribute = path.rpartition(".")
        objects.append(getattr(importlib.import_module(home), attribute))
    names = {path.rpartition(".")[2] for path in shown}
    assert {n for n in module.__all__ if n != "nn"} <= names
    assert all(
        any(actual is getattr(module, n) for actual in objects) for n in module.__all__ if n != "nn"
    )
