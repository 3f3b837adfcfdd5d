import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.data.pipeline import training_batches


def numbered(count):
    """Images that carry their own number, with alternating labels."""
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images, [index % 2 for index in range(count)]


def order(batches):
    return [int(image[0, 0, 0]) for batch in batches for image in batch["image"]]


def test_every_pass_sees_every_image_once_in_a_new_order():
    batches, steps = training_batches(*numbered(40), batch_size=8, passes=3, seed=7)
    seen = order(batches)
    assert steps == 15
    passes = [seen[start : start + 40] for start in (0, 40, 80)]
    assert all(sorted(one) == list(range(40)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_order_depends_on_the_seed_alone_and_labels_stay_with_images():
    def run(seed):
        return list(training_batches(*numbered(30), batch_size=7, passes=2, seed=seed)[0])

    assert order(run(1)) == order(run(1)) != order(run(2))
    assert all((batch["image"][:, 0, 0, 0] % 2 == batch["label"]).all() for batch in run(1))
    assert len(run(1)) == 60 // 7


def test_iterator_resumes_where_it_was():
    first, _ = training_batches(*numbered(30), batch_size=6, passes=2, seed=3)
    for _ in range(4):
        next(first)
    state = first.get_state()
    rest = order(first)
    second, _ = training_batches(*numbered(30), batch_size=6, passes=2, seed=3)
    second.set_state(state)
    assert order(second) == rest


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [(4, [0, 1, 0], "4 images came with 3"), (3, [0, 0, 0], "no fake"), (3, [1, 1, 1], "no real"), (2, [0, 1], "fill")],
)
def test_bad_training_sets(images, labels, named):
    with pytest.raises(InputError, match=named):
        training_batches(np.zeros((images, 4, 4, 3), np.uint8), labels, batch_size=8, passes=1, seed=0)
