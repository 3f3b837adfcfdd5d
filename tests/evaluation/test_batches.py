import jax
import numpy as np
import pytest
from PIL import Image

from r2m_jax import InputError
from r2m_jax.data.device import normalise
from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.data.records import Record
from r2m_jax.evaluation import score
from r2m_jax.evaluation.inference import score_batches
from r2m_jax.evaluation.metrics import auc, video_auc
from r2m_jax.models import apply_detector
from r2m_jax.parallel import data_mesh, replicate

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def records(tmp_path, rng):
    for number in range(13):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(tmp_path / f"{number}.png")
    return [Record(str(tmp_path / f"{number}.png"), number % 2) for number in range(13)]


def test_scores_from_files_over_devices_are_those_from_memory(detector, records):
    logits = apply_detector(detector.config)

    @jax.jit
    def margins(params, images):
        both = logits(params, normalise(images, HALF, HALF))
        return both[:, 1] - both[:, 0]

    mesh = data_mesh()
    with evaluation_batches(RecordSource(records), batch_size=8, decoding=Decoding(32)) as stream:
        found, read = score_batches(margins, replicate(mesh, detector.params), stream, len(records), mesh=mesh)
    images = np.stack([np.asarray(Image.open(r.path)) for r in records])
    np.testing.assert_allclose(found, score(logits, HALF, HALF)(detector.params, images), rtol=1e-5, atol=1e-6)
    assert read.all()
    broken = {**detector.params, "head": {**detector.params["head"], "bias": np.asarray([np.nan, 0], np.float32)}}
    with (
        evaluation_batches(RecordSource(records), batch_size=8, decoding=Decoding(32)) as stream,
        pytest.raises(InputError, match="13 of 13 scores are NaN or infinite"),
    ):
        score_batches(margins, replicate(mesh, broken), stream, len(records), mesh=mesh)


def test_clips_of_one_name_but_another_label_or_set_stay_apart():
    records = [
        Record("a", 0, video="000", dataset="x"), Record("b", 0, video="000", dataset="x"),
        Record("c", 1, video="000", dataset="x"), Record("d", 1, video="000", dataset="y"),
        Record("e", 0, video="001", dataset="x"),
    ]  # fmt: skip
    scores = np.asarray([0.1, 0.9, 0.6, 0.4, 0.45])
    # Clips: real .5 and .45, fake .6 and .4.
    assert video_auc(records, scores) == auc([0, 0, 1, 1], [0.5, 0.45, 0.6, 0.4]) == 0.5
    assert np.isnan(video_auc(records[:2], scores[:2]))
