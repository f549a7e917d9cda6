"use strict";
// Sorts and filters the table of runs. The page reads without it.
const table = document.querySelector("table.runs");
const body = table.tBodies[0];
const rows = [...body.rows];
const heads = [...table.tHead.rows[0].cells];
const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;

function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");  // what is not there stands last
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? (a > b) - (a < b) : x - y;
}

function sort(column) {
  const up = heads[column].getAttribute("aria-sort") !== "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const keyed = rows.map((row, at) => [value(row, column), at, row]);
  keyed.sort((a, b) => {
    const missing = (a[0] === "") - (b[0] === "");
    return missing || (up ? 1 : -1) * compare(a[0], b[0]) || a[1] - b[1];
  });
  body.append(...keyed.map((entry) => entry[2]));
}

heads.forEach((head, column) => {
  if (!("sort" in head.dataset)) return;
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(column));
  head.append(button);
});

const controls = document.querySelector(".controls");
const chosen = new Map();

function control(words, element) {
  const label = document.createElement("label");
  label.append(words, element);
  controls.append(label);
  element.addEventListener("input", filter);
  return element;
}

const input = control("rows with these words", document.createElement("input"));
input.type = "search";
heads.forEach((head, column) => {
  const values = [...new Set(rows.map((row) => value(row, column)))].sort(compare);
  if (!("choose" in head.dataset) || values.length < 2 || values.length > 24) return;
  const select = document.createElement("select");
  select.append(new Option("all", "all"), ...values.map((each) => new Option(each || "none", "=" + each)));
  chosen.set(column, control(head.textContent, select));
});
const count = document.createElement("output");
controls.append(count);

function filter() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const fits = [...chosen].every(([at, s]) => s.value === "all" || s.value === "=" + value(row, at));
    row.hidden = !(fits && words.every((word) => text.includes(word)));
    shown += !row.hidden;
  }
  count.textContent = `${shown} of ${rows.length} runs`;
}
filter();
