"""Running in the arena: bit for bit eager's results, in any order, and wrong plans do not pass unseen."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neaptide.compiler.errors import NeaptideError, OrderError, PlanError, TraceError
from neaptide.compiler.trace import trace
from neaptide.passes import execute
from neaptide.passes.allocate import allocate
from neaptide.passes.execute import execute_in_arena
from neaptide.passes.liveness import liveness
from neaptide.passes.schedule import schedule
from neaptide.testing.generate import random_order


def orders(graph):
    """Planned, traced and three random orders."""
    return [schedule(graph, time_limit=1.0).order, None, *(random_order(random.Random(seed).randrange, graph) for seed in range(3))]


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.pool = nn.BatchNorm2d(16), nn.MaxPool2d(3, 1, 1)

    def forward(self, x):
        y = torch.cat([self.a(x), self.c(F.relu(self.b(x), inplace=True))], 1)
        return self.pool(self.norm(y)).relu_(), y.mean((2, 3))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(32, 96), nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x, *, mask=None):
        q, k, v = self.qkv(self.norm(x)).view(2, 5, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return {"y": x + self.out(y.transpose(1, 2).reshape(2, 5, 32)), "k": k}


class Windows(nn.Module):
    """Writes through views, reads before and after, overlapping windows."""

    def forward(self, x):
        y = torch.zeros(4, 6)
        y[1:3, ::2] = x[:2, :3]
        z = y + 1
        y[2].mul_(3)
        w = y.t()[1:4]
        y.add_(z)
        return w.contiguous(), z, y.unfold(1, 3, 1).sum(-1), y.expand(2, 4, 6).clone()


class Counter(nn.Module):
    """A buffer that the forward pass writes, and an input that it writes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(3))

    def forward(self, x):
        self.steps += 1
        x.mul_(2)
        return x + self.steps


class Spectrum(nn.Module):
    def forward(self, x):
        f = torch.fft.rfft(x)
        return torch.fft.irfft(f * f.conj(), n=x.shape[-1]), f.real.bfloat16(), (x > 0), x.argmax(-1)


class Draws(nn.Module):
    def forward(self, x):
        a = torch.rand_like(x)
        b = F.dropout(x, 0.5, training=True)
        return a + b, torch.randn(3), x.bernoulli()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.gru = nn.Embedding(20, 16), nn.LSTM(16, 8, 2, batch_first=True), nn.GRU(8, 4)

    def forward(self, ids):
        y, (h, c) = self.rnn(self.embed(ids))
        return self.gru(y)[0], h, c


class Forked(nn.Module):
    """A copy of the random state, which is memory that no operator makes."""

    def forward(self, x):
        with torch.random.fork_rng():
            y = x.relu()
        return y + 1


class Losses(nn.Module):
    """Kernels that write their results with an `out=` form of their own, which uses the memory as scratch or asks for a layout."""

    def forward(self, x, y):
        losses = [F.binary_cross_entropy(x, y, weight=w, reduction=r) for w in (None, y + 1) for r in ("none", "mean", "sum")]
        losses += [f(x, y, reduction=r) for f in (F.l1_loss, F.huber_loss, F.smooth_l1_loss, F.mse_loss) for r in ("none", "mean", "sum")]
        return losses, torch.linalg.qr(x), torch.linalg.qr(x, "r")[1], torch.linalg.svd(x), F.logsigmoid(x), F.hardtanh(x, 0.2, 0.7)


CASES = {
    "losses": (Losses, (torch.rand(7, 5) * 0.9 + 0.05, (torch.rand(7, 5) > 0.5).float()), {}),
    "forked": (Forked, (torch.randn(3, 4),), {}),
    "inception": (Inception, (torch.randn(2, 4, 9, 9),), {}),
    "attention": (Attention, (torch.randn(2, 5, 32),), {"mask": torch.randn(5, 5)}),
    "windows": (Windows, (torch.randn(3, 5),), {}),
    "counter": (Counter, (torch.rand(3),), {}),
    "spectrum": (Spectrum, (torch.randn(2, 16),), {}),
    "draws": (Draws, (torch.rand(50),), {}),
    "recurrent": (Recurrent, (torch.randint(0, 20, (3, 7)),), {}),
}


def case(name):
    torch.manual_seed(1)
    build, args, kwargs = CASES[name]
    return build().eval(), tuple(a.clone() for a in args), kwargs


def eager(name):
    """What the model returns, on inputs and a model of its own."""
    model, args, kwargs = case(name)
    torch.manual_seed(0)
    with torch.no_grad():
        return model(*args, **kwargs)


@pytest.mark.parametrize("inputs", ["planned", "caller"])
@pytest.mark.parametrize("name", CASES)
def test_five_orders_in_the_arena_equal_eager_bit_for_bit(name, inputs):
    model, args, kwargs = case(name)
    graph = trace(model, args, kwargs)
    expected = eager(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for order in orders(graph):
        plan = allocate(graph, order, inputs=inputs)
        run = execute_in_arena(graph, plan, args, kwargs)
        assert run.difference(expected) is None
        assert run.arena_bytes == plan.arena
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(args, case(name)[1], strict=True))


def test_written_weights_and_inputs_are_reported_and_the_originals_kept():
    model, args, _ = case("counter")
    graph = trace(model, args)
    run = execute_in_arena(graph, allocate(graph, inputs="caller"), args)
    assert run.written["steps"].tolist() == [1, 1, 1]
    assert torch.equal(run.written["x"], args[0] * 2)
    assert model.steps.tolist() == [0, 0, 0]


def test_the_generator_is_seeded_and_put_back():
    model, args, _ = case("draws")
    graph = trace(model, args)
    plan = allocate(graph)
    state = torch.get_rng_state()
    first, second, other = (execute_in_arena(graph, plan, args, seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.matches(second.outputs) and not first.matches(other.outputs)


def test_what_is_copied_is_counted():
    model, args, _ = case("inception")
    graph = trace(model, args)
    run = execute_in_arena(graph, allocate(graph), args)
    assert run.copied == {"aten.convolution.default": 3 * 2 * 8 * 81 * 4}
    assert run.transient_bytes == 2 * 8 * 81 * 4
    assert run.native >= 4


# ---- wrong plans, wrong graphs, wrong inputs --------------------------------------------------------------------------


def chain():
    class Chain(nn.Module):
        def forward(self, x):
            a = x + 1
            b = a * 2
            c = b - 3
            return a * c

    x = torch.randn(64)
    return trace(Chain(), x), x, Chain()(x)


def test_a_plan_that_overlaps_is_refused():
    graph, x, _ = chain()
    plan = allocate(graph)
    with pytest.raises(PlanError, match="overlap"):
        execute_in_arena(graph, replace(plan, offsets=dict.fromkeys(plan.offsets, 0)), x)
    with pytest.raises(OrderError):
        execute_in_arena(graph, plan, x, order=[3, 2, 1, 0])


def test_the_poison_would_show_an_overlap_that_the_checker_missed(monkeypatch):
    graph, x, expected = chain()
    plan = allocate(graph)
    monkeypatch.setattr(execute, "verify_plan", lambda graph, plan: None)
    assert execute_in_arena(graph, plan, x).matches(expected)
    storage = [graph.tensors[n.outputs[0]].storage for n in graph.nodes]
    for early, late in ((0, 1), (0, 2), (1, 2)):
        wrong = {**plan.offsets, storage[late]: plan.offsets[storage[early]]}
        difference = execute_in_arena(graph, replace(plan, offsets=wrong), x).difference(expected)
        assert difference is not None and difference.startswith("output 0 differs in ")


def test_the_poison_would_show_a_lifetime_that_ends_too_early(monkeypatch):
    graph, x, expected = chain()
    plan = allocate(graph)
    first = graph.tensors[graph.nodes[0].outputs[0]].storage
    ranges = liveness(graph)
    death = ranges.death.copy()
    death[first] = 2  # it is read again by node 3
    monkeypatch.setattr(execute, "liveness", lambda *args, **kwargs: replace(ranges, death=death))
    assert not execute_in_arena(graph, plan, x).matches(expected)


def test_an_alias_that_the_op_does_not_make_is_noticed():
    graph, x, _ = chain()
    node = graph.nodes[1]
    tensors = list(graph.tensors)
    tensors[node.outputs[0]] = replace(tensors[node.outputs[0]], storage=tensors[node.inputs[0]].storage)
    wrong = replace(graph, tensors=tuple(tensors))
    with pytest.raises(PlanError, match=r"node 1 \(aten.mul.Tensor\).*new memory where the graph has an alias"):
        execute_in_arena(wrong, allocate(wrong), x)


def test_inputs_that_do_not_fit_are_named():
    graph, x, _ = chain()
    plan = allocate(graph)
    with pytest.raises(NeaptideError, match="takes 1 input tensors; 2 were given"):
        execute_in_arena(graph, plan, (x, x))
    with pytest.raises(NeaptideError, match=r"input 'x' .* is float32 \[64\]; given was float64 \[64\]"):
        execute_in_arena(graph, plan, x.double())


def test_a_model_without_values_says_so():
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    graph = trace(model, torch.randn(2, 4))
    with pytest.raises(TraceError, match="needs the values of parameter 'weight'"):
        execute_in_arena(graph, allocate(graph), torch.randn(2, 4))


# ---- random programs --------------------------------------------------------------------------------------------------


def steps(draw_int, n):
    """A program of n steps: (name, choices); names with `_` write in place."""
    names = ("add", "relu_", "slice", "t", "cat", "add_", "mul", "copy_", "reshape", "sum", "fill_", "clone", "expand", "mm", "chunk")
    return [(names[draw_int(len(names))], [draw_int(1000) for _ in range(3)]) for _ in range(n)]


class Program(nn.Module):
    """Runs steps over a pool of 2-d tensors; results and views of them join the pool."""

    def __init__(self, program):
        super().__init__()
        self.program = program
        self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4) / 7, requires_grad=False)

    def forward(self, x):
        pool = [x, self.weight + 0, x * 2]
        for name, (i, j, k) in self.program:
            a, b = pool[i % len(pool)], pool[j % len(pool)]
            fits = a.shape == b.shape
            overlap = 0 in a.stride() or 0 in b.stride()
            if name in ("add", "mul"):
                pool.append((a + b if name == "add" else a * b) if fits else a - k)
            elif name == "relu_" and not overlap:
                pool.append(a.relu_())
            elif name == "slice" and a.shape[0] > 1:
                pool.append(a[k % a.shape[0] :, ::2])
            elif name == "t":
                pool.append(a.t())
            elif name == "cat" and a.shape[1] == b.shape[1] and a.numel() + b.numel() < 300:
                pool.append(torch.cat([a, b]))
            elif name in ("add_", "copy_") and fits and not overlap:
                pool.append(a.add_(b.clone()) if name == "add_" else a.copy_(b.clone()))
            elif name == "reshape":
                pool.append(a.reshape(-1, 1))
            elif name == "sum":
                pool.append(a.sum(k % 2, keepdim=True))
            elif name == "fill_" and not overlap:
                a[:1].fill_(k / 100)
            elif name == "clone":
                pool.append(a.clone())
            elif name == "expand" and a.shape[1] == 1 and a.shape[0] < 50:
                pool.append(a.expand(-1, 3))
            elif name == "mm" and a.shape[1] == b.shape[0] and a.shape[0] * b.shape[1] < 300:
                pool.append((a @ b).tanh())
            elif name == "chunk":
                pool.extend(a.chunk(2, 1))
        return pool[-4:]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_programs_of_views_and_writes(data):
    program = steps(lambda n: data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, 14)))
    model, x = Program(program), torch.linspace(-2, 3, 12).reshape(3, 4)
    expected = model(x.clone())
    graph = trace(model, x)
    for order in (None, random_order(random.Random(data.draw(st.integers(0, 99))).randrange, graph)):
        for inputs in ("planned", "caller"):
            plan = allocate(graph, order, inputs=inputs)
            assert execute_in_arena(graph, plan, x).difference(expected) is None
