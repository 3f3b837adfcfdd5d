"""``calibration.json`` in a model directory: the threshold above which an image is called fake, and its grounds."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r2m_jax.atomic import atomic_text
from r2m_jax.checkpoints.provenance import read_json
from r2m_jax.errors import InputError
from r2m_jax.version import __version__

FILE = "calibration.json"


class Calibration(BaseModel):
    """A threshold and the images it was set on.

    Attributes:
        threshold: probability of fake, 0…1; an image strictly above it is called fake.
        fpr: share of real images that may be called fake, 0…1, which the threshold was set for.
        split: of the index.
        images: scored in that split.
        real: how many of them are real; they alone decide the threshold.
        sha256: hex digest of the index file.
        auc: per image on the same split; None where it has no fake images.
        version: of r2m-jax that made it.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    threshold: float = Field(ge=0, le=1)
    fpr: float = Field(ge=0, le=1)
    split: str
    images: int = Field(ge=1)
    real: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    auc: float | None = Field(ge=0, le=1)
    version: str = __version__

    @model_validator(mode="after")
    def _counts_fit(self) -> Calibration:
        if self.real > self.images:
            raise ValueError(f"{self.real} of {self.images} images cannot be real")
        return self


def read_calibration(directory: str | Path) -> Calibration | None:
    """The calibration of a model directory; None where there is none.

    Raises:
        InputError: the file is there but unreadable or not what :func:`write_calibration` writes.
    """
    path = Path(directory) / FILE
    if not path.exists():
        return None
    try:
        return Calibration.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        what = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path} is no calibration ({where}: {what}); delete it or calibrate again.") from None


def write_calibration(directory: str | Path, calibration: Calibration) -> None:
    """Store a calibration in a model directory, in place of an earlier one.

    Raises:
        InputError: there is no such directory, or it cannot be written.
    """
    if not Path(directory).is_dir():
        raise InputError(f"{directory} is no model directory; a calibration is stored in the model's own.")
    atomic_text(Path(directory) / FILE, calibration.model_dump_json(indent=2) + "\n")


__all__ = ["FILE", "Calibration", "read_calibration", "write_calibration"]
