"use strict";
// State, pointer and keys, tables. Every text from the model goes in through textContent.

const byId = (id) => document.getElementById(id);
const timeline = byId("timeline");
const arena = byId("arena");
const tip = byId("tip");
const ROWS = 300;

const state = {
  view: DATA.inUse,
  color: FIRST_COLOR,
  range: [0, Math.max(1, VIEWS.get(DATA.inUse).order.length)],
  hover: null,
  pinned: VIEWS.get(DATA.inUse).peakStep,
  rectangle: null,
  module: null,
  drag: null,
  plots: {},
};

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (name === "color") made.style.background = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return made;
}

// ---- drawing ---------------------------------------------------------------------------------------------------------------

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

function draw() {
  const view = VIEWS.get(state.view);
  if (!view.order.length) return;
  state.plots.timeline = drawTimeline(timeline, state);
  state.plots.arena = drawArena(arena, state);
  byId("reset").hidden = state.range[0] === 0 && state.range[1] === view.order.length;
}

function showControls() {
  for (const button of document.querySelectorAll("#views button")) button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
  for (const button of document.querySelectorAll("#colors button")) button.setAttribute("aria-pressed", String(button.dataset.color === state.color));
  const { bands } = profile(state.view, state.color);
  const kinds = new Map(state.color === "module" ? MODULES.map((m) => [m.path, m.kind]) : []);
  byId("legend").replaceChildren(...bands.map((band) => element("span", { "--swatch": band.color }, `${band.name} ${kinds.get(band.name) || ""}`.trim())));
  const inUse = VIEWS.get(DATA.inUse);
  const gaps = DATA.arena - inUse.peak;
  byId("arena-note").textContent = `${inUse.title.toLowerCase()}, height ${formatInt(DATA.arena)} B, ${gaps ? `${formatInt(gaps)} B lost in gaps` : "no gaps at the peak"}`;
}

// ---- tooltips --------------------------------------------------------------------------------------------------------------

const tipRow = (name, value, color) => element("div", { class: "row" }, element("span", {}, ...(color ? [element("span", { class: "dot", color })] : []), name), element("b", {}, value));

function showTip(event, rows) {
  tip.replaceChildren(...rows);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 18 + width > window.innerWidth ? event.clientX - width - 14 : event.clientX + 18;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, window.innerHeight - height - 8))}px`;
}

function place(node) {
  const rows = [];
  if (node < 0) return rows;
  const phase = TEXT[NODES.phase[node]];
  const scope = [TEXT[NODES.scope[node]], phase === "forward" ? "" : phase].filter(Boolean).join(", ");
  if (scope) rows.push(element("div", {}, scope));
  if (TEXT[NODES.source[node]]) rows.push(element("div", { class: "quiet source" }, TEXT[NODES.source[node]]));
  return rows;
}

function stepTip(event, step) {
  const view = VIEWS.get(state.view);
  const node = view.order[step];
  const { live, bands } = profile(state.view, state.color);
  const rows = [element("div", { class: "head" }, `${formatInt(step + 1)}. ${TEXT[NODES.op[node]]}`), ...place(node)];
  rows.push(tipRow("live", `${formatBytes(live[step])} · ${formatInt(live[step])} B`));
  for (const band of bands.filter((b) => b.values[step] > 0).slice(0, 6)) rows.push(tipRow(band.name, formatBytes(band.values[step]), band.color));
  showTip(event, rows);
}

function rectangleTip(event, r) {
  const view = VIEWS.get(DATA.inUse);
  const title = r.storage < 0 ? `workspace of ${TEXT[NODES.op[r.node]]}` : r.node < 0 ? makerOf(r.storage) : TEXT[NODES.op[r.node]];
  const rows = [element("div", { class: "head" }, title), ...place(r.node)];
  if (r.storage >= 0) rows.push(element("div", { class: "quiet" }, TEXT[STORAGES.shape[r.storage]]));
  rows.push(tipRow("size", `${formatBytes(r.high - r.low)} · ${formatInt(r.high - r.low)} B`));
  rows.push(tipRow("address", `${formatInt(r.low)} to ${formatInt(r.high)}`));
  rows.push(tipRow("alive", `op ${formatInt(r.from + 1)} to ${formatInt(r.to)} of ${formatInt(view.order.length)}`));
  showTip(event, rows);
}

// ---- tables ----------------------------------------------------------------------------------------------------------------

function showAlive() {
  const view = VIEWS.get(state.view);
  const step = state.pinned;
  const body = byId("alive").tBodies[0];
  if (step < 0) return body.replaceChildren();
  const node = view.order[step];
  const rows = aliveAt(state.view, step);
  const total = rows.reduce((sum, row) => sum + row.nbytes, 0);
  const atPeak = step === view.peakStep;
  byId("alive-title").textContent = `${atPeak ? "Alive at the peak" : `Alive at op ${formatInt(step + 1)}`}, ${formatBytes(total)}`;
  byId("to-peak").hidden = atPeak;
  byId("alive-where").replaceChildren(element("code", {}, TEXT[NODES.op[node]]), scopeOf(node) ? ` in ${scopeOf(node)} ` : " ", element("span", { class: "quiet source" }, TEXT[NODES.source[node]]));
  const category = CATEGORY[state.color];
  body.replaceChildren(
    ...rows.slice(0, ROWS).map((row) => {
      const own = row.storage < 0;
      const name = own ? category.workspace(row.node) : category.storage(row.storage);
      const made = own ? `${shortOp(TEXT[NODES.op[row.node]])} workspace` : makerOf(row.storage);
      const cells = [
        element("td", { class: "number" }, formatBytes(row.nbytes)),
        element("td", { class: "number" }, formatShare(row.nbytes, total)),
        element("td", {}, element("span", { class: "dot", color: category.color(name) }), made),
        element("td", {}, own ? "" : TEXT[STORAGES.shape[row.storage]]),
        element("td", { title: `${scopeOf(row.node)}\n${row.node < 0 ? "" : TEXT[NODES.source[row.node]]}` }, scopeOf(row.node)),
      ];
      return element("tr", {}, ...cells);
    }),
  );
  if (rows.length > ROWS) body.append(element("tr", {}, element("td", { colspan: 5, class: "quiet" }, `${formatInt(rows.length - ROWS)} smaller ones`)));
}

const MODULES = DATA.modules.map(([path, depth, kind, params, weights, macs, born, atPeak]) => ({
  path: TEXT[path], depth, kind: TEXT[kind], params, weights, macs, born, atPeak,
}));
const folded = new Set();
const hasChildren = (i) => i + 1 < MODULES.length && MODULES[i + 1].depth > MODULES[i].depth;

function showModules() {
  const peak = MODULES[0].atPeak;
  const rows = [];
  let hiddenBelow = Infinity;
  MODULES.forEach((m, i) => {
    if (m.depth > hiddenBelow) return;
    hiddenBelow = folded.has(m.path) ? m.depth : Infinity;
    const fold = element("span", { class: "fold", "data-fold": "" }, hasChildren(i) ? (folded.has(m.path) ? "▸" : "▾") : "");
    const name = element("td", { title: m.path }, fold, m.path.split(".").pop() || "model", element("span", { class: "kind" }, m.kind));
    name.style.paddingLeft = `${m.depth * 14}px`;
    const bar = element("i");
    bar.style.width = `${peak ? (100 * m.atPeak) / peak : 0}%`;
    const cells = [
      name,
      ...[m.params && formatCount(m.params), m.macs && formatCount(m.macs), m.born && formatBytes(m.born), m.atPeak && formatBytes(m.atPeak)].map((text) => element("td", { class: "number" }, text || "")),
      element("td", {}, ...(m.atPeak ? [element("span", { class: "share" }, bar), formatShare(m.atPeak, peak)] : [])),
    ];
    const row = element("tr", state.module === m.path ? { class: "chosen" } : {}, ...cells);
    row.addEventListener("click", (event) => {
      if (event.target.dataset.fold !== undefined && hasChildren(i)) {
        if (!folded.delete(m.path)) folded.add(m.path);
      } else state.module = state.module === m.path ? null : m.path;
      showModules();
      redraw();
    });
    rows.push(row);
  });
  byId("modules").tBodies[0].replaceChildren(...rows);
}

function foldAll() {
  MODULES.forEach((m, i) => m.depth >= 1 && hasChildren(i) && folded.add(m.path));
}

// ---- pointer and keys ------------------------------------------------------------------------------------------------------

function pin(step) {
  const last = VIEWS.get(state.view).order.length - 1;
  state.pinned = Math.max(0, Math.min(last, step));
  if (state.pinned < state.range[0] || state.pinned >= state.range[1]) state.range = [0, last + 1];
  showAlive();
  redraw();
}

function hoverable(canvas, name, onMove) {
  let pressed = null;
  const stepOf = (event) => stepAt(state.plots[name], event.clientX - canvas.getBoundingClientRect().left, state.range);
  canvas.addEventListener("pointermove", (event) => {
    if (!state.plots[name]) return;
    state.hover = stepOf(event);
    if (pressed !== null && Math.abs(event.clientX - pressed.x) > 5) state.drag = [pressed.step, state.hover];
    onMove(event, state.hover);
    redraw();
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (!state.plots[name] || event.button !== 0) return;
    pressed = { x: event.clientX, step: stepOf(event) };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (pressed === null) return;
    if (state.drag && Math.abs(state.drag[1] - state.drag[0]) >= 1) {
      const [from, to] = [Math.min(...state.drag), Math.max(...state.drag)];
      state.range = [from, to + 1];
    } else if (name === "timeline" || state.view === DATA.inUse) pin(stepOf(event));
    pressed = state.drag = null;
    redraw();
  });
  canvas.addEventListener("pointerleave", () => {
    state.hover = state.rectangle = null;
    tip.hidden = true;
    redraw();
  });
  canvas.addEventListener("dblclick", wholeRun);
}

function wholeRun() {
  state.range = [0, Math.max(1, VIEWS.get(state.view).order.length)];
  redraw();
}

hoverable(timeline, "timeline", stepTip);
hoverable(arena, "arena", (event) => {
  const box = arena.getBoundingClientRect();
  state.rectangle = rectangleAt(state.plots.arena, event.clientX - box.left, event.clientY - box.top, state);
  if (state.rectangle) rectangleTip(event, state.rectangle);
  else tip.hidden = true;
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const by = event.shiftKey ? 10 : 1;
  if (event.key === "ArrowRight") pin(state.pinned + by);
  else if (event.key === "ArrowLeft") pin(state.pinned - by);
  else if (event.key === "p" || event.key === "P") pin(VIEWS.get(state.view).peakStep);
  else if (event.key === "Escape") wholeRun();
  else return;
  event.preventDefault();
});

byId("reset").addEventListener("click", wholeRun);
byId("to-peak").addEventListener("click", () => pin(VIEWS.get(state.view).peakStep));
byId("fold").addEventListener("click", () => {
  if (folded.size) folded.clear();
  else foldAll();
  byId("fold").textContent = folded.size ? "unfold all" : "fold all";
  showModules();
});
byId("views").append(
  ...DATA.views.map((view) => {
    const button = element("button", { type: "button", "data-view": view.key, title: view.note }, view.title, element("small", {}, formatBytes(view.peak)));
    button.addEventListener("click", () => {
      state.view = view.key;
      showControls();
      pin(view.peakStep);
    });
    return button;
  }),
);
for (const button of document.querySelectorAll("#colors button")) {
  button.addEventListener("click", () => {
    state.color = button.dataset.color;
    showControls();
    showAlive();
    redraw();
  });
}
new ResizeObserver(redraw).observe(timeline);
window.addEventListener("theme", redraw);

if (MODULES.length > 40) {
  foldAll();
  byId("fold").textContent = "unfold all";
}
if (MODULES.length < 2) byId("modules-card").hidden = true;
if (!VIEWS.get(DATA.inUse).order.length) for (const id of ["timeline-card", "arena-card", "alive-card"]) byId(id).hidden = true;
showControls();
showAlive();
showModules();
draw();
