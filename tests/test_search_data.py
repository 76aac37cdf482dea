"""Data, training, weights and training-free scores of the search room, on small files made here and on the public ones where they are."""

from __future__ import annotations

import gzip
import pickle
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neaptide.compiler.errors import FormatError, SourceError
from neaptide.search.data import ImageData, TabularData, load_data
from neaptide.search.scores import SCORES, score
from neaptide.search.training import TrainSettings, evaluate, recalibrate, train
from neaptide.search.weights import inherit, load_weights, save_weights

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
QUICK = TrainSettings(epochs=4, batch=32, lr=0.1, schedule="cosine", augment=False, precision="fp32")


@pytest.fixture(scope="module")
def stripes(tmp_path_factory) -> ImageData:
    """Two classes that anybody can tell apart: bright on the left or on the right."""
    images = RNG.integers(0, 60, (320, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(320) % 2
    images[labels == 0, :, :4] += 120
    images[labels == 1, :, 4:] += 120
    file = tmp_path_factory.mktemp("stripes") / "stripes.npz"
    np.savez(file, x_train=images[:256], y_train=labels[:256], x_test=images[256:], y_test=labels[256:])
    data = load_data(file, val=64)
    assert isinstance(data, ImageData)
    return data


def net(width: int = 8, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(width * 4, 2)
    )


def cifar_batch(n: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), b"labels": rng.integers(0, 10, n).tolist()}


def test_cifar_python_and_binary_versions_agree(tmp_path):
    py, binary = tmp_path / "cifar-10-batches-py", tmp_path / "b" / "cifar-10-batches-bin"
    py.mkdir()
    binary.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        batch = cifar_batch(40, i)
        (py / name).write_bytes(pickle.dumps(batch, protocol=2))
        records = np.concatenate([np.array(batch[b"labels"], np.uint8)[:, None], batch[b"data"]], axis=1)
        (binary / f"{name}.bin").write_bytes(records.tobytes())
    one, other = load_data(tmp_path, val=20), load_data(tmp_path / "b", val=20)
    assert isinstance(one, ImageData) and isinstance(other, ImageData)
    assert one.shape == (3, 32, 32) and len(one.train[1]) == 180 and len(one.val[1]) == 20 and one.test is not None
    for part in ("train", "val", "test"):
        assert torch.equal(one.part(part)[0], other.part(part)[0]) and torch.equal(one.part(part)[1], other.part(part)[1])
    first = cifar_batch(40, 5)
    assert torch.equal(one.test[0][7], torch.from_numpy(first[b"data"][7].reshape(3, 32, 32)))


class Exploit:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, capsys):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": Exploit(), b"labels": [0]}, protocol=2))
    with pytest.raises(FormatError, match=r"data_batch_1 is no CIFAR batch: it asks for .*print"):
        load_data(folder)
    assert "unpickled" not in capsys.readouterr().out


def test_idx_files_gzipped_or_not(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = RNG.integers(0, 256, (50, 28, 28), dtype=np.uint8), np.arange(50, dtype=np.uint8) % 5
    (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 50, 28, 28) + images.tobytes())
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 50) + labels.tobytes()))
    data = load_data(tmp_path, val=10)
    assert isinstance(data, ImageData) and data.shape == (1, 28, 28) and data.val[1].bincount().tolist() == [2] * 5
    with pytest.raises(SourceError, match="has no test part"):
        data.part("test")
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x0d\3")
    with pytest.raises(FormatError, match="is no IDX file"):
        load_data(tmp_path)


def test_a_folder_of_pictures(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs neaptide[search]")
    for part, count in (("train", 6), ("test", 2)):
        for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                image.new("RGB", (20 + i, 30), colour).save(tmp_path / part / name / f"{i}.png")
    with pytest.raises(SourceError, match="different sizes; give one"):
        load_data(tmp_path, val=2)
    data = load_data(tmp_path, val=2, size=16)
    assert isinstance(data, ImageData) and data.classes == ("blue", "red") and data.shape == (3, 16, 16)
    assert [int(data.train[0][data.train[1] == k][:, c].float().mean()) for k, c in ((0, 2), (1, 0))] == [200, 200]
    assert len(data.part("test")[1]) == 4
    (tmp_path / "train" / "red" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(FormatError, match=r"0\.png is no picture"):
        load_data(tmp_path, val=2, size=16)


def test_what_is_no_data_says_what_was_expected(tmp_path):
    with pytest.raises(SourceError, match="no data at"):
        load_data(tmp_path / "absent")
    with pytest.raises(SourceError, match="no labelled images"):
        load_data(tmp_path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(SourceError, match=r"holds a; labelled images are x_train"):
        load_data(tmp_path / "other.npz")
    np.savez(tmp_path / "many.npz", **{f"a{i}": np.zeros(1) for i in range(30)})  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=r"holds a0, a1, .*, a7, 22 more; labelled"):
        load_data(tmp_path / "many.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 nothing")
    with pytest.raises((FormatError, SourceError), match=r"broken\.npz"):
        load_data(tmp_path / "broken.npz")


def test_parts_do_not_overlap_and_depend_on_the_seed(stripes, tmp_path):
    images = np.arange(400, dtype=np.uint16).view(np.uint8).reshape(400, 1, 2, 1)
    np.savez(tmp_path / "n.npz", x_train=images, y_train=np.arange(400) % 4)
    parts = [load_data(tmp_path / "n.npz", val=100, seed=s) for s in (0, 0, 1)]
    held = [{bytes(i.numpy().tobytes()) for i in p.val[0]} for p in parts]  # type: ignore[union-attr]
    trained = {bytes(i.numpy().tobytes()) for i in parts[0].train[0]}  # type: ignore[union-attr]
    assert held[0] == held[1] != held[2] and not held[0] & trained and len(held[0] | trained) == 400


def test_batches_are_reproducible_and_cover_every_image(stripes):
    def labels(seed):
        return torch.cat([y for _, y in stripes.batches("train", 50, generator=torch.Generator().manual_seed(seed))])

    assert torch.equal(labels(1), labels(1)) and not torch.equal(labels(1), labels(2))
    assert labels(1).sort().values.equal(stripes.train[1].sort().values)
    whole = torch.cat([x for x, _ in stripes.batches("train", 64)])
    assert abs(float(whole.mean())) < 1e-4 and abs(float(whole.std()) - 1) < 1e-2
    first = next(iter(stripes.batches("val", 5, resolution=4)))[0]
    assert first.shape == (5, 1, 4, 4)


def test_training_learns_and_is_the_same_when_broken_off(stripes, tmp_path):
    def broken(epoch: int, _: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    whole = net()
    result = train(whole, stripes, QUICK, seed=3)
    assert result.accuracy == 100.0 and result.images == 4 * 192 and result.precision == "fp32"
    with pytest.raises(KeyboardInterrupt):
        train(net(), stripes, QUICK, seed=3, checkpoint=tmp_path / "c.safetensors", progress=broken)
    resumed = net(seed=9)
    again = train(resumed, stripes, QUICK, seed=3, checkpoint=tmp_path / "c.safetensors")
    assert again.loss == result.loss and all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    with pytest.raises(SourceError, match="with other settings"):
        train(net(), stripes, replace(QUICK, lr=0.2), seed=3, checkpoint=tmp_path / "c.safetensors")


def test_learning_rates():
    sgdr = TrainSettings(epochs=28, lr=1.0, schedule="sgdr", restart=4)
    assert [sgdr.rate(e) for e in (0, 4, 12)] == [1.0, 1.0, 1.0] and sgdr.rate(3.999) < 1e-6 and sgdr.rate(8) == pytest.approx(0.5)
    cosine = TrainSettings(epochs=10, lr=1.0, schedule="cosine", warmup=2)
    assert cosine.rate(1) == pytest.approx(0.5, abs=1e-3) and cosine.rate(6) == pytest.approx(0.5) and cosine.rate(10) == pytest.approx(0)


def test_recalibration_gives_the_statistics_of_the_data(stripes):
    module = net()
    module[1].running_mean.fill_(100.0)
    recalibrate(module, stripes, images=192, batch=192)
    with torch.no_grad():
        seen = module[0](torch.cat([x for x, _ in stripes.batches("train", 64)]))
    assert torch.allclose(module[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(module[1].running_var, seen.var((0, 2, 3)), atol=1e-4) and module[1].momentum == 0.1


def test_weights_come_back_and_broken_files_say_so(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    save_weights(tmp_path / "deep" / "w.safetensors", tensors, {"epoch": 3})
    back, facts = load_weights(tmp_path / "deep" / "w.safetensors")
    assert facts == {"epoch": 3} and all(torch.equal(back[k], v) for k, v in tensors.items())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["w.safetensors"]
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(FormatError, match=r"bad\.safetensors is no safetensors"):
        load_weights(tmp_path / "bad.safetensors")
    with pytest.raises(SourceError, match="no weights at"):
        load_weights(tmp_path / "none.safetensors")


def test_a_wide_classifier_learns_slower_in_proportion(stripes):
    """After one step without momentum, its weights have moved by `head_width` over what it reads; everything else as far as before."""
    moved = []
    for head_width in (None, 1_000, 8):
        module = net(8)
        before = {k: v.detach().clone() for k, v in module.named_parameters()}
        train(module, stripes, TrainSettings(epochs=1, batch=32, images=32, lr=0.1, momentum=0.0, weight_decay=0.0, augment=False,
                                             precision="fp32", head_width=head_width), seed=1)  # fmt: skip
        moved.append({k: v.detach() - before[k] for k, v in module.named_parameters()})
    plain, roomy, slow = moved
    assert all(torch.equal(plain[k], roomy[k]) for k in plain)
    torch.testing.assert_close(slow.pop("5.weight"), plain["5.weight"] * 8 / 32)
    assert all(torch.equal(slow[k], plain[k]) for k in slow)


def test_a_grown_network_inherits_the_corner_it_shares():
    small, large = net(4, seed=1), net(8, seed=2)
    before = large[0].weight.detach().clone()
    copied = inherit(large, small.state_dict())
    assert torch.equal(large[0].weight[:4], small[0].weight) and torch.equal(large[0].weight[4:], before[4:])
    assert copied == sum(t.numel() for t in small.state_dict().values())


@pytest.mark.parametrize("name", SCORES)
def test_scores_leave_the_network_as_it_was_and_repeat(name, stripes):
    module = net(8)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    value = score(name, module, stripes, seed=1, batch=32)
    assert value == score(name, module, stripes, seed=1, batch=32) and np.isfinite(value)
    after = module.state_dict()
    assert all(torch.equal(v, after[k]) and v.dtype == after[k].dtype for k, v in before.items()) and module.training
    assert score("grad_norm", module, stripes, seed=1) == score("grad_norm", net(8), stripes, seed=1)
    assert all(p.grad is None for p in module.parameters())
    assert score(name, net(32), stripes, seed=1, batch=32) > value or name == "grad_norm"


def test_synflow_of_a_linear_chain_is_its_sum_of_paths(stripes):
    torch.manual_seed(0)
    chain: Any = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False), nn.Linear(3, 2, bias=False))
    paths = (chain[2].weight.abs().double() @ chain[1].weight.abs().double()).sum().item()
    assert score("synflow", chain, stripes) == pytest.approx(np.log(2 * paths), rel=1e-9)
    with pytest.raises(SourceError, match="no training-free score"):
        score("magic", chain, stripes)


def test_tables_give_the_published_accuracies(shared_dir):
    from neaptide.search.spaces import load_space

    file = shared_dir / "data" / "nasbench201.npz"
    space, table = load_space("nasbench201"), load_data(file)
    assert isinstance(table, TabularData)
    raw = np.load(file)
    archs = [space.parse(raw["arch_str"][i].decode()) for i in range(0, 15625, 500)]
    assert np.array_equal(table.accuracy(space.encode(archs)), raw["cifar10valid_val_12"][::500].astype(float))
    assert table.of(archs[3], held_out=True) == raw["cifar10_test_200"][1500]
    with pytest.raises(SourceError, match="has no data set 'mnist'"):
        load_data(file, dataset="mnist")


def test_the_real_images_decode(shared_dir):
    data = load_data(shared_dir / "data" / "fashion_mnist.npz", limit=100)
    assert isinstance(data, ImageData) and len(data.train[1]) == 100 and len(data.val[1]) == 6000 and len(data.part("test")[1]) == 10000
    torch.manual_seed(0)
    assert 2 <= evaluate(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), data, images=500) <= 30
