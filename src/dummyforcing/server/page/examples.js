// Prompts to begin with: short ones for models that know only some words, detailed ones for the others.

import { words } from "./text.js";

const SHORT = [
  "a red ball bounces on a green floor",
  "a blue ball moves in a circle on a green floor",
  "a yellow star spins on a purple floor",
  "a cyan ring swings from side to side",
  "an orange square passes behind a pillar",
];
const DETAILED = [
  "A red fox trots through fresh snow in a birch forest at sunrise, its breath steaming in the cold air, soft golden light between the trees, the camera follows at its side, shallow depth of field",
  "A paper boat drifts down a rain-soaked city street at night, neon signs mirrored in the water, slow tracking shot close to the surface, cinematic",
  "Waves roll onto a black sand beach under a stormy sky, seen from a drone that slowly rises, long shadows, high detail",
];

/** Examples that a model can follow. */
export function examples(known) {
  return known ? SHORT.filter((prompt) => words(prompt).every((word) => known.includes(word))) : DETAILED;
}
