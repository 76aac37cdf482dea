"""Composites, derivative formulas and autograd's engine take the branch of a plain run; memory that no op makes is counted too."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from benchmarks.ground_truth import profiled_peak
from neaptide.compiler.hollow import Hollows, hollow, intercepted, is_hollow
from neaptide.compiler.oracle import with_workspaces
from neaptide.compiler.trace import trace
from neaptide.compiler.training import TrainingLoop, trace_training
from neaptide.passes.liveness import eager_liveness

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args):
        return self.function(self, *args)


X = torch.randn(4, 8)
MASK = torch.rand(40, 50, generator=torch.Generator().manual_seed(1)) > 0.9


def _summed_by_hand(m, x):
    """Values that Python reads past every op."""
    return x * sum(m.b.tolist()) + float(m.b.numpy().sum())


def _forked(m, x):
    with torch.random.fork_rng():
        return m.l(x)


def _copied(m, x):
    return copy.deepcopy(m.l)(x)


def _branched(m, x):
    return torch.cond(x.sum() > -1e9, lambda x: m.l(x).relu(), lambda x: x.sin(), (x,))


def _nearer(score, batch, head, i, j):
    return score - (i - j).abs()


def _packed(m, x, lengths):
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(m.l(packed)[0])[0]


INFERENCE = {
    "linear on transposed": (lambda m, x: m.l(x.transpose(1, 2)), {"l": nn.Linear(16, 32)}, lambda: (torch.randn(2, 16, 8),)),
    "linear on strided": (lambda m, x: m.l(x[:, ::2]), {"l": nn.Linear(16, 32)}, lambda: (torch.randn(3, 8, 16),)),
    "gru": (lambda m, x: m.l(x)[0], {"l": nn.GRU(8, 16, 2, batch_first=True, bidirectional=True)}, lambda: (torch.randn(4, 6, 8),)),
    "projected lstm": (lambda m, x: m.l(x)[0], {"l": nn.LSTM(8, 16, proj_size=4, batch_first=True)}, lambda: (torch.randn(4, 6, 8),)),
    "max_pool1d": (lambda m, x: F.max_pool1d(F.relu(x), 3, 2, padding=1, ceil_mode=True), {}, lambda: (torch.randn(2, 4, 33),)),
    "adaptive max_pool1d": (lambda m, x: F.adaptive_max_pool1d(F.relu(x), 5), {}, lambda: (torch.randn(2, 4, 32),)),
    "eigvals": (lambda m, x: torch.linalg.eigvals(x), {}, lambda: (torch.randn(9, 9),)),
    "svdvals": (lambda m, x: torch.linalg.svdvals(x), {}, lambda: (torch.randn(9, 7),)),
    "eigvalsh": (lambda m, x: torch.linalg.eigvalsh(x), {}, lambda: (torch.randn(9, 9),)),
    "one_hot": (lambda m, x: F.one_hot(x, 7), {}, lambda: (torch.randint(7, (20,)),)),
    "mask": (lambda m, x, mask: x[mask], {}, lambda: (torch.randn(40, 50), MASK)),
    "mask of rows": (lambda m, x, mask: x[mask].relu(), {}, lambda: (torch.randn(40, 50), MASK[:, 0])),
    "mask of columns": (lambda m, x, mask: x[:, mask], {}, lambda: (torch.randn(40, 50), MASK[0])),
    "written by mask": (lambda m, x, mask: x.relu().index_put((mask,), x.sum()), {}, lambda: (torch.randn(40, 50), MASK)),
    "scattered by mask": (lambda m, x, mask: x.relu().masked_scatter_(mask, x), {}, lambda: (torch.randn(40, 50), MASK)),
    "mask of what is not known": (lambda m, x, mask: torch.rand_like(x)[mask], {}, lambda: (torch.randn(40, 50), MASK)),
    "split where a tensor says": (lambda m, x, n: [p * 2 for p in torch.tensor_split(x, n)], {}, lambda: (X, torch.tensor([1, 3]))),
    "nonzero": (lambda m, x, mask: mask.nonzero() + 1, {}, lambda: (torch.randn(40, 50), MASK)),
    "masked_select": (lambda m, x, mask: x.masked_select(mask), {}, lambda: (torch.randn(40, 50), MASK)),
    "unique": (lambda m, x: torch.unique(x)[0], {}, lambda: (torch.randint(5, (64,)),)),
    "repeated": (lambda m, x, n: x.repeat_interleave(n, 0), {}, lambda: (torch.randn(3, 8), torch.tensor([0, 5, 1]))),
    "bincount": (lambda m, x: torch.bincount(x), {}, lambda: (torch.tensor([3, 9, 9, 1]),)),
    "checkpointed": (lambda m, x: checkpoint(m.l, x, use_reentrant=False), {"l": nn.Linear(8, 8)}, lambda: (torch.randn(4, 8),)),
    "forked random state": (_forked, {"l": nn.Linear(8, 8)}, lambda: (torch.randn(4, 8),)),
    "copied module": (_copied, {"l": nn.Linear(8, 8)}, lambda: (torch.randn(4, 8),)),
    "condition": (_branched, {"l": nn.Linear(8, 8)}, lambda: (X,)),
    "flex attention": (lambda m, x: flex_attention(x, x, x, score_mod=_nearer), {}, lambda: (torch.randn(1, 2, 16, 8),)),
    "scripted part": (lambda m, x: m.l(x).relu(), {"l": torch.jit.script(nn.Linear(8, 8))}, lambda: (X,)),
    "compiled part": (lambda m, x: m.l(x).relu(), {"l": torch.compile(nn.Linear(8, 8), backend="eager")}, lambda: (X,)),
    "packed": (_packed, {"l": nn.LSTM(8, 8)}, lambda: (torch.randn(7, 3, 8), torch.tensor([7, 2, 5]))),
    "read by Python": (_summed_by_hand, {"b": torch.arange(4.0)}, lambda: (torch.randn(4, 8),)),
    "ctc": (
        lambda m, x, y, n, k: F.ctc_loss(x.log_softmax(2), y, n, k),
        {},
        lambda: (torch.randn(30, 4, 9), torch.randint(1, 9, (4, 12)), torch.full((4,), 30), torch.tensor([3, 12, 7, 1])),
    ),
}  # fmt: skip


def called(case):
    function, parts, arguments = INFERENCE[case]
    torch.manual_seed(0)
    return Net(function, **copy.deepcopy(parts)).eval(), arguments()


@pytest.fixture(scope="module")
def calls(one_thread, tmp_path_factory):
    """The graph of each case; all kernels measured at once."""
    graphs = [trace(*called(case)) for case in INFERENCE]
    return dict(zip(INFERENCE, with_workspaces(graphs, cache_dir=tmp_path_factory.mktemp("kernels")), strict=True))


@pytest.mark.parametrize("case", INFERENCE)
def test_peak_of_a_call_is_the_profilers(case, calls):
    graph, (model, args) = calls[case], called(case)
    assert graph.meta["kernels"]["unmeasured"] == {} and "bounds" not in graph.meta
    with torch.no_grad():
        model(*args)
        assert eager_liveness(graph).peak == profiled_peak(lambda: model(*args)).nbytes


def _rows(m, x):
    rows = torch.zeros(4, 3, 8)
    for t in range(3):
        rows[:, t] = m.l(x)
    return rows


def _half(m, x):
    out = torch.zeros(4, 9)
    out[:, :8] = m.l(x)
    return out


COLUMNS = torch.tensor([3, 1, 1, 7, 0])
TRAINING = {
    "slice written": (_half, {}),
    "rows written in a loop": (_rows, {}),
    "counted batches": (lambda m, x: m.n(m.l(x)), {"n": nn.BatchNorm1d(8, momentum=None)}),
    "batch norm first": (lambda m, x: m.n(x), {"n": nn.BatchNorm1d(8)}),
    "group norm first": (lambda m, x: m.n(x), {"n": nn.GroupNorm(2, 8)}),
    "max": (lambda m, x: m.l(x).max(1)[0], {}),
    "sort": (lambda m, x: m.l(x).sort(1)[0], {}),
    "topk": (lambda m, x: m.l(x).topk(3, 1)[0], {}),
    "index_select": (lambda m, x: m.l(x).index_select(1, COLUMNS), {}),
    "advanced indexing": (lambda m, x: m.l(x)[:, COLUMNS], {}),
    "gather": (lambda m, x: m.l(x).gather(1, COLUMNS.expand(4, 5)), {}),
    "prod": (lambda m, x: m.l(x).sigmoid().prod(1), {}),
    "cumprod": (lambda m, x: m.l(x).sigmoid().cumprod(1), {}),
    "trace": (lambda m, x: (m.l(x).t() @ m.l(x)).trace(), {}),
    "gradients that meet": (lambda m, x: (y := m.l(x)) * 2 + y.relu() + y.sin(), {}),
    "masked_scatter": (lambda m, x: m.l(x).masked_scatter(MASK[:4, :8], m.l(x) * 2), {}),
    "differences": (lambda m, x: (y := m.l(x))[1:] - y[:-1], {}),
    "cumprod of the weights": (lambda m, x: m.l.weight.cumprod(0) @ x.t(), {}),
    "dropped by a known mask": (lambda m, x: m.l(x)[COLUMNS[:4] > 0], {}),
}


def trained(case):
    function, parts = TRAINING[case]
    return Net(function, l=nn.Linear(8, 8), **copy.deepcopy(parts)).train()


@pytest.fixture(scope="module")
def steps(one_thread, tmp_path_factory):
    """The graph of the first step of each case; all kernels measured at once."""
    graphs = [trace_training(trained(case), (X,), optimizer="sgd:lr=0.1", step=1) for case in TRAINING]
    return dict(zip(TRAINING, with_workspaces(graphs, cache_dir=tmp_path_factory.mktemp("kernels")), strict=True))


@pytest.mark.parametrize("case", TRAINING)
def test_peak_of_a_step_is_the_profilers(case, steps):
    for model in (trained(case), trained(case)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        truth = profiled_peak(lambda model=model, optimizer=optimizer: TrainingLoop().step(model, (X,), {}, optimizer)).nbytes
    assert eager_liveness(steps[case]).peak == truth


class Routed(nn.Module):
    """Rows go to one expert each, by values that are known in inference, and dropped out in training."""

    def __init__(self):
        super().__init__()
        self.gate, self.drop = nn.Linear(8, 3), nn.Dropout(0.5)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        best, out = self.gate(self.drop(x)).argmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = torch.where(best == i)[0]
            out[rows] = expert(x[rows])
        return out


def test_rows_routed_by_random_values_are_a_bound_in_training():
    torch.manual_seed(0)
    model, x = Routed(), torch.randn(16, 8)
    graph = trace_training(model, (x,), optimizer="sgd:lr=0.1")
    assert graph.meta["bounds"] is True and any("upper bound" in a["what"] for a in graph.meta["assumptions"])
    model.drop.p = 0.0
    assert "bounds" not in trace_training(model, (x,), optimizer="sgd:lr=0.1").meta


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8, 8)
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.steps += 1
        return self.l(x) if self.steps == 1 else self.l(x).sin().cos()


def test_a_counter_has_counted_in_the_second_step():
    ops = [[n.op for n in trace_training(Counting(), (X,), optimizer="sgd:lr=0.1", step=s).nodes] for s in (1, 2)]
    assert ["aten.sin.default" in names for names in ops] == [False, True]


def test_a_recording_leaves_torch_as_it_was():
    names = ("tolist", "numpy", "__array__", "_make_subclass", "__deepcopy__", "__repr__")
    before = [vars(torch.Tensor).get(name) for name in names], torch.get_rng_state, torch.max_pool1d, torch.ctc_loss
    layer = nn.Linear(8, 8)
    model = Net(lambda m, x: m.l(x), l=layer)
    trace(model, (torch.randn(2, 8),))
    with pytest.raises(Exception, match="no such layer"):
        trace(Net(lambda m, x: (_ for _ in ()).throw(ValueError("no such layer"))), (torch.randn(2, 8),))
    after = [vars(torch.Tensor).get(name) for name in names], torch.get_rng_state, torch.max_pool1d, torch.ctc_loss
    assert before == after
    assert torch.equal(model(torch.ones(2, 8)), F.linear(torch.ones(2, 8), layer.weight, layer.bias))


def test_hollow_tensors_have_no_memory_and_are_never_written():
    x = hollow(torch.float32, (1 << 20, 1 << 20), (1 << 20, 1))
    assert x.untyped_storage().nbytes() == 1 << 42 and type(x) is torch.Tensor and x.device.type == "cpu"
    assert is_hollow(x) and is_hollow(x[1:]) and not is_hollow(torch.zeros(2))
    with pytest.raises(RuntimeError, match="data pointer"):
        x[0, :2].add_(1)
    with pytest.raises(RuntimeError, match="data pointer"):
        x.numpy()


def test_views_and_ties_stay_in_stand_ins():
    hollows, base = Hollows(), torch.randn(6, 4)
    a, b = hollows.of(base), hollows.of(base[2:].t())
    assert a.untyped_storage()._cdata == b.untyped_storage()._cdata
    assert (b.shape, b.stride(), b.storage_offset()) == ((4, 4), (1, 4), 8)
    assert hollows.of(base) is a and hollows.of(a) is a and hollows.value(a) is base
    weight = hollows.of(nn.Parameter(base))
    assert isinstance(weight, nn.Parameter) and weight.requires_grad and weight.is_leaf


def test_another_thread_computes_meanwhile():
    seen, done = [], []
    with intercepted(lambda op, args, kwargs: seen.append(str(op)) or op(*args, **kwargs)):
        thread = threading.Thread(target=lambda: done.append((torch.ones(3) * 2).tolist()))
        thread.start()
        thread.join()
        torch.ones(2)
    assert done == [[2.0, 2.0, 2.0]] and seen == ["aten.ones.default"]
