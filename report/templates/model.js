"use strict";
// The data of the page and what follows from it: live bytes per step and category, what is alive, who is who.

const DATA = JSON.parse(document.getElementById("data").textContent);
const TEXT = DATA.strings;
const NODES = DATA.nodes;
const STORAGES = DATA.storages;
const VIEWS = new Map(DATA.views.map((view) => [view.key, view]));
const PALETTE = ["#4269d0", "#efb118", "#3ca951", "#6cc5b0", "#d15cb4", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#c4a000"];
const OTHER = "#9498a0";
const ROLE_COLOR = { activation: "#4269d0", input: "#6cc5b0", gradient: "#a463f2", optimizer_state: "#efb118", workspace: "#ff725c" };
const WORKSPACE = "workspace";

const formatInt = (n) => Math.round(n).toLocaleString("en-US");

function formatBytes(n) {
  let size = n;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (Math.abs(size) < 1023.5 || unit === "TiB") {
      if (unit === "B") return `${Math.round(size)} B`;
      return `${size.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2)} ${unit}`;
    }
    size /= 1024;
  }
}

function formatCount(n) {
  let size = n;
  for (const unit of ["", "k", "M", "G", "T"]) {
    if (Math.abs(size) < 999.5 || unit === "T") return unit ? `${size.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2)} ${unit}` : `${size}`;
    size /= 1000;
  }
}

const formatShare = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "");
const shortOp = (op) => op.replace(/^aten\.|^onnx\./, "").replace(/\.default$/, "");
const within = (scope, path) => path === "" || scope === path || scope.startsWith(path + ".");

const scopeOf = (node) => (node < 0 ? "" : TEXT[NODES.scope[node]]);
const roleOf = (i) => TEXT[STORAGES.role[i]];
const makerOf = (i) => (STORAGES.node[i] < 0 ? `input ${TEXT[STORAGES.name[i]]}`.trim() : shortOp(TEXT[NODES.op[STORAGES.node[i]]]));

// The module groups that colours stand for: the largest group gives way to its children while there are colours for them.
// Code outside any module is a group of its own by phase.
const GROUPS = (() => {
  const MOST = 32;
  const pathOf = (node) => scopeOf(node) || (node >= 0 && TEXT[NODES.phase[node]] !== "forward" ? TEXT[NODES.phase[node]] : "model");
  const bytes = new Map();
  STORAGES.node.forEach((node, i) => bytes.set(pathOf(node), (bytes.get(pathOf(node)) || 0) + STORAGES.nbytes[i]));
  const sizes = new Map();
  for (const [path, size] of bytes) {
    const parts = path.split(".");
    parts.forEach((_, i) => {
      const prefix = parts.slice(0, i + 1).join(".");
      sizes.set(prefix, (sizes.get(prefix) || 0) + size);
    });
  }
  const childrenOf = (prefix) => {
    const depth = prefix === "" ? 1 : prefix.split(".").length + 1;
    const below = [...bytes.keys()].filter((path) => within(path, prefix));
    return [...new Set(below.map((path) => path.split(".").slice(0, depth).join(".")))];
  };
  const sized = (prefixes) => prefixes.map((prefix) => ({ prefix, size: sizes.get(prefix) }));
  const total = [...bytes.values()].reduce((a, b) => a + b, 0);
  let groups = sized(childrenOf(""));
  for (let left = 8; left > 0; left--) {
    const widest = groups.filter((g) => g.size > total / 3 && childrenOf(g.prefix).length > 1).sort((a, b) => b.size - a.size)[0];
    const children = widest ? childrenOf(widest.prefix) : [];
    if (!widest || groups.length - 1 + children.length > MOST) break;
    groups = groups.flatMap((g) => (g === widest ? sized(children) : [g]));
  }
  const kept = [...groups].sort((a, b) => b.size - a.size).slice(0, MOST);
  const names = groups.filter((g) => kept.includes(g)).map((g) => g.prefix);
  const known = new Map();
  const of = (node) => {
    const path = pathOf(node);
    if (!known.has(path)) known.set(path, names.filter((name) => within(path, name)).sort((a, b) => b.length - a.length)[0] || "other");
    return known.get(path);
  };
  return { of, color: new Map(names.map((name, i) => [name, PALETTE[i % PALETTE.length]])) };
})();

const CATEGORY = {
  role: { storage: roleOf, workspace: () => WORKSPACE, color: (name) => ROLE_COLOR[name] || OTHER },
  module: {
    storage: (i) => GROUPS.of(STORAGES.node[i]),
    workspace: () => WORKSPACE,
    color: (name) => (name === WORKSPACE ? ROLE_COLOR.workspace : GROUPS.color.get(name) || OTHER),
  },
};

// Modules tell more than roles where nearly everything is an activation.
const FIRST_COLOR = GROUPS.color.size > 1 && new Set(STORAGES.role).size < 3 ? "module" : "role";

// Live bytes per step, in total and per category; remembered, since every pointer move asks for it.
const profiles = new Map();
function profile(key, coloring) {
  const id = `${key}/${coloring}`;
  if (profiles.has(id)) return profiles.get(id);
  const view = VIEWS.get(key);
  const category = CATEGORY[coloring];
  const n = view.order.length;
  const rows = new Map();
  const row = (name) => {
    if (!rows.has(name)) rows.set(name, new Float64Array(n + 1));
    return rows.get(name);
  };
  STORAGES.nbytes.forEach((nbytes, i) => {
    if (view.birth[i] < 0) return;
    const change = row(category.storage(i));
    change[view.birth[i]] += nbytes;
    change[view.death[i]] -= nbytes;
  });
  for (const change of rows.values()) for (let s = 1; s < n; s++) change[s] += change[s - 1];
  view.order.forEach((node, s) => {
    if (NODES.workspace[node]) row(category.workspace(node))[s] += NODES.workspace[node];
  });
  const live = new Float64Array(n);
  for (const values of rows.values()) for (let s = 0; s < n; s++) live[s] += values[s];
  const most = (values) => values.subarray(0, n).reduce((a, b) => Math.max(a, b), 0);
  const bands = [...rows].map(([name, values]) => ({ name, values, most: most(values), color: category.color(name) }));
  bands.sort((a, b) => (a.name === "other") - (b.name === "other") || b.most - a.most);
  const result = { live, bands };
  profiles.set(id, result);
  return result;
}

// What is alive at a step, largest first; the running kernel's workspace is a row with storage -1.
function aliveAt(key, step) {
  const view = VIEWS.get(key);
  const rows = [];
  STORAGES.nbytes.forEach((nbytes, i) => {
    if (view.birth[i] >= 0 && view.birth[i] <= step && step < view.death[i]) rows.push({ storage: i, nbytes, node: STORAGES.node[i] });
  });
  const node = view.order[step];
  if (NODES.workspace[node]) rows.push({ storage: -1, nbytes: NODES.workspace[node], node });
  return rows.sort((a, b) => b.nbytes - a.nbytes);
}
