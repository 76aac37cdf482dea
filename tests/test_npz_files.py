"""`.npz` files from anyone: each array is what its reader says it is, or the file is refused by name before its bytes are believed."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from neaptide.cli import main
from neaptide.compiler.errors import FormatError
from neaptide.compiler.npz_files import Array, open_npz
from neaptide.search.data import load_data
from neaptide.targets.predictors import Columns, OperatorPredictor, fit, load_predictor, save_predictor

ANY = Array("biufSU", (("n",), ("n", "m"), ()))


def read(path, wanted, limit=1 << 20):
    with open_npz(path, limit=limit) as file:
        return file.read(wanted)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, body in members:
            archive.writestr(name, body)
    return path


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "<f4", ">f8", "?", "S5", "<U3", "S0"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 2), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_comes_back(tmp_path, dtype, shape, order):
    array = np.asarray(np.arange(int(np.prod(shape, dtype=int))).reshape(shape).astype(dtype), order=order)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", a=array)
        found = read(tmp_path / "a.npz", {"a": ANY})["a"]
        np.testing.assert_array_equal(found, array)
        assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder("=") and found.flags.writeable


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"a": Array("f", (("n",),))}, r"array 'a' is int64 of shape \(3\); it should be float of shape \(n\)"),
        ({"a": Array("i", ((4,),))}, r"shape \(3\); it should be int of shape \(4\)"),
        ({"a": Array("i", (("n",),), "int32")}, "it should be int32"),
        ({"a": Array("i", (("n",),)), "b": Array("i", (("n",),))}, r"array 'b' has shape \(2\) where 'a' has n = 3"),
        ({"c": Array("i", ((None,),))}, r"no array 'c', which should be int of shape \(any\)"),
        ({"a": Array("i", (("n",),), most=1)}, "array 'a' holds 2; each number should be at most 1"),
        ({"a": Array("i", (("n",),), least=1, most=5)}, "holds 0; each number should be at least 1 and at most 5"),
        ({"f": Array("f", (("n",),))}, "array 'f' holds a number that is not finite"),
    ],
)
def test_what_is_not_as_described_is_named(tmp_path, wanted, said):
    np.savez(tmp_path / "a.npz", a=np.arange(3), b=np.arange(2), f=np.array([0.0, np.nan]))
    with pytest.raises(FormatError, match=said) as caught:
        read(tmp_path / "a.npz", wanted)
    assert str(tmp_path / "a.npz") in str(caught.value) and caught.value.exit_code == 2


def test_an_array_that_may_be_absent_is_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    assert set(read(tmp_path / "a.npz", {"a": ANY, "b": Array("i", (("n",),), required=False)})) == {"a"}


def header(text: str, body: bytes = b"") -> bytes:
    raw = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (npy(np.array([{}], object)), "holds Python objects"),
        (npy(np.zeros(2, [("a", "i4")])), "plain numbers and texts"),
        (header("{'descr': '|V4', 'fortran_order': False, 'shape': (1,)}", b"1234"), "plain numbers and texts"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}"), "takes 8,000,000,000,000 bytes; .* holds 0"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), r"its shape is \(-1\)"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}", b"12345678"), r"its shape is \(True\)"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), 'x': 1}", b"12345678"), "cannot be read"),
        (header("{" * 3000), "cannot be read"),
        (header("__import__('os')"), "cannot be read"),
        (header("{'descr': '<i99', 'fortran_order': False, 'shape': (1,)}"), "cannot be read"),
        (b"\x93NUMPY\x09\x09", "cannot be read"),
        (b"hello", "cannot be read"),
        (npy(np.arange(3))[:-1], "takes 24 bytes; the file holds 23"),
        (npy(np.arange(3)) + b"x", "takes 24 bytes; the file holds 25"),
    ],
)
def test_headers_are_believed_as_far_as_the_bytes_go(tmp_path, body, said):
    zipped(tmp_path / "a.npz", [("a.npy", body)])
    with pytest.raises(FormatError, match=said) as caught:
        read(tmp_path / "a.npz", {"a": ANY})
    assert "array 'a'" in str(caught.value)


def test_the_directory_is_checked_before_anything_is_unpacked(tmp_path):
    ten_megabytes = npy(np.zeros(10_000_000, np.uint8))
    with pytest.raises(FormatError, match="unpacks to 10,000,128 bytes; at most 1,048,576"):
        read(zipped(tmp_path / "big.npz", [("a.npy", ten_megabytes)]), {"a": ANY})
    whole = zipped(tmp_path / "a.npz", [("a.npy", npy(np.arange(3)))], zipfile.ZIP_STORED).read_bytes()
    entry = whole.rindex(b"PK\x01\x02")
    for at, size, value, said in (
        (24, 4, 2**31, "is said to be 2,147,483,648 bytes out of"),
        (8, 2, 1, "encrypted"),
        (10, 2, 12, "packed in a way"),
        (20, 4, 10**6, "bytes packed; the file has"),
        (16, 4, 7, "CRC"),
        (42, 4, 2**31, "cannot be read|no .npz"),
    ):
        (tmp_path / "lies.npz").write_bytes(whole[: entry + at] + value.to_bytes(size, "little") + whole[entry + at + size :])
        with pytest.raises(FormatError, match=said):
            read(tmp_path / "lies.npz", {"a": ANY}, limit=1 << 40)
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(tmp_path / "twice.npz", [("a.npy", npy(np.arange(3)))] * 2)
    with pytest.raises(FormatError, match="two arrays are called 'a'"):
        read(tmp_path / "twice.npz", {"a": ANY})
    with pytest.raises(FormatError, match=r"it holds 'a\.txt'"):
        read(zipped(tmp_path / "other.npz", [("a.txt", b"")]), {"a": ANY})
    with pytest.raises(FormatError, match="4,097 arrays"):
        read(zipped(tmp_path / "many.npz", [(f"{i}.npy", b"") for i in range(4097)]), {})


# ---- the files that are read so ---------------------------------------------------------------------------------------


def predictor_file(path):
    i = np.arange(60)
    columns = Columns({"b": np.array([f"k{k}" for k in i % 3])}, {"side": 96.0 + i % 5})
    save_predictor(fit(columns, 1 + 0.25 * (i % 3) + 0.01 * (i % 5), boosting=False), path)
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("levels", "b"), "xxx", "levels.b is 'xxx', not a list"),
        (("levels", "b"), ["k0", "k0"], "levels.b does not list distinct texts"),
        (("levels", "b"), ["k0"], r"'coefficients' is float64 of shape \(4\); it should be float64 of shape \(2\)"),
        (("ranges", "side"), [1, 1], "the second bound is the larger"),
        (("ranges", "side"), [1], "has 1 bounds"),
        (("model", "view"), "elsewhere", "model.view is 'elsewhere', not one of places, tied, both"),
        (("model", "boosted"), 1, "model.boosted is 1, not true or false"),
        (("model", "boosted"), True, "has no array 'feature'"),
        (("intercept",), "1", "intercept is '1', not a finite number"),
        (("intercept",), float("nan"), "intercept is nan, not a finite number"),
        (("accuracy",), None, "accuracy is missing, not an object"),
        (("accuracy", "networks"), 2.5, "not a whole number"),
        (("tried",), [["x"]], r"tried\[0\] is \['x'\]"),
        (("unit",), 3, "unit is 3, not text"),
        (("kind",), "x", "kind is 'x', not one of networks, operators"),
    ],
)
def test_a_predictor_whose_header_is_wrong_is_named(tmp_path, where, value, said):
    arrays = predictor_file(tmp_path / "p.npz")
    document = json.loads(arrays["header"].tobytes())
    holder = document
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = value
    np.savez(tmp_path / "p.npz", **{**arrays, "header": np.frombuffer(json.dumps(document).encode(), np.uint8)})
    with pytest.raises(FormatError, match=said):
        load_predictor(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("feature", lambda a: a + 100, "array 'feature' holds"),
        ("left", lambda a: a * 0, "leads a tree back"),
        ("right", lambda a: a + len(a), "array 'right' holds"),
        ("roots", lambda a: a - 1, "array 'roots' holds -1"),
        ("threshold", lambda a: a[:3], r"array 'threshold' has shape \(3\) where 'feature' has nodes"),
        ("value", lambda a: a * np.inf, "array 'value' holds"),
        ("value", lambda a: a.astype(str), "it should be float64"),
    ],
)
def test_trees_lead_to_leaves(tmp_path, name, change, said):
    pytest.importorskip("sklearn")
    arrays = trees_file(tmp_path)
    with np.errstate(all="ignore"):
        np.savez(tmp_path / "t.npz", **{**arrays, name: change(arrays[name])})
    with pytest.raises(FormatError, match=said):
        load_predictor(tmp_path / "t.npz")


_TREES: dict[str, np.ndarray] = {}


def trees_file(tmp_path):
    """A boosted predictor's arrays, fitted once."""
    if not _TREES:
        rng = np.random.default_rng(0)
        first, second = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
        costs = 1.0 + first + second + 3 * (first == second)
        columns = Columns({"a": np.array([f"k{k}" for k in first]), "b": np.array([f"k{k}" for k in second])}, {})
        predictor = fit(columns, costs)
        assert predictor.fitted.trees is not None
        save_predictor(predictor, tmp_path / "made.npz")
        with np.load(tmp_path / "made.npz") as file:
            _TREES.update({name: file[name] for name in file.files})
    return dict(_TREES)


def test_images_and_tables_are_checked(tmp_path):
    images, labels = np.zeros((20, 4, 4, 3), np.uint8), np.arange(20) % 2
    honest = {"x_train": images, "y_train": labels, "x_test": images[:4], "y_test": labels[:4]}
    for change, said in (
        ({"y_train": labels[:3]}, r"'y_train' has shape \(3\) where 'x_train' has n = 20"),
        ({"y_train": labels - 1}, "holds -1"),
        ({"y_train": labels + 10**6}, "at most 99999"),
        ({"x_train": images.astype(float)}, "it should be uint8"),
        ({"x_train": images[..., :2]}, r"\(20, 4, 4, 2\)"),
        ({"x_test": images[:4, :2]}, "sizes should be equal"),
        ({"y_test": labels[:4] + 5}, "labels known"),
        ({"class_names": np.arange(2)}, "it should be bytes or str"),
        ({"x_train": images[:, :0]}, "no images in an array"),
        ({"cifar10_test_200": np.zeros(3)}, "no array 'arch_str'"),
        ({"arch": np.zeros((3, 3), int), "test_acc": np.zeros((3, 3))}, r"'arch' is int64 of shape \(3, 3\)"),
        ({"train_bytes": np.zeros(3, np.uint8)}, "no array 'prefix'"),
    ):
        np.savez(tmp_path / "i.npz", **{**honest, **change})
        with pytest.raises(FormatError, match=said):
            load_data(tmp_path / "i.npz", val=4)


def test_pictures_are_decoded_once_their_sizes_are_known_to_fit(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs neaptide[search]")

    def jpeg(width, height):
        stream = io.BytesIO()
        image.new("RGB", (width, height)).save(stream, "jpeg")
        return stream.getvalue()

    def written(files, lengths=None, labels=None):
        raw = np.frombuffer(b"".join(files), np.uint8)
        part = {"bytes": raw, "len": np.array(lengths or list(map(len, files)), np.int64)}
        arrays = {f"{name}_{key}": value for name in ("train", "test") for key, value in part.items()}
        y = np.arange(len(files)) % 2 if labels is None else labels
        np.savez(tmp_path / "j.npz", prefix=np.zeros(0, np.uint8), y_train=y, y_test=y, **arrays)
        return tmp_path / "j.npz"

    data = load_data(written([jpeg(8, 6)] * 12), val=2)
    assert data.shape == (3, 6, 8)  # type: ignore[union-attr]
    with pytest.raises(FormatError, match=r"image 1 of 'train_bytes' .* it is 9 x 6, the ones before 8 x 6"):
        load_data(written([jpeg(8, 6), jpeg(9, 6)]), val=1)
    with pytest.raises(FormatError, match="are 99 bytes"):
        load_data(written([jpeg(8, 6)], [99]), val=1)
    large = jpeg(8, 6)
    at = large.index(b"\xff\xc0") + 5
    with pytest.raises(FormatError, match=r"image 0 of 'train_bytes' is no picture that can be read"):
        load_data(written([large[:at] + b"\xff\xdc\xff\xdc" + large[at + 4 :]] * 12), val=1)


def test_hostile_files_are_refused_in_a_sentence(shared_dir, capsys):
    folder = shared_dir / "cases" / "hostile"
    for path in sorted(folder.glob("predictor_*.npz")):
        with pytest.raises(FormatError, match=path.name):
            assert isinstance(load_predictor(path), OperatorPredictor)
    for path in sorted(folder.glob("imgnpz_*.npz")):
        with pytest.raises(FormatError, match=path.name):
            load_data(path, val=4)
    for path in sorted(folder.glob("*.onnx")):
        assert main(["analyze", str(path), "--no-kernels"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("neaptide: ") and said.count("\n") == 1 and path.name in said and "bug" not in said
