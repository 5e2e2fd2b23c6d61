// Help with the words of a model that knows only some: suggestions while one types, and what it does not know.

import { make, show } from "./dom.js";
import { nearest, words } from "./text.js";

const MOST = 6;

/** Names the words of a text that a model does not know, with one that it knows and that is near. */
export class Unknown {
  known = null; // all words that the model knows; null: any

  constructor(field, box) {
    Object.assign(this, { field, box });
    field.addEventListener("input", () => this.look(true));
    field.addEventListener("blur", () => this.look());
  }

  /** Looks; with `isTyping` the last word is left alone, as it may not be whole. */
  look(isTyping = false) {
    const text = this.field.value;
    const found = this.known ? words(isTyping ? text.replace(/[\p{L}\p{N}]+$/u, "") : text) : [];
    const unknown = [...new Set(found)].filter((word) => !this.known.includes(word));
    if (unknown.join() === this.named) return;
    this.named = unknown.join();
    this.box.replaceChildren(...unknown.flatMap((word) => this.#line(word)));
  }

  #line(word) {
    const other = nearest(word, this.known);
    const text = make("p", {}, "The model does not know ", make("strong", { textContent: word }), ". ");
    if (other) {
      const onclick = () => this.#replace(word, other);
      text.append(make("button", { type: "button", textContent: `Take “${other}”`, onclick }));
    }
    return text;
  }

  #replace(word, other) {
    this.field.value = this.field.value.replace(/[\p{L}\p{N}]+/gu, (found) => (found.toLowerCase() === word ? other : found));
    this.field.focus();
    this.look();
  }
}

/** Suggests words that begin like the one that is typed: arrow keys, then Enter or Tab. */
export class Suggestions {
  known = null;
  #chosen = -1;

  constructor(field, list) {
    Object.assign(this, { field, list });
    field.addEventListener("input", () => this.#look());
    field.addEventListener("keydown", (event) => this.#key(event));
    field.addEventListener("blur", () => this.close());
    list.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the field keeps the focus
      const option = event.target.closest("li");
      if (option) this.#take(option.textContent);
    });
  }

  get isChosen() {
    return this.#chosen >= 0;
  }

  close() {
    show(this.list, false);
    this.#choose(-1);
  }

  #look() {
    const begun = this.#begun().toLowerCase();
    const isWord = begun && this.known && !this.known.includes(begun);
    const found = isWord ? this.known.filter((word) => word.startsWith(begun)).slice(0, MOST) : [];
    this.list.replaceChildren(
      ...found.map((word, i) => make("li", { id: `word-${i}`, role: "option", "aria-selected": "false", textContent: word })),
    );
    show(this.list, found.length > 0);
    this.#choose(-1);
  }

  /** The word that the caret is at the end of. */
  #begun() {
    return this.field.value.slice(0, this.field.selectionStart).match(/[\p{L}\p{N}]+$/u)?.[0] ?? "";
  }

  #key(event) {
    const count = this.list.children.length;
    if (this.list.hidden || event.isComposing) return;
    if (event.key === "Escape") this.close();
    else if (event.key === "ArrowDown") this.#choose((this.#chosen + 1) % count);
    else if (event.key === "ArrowUp") this.#choose(this.#chosen > 0 ? this.#chosen - 1 : count - 1);
    else if ((event.key === "Enter" || event.key === "Tab") && this.isChosen && !event.shiftKey) {
      this.#take(this.list.children[this.#chosen].textContent);
    } else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }

  #choose(index) {
    this.#chosen = index;
    [...this.list.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === index)));
    if (index < 0) this.field.removeAttribute("aria-activedescendant");
    else this.field.setAttribute("aria-activedescendant", `word-${index}`);
  }

  #take(word) {
    const caret = this.field.selectionStart;
    const from = caret - this.#begun().length;
    const after = this.field.value.slice(caret);
    this.field.setRangeText(after.startsWith(" ") ? word : `${word} `, from, caret, "end");
    this.close();
    this.field.dispatchEvent(new Event("input"));
  }
}
