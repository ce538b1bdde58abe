"use strict";
const key = cell => {
  const text = (cell.dataset.sort ?? cell.textContent).trim().replace(/^</, "");
  const number = parseFloat(text);
  return text === "" ? null : Number.isNaN(number) || cell.tagName === "TH" ? text.toLowerCase() : number;
};
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
for (const head of document.querySelectorAll("th[aria-sort]")) {
  head.firstElementChild.addEventListener("click", () => {
    const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", direction);
    const body = head.closest("table").tBodies[0], sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].map(row => [key(row.cells[head.cellIndex]), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  });
}
for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const output = input.closest("p").querySelector("output");
  input.closest("p").hidden = false;
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    output.textContent = wanted ? `${rows.filter(row => !row.hidden).length} of ${rows.length}` : "";
  });
}
