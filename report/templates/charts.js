"use strict";
// The two canvases: live memory stacked over steps, and the arena as address over steps. Both show the same range of steps.

const MARGIN = { left: 74, right: 10, top: 10, bottom: 22 };

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A canvas at the resolution of the screen; returns its context in CSS pixels and the plot's rectangle.
function prepare(canvas) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "11px system-ui, sans-serif";
  return { context, x: MARGIN.left, y: MARGIN.top, w: Math.max(10, width - MARGIN.left - MARGIN.right), h: height - MARGIN.top - MARGIN.bottom };
}

const xOf = (plot, step, range) => plot.x + ((step - range[0]) / (range[1] - range[0])) * plot.w;
const stepAt = (plot, x, range) => Math.min(range[1] - 1, Math.max(range[0], Math.floor(range[0] + ((x - plot.x) / plot.w) * (range[1] - range[0]))));

// Round steps for an axis: powers of two for bytes; 1, 2 or 5 times a power of ten for counts.
function ticks(top, wanted, binary) {
  let step = 1;
  for (let i = 0; top / step > wanted; i++) step *= binary ? 2 : i % 3 === 1 ? 2.5 : 2;
  const marks = [];
  for (let at = 0; at <= top; at += step) marks.push(at);
  return marks;
}

function axes(plot, range, top) {
  const { context } = plot;
  context.fillStyle = css("--quiet");
  context.strokeStyle = css("--line");
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const mark of ticks(top, 5, true)) {
    const y = Math.round(plot.y + plot.h - (mark / top) * plot.h) + 0.5;
    context.beginPath();
    context.moveTo(plot.x, y);
    context.lineTo(plot.x + plot.w, y);
    context.stroke();
    context.fillText(formatBytes(mark), plot.x - 8, y);
  }
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const mark of ticks(range[1] - range[0], 8, false)) {
    const step = range[0] + mark;
    if (step < range[1]) context.fillText(step === 0 ? "op 1" : formatInt(step + 1), xOf(plot, step + 0.5, range), plot.y + plot.h + 6);
  }
}

// For each pixel column the step of its slice that holds most, so that no peak is lost when steps are many.
function columns(plot, range, live) {
  const steps = range[1] - range[0];
  const count = Math.min(steps, Math.max(1, Math.floor(plot.w)));
  const found = new Int32Array(count);
  for (let c = 0; c < count; c++) {
    const from = range[0] + Math.floor((steps * c) / count);
    const to = Math.max(from + 1, range[0] + Math.floor((steps * (c + 1)) / count));
    let best = from;
    for (let s = from + 1; s < to; s++) if (live[s] > live[best]) best = s;
    found[c] = best;
  }
  return found;
}

function drawTimeline(canvas, state) {
  const plot = prepare(canvas);
  const { context } = plot;
  const { live, bands } = profile(state.view, state.color);
  const top = Math.max(...DATA.views.map((view) => view.peak), 1) * 1.05;
  const y = (bytes) => plot.y + plot.h - (bytes / top) * plot.h;
  axes(plot, state.range, top);
  const chosen = columns(plot, state.range, live);
  const width = plot.w / chosen.length;
  const base = new Float64Array(chosen.length);
  for (const band of bands) {
    context.fillStyle = band.color;
    context.beginPath();
    context.moveTo(plot.x, y(base[0] || 0));
    for (let c = 0; c < chosen.length; c++) {
      const height = y(base[c] + band.values[chosen[c]]);
      context.lineTo(plot.x + c * width, height);
      context.lineTo(plot.x + (c + 1) * width, height);
    }
    for (let c = chosen.length - 1; c >= 0; c--) {
      context.lineTo(plot.x + (c + 1) * width, y(base[c]));
      context.lineTo(plot.x + c * width, y(base[c]));
      base[c] += band.values[chosen[c]];
    }
    context.fill();
  }
  outlines(plot, state, y);
  level(plot, y(DATA.lowerBound), `lower bound ${formatBytes(DATA.lowerBound)}`, css("--ink"));
  cursor(plot, state.pinned, state.range, css("--bad"), false);
  cursor(plot, state.hover, state.range, css("--ink"), true);
  if (state.drag) {
    context.fillStyle = css("--accent") + "33";
    const [from, to] = [Math.min(...state.drag), Math.max(...state.drag) + 1];
    context.fillRect(xOf(plot, from, state.range), plot.y, xOf(plot, to, state.range) - xOf(plot, from, state.range), plot.h);
  }
  return plot;
}

// The other orders as thin lines over the stack: before and after at one glance.
function outlines(plot, state, y) {
  const { context } = plot;
  for (const view of DATA.views) {
    if (view.key === state.view || view.order.length < state.range[1]) continue;
    const { live } = profile(view.key, state.color);
    const chosen = columns(plot, state.range, live);
    const width = plot.w / chosen.length;
    context.strokeStyle = css("--quiet");
    context.globalAlpha = 0.55;
    context.lineWidth = 1;
    context.setLineDash(view.key === "eager" ? [1, 3] : [4, 3]);
    context.beginPath();
    for (let c = 0; c < chosen.length; c++) {
      context.lineTo(plot.x + c * width, y(live[chosen[c]]));
      context.lineTo(plot.x + (c + 1) * width, y(live[chosen[c]]));
    }
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  }
}

function level(plot, y, label, color) {
  const { context } = plot;
  context.strokeStyle = color;
  context.fillStyle = color;
  context.lineWidth = 1;
  context.setLineDash([6, 4]);
  context.beginPath();
  context.moveTo(plot.x, Math.round(y) + 0.5);
  context.lineTo(plot.x + plot.w, Math.round(y) + 0.5);
  context.stroke();
  context.setLineDash([]);
  context.textAlign = "right";
  context.textBaseline = "bottom";
  context.fillText(label, plot.x + plot.w - 4, y - 3);
}

function cursor(plot, step, range, color, thin) {
  if (step === null || step < range[0] || step >= range[1]) return;
  const { context } = plot;
  const from = xOf(plot, step, range);
  const width = Math.max(1, xOf(plot, step + 1, range) - from);
  context.fillStyle = color;
  context.globalAlpha = thin ? 0.12 : 0.18;
  context.fillRect(from, plot.y, width, plot.h);
  context.globalAlpha = 1;
  context.fillRect(Math.round(from + width / 2), plot.y, thin ? 1 : 1.5, plot.h);
}

// Rectangles of the plan in use: {storage, node, from, to, low, high}; storage -1 is a kernel's workspace.
const RECTANGLES = (() => {
  const view = VIEWS.get(DATA.inUse);
  const found = [];
  STORAGES.offset.forEach((low, i) => {
    if (low >= 0 && view.birth[i] >= 0) {
      found.push({ storage: i, node: STORAGES.node[i], from: view.birth[i], to: view.death[i], low, high: low + STORAGES.nbytes[i] });
    }
  });
  view.order.forEach((node, step) => {
    const low = NODES.workspaceAt[node];
    if (low >= 0 && NODES.workspace[node]) found.push({ storage: -1, node, from: step, to: step + 1, low, high: low + NODES.workspace[node] });
  });
  return found;
})();

function drawArena(canvas, state) {
  const plot = prepare(canvas);
  const { context } = plot;
  const top = Math.max(DATA.arena, 1) * 1.04;
  const y = (bytes) => plot.y + plot.h - (bytes / top) * plot.h;
  axes(plot, state.range, top);
  context.save();
  context.beginPath();
  context.rect(plot.x, plot.y, plot.w, plot.h);
  context.clip();
  const category = CATEGORY[state.color];
  const edge = css("--card");
  for (const r of RECTANGLES) {
    if (r.to <= state.range[0] || r.from >= state.range[1]) continue;
    const [x0, x1, y0, y1] = [xOf(plot, r.from, state.range), xOf(plot, r.to, state.range), y(r.high), y(r.low)];
    const name = r.storage < 0 ? category.workspace(r.node) : category.storage(r.storage);
    context.globalAlpha = state.module === null || within(scopeOf(r.node), state.module) ? (r === state.rectangle ? 1 : 0.82) : 0.13;
    context.fillStyle = category.color(name);
    context.fillRect(x0, y0, Math.max(0.7, x1 - x0), Math.max(0.7, y1 - y0));
    if (x1 - x0 > 3 && y1 - y0 > 3) {
      context.strokeStyle = r === state.rectangle ? css("--ink") : edge;
      context.lineWidth = r === state.rectangle ? 2 : 0.8;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
    if (x1 - x0 > 70 && y1 - y0 > 15) label(context, r, x0, x1, y0, y1);
  }
  context.globalAlpha = 1;
  context.restore();
  level(plot, y(DATA.arena), `arena ${formatBytes(DATA.arena)}`, css("--ink"));
  if (state.view === DATA.inUse) {
    cursor(plot, state.pinned, state.range, css("--bad"), false);
    cursor(plot, state.hover, state.range, css("--ink"), true);
  }
  return plot;
}

function label(context, r, x0, x1, y0, y1) {
  const text = r.storage < 0 ? "workspace" : makerOf(r.storage);
  context.globalAlpha = 0.95;
  context.fillStyle = "#fff";
  context.textAlign = "left";
  context.textBaseline = "middle";
  const from = Math.max(x0, MARGIN.left);
  if (context.measureText(text).width < x1 - from - 12) context.fillText(text, from + 6, (y0 + y1) / 2);
}

function rectangleAt(plot, x, y, state) {
  const step = stepAt(plot, x, state.range);
  const address = ((plot.y + plot.h - y) / plot.h) * Math.max(DATA.arena, 1) * 1.04;
  return RECTANGLES.find((r) => r.from <= step && step < r.to && r.low <= address && address < r.high) || null;
}
