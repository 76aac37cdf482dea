"""Elastic supernets: subnets in place and taken out, progressive shrinking, two processes, engine `moofa` on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import start_processes
from torch.nn.modules.module import register_module_forward_pre_hook

from neaptide.compiler.errors import BudgetError, SourceError
from neaptide.search.augmentation import Augmentation
from neaptide.search.data import ImageData
from neaptide.search.engine import Proposal
from neaptide.search.engines import moofa as engine_module
from neaptide.search.evaluate import weights_path
from neaptide.search.run import search
from neaptide.search.spaces import load_space
from neaptide.search.spaces.mobile import MBConv
from neaptide.search.spaces.ofa import OFAMobileNetV3
from neaptide.search.supernets.elastic import ElasticSupernet, largest, load_supernet, sort_channels
from neaptide.search.supernets.phases import SCHEDULES, Phase, Schedule, image_sizes, phase_rows
from neaptide.search.supernets.shrinking import shrink, side_of, subnet_accuracy
from neaptide.search.training import evaluate, recalibrate
from neaptide.search.weights import load_weights, save_weights
from neaptide.testing.spaces import check_graph

# Outputs are compared to the last bit, which how many threads share a convolution may change.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- supernet ---------------------------------------------------------------------------------------------------------

TINY = {
    "resolutions": (8, 12), "strides": (1, 1, 2, 1, 1, 1), "stem_stride": 2, "depths": (1, 2), "classes": 3,
    "widths": (8, 8, 8, 8, 8, 8, 8, 8, 8),
}  # fmt: skip


def elastic(name="moofa", **options):
    space = load_space(name, **{**TINY, **options})
    assert isinstance(space, OFAMobileNetV3)
    return space


def images(n=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    pictures = torch.randint(0, 120, (n, 3, 12, 12), generator=generator, dtype=torch.uint8)
    pictures += (60 * labels).to(torch.uint8).view(-1, 1, 1, 1)
    part = (pictures, labels)
    return ImageData("synthetic", part, (pictures[:48], labels[:48]), part, (0.4,) * 3, (0.2,) * 3, ("a", "b", "c"))


def grown(space, seed=0):
    """A supernet whose kernel maps are no longer the identity, whose norms are no longer plain."""
    torch.manual_seed(seed)
    supernet = ElasticSupernet(space)
    with torch.no_grad():
        for name, tensor in supernet.state_dict().items():
            if name.startswith("maps") or "norm.weight" in name or "norm.bias" in name or "running_mean" in name:
                tensor += 0.2 * torch.randn_like(tensor)
    return supernet


ODD = (5, 12, 17, 13, 28, 9, 44, 20, 12)  # widths that are no multiples of 8


@pytest.mark.parametrize("name, expands", [("moofa", (1, 1.5, 2)), ("ofa_mbv3", (1, 1.05)), ("compofa", (1, 3)), ("moofa", (0.5, 1))])
def test_an_expansion_of_one_takes_its_inputs_whatever_their_number(name, expands, rng):
    space = elastic(name, widths=ODD, expands=expands)
    for arch in [*space.decode(space.sample_rows(rng, 3)), largest(space)]:
        check_graph(space, arch)
        for path, layer in space.chain(arch).parts:
            if isinstance(layer, MBConv) and path.startswith("stages."):
                _, stage, block = path.split(".")
                whole = ODD[int(stage) + (2 if int(block) else 1)]
                assert layer.middle == whole if not layer.expand else layer.middle >= whole or expands[0] < 1


@pytest.mark.parametrize(
    "name, options",
    [
        ("moofa", {}),
        ("moofa", {"expands": (1, 1.5, 2)}),
        ("moofa", {"expands": (1, 1.05, 2), "widths": ODD}),
        ("ofa_mbv3", {}),
        ("compofa", {"depths": (1, 2, 3)}),
    ],
)
def test_a_subnet_in_place_is_the_subnet_taken_out(name, options, rng):
    space = elastic(name, **options)
    supernet, data = grown(space), images()
    for arch in [*space.decode(space.sample_rows(rng, 4)), largest(space)]:
        supernet.active = arch
        side = side_of(space, arch, data)
        x = data.normalized(data.val[0][:8], resolution=side)
        module = supernet.extract(arch)
        assert type(module) is type(space.module(arch)) and set(module.state_dict()) == set(space.module(arch).state_dict())
        assert torch.equal(supernet.eval()(x), module.eval()(x))
        recalibrate(supernet, data, images=64, resolution=side)
        recalibrate(module, data, images=64, resolution=side)
        assert torch.equal(supernet.eval()(x), module.eval()(x))
        statistics = supernet.extract(arch).state_dict()
        assert all(torch.equal(statistics[n], t) for n, t in module.state_dict().items() if "running" in n)


def test_smaller_kernels_are_centres_through_their_maps():
    space = elastic()
    supernet = ElasticSupernet(space)
    weight = supernet.net.stages.get_submodule("0.0").depthwise.conv.weight
    genes = [0, *[1] * 5, *[0, 2] * 10]
    three = supernet.extract(space.architecture(genes)).state_dict()["stages.0.0.depthwise.conv.weight"]
    assert torch.equal(three, weight[:, :, 2:5, 2:5])  # maps begin as the identity
    with torch.no_grad():
        seven_to_five = supernet.maps["stages-0-0-7to5"]
        seven_to_five += torch.randn_like(seven_to_five)
        supernet.maps["stages-0-0-5to3"] *= 2
    five = (seven_to_five @ weight[:, 0, 1:6, 1:6].reshape(-1, 25).T).T.reshape(-1, 5, 5)
    three = supernet.extract(space.architecture(genes)).state_dict()["stages.0.0.depthwise.conv.weight"]
    assert torch.allclose(three[:, 0], 2 * five[:, 1:4, 1:4], atol=1e-6)


def test_sorted_channels_leave_the_largest_network_and_put_what_matters_first():
    space = elastic()
    supernet, data = grown(space).eval(), images()
    x = data.normalized(data.val[0][:8])
    before = supernet(x)
    sort_channels(supernet)
    assert torch.allclose(supernet(x), before, atol=1e-5)
    for stage in range(5):
        for block in (0, 1):
            importance = supernet.net.get_submodule(f"stages.{stage}.{block}").project.conv.weight.abs().sum((0, 2, 3))
            assert (importance.diff() <= 0).all()


def test_supernets_know_their_subnets_and_weights():
    space = elastic()
    supernet = ElasticSupernet(space)
    with pytest.raises(SourceError, match="no subnet of this supernet of moofa"):
        supernet.extract(elastic("ofa_mbv3").sample(np.random.default_rng(0)))
    with pytest.raises(SourceError, match="differs"):
        load_supernet(elastic(classes=4), supernet.state_dict())
    with pytest.raises(SourceError, match=r"expansions 0.5, 1 share no weights"):
        ElasticSupernet(elastic(expands=(0.5, 1)))


# ---- progressive shrinking --------------------------------------------------------------------------------------------

SHORT = Schedule(
    (Phase("teacher", 2, 0.05), Phase("kernel", 1, 0.02, 9), Phase("depth", 1, 0.02, 9, 9, subnets=2), Phase("expand", 2, 0.02, 9, 9, 9)),
    batch=32, recalibration=64, random_resized_crop=0.5, brightness=0.2, saturation=0.5, continuous_sizes=True,
)  # fmt: skip


def test_phases_open_one_kind_of_choice_after_another(rng):
    space = elastic(resolutions=(128, 160), depths=(2, 3, 4))
    opened = {p.name: space.settings(phase_rows(space, p, rng, 200)) for p in SCHEDULES["paper"].phases}

    def values(name):
        s = opened[name]
        return [set(np.unique(a[a > 0]).tolist()) for a in (s.kernel, s.depth, s.expand)]

    assert values("teacher") == [{7}, {4}, {4}]
    assert values("kernel") == [{3, 5, 7}, {4}, {4}]
    assert values("depth1") == [{3, 5, 7}, {3, 4}, {4}]
    assert values("depth2") == [{3, 5, 7}, {2, 3, 4}, {4}]
    assert values("expand1") == [{3, 5, 7}, {2, 3, 4}, {3, 4}]
    assert values("expand2") == [{3, 5, 7}, {2, 3, 4}, {2, 3, 4}]
    assert all(len(set(s.resolution.tolist())) == 1 for s in opened.values())


def test_published_schedule():
    phases = SCHEDULES["paper"].phases
    assert [(p.epochs, p.lr, p.warmup, p.warmup_lr, p.subnets) for p in phases] == [
        (180, 3e-2, 0, 3e-3, 1), (120, 3e-3, 5, 3e-3, 1), (25, 2.5e-4, 0, 2.5e-3, 2), (120, 7.5e-4, 5, 7.5e-5, 2),
        (25, 2.5e-4, 0, 2.5e-5, 4), (120, 2.5e-4, 5, 7.5e-5, 4),
    ]  # fmt: skip
    assert phases[3].rate(0) == 7.5e-5 and phases[3].rate(5) == pytest.approx(7.5e-4) and phases[3].rate(120) == pytest.approx(0)

    plan = SCHEDULES["paper"]
    assert plan.augmentation == Augmentation(random_resized_crop=0.08, brightness=32 / 255, saturation=0.5) and plan.continuous_sizes
    assert SCHEDULES["small"].augmentation == Augmentation(pad_and_crop=False)


def test_continuous_sizes_are_all_multiples_of_four_between_the_resolutions(rng):
    space = elastic(resolutions=(10, 22))
    rows = space.sample_rows(rng, 400)
    assert image_sizes(space, rows) == [(10, 22)[r] for r in rows[:, 0]]
    drawn = image_sizes(space, rows, np.random.default_rng(1))
    assert set(drawn) == {10, 12, 16, 20, 22} and drawn == image_sizes(space, rows, np.random.default_rng(1))
    assert {12, 16, 20} <= set(drawn[:20])


@pytest.mark.parametrize("continuous, sizes", [(True, {8, 12, 16}), (False, {8, 16})])
def test_supernets_are_trained_on_those_sizes(continuous, sizes):
    seen = {}

    def look(module, inputs):
        if isinstance(module, ElasticSupernet):
            seen.setdefault(module.training, []).append(tuple(inputs[0].shape))

    handle = register_module_forward_pre_hook(look)
    try:
        shrink(elastic(resolutions=(8, 16)), images(), replace(SHORT, batch=8, continuous_sizes=continuous))
    finally:
        handle.remove()
    assert {side for _, _, side, _ in seen[True]} == sizes
    assert len(seen[False]) == 12 * 4 and set(seen[False]) <= set(seen[True])  # the teacher sees what it teaches


class Killed(Exception):
    pass


def test_a_shrinking_that_was_killed_after_any_epoch_ends_as_one_that_was_not(tmp_path):
    space, data = elastic(), images()
    told = []
    whole = shrink(space, data, SHORT, seed=3, progress=lambda *what: told.append(what)).state_dict()
    assert [(phase, epoch) for phase, epoch, _ in told] == [
        ("teacher", 1),
        ("teacher", 2),
        ("kernel", 1),
        ("depth", 1),
        ("expand", 1),
        ("expand", 2),
    ]

    def kill(*_):
        raise Killed

    for _ in told:
        with pytest.raises(Killed):
            shrink(space, data, SHORT, seed=3, folder=tmp_path, progress=kill)
    resumed = shrink(space, data, SHORT, seed=3, folder=tmp_path, progress=kill).state_dict()
    assert all(torch.equal(resumed[name], t) for name, t in whole.items())
    with pytest.raises(SourceError, match="another space, schedule or seed"):
        shrink(space, data, SHORT, seed=4, folder=tmp_path)


def test_subnets_learn_by_shrinking():
    space, data = elastic(), images()
    longer = Schedule(tuple(replace(p, epochs=3 * p.epochs) for p in SHORT.phases), batch=32, augment=False)
    supernet = shrink(space, data, longer)
    smallest_arch = space.decode(np.eye(1, len(space.cardinalities), dtype=np.int16))[0]  # at the larger resolution
    assert subnet_accuracy(supernet, smallest_arch, data, recalibration=96) > 60
    assert subnet_accuracy(supernet, largest(space), data, recalibration=96) > 60


UNEVEN = 97  # images: the last of a batch of 32 would leave one process without any


def _one_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    losses = []
    plan = replace(SHORT, batch=16)
    supernet = shrink(elastic(), images(UNEVEN), plan, seed=1, folder=f"{folder}/run", progress=lambda *told: losses.append(told[2]))
    save_weights(f"{folder}/rank{rank}.safetensors", supernet.state_dict(), {"losses": losses})
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_supernet(tmp_path):
    method = "spawn" if torch.cuda.is_available() else "fork"  # autograd's threads, which a GPU brings, do not survive a fork
    start_processes(_one_of_two, (str(tmp_path),), nprocs=2, start_method=method)
    (first, told), (second, other) = (load_weights(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    assert np.isfinite([told["losses"], other["losses"]]).all() and told["losses"] != other["losses"]  # each on images of its own
    assert all(torch.equal(first[name], t) and t.isfinite().all() for name, t in second.items()) and len(first) == len(second)
    kept, facts = load_weights(tmp_path / "run" / "supernet.safetensors")
    assert all(torch.equal(kept[f"m.{name}"], t) for name, t in first.items()) and facts["phase"] == 3
    alone = shrink(elastic(), images(UNEVEN), replace(SHORT, batch=16), seed=1).state_dict()
    assert not all(torch.equal(first[name], t) for name, t in alone.items())


# ---- the engine -------------------------------------------------------------------------------------------------------


def test_engine_searches_a_supernet_and_never_leaves_its_limit(tmp_path, monkeypatch):
    monkeypatch.setitem(engine_module.PRESETS, "smoke", {**engine_module.PRESETS["smoke"], "samples": 12, "generations": 5})
    monkeypatch.setattr("neaptide.search.supernets.phases.SCHEDULES", {"smoke": SHORT})
    space, data = elastic(), images()
    arguments = {"constraints": ["peak<=4KiB"], "data": data, "preset": "smoke", "workers": 1}
    result = search(space, "moofa", objectives="accuracy,peak", folder=tmp_path / "a", **arguments)
    assert {t.origin for t in result.trials} == {"balanced", "evolution"} and len(result.trials) > 12
    assert all(t.values["peak"] <= 4096 and t.feasible for t in result.trials)
    assert result.test_accuracy is not None and (tmp_path / "a" / "predictor.safetensors").is_file()
    best = result.best
    assert best is not None
    module = space.module(best.arch)
    module.load_state_dict(load_weights(weights_path(tmp_path / "a", Proposal(best.arch)))[0])
    assert evaluate(module.eval(), data, "test", resolution=side_of(space, best.arch, data)) == result.test_accuracy
    again = search(space, "moofa", objectives="accuracy,peak", folder=tmp_path / "a", resume=True, **arguments)
    assert [t.text for t in again.trials] == [t.text for t in result.trials]


def test_engine_says_what_it_cannot_search(tmp_path):
    with pytest.raises(SourceError, match="not of nasbench201"):
        search("nasbench201", "moofa", data=images(), folder=tmp_path)
    with pytest.raises(SourceError, match=r"128 pixels and more; those of synthetic have 12.*--space-option 'depths=\[1,2\]'"):
        search("moofa", "moofa", data=images(), folder=tmp_path)
    with pytest.raises(SourceError, match="searches for accuracy"):
        search("moofa", "moofa", objectives="macs", folder=tmp_path)
    with pytest.raises(BudgetError, match="least"):
        search(elastic(), "moofa", constraints=["peak<=1KB"], data=images(), folder=tmp_path)
