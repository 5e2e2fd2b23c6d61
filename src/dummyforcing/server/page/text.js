// Figures and words as people read them.

/** Seconds as 0:08, or with `digits` as 0:08.3. */
export function clock(seconds, digits = 0) {
  const unit = 10 ** digits;
  const whole = Math.max(0, Math.floor(seconds * unit + 1e-6)) / unit;
  const rest = (whole % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return `${Math.floor(whole / 60)}:${rest}`;
}

/** Bytes as 12.1 MB or 1.3 GB. */
export function bytes(count) {
  return count < 1e9 ? `${(count / 1e6).toFixed(count < 1e8 ? 1 : 0)} MB` : `${(count / 1e9).toFixed(1)} GB`;
}

/** 1 piece, 2 pieces. */
export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** The words of a prompt, in lower case. */
export function words(prompt) {
  return prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
}

/** The known word that is written most alike, if one is near. */
export function nearest(word, known) {
  let best = null;
  let least = Math.max(2, Math.ceil(word.length / 2));
  for (const other of known) {
    const apart = distance(word, other);
    if (apart < least) [best, least] = [other, apart];
  }
  return best;
}

/** Letters to change, put in or leave out to get from one word to another (Levenshtein's distance). */
function distance(one, other) {
  let row = Array.from({ length: other.length + 1 }, (_, i) => i);
  for (let i = 1; i <= one.length; i++) {
    const next = [i];
    for (let j = 1; j <= other.length; j++) {
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (one[i - 1] === other[j - 1] ? 0 : 1));
    }
    row = next;
  }
  return row[other.length];
}
