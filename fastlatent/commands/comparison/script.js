"use strict";

// Sorting: a click on a heading, again for the other way round. Runs without a value stay last.
function sort(table, column) {
  const heads = [...table.tHead.rows[1].cells];
  const up = heads[column].getAttribute("aria-sort") !== "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const numbers = [Number(a), Number(b)];
    if (numbers.some(Number.isNaN)) return a.localeCompare(b, "en", { numeric: true });
    return numbers[0] - numbers[1];
  };
  const rows = [...table.tBodies[0].rows];
  const known = rows.filter((row) => value(row) !== undefined);
  const unknown = rows.filter((row) => value(row) === undefined);
  known.sort((a, b) => (up ? 1 : -1) * compare(value(a), value(b)));
  table.tBodies[0].append(...known, ...unknown);
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[1].cells].forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => sort(table, column)));
  const names = () =>
    table.style.setProperty("--names", table.tHead.rows[1].cells[0].offsetWidth + "px");
  names();
  addEventListener("resize", names);
  table.closest("details")?.addEventListener("toggle", names);
}

// Values under the pointer: of each curve the point nearest in steps.
function nearest(points, step) {
  return points.reduce((best, point) =>
    Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best);
}

const hidden = new Set();

for (const panel of document.querySelectorAll(".panel")) {
  const svg = panel.querySelector("svg");
  const cross = panel.querySelector(".cross");
  const tip = panel.querySelector(".tip");
  const [first, last, left, right, width] = JSON.parse(svg.dataset.frame);
  const curves = JSON.parse(svg.dataset.curves);

  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * width - left) / (right - left);
    const step = first + Math.min(Math.max(share, 0), 1) * (last - first);
    const shown = curves.filter((curve) => !hidden.has(String(curve.run)));
    if (!shown.length) return;
    const found = shown.map((curve) => nearest(curve.points, step));
    // The line stands at a point that there is, of the curve that comes nearest.
    const [at] = nearest(found, step);
    const place = left + (at - first) / (last - first) * (right - left);
    cross.setAttribute("transform", `translate(${place} 0)`);
    cross.style.visibility = "visible";
    const lines = shown.map((curve, k) => {
      const line = document.createElement("div");
      const name = document.createElement("span");
      name.className = "c" + curve.run % 6;
      name.textContent = curve.name + " " + curve.kind;
      const number = document.createElement("b");
      number.textContent = found[k][1].toLocaleString("en", { maximumSignificantDigits: 6 });
      line.append(name, number);
      return line;
    });
    const title = document.createElement("small");
    title.textContent = "step " + at.toLocaleString("en");
    tip.replaceChildren(title, ...lines);
    tip.hidden = false;
    // Below the frame, where it hides none of the curves.
    const outer = panel.getBoundingClientRect();
    const x = box.left - outer.left + place / width * box.width - tip.offsetWidth / 2;
    const room = panel.clientWidth - tip.offsetWidth - 8;
    tip.style.left = Math.max(8, Math.min(room, x)) + "px";
    tip.style.top = box.top - outer.top + 0.88 * box.height + "px";
  };
  const hide = () => { tip.hidden = true; cross.style.visibility = "hidden"; };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

// The legend takes a run's curves away and brings them back.
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const run = button.dataset.run;
    if (!hidden.delete(run)) hidden.add(run);
    button.setAttribute("aria-pressed", !hidden.has(run));
    for (const curve of document.querySelectorAll(`.curve[data-run="${run}"]`))
      curve.style.display = hidden.has(run) ? "none" : "";
  });
}

// A picture at its own size.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    const picture = button.querySelector("img");
    const large = dialog.querySelector("img");
    large.src = picture.src;
    large.alt = picture.alt;
    dialog.showModal();
  });
}
