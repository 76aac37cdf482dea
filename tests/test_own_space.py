"""Spaces given by choices and a module: genes, text, sizes and graphs follow; what is wrong with one is said."""

# ruff: noqa: RUF012

from pathlib import Path

import numpy as np
import pytest

from neaptide.compiler.errors import SourceError
from neaptide.search.spaces import load_space
from neaptide.search.spaces.own import Choice, OwnSpace
from neaptide.testing import check_space

pytestmark = pytest.mark.usefixtures("one_thread")

torch = pytest.importorskip("torch")
EXAMPLE = f"{Path(__file__).parent.parent / 'examples' / 'own_space.py'}:Tiny"


class Stack(OwnSpace):
    choices = {
        "depth": (1, 2, 3),
        "second": Choice((3, 5), when=("depth", (2, 3))),
        "dilated": Choice((False, True), when=("second", (5,))),
        "third": Choice((1, 3, 5), when=("depth", (3,))),
    }

    def build(self, choices):
        kernels = [3, *(choices[name] for name in ("second", "third") if name in choices)]
        spread = 2 if choices.get("dilated") else 1
        return torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, k, padding="same", dilation=spread if k > 1 else 1) for k in kernels))

    def shape(self, choices):
        return (1, 4, 8, 8)


def test_the_example_keeps_the_contract():
    check_space(load_space(EXAMPLE), networks=2)


def test_a_space_without_cuts_keeps_the_contract():
    check_space(Stack())


def test_described_it_is_loaded_again():
    space = load_space(EXAMPLE, classes=7)
    again = load_space(space.describe()["name"], **space.describe()["options"])
    arch = space.sample(np.random.default_rng(0))
    assert again.describe() == space.describe() and again.parse(space.text(arch)) == arch
    assert again.graph(arch).tensors == space.graph(arch).tensors
    assert dict(again.module(arch).named_parameters())["7.bias"].shape == (7,)


def test_size_counts_what_matters():
    """depth 1: 1; depth 2: kernel 3, or 5 dilated or not: 3; depth 3: those times three."""
    space = Stack()
    assert space.size == len(list(space.enumerate())) == 1 + 3 + 9
    assert load_space(EXAMPLE).size == len(list(load_space(EXAMPLE).enumerate())) == 2 * (1 + 2) * 2 * 2 * (1 + 2) * 2 * 2


def test_text_says_what_matters_alone():
    space = Stack()
    assert space.text(space.architecture((0, 1, 1, 2))) == "depth=1"
    assert space.text(space.architecture((2, 1, 1, 2))) == "depth=3,second=5,dilated=True,third=5"
    assert space.parse("depth=3,second=3,third=1").genes == (2, 0, 0, 0)
    for text, said in {
        "depth=4": "depth is one of 1, 2, 3",
        "deep=1": "not one choice",
        "depth=1,depth=1": "each once",
        "depth=2": "second must be said",
        "depth=1,second=3": "second must be said where it matters and only there",
    }.items():
        with pytest.raises(SourceError, match=said):
            space.parse(text)


def test_graphs_are_kept():
    space = Stack()
    arch = space.architecture((2, 1, 1, 2))
    assert space.graph(arch) is space.graph(arch) and not space.graph(arch).values


@pytest.mark.parametrize(("attributes", "said"), [
    ({"choices": {"a": (1, 2), "b": Choice((1, 2), when=("c", (1,)))}}, "waits for 'c'"),
    ({"choices": {"a": (1, 2), "b": Choice((1, 2), when=("a", (3,)))}}, r"a takes \[1, 2\]"),
    ({"choices": {"a": ("x,y", "z")}}, "no comma"),
    ({"choices": {"a": (1, 1)}}, "different values"),
    ({"choices": {"a": ()}}, "different values"),
    ({"choices": {"a": (1, 2)}, "cuts": {"0": ("b",)}}, "'b', which is no choice"),
])  # fmt: skip
def test_wrong_spaces_are_refused(attributes, said):
    with pytest.raises(SourceError, match=said):
        type("Wrong", (Stack,), attributes)()


def test_unknown_options_are_refused():
    with pytest.raises(SourceError, match="no option 'clases'; it has classes"):
        load_space(EXAMPLE, clases=3)


@pytest.mark.parametrize("cuts", [
    {"0": (), "1": ("second",)},  # layer 2 is in no slot
    {"0": (), "1": ("second",), "2": ("third",)},  # the dilation is forgotten
    {"1": ("second", "dilated"), "0": (), "2": ("third", "dilated")},  # not in the order they run in
])  # fmt: skip
def test_wrong_cuts_are_found(cuts):
    with pytest.raises(AssertionError):
        check_space(type("Wrong", (Stack,), {"cuts": cuts})(), networks=12)


def test_a_file_that_does_not_load_is_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(SourceError, match=r"broken\.py does not load: ModuleNotFoundError"):
        load_space(f"{path}:Space")
    path.write_text("class Space: ...\n")
    with pytest.raises(SourceError, match=r"makes a Space, which is no neaptide\.search\.Space"):
        load_space(f"{path}:Space")
    with pytest.raises(SourceError, match="has no Other"):
        load_space(f"{path}:Other")
    with pytest.raises(SourceError, match=r"no file .*gone\.py"):
        load_space(f"{tmp_path / 'gone.py'}:Space")
