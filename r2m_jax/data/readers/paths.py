"""Paths of published lists, made into paths on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from r2m_jax.data.readers.reading import Findings

SPELLINGS = ("deepfakes_detection_datasets", "deepfake_detection_datasets")
"""DeepfakeBench's README and its lists spell the root folder differently."""

_DRIVE = re.compile(r"^[A-Za-z]:/")
_LEADING = re.compile(r"^(?:\./)+")


class Resolver:
    """Backslashes turned, a prefix taken off, the root put in front, the root folder's two spellings matched.

    The work is done once per folder, since a list names the frames of a folder one by one.

    Args:
        root: what relative paths are relative to.
        strip_prefix: leading folders to take off, in either spelling of the root folder.
    """

    def __init__(self, root: Path, strip_prefix: str | None = None):
        self._root = root.absolute().as_posix().rstrip("/")
        self._prefixes = _prefixes(strip_prefix)
        self._given = strip_prefix
        self._folders: dict[str, str] = {}
        self._heads: dict[str, str] = {}
        self._without_prefix = 0
        self._drives: set[str] = set()

    def __call__(self, raw: str) -> str:
        """The path on this machine, with forward slashes; it need not exist."""
        folder, slash, name = raw.strip().replace("\\", "/").rpartition("/")
        resolved = self._folders.get(folder)
        if resolved is None:
            resolved = self._folders[folder] = self._resolve(folder + slash)
        return f"{resolved}{name}"

    def report(self, findings: Findings) -> None:
        """Say which folders did not begin with the prefix, and which are of another machine."""
        if self._without_prefix:
            findings.warnings.append(
                f"{self._without_prefix} folders of the list do not begin with the prefix {self._given}; "
                "their paths are used as they are."
            )
        if self._drives:
            findings.warnings.append(
                f"the list has absolute Windows paths (e.g. {min(self._drives)}); pass --strip-prefix and --root."
            )

    def _resolve(self, folder: str) -> str:
        folder = _LEADING.sub("", folder)
        if self._prefixes:
            for prefix in self._prefixes:
                if folder.startswith(prefix):
                    folder = folder[len(prefix) :].lstrip("/")
                    break
            else:
                self._without_prefix += 1
        if _DRIVE.match(folder):
            self._drives.add(folder)
            return folder
        if folder.startswith("/"):
            return folder
        head, slash, rest = folder.partition("/")
        if head in SPELLINGS:
            head = self._spelling(head)
            folder = f"{head}{slash if head else ''}{rest}"
        return f"{self._root}/{folder}"

    def _spelling(self, head: str) -> str:
        """The spelling that exists below the root; nothing, where the root is that folder itself."""
        if head not in self._heads:
            other = SPELLINGS[1 - SPELLINGS.index(head)]
            root = Path(self._root)
            found = [name for name in (head, other) if (root / name).is_dir()]
            self._heads[head] = found[0] if found else "" if root.name in SPELLINGS else head
        return self._heads[head]


def _prefixes(given: str | None) -> list[str]:
    if not given:
        return []
    prefix = _LEADING.sub("", given.replace("\\", "/")).rstrip("/") + "/"
    spelled = [prefix]
    for one, other in (SPELLINGS, SPELLINGS[::-1]):
        parts = prefix.split("/")
        if one in parts:
            spelled.append("/".join(other if part == one else part for part in parts))
    return spelled


def sibling(folder: str, name: str) -> str:
    """``…/frames/000`` with its last component ``frames`` replaced by ``name``; empty where there is none."""
    parts = folder.split("/")
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "frames":
            return "/".join([*parts[:index], name, *parts[index + 1 :]])
    return ""
