"""A reader that never answers: the wait ends, and says for what it waited."""

import threading

import pytest
from PIL import Image

from r2m_jax import InputError
from r2m_jax.data.pipeline import Decoding, batches
from r2m_jax.data.records import Record


class Hanging:
    """One image hangs until the test lets go."""

    def __init__(self, count, hung):
        self.records = [Record(f"{number}.png", number % 2) for number in range(count)]
        self.hung, self.released = hung, threading.Event()

    def image(self, index, shortest=None):
        if index == self.hung:
            assert self.released.wait(60)
        return Image.new("RGB", (2, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hung_reader_is_named(workers):
    source = Hanging(20, 11)
    stream = batches(source, batch_size=4, seed=0, decoding=Decoding(4, workers=workers, timeout=0.5))
    with stream:
        with pytest.raises(InputError, match=r"no batch has come for 0\.5 s: reading 11\.png for \d s.*data\.timeout"):
            list(stream)
        assert stream.get_state()["next"] < 5
        source.released.set()


def test_a_slow_reader_is_waited_for():
    source = Hanging(20, 11)
    threading.Timer(0.3, source.released.set).start()
    with batches(source, batch_size=4, seed=0, decoding=Decoding(4, workers=2, timeout=30)) as stream:
        assert sum(len(batch["index"]) for batch in stream) == 20
