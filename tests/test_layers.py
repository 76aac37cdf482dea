"""`LayerGraph` writes what the recorder records, to the last id."""

from dataclasses import replace

import pytest

from neaptide.compiler.count import count
from neaptide.search.spaces.layers import LayerGraph

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def assert_same_graph(ours, traced):
    """Equal tables, ids included; a trace adds the line of the user's source to each node."""
    assert [replace(n, source="") for n in traced.nodes] == list(ours.nodes)
    assert traced.tensors == ours.tensors
    assert traced.storages == ours.storages
    assert (traced.inputs, traced.outputs, traced.name) == (ours.inputs, ours.outputs, ours.name)


class Convs(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.Hardswish(inplace=True)
        self.deep = nn.Conv2d(16, 16, 5, 1, 4, dilation=2, groups=16, bias=False)
        self.plain = nn.BatchNorm2d(16, eps=1e-3, momentum=0.01, affine=False)
        self.six = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.six(self.plain(self.deep(x)))
        s = self.reduce(self.pool(y))
        y = y + x
        y = F.relu(y, inplace=True)
        return self.head(torch.flatten(self.pool(y), 1)), F.hardsigmoid(s, inplace=True)


def convs(net):
    x = net.conv2d(net.input, 16, 3, "stem", stride=2)
    x = net.hardswish(net.batch_norm(x, "norm"), "act", inplace=True)
    y = net.relu6(
        net.batch_norm(net.conv2d(x, 16, 5, "deep", dilation=2, groups=16), "plain", eps=1e-3, momentum=0.01, affine=False), "six"
    )
    s = net.conv2d(net.global_avg_pool(y, "pool"), 8, 1, "reduce", bias=True)
    y = net.relu(net.add(y, x, ""), "", inplace=True)
    out = net.linear(net.flatten(net.global_avg_pool(y, "pool"), ""), 10, "head")
    return out, net.hardsigmoid(s, "", inplace=True)


class Shapes(nn.Module):
    def __init__(self):
        super().__init__()
        self.highest = nn.MaxPool2d(3, 1, 1)
        self.halve = nn.MaxPool2d(2)
        self.mean = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.ceil = nn.AvgPool2d(2, 2, ceil_mode=True)
        self.even = nn.AvgPool2d(3, 1, 1)
        self.out = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        a = F.relu(x[:, :, 1:, 1:])
        b = x[:, :, ::2, ::2].mul(0.0)
        c = F.pad(b, (0, 0, 0, 0, 0, 3))
        d = self.mean(self.highest(x))
        d += b
        d *= b
        e = torch.cat([d, b], 1)
        e = sum([e, c]) * c
        f = F.silu(torch.sigmoid(self.even(self.ceil(a))))
        return self.out(torch.flatten(F.adaptive_avg_pool2d(e, 1), 1)), self.halve(f), F.relu6(d, inplace=False)


def shapes(net):
    x = net.input
    a = net.relu(net.slice(net.slice(x, 2, "", start=1), 3, "", start=1), "")
    b = net.mul_number(net.slice(net.slice(x, 2, "", step=2), 3, "", step=2), 0.0, "")
    c = net.pad(b, (0, 0, 0, 0, 0, 3), "")
    d = net.avg_pool(net.max_pool(x, 3, "highest", stride=1, padding=1), 3, "mean", stride=2, padding=1, count_include_pad=False)
    d = net.mul(net.add(d, b, "", inplace=True), b, "", inplace=True)
    e = net.cat([d, b], "")
    e = net.mul(net.add(net.add_number(e, 0, ""), c, ""), c, "")
    f = net.silu(net.sigmoid(net.avg_pool(net.avg_pool(a, 2, "ceil", ceil_mode=True), 3, "even", stride=1, padding=1), ""), "")
    out = net.linear(net.flatten(net.global_avg_pool(e, ""), ""), 4, "out", bias=False)
    return out, net.max_pool(f, 2, "halve"), net.relu6(d, "")


@pytest.mark.parametrize(("module", "write", "shape"), [(Convs, convs, (1, 3, 33, 33)), (Shapes, shapes, (2, 3, 12, 11))])
def test_layers_are_those_of_the_trace(module, write, shape):
    from neaptide import trace

    net = LayerGraph(module.__name__, shape)
    ours = net.build(*write(net), check=True)
    traced = trace(module().eval(), (torch.zeros(shape),))
    assert_same_graph(ours, traced)
    assert (count(ours).macs, count(ours).elementwise_flops) == (count(traced).macs, count(traced).elementwise_flops)
    assert not count(ours).unknown
