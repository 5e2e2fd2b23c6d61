// The timeline of a track: its scenes, and of each its chunks as cells. Those that are held can be chosen.

import { $, make, show } from "./dom.js";
import { clock } from "./text.js";

const PICTURE = 96; // pixels of a side

export class Timeline {
  #track = null;
  #cells = [];
  #scenes = []; // { element, first }
  #focus = 0; // the cell that Tab goes to
  #now = null;
  #coming = make("div", { className: "scene coming" }, make("p", { className: "prompt" }), make("p", { className: "quiet", textContent: "comes next" }));

  /**
   * Takes its place on the page.
   * @param strip the element.
   * @param choose is told the index of a held chunk that was chosen.
   */
  constructor(strip, choose) {
    Object.assign(this, { strip, choose });
    strip.addEventListener("click", (event) => this.#click(event.target.closest(".cell")));
    strip.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Shows another track, or none. */
  show(track) {
    if (track !== this.#track) {
      this.#cut(0);
      this.#now = null;
    }
    this.#track = track;
    this.update();
  }

  /** Follows the track: new chunks, other ones, a prompt that is on its way. */
  update() {
    const track = this.#track;
    show($("timeline"), Boolean(track));
    if (!track) return;
    const same = this.#cells.findIndex((cell, i) => track.chunks[i] !== cell.chunk);
    if (same >= 0) this.#cut(same);
    for (let i = this.#cells.length; i < track.chunks.length; i++) this.#add(i);
    this.#cells.forEach((cell, i) => this.#mark(cell, i));
    this.#scenes.forEach((scene) => this.#describe(scene));
    this.#pending(track.pending);
  }

  /** The playhead is in a chunk. */
  enter(chunk) {
    this.#cells[this.#now]?.element.removeAttribute("aria-current");
    this.#now = chunk.index;
    const cell = this.#cells[chunk.index];
    if (!cell) return;
    cell.element.setAttribute("aria-current", "true");
    if (this.strip.contains(document.activeElement)) return; // somebody is choosing
    this.#roving(chunk.index);
    const right = cell.element.offsetLeft + cell.element.offsetWidth - this.strip.clientWidth + 160;
    this.strip.scrollLeft = Math.max(0, right); // at once: moving along would cost the model's time on a small machine
  }

  /** A chunk has a picture now. */
  picture(chunk) {
    const cell = this.#cells[chunk.index];
    if (!cell || cell.chunk !== chunk) return;
    paint(cell.canvas, chunk.thumb);
    const scene = this.#scenes.findLast((one) => one.first <= chunk.index);
    if (chunk.index <= scene.first + 2) paint(scene.canvas, chunk.thumb);
  }

  focus(index) {
    this.#cells[index]?.element.focus();
  }

  #cut(from) {
    for (const cell of this.#cells.splice(from)) cell.element.remove();
    while (this.#scenes.length && this.#scenes.at(-1).first >= from) this.#scenes.pop().element.remove();
    if (this.#focus >= from) this.#roving(Math.max(0, from - 1));
  }

  #add(index) {
    const chunk = this.#track.chunks[index];
    if (index === 0 || this.#track.isScene(index)) this.#addScene(index);
    const canvas = make("canvas", { width: 48, height: 48, "aria-hidden": "true" });
    const element = make("button", { type: "button", className: "cell", tabIndex: index === this.#focus ? 0 : -1 }, canvas);
    element.dataset.index = String(index);
    this.#cells.push({ element, canvas, chunk });
    this.#scenes.at(-1).row.append(element);
    if (chunk.thumb) this.picture(chunk);
  }

  #addScene(first) {
    const canvas = make("canvas", { width: PICTURE, height: PICTURE, "aria-hidden": "true" });
    const prompt = make("p", { className: "prompt" });
    const about = make("p", { className: "quiet" });
    const row = make("div", { className: "cells" });
    const head = make("div", { className: "scene-head" }, canvas, make("div", {}, prompt, about));
    const element = make("div", { className: "scene", role: "group" }, head, row);
    this.strip.append(element);
    this.#scenes.push({ element, canvas, prompt, about, row, first });
  }

  #describe({ element, prompt, about, first }) {
    const track = this.#track;
    const text = track.chunks[first].prompt;
    const took = track.changes.get(first);
    const change = first && took !== undefined ? `, changed in ${took.toFixed(1)} s` : "";
    const from = track.common !== null && first <= track.common ? ", before the branch" : "";
    prompt.textContent = text;
    about.textContent = `from ${clock(track.start(first))}${change}${from}`;
    element.setAttribute("aria-label", `Scene from ${clock(track.start(first))}${change}: ${text}`);
  }

  #mark(cell, index) {
    const track = this.#track;
    const isHeld = track.held.has(index);
    if (cell.isHeld === isHeld) return;
    cell.isHeld = isHeld;
    const { element } = cell;
    element.classList.toggle("held", isHeld);
    element.setAttribute("aria-disabled", String(!isHeld));
    const where = `Chunk ${index + 1}, ${clock(track.start(index), 1)}`;
    element.setAttribute("aria-label", isHeld ? `${where}: branch or rewind` : `${where}, no longer held`);
    element.title = isHeld ? `${where}: branch or rewind here` : where;
  }

  #pending(prompt) {
    this.#coming.remove();
    if (!prompt) return;
    this.#coming.firstChild.textContent = prompt;
    this.strip.append(this.#coming);
  }

  #click(element) {
    if (element?.classList.contains("held")) this.choose(Number(element.dataset.index));
  }

  #key(event) {
    const to = { ArrowRight: this.#focus + 1, ArrowLeft: this.#focus - 1, Home: 0, End: this.#cells.length - 1 }[event.key];
    if (to === undefined || !this.#cells[to]) return;
    event.preventDefault();
    this.#roving(to);
    this.#cells[to].element.focus();
  }

  #roving(index) {
    if (this.#cells[this.#focus]) this.#cells[this.#focus].element.tabIndex = -1;
    this.#focus = index;
    if (this.#cells[index]) this.#cells[index].element.tabIndex = 0;
  }
}

/** A small picture of what a video shows now: its middle square. */
export function grab(video) {
  const side = Math.min(video.videoWidth, video.videoHeight);
  const canvas = make("canvas", { width: PICTURE, height: PICTURE });
  const [left, top] = [(video.videoWidth - side) / 2, (video.videoHeight - side) / 2];
  canvas.getContext("2d").drawImage(video, left, top, side, side, 0, 0, PICTURE, PICTURE);
  return canvas;
}

/** Paints a small picture on a canvas of another size. */
export function paint(canvas, picture) {
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.classList.add("painted");
}
