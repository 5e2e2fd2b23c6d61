// The meters of the current video: memory, speed, latency, drift.

import { $, draw, say } from "./dom.js";
import { bytes } from "./text.js";

const RECENT = 60; // chunks of the line
const HEIGHT = 40;

/** Shows the readings of a track's newest chunk. */
export function showMeters(track, fps) {
  const chunk = track?.last;
  for (const id of ["cache", "fps", "drift", "latency"]) if (!chunk) say($(id), id === "cache" ? "no video yet" : "–");
  if (!chunk) {
    $("cache-bar").style.width = "0";
    say($("cache-note"), "dense caches grow with the video");
    $("latency-line").replaceChildren();
    return;
  }
  const { cache_bytes: mine, dense_bytes: dense, timings, measures } = chunk;
  say($("cache"), bytes(mine));
  $("cache-bar").style.width = `${Math.min(100, (100 * mine) / dense)}%`;
  const ratio = dense / mine;
  const less = ratio > 1.05 ? `${ratio.toFixed(1)} times less than the ${bytes(dense)} of a dense cache` : `a dense cache: ${bytes(dense)}`;
  say($("cache-note"), less);
  $("cache-bars").setAttribute("aria-label", `${bytes(mine)}, ${less}`);
  say($("fps"), `${timings.fps.toFixed(1)} FPS`);
  say($("fps-note"), timings.fps >= fps ? `real time is ${fps}` : `real time is ${fps}: shown slower`);
  say($("drift"), measures.drift.toFixed(1));
  say($("latency"), `${Math.round(timings.seconds * 1000)} ms`);
  showLine(track.chunks.filter(Boolean).slice(-RECENT), fps);
}

/** A line of seconds per chunk, and a dashed one at what real time allows. */
function showLine(chunks, fps) {
  const limit = chunks.at(-1).frames / fps;
  const most = 1.1 * Math.max(limit, ...chunks.map((chunk) => chunk.timings.seconds));
  const y = (seconds) => (HEIGHT * (1 - seconds / most)).toFixed(1);
  const step = 200 / Math.max(1, RECENT - 1);
  const points = chunks.map((chunk, i) => `${(200 - (chunks.length - 1 - i) * step).toFixed(1)},${y(chunk.timings.seconds)}`);
  const label = `Time for each of the last ${chunks.length} chunks; real time allows ${Math.round(limit * 1000)} ms`;
  $("latency-line").replaceChildren(
    draw(
      "svg",
      { viewBox: `0 0 200 ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
      draw("line", { x1: 0, x2: 200, y1: y(limit), y2: y(limit), class: "limit" }),
      draw("polyline", { points: points.join(" "), class: "line" }),
      draw("circle", { cx: 200, cy: points.at(-1).split(",")[1], r: 2, class: "dot" }),
    ),
  );
}

/** What is said under a video that is shown beside others. */
export function caption(track) {
  const chunk = track.last;
  return chunk ? `${bytes(chunk.cache_bytes)} cache, ${chunk.timings.fps.toFixed(1)} FPS, drift ${chunk.measures.drift.toFixed(1)}` : "begins";
}
