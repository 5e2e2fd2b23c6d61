// Plays one track: segments go into a Media Source, the playhead says which chunk is watched.

import { make } from "./dom.js";

const Source = window.ManagedMediaSource ?? window.MediaSource;
const BEHIND = 10; // seconds that are kept behind the playhead
const TICK = 100; // milliseconds
const THIN = 0.75; // seconds ahead of the playhead below which it slows down, so as not to stop
const SLOWEST = 0.4;

/** Whether this browser can play what the server sends. */
export function canPlay(codec) {
  return Boolean(Source?.isTypeSupported(codec));
}

export class Player {
  isWanted = false; // whether it shall play
  isStalled = false;
  stalls = 0;
  lead = 0; // seconds in the buffer ahead of the playhead
  #buffer = null;
  #work = []; // what is to be done with the buffer, one after the other
  #target = null; // where the playhead goes as soon as that is in the buffer
  #entered = null; // the chunk that the playhead is in
  #hasBegun = false;
  #hasPicture = false;
  #clock = 0;
  #timer = 0;

  /**
   * Makes it.
   * @param track what it plays.
   * @param codec as the server names it.
   * @param on `entered(chunk)` of the playhead, `picture()` once, `tick()`, `stalled(isStalled)`, `failed(text)`.
   */
  constructor(track, codec, on) {
    this.track = track;
    this.on = on;
    this.video = make("video", { muted: true, playsInline: true, disableRemotePlayback: true, tabIndex: -1 });
    this.video.dataset.stalls = "0";
    this.source = new Source();
    this.source.addEventListener("sourceopen", () => this.#opened(codec), { once: true });
    this.url = URL.createObjectURL(this.source);
    this.video.src = this.url;
    this.video.addEventListener("error", () => on.failed(this.video.error.message));
    this.#timer = setInterval(() => this.#tick(), TICK);
  }

  get time() {
    return this.video.currentTime;
  }

  /** Takes a chunk of the track; one that was there, and all after it, are replaced. */
  append(chunk, segment) {
    const start = chunk.first_frame / this.track.fps;
    if (!this.#hasBegun || this.time > start) this.#target = start; // replaced under the playhead: seen from its start
    this.#hasBegun = true;
    this.#do(() => this.#remove(start - 0.01, Infinity));
    this.#do(() => this.#put(segment));
  }

  /** Drops what comes from here on, and goes on from `seconds`: at once if that is still there. */
  rewind(seconds, end) {
    this.#do(() => this.#remove(end - 0.01, Infinity));
    this.#target = this.#ahead(seconds + 0.01) > 0 ? seconds : end;
    this.#entered = null;
  }

  /** Nothing follows. */
  finish() {
    this.#do(() => this.source.readyState === "open" && this.source.endOfStream());
  }

  play() {
    this.isWanted = true;
    this.video.play().catch(() => {}); // the browser stops it itself while it has nothing to show
  }

  pause() {
    this.isWanted = false;
    this.video.pause();
  }

  close() {
    clearInterval(this.#timer);
    this.pause();
    this.video.removeAttribute("src");
    this.video.load();
    URL.revokeObjectURL(this.url);
    this.video.remove();
  }

  #opened(codec) {
    this.#buffer = this.source.addSourceBuffer(codec);
    this.#buffer.addEventListener("updateend", () => this.#next());
    this.#next();
  }

  #do(work) {
    this.#work.push(work);
    this.#next();
  }

  #next() {
    while (this.#buffer && !this.#buffer.updating && this.source.readyState !== "closed") {
      const work = this.#work.shift();
      if (!work) return this.#settle();
      work();
    }
  }

  #put(segment) {
    try {
      this.#buffer.appendBuffer(segment);
    } catch (error) {
      if (error.name !== "QuotaExceededError" || this.#begin() > this.time - 1) throw error;
      this.#work.unshift(() => this.#put(segment));
      this.#remove(0, this.time - 1);
    }
  }

  #remove(start, end) {
    const ranges = this.#buffer.buffered;
    if (ranges.length && ranges.end(ranges.length - 1) > start + 0.02) this.#buffer.remove(Math.max(0, start), end);
  }

  /** When the buffer has taken everything: to the target, if it is there; and what was watched is dropped. */
  #settle() {
    if (this.#target !== null && this.#ahead(this.#target + 0.01) > 0) {
      this.video.currentTime = this.#target + 0.001;
      this.#target = null;
      if (this.isWanted) this.play();
    }
    if (this.#target === null && this.#begin() < this.time - 2 * BEHIND) this.#remove(0, this.time - BEHIND);
  }

  #begin() {
    return this.#buffer?.buffered.length ? this.#buffer.buffered.start(0) : 0;
  }

  /** Seconds in the buffer from a time on. */
  #ahead(seconds) {
    const ranges = this.video.buffered;
    for (let i = 0; i < ranges.length; i++) {
      if (ranges.start(i) - 0.05 <= seconds && seconds < ranges.end(i)) return ranges.end(i) - seconds;
    }
    return 0;
  }

  #tick() {
    const { video, track } = this;
    this.lead = this.#ahead(video.currentTime);
    const isMoving = video.currentTime !== this.#clock;
    this.#clock = video.currentTime;
    if (isMoving && !this.#hasPicture && this.#target === null) {
      this.#hasPicture = true;
      this.on.picture();
    }
    if (this.#hasPicture) {
      const isAtEnd = track.isDone && this.lead < 0.2;
      this.#stall(this.isWanted && !isMoving && !isAtEnd && this.lead < 0.1);
      if (this.isStalled) this.#skip();
      const chunk = this.#target === null ? track.at(video.currentTime) : null;
      if (chunk && chunk !== this.#entered) {
        this.#entered = chunk;
        this.on.entered(chunk);
      }
    }
    const speed = track.isDone ? 1 : Math.min(1, SLOWEST + (1 - SLOWEST) * (this.lead / THIN));
    const rounded = Math.round(speed * 20) / 20;
    if (this.#hasPicture && video.playbackRate !== rounded) video.playbackRate = rounded;
    this.on.tick();
  }

  #stall(isStalled) {
    if (isStalled === this.isStalled) return;
    this.isStalled = isStalled;
    if (isStalled) this.video.dataset.stalls = String(++this.stalls);
    this.on.stalled(isStalled);
  }

  /** Over a gap, which is there when the server could not send everything again. */
  #skip() {
    const ranges = this.video.buffered;
    for (let i = 0; i < ranges.length; i++) {
      if (ranges.start(i) > this.time) return void (this.video.currentTime = ranges.start(i) + 0.001);
    }
  }
}
