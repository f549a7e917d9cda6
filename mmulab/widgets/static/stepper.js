// Steps through a recording whose panels were drawn beforehand; needs no kernel and no network.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("steps").textContent);
  const last = data.steps.length - 1;
  const get = (id) => document.getElementById(id);
  const slider = get("slider"), picture = get("picture"), search = get("search"), argument = get("argument");
  const part = last === data.end ? "" : ` (this page: ${data.first} to ${data.first + last})`;
  let at = data.at, grain = "event";

  const share = (number) => `${(100 * (number + 0.5)) / (last + 1)}%`;

  function body() {
    const places = [...document.querySelectorAll("#body > .mml-grid, #body > .mml-columns > div")];
    const shown = data.steps[at].panels.map((number) => data.panels[number]);
    places.forEach((place, column) => {
      place.innerHTML = shown.filter((one) => one[0] === column).map((one) => one[1]).join("");
    });
  }

  function show(message) {
    body();
    slider.value = at;
    get("place").textContent = `moment ${data.first + at} of ${data.end}${part}: ${data.steps[at].title}`;
    get("status").textContent = message || "";
    get("density").style.left = share(at);
    for (const [id, end] of [["previous", 0], ["next", last]]) get(id).disabled = at === end;
  }

  function neighbour(places, back) {
    const found = back ? places.filter((n) => n < at).pop() : places.find((n) => n > at);
    return found === undefined ? null : found;
  }

  function go(number) {
    at = Math.min(Math.max(number, 0), last);
    show();
  }

  function step(by, back) {
    if (by === "event") return go(at + (back ? -1 : 1));
    const found = neighbour(data.stops[by], back);
    go(found === null ? (back ? 0 : last) : found);
  }

  function finds(what) {
    if (what !== "gfn") return data.finds[what] || [];
    const wanted = argument.value.trim().toLowerCase().replace(/^0x/, "");
    return data.steps.flatMap((one, number) => (one.gfn === wanted ? [number] : []));
  }

  function find(what, back) {
    const found = neighbour(finds(what), back);
    if (found !== null) return go(found);
    show(what === "wrong" && !finds(what).length
      ? "no wrong access" : `none ${back ? "before" : "after"} this moment`);
  }

  function mark() {
    argument.hidden = search.value !== "gfn";
    get("marks").replaceChildren(...finds(search.value).map((number) => {
      const line = document.createElement("i");
      line.style.left = share(number);
      return line;
    }));
  }

  function choose(name) {
    grain = name;
    for (const one of document.querySelectorAll("[data-grain]")) {
      one.setAttribute("aria-pressed", one.dataset.grain === name);
    }
  }

  function point(event) {
    const box = picture.getBoundingClientRect();
    go(Math.floor(((event.clientX - box.left) / box.width) * (last + 1)));
  }

  const onClick = (id, act) => get(id).addEventListener("click", act);
  onClick("previous", () => step(grain, true));
  onClick("next", () => step(grain, false));
  onClick("find-previous", () => find(search.value, true));
  onClick("find-next", () => find(search.value, false));
  for (const one of document.querySelectorAll("[data-grain]")) {
    one.addEventListener("click", () => choose(one.dataset.grain));
  }
  slider.addEventListener("input", () => go(Number(slider.value)));
  search.addEventListener("change", mark);
  argument.addEventListener("input", mark);
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    picture.setPointerCapture(event.pointerId);
    slider.focus();
    point(event);
  });
  picture.addEventListener("pointermove", (event) => {
    if (picture.hasPointerCapture(event.pointerId)) point(event);
  });

  const keys = {
    ArrowLeft: () => step(grain, true), ArrowRight: () => step(grain, false),
    Home: () => go(0), End: () => go(last),
    n: () => step("event", false), p: () => step("event", true),
    f: () => step("fault", false), F: () => step("fault", true),
    o: () => step("operation", false), O: () => step("operation", true),
    w: () => find("wrong", false), W: () => find("wrong", true),
    s: () => find(search.value, false), S: () => find(search.value, true),
    "/": () => search.focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target === argument || event.target === search) {
      if (event.key === "Escape") event.target.blur();
      else if (event.key === "Enter") find(search.value, event.shiftKey);
      else return;
    } else if (Object.hasOwn(keys, event.key)) keys[event.key]();
    else return;
    event.preventDefault();
  });
  slider.max = last;
  get("controls").hidden = false;
  get("still").hidden = true;
  mark();
  show();
})();
