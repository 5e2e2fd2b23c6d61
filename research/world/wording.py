"""Scenes said as people say them: synonyms, articles, counts, relations, word order, both spellings.

    told = Teller(np.random.default_rng(0)).tell()
    told.scene.prompt        # "on brown ground, two crimson hearts with stripes are hopping"
    told.slots               # what it says, slot by slot: what the text encoder must read

Wording costs the pictures nothing: the text encoder learns to fill the same slots from any of them.
"""

from dataclasses import dataclass, replace

import numpy as np

from dummyforcing.evaluation.world.scene import (
    COLORS,
    FLOORS,
    MATERIALS,
    MOTIONS,
    SHADES,
    SHAPES,
    SIZES,
    SKIES,
    Scene,
    Thing,
)
from research.world.words import (
    CAMERA_WORDS,
    CHASE,
    COLOR_WORDS,
    ERRANDS,
    GROUND_WORDS,
    MATERIAL_WORDS,
    MOTION_WORDS,
    NUMBERS,
    OPENINGS,
    PASS,
    RELATION_WORDS,
    SHADE_WORDS,
    SHADED_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    SKY_WORDS,
    WITH,
    conjugate,
    plural,
)
from research.world.world import (
    PAIR_MOTIONS,
    ROW_MOTIONS,
    article,
    looks,
    make_scene,
    make_thing,
    pick,
    random_kind,
)

RELATIONS = ("left", "right", "above", "below", "behind", "front", "chases")
OBJECTS = 3
_OF_OBJECT = {
    "color": tuple(COLORS), "shade": SHADES, "shape": SHAPES, "size": SIZES, "material": MATERIALS[1:],
    "motion": (*MOTIONS, *ERRANDS),
}  # fmt: skip
_OF_SCENE = {"relation": RELATIONS, "floor": tuple(FLOORS), "sky": tuple(SKIES), "camera": ("left", "right")}
SLOTS: dict[str, tuple[str, ...]] = {
    **{f"{name} {i + 1}": values for i in range(OBJECTS) for name, values in _OF_OBJECT.items()},
    **_OF_SCENE,
}
"""What a sentence can say, and the values that each can have; 0 is left for nothing said."""


@dataclass(frozen=True)
class Told:
    """A scene whose prompt says it, and what of it the prompt says."""

    scene: Scene
    slots: tuple[int, ...]
    """For each of `SLOTS` 1 + the index of its value, or 0."""


class Teller:
    """Makes scenes and says them, with one generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.said: dict[str, str] = {}

    def chance(self, share: float) -> bool:
        """Whether it happens."""
        return bool(self.rng.random() < share)

    # --- words --------------------------------------------------------------------------------------------

    def note(self, number: int, **values: str) -> None:
        """Keep what is said of an object."""
        self.said.update({f"{name} {number}": value for name, value in values.items() if value})

    def color(self, thing: Thing) -> str:
        """Its color in words."""
        words = SHADED_WORDS.get((thing.color, thing.shade))
        if words and self.chance(0.4):
            return pick(words, self.rng)
        color = pick(COLOR_WORDS[thing.color], self.rng)
        return f"{pick(SHADE_WORDS[thing.shade], self.rng)} {color}" if thing.shade else color

    def noun(self, thing: Thing, number: int, counted: str = "") -> str:
        """A noun phrase with its article, or with the number in `counted`."""
        self.note(
            number, color=thing.color, shade=thing.shade, shape=thing.shape, size=thing.size,
            material=thing.material if thing.material != "plain" else "",
        )  # fmt: skip
        noun = pick(SHAPE_WORDS[thing.shape], self.rng)
        noun = plural(noun) if counted else noun
        color, before, after = self.color(thing), [], ""
        if thing.size:
            before.append(pick(SIZE_WORDS[thing.size], self.rng))
        with_words = WITH.get(thing.material)
        if with_words and self.chance(0.3):
            after = f" with {pick(with_words, self.rng)}"
        elif thing.material != "plain" or self.chance(0.03):
            before.insert(int(self.chance(0.7)) * len(before), pick(MATERIAL_WORDS[thing.material], self.rng))
        if self.chance(0.08):
            tail = pick((" in {}", " that is {}", " of {} color", " of {} colour"), self.rng)
            tail = tail.replace("that is", "that are") if counted else tail
            after = tail.format(color) + after
        else:
            before.append(color)
            if len(before) > 1 and self.chance(0.15):
                before = [before[i] for i in self.rng.permutation(len(before))]
        joined = " ".join([*before, noun])
        if counted:
            return f"{counted} {joined}{after}"
        determiner = self.rng.random()
        if determiner < 0.85:
            return article(joined) + after
        return (
            f"the {joined}" if determiner < 0.92 else f"one {joined}" if determiner < 0.95 else joined
        ) + after

    def motion(self, motion: str, number: int) -> str:
        """What it does, its verb not yet conjugated."""
        self.note(number, motion=motion)
        return pick(MOTION_WORDS[motion], self.rng)

    def clause(self, noun: str, verb: str, many: bool = False) -> str:
        """A noun phrase and what it does."""
        be = "are" if many else "is"
        return pick(
            (
                f"{noun} {conjugate(verb, 'base' if many else 'third')}",
                f"{noun} {conjugate(verb, 'base' if many else 'third')}",
                f"{noun} {be} {conjugate(verb, 'ing')}",
                f"{noun} {conjugate(verb, 'ing')}",
                f"{noun} that {conjugate(verb, 'base' if many else 'third')}",
            ),
            self.rng,
        )

    def around(self, sentence: str, scene: Scene, floor: bool, sky: bool, camera: bool) -> str:
        """A sentence with what is said of the scenery."""
        places = []
        if floor:
            self.said["floor"] = scene.floor
            word = pick(("gray", "grey"), self.rng) if scene.floor == "gray" else scene.floor
            ground = pick(GROUND_WORDS, self.rng)
            bare = ground == "ground" and self.chance(0.5)
            place = f"{word} {ground}" if bare else article(f"{word} {ground}")
            places.append(f"{pick(('on', 'on', 'over', 'above'), self.rng)} {place}")
        if sky:
            self.said["sky"] = scene.sky
            places.append(pick(SKY_WORDS[scene.sky], self.rng))
        if places and self.chance(0.2):
            sentence = f"{' '.join(places)}, {sentence}"
        elif places:
            sentence = " ".join([sentence, *places])
        if camera:
            side = "right" if scene.pan > 0 else "left"
            self.said["camera"] = side
            glue = pick((", ", " while ", " and "), self.rng)
            sentence += glue + pick(CAMERA_WORDS, self.rng).format(side)
        before = self.rng.random()
        if before < 0.08:
            return f"{pick(OPENINGS, self.rng)} {sentence}"
        return f"{sentence}." if before > 0.85 else sentence

    # --- scenes -------------------------------------------------------------------------------------------

    def tell(self) -> Told:
        """One object (half), several side by side, above each other, passing or chasing each other.

        Two side by side are many: what they do is twice as much to learn.
        """
        self.said = {}
        case = self.rng.random()
        if case < 0.50:
            things, sentence = self.one()
        elif case < 0.76:
            things, sentence = self.several(2)
        elif case < 0.80:
            things, sentence = self.several(3)
        elif case < 0.86:
            things, sentence = self.counted()
        elif case < 0.93:
            things, sentence = self.placed()
        elif case < 0.97:
            things, sentence = self.passing()
        else:
            things, sentence = self.chasing()
        sky = pick(tuple(SKIES), self.rng) if self.chance(0.3) else None
        camera = self.chance(0.1)
        pan = float(self.rng.uniform(0.2, 0.35) * (1 if self.chance(0.5) else -1)) if camera else None
        scene = make_scene(things, "", self.rng, None, sky, pan)
        prompt = self.around(sentence, scene, self.chance(0.4), sky is not None and self.chance(0.8), camera)
        return Told(replace(scene, prompt=prompt), self.slots())

    def thing(self, motions: tuple[str, ...], crowd: int, side: float = 0.0, not_colors: tuple[str, ...] = (),
              height: float | None = None) -> Thing:  # fmt: skip
        """An object with looks of its own."""
        kind = random_kind(self.rng, motions, not_colors)
        seen = looks(kind[0], self.rng)
        if kind[2] in ("grow", "shrink", "pulse"):
            seen["size"] = ""
        return make_thing(kind, self.rng, side, **seen, height=height, crowd=crowd)

    def one(self) -> tuple[tuple[Thing, ...], str]:
        """One object; some sentences leave out what it does."""
        thing = self.thing(tuple(MOTIONS), 1)
        noun = self.noun(thing, 1)
        if self.chance(0.04):
            return (thing,), noun
        return (thing,), self.clause(noun, self.motion(thing.motion, 1))

    def several(self, count: int) -> tuple[tuple[Thing, ...], str]:
        """Objects of different colors side by side, each in a clause of its own."""
        sides = [(-0.5, 0.5), (-0.64, 0.0, 0.64)][count - 2]
        things: list[Thing] = []
        clauses = []
        for number, side in enumerate(self.rng.permutation(sides), 1):
            thing = self.thing(PAIR_MOTIONS, count, float(side), tuple(t.color for t in things))
            things.append(thing)
            clauses.append(self.clause(self.noun(thing, number), self.motion(thing.motion, number)))
        glue = (
            pick((" and ", " and ", " while ", ", and next to it ", ", "), self.rng)
            if count == 2
            else " and "
        )
        return tuple(things), glue.join([", ".join(clauses[:-1]), clauses[-1]])

    def counted(self) -> tuple[tuple[Thing, ...], str]:
        """Two or three alike."""
        count = 2 if self.chance(0.7) else 3
        kind = random_kind(self.rng, PAIR_MOTIONS)
        same = looks(kind[0], self.rng) | ({"size": ""} if kind[2] in ("grow", "shrink", "pulse") else {})
        sides = [(-0.5, 0.5), (-0.64, 0.0, 0.64)][count - 2]
        things = tuple(make_thing(kind, self.rng, side, **same, height=None, crowd=count) for side in sides)
        noun = self.noun(things[0], 1, pick(NUMBERS[count], self.rng))
        verb = self.motion(kind[2], 1)
        for number in range(2, count + 1):
            self.said.update(
                {
                    f"{name} {number}": self.said[f"{name} 1"]
                    for name in _OF_OBJECT
                    if f"{name} 1" in self.said
                }
            )
        return things, self.clause(noun, verb, many=True)

    def placed(self) -> tuple[tuple[Thing, ...], str]:
        """One object on a side of another."""
        relation = pick(RELATIONS[:4], self.rng)
        beside = relation in ("left", "right")
        at = -0.5 if relation in ("left", "above") else 0.5
        motions = PAIR_MOTIONS if beside else ROW_MOTIONS
        places = [{"side": at}, {"side": -at}] if beside else [
            {"height": 1.0 * at, "side": float(self.rng.uniform(-0.2, 0.2))},
            {"height": -0.9 * at, "side": float(self.rng.uniform(-0.2, 0.2))},
        ]  # fmt: skip
        first = self.thing(motions, 2, **places[0])  # type: ignore[arg-type]
        moves = self.chance(0.5)
        second = self.thing(motions if moves else ("still",), 2, not_colors=(first.color,), **places[1])
        self.said["relation"] = relation
        sentence = self.clause(self.noun(first, 1), self.motion(first.motion, 1))
        sentence += f" {pick(RELATION_WORDS[relation], self.rng)} {self.noun(second, 2)}"
        if moves:
            verb = self.motion(second.motion, 2)
            sentence += pick(
                (
                    f" that {conjugate(verb, 'third')}",
                    f" {conjugate(verb, 'ing')}",
                    f" that is {conjugate(verb, 'ing')}",
                ),
                self.rng,
            )
        return (first, second), sentence

    def passing(self) -> tuple[tuple[Thing, ...], str]:
        """One object moving in front of another, or behind it."""
        relation = pick(("behind", "front"), self.rng)
        mover = replace(self.thing(("behind",), 1), motion="across")
        other = self.thing(("still",), 1, not_colors=(mover.color,))
        other = replace(other, x=float(self.rng.uniform(-0.1, 0.1)), radius=max(other.radius, 0.3))
        self.said["relation"] = relation
        verb = pick(PASS, self.rng)
        sentence = self.clause(self.noun(mover, 1), f"{verb} {pick(RELATION_WORDS[relation], self.rng)}")
        sentence += f" {self.noun(other, 2)}"
        return ((mover, other) if relation == "front" else (other, mover)), sentence

    def chasing(self) -> tuple[tuple[Thing, ...], str]:
        """One object after another on a circle."""
        first = self.thing(("circle",), 2)
        second = self.thing(("circle",), 2, not_colors=(first.color,))
        path = {name: getattr(first, name) for name in ("x", "y", "sign")}
        radius = min(first.radius, 0.25)
        first = replace(first, radius=radius, amplitude=0.5, **path)
        second = replace(
            second, radius=min(second.radius, 0.25), amplitude=0.5, phase=first.phase + 0.24, **path
        )
        self.said["relation"] = "chases"
        sentence = f"{self.clause(self.noun(first, 1), pick(CHASE, self.rng))} {self.noun(second, 2)}"
        return (first, second), sentence

    def errand(self) -> tuple[str, tuple[int, ...]]:
        """A prompt for an object that is there already, named or not, and its slots."""
        self.said = {}
        does = pick(tuple(ERRANDS), self.rng)
        self.note(1, motion=does)
        verb = pick(ERRANDS[does], self.rng)
        who = self.rng.random()
        if who < 0.3:
            return conjugate(verb, "third"), self.slots()
        if who < 0.6:
            return (
                f"{pick(('it', 'the object', 'the thing'), self.rng)} {conjugate(verb, 'third')}",
                self.slots(),
            )
        return self.clause(self.noun(self.thing(("still",), 1), 1), verb), self.slots()

    def slots(self) -> tuple[int, ...]:
        """What was said since the sentence began, for each of `SLOTS`."""
        return tuple(
            1 + values.index(self.said[name]) if name in self.said else 0 for name, values in SLOTS.items()
        )


def mistype(prompt: str, rng: np.random.Generator) -> str:
    """A prompt with a slip in one longer word: two letters swapped, one lost, doubled or wrong."""
    words = prompt.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 3]
    if not long:
        return prompt
    i = pick(long, rng)
    word = words[i]
    at = int(rng.integers(1, len(word) - 1))
    match int(rng.integers(4)):
        case 0:
            word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 1:
            word = word[:at] + word[at + 1 :]
        case 2:
            word = word[:at] + word[at] + word[at:]
        case _:
            word = word[:at] + pick("abcdefghijklmnopqrstuvwxyz", rng) + word[at + 1 :]
    words[i] = word
    return " ".join(words)
