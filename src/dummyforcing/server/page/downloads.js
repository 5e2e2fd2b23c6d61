// Links to what can be downloaded of the current video.

import { $ } from "./dom.js";

/** Points them at a session's current track, and at the scene that is on the screen. */
export function downloads(session) {
  const track = session?.track;
  const chunk = track && (session.shown ?? track.last);
  $("download").disabled = !chunk;
  if (!chunk) return;
  const base = `/v1/realtime/${encodeURIComponent(session.info.session)}/${track.id}`;
  const [first, last] = track.scene(Math.min(chunk.index, track.chunks.length - 1));
  $("download-video").href = `${base}/video.mp4`;
  $("download-scene").href = `${base}/video.mp4?first=${first}&last=${last}`;
  $("download-story").href = `${base}/story.yaml`;
  $("download-plan").href = `${base}/plan.json`;
}
