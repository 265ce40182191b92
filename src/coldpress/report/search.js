"use strict";
// Pictures and table of a search: choose axes, point at a mark to read it, click to find its row, sort by a column.
(() => {
  const pictures = [...document.querySelectorAll(".pareto > svg")];
  const axes = document.getElementById("axes");
  const table = document.getElementById("points");
  const hovered = document.getElementById("hovered");
  const same = (point) => document.querySelectorAll(`[data-point="${CSS.escape(point)}"]`);
  const mark = (name, point) => {
    document.querySelectorAll(`.${name}`).forEach((one) => one.classList.remove(name));
    if (point !== undefined) same(point).forEach((one) => one.classList.add(name));
  };
  const show = () => pictures.forEach((one, index) => { one.style.display = index === Number(axes.value) ? "" : "none"; });

  document.documentElement.classList.add("live");
  if (axes) {
    axes.addEventListener("change", show);
    show();
  }
  document.querySelectorAll("[data-point]").forEach((one) => {
    const point = one.dataset.point;
    one.addEventListener("pointerenter", () => {
      mark("near", point);
      const title = document.querySelector(`circle[data-point="${CSS.escape(point)}"] > title`);
      if (title && hovered) hovered.textContent = title.textContent;
    });
    one.addEventListener("pointerleave", () => mark("near"));
    one.addEventListener("click", () => {
      mark("picked", point);
      table.querySelector(`tr[data-point="${CSS.escape(point)}"]`).scrollIntoView({ block: "nearest" });
    });
  });
  table.querySelectorAll("button[data-column]").forEach((button) => {
    button.addEventListener("click", () => {
      const column = Number(button.dataset.column);
      const up = button.dataset.order !== "up";
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        const order = typeof x === "number" ? x - y : x.localeCompare(y);
        return up ? order : -order;
      };
      table.querySelectorAll("button").forEach((other) => delete other.dataset.order);
      button.dataset.order = up ? "up" : "down";
      const body = table.tBodies[0];
      [...body.rows].sort(compare).forEach((row) => body.append(row));
    });
  });
})();
