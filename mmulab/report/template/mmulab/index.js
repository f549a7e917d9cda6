"use strict";
// Sorts and filters the table of runs. The page reads without it.
const table = document.querySelector("table.runs");
const body = table.tBodies[0];
const rows = [...body.rows];
const words_of = rows.map((row) => row.textContent.toLowerCase());
const AT_ONCE = 200;  // rows that stand in the page: laying out thousands takes seconds
let order = rows.map((_, at) => at);
let limit = AT_ONCE;
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
  const keyed = rows.map((row, at) => [value(row, column), at]);
  keyed.sort((a, b) => {
    const missing = (a[0] === "") - (b[0] === "");
    return missing || (up ? 1 : -1) * compare(a[0], b[0]) || a[1] - b[1];
  });
  order = keyed.map((entry) => entry[1]);
  show();
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
  element.addEventListener("input", () => { limit = AT_ONCE; show(); });
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
const more = document.createElement("button");
more.className = "more";
more.addEventListener("click", () => { limit = rows.length; show(); });
table.after(more);

function show() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = order.filter((at) =>
    [...chosen].every(([column, s]) => s.value === "all" || s.value === "=" + value(rows[at], column))
    && words.every((word) => words_of[at].includes(word)));
  body.replaceChildren(...found.slice(0, limit).map((at) => rows[at]));
  const first = found.length > limit ? `, the first ${limit} shown` : "";
  count.textContent = `${found.length} of ${rows.length} runs${first}`;
  more.hidden = found.length <= limit;
  more.textContent = `show all ${found.length}`;
}
show();
