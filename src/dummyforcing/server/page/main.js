// Puts the page together: what people do goes to the session, what the session tells is shown.

import { Beginning } from "./begin.js";
import { $, make, say, show } from "./dom.js";
import { downloads } from "./downloads.js";
import { examples } from "./examples.js";
import { showHeads } from "./heads.js";
import { showMeters } from "./meters.js";
import { Screens, notice } from "./screens.js";
import { headMap, login, model, wantsKey } from "./server.js";
import { Session } from "./session.js";
import { Settings } from "./settings.js";
import { clock } from "./text.js";
import { Timeline, grab, paint } from "./timeline.js";
import { Suggestions, Unknown } from "./words.js";

const OVER = {
  stopped: "This video has ended.",
  idle: "Nobody was watching, so the server ended this video.",
  shutdown: "The server is shutting down.",
  replaced: "This video is being watched in another window.",
  failed: "The server could not go on with this video.",
  gone: "This video is over: the connection was lost for too long.",
};

let session = null;
let entry = null; // of the model, from /v1/models
let heads = null; // the roles of its heads, before there is a video
let cell = 0; // the chunk that the dialog is about
let lostText = ""; // what is said while there is no connection
let isDenseWanted = false;
let isQueued = false; // a video in the making waits, too, when its process is lost and no other one has room

const begin = new Beginning(problem);
const settings = new Settings(again);
const screens = new Screens(select);
const timeline = new Timeline($("strip"), openCell);
const suggestions = new Suggestions($("prompt"), $("words"));
const unknown = new Unknown($("prompt"), $("unknown"));
const unknownInCell = new Unknown($("cell-prompt"), $("cell-unknown"));

// --- what the session tells -------------------------------------------------------------------------------

const on = {
  ready(info) {
    lost("");
    settings.tell(info);
    isQueued = false;
    notice(session.player.time > 0 ? "" : "Making the first pictures…");
    status(info.is_back ? "Connected again: the video goes on." : "Making the first pictures…");
    if (session.request.expand && info.prompt !== session.request.prompt) written(info.prompt);
    refresh();
  },
  picture(track, milliseconds) {
    if (track.id !== session.current) return;
    session.player.video.dataset.firstPicture = String(Math.round(milliseconds));
    $("stage").dataset.state = "playing";
    notice("");
    status(`Playing: ${track.prompt}`);
  },
  chunk(track, chunk) {
    if (isQueued) notice("");
    isQueued = false;
    screens.read(track);
    if (track.id !== session.current) return;
    timeline.update();
    showMeters(track, session.info.fps);
  },
  entered(track, chunk) {
    const wait = (chunk.frames / track.fps) * 400; // about its middle
    setTimeout(() => picture(track, chunk), wait);
    if (track.id === session.current) {
      timeline.enter(chunk);
      downloads(session);
    }
  },
  changed(track, chunk, prompt, seconds) {
    if (chunk) status(`Changed within ${seconds.toFixed(1)} s: ${prompt}`);
    if (!$("written").hidden) written(prompt);
    refresh();
  },
  heads(track) {
    if (track.id === session.current) showHeads(track.roles);
  },
  branched(track) {
    status(`Video ${track.id + 1} goes on from ${clock(track.end(track.common))}: ${track.prompt}`);
    $("prompt").value = track.prompt;
    notice("");
    refresh();
  },
  rewound(track, chunk) {
    notice("");
    status(`Back at ${clock(track.start(chunk), 1)}; the video goes on from there.`);
    refresh();
  },
  stalled(track, isStalled) {
    if (track.id !== session.current || session.isOver || lostText) return;
    $("stage").classList.toggle("stalled", isStalled);
    if (isStalled) status("Waiting for the next pictures…");
    else status(`Playing: ${track.prompt}`);
  },
  tick() {
    const { player, track, isPaused } = session;
    say($("clock"), clock(player.time));
    const rate = player.video.playbackRate;
    show($("speed"), rate < 1 && !isPaused && !player.isStalled && player.time > 2);
    say($("speed"), `slow motion, ${rate.toFixed(1)}x`);
    if (lostText && player.isStalled) notice(lostText);
    if (track.isDone && player.lead < 0.1 && $("notice").hidden && player.time > 0) ended();
  },
  queued(place) {
    isQueued = true;
    const goes = session.player?.time > 0 ? "goes on" : "begins"; // before it begins there is no player
    notice(`The server is full. You are number ${place} in the queue; your video ${goes} by itself.`);
    status(`Number ${place} in the queue.`);
  },
  warned({ code, message }) {
    if (code === "unknown_words" && entry?.words) unknown.look();
    else problem(message);
  },
  problem,
  refused(message) {
    leave();
    problem(message);
    status("The video was not begun.");
  },
  done(track) {
    if (track.id === session.current) status("The video has its whole length.");
    refresh();
  },
  over(reason) {
    lost("");
    notice("");
    session.reason = reason;
    status(OVER[reason] ?? "The video has its whole length.");
    refresh();
  },
  async lost(milliseconds) {
    lost(`No connection to the server; trying again in ${Math.round(milliseconds / 100) / 10} s.`);
    const mine = session;
    if (!(await wantsKey()) || session !== mine || mine.isWaitingForKey) return;
    mine.isWaitingForKey = true;
    await login();
    start(mine.request);
  },
};

function picture(track, chunk) {
  const player = session?.players.get(track.id);
  if (!player || track.at(player.time) !== chunk || !player.video.videoWidth) return;
  chunk.thumb = grab(player.video);
  if (track.id === session.current) timeline.picture(chunk);
}

/** Everything was shown. */
function ended() {
  $("stage").dataset.state = "over";
  if (OVER[session.reason]) notice(OVER[session.reason], "Begin again", () => start(session.request));
  else notice("That is the whole video.", "Make another one", again);
}

// --- what people do ---------------------------------------------------------------------------------------

/** Begins a video, in place of the one that is there. */
function start(request) {
  leave();
  problem("");
  show($("written"), false);
  $("stage").dataset.state = "waiting";
  notice("Making the first pictures…");
  status("Making the first pictures…");
  session = new Session(request, on);
  refresh();
}

/** Begins another video of the same prompt, with what is set now. */
function again() {
  if (!session) return;
  const { prompt, expand, beside, image, clip } = session.request;
  start({ prompt, expand, beside, image, clip, ...settings.request });
}

/** Ends the video that is there. */
function leave() {
  session?.close();
  session = null;
  lostText = "";
  $("status").classList.remove("bad");
  screens.clear();
  notice("");
  $("stage").dataset.state = "empty";
  $("stage").classList.remove("stalled");
  showHeads(heads);
  showMeters(null);
  refresh();
}

function select(id) {
  if (id === session.current) return;
  session.select(id);
  $("stage").classList.toggle("stalled", session.player.isStalled);
  if (session.player.time > 0) notice("");
  status(`${session.isPaused ? "Paused" : "Playing"}: ${session.track.prompt}`);
  refresh();
}

/** Shows the session's state: which buttons there are, the tracks, the current one's timeline and meters. */
function refresh() {
  const track = session?.track;
  const isRunning = Boolean(track) && !track.isDone;
  document.body.classList.toggle("running", Boolean(session));
  show($("controls"), Boolean(session));
  $("go").textContent = isRunning ? "Change it" : "Make it";
  $("prompt-label").textContent = isRunning ? "What should happen next?" : "What should the video show?";
  $("pause").textContent = session?.isPaused ? "Go on" : "Pause";
  $("pause").disabled = !isRunning;
  $("dense").setAttribute("aria-checked", String(wantsDense()));
  if (track) {
    screens.update(session);
    showHeads(track.roles ?? heads);
    showMeters(track, session.info.fps);
  }
  timeline.show(track ?? null);
  if (track && session.shown) timeline.enter(session.shown);
  downloads(session);
}

function wantsDense() {
  return session?.request.beside ? session.isSide : isDenseWanted;
}

function ask() {
  const prompt = $("prompt").value.trim();
  if (!prompt) return problem("Say what the video shall show.");
  problem("");
  suggestions.close();
  unknown.look();
  const expand = $("expand").checked;
  if (session?.track && !session.track.isDone) {
    session.prompt(prompt, settings.fade, expand);
    status(`Changing to: ${prompt}`);
    timeline.update();
  } else {
    const beside = isDenseWanted ? { beside: "dense" } : {};
    start({ prompt, expand, ...settings.request, ...begin.request, ...beside });
  }
  if (matchMedia("(pointer: coarse)").matches) $("prompt").blur(); // the keyboard would hide the video
  else $("prompt").select();
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  ask();
};
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});

$("pause").onclick = () => {
  session.pause(!session.isPaused);
  status(session.isPaused ? "Paused." : `Playing: ${session.track.prompt}`);
  refresh();
};
$("new").onclick = () => {
  leave();
  status("Ready.");
  $("prompt").focus();
  $("prompt").select();
};
$("side").onclick = () => {
  session.sideBySide(!session.isSide);
  refresh();
};
$("fullscreen").onclick = () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen());
show($("fullscreen"), Boolean(document.fullscreenEnabled));

$("dense").onclick = () => {
  isDenseWanted = !wantsDense();
  if (session?.request.beside) session.sideBySide(isDenseWanted);
  else if (session?.info && isDenseWanted) {
    start({ ...session.request, prompt: session.track.prompt, seed: session.info.seed, beside: "dense" });
    return status("Begins again from the same noise, with the dense cache beside it.");
  }
  refresh();
};

$("written-form").onsubmit = (event) => {
  event.preventDefault();
  const prompt = $("written-text").value.trim();
  if (!prompt || !session?.track || session.track.isDone) return;
  session.prompt(prompt, settings.fade, false);
  timeline.update();
  status("Changing to your text.");
};

/** Shows a prompt as the server's language model wrote it out. */
function written(prompt) {
  show($("written"));
  $("written-text").value = prompt;
}

// --- a piece of the timeline ------------------------------------------------------------------------------

function openCell(index) {
  const { track } = session;
  const chunk = track.chunks[index];
  cell = index;
  say($("cell-title"), `${clock(track.start(index), 1)} to ${clock(track.end(index), 1)}`);
  say($("cell-about"), chunk.prompt);
  const canvas = $("cell-picture");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  show(canvas, Boolean(chunk.thumb));
  if (chunk.thumb) paint(canvas, chunk.thumb);
  $("cell-prompt").value = chunk.prompt;
  unknownInCell.look();
  $("cell").showModal();
  $("cell-prompt").select();
}

$("cell-form").onsubmit = () => {
  session?.branch(cell, $("cell-prompt").value.trim() || null, settings.fade);
  status("Branching off…");
};
$("cell-prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("cell-form").requestSubmit($("cell-branch"));
});
$("cell-rewind").onclick = () => {
  $("cell").close();
  session?.rewind(cell);
};
$("cell-close").onclick = () => $("cell").close();
$("cell").onclose = () => timeline.focus(cell);

// --- the rest ---------------------------------------------------------------------------------------------

function status(text) {
  say($("status"), text);
}

function lost(text) {
  lostText = text;
  $("status").classList.toggle("bad", Boolean(text));
  if (text) status(text);
  if (text && !session.info) notice(text);
}

function problem(text) {
  say($("problem"), text);
  show($("problem"), Boolean(text));
}

$("download").onclick = () => openMenu($("download-menu").hidden);
document.addEventListener("click", ({ target }) => target === $("download") || openMenu(false));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("download-menu").hidden) return;
  openMenu(false);
  $("download").focus();
});

function openMenu(isOpen) {
  show($("download-menu"), isOpen);
  $("download").setAttribute("aria-expanded", String(isOpen));
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && session && !session.isPaused) session.select(session.current); // browsers stop hidden videos
});
window.addEventListener("pagehide", () => session?.close()); // its place is free for others at once

/** Asks what the server has, until it answers. */
async function greet() {
  try {
    entry = await model();
    heads = await headMap();
  } catch (error) {
    status(error instanceof TypeError ? "No connection to the server; trying again." : error.message);
    return void setTimeout(greet, 2000);
  }
  const known = entry.words ?? null;
  unknown.known = unknownInCell.known = suggestions.known = known;
  say($("model"), `${entry.id}, ${entry.size.join(" x ")}, ${entry.fps} FPS`);
  say($("license"), entry.license ? `Model: ${entry.id}, ${entry.license}` : "");
  say($("prompt-hint"), known ? `This model knows ${known.length} words; they are suggested while you type.` : "Long, detailed prompts work best.");
  $("stage").style.setProperty("--width", entry.size[0]);
  $("stage").style.setProperty("--height", entry.size[1]);
  show($("expand-row"), Boolean(entry.expands));
  settings.offer(entry);
  begin.offer(entry.start);
  $("examples").replaceChildren(
    ...examples(known).map((prompt) => {
      const onclick = () => {
        $("prompt").value = prompt;
        ask();
      };
      return make("button", { type: "button", textContent: prompt, onclick });
    }),
  );
  if (!session) showHeads(heads);
  status("Ready.");
}

showHeads(null);
$("prompt").focus();
greet();
