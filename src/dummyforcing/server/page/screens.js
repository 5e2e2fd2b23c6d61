// The stage: the videos that are watched, tabs for several, and what is said over them.

import { $, make, say, show } from "./dom.js";
import { caption } from "./meters.js";
import { clock } from "./text.js";

export class Screens {
  #screens = new Map(); // by track: { figure, words, tab }

  /** Takes its place; `select` is told which track was chosen. */
  constructor(select) {
    this.select = select;
    $("tabs").addEventListener("keydown", (event) => this.#key(event));
  }

  /** Shows the tracks of a session. */
  update(session) {
    for (const [id, player] of session.players) if (!this.#screens.has(id)) this.#add(id, player, session);
    const isMany = session.tracks.size > 1;
    show($("tabs"), isMany);
    show($("side"), isMany);
    $("side").setAttribute("aria-pressed", String(session.isSide));
    $("screens").classList.toggle("many", isMany && session.isSide);
    for (const [id, { figure, words, tab }] of this.#screens) {
      const isCurrent = id === session.current;
      show(figure, session.isWatched(id));
      show(words, isMany && session.isSide);
      figure.classList.toggle("current", isCurrent && isMany && session.isSide);
      tab.setAttribute("aria-selected", String(isCurrent));
      tab.tabIndex = isCurrent ? 0 : -1;
    }
  }

  /** Takes a new reading of a track. */
  read(track) {
    const screen = this.#screens.get(track.id);
    if (screen) say(screen.reading, caption(track));
  }

  clear() {
    this.#screens.clear();
    $("screens").replaceChildren();
    $("tabs").replaceChildren();
    show($("tabs"), false);
  }

  #add(id, player, session) {
    const { track } = player;
    const name = nameOf(track);
    const title = make("strong", { textContent: name });
    const reading = make("span", { className: "reading" });
    const words = make("figcaption", { id: `screen-words-${id}` }, title, reading);
    const [width, height] = session.info.size;
    $("stage").style.setProperty("--width", width);
    $("stage").style.setProperty("--height", height);
    const figure = make("figure", { className: "screen", id: `screen-${id}`, role: "tabpanel", ariaLabel: name, onclick: () => this.select(id) }, player.video, words);
    const tab = make("button", { type: "button", id: `tab-${id}`, role: "tab", textContent: name, onclick: () => this.select(id) });
    tab.setAttribute("aria-controls", `screen-${id}`);
    $("screens").append(figure);
    $("tabs").append(tab);
    this.#screens.set(id, { figure, words, tab, reading });
    this.read(track);
  }

  #key(event) {
    const tabs = [...$("tabs").children];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  }
}

function nameOf(track) {
  if (track.parent !== null) return `Video ${track.id + 1}, from ${clock(track.end(track.common))} of ${track.parent + 1}`;
  return track.id === 0 ? "Video 1" : track.policy === "dense" ? "Dense cache" : `Video ${track.id + 1}`;
}

/** Says something over the stage, with a button if `action` is there; an empty text takes it away. */
export function notice(text, label = "", action = null) {
  say($("notice-text"), text);
  show($("notice"), Boolean(text));
  show($("notice-button"), Boolean(action));
  $("notice-button").textContent = label;
  $("notice-button").onclick = action;
}
