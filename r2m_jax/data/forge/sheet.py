"""A picture of what was forged: real images beside their forgeries, a row per method."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from r2m_jax.data.forge.plan import ForgeRecipe, Job
from r2m_jax.data.records import Record

_CELL = 160
_LABEL = 150
_PAIRS = 4


def contact_sheet(records: Sequence[Record], jobs: Sequence[Job], recipe: ForgeRecipe) -> Image.Image:
    """Pairs of a real image and its forgery, four to a row and a row per method.

    Args:
        records: of the made images.
        jobs: that made them, in the same order.
        recipe: of the set.
    """
    real = {(job.real, job.camera): record for job, record in zip(jobs, records, strict=True) if not job.method}
    cell = min(_CELL, recipe.size)
    sheet = Image.new("RGB", (_LABEL + 2 * _PAIRS * (cell + 2), len(recipe.methods) * (cell + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, method in enumerate(recipe.methods):
        made = [(job, record) for job, record in zip(jobs, records, strict=True) if job.method == method]
        chosen = made[:: max(1, len(made) // _PAIRS)][:_PAIRS]
        top = row * (cell + 2)
        family = made[0][1].family if made else ""
        draw.text((4, top + cell // 2 - 12), f"{family}\n{method.replace('_', ' ')}", fill="black")
        for column, (job, record) in enumerate(chosen):
            for side, path in enumerate((real[job.real, job.camera].path, record.path)):
                with Image.open(path) as image:
                    place = _LABEL + (2 * column + side) * (cell + 2)
                    sheet.paste(image.resize((cell, cell), Image.Resampling.BOX), (place, top))
    return sheet
