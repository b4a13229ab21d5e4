"""Sentences for the demo's tasks, each word labelled source, relation, target or neither, and
sources and targets with the field of life that they belong to.

A sentence is a pattern such as `LEAD , SRC VERB TGT TRAIL .` whose words in capitals are filled
in. The test split uses no entity of the training split, and half of its verbs, adverbs, adjuncts
and patterns are held out too, so that its accuracy measures whether a model learned the roles
and not the words.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from adapterhub.errors import InvalidOption

LABELS = ("O", "SRC", "REL", "TGT")
FIELDS = ("O", "SPORT", "BUSINESS", "CULTURE", "POLITICS", "SCIENCE")
FORMS = ("BASE", "THIRD", "PAST", "PART", "ING")

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Sentence:
    """Words and, at the same places, their labels (of `LABELS`) and fields (of `FIELDS`)."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """What may stand together in one sentence. A leading `the` or `a` is labelled O."""

    sources: tuple[str, ...]
    verbs: tuple[str, ...]  # base/third person/past/participle/-ing form, then a particle if any
    targets: tuple[str, ...]


def _topic(sources: str, verbs: str, targets: str) -> Topic:
    def split(text: str) -> tuple[str, ...]:
        return tuple(" ".join(item.split()) for item in text.split(","))

    return Topic(split(sources), split(verbs), split(targets))


@dataclass(frozen=True)
class Language:
    """The vocabulary of a split: a topic for each of `FIELDS` but the first, in their order.

    `fillers` maps a word in capitals to what it may become.
    """

    topics: tuple[Topic, ...]
    patterns: tuple[str, ...]
    fillers: Mapping[str, tuple[str, ...]]


def _fillers(**texts: str) -> dict[str, tuple[str, ...]]:
    return {slot: tuple(text.split(" | ")) for slot, text in texts.items()}


_TRAIN = Language(
    topics=(
        _topic(
            "Chelsea, Real Madrid, Bayern Munich, Serena Williams, Juventus, the Boston Celtics, "
            "Brazil, Novak Djokovic, Liverpool, Ajax, Simone Biles, the Chicago Bulls, Celtic",
            "lift/lifts/lifted/lifted/lifting, defeat/defeats/defeated/defeated/defeating, "
            "beat/beats/beat/beaten/beating, lose/loses/lost/lost/losing, "
            "enter/enters/entered/entered/entering, face/faces/faced/faced/facing, "
            "claim/claims/claimed/claimed/claiming, sign/signs/signed/signed/signing",
            "the Champions League, Manchester United, the World Cup, Roger Federer, Inter Milan, "
            "the Olympic final, Wimbledon, the European Championship, Argentina, Benfica, "
            "the Masters trophy, Lewis Hamilton, the Copa America, the Tour de France",
        ),
        _topic(
            "Microsoft, Toyota, General Electric, Amazon, Nestle, Goldman Sachs, Samsung, Boeing, "
            "Deutsche Bank, Spotify, Warren Buffett, the Walt Disney Company, Shell",
            "acquire/acquires/acquired/acquired/acquiring, buy/buys/bought/bought/buying, "
            "sell/sells/sold/sold/selling, launch/launches/launched/launched/launching, "
            "sue/sues/sued/sued/suing, hire/hires/hired/hired/hiring, "
            "take/takes/took/taken/taking over, own/owns/owned/owned/owning",
            "LinkedIn, Whole Foods, Activision Blizzard, a new battery plant, Slack, Twitch, "
            "the Ford Motor Company, Credit Suisse, Lamborghini, Pixar, two thousand engineers, "
            "the Dutch subsidiary, Marvel Entertainment, a rival airline",
        ),
        _topic(
            "Stephen King, Taylor Swift, the Washington Post, Steven Spielberg, Leonardo da Vinci, "
            "Virginia Woolf, the BBC, Pablo Picasso, Miles Davis, Penguin Books, Frida Kahlo",
            "write/writes/wrote/written/writing, record/records/recorded/recorded/recording, "
            "publish/publishes/published/published/publishing, "
            "direct/directs/directed/directed/directing, paint/paints/painted/painted/painting, "
            "praise/praises/praised/praised/praising, finish/finishes/finished/finished/finishing",
            "Hamlet, the Mona Lisa, Jurassic Park, a short novel, Guernica, Kind of Blue, "
            "the morning edition, Mrs Dalloway, Blue Planet, War and Peace, the second album, "
            "a long interview, the Dark Tower",
        ),
        _topic(
            "Paris, the European Union, Angela Merkel, Japan, the Supreme Court, Barack Obama, "
            "Nelson Mandela, Canada, the Senate, South Korea, the city of Boston, Napoleon",
            "govern/governs/governed/governed/governing, visit/visits/visited/visited/visiting, "
            "reject/rejects/rejected/rejected/rejecting, host/hosts/hosted/hosted/hosting, "
            "approve/approves/approved/approved/approving, leave/leaves/left/left/leaving, "
            "vote/votes/voted/voted/voting for, lead/leads/led/led/leading",
            "Greece, the climate treaty, the Winter Olympics, Berlin, the Security Council, "
            "New Zealand, a tax reform, the Paris Agreement, Poland, the coalition, "
            "the Labour Party, Latin America, the annual budget",
        ),
        _topic(
            "Marie Curie, NASA, Isaac Newton, Harvard University, the Hubble telescope, CERN, "
            "Charles Darwin, Alan Turing, the Mayo Clinic, Jane Goodall, Caltech, Moderna",
            "discover/discovers/discovered/discovered/discovering, "
            "develop/develops/developed/developed/developing, "
            "study/studies/studied/studied/studying, prove/proves/proved/proven/proving, "
            "observe/observes/observed/observed/observing, test/tests/tested/tested/testing, "
            "look/looks/looked/looked/looking for, "
            "describe/describes/described/described/describing",
            "radium, the Higgs boson, gravity, a distant galaxy, natural selection, Saturn, "
            "a malaria vaccine, dark matter, the Enigma machine, chimpanzees, quantum theory, "
            "the human genome, black holes",
        ),
    ),
    patterns=(
        "SRC VERB TGT",
        "SRC VERB TGT .",
        "SRC VERB TGT TRAIL",
        "SRC VERB TGT TRAIL .",
        "LEAD , SRC VERB TGT",
        "LEAD , SRC VERB TGT .",
        "LEAD SRC VERB TGT .",
        "LEAD , SRC VERB TGT TRAIL .",
        "SRC , ASIDE , VERB TGT .",
        "REPORT SRC VERB TGT",
        "REPORT SRC VERB TGT TRAIL .",
        "SRC VERB TGT , REPORTED .",
        "It was SRC that PAST TGT .",
        "TGT PASSIVE PART by SRC .",
        "TRAIL SRC PAST TGT .",
    ),
    fillers=_fillers(
        VERB=(
            "BASE | THIRD | THIRD | PAST | PAST | will BASE | will soon BASE | will not BASE | "
            "may BASE | can BASE | would never BASE | has PART | has recently PART | "
            "has never PART | had PART | have PART | recently PAST | also PAST | quickly PAST | "
            "never THIRD | often THIRD | is ING | is now ING | was ING | has been ING | "
            "will be ING | did not BASE | does not BASE | wants to BASE | is about to BASE | "
            "hopes to BASE"
        ),
        PASSIVE="was | has been | will be | is being | was quickly | had been",
        LEAD=(
            "Last night | In 2019 | On Monday | Yesterday | This year | After a long wait | "
            "In the end | To everyone's surprise | For the first time | Back in May | In Rome"
        ),
        TRAIL=(
            "in 2019 | last week | on Friday | in the autumn | after a long delay | "
            "for the second time | without any warning | again | at the weekend | "
            "before the deadline | in Vienna | in Tokyo | at Wembley | near the border"
        ),
        ASIDE=(
            "after months of doubt | as expected | once more | the favourite | "
            "despite a slow start | under new rules"
        ),
        REPORT=(
            "Experts say that | According to reports , | Everyone knows that | It is said that | "
            "We heard that | A friend told me that"
        ),
        REPORTED="officials said | a witness told us | sources say | he wrote",
    ),
)

# What the test split adds to the words above; its entities are these only.
_TEST = Language(
    topics=(
        _topic(
            "Arsenal, Borussia Dortmund, Rafael Nadal, the Golden State Warriors, Everton, "
            "Usain Bolt",
            "win/wins/won/won/winning, reach/reaches/reached/reached/reaching, "
            "thrash/thrashes/thrashed/thrashed/thrashing",
            "the Premier League, Barcelona, the Davis Cup, Leicester City, the Super Bowl, Sevilla",
        ),
        _topic(
            "Google, Siemens, Royal Philips, Tesla, Morgan Stanley, Ikea",
            "purchase/purchases/purchased/purchased/purchasing, "
            "finance/finances/financed/financed/financing, "
            "merge/merges/merged/merged/merging with",
            "YouTube, Volvo Cars, a chip factory, Instagram, Burger King, Lufthansa",
        ),
        _topic(
            "the New York Times, Jane Austen, Bob Dylan, Claude Monet, Random House, "
            "Akira Kurosawa",
            "review/reviews/reviewed/reviewed/reviewing, "
            "compose/composes/composed/composed/composing, "
            "translate/translates/translated/translated/translating",
            "Seven Samurai, a farewell song, Macbeth, Water Lilies, Pride and Prejudice, Thriller",
        ),
        _topic(
            "Lisbon, the United Nations, Margaret Thatcher, Norway, the White House, India",
            "support/supports/supported/supported/supporting, "
            "oppose/opposes/opposed/opposed/opposing, invade/invades/invaded/invaded/invading",
            "Kenya, the peace plan, Hong Kong, the trade deal, Austria, the Human Rights Act",
        ),
        _topic(
            "Albert Einstein, Oxford University, Galileo, Rosalind Franklin, "
            "the Broad Institute, IBM",
            "invent/invents/invented/invented/inventing, "
            "explain/explains/explained/explained/explaining, "
            "measure/measures/measured/measured/measuring",
            "relativity, the moons of Jupiter, penicillin, the double helix, Neptune, a new enzyme",
        ),
    ),
    patterns=(
        "SRC VERB TGT , and nobody was surprised .",
        "SRC , LEAD , VERB TGT .",
        "REPORT TRAIL SRC VERB TGT .",
        "LEAD , TGT PASSIVE PART by SRC .",
        "SRC VERB TGT TRAIL , REPORTED .",
    ),
    fillers=_fillers(
        VERB=(
            "might BASE | should BASE | has finally PART | could soon BASE | almost PAST | "
            "is still ING | is likely to BASE | is going to BASE"
        ),
        PASSIVE="could be | was finally",
        LEAD="Two weeks ago | On Sunday evening | In the summer of 2021 | Tomorrow",
        TRAIL="in Copenhagen | in 1998 | this morning | with great care | during the storm",
        ASIDE="against all odds | to the delight of many",
        REPORT="Analysts believe that | The radio announced that",
        REPORTED="a spokesman said | our reporter writes",
    ),
)


def sentences(split: Split, count: int, seed: int, patterns: Sequence[str] = ()) -> list[Sentence]:
    """`count` sentences of a split; the same arguments give the same sentences.

    `patterns` take the place of the split's own. Raises: InvalidOption for another split or a
    negative count.
    """
    if split not in ("train", "test"):
        raise InvalidOption(f"split is {split!r}, expected 'train' or 'test'")
    if count < 0:
        raise InvalidOption(f"count is {count}, expected 0 or more")
    rng = random.Random(f"{split} {seed}")
    return [_sentence(split, rng, patterns) for _ in range(count)]


def _sentence(split: Split, rng: random.Random, patterns: Sequence[str]) -> Sentence:
    place = rng.randrange(len(_TRAIN.topics))
    topic = (_TRAIN if split == "train" else _TEST).topics[place]
    pattern = rng.choice(patterns or _vocabulary(split, rng).patterns).split()
    verb = rng.choice(_vocabulary(split, rng).topics[place].verbs)
    entities = {"SRC": rng.choice(topic.sources), "TGT": rng.choice(topic.targets)}
    words = [
        word
        for slot in pattern
        for word in rng.choice(_vocabulary(split, rng).fillers.get(slot, (slot,))).split()
    ]
    pairs = [pair for word in words for pair in _fill(word, entities, _forms(verb))]
    field = {"SRC": FIELDS[place + 1], "TGT": FIELDS[place + 1]}
    return Sentence(
        words=tuple(word for word, _ in pairs),
        labels=tuple(label for _, label in pairs),
        fields=tuple(field.get(label, "O") for _, label in pairs),
    )


def _vocabulary(split: Split, rng: random.Random) -> Language:
    """The training vocabulary, and for the test split the held-out one every other time."""
    return _TEST if split == "test" and rng.random() < 0.5 else _TRAIN


def _forms(verb: str) -> dict[str, str]:
    """`take/takes/took/taken/taking over` → {"BASE": "take over", "THIRD": "takes over", …}."""
    forms, _, particle = verb.partition(" ")
    return {
        name: f"{form} {particle}".strip()
        for name, form in zip(FORMS, forms.split("/"), strict=True)
    }


def _fill(
    slot: str, entities: Mapping[str, str], forms: Mapping[str, str]
) -> Iterable[tuple[str, str]]:
    """The words that a slot of a pattern becomes, each with its label."""
    if slot in forms:
        return [(word, "REL") for word in forms[slot].split()]
    if slot in entities:
        words = entities[slot].split()
        return [(w, "O" if i == 0 and w in ("the", "a") else slot) for i, w in enumerate(words)]
    return [(slot, "O")]
