"""`mode="step"`: whole training steps of the user's own, and what a step lets go of that it did not make."""

import functools
import itertools

import pytest
import torch
from torch import nn

import neaptide
from benchmarks.ground_truth import profiled_events, profiled_peak
from neaptide.compiler.oracle import with_workspaces
from neaptide.compiler.trace import trace
from neaptide.compiler.training import trace_training
from neaptide.passes.liveness import eager_liveness

pytestmark = pytest.mark.usefixtures("one_thread")


def layers(*sizes):
    return nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)))


def adversarial():
    """Two models, two optimizers, an average of weights kept by hand."""
    g, d = layers(16, 64, 32), layers(32, 64, 1)
    of_g, of_d = torch.optim.Adam(g.parameters()), torch.optim.AdamW(d.parameters())
    kept = [p.detach().clone() for p in g.parameters()]

    def step(noise, real):
        fake = g(noise)
        of_d.zero_grad()
        ((d(real) - 1).square().mean() + d(fake.detach()).square().mean()).backward()
        of_d.step()
        of_g.zero_grad()
        loss = (d(fake) - 1).square().mean()
        loss.backward()
        of_g.step()
        with torch.no_grad():
            for average, p in zip(kept, g.parameters(), strict=True):
                average.lerp_(p, 0.01)
        return loss.item()

    return step, (torch.randn(8, 16), torch.randn(8, 32)), [g, d], [of_g, of_d], kept


def accumulated():
    """Four small batches, clipped gradients, a schedule, an object that holds it all."""

    class Trainer:
        def __init__(self):
            self.model = layers(12, 48, 12)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

        def step(self, batches):
            for part in batches.chunk(4):
                nn.functional.mse_loss(self.model(part), part).div(4).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    trainer = Trainer()
    return trainer.step, (torch.randn(16, 12),), [trainer.model], [trainer.optimizer], []


def stepped_in_backward():
    """An optimizer for each parameter, stepped and its gradient dropped as soon as it is there."""
    model = layers(32, 32, 32, 32, 32)
    optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}

    def hook(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)

    def step(model, x):
        model(x).sum().backward()

    return functools.partial(step, model), (torch.randn(4, 32),), [model], list(optimizers.values()), []


STEPS = {"adversarial": adversarial, "accumulated": accumulated, "stepped in backward": stepped_in_backward}


def made(case):
    torch.manual_seed(0)
    return STEPS[case]()


@pytest.fixture(scope="module")
def graphs(one_thread, tmp_path_factory):
    traced = [trace(step, args, mode="step") for step, args, *_ in map(made, STEPS)]
    return dict(zip(STEPS, with_workspaces(traced, cache_dir=tmp_path_factory.mktemp("kernels")), strict=True))


@pytest.mark.parametrize("case", STEPS)
def test_peak_of_a_step_is_the_profilers(case, graphs):
    step, args, *_ = made(case)
    step(*args)
    assert eager_liveness(graphs[case]).peak == profiled_peak(lambda: step(*args)).nbytes
    assert {n.phase for n in graphs[case].nodes} == {"forward", "backward", "optimizer"}


@pytest.mark.parametrize("case", STEPS)
def test_everything_is_given_back(case):
    step, args, models, optimizers, others = made(case)
    step(*args)
    tensors = [t for m in models for t in m.state_dict(keep_vars=True).values()] + others
    before = [(t.data_ptr(), t.detach().clone(), t.grad if t.grad is None else t.grad.clone()) for t in tensors]
    states = [{p: dict(s.items()) for p, s in o.state.items()} for o in optimizers]
    trace(step, args, mode="step")
    for t, (address, value, grad) in zip(tensors, before, strict=True):
        assert t.data_ptr() == address and torch.equal(t, value)
        assert (t.grad is None) == (grad is None) and (grad is None or torch.equal(t.grad, grad))
    for optimizer, state in zip(optimizers, states, strict=True):
        assert {p: {k: id(v) for k, v in s.items()} for p, s in optimizer.state.items()} == {
            p: {k: id(v) for k, v in s.items()} for p, s in state.items()
        }
    twin, twin_args, twin_models, *_ = made(case)
    for run, given in ((twin, twin_args), (twin, twin_args)):
        run(*given)
    step(*args)
    for a, b in zip(models, twin_models, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_hooks_run_in_training_too(tmp_path):
    step, (x,), (model,), optimizers, _ = made("stepped in backward")
    graph = with_workspaces([trace_training(model, (x,))], cache_dir=tmp_path)[0]
    assert not any(o.state for o in optimizers)
    step(x)
    held = []

    def call():
        held[:] = [model(x)]
        held.append(held[0].sum())
        held[1].backward()

    assert eager_liveness(graph).peak == profiled_peak(call).nbytes


class Replacing(torch.optim.Optimizer):
    """Its state is a new tensor in each step."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["m"] = state["m"] * 0.9 + p.grad if "m" in state else p.grad.clone()
                p.add_(state["m"], alpha=-0.1)


def test_state_that_is_replaced_is_let_go(tmp_path):
    x = torch.randn(4, 32)
    graph = with_workspaces([trace_training(layers(*[32] * 7), (x,), optimizer=Replacing)], cache_dir=tmp_path)[0]

    def steps(model, optimizer):
        for _ in range(2):
            y = model(x)
            loss = y.sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    for _ in range(2):
        model = layers(*[32] * 7)
        events, _marks = profiled_events(functools.partial(steps, model, Replacing(model.parameters())))
    live = highest = 0
    for _, size, _, _ in events:
        live += size
        highest = max(highest, live)
    state = sum(p.nbytes for p in model.parameters())
    life = eager_liveness(graph)
    assert life.peak + state == highest
    assert all(sum(life.by_role(t).values()) == b and sum(life.by_module(t).values()) == b for t, b in enumerate(life.live.tolist()))


def test_what_is_no_step_is_refused():
    with pytest.raises(neaptide.NeaptideError, match="reaches no module and no tensor"):
        trace(lambda: None, (), mode="step")
    with pytest.raises(neaptide.NeaptideError, match="a Linear is none"):
        trace(nn.Linear(2, 2), (torch.ones(1, 2),), mode="step")
    with pytest.raises(neaptide.NeaptideError, match="give it alone"):
        trace(lambda: None, (), mode="step", optimizer="sgd")
    model = nn.Linear(3, 3)

    def broken(x):
        model(x).sum().backward()
        raise ValueError("no more data")

    with pytest.raises(neaptide.NeaptideError, match=r"test_own_steps\.py:\d+.*no more data"):
        trace(broken, (torch.ones(1, 3),), mode="step")
    assert model.weight.grad is None and torch.isfinite(model.weight).all()
