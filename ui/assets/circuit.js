// The picture of a circuit: how many edges are shown, and what belongs to the component under the pointer.
const picture = document.querySelector("svg.circuit");
const edges = [...picture.querySelectorAll("path[data-rank]")];
const nodes = [...picture.querySelectorAll(".node")];
const rows = [...document.querySelectorAll("[data-edge]")].map((mark) => mark.closest("tr"));
const slider = document.querySelector("#edges-shown");
const count = document.querySelector("#edges-count");
const chosen = document.querySelector("#chosen");
const all = document.querySelector("#show-all");
let pinned = null;

function touches(edge, name) {
  return edge.dataset.s === name || edge.dataset.r === name;
}

function show(name) {
  const shown = edges.filter((edge) => Number(edge.dataset.rank) < Number(slider.value));
  const named = new Set(shown.flatMap((edge) => [edge.dataset.s, edge.dataset.r]));
  const near = new Set(name === null ? [] : [name]);
  for (const edge of edges) {
    const isOff = Number(edge.dataset.rank) >= Number(slider.value);
    const isNear = name === null || touches(edge, name);
    edge.classList.toggle("off", isOff);
    edge.classList.toggle("dim", !isNear);
    if (name !== null && isNear && !isOff) near.add(edge.dataset.s).add(edge.dataset.r);
  }
  for (const node of nodes) {
    node.classList.toggle("off", !named.has(node.dataset.name));
    node.classList.toggle("dim", name !== null && !near.has(node.dataset.name));
    node.classList.toggle("on", node.dataset.name === name);
  }
  rows.forEach((row, rank) => {
    const edge = edges[rank];
    row.hidden = edge.classList.contains("off") || (name !== null && !touches(edge, name));
  });
  count.textContent = `${shown.length} of ${edges.length} edges`;
  chosen.textContent = name === null ? "every component" : name;
  all.hidden = pinned === null;
}

function pin(name) {
  pinned = pinned === name ? null : name;
  show(pinned);
}

for (const node of nodes) {
  const name = node.dataset.name;
  node.addEventListener("pointerenter", () => show(name));
  node.addEventListener("pointerleave", () => show(pinned));
  node.addEventListener("click", () => pin(name));
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    pin(name);
  });
}
slider.addEventListener("input", () => show(pinned));
all.addEventListener("click", () => pin(pinned));
show(null);
