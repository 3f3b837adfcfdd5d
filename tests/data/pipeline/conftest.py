import numpy as np
import pytest
from PIL import Image

from r2m_jax.data.records import Record

SIZE = 12


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """37 images of several sizes and formats, and their records."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(1)
    records = []
    for number in range(37):
        path = folder / f"{number:02}.{('png', 'jpg', 'webp')[number % 3]}"
        height, width = rng.integers(10, 40, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        label = number % 4 > 0
        records.append(Record(str(path), int(label), method=f"m{number % 4}" if label else "", video=str(number)))
    return records
