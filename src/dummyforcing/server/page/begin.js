// A picture or a clip to begin with: by drag and drop, or chosen.

import { $, make, show } from "./dom.js";
import { reason } from "./server.js";

const KINDS = { frame: ["image"], clip: ["clip"], chunk: ["image", "clip"] };
const NAMES = { image: "a picture", clip: "a clip" };
const TYPES = { image: "image/*", clip: "video/*" };

export class Beginning {
  #kinds = []; // what the model can begin with
  #file = null; // { id, kind, url }

  /** Takes its place; `problem` is told what is wrong. */
  constructor(problem) {
    this.problem = problem;
    $("begin-choose").onclick = () => $("begin-file").click();
    $("begin-file").onchange = ({ target }) => {
      if (target.files[0]) this.#upload(target.files[0]);
      target.value = "";
    };
    const carries = (event) => event.dataTransfer?.types.includes("Files");
    let depth = 0; // of elements that are being dragged over
    window.addEventListener("dragenter", (event) => carries(event) && show($("drop"), ++depth > 0 && this.#kinds.length > 0));
    window.addEventListener("dragleave", (event) => carries(event) && show($("drop"), --depth > 0 && this.#kinds.length > 0));
    window.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
    window.addEventListener("drop", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      depth = 0;
      show($("drop"), false);
      if (event.dataTransfer.files[0]) this.#upload(event.dataTransfer.files[0]);
    });
  }

  /** Offers what a model can start from. */
  offer(start) {
    this.#kinds = KINDS[start] ?? [];
    show($("begin"), this.#kinds.length > 0);
    $("begin-choose").textContent = `Begin with ${this.#names}…`;
    $("begin-file").accept = this.#kinds.map((kind) => TYPES[kind]).join();
  }

  /** The fields for a `start` message. */
  get request() {
    return this.#file ? { [this.#file.kind]: this.#file.id } : {};
  }

  get #names() {
    return this.#kinds.map((kind) => NAMES[kind]).join(" or ");
  }

  async #upload(file) {
    const kind = file.type.startsWith("image/") ? "image" : "clip";
    if (!this.#kinds.length) return this.problem("This model begins with a prompt alone, not with a picture or a clip.");
    if (!this.#kinds.includes(kind)) return this.problem(`This model begins with ${this.#names}; “${file.name}” is something else.`);
    this.problem("");
    this.#show(make("p", { textContent: `Sending ${file.name}…` }));
    const form = new FormData();
    form.append("purpose", "vision");
    form.append("file", file);
    try {
      const response = await fetch("/v1/files", { method: "POST", body: form });
      if (!response.ok) throw new Error(await reason(response));
      this.#take((await response.json()).id, kind, file);
    } catch (error) {
      this.#drop();
      this.problem(`“${file.name}” was not taken: ${error.message}`);
    }
  }

  #take(id, kind, file) {
    const url = URL.createObjectURL(file);
    this.#file = { id, kind, url };
    const isImage = kind === "image";
    const about = isImage ? { alt: "" } : { muted: true, autoplay: true, loop: true, playsInline: true };
    const picture = make(isImage ? "img" : "video", { src: url, ...about });
    const off = make("button", { type: "button", textContent: "Remove", onclick: () => this.#drop() });
    this.#show(picture, make("span", { textContent: `begins with ${file.name}` }), off);
  }

  #show(...what) {
    $("begin-chosen").replaceChildren(...what);
    show($("begin-chosen"));
    show($("begin-choose"), false);
  }

  #drop() {
    if (this.#file) URL.revokeObjectURL(this.#file.url);
    this.#file = null;
    show($("begin-chosen"), false);
    show($("begin-choose"));
  }
}
