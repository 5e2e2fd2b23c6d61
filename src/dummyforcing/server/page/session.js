// A session: its connection, its tracks and their players, and which of them are watched.

import { Connection } from "./connection.js";
import { Player, canPlay } from "./player.js";
import { Track } from "./track.js";

export class Session {
  info = null; // the server's `ready`
  tracks = new Map();
  players = new Map();
  current = 0; // the track that prompts are for
  isSide = false; // whether all tracks are watched, or the current one alone
  isPaused = false;
  isOver = false;
  #shown = new Map(); // by track: the chunk that the playhead is in

  /**
   * Begins one.
   * @param request the fields of the `start` message.
   * @param on functions that are told what happens, see main.js.
   */
  constructor(request, on) {
    this.request = request;
    this.on = on;
    this.isSide = Boolean(request.beside);
    this.began = performance.now();
    this.connection = new Connection(() => this.#hello(), {
      message: (message, segment) => this.#take[message?.type]?.(message, segment),
      lost: (wait) => on.lost(wait),
    });
  }

  get track() {
    return this.tracks.get(this.current);
  }

  get player() {
    return this.players.get(this.current);
  }

  isWatched(id) {
    return this.isSide || id === this.current;
  }

  /** The chunk of the current track that is on the screen. */
  get shown() {
    return this.#shown.get(this.current);
  }

  prompt(prompt, fade, expand) {
    this.track.pending = prompt;
    this.connection.send({ type: "prompt", prompt, fade, expand, track: this.current });
  }

  branch(chunk, prompt, fade) {
    this.connection.send({ type: "branch", chunk, prompt, fade, track: this.current });
  }

  rewind(chunk) {
    this.connection.send({ type: "rewind", chunk, track: this.current });
  }

  pause(isPaused) {
    this.isPaused = isPaused;
    this.connection.send({ type: isPaused ? "pause" : "resume" });
    this.#run();
  }

  select(id) {
    this.current = id;
    this.#run();
  }

  sideBySide(isSide) {
    this.isSide = isSide;
    this.#run();
  }

  /** Ends it; the server is told. */
  close() {
    if (!this.isOver) this.connection.send({ type: "stop" });
    this.isOver = true;
    this.connection.close();
    for (const player of this.players.values()) player.close();
  }

  #hello() {
    if (!this.info) return { type: "start", ...this.request };
    const last = {};
    for (const [id, track] of this.tracks) last[id] = track.number;
    return { type: "start", session: this.info.session, last };
  }

  /** Lets the players of what is watched play, and the others stand. */
  #run() {
    for (const [id, player] of this.players) {
      if (this.isWatched(id) && !this.isPaused) player.play();
      else player.pause();
    }
  }

  #add(info) {
    const track = new Track(info, this.info.fps);
    const player = new Player(track, this.info.codec, {
      entered: (chunk) => {
        this.#shown.set(track.id, chunk);
        this.#acknowledge(track.id);
        this.on.entered(track, chunk);
      },
      picture: () => this.on.picture(track, performance.now() - this.began),
      stalled: (isStalled) => this.on.stalled(track, isStalled),
      failed: (text) => this.on.problem(`The browser cannot play this video: ${text}`),
      tick: () => track.id === this.current && this.on.tick(),
    });
    this.tracks.set(track.id, track);
    this.players.set(track.id, player);
    return track;
  }

  #acknowledge(id) {
    const chunk = this.#shown.get(id);
    if (chunk && this.isWatched(id)) this.connection.send({ type: "ack", track: id, chunk: chunk.index });
  }

  #end(track) {
    track.isDone = true;
    track.pending = null;
    this.players.get(track.id).finish();
  }

  /** What to do with each kind of message. */
  #take = {
    ready: (message) => {
      if (!canPlay(message.codec)) {
        this.close();
        return this.on.refused(`This browser cannot play ${message.codec}; try a recent Chrome, Edge, Firefox or Safari`);
      }
      this.info = message;
      for (const info of message.tracks) {
        if (this.tracks.has(info.track)) continue;
        const track = this.#add(info);
        const parent = this.tracks.get(info.parent);
        if (parent) track.inherit(parent);
      }
      this.connection.ready();
      for (const id of this.tracks.keys()) this.#acknowledge(id);
      this.#run();
      this.on.ready(message);
    },
    chunk: (chunk, segment) => {
      const track = this.tracks.get(chunk.track);
      if (!track) return;
      track.put(chunk);
      this.players.get(chunk.track).append(chunk, segment);
      this.on.chunk(track, chunk);
    },
    prompt_active: ({ track: id, chunk, prompt, seconds }) => {
      const track = this.tracks.get(id);
      track.prompt = prompt;
      track.pending = null;
      track.changes.set(chunk, seconds);
      this.on.changed(track, chunk, prompt, seconds);
    },
    heads: ({ track: id, roles, policy }) => {
      const track = this.tracks.get(id);
      Object.assign(track, { roles, policy });
      this.on.heads(track);
    },
    branched: (message) => {
      const track = this.#add(message);
      track.inherit(this.tracks.get(message.parent));
      this.current = track.id;
      this.#run();
      this.on.branched(track);
    },
    rewound: ({ track: id, chunk }) => {
      const track = this.tracks.get(id);
      track.cut(chunk + 1);
      track.pending = null;
      this.players.get(id).rewind(track.start(chunk), track.end(chunk));
      this.#run();
      this.on.rewound(track, chunk);
    },
    queued: ({ place }) => this.on.queued(place),
    warning: (message) => this.on.warned(message),
    done: ({ track: id, reason }) => {
      if (id !== null) {
        this.#end(this.tracks.get(id));
        return this.on.done(this.tracks.get(id));
      }
      this.isOver = true;
      this.connection.close();
      for (const track of this.tracks.values()) this.#end(track);
      this.on.over(reason);
    },
    error: ({ message, code }) => {
      if (this.connection.isReady) {
        if (this.track) this.track.pending = null;
        return this.on.problem(message);
      }
      this.isOver = true;
      this.connection.close();
      for (const track of this.tracks.values()) this.#end(track);
      if (this.info) this.on.over("gone");
      else this.on.refused(message);
    },
  };
}
