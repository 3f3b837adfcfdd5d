import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.parallel import any_process, connect, gather_rows, is_first


def test_alone_everything_is_local():
    connect(None, None, None)
    assert is_first()
    assert any_process(True)
    assert not any_process(False)
    rows = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(gather_rows(rows), rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((None, 2, None), "--processes and --process need --coordinator"),
        (("127.0.0.1:1", 2, 2), "process 2 of 2 does not exist; they are counted from 0"),
        (("127.0.0.1:1", 2, None), "process None of 2 does not exist"),
    ],
)
def test_what_does_not_fit_is_said(arguments, says):
    with pytest.raises(InputError, match=says):
        connect(*arguments)
