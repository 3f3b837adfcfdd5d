"""PyTorch files are read as torch reads them, and hostile or broken ones end in one sentence."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_jax.checkpoints.torch_pickle import is_torch_file, read_torch_file
from r2m_jax.errors import InputError

torch = pytest.importorskip("torch", reason="torch writes the files that are read here")
nn = torch.nn

DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()  # noqa: SIM905
FORMATS = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
FUZZ = settings(max_examples=120, deadline=None, database=None)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("mean", torch.arange(3, dtype=torch.float16))
        self.sizes = [1, 2]
        self.scales = [torch.ones(1)]
        self.factors = {"a": 1.5}

    def forward(self, x):
        return self.norm(self.conv1(x)) * self.sizes[1] * self.scales[0] + self.factors["a"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = Inner()
        self.blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def forward(self, x):
        return self.visual(x)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def bits(tensor):
    return tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(arrays, tensors):
    assert set(arrays) == set(tensors)
    for name, tensor in tensors.items():
        assert arrays[name].shape == tuple(tensor.shape), name
        assert arrays[name].dtype.name == str(tensor.dtype).removeprefix("torch."), name
        assert arrays[name].tobytes() == bits(tensor), name
        assert arrays[name].flags.c_contiguous, name


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


def zipped(path, content, storages=None, extra=None, compression=zipfile.ZIP_STORED):
    """An archive around a pickle, with right checksums."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, storage in {"0": bytes(16), **(storages or {})}.items():
            archive.writestr(f"archive/data/{key}", storage)
        for name, text in (extra or {}).items():
            archive.writestr(f"archive/{name}", text)
    return path


def tensor_pickle(offset=0, size=(4,), stride=(1,), numel=4, kind="FloatStorage", key="0", metadata=None):
    """``{"w": tensor}`` with these arguments, as torch.save writes it."""

    def tuple_of(*parts):
        return b"(" + b"".join(parts) + b"t"

    def plain(value):
        return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"")

    storage = tuple_of(plain("storage"), f"ctorch\n{kind}\n".encode(), plain(key), plain("cpu"), plain(numel)) + b"Q"
    numbers = [b"(" + b"".join(map(plain, part)) + b"t" for part in (size, stride)]
    rest = [] if metadata is None else [plain(metadata)]
    arguments = tuple_of(storage, plain(offset), *numbers, b"\x89", b"}", *rest)
    return b"\x80\x02}" + plain("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def refusal(path):
    with pytest.raises(InputError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


@FORMATS
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_as_torch_wrote_it(tmp_path, name, new):
    values = torch.tensor([[0.0, 1.0, 3.25], [100.0, 7.0, 0.0]]).to(getattr(torch, name))
    tensors = {
        "a": values,
        "scalar": values[1, 0],
        "empty": values[:0],
        "none": torch.zeros(0, dtype=values.dtype),
    }
    same(read_torch_file(saved(tmp_path / "x.pth", tensors, _use_new_zipfile_serialization=new)), tensors)


@FORMATS
def test_views_of_shared_storages(tmp_path, new):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "row": base[1],
        "steps": base[:, ::2, 1::2],
        "expanded": torch.tensor([5.0]).expand(3, 2),
        "odd_stride": torch.as_strided(base, (1, 4), (999, 1)),
        "tied": base,
    }
    arrays = read_torch_file(saved(tmp_path / "x.pt", tensors, _use_new_zipfile_serialization=new))
    same(arrays, tensors)
    if new:
        assert np.shares_memory(arrays["base"], arrays["tied"])


@FORMATS
def test_what_training_scripts_put_around_the_weights(tmp_path, new):
    state = Net().state_dict()
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    around = {"epoch": 3, "optimizer": optimizer.state_dict(), "rate": 0.1, "loss": torch.tensor(0.5)}
    for key in ("state_dict", "model", "model_state_dict", "net"):
        wrapped = {**around, key: state, "note": "x"}
        same(read_torch_file(saved(tmp_path / "x.pth", wrapped, _use_new_zipfile_serialization=new)), state)
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    nested = {"model": {"state_dict": collections.OrderedDict(parallel)}, "epoch": 3}
    same(read_torch_file(saved(tmp_path / "y.pth", nested, _use_new_zipfile_serialization=new)), state)


def test_module_prefix_stays_unless_all_names_have_it(tmp_path):
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    same(read_torch_file(saved(tmp_path / "x.pth", tensors)), tensors)


def test_parameters_and_plain_values_beside_tensors(tmp_path):
    with_state = nn.Parameter(torch.ones(2))
    with_state.note = "kept by torch"
    tensors = {"a": nn.Parameter(torch.arange(3.0)), "b": with_state}
    values = {
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1),
        "milestones": collections.Counter([3, 5]),
        "values": [torch.Size([2]), torch.device("cpu"), torch.float16, None, b"x", {1: (2,)}],
    }
    same(read_torch_file(saved(tmp_path / "x.pth", {**values, **tensors})), tensors)


def test_no_torch_is_needed(tmp_path):
    path = saved(tmp_path / "x.pth", {"w": torch.ones(2)})
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; "
        "from r2m_jax.checkpoints.torch_pickle import read_torch_file; "
        "assert read_torch_file(Path(sys.argv[1]))['w'].tolist() == [1, 1]"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path, protocol):
    tensors = {"a": torch.ones(2, 3)}
    same(read_torch_file(saved(tmp_path / "x.pth", tensors, pickle_protocol=protocol)), tensors)


def test_compressed_entries(tmp_path):
    values = np.arange(4, dtype=np.float32)
    path = zipped(tmp_path / "x.pth", tensor_pickle(), {"0": values.tobytes()}, compression=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(read_torch_file(path)["w"], values)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    net = Net().eval().half()
    path = tmp_path_factory.mktemp("jit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(str(path / "script.pt"))
        torch.jit.trace(Net().eval(), torch.ones(1, 1, 5, 5)).save(str(path / "trace.pt"))
    return path


@pytest.mark.parametrize("name", ["script", "trace"])
def test_torchscript_modules(scripted, name):
    path = scripted / f"{name}.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.jit.load(str(path)).state_dict()
    assert "visual.conv1.weight" in state
    same(read_torch_file(path), state)


MARK = b"__MARK__"
PAYLOADS = {
    "posix.system": b"cposix\nsystem\n(S'touch __MARK__'\ntR.",
    "builtins.eval": b'cbuiltins\neval\n(S\'open("__MARK__", "w")\'\ntR.',
    "subprocess.Popen": b"csubprocess\nPopen\n((S'touch'\nS'__MARK__'\nltR.",
    "builtins.getattr": b"cbuiltins\ngetattr\n(cos\npath\nS'os'\ntR.",
    "operator.attrgetter": b"\x80\x04\x8c\x08operator\x8c\x0aattrgetter\x93\x8c\x06system\x85R.",
    "os.system": b"\x80\x04\x8c\x02os\x8c\x06system\x93S'touch __MARK__'\n\x85R.",
    "nt.system": b"(int\nsystem\nS'touch __MARK__'\n.",
    "torch.load": b"ctorch\nload\n(S'__MARK__'\ntR.",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.",
    "numpy.ndarray": b"cnumpy\nndarray\n(K\x01tR.",
    "copyreg._reconstructor": b"ccopyreg\n_reconstructor\n(K\x01tR.",
    "torch._utils._rebuild_sparse_tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n)R.",
    "torch.Tensor.__class__": b"\x80\x04\x8c\x05torch\x8c\x10Tensor.__class__\x93.",
    "extension 1": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("where", ["zip", "plain"])
@pytest.mark.parametrize("asked", PAYLOADS)
def test_a_pickle_that_asks_for_more_is_refused_by_name(tmp_path, asked, where):
    marker = tmp_path / "made"
    content = PAYLOADS[asked].replace(MARK, os.fsencode(marker))
    path = tmp_path / "weights.pth"
    if where == "plain":
        path.write_bytes(content)
    else:
        zipped(path, content)
    message = refusal(path)
    assert f"refused, its pickle asks for `{asked}`, which is not a tensor; re-save it as safetensors" in message
    assert not marker.exists()


@FORMATS
def test_calls_among_tensors_are_refused_by_name(tmp_path, new):
    marker = tmp_path / "made"
    for call, asked in [
        (Call(os.system, f"touch {marker}"), "system"),
        (Call(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (Call(getattr, Call(getattr, 1, "real"), "imag"), "getattr"),
        (Call(subprocess.check_call, ["touch", str(marker)]), "check_call"),
    ]:
        tensors = {"w": torch.ones(2), "x": [call]}
        path = saved(tmp_path / "weights.pth", tensors, _use_new_zipfile_serialization=new)
        # The module is not compared: protocol 2 has Python 2's names, such as `commands` for `subprocess`.
        assert f"{asked}`, which is not a tensor" in refusal(path)
        assert not marker.exists()


def test_whole_modules_are_refused_by_the_name_of_their_class(tmp_path):
    assert ".Net`, which is not a tensor" in refusal(saved(tmp_path / "x.pth", Net()))


def test_names_in_messages_are_printable(tmp_path):
    content = pickle.PROTO + b"\x04\x8c\x02os\x8c\x05a\nb\x1b[\x93."
    assert r"`os.a\nb\x1b[`" in refusal(zipped(tmp_path / "x.pth", content))


@pytest.mark.parametrize(
    "target",
    [
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch\nSize\n",
        b"ctorch\nFloatStorage\n",
        b"cnumpy\ndtype\n",
        b"c__torch__\nNet\n",
        tensor_pickle()[2:-2].removeprefix(b"}X\x01\x00\x00\x00w"),
    ],
)
def test_opcode_build_cannot_change_the_reader(tmp_path, target):
    # BUILD with (None, {...}) sets attributes of any object that has no __setstate__.
    poison = b"(N}(X\x07\x00\x00\x00__new__K\x01X\x04\x00\x00\x00sizeK\x01utb"
    for content in (
        b"\x80\x02" + target + poison + b".",
        b"\x80\x02" + target + b"}X\x01\x00\x00\x00aK\x01sb.",
    ):
        refusal(zipped(tmp_path / "x.pth", content))
    tensors = collections.OrderedDict(a=nn.Parameter(torch.arange(4.0)))
    same(read_torch_file(saved(tmp_path / "y.pth", tensors)), tensors)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"size": (5,)}, "outside its storage"),
        ({"offset": 1}, "outside its storage"),
        ({"stride": (2,)}, "outside its storage"),
        ({"size": (2, 2), "stride": (2**62, 1)}, "outside its storage"),
        ({"size": (-1,)}, "negative"),
        ({"stride": (-1,), "offset": 3}, "negative"),
        ({"offset": -1}, "negative"),
        ({"size": (2.0,)}, "malformed"),
        ({"size": (2, 2)}, "not a plain strided tensor"),
        ({"metadata": {"neg": True}}, "not a plain strided tensor"),
        ({"numel": 5}, "has another size"),
        ({"kind": "DoubleStorage"}, "has another size"),
        ({"key": "1"}, "not in the file"),
        ({"key": "../data/0"}, "not in the file"),
        ({"size": (10**6, 10**6), "stride": (0, 0)}, "many times larger"),
        ({"size": (1,) * 70, "stride": (1,) * 70}, "damaged"),
        ({"kind": "QInt8Storage"}, "torch.QInt8Storage"),
        ({"kind": "float32"}, "damaged"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, arguments, complaint):
    assert complaint in refusal(zipped(tmp_path / "x.pth", tensor_pickle(**arguments)))


def test_decompression_bombs(tmp_path):
    numel = 2**25
    bomb = zipped(tmp_path / "x.pth", tensor_pickle(numel=numel), {"0": bytes(4 * numel)}, None, zipfile.ZIP_DEFLATED)
    assert "many times larger" in refusal(bomb)
    program = b"\x80\x02" + b"0" * (2**26) + b"."
    assert "implausible" in refusal(zipped(tmp_path / "y.pth", program, compression=zipfile.ZIP_DEFLATED))
    assert "memo" in refusal(zipped(tmp_path / "z.pth", b"\x80\x02Nr\xff\xff\xff\xff."))


@pytest.mark.parametrize("state", [b"K\x01", b"(K\x01t", b"N"])
def test_modules_with_packed_state(tmp_path, state):
    path = zipped(tmp_path / "x.pt", b"\x80\x02c__torch__\nNet\n)\x81" + state + b"b.")
    assert "no plain module" in refusal(path)


def test_modules_without_end(tmp_path):
    start = b"\x80\x02c__torch__\nNet\n)\x81q\x00}"
    cycle = start + b"X\x01\x00\x00\x00ah\x00sb."
    assert "no plain module" in refusal(zipped(tmp_path / "x.pt", cycle))
    many = start + b"(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00ub."
    assert "no plain module" in refusal(zipped(tmp_path / "y.pt", many))
    assert "no named tensors" in refusal(zipped(tmp_path / "z.pt", b"\x80\x02c__torch__\nNet\n)\x81."))


def test_exponentially_many_names(tmp_path):
    def level(inner):
        return b"c__torch__\nA\n)\x81}(X\x01\x00\x00\x00a" + inner + b"q\x01X\x01\x00\x00\x00bh\x01ub"

    content = b"c__torch__\nA\n)\x81"
    for _ in range(40):
        content = level(content)
    assert "without end" in refusal(zipped(tmp_path / "x.pt", b"\x80\x02" + content + b"."))


@pytest.mark.parametrize("value", [[torch.ones(1)], torch.ones(1), {0: torch.ones(1)}, {"epoch": 3}, {}, None])
@FORMATS
def test_files_without_named_tensors(tmp_path, value, new):
    message = refusal(saved(tmp_path / "x.pth", value, _use_new_zipfile_serialization=new))
    assert "holds no named tensors" in message


def test_big_endian(tmp_path):
    path = zipped(tmp_path / "x.pth", tensor_pickle(), extra={"byteorder": "big"})
    assert "not little-endian" in refusal(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"PK", "not a PyTorch checkpoint"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (b"learning rate: 1\n", "not a PyTorch checkpoint"),
        (b"config\nvalue\n", "not a PyTorch checkpoint"),
        (b"<html>Not found.</html>", "not a PyTorch checkpoint"),
        (pickle.dumps({"w": [1.0, 2.0]}), "not a PyTorch checkpoint"),
        (os.urandom(1000), "not a PyTorch checkpoint"),
    ],
)
def test_other_files(tmp_path, content, complaint):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert complaint in refusal(path)


def test_other_archives_and_places(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "zip archive, but not of PyTorch" in refusal(tmp_path / "x.pth")
    with tarfile.open(tmp_path / "y.pth", "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    assert "not a PyTorch checkpoint" in refusal(tmp_path / "y.pth")
    assert "is a directory" in refusal(tmp_path)
    assert "cannot be read (No such file" in refusal(tmp_path / "absent.pth")


def test_legacy_files_need_torch(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pth", {"w": torch.ones(1)}, _use_new_zipfile_serialization=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "install r2m-jax[torch]" in refusal(path)


def test_legacy_files_that_torch_cannot_load(tmp_path):
    path = saved(tmp_path / "x.pth", {"w": torch.ones(100)}, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:200])
    assert "torch cannot load it" in refusal(path)
    saved(path, {"w": torch.ones(1, dtype=torch.complex64)}, _use_new_zipfile_serialization=False)
    assert "not a plain tensor" in refusal(path)
    saved(path, {"w": torch.eye(2).to_sparse()}, _use_new_zipfile_serialization=False)
    assert "not a plain tensor" in refusal(path)


def test_which_files_are_of_torch(tmp_path, scripted):
    weights = {"w": torch.ones(1)}
    for suffix in (".pth", ".pt", ".bin", ".CKPT"):
        assert is_torch_file(tmp_path / f"absent{suffix}")
    assert is_torch_file(saved(tmp_path / "new", weights))
    assert is_torch_file(saved(tmp_path / "old", weights, _use_new_zipfile_serialization=False))
    np.savez(tmp_path / "x.npz", w=np.ones(1))
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "broken").write_bytes(b"PK\x03\x04")
    (tmp_path / "x.ckpt").mkdir()
    for name in ("x.npz", "x.json", "broken", "x.ckpt", "absent"):
        assert not is_torch_file(tmp_path / name)


# A file with a payload at the end, every tensor of which is read when the payload is cut off or damaged.
@pytest.fixture(scope="module")
def victims(tmp_path_factory, scripted):
    folder = tmp_path_factory.mktemp("fuzz")
    marker = folder / "made"
    tensors = {"w": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    saved(folder / "plain.pth", {"state_dict": tensors, "epoch": 3})
    saved(folder / "evil.pth", {**tensors, "x": Call(os.system, f"touch {marker}")})
    contents = [(folder / name).read_bytes() for name in ("plain.pth", "evil.pth")]
    return folder, marker, [*contents, (scripted / "script.pt").read_bytes()]


def survives(folder, marker, content):
    path = Path(folder) / "fuzzed.pth"
    path.write_bytes(content)
    try:
        arrays = read_torch_file(path)
    except InputError:
        arrays = {}
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert not marker.exists()


@FUZZ
@given(st.data())
def test_truncated_files(victims, data):
    folder, marker, contents = victims
    content = data.draw(st.sampled_from(contents))
    survives(folder, marker, content[: data.draw(st.integers(0, len(content)))])


@FUZZ
@given(st.data())
def test_files_with_a_changed_byte(victims, data):
    folder, marker, contents = victims
    content = bytearray(data.draw(st.sampled_from(contents)))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    survives(folder, marker, bytes(content))


@settings(FUZZ, max_examples=400)
@given(st.data())
def test_changed_pickles_under_right_checksums(victims, data):
    folder, marker, contents = victims
    with zipfile.ZipFile(io.BytesIO(data.draw(st.sampled_from(contents)))) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    program = bytearray(entries["data.pkl"])
    for _ in range(data.draw(st.integers(1, 3))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    storages = {name.removeprefix("data/"): entries[name] for name in entries if name.startswith("data/")}
    content = io.BytesIO()
    zipped(content, bytes(program), storages)
    survives(folder, marker, content.getvalue())


def test_bfloat16_is_that_of_ml_dtypes(tmp_path):
    array = read_torch_file(saved(tmp_path / "x.pth", {"w": torch.ones(1, dtype=torch.bfloat16)}))["w"]
    assert array.dtype == ml_dtypes.bfloat16
