"""Trees of stand-in files (the readers look at names, so a file need not be an image) and golden counts."""

import json
from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture
def tree(tmp_path):
    """``tree("name", "a/b.png", …)``: a folder of empty files; a name that ends in ``/`` is an empty folder."""

    def make(name: str, *files: str) -> Path:
        root = tmp_path / name
        for file in files:
            path = root / file
            (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not file.endswith("/"):
                path.touch()
        return root

    return make


@pytest.fixture
def listing(tmp_path):
    """``listing("FF-DF", content)``: the JSON file of that name; the content is below the top key unless ``raw``."""

    def make(stem: str, content: object, raw: bool = False) -> Path:
        path = tmp_path / f"{stem}.json"
        path.write_text(json.dumps(content if raw else {stem: content}))
        return path

    return make


@pytest.fixture
def golden():
    """Images per (split, family, method, domain), real images under the family ``real``."""
    return lambda records: dict(
        Counter((r.split, r.family if r.label else "real", r.method, r.domain) for r in records)
    )


def numbered(folder: str, count: int) -> list[str]:
    return [f"{folder}/{i:03d}.png" for i in range(count)]


@pytest.fixture(name="numbered")
def _numbered():
    return numbered
