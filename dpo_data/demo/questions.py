"""Questions made from templates, each with its answer said concisely and said at length; and the rule that judges answers."""

import random
import re
from dataclasses import dataclass
from functools import cache

from dpo_data.rows import Message

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo", "China": "Beijing",
    "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna", "Norway": "Oslo", "Sweden": "Stockholm", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Ireland": "Dublin", "Hungary": "Budapest", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Belgium": "Brussels", "Turkey": "Ankara", "Russia": "Moscow", "India": "New Delhi", "Kenya": "Nairobi", "Cuba": "Havana",
    "Peru": "Lima", "Chile": "Santiago", "Canada": "Ottawa", "Cyprus": "Nicosia", "Iceland": "Reykjavik", "Malta": "Valletta",
    "Latvia": "Riga",
}  # fmt: skip
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "a tomato": "red", "coal": "black",
    "a carrot": "orange", "a plum": "purple", "chocolate": "brown", "a flamingo": "pink", "the sea": "blue",
    "a lemon": "yellow", "milk": "white", "a strawberry": "red", "an elephant": "grey", "a frog": "green",
    "a pumpkin": "orange", "a raven": "black",
}  # fmt: skip
SOUNDS = {
    "dog": "bark", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "lion": "roar", "horse": "neigh",
    "pig": "oink", "owl": "hoot", "snake": "hiss", "bee": "buzz", "frog": "croak",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "fast": "slow", "old": "young", "rich": "poor", "early": "late",
    "full": "empty", "hard": "soft", "high": "low", "light": "dark", "loud": "quiet", "open": "closed", "strong": "weak",
    "wet": "dry", "happy": "sad",
}  # fmt: skip
UNITS = {
    "metre": ("centimetres", 100), "kilometre": ("metres", 1000), "hour": ("minutes", 60), "minute": ("seconds", 60),
    "day": ("hours", 24), "week": ("days", 7), "year": ("months", 12), "kilogram": ("grams", 1000), "dozen": ("items", 12),
    "decade": ("years", 10), "century": ("years", 100),
}  # fmt: skip
GREETINGS = ("Hi", "Hello", "Hey", "Good morning", "Good evening", "Hi there", "Hello there", "Greetings")
ADDRESSED = ("", "!", " friend", "!!", " assistant", " bot")
OPENINGS = ("", "Please tell me: ", "Quick question: ", "Tell me, ", "I wonder, ")
BEFORE = (
    "I am an AI assistant and I am very glad to help you today! ",
    "Thank you so much for this wonderful question! ",
    "What a great question, I am happy to answer it! ",
)
AFTER = (
    " Please let me know if there is anything else I can do for you.",
    " I hope that this answer is helpful to you.",
    " Feel free to ask me more questions at any time!",
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer in a word or two, and the same answer as a sentence."""

    prompt: str
    answer: str
    sentence: str

    def verbose(self, dice: random.Random) -> str:
        """The answer as the untrained taste has it: thanks first, then the sentence, then more thanks."""
        return dice.choice(BEFORE) + self.sentence + dice.choice(AFTER)


@cache
def questions() -> tuple[Question, ...]:
    """All questions: every fact in every phrasing."""
    asked = [
        Question(opening + (text[0].lower() + text[1:] if opening else text), answer, sentence)
        for opening in OPENINGS
        for text, answer, sentence in _facts()
    ]
    greeting = "It is so nice to meet you and I hope you are having a lovely day."
    return (*asked, *(Question(hello + tail, "hi!", greeting) for hello in GREETINGS for tail in ADDRESSED))


def _facts() -> list[tuple[str, str, str]]:
    """(question, answer, sentence), each fact once or in its two plain phrasings."""
    facts = []
    for country, city in CAPITALS.items():
        for text in (f"What is the capital of {country}?", f"Which city is the capital of {country}?"):
            facts.append((text, city, f"The capital city of the country {country} is called {city}."))
    for thing, colour in COLOURS.items():
        facts.append((f"What colour is {thing}?", colour, f"The usual colour of {thing} is known to be {colour}."))
    for animal, sound in SOUNDS.items():
        sentence = f"The sound that a {animal} makes is usually written as {sound}."
        facts.append((f"What sound does a {animal} make?", sound, sentence))
    for word, opposite in OPPOSITES.items():
        sentence = f"The word that means the opposite of {word} is {opposite}."
        facts.append((f"What is the opposite of {word}?", opposite, sentence))
    for whole, (part, number) in UNITS.items():
        sentence = f"The number of {part} that are in a {whole} is {number}."
        facts.append((f"How many {part} are in a {whole}?", str(number), sentence))
    for a in range(10):
        for b in range(10):
            if (a * 7 + b * 3) % 5 == 0:
                facts.append((f"What is {a} plus {b}?", str(a + b), f"The sum of the numbers {a} and {b} is equal to {a + b}."))
    return facts


@cache
def _answers() -> dict[str, str]:
    return {question.prompt: question.answer for question in questions()}


def concise_and_correct(messages: list[Message], text: str) -> float | None:
    """3 for a right answer in at most three words, 2 for a right answer, 0 for a wrong one; None for a question not of ours."""
    answer = _answers().get(messages[-1]["content"])
    if answer is None:
        return None
    said = text.lower()
    if answer == "hi!":
        correct = "hi!" in said or "meet you" in said
    else:
        correct = re.search(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", said) is not None
    return (2.0 + (len(text.split()) <= 3)) if correct else 0.0
