"""The words that people use for what the rendered world shows, the usual one first or twice; their forms."""

from collections.abc import Callable

COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "crimson", "scarlet", "ruby", "cherry red"),
    "orange": ("orange", "orange", "tangerine", "amber"),
    "yellow": ("yellow", "yellow", "golden", "gold", "lemon yellow"),
    "lime": ("lime", "lime green", "chartreuse", "yellow-green"),
    "green": ("green", "green", "emerald", "grass green"),
    "turquoise": ("turquoise", "teal", "aquamarine", "blue-green"),
    "cyan": ("cyan", "aqua", "sky blue", "azure"),
    "blue": ("blue", "blue", "royal blue", "sapphire", "cobalt"),
    "purple": ("purple", "violet", "indigo", "purple"),
    "magenta": ("magenta", "fuchsia"),
    "pink": ("pink", "rose", "hot pink"),
    "white": ("white", "snow white", "ivory"),
}
SHADED_WORDS = {
    ("blue", "dark"): ("navy", "navy blue"), ("red", "dark"): ("maroon", "burgundy"),
    ("green", "dark"): ("forest green", "olive green"), ("purple", "light"): ("lavender", "lilac"),
    ("red", "light"): ("salmon",), ("orange", "light"): ("peach",), ("orange", "dark"): ("brown",),
}  # fmt: skip
SHADE_WORDS = {"light": ("light", "pale", "pastel", "bright light"), "dark": ("dark", "deep", "dim")}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "sphere", "disc", "disk", "circle", "orb", "dot"),
    "square": ("square", "square", "box", "block", "cube", "tile"),
    "triangle": ("triangle", "triangle", "pyramid", "cone", "wedge"),
    "star": ("star", "star", "starfish"),
    "ring": ("ring", "ring", "hoop", "donut", "doughnut", "circlet", "loop"),
    "cross": ("cross", "cross", "plus", "plus sign"),
    "heart": ("heart", "heart", "love heart", "valentine"),
    "diamond": ("diamond", "diamond", "rhombus", "lozenge", "kite"),
    "crescent": ("crescent", "crescent", "moon", "half moon", "crescent moon"),
    "arrow": ("arrow", "arrow", "pointer", "dart"),
}
MATERIAL_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy", "banded"),
    "dotted": ("dotted", "spotted", "polka dot", "speckled"),
    "shiny": ("shiny", "glossy", "metallic", "polished", "gleaming"),
}
WITH = {"striped": ("stripes", "bands"), "dotted": ("dots", "spots", "polka dots"), "shiny": ("a shine",)}
SIZE_WORDS = {
    "small": ("small", "little", "tiny", "mini", "short"),
    "large": ("large", "big", "huge", "giant", "great"),
}
SLIDE = ("slide", "drift", "glide", "move", "go", "travel")
TO_LEFT = ("to the left", "left", "leftward", "leftwards", "towards the left", "from right to left")
TO_RIGHT = ("to the right", "right", "rightward", "rightwards", "towards the right", "from left to right")
MOTION_WORDS: dict[str, tuple[str, ...]] = {
    "bounce": ("bounce", "bounce", "hop", "jump", "bounce up and down", "jump up and down", "leap"),
    "left": tuple(f"{v} {t}" for v in SLIDE for t in TO_LEFT),
    "right": tuple(f"{v} {t}" for v in SLIDE for t in TO_RIGHT),
    "up": ("float up", "rise", "go up", "ascend", "drift upward", "drift upwards", "climb", "move up"),
    "down": ("float down", "sink", "go down", "descend", "drift downward", "drift downwards", "move down"),
    "swing": ("swing from side to side", "sway", "swing", "move from side to side", "move back and forth",
              "go back and forth", "swing like a pendulum"),
    "circle": ("move in a circle", "circle", "circle around", "go around in circles", "fly in a circle",
               "orbit"),
    "spin": ("spin", "spin", "rotate", "turn", "twirl", "whirl", "turn around", "revolve"),
    "grow": ("grow", "grow", "get bigger", "get larger", "expand", "swell", "become bigger", "inflate"),
    "shrink": ("shrink", "shrink", "get smaller", "contract", "become smaller", "deflate"),
    "behind": ("pass behind a pillar", "pass behind a post", "go behind a pillar", "move behind a column",
               "disappear behind a pillar", "hide behind a pillar"),
    "return": ("leave and *come back", "go away and *come back", "leave and *return",
               "disappear and *come back", "exit and *return", "go away and *return"),
    "still": ("stay still", "stand still", "rest", "sit still", "stay in place", "hang still", "keep still"),
    "pulse": ("pulse", "pulse", "throb", "beat", "pulsate", "breathe"),
    "fall": ("fall to the ground", "fall", "drop", "drop to the floor", "tumble down", "fall down",
             "crash down"),
}  # fmt: skip
RELATION_WORDS = {
    "left": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
    "behind": ("behind", "in back of"),
    "front": ("in front of", "before"),
}
PASS = ("pass", "pass", "move", "go", "slide", "fly", "travel")
CHASE = ("chase", "chase", "follow", "run after", "hunt", "pursue")
GROUND_WORDS = ("floor", "floor", "ground")
SKY_WORDS = {
    "day": (
        "by day",
        "in daylight",
        "during the day",
        "under a blue sky",
        "under a day sky",
        "on a sunny day",
    ),
    "night": (
        "at night",
        "by night",
        "during the night",
        "under a night sky",
        "under the stars",
        "in the dark",
    ),
    "sunset": ("at sunset", "at dusk", "in the evening", "at dawn", "under a red sky", "at sunrise"),
}
CAMERA_WORDS = ("the camera pans {}", "the camera moves to the {}", "the camera moves {}", "panning {}")
OPENINGS = ("a video of", "show me", "there is", "a clip of", "we see", "i want", "imagine")
DOUBLED = ("hop", "spin", "drop", "get", "sit", "throb", "run", "swim")
NUMBERS = {2: ("two", "two", "2", "a pair of"), 3: ("three", "three", "3")}
ERRANDS: dict[str, tuple[str, ...]] = {
    "leave": ("leave", "go away", "exit", "go out of the picture", "disappear"),
    "come": ("come back", "return", "come in again", "enter", "appear again"),
}
"""What an object may do by a prompt that holds from the middle of a video, and need not name it."""


def third(verb: str) -> str:
    """He ...s."""
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2] not in "aeiou" else f"{verb}s"


def gerund(verb: str) -> str:
    """...ing."""
    if verb in DOUBLED:
        return f"{verb}{verb[-1]}ing"
    return f"{verb[:-1]}ing" if verb.endswith("e") and not verb.endswith("ee") else f"{verb}ing"


def conjugate(phrase: str, form: str) -> str:
    """A phrase that begins with a verb as "third", "ing" or "base"; `*` marks a second verb."""
    changes: dict[str, Callable[[str], str]] = {"third": third, "ing": gerund, "base": str}
    change = changes[form]
    words = phrase.split(" ")
    words[0] = change(words[0])
    return " ".join(change(word[1:]) if word.startswith("*") else word for word in words)


def plural(noun: str) -> str:
    """More than one."""
    if noun.endswith(("x", "s", "ss", "ch", "sh")):
        return f"{noun}es"
    return f"{noun}s"
