// Steps through a recording whose panels were drawn beforehand; needs no kernel and no network.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("steps").textContent);
  const last = data.steps.length - 1;
  const get = (id) => document.getElementById(id);
  const body = get("body"), slider = get("slider"), place = get("place"), status = get("status");
  const search = get("search"), argument = get("argument"), density = get("density");
  let at = data.at;

  function show(message) {
    body.innerHTML = data.steps[at].panels.map((number) => data.panels[number]).join("");
    slider.value = at;
    place.textContent = `moment ${data.first + at} of ${data.first} to ${data.first + last}: ${data.steps[at].title}`;
    status.textContent = message || "";
    const [low, high] = data.ends;
    density.style.left = `${100 * (low + ((high - low) * at) / Math.max(last, 1))}%`;
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

  function step(grain, back) {
    if (grain === "event") return go(at + (back ? -1 : 1));
    const found = neighbour(data.stops[grain], back);
    go(found === null ? (back ? 0 : last) : found);
  }

  function find(back) {
    const wanted = argument.value.trim().toLowerCase().replace(/^0x/, "");
    let places = data.finds[search.value];
    if (search.value === "gfn") {
      places = data.steps.flatMap((one, number) => (one.gfn === wanted ? [number] : []));
    }
    const found = neighbour(places, back);
    if (found === null) return show(`none ${back ? "before" : "after"} this moment`);
    go(found);
  }

  const grain = () => document.querySelector("input[name=grain]:checked").value;
  get("previous").addEventListener("click", () => step(grain(), true));
  get("next").addEventListener("click", () => step(grain(), false));
  get("find-previous").addEventListener("click", () => find(true));
  get("find-next").addEventListener("click", () => find(false));
  slider.addEventListener("input", () => go(Number(slider.value)));
  const keys = {
    n: ["event", false], p: ["event", true], f: ["fault", false], F: ["fault", true],
    o: ["operation", false], O: ["operation", true],
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=text], select") || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in keys) step(...keys[event.key]);
    else if (event.key === "s") find(false);
    else if (event.key === "S") find(true);
    else return;
    event.preventDefault();
  });
  slider.max = last;
  get("controls").hidden = false;
  get("still").hidden = true;
  show();
})();
