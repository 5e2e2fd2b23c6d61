// The drawer: what a video shall be besides its prompt. The browser remembers it.

import { $, make, say, show } from "./dom.js";
import { count } from "./text.js";

const KEY = "dummyforcing settings";
const DEFAULTS = { policy: "", length: "", size: "", seed: "", fade: "1" };
const RANDOM = 1_000_000;

export class Settings {
  /** Fills the drawer in; `again` is called to begin the video again with what was set. */
  constructor(again) {
    this.fields = Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, $(`set-${name}`)]));
    $("settings-open").onclick = () => $("settings").showModal();
    $("settings-form").onsubmit = () => this.#keep();
    $("settings-again").onclick = () => {
      if (!$("settings-form").reportValidity()) return;
      this.#keep();
      $("settings").close();
      again();
    };
    $("settings-reset").onclick = () => this.#set(DEFAULTS);
    this.fields.size.oninput = () => this.#checkSize();
    this.fields.fade.oninput = () => this.#fade();
    this.seconds = 0.75;
  }

  /** Offers what a model can do. */
  offer({ policies, size, fps, chunk_frames: frames }) {
    const own = size.join("x");
    $("policies").replaceChildren(...policies.map((value) => make("option", { value })));
    this.fields.size.placeholder = own;
    const sizes = size[0] < 400 ? [own] : [own, "480p", "720p", "1080p"];
    $("sizes").replaceChildren(...sizes.map((value) => make("option", { value })));
    this.seconds = frames / fps;
    this.#set({ ...DEFAULTS, ...this.#kept() });
  }

  /** A session has begun: says its seed, and how long its chunks are. */
  tell({ seed, chunk_frames: frames, fps }) {
    this.seconds = frames / fps;
    this.#fade();
    say($("seed-now"), `This video's seed is ${seed}. The same seed gives the same video.`);
    show($("settings-again"));
  }

  get fade() {
    return Number(this.fields.fade.value);
  }

  /** The fields for a `start` message. */
  get request() {
    const { policy, length, size, seed } = this.fields;
    const request = { seed: seed.value === "" ? Math.floor(Math.random() * RANDOM) : Number(seed.value) };
    if (policy.value.trim()) request.policy = policy.value.trim();
    if (length.value) request.seconds = Number(length.value);
    if (size.value.trim()) request.size = size.value.replace(/\s/g, "");
    return request;
  }

  /** A size that no model can make is refused here, before it costs a video that runs. */
  #checkSize() {
    const sides = this.fields.size.value.match(/\d+(?=\s*x)|(?<=x\s*)\d+/g) ?? [];
    const wrong = sides.some((side) => Number(side) % 16 || Number(side) < 16);
    this.fields.size.setCustomValidity(wrong ? "Width and height must be multiples of 16, such as 320x160" : "");
  }

  #set(values) {
    for (const [name, field] of Object.entries(this.fields)) field.value = values[name];
    this.#checkSize();
    this.#fade();
  }

  #fade() {
    say($("fade-now"), `over ${count(this.fade, "chunk")}, ${(this.fade * this.seconds).toFixed(1)} s`);
  }

  #keep() {
    const values = Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.value]));
    try {
      localStorage.setItem(KEY, JSON.stringify(values));
    } catch {
      // private windows may refuse; the settings hold for this visit then
    }
  }

  #kept() {
    try {
      return JSON.parse(localStorage.getItem(KEY)) ?? {};
    } catch {
      return {};
    }
  }
}
