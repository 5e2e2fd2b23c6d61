// The WebSocket of a session. It comes back by itself when it is lost.

const FIRST_WAIT = 500; // milliseconds before the first try to come back; twice as long each time
const LONGEST_WAIT = 8000;

export class Connection {
  #socket = null;
  #chunk = null; // the last `chunk` message, whose segment is to follow
  #unsent = [];
  #wait = FIRST_WAIT;
  #timer = 0;
  #isOver = false;
  #isReady = false; // whether the server has the session at hand

  /**
   * Opens it.
   * @param hello gives the `start` message, which is another one when the session is there already.
   * @param on `message(message, segment)` for each, and `lost(milliseconds)` before each new try.
   */
  constructor(hello, on) {
    this.hello = hello;
    this.on = on;
    this.online = () => this.#open();
    this.offline = () => this.#socket && this.#lose(this.#socket);
    window.addEventListener("online", this.online);
    window.addEventListener("offline", this.offline);
    this.#open();
  }

  /** Sends a message: now, or as soon as the session is there again. */
  send(message) {
    if (this.#isReady) this.#socket.send(JSON.stringify(message));
    else if (message.type !== "ack") this.#unsent.push(message);
  }

  get isReady() {
    return this.#isReady;
  }

  /** The session is there: sends what was said meanwhile. */
  ready() {
    this.#isReady = true;
    for (const message of this.#unsent.splice(0)) this.send(message);
  }

  /** Ends it for good. */
  close() {
    this.#isOver = true;
    clearTimeout(this.#timer);
    window.removeEventListener("online", this.online);
    window.removeEventListener("offline", this.offline);
    this.#socket?.close();
  }

  #open() {
    if (this.#isOver || this.#socket) return;
    clearTimeout(this.#timer);
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/v1/realtime`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(JSON.stringify(this.hello()));
    socket.onmessage = ({ data }) => socket === this.#socket && this.#take(data);
    socket.onclose = () => this.#lose(socket);
    this.#socket = socket;
    this.#chunk = null;
  }

  #take(data) {
    this.#wait = FIRST_WAIT;
    if (typeof data !== "string") return this.on.message(this.#chunk, data);
    const message = JSON.parse(data);
    if (message.type === "chunk") this.#chunk = message;
    else this.on.message(message, null);
  }

  #lose(socket) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    this.#isReady = false;
    socket.close();
    if (this.#isOver) return;
    this.on.lost(this.#wait);
    this.#timer = setTimeout(() => this.#open(), this.#wait);
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT);
  }
}
