"use strict";
// Draws the charts, sorts tables by a column, finds the row of a point that is clicked.
(() => {
  const options = { actions: false, renderer: "svg", ast: true, logLevel: 1, tooltip: { theme: "page" } };
  const pick = (point) => {
    document.querySelectorAll("tr.picked").forEach((row) => row.classList.remove("picked"));
    const row = document.querySelector(`tr[data-point="${CSS.escape(point)}"]`);
    if (row) {
      row.classList.add("picked");
      row.scrollIntoView({ block: "nearest" });
    }
  };
  const draw = async (place) => {
    const { view } = await vegaEmbed(place, JSON.parse(place.dataset.spec), options);
    view.addEventListener("click", (_, item) => {
      if (item && item.datum && item.datum.point !== undefined) pick(String(item.datum.point));
    });
    place.classList.add("drawn");
  };
  document.querySelectorAll("[data-spec]").forEach((place) => {
    const folded = place.closest("details:not([open])");
    if (folded) folded.addEventListener("toggle", () => draw(place), { once: true });
    else draw(place);
  });

  const key = (cell) => (cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value));
  const compare = (x, y, sign) => {
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // what has no number is last either way
    return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    const buttons = [...table.tHead.querySelectorAll("button")];
    buttons.forEach((button, column) => button.addEventListener("click", () => {
      const up = button.dataset.order !== "up";
      buttons.forEach((other) => delete other.dataset.order);
      button.dataset.order = up ? "up" : "down";
      const order = (a, b) => compare(key(a.cells[column]), key(b.cells[column]), up ? 1 : -1);
      [...table.tBodies[0].rows].sort(order).forEach((row) => table.tBodies[0].append(row));
    }));
  });
})();
