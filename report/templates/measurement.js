"use strict";
// Sorts the operators, which the page already shows in execution order.

const state = { sort: "step" };
const rowsOf = (body) => [...body.rows];

function sortBy(key) {
  state.sort = key;
  for (const button of document.querySelectorAll("#sort button")) button.setAttribute("aria-pressed", String(button.dataset.sort === key));
  const body = document.getElementById("operators").tBodies[0];
  const by = { step: (a, b) => a.dataset.step - b.dataset.step, value: (a, b) => b.dataset.value - a.dataset.value || a.dataset.step - b.dataset.step }[key];
  body.replaceChildren(...rowsOf(body).sort(by));
}

for (const button of document.querySelectorAll("#sort button")) button.addEventListener("click", () => sortBy(button.dataset.sort));
if (document.getElementById("operators")) sortBy("value");
