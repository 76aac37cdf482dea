"""The HTML pages in a real browser: it draws, answers the pointer, runs no script of a name, and asks no network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neaptide
from neaptide.compiler.graph import Graph, GraphBuilder
from neaptide.report.measurement_html import memories, profile, render_measurement
from neaptide.report.search_html import render_search
from neaptide.search.engine import Objective
from neaptide.search.result import Candidate, SearchResult, front_of
from neaptide.search.spaces import load_space
from neaptide.targets.cost import Cost, OpCost
from neaptide.targets.spec import load_target

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
EVIL = '</script><img src=x onerror="window.hacked=1">'

pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]


class Browser:
    """A headless Chromium spoken to over its DevTools pipe (`--remote-debugging-pipe`): JSON messages that end in a zero byte."""

    def __init__(self, profile: Path):
        commands, self._out = os.pipe()
        self._in, events = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --no-first-run --window-size=1280,1500 --remote-debugging-pipe"
        line = f'exec "$0" {flags} --user-data-dir="$1" about:blank 3<&{commands} 4>&{events}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, str(BROWSER), str(profile)],
            pass_fds=(commands, events),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(events)
        self._id, self._buffer, self._session = 0, b"", None
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def call(self, method: str, **params: object) -> dict:
        self._id += 1
        message = {"id": self._id, "method": method, "params": params} | ({"sessionId": self._session} if self._session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict:
        while b"\0" not in self._buffer:
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "the browser ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("document.readyState === 'complete' && typeof state === 'object'")

    def evaluate(self, expression: str) -> object:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"still false: {expression}"
            time.sleep(0.02)

    def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, button="left", clickCount=1)
        self.mouse("mouseReleased", x, y, button="left", clickCount=1)

    def box(self, selector: str) -> dict[str, float]:
        """The element's rectangle, scrolled into view."""
        found = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return {x: b.x, y: b.y, width: b.width, height: b.height}; })()"
        )
        assert isinstance(found, dict)
        return found

    def complaints(self) -> list[dict]:
        """Uncaught exceptions, console errors and log entries."""
        bad = ("Runtime.exceptionThrown", "Log.entryAdded")
        said = [e for e in self.events if e.get("method") == "Runtime.consoleAPICalled" and e["params"]["type"] in ("error", "warning")]
        return said + [e for e in self.events if e.get("method") in bad]

    def requests(self) -> list[str]:
        urls = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("file:", "data:"))]

    def picture(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


def branches(count: int) -> Graph:
    """A trunk with `count` wide branches, joined one by one; every name in it tries to break out of the page."""
    build = GraphBuilder(f"net {EVIL}")
    x = build.tensor((64,), "float32", role="input", name=f"x{EVIL}")
    build.inputs.append(x)
    trunk = build.tensor((64,), "float32")
    build.node("aten.relu.default", (x,), (trunk,), scope="stem", source=f"/src/{EVIL}.py:1")
    wide = []
    for i in range(count):
        scope = f"blocks.{i % 5}.{EVIL}"
        wide.append(build.tensor((1024,), "float32"))
        build.node(f"aten.expand{EVIL}.default", (trunk,), (wide[-1],), scope=scope, source=f"/src/net.py:{i + 2}", workspace=512 * (i % 3))
    for i in range(count):
        joined = build.tensor((16,), "float32")
        build.node("aten.sum.default", (wide[i],), (joined,), scope="head", source="/src/net.py:99")
        build.outputs.append(joined)
    return build.build()


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    analysis = neaptide.analyze(branches(12))
    path = tmp_path_factory.mktemp("report") / "report.html"
    analysis.save_html(path)
    browser.open(path)
    return analysis


def test_opens_without_complaint_or_network(browser, page):
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("document.querySelector('h1').textContent") == f"net {EVIL}"


def test_the_script_sees_the_same_profile_as_python(browser, page):
    for key, lifetimes in (("best", page.planned), ("traced", page.traced)):
        assert browser.evaluate(f"[...profile('{key}', 'role').live]") == lifetimes.live.tolist()
        assert browser.evaluate(f"[...profile('{key}', 'module').live]") == lifetimes.live.tolist()
    assert browser.evaluate("aliveAt('best', state.pinned).map((r) => r.nbytes)") == [r.nbytes for r in page.at_peak]


def test_both_canvases_are_painted(browser, page):
    painted = """(id) => {
      const canvas = document.getElementById(id);
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const colors = new Set();
      for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] === 255) colors.add(`${pixels[i]},${pixels[i + 1]},${pixels[i + 2]}`);
      return colors.size;
    }"""
    assert browser.evaluate(f"({painted})('timeline')") > 3
    assert browser.evaluate(f"({painted})('arena')") > 3
    assert browser.evaluate("RECTANGLES.length") == len(page.plan.offsets) + len(page.plan.workspace_offsets)
    assert browser.picture().startswith(b"\x89PNG")


def test_hovering_names_the_op_its_line_and_its_bytes(browser, page):
    box = browser.box("#timeline")
    step = page.planned.peak_step
    x = box["x"] + browser.evaluate(f"xOf(state.plots.timeline, {step} + 0.5, state.range)")
    browser.mouse("mouseMoved", x, box["y"] + box["height"] / 2)
    browser.wait_for("!document.getElementById('tip').hidden")
    said = browser.evaluate("document.getElementById('tip').textContent")
    node = page.graph.nodes[page.peak_node]
    assert node.op in said and node.source in said and node.scope in said
    assert f"{page.planned_peak:,} B" in said


def test_hovering_a_rectangle_tells_its_address(browser, page):
    box = browser.box("#arena")
    first = browser.evaluate(
        "(() => { const r = RECTANGLES.find((r) => r.storage >= 0 && r.high - r.low >= 4096); return [r.from, r.low, r.high]; })()"
    )
    x = box["x"] + browser.evaluate(f"xOf(state.plots.arena, {first[0]} + 0.5, state.range)")
    middle = (first[1] + first[2]) / 2
    y = box["y"] + browser.evaluate(f"state.plots.arena.y + state.plots.arena.h * (1 - {middle} / (DATA.arena * 1.04))")
    browser.mouse("mouseMoved", x, y)
    browser.wait_for("state.rectangle !== null")
    said = browser.evaluate("document.getElementById('tip').textContent")
    assert f"{first[1]:,} to {first[2]:,}" in said


def test_clicking_pins_a_step_and_p_goes_back_to_the_peak(browser, page):
    box = browser.box("#timeline")
    x = box["x"] + browser.evaluate("xOf(state.plots.timeline, 0.5, state.range)")
    browser.click(x, box["y"] + box["height"] / 2)
    browser.wait_for("state.pinned === 0")
    assert "Alive at op 1" in browser.evaluate("document.getElementById('alive-title').textContent")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="p")
    browser.wait_for(f"state.pinned === {page.planned.peak_step}")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    browser.wait_for(f"state.pinned === Math.min({page.planned.peak_step} + 1, {len(page.graph.nodes) - 1})")


def test_before_and_after(browser, page):
    browser.evaluate("document.querySelector('#views button[data-view=traced]').click()")
    assert browser.evaluate("state.pinned") == page.traced.peak_step
    assert browser.evaluate("document.querySelectorAll('#alive tbody tr').length") >= 1
    browser.evaluate("document.querySelector('#views button[data-view=best]').click()")
    assert browser.evaluate("state.pinned") == page.planned.peak_step


def test_dragging_zooms_both_charts_and_escape_shows_the_whole_run(browser, page):
    box = browser.box("#timeline")
    left, right = (box["x"] + browser.evaluate(f"xOf(state.plots.timeline, {s} + 0.5, [0, {len(page.graph.nodes)}])") for s in (4, 9))
    y = box["y"] + 60
    browser.mouse("mouseMoved", left, y)
    browser.mouse("mousePressed", left, y, button="left", clickCount=1)
    browser.mouse("mouseMoved", (left + right) / 2, y, button="left")
    browser.mouse("mouseMoved", right, y, button="left")
    browser.mouse("mouseReleased", right, y, button="left", clickCount=1)
    browser.wait_for("state.range[0] === 4 && state.range[1] === 10")
    browser.wait_for("!document.getElementById('reset').hidden")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    browser.wait_for(f"state.range[0] === 0 && state.range[1] === {len(page.graph.nodes)}")


def test_modules_fold_and_light_up(browser, page):
    rows = "document.querySelectorAll('#modules tbody tr').length"
    assert browser.evaluate(rows) == len(page.by_module)
    browser.evaluate("document.querySelector('#modules [data-fold]').click()")
    assert browser.evaluate(rows) == 1
    browser.evaluate("document.querySelector('#modules [data-fold]').click()")
    browser.evaluate("[...document.querySelectorAll('#modules tbody tr')].find((r) => r.textContent.includes('head')).click()")
    assert browser.evaluate("state.module") == "head"
    assert browser.evaluate("document.querySelectorAll('#modules tr.chosen').length") == 1
    assert browser.complaints() == []


def test_a_large_graph_draws_quickly(browser, tmp_path):
    analysis = neaptide.analyze(branches(5000), order="traced", time_limit=0.0)
    assert len(analysis.graph.nodes) == 10_001
    analysis.save_html(tmp_path / "large.html")
    assert (tmp_path / "large.html").stat().st_size < 4_000_000
    browser.open(tmp_path / "large.html")
    assert browser.evaluate("(() => { const from = performance.now(); draw(); draw(); return performance.now() - from; })()") < 2000
    assert browser.evaluate("profile('traced', 'role').live.length") == 10_001
    assert browser.complaints() == []


def test_an_empty_graph_has_a_page(browser, tmp_path):
    analysis = neaptide.analyze(GraphBuilder("empty").build())
    analysis.save_html(tmp_path / "empty.html")
    browser.open(tmp_path / "empty.html")
    assert browser.complaints() == []
    assert browser.evaluate("document.getElementById('arena-card').hidden") is True


def operators(unit: str = "instructions", **known: Any) -> tuple[OpCost, ...]:
    """Five operators of three kinds, the third the dearest; the names try to break out of the page."""
    costs = (300, 40, 900, 40, 0)
    kinds = ("conv2d_add", "relu", f"conv2d_{EVIL}", "relu", "mean")
    values = costs if unit == "instructions" else [n * 1e-6 for n in costs]
    named = [{unit: value, "bytes": 16 * i, **known} for i, value in enumerate(values)]
    return tuple(OpCost(f"{kind} -> 1x2", f"{kind}(1x2)#{kind}", **more) for kind, more in zip(kinds, named, strict=True))


COSTS = {
    "measured": Cost(
        "stm32f746", "measured", f"net {EVIL}", instructions=1280, arena=196_608, plan=196_608, stack=416, flash=353_148,
        sections={"text": 42_000, "weights": 310_832, "vectors": 316}, max_error=2.6e-7, fits=True, per_op=operators(),
        versions={"compiler": "zig", "emulator": "unicorn 2.1.4"}, reasons=(f"fits: {EVIL}",),
    ),
    "predicted": Cost("stm32f746", "predicted", "net", instructions=1280, plan=1024, sections={"weights": 64}, fits=True, error=0.0147,
                      per_op=(*operators()[:2], *operators(kind="predicted")[2:]), reasons=("predicted: from models",)),
    "cpu": Cost("cpu", "measured", "net", latency=1.3e-3, spread=0.04, arena=2048, plan=2048, max_error=1e-7,
                per_op=operators(unit="seconds", tuned=True), peers={"torch": 2e-3}, peer_spreads={"torch": 0.1}),
    "untuned": Cost("cpu", "measured", "net", arena=2048, plan=2048, per_op=(OpCost("a -> 1", "a(1)#1", tuned=False),)),
    "bound": Cost("sm_90", "bound", "net", latency=1.28e-3, plan=4096, flash=512, sections={"weights": 512}, fits=True,
                  per_op=operators(unit="seconds", kind="bound", tuned=False)),
    "empty": Cost("stm32f746", "measured", instructions=0),
}  # fmt: skip


@pytest.mark.parametrize("key", COSTS)
def test_a_cost_has_a_page(browser, tmp_path, key):
    cost = COSTS[key]
    (tmp_path / "cost.html").write_text(render_measurement(cost, load_target(cost.target)), encoding="utf-8")
    browser.open(tmp_path / "cost.html")
    assert browser.complaints() == [] and browser.requests() == []
    assert browser.evaluate("window.hacked") is None
    said = browser.evaluate("document.querySelector('main').innerText")
    badge = browser.evaluate("document.getElementById('badge').textContent")
    assert {"measured": "measured in unicorn", "cpu": "± 4%", "bound": "lower bound"}.get(key, cost.kind) in badge
    assert ("instructions" in said) == (cost.instructions is not None)
    assert ("fits" in said.lower()) == (cost.fits is not None) and ("torch" in said) == bool(cost.peers)
    assert ("untuned" in said) == (key == "untuned") and ("1.47 %" in said) == (key == "predicted")
    assert ("known by" in browser.evaluate("document.querySelector('#operators thead')?.textContent || ''")) == (key == "predicted")
    widest = "Math.max(...[...document.querySelectorAll('section')].map((s) => s.scrollWidth - s.clientWidth))"
    assert browser.evaluate(widest) <= 0


def test_operators_sort_by_cost_and_by_place(browser, tmp_path):
    cost = COSTS["measured"]
    (tmp_path / "cost.html").write_text(render_measurement(cost, load_target(cost.target)), encoding="utf-8")
    browser.open(tmp_path / "cost.html")
    steps = "[...document.querySelectorAll('#operators tbody tr')].map((r) => Number(r.dataset.step))"
    assert browser.evaluate(steps) == [3, 1, 2, 4, 5]
    browser.evaluate("document.querySelector('#sort [data-sort=step]').click()")
    assert browser.evaluate(steps) == [1, 2, 3, 4, 5]
    assert browser.evaluate("document.querySelector('#sort [data-sort=step]').getAttribute('aria-pressed')") == "true"
    widths = "[...document.querySelectorAll('#run a')].map((a) => a.getBoundingClientRect().width)"
    found = browser.evaluate(widths)
    assert len(found) == 4 and found[2] / found[0] == pytest.approx(3, rel=0.05)
    part = "(c) => c.getBoundingClientRect().width / c.parentElement.clientWidth"
    bars = f"[...document.querySelectorAll('.memory .track')].map((track) => [...track.children].map({part}))"
    sram, flash = browser.evaluate(bars)
    assert sram == pytest.approx([196_608 / 327_680, 416 / 327_680], abs=0.003)
    assert flash == pytest.approx([310_832 / 1_048_576, 42_316 / 1_048_576], abs=0.003)
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate("document.documentElement.dataset.theme") in ("dark", "light")
    assert sum(row.share for row in profile(cost)) == pytest.approx(100)
    assert [memory.used for memory in memories(cost, load_target("stm32f746"))] == [197_024, 353_148]


def found(trials: int = 30, *, feasible: bool = True) -> SearchResult:
    """A search of small NAS-Bench-201 networks with made-up accuracies; one origin tries to break out of the page."""
    space = load_space("nasbench201", C=4, N=1, resolution=8)
    archs = space.decode(space.sample_rows(np.random.default_rng(0), trials))
    tried = tuple(
        Candidate(i, arch, space.text(arch), EVIL if i == 0 else "random", {"accuracy": 50.0 + (i * 37) % 40, "peak": 4096 + 512 * (i % 7),
                  "params": 1000.0 + i}, feasible)
        for i, arch in enumerate(archs)
    )  # fmt: skip
    objectives = (Objective("accuracy", True), Objective("peak", False))
    front = tuple(front_of(tried, objectives))
    best = front[0] if front else None
    return SearchResult(
        space, "random", "smoke", 0, objectives, ("peak<=6KB", EVIL), "", best, front, tried, 71.5, {"peak": "exact"},
        0, "sqlite:///study", "search", "folder", 1.5, {"neaptide": "0"}, {"peak": 6000.0},
    )  # fmt: skip


def test_a_search_has_a_page_with_the_memory_of_every_network_of_its_front(browser, tmp_path):
    result = found()
    (tmp_path / "search.html").write_text(render_search(result), encoding="utf-8")
    browser.open(tmp_path / "search.html")
    assert browser.complaints() == [] and browser.requests() == [] and browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('#front tbody tr').length") == len(result.front) >= 2
    for i, candidate in enumerate(result.front):
        graph = result.space.graph(candidate.arch)
        browser.evaluate(f"document.querySelector('#front tr[data-front=\"{i}\"]').click()")
        assert browser.evaluate(f"Math.max(...DATA.timelines[{i}].live)") == neaptide.schedule(graph, inputs="planned").peak
        assert candidate.text in browser.evaluate("document.getElementById('chosen').textContent")
    assert browser.evaluate("places.filter((p) => p).length") == len(result.trials)
    assert browser.evaluate("[...document.querySelectorAll('section')].filter((s) => s.scrollWidth > s.clientWidth).length") == 0


def test_points_of_a_search_answer_the_pointer_and_axes_change(browser, tmp_path):
    result = found()
    (tmp_path / "search.html").write_text(render_search(result), encoding="utf-8")
    browser.open(tmp_path / "search.html")
    box, last = browser.box("#scatter"), result.front[-1].index
    x, y = (box[k] + browser.evaluate(f"places[{last}][{i}]") for i, k in enumerate("xy"))
    browser.mouse("mouseMoved", x, y)
    browser.wait_for("!document.getElementById('tip').hidden")
    assert result.front[-1].text in browser.evaluate("document.getElementById('tip').textContent")
    browser.click(x, y)
    browser.wait_for(f"state.chosen === {last}")
    before = browser.evaluate(f"places[{last}][0]")
    browser.evaluate("(() => { const s = document.getElementById('x'); s.value = 'params'; s.dispatchEvent(new Event('change')); })()")
    assert browser.evaluate("state.x") == "params" and browser.evaluate(f"places[{last}][0]") != before
    assert browser.complaints() == []


def test_a_search_that_found_nothing_has_a_page(browser, tmp_path):
    (tmp_path / "none.html").write_text(render_search(found(feasible=False)), encoding="utf-8")
    browser.open(tmp_path / "none.html")
    assert browser.complaints() == [] and "nothing that was tried" in browser.evaluate("document.getElementById('badge').textContent")
