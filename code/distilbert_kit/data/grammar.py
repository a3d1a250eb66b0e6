"""An embedded English sentiment grammar: short reviews with labels, no download.

It stands in for SST-2 in the default recipe and is the study's capability probe. Two rules make it
a test of word knowledge and composition instead of a test of memory:

- Opinion words (adjectives, nouns, verbs) are split: **every** opinion word of a validation
  sentence is one that training never shows, whatever the seed. Templates, subjects, negators and
  intensifiers are shared.
- Every template serves both labels alike: only the polarity of the opinion words, and whether the
  template keeps or turns it, decides. No function word or template predicts the label.
"""

import functools
import random
import re
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

LABELS = ("negative", "positive")
PHENOMENA = ("plain", "negation", "intensity", "contrast", "comparison")
DEFAULT_SIZES = {"train": 4000, "validation": 1000}

# ---- Opinion words: group -> split -> (negative, positive) ---------------------------------------
# `extreme` words have no degrees ("not superb" may still be good): they never meet a negator or a
# comparative. `general` ones fit any thing; the other groups fit the subjects that name them.

ADJECTIVES = {
    "extreme": {
        "train": (
            "dreadful terrible awful abysmal atrocious horrible horrendous",
            "superb excellent wonderful brilliant fantastic terrific magnificent",
        ),
        "validation": (
            "ghastly deplorable appalling woeful pitiful",
            "outstanding fabulous splendid phenomenal amazing",
        ),
    },
    "general": {
        "train": (
            "disappointing bad poor unimpressive mediocre unsatisfying irritating forgettable "
            "unappealing frustrating annoying lousy",
            "good impressive satisfying enjoyable lovely appealing worthwhile admirable memorable "
            "pleasing likable",
        ),
        "validation": (
            "underwhelming lackluster disagreeable substandard dismal tiresome exasperating",
            "delightful agreeable commendable marvelous praiseworthy laudable nice",
        ),
    },
    "story": {
        "train": (
            "dull tedious boring predictable confusing clumsy shallow lifeless unoriginal "
            "contrived sluggish incoherent pointless",
            "gripping engaging moving clever compelling witty touching original thoughtful "
            "intriguing powerful entertaining inventive",
        ),
        "validation": (
            "dreary monotonous plodding unimaginative formulaic muddled hackneyed trite uninspired",
            "captivating absorbing riveting poignant imaginative insightful enthralling ingenious "
            "charming rewarding",
        ),
    },
    "acting": {
        "train": (
            "wooden unconvincing stiff amateurish unnatural forced",
            "convincing nuanced natural expressive graceful heartfelt",
        ),
        "validation": ("stilted hammy overwrought awkward", "believable polished assured subtle"),
    },
    "people": {
        "train": (
            "rude unfriendly unhelpful careless impolite hostile arrogant unprofessional impatient "
            "lazy",
            "friendly helpful polite attentive kind patient welcoming professional competent warm",
        ),
        "validation": (
            "surly dismissive condescending discourteous grumpy inconsiderate insolent",
            "courteous gracious considerate hospitable cheerful generous obliging",
        ),
    },
    "food": {
        "train": (
            "bland greasy tasteless flavorless unappetizing overcooked",
            "tasty delicious fresh flavorful appetizing",
        ),
        "validation": (
            "insipid unpalatable stodgy soggy",
            "mouthwatering scrumptious delectable wholesome",
        ),
    },
    "place": {
        "train": (
            "filthy cramped shabby noisy dirty uncomfortable gloomy smelly neglected",
            "cozy comfortable clean spacious elegant tidy stylish peaceful bright",
        ),
        "validation": (
            "dingy grimy squalid musty stuffy drab dilapidated",
            "airy luxurious inviting serene relaxing picturesque roomy charming",
        ),
    },
    "product": {
        "train": (
            "flimsy unreliable useless fragile inefficient impractical wasteful",
            "sturdy reliable useful durable efficient practical dependable",
        ),
        "validation": (
            "shoddy faulty cumbersome inconvenient unwieldy",
            "robust versatile handy convenient rugged",
        ),
    },
    "music": {
        "train": ("repetitive shrill grating tuneless", "catchy melodic lively tuneful"),
        "validation": (
            "discordant soulless jarring listless",
            "uplifting soulful rousing energetic charming",
        ),
    },
}

# "the film was a …"
NOUNS = {
    "train": (
        "disaster failure mess letdown flop embarrassment",
        "masterpiece triumph success treat pleasure wonder",
    ),
    "validation": ("fiasco travesty debacle dud", "gem treasure marvel delight"),
}

# "i … the film"
FEELINGS = {
    "train": ("hated disliked resented", "loved enjoyed admired liked"),
    "validation": ("loathed detested despised", "adored cherished relished"),
}

# "the ending … me"
EFFECTS = {
    "train": (
        "annoyed disappointed irritated frustrated displeased",
        "impressed pleased satisfied thrilled excited",
    ),
    "validation": (
        "exasperated dismayed infuriated repelled",
        "delighted charmed enchanted captivated",
    ),
}

# ---- Shared words --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """What one kind of review talks about."""

    wholes: tuple[str, ...]
    group: str  # the adjective group that fits the wholes
    experienced: str  # "the best one i have …"
    rivals: tuple[str, ...]
    aspects: tuple[tuple[str, str], ...]  # (noun, adjective group)


def _aspects(**nouns: str) -> tuple[tuple[str, str], ...]:
    return tuple((noun, group) for group, line in nouns.items() for noun in line.split(", "))


DOMAINS = (
    Domain(
        ("film", "movie", "drama", "sequel", "remake", "adaptation"),
        "story",
        "seen",
        ("the first film", "the studio's previous release", "the television version"),
        _aspects(
            story="plot, story, script, ending, dialogue, opening scene",
            acting="acting, lead performance, supporting cast",
        ),
    ),
    Domain(
        ("novel", "book", "saga", "memoir", "paperback"),
        "story",
        "read",
        ("the author's first book", "last year's bestseller", "the previous volume"),
        _aspects(story="narrative, opening chapter, final chapter, prose, story, epilogue"),
    ),
    Domain(
        ("hotel", "guesthouse", "inn", "resort", "lodge"),
        "place",
        "stayed at",
        ("the hotel next door", "the hostel by the station", "the place we booked last year"),
        _aspects(
            place="room, lobby, bathroom, lounge, breakfast area",
            people="receptionist, manager, staff, porter, owner",
        ),
    ),
    Domain(
        ("restaurant", "bistro", "diner", "cafe", "pub"),
        "place",
        "eaten at",
        ("the place across the street", "the tavern on the corner", "the steakhouse in town"),
        _aspects(
            food="steak, curry, pasta, risotto, stew, lasagna, pie, burger, paella",
            people="waiter, hostess, barman",
            place="dining room, terrace",
        ),
    ),
    Domain(
        ("printer", "drill", "blender", "camera", "vacuum cleaner", "coffee machine", "tent"),
        "product",
        "owned",
        ("the previous model", "the version from last year", "the one my neighbor bought"),
        _aspects(
            product="design, carrying case, handle, accessory kit, stand, control panel",
        ),
    ),
    Domain(
        ("album", "record", "concert", "live set"),
        "music",
        "heard",
        ("the band's debut", "the show last spring", "the earlier recording"),
        _aspects(music="opening track, chorus, final song, encore, melody, guitar solo"),
    ),
)

VERY = ("very", "extremely", "incredibly", "really", "truly", "exceptionally", "thoroughly")
RATHER = ("rather", "quite", "fairly", "pretty")
ABSOLUTELY = ("absolutely", "utterly", "simply", "truly", "totally")
FAR = ("far", "much", "considerably", "noticeably")
OPENERS = ("", "", "", "honestly, ", "all in all, ", "looking back, ", "for the record, ")

# ---- Templates: phenomenon -> (those that keep, those that turn) the polarity of their words -----
# {adj}, {adj2}: the aspect's; {other_adj}: the other aspect's; {whole_adj}: the whole's;
# {anti…}: of the opposite polarity; {any}: of either. {better} and {worse} follow the label.

TEMPLATES = {
    "plain": (
        (
            "the {aspect} was {adj}",
            "the {aspect} was {adj} and the {other} was {other_adj}",
            "i must say it was a {whole_adj} {whole}",
            "a {whole_adj} {whole}, and the {aspect} was {adj}",
            "the {whole} was a {noun}",
            "the {aspect} was {adj} and the {whole} was a {noun}",
            "i {felt} the {aspect}",
            "we {felt} the {whole} and the {adj} {aspect}",
            "the {aspect} {affected} me",
            "the {adj} {aspect} {affected} everyone in our group",
            "my friends and i found the {aspect} {adj}",
            "the {whole} was {whole_adj} from start to finish",
            "everyone at home thought the {whole} was {whole_adj}",
        ),
        (),
    ),
    "negation": (
        (
            "the {aspect} was not only {adj} but also {adj2}",
            "there is no denying that the {aspect} was {adj}",
            "never before have i {experienced} such a {whole_adj} {whole}",
            "it would be untrue to say that the {aspect} was not {adj}",
            "i am not exaggerating when i call the {whole} {whole_adj}",
            "nobody could deny that the {whole} was a {noun}",
        ),
        (
            "the {aspect} was not {adj} in the least",
            "the {aspect} was not at all {adj}",
            "the {whole} was never {whole_adj}, not even for a moment",
            "there was nothing {adj} about the {aspect}",
            "nobody could call the {aspect} {adj}",
            "the {whole} was anything but {whole_adj}",
            "the {whole} was anything but a {noun}",
            "the {aspect} was far from {adj}",
            "it was hard to find anything {adj} about the {aspect}",
            "nothing about the {aspect} {affected} me",
            "there was nothing {general} about the {whole} or the {aspect}",
            "i have yet to hear anyone call the {whole} {whole_adj}",
        ),
    ),
    "intensity": (
        (
            "the {aspect} was {very} {adj}",
            "the {aspect} was {rather} {adj}",
            "the {whole} was {absolutely} {extreme}",
            "the {aspect} was {absolutely} {extreme}",
            "it was a {very} {whole_adj} {whole}",
            "an {absolutely} {extreme} {whole}, and the {aspect} was {rather} {adj}",
            "the {aspect} was {very} {adj} and the {other} was {absolutely} {extreme}",
            "the {aspect} was as {adj} as it gets",
            "it is hard to overstate how {whole_adj} the {whole} was",
            "the {aspect} was so {adj} that i told all my friends about it",
            "the {whole} {absolutely} {affected} me",
            "the {whole} was {rather} {whole_adj} and the {aspect} {very} {adj}",
        ),
        (),
    ),
    "contrast": (
        (
            "although the {aspect} was {anti}, the {whole} as a whole was {whole_adj}",
            "the {whole} as a whole was {whole_adj}, although the {aspect} was {anti}",
            "the {aspect} was {anti}, but the {whole} itself was {whole_adj}",
            "the {whole} was {whole_adj} overall, even though i {anti_felt} the {aspect}",
            "although i {anti_felt} the {aspect}, the {whole} itself was {whole_adj}",
            "i {felt} the {whole}, despite the {anti} {aspect}",
            "the {aspect} was a {anti_noun}, but in spite of that the {whole} was {whole_adj}",
            "the {whole} was a {noun}, for all that the {aspect} was {anti}",
            "while the {aspect} was {anti}, what stays with me is how {whole_adj} the {whole} was",
            "the {aspect} was {anti}, the {other} {other_anti}, yet the {whole} was a {noun}",
            "the {aspect} {anti_affected} me; even so, the {whole} was {whole_adj}",
            "i {felt} the {whole}, though parts of it, like the {aspect}, were {anti}",
        ),
        (),
    ),
    "comparison": (
        (
            "this {whole} was {far} more {whole_adj} than {rival}",
            "{rival} was {far} less {whole_adj} than this {whole}",
            "{rival} was nowhere near as {whole_adj} as this {whole}",
            "i have never {experienced} a more {whole_adj} {whole}",
            "the {aspect} was {far} more {adj} than i had expected",
            "no other {whole} i have {experienced} was as {whole_adj} as this one",
        ),
        (
            "this {whole} was {far} less {whole_adj} than {rival}",
            "{rival} was {far} more {whole_adj} than this {whole}",
            "this {whole} was nowhere near as {whole_adj} as {rival}",
            "compared with this {whole}, {rival} was {whole_adj}",
            "the {aspect} was {far} less {adj} than i had expected",
            "this {whole} made {rival} look {whole_adj}",
        ),
        (  # the direction alone decides
            "this {whole} was {far} {better} than {rival} with its {any} {aspect}",
            "{rival} with its {any} {aspect} was {far} {worse} than this {whole}",
            "this {whole} was {far} {better} than {rival}, which was {whole_any}",
            "{rival}, which was {whole_any}, was {far} {worse} than this {whole}",
        ),
    ),
}

# ---- Sentences -----------------------------------------------------------------------------------


@functools.cache
def _adjectives(group: str, split: str, polarity: int, phenomenon: str) -> list[str]:
    """Adjectives that fit subjects of `group` and the templates of `phenomenon`."""
    groups = [group] if group == "people" else [group, "general"]
    if phenomenon in ("plain", "contrast"):
        groups.append("extreme")
    words = [word for name in groups for word in ADJECTIVES[name][split][polarity].split()]
    if phenomenon == "comparison":  # short ones take -er: "duller", not "more dull"
        words = [word for word in words if len(word) > 6 and not word.endswith("y")]
    return words


def _sentence(rng: random.Random, split: str, phenomenon: str, label: int) -> str:
    kinds = TEMPLATES[phenomenon]
    kind, template = rng.choice([(k, text) for k, texts in enumerate(kinds) for text in texts])
    polarity = 1 - label if kind == 1 else label
    either = rng.randrange(2)
    domain = rng.choice(DOMAINS)
    (aspect, group), (other, other_group) = rng.sample(domain.aspects, 2)

    def adjectives(group: str, polarity: int, count: int = 1) -> list[str]:
        return rng.sample(_adjectives(group, split, polarity, phenomenon), count)

    def word(table: dict[str, tuple[str, str]], polarity: int = polarity) -> str:
        return rng.choice(table[split][polarity].split())

    adj, adj2 = adjectives(group, polarity, 2)
    better, worse = ("better", "worse") if label else ("worse", "better")
    text = template.format(
        aspect=aspect, other=other, whole=rng.choice(domain.wholes),
        rival=rng.choice(domain.rivals), experienced=domain.experienced, adj=adj, adj2=adj2,
        whole_adj=adjectives(domain.group, polarity)[0],
        other_adj=adjectives(other_group, polarity)[0],
        anti=adjectives(group, 1 - polarity)[0],
        other_anti=adjectives(other_group, 1 - polarity)[0],
        any=adjectives(group, either)[0], whole_any=adjectives(domain.group, either)[0],
        general=word(ADJECTIVES["general"]), extreme=word(ADJECTIVES["extreme"]),
        noun=word(NOUNS), felt=word(FEELINGS), affected=word(EFFECTS),
        anti_noun=word(NOUNS, 1 - polarity), anti_felt=word(FEELINGS, 1 - polarity),
        anti_affected=word(EFFECTS, 1 - polarity), better=better, worse=worse,
        very=rng.choice(VERY), rather=rng.choice(RATHER), absolutely=rng.choice(ABSOLUTELY),
        far=rng.choice(FAR),
    )  # fmt: skip
    # a/an by the next letter, but "a useful …".
    text = re.sub(r"\ban? (?=(\w+))", lambda m: _article(m[1]) + " ", text)
    return rng.choice(OPENERS) + text


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith("use") else "a"


def build_sentiment(split: str, size: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Labelled sentences of one split: `sentence` (str), `label` (index in LABELS), `phenomenon`.

    Args:
        split: "train" or "validation"; no sentence, and no opinion word, is in both.
        size: number of sentences; 4,000 and 1,000 by default. Labels and phenomena are balanced:
            every pair of them has the same number of sentences, to within one.
        seed: the same seed gives the same sentences on every machine.

    Raises:
        UserError: the split is unknown, or the size is negative or more than the grammar can make.
    """
    if split not in DEFAULT_SIZES:
        raise UserError(f"unknown split {split!r} of the grammar: use train or validation")
    size = DEFAULT_SIZES[split] if size is None else size
    if size < 0:
        raise UserError(f"size {size} of the grammar's {split} split: give a number from 0 up")
    rng = random.Random(f"{split}-{seed}")  # seeding by text goes through SHA-512: portable
    rows: dict[str, dict] = {}
    draws = 0
    while len(rows) < size:
        phenomenon = PHENOMENA[len(rows) % len(PHENOMENA)]
        label = len(rows) // len(PHENOMENA) % len(LABELS)
        sentence = _sentence(rng, split, phenomenon, label)
        rows.setdefault(sentence, {"sentence": sentence, "label": label, "phenomenon": phenomenon})
        draws += 1
        if draws > 20 * size + 1000:
            raise UserError(f"size {size} of the grammar's {split} split is too large: use less")
    result = list(rows.values())
    rng.shuffle(result)
    return result
