"use strict";
// The networks of a search as points between any two metrics, and the memory over time of the one that is chosen.

const DATA = JSON.parse(document.getElementById("data").textContent);
const NAMES = DATA.metrics.map((m) => m.name);
const COUNT = DATA.index.length;
const FRONT = Array.from({ length: COUNT }, (_, i) => i).filter((i) => DATA.front[i] >= 0).sort((a, b) => DATA.front[a] - DATA.front[b]);
const state = { x: DATA.x, y: DATA.y, chosen: FRONT.length ? FRONT[0] : null, hover: null, step: null };
const PAD = { left: 74, right: 16, top: 14, bottom: 34 };
const tip = document.getElementById("tip");

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const metric = (name) => DATA.metrics[NAMES.indexOf(name)];
const valueOf = (name, i) => DATA.values[NAMES.indexOf(name)][i];

function scaled(n, units, base) {
  let size = n;
  for (const unit of units) {
    if (Math.abs(size) < base * 0.9995 || unit === units[units.length - 1]) return `${unit === "" || unit === "B" ? Math.round(size) : size.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2)} ${unit}`.trim();
    size /= base;
  }
}

function format(name, value) {
  if (value === null || value === undefined) return "";
  const { unit } = metric(name) || { unit: "bytes" };
  if (name === "accuracy") return `${value.toFixed(2)} %`;
  if (unit === "bytes") return scaled(value, ["B", "KiB", "MiB", "GiB"], 1024);
  if (unit === "count") return scaled(value, ["", "k", "M", "G", "T"], 1000);
  if (unit === "seconds") return scaled(value * 1e9, ["ns", "µs", "ms", "s"], 1000);
  return value.toPrecision(4);
}

function prepare(canvas) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const c = canvas.getContext("2d");
  c.setTransform(scale, 0, 0, scale, 0, 0);
  c.clearRect(0, 0, width, height);
  c.font = "11px system-ui, sans-serif";
  return { c, x: PAD.left, y: PAD.top, w: width - PAD.left - PAD.right, h: height - PAD.top - PAD.bottom };
}

// The range of a metric over what is shown, a little wider, and round marks in it.
function range(values) {
  const known = values.filter((v) => v !== null && v !== undefined);
  let [low, high] = [Math.min(...known), Math.max(...known)];
  if (!known.length) [low, high] = [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low < 0 ? low - room : Math.max(0, low - room), high + room];
}

function marks([low, high], wanted, binary) {
  let step = 2 ** Math.floor(Math.log2((high - low) / wanted));
  if (!binary) {
    const ten = 10 ** Math.floor(Math.log10((high - low) / wanted));
    step = [1, 2, 5, 10].map((n) => n * ten).find((n) => (high - low) / n <= wanted) || ten;
  } else while ((high - low) / step > wanted) step *= 2;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
  return found;
}

function frame(plot, xs, ys, xName, yName) {
  const { c } = plot;
  c.strokeStyle = css("--line");
  c.fillStyle = css("--quiet");
  c.lineWidth = 1;
  c.textAlign = "right";
  c.textBaseline = "middle";
  for (const mark of marks(ys, 5, metric(yName) && metric(yName).unit === "bytes")) {
    const y = Math.round(plot.y + plot.h * (1 - (mark - ys[0]) / (ys[1] - ys[0]))) + 0.5;
    c.beginPath();
    c.moveTo(plot.x, y);
    c.lineTo(plot.x + plot.w, y);
    c.stroke();
    c.fillText(format(yName, mark), plot.x - 8, y);
  }
  if (!xName) return;
  c.textAlign = "center";
  c.textBaseline = "top";
  for (const mark of marks(xs, 7, metric(xName).unit === "bytes")) {
    c.fillText(format(xName, mark), plot.x + (plot.w * (mark - xs[0])) / (xs[1] - xs[0]), plot.y + plot.h + 6);
  }
  c.fillText(metric(xName).title, plot.x + plot.w / 2, plot.y + plot.h + 20);
}

function dashed(plot, from, to, label) {
  const { c } = plot;
  c.strokeStyle = css("--bad");
  c.fillStyle = css("--bad");
  c.setLineDash([6, 4]);
  c.beginPath();
  c.moveTo(...from);
  c.lineTo(...to);
  c.stroke();
  c.setLineDash([]);
  c.textAlign = from[0] === to[0] ? "left" : "right";
  c.textBaseline = from[0] === to[0] ? "top" : "bottom";
  c.fillText(label, from[0] === to[0] ? from[0] + 4 : to[0] - 4, from[0] === to[0] ? plot.y + 2 : to[1] - 3);
}

let places = [];

function drawScatter() {
  const plot = prepare(document.getElementById("scatter"));
  const { c } = plot;
  const [xs, ys] = [range(DATA.values[NAMES.indexOf(state.x)]), range(DATA.values[NAMES.indexOf(state.y)])];
  const at = (i) => {
    const [x, y] = [valueOf(state.x, i), valueOf(state.y, i)];
    if (x === null || y === null || x === undefined || y === undefined) return null;
    return [plot.x + (plot.w * (x - xs[0])) / (xs[1] - xs[0]), plot.y + plot.h * (1 - (y - ys[0]) / (ys[1] - ys[0]))];
  };
  frame(plot, xs, ys, state.x, state.y);
  for (const [name, limit] of Object.entries(DATA.limits)) {
    if (name === state.x && limit >= xs[0] && limit <= xs[1]) {
      const x = plot.x + (plot.w * (limit - xs[0])) / (xs[1] - xs[0]);
      dashed(plot, [x, plot.y], [x, plot.y + plot.h], `limit ${format(name, limit)}`);
    }
    if (name === state.y && limit >= ys[0] && limit <= ys[1]) {
      const y = plot.y + plot.h * (1 - (limit - ys[0]) / (ys[1] - ys[0]));
      dashed(plot, [plot.x, y], [plot.x + plot.w, y], `limit ${format(name, limit)}`);
    }
  }
  places = Array.from({ length: COUNT }, (_, i) => at(i));
  const dot = (i, radius, color, alpha) => {
    if (!places[i]) return;
    c.globalAlpha = alpha;
    c.fillStyle = color;
    c.beginPath();
    c.arc(places[i][0], places[i][1], radius, 0, 2 * Math.PI);
    c.fill();
    c.globalAlpha = 1;
  };
  for (let i = 0; i < COUNT; i++) if (DATA.front[i] < 0) dot(i, 3, css(DATA.feasible[i] ? "--traced" : "--eager"), DATA.feasible[i] ? 0.55 : 0.4);
  const line = FRONT.filter((i) => places[i]).sort((a, b) => places[a][0] - places[b][0]);
  c.strokeStyle = css("--best");
  c.lineWidth = 1.5;
  c.beginPath();
  line.forEach((i, k) => (k ? c.lineTo(...places[i]) : c.moveTo(...places[i])));
  c.stroke();
  for (const i of FRONT) dot(i, 4.5, css("--best"), 1);
  for (const i of [state.chosen, state.hover]) {
    if (i === null || !places[i]) continue;
    c.strokeStyle = css("--ink");
    c.lineWidth = 2;
    c.beginPath();
    c.arc(places[i][0], places[i][1], 8, 0, 2 * Math.PI);
    c.stroke();
  }
}

function drawMemory() {
  const canvas = document.getElementById("memory");
  const plot = prepare(canvas);
  const { c } = plot;
  const place = state.chosen === null ? -1 : DATA.front[state.chosen];
  const line = DATA.timelines[place];
  document.getElementById("chosen").textContent = state.chosen === null ? "" : `trial ${DATA.index[state.chosen]}: ${DATA.text[state.chosen]}`;
  if (!line) {
    c.fillStyle = css("--quiet");
    c.fillText(place >= 0 ? "This network is further down the front than timelines were made for." : "Choose a network of the front.", plot.x, plot.y + 20);
    return;
  }
  const limit = DATA.limits.peak;
  const peak = Math.max(...line.live);
  const top = Math.max(peak, limit && limit < 3 * peak ? limit : 0) * 1.08 || 1;
  const y = (bytes) => plot.y + plot.h * (1 - bytes / top);
  frame(plot, [0, 1], [0, top], "", "peak");
  const width = plot.w / line.live.length;
  c.fillStyle = css("--traced");
  c.beginPath();
  c.moveTo(plot.x, y(0));
  line.live.forEach((bytes, k) => {
    c.lineTo(plot.x + k * width, y(bytes));
    c.lineTo(plot.x + (k + 1) * width, y(bytes));
  });
  c.lineTo(plot.x + plot.w, y(0));
  c.fill();
  const at = state.step === null ? line.live.indexOf(peak) : state.step;
  c.fillStyle = css("--best");
  c.fillRect(plot.x + at * width, y(line.live[at]), Math.max(1.5, width), y(0) - y(line.live[at]));
  if (limit && limit <= top) dashed(plot, [plot.x, y(limit)], [plot.x + plot.w, y(limit)], `limit ${format("peak", limit)}`);
  document.getElementById("steps").textContent = `${state.step === null ? "Peak, step" : "Step"} ${at + 1} of ${line.live.length}: ${format("peak", line.live[at])} while ${line.ops[at]} runs`;
}

function choose(i) {
  state.chosen = i;
  state.step = null;
  for (const row of document.querySelectorAll("#front tbody tr")) row.classList.toggle("chosen", i !== null && Number(row.dataset.index) === DATA.index[i]);
  drawScatter();
  drawMemory();
}

function nearest(event) {
  const box = event.target.getBoundingClientRect();
  let [best, distance] = [null, 12 * 12];
  places.forEach((place, i) => {
    if (!place) return;
    const d = (place[0] - event.clientX + box.left) ** 2 + (place[1] - event.clientY + box.top) ** 2 - (DATA.front[i] >= 0 ? 30 : 0);
    if (d < distance) [best, distance] = [i, d];
  });
  return best;
}

function show(i, event) {
  tip.hidden = i === null;
  if (i === null) return;
  tip.replaceChildren();
  const line = (className, ...parts) => {
    const row = document.createElement("div");
    row.className = className;
    for (const part of parts) row.append(part);
    tip.append(row);
  };
  const bold = (text) => Object.assign(document.createElement("b"), { textContent: text });
  line("head", DATA.text[i]);
  line("row", `trial ${DATA.index[i]}, ${DATA.origin[i] || "proposed"}`, bold(DATA.feasible[i] ? "" : "breaks a limit"));
  for (const name of NAMES) if (valueOf(name, i) !== null) line("row", metric(name).title, bold(format(name, valueOf(name, i))));
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
}

const scatter = document.getElementById("scatter");
scatter.addEventListener("pointermove", (event) => {
  state.hover = nearest(event);
  show(state.hover, event);
  drawScatter();
});
scatter.addEventListener("pointerleave", () => {
  state.hover = null;
  tip.hidden = true;
  drawScatter();
});
scatter.addEventListener("click", (event) => {
  const i = nearest(event);
  if (i !== null && DATA.front[i] >= 0) choose(i);
});
scatter.addEventListener("keydown", (event) => {
  const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!move || !FRONT.length) return;
  event.preventDefault();
  choose(FRONT[Math.min(FRONT.length - 1, Math.max(0, FRONT.indexOf(state.chosen) + move))]);
});
const memory = document.getElementById("memory");
memory.addEventListener("pointermove", (event) => {
  const line = DATA.timelines[state.chosen === null ? -1 : DATA.front[state.chosen]];
  if (!line) return;
  const share = (event.clientX - memory.getBoundingClientRect().left - PAD.left) / (memory.clientWidth - PAD.left - PAD.right);
  state.step = Math.min(line.live.length - 1, Math.max(0, Math.floor(share * line.live.length)));
  drawMemory();
});
memory.addEventListener("pointerleave", () => {
  state.step = null;
  drawMemory();
});
for (const row of document.querySelectorAll("#front tbody tr")) row.addEventListener("click", () => choose(FRONT[Number(row.dataset.front)]));
for (const head of document.querySelectorAll("#front th.sortable")) {
  head.addEventListener("click", () => {
    const body = document.getElementById("front").tBodies[0];
    const column = [...head.parentElement.children].indexOf(head);
    const sign = metric(head.dataset.metric).maximize ? -1 : 1;
    body.replaceChildren(...[...body.rows].sort((a, b) => sign * (a.cells[column].dataset.value - b.cells[column].dataset.value)));
  });
}
for (const axis of ["x", "y"]) {
  const select = document.getElementById(axis);
  select.value = state[axis];
  select.addEventListener("change", () => {
    state[axis] = select.value;
    drawScatter();
  });
}
const redraw = () => {
  drawScatter();
  drawMemory();
};
window.addEventListener("resize", redraw);
window.addEventListener("theme", redraw);
choose(state.chosen);
