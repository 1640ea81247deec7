"use strict";
for (const table of document.querySelectorAll("table[data-sort]")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (body, column) => {
    const given = body.rows[0].cells[column]?.dataset.s;
    return given === undefined ? null : isNaN(given) ? given : Number(given);
  };
  const sort = (column) => {
    const now = heads[column].getAttribute("aria-sort");
    const ascending = now ? now !== "ascending" : heads[column].dataset.first === "up";
    const rows = [...table.tBodies].map((body) => [value(body, column), body]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return ascending ? order : -order;
    });
    heads.forEach((head, place) => {
      if (place === column) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    table.append(...rows.map(([, body]) => body));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
