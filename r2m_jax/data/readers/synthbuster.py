"""SynthBuster: nine folders of generated PNG files; the real images, RAISE-1k, are a separate download."""

from __future__ import annotations

from r2m_jax.data import catalogue
from r2m_jax.data.readers.reading import Clip, Findings, Options
from r2m_jax.data.readers.tree import Tree
from r2m_jax.data.records import Record

DATASET = "synthbuster"
_GENERATORS = {method.name: method for method in catalogue.SYNTHBUSTER_METHODS}
_REALS = ("raise", "real")


def matches(tree: Tree) -> bool:
    """At least two of the nine generators' folders, or one below a folder ``synthbuster``."""
    names = {part for folder in tree.folders for part in folder.parts if part in _GENERATORS}
    named = any(DATASET in (part.lower() for part in (tree.root.name, *folder.parts)) for folder in tree.folders)
    return len(names) >= (1 if named else 2)


def read(tree: Tree, options: Options, findings: Findings) -> list[Clip]:
    """Clips (one image each); a folder ``RAISE…`` or ``real…`` in the tree holds the real images."""
    clips = []
    left_out = 0
    for folder in tree.folders:
        generator = next((part for part in folder.parts if part in _GENERATORS), "")
        if not generator and not any(part.lower().startswith(_REALS) for part in folder.parts):
            left_out += len(folder.images)
            continue
        for name, path in zip(folder.images, folder.files, strict=True):
            stem = name.rpartition(".")[0]
            shared = Record(
                path="",
                label=int(bool(generator)),
                family=_GENERATORS[generator].family if generator else "",
                method=generator,
                domain=options.domain or catalogue.domain_of(DATASET),
                video=f"{generator}/{stem}" if generator else stem,
                split=options.split,
                dataset=options.dataset or DATASET,
            )
            clips.append(Clip(shared, [path]))
    if left_out:
        findings.warnings.append(f"{left_out} images outside the nine generators' folders are left out.")
    return clips
