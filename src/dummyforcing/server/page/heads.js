// The head map: one square for every head, colored by its role.

import { $, draw, make, show } from "./dom.js";
import { count } from "./text.js";

const SEES = {
  dummy: "the newest frame",
  sink: "the first frame",
  neighbor: "the last few frames",
  uniform: "the same past, all of them",
};
const OTHERS = ["other-1", "other-2", "other-3", "other-4"];
const CELL = 10;

/** Shows the roles of a track's heads, or an empty map of the model. */
export function showHeads(roles) {
  show($("heads"), Boolean(roles));
  if (!roles) return;
  const names = [...new Set(roles.flat())].sort((a, b) => rank(a) - rank(b));
  const shade = Object.fromEntries(names.map((name) => [name, `role-${SEES[name] ? name : OTHERS[names.indexOf(name) % OTHERS.length]}`]));
  const counts = names.map((name) => [name, roles.flat().filter((role) => role === name).length]);
  const heads = roles[0].length;
  const map = draw("svg", {
    viewBox: `0 0 ${heads * CELL} ${roles.length * CELL}`,
    role: "img",
    "aria-label": `${count(roles.length, "layer")} of ${count(heads, "head")}: ${counts.map(([name, n]) => `${n} ${name}`).join(", ")}`,
  });
  roles.forEach((row, layer) =>
    row.forEach((role, head) => {
      const place = { x: head * CELL + 0.5, y: layer * CELL + 0.5, width: CELL - 1, height: CELL - 1, rx: 1.5, class: shade[role] };
      const title = draw("title");
      title.textContent = `Layer ${layer + 1}, head ${head + 1}: ${role}`;
      map.append(draw("rect", place, title));
    }),
  );
  $("heads-map").replaceChildren(map);
  $("heads-legend").replaceChildren(
    ...counts.map(([name, n]) => {
      const text = `${n} ${name}${SEES[name] ? `: ${n === 1 ? "sees" : "see"} ${SEES[name]}` : ""}`;
      return make("li", {}, make("span", { className: `swatch ${shade[name]}` }), text);
    }),
  );
  $("heads-text").replaceChildren(...roles.map((row) => make("li", { textContent: row.join(", ") })));
  show($("heads-words"));
}

function rank(name) {
  const place = Object.keys(SEES).indexOf(name);
  return place < 0 ? 99 : place;
}
