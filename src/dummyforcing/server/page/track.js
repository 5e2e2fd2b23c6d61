// What is known of one video of a session: its chunks, scenes, head map.

export class Track {
  chunks = []; // the server's `chunk` messages, and `thumb`, a small picture, once it was seen
  held = new Set(); // chunks that one can go back to or branch from
  changes = new Map(); // by first chunk of a scene: seconds that the change took
  roles = null;
  pending = null; // a prompt that was asked for and is not shown yet
  number = 0; // of the chunk that came last: the server sends what was made after it
  isDone = false;

  constructor({ track, parent = null, chunk = null, policy, prompt }, fps) {
    Object.assign(this, { id: track, parent, common: chunk, policy, prompt, fps });
  }

  /** Takes over what a branch has in common with its parent. */
  inherit(parent) {
    this.chunks = parent.chunks.slice(0, this.common + 1);
    this.held = new Set([...parent.held].filter((index) => index <= this.common));
    this.changes = new Map([...parent.changes].filter(([index]) => index <= this.common));
    this.roles = parent.roles;
    this.number = this.last.number;
  }

  /** Takes a new chunk; what was there from its index on is given up. */
  put(chunk) {
    this.cut(chunk.index);
    this.chunks[chunk.index] = chunk;
    this.number = chunk.number;
    this.held = new Set(chunk.held);
    this.isDone = false;
  }

  /** Gives up the chunks from this one on. */
  cut(index) {
    this.chunks.length = Math.min(this.chunks.length, index);
    this.isDone = false;
  }

  get last() {
    return this.chunks.at(-1);
  }

  start(index) {
    return this.chunks[index].first_frame / this.fps;
  }

  end(index) {
    return (this.chunks[index].first_frame + this.chunks[index].frames) / this.fps;
  }

  /** The chunk that is shown at a time. */
  at(seconds) {
    const frame = seconds * this.fps + 0.1; // a clock may be a little behind the frame that it shows
    return this.chunks.findLast((chunk) => chunk && chunk.first_frame <= frame);
  }

  /** Whether a scene begins with this chunk. */
  isScene(index) {
    return this.chunks[index - 1]?.prompt !== this.chunks[index]?.prompt;
  }

  /** First and last chunk of the scene that a chunk is in. */
  scene(index) {
    let [first, last] = [index, index];
    while (first > 0 && !this.isScene(first)) first--;
    while (last + 1 < this.chunks.length && !this.isScene(last + 1)) last++;
    return [first, last];
  }
}
