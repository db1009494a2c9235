"""The ways people ask. Each list holds paraphrases of one question; `ask` picks and varies one."""

from random import Random

COLOUR_OF = [
    "What colour is the {kind}?", "What is the colour of the {kind}?", "Which colour does the {kind} have?",
    "Tell me the colour of the {kind}.", "The {kind} is what colour?", "Name the colour of the {kind}.",
    "Can you tell me what colour the {kind} is?", "Of what colour is the {kind}?",
]  # fmt: skip
COLOUR_ONLY = [
    "What colour is the shape?", "What is the colour of the shape?", "Which colour is it?", "What colour is it?",
    "Name the colour.", "What colour do you see?", "Which colour does the shape have?", "Tell me the colour.",
]  # fmt: skip
SHAPE_OF = [
    "What shape is {colour}?", "What is the {colour} shape?", "Which shape is {colour}?", "Name the {colour} shape.",
    "What is the shape of the {colour} thing?", "Tell me which shape is {colour}.", "The {colour} thing is a what?",
    "What kind of shape is the {colour} one?",
]  # fmt: skip
SHAPE_ONLY = [
    "What shape is it?", "What shape is in the picture?", "Which shape do you see?", "Name the shape.",
    "What shape is this?", "What is the shape?", "Which shape is shown?", "Tell me the shape.",
]  # fmt: skip
COUNT_ALL = [
    "How many shapes are there?", "How many shapes are in the picture?", "Count the shapes.",
    "How many things do you see?", "What is the number of shapes?", "How many objects are in this picture?",
    "Tell me how many shapes there are.", "How many shapes can you see?", "Give the number of shapes.",
]  # fmt: skip
COUNT_SOME = [
    "How many {what} are there?", "How many {what} are in the picture?", "Count the {what}.",
    "How many {what} do you see?", "What is the number of {what}?", "Tell me how many {what} there are.",
    "How many {what} can you see?", "Give the number of {what}.",
]  # fmt: skip
EXISTS = [
    "Is there a {name}?", "Is there a {name} in the picture?", "Do you see a {name}?", "Can you see a {name}?",
    "Does the picture show a {name}?", "Is a {name} in this picture?", "Does the picture contain a {name}?",
    "Is there any {name} here?",
]  # fmt: skip
RELATION_YES_NO = [
    "Is the {a} {relation} the {b}?", "Does the {a} lie {relation} the {b}?", "Is the {a} placed {relation} the {b}?",
    "Do you see the {a} {relation} the {b}?", "Tell me: is the {a} {relation} the {b}?",
    "Would you say that the {a} is {relation} the {b}?",
]  # fmt: skip
RELATION_WHERE = [
    "Where is the {a} relative to the {b}?", "Where is the {a}, seen from the {b}?",
    "On which side of the {b} is the {a}?", "In which direction from the {b} is the {a}?",
    "Is the {a} left, right, above or below the {b}?", "Where does the {a} lie relative to the {b}?",
    "What is the position of the {a} relative to the {b}?",
]  # fmt: skip
RELATION_WHAT = [
    "What is {relation} the {b}?", "Which shape is {relation} the {b}?", "What do you see {relation} the {b}?",
    "What lies {relation} the {b}?", "Name the shape {relation} the {b}.", "Tell me what is {relation} the {b}.",
]  # fmt: skip
EXTREME = [
    "Which shape is furthest to the {side}?", "Which shape is nearest the {side} edge?", "What is at the far {side}?",
    "Name the shape nearest to the {side}.", "Which shape is closest to the {side} of the picture?",
    "What is the {side}most shape?",
]  # fmt: skip
BIGGEST = [
    "Which shape is the biggest?", "What is the biggest shape?", "Which shape is largest?", "Name the largest shape.",
    "Which one is bigger than the others?", "What is the largest thing?",
]  # fmt: skip
SMALLEST = [
    "Which shape is the smallest?", "What is the smallest shape?", "Which shape is the least big?",
    "Name the smallest shape.", "Which one is smaller than the others?", "What is the smallest thing?",
]  # fmt: skip
DESCRIBE = [
    "What is in this picture?", "Describe the picture.", "What do you see?", "What is shown here?",
    "Describe this picture in one sentence.", "What does the picture show?", "What can you see in this picture?",
    "Please describe what you see.", "What is this?", "Tell me what is in the picture.", "Give a short description.",
    "Caption this picture.",
]  # fmt: skip
READ = [
    "What does the sign say?", "Read the text.", "What is written here?", "What does it say?", "Read this.",
    "What text is in the picture?", "What is the text?", "Which words are in the picture?",
    "Please read the text in this picture.", "What does the text say?", "Transcribe the text.", "Read what is written.",
]  # fmt: skip
READ_NTH = [
    "What is the {nth} word?", "Which word comes {nth}?", "Read only the {nth} word.", "Name the {nth} word.",
    "What does the {nth} word say?", "Just the {nth} word, please.",
]  # fmt: skip
COUNT_WORDS = [
    "How many words are there?", "How many words are in the picture?", "Count the words.",
    "How many words can you read?", "What is the number of words?", "Tell me how many words there are.",
]  # fmt: skip
READ_DIGITS = [
    "Which digits are written here?", "Read the handwritten number.", "What number is written by hand?",
    "What number is this?", "Read the digits.", "Which number do you see?", "What is the number in the picture?",
    "Please read the number.", "What are the digits?", "Which number is written?", "What does the handwriting say?",
]  # fmt: skip
COUNT_DIGITS = [
    "How many digits are there?", "How many digits are in the picture?", "Count the digits.",
    "How many digits can you see?", "What is the number of digits?", "Tell me how many digits there are.",
]  # fmt: skip
WHICH_PICTURE = [
    "Which picture shows a {name}?", "Which picture has a {name}?", "In which picture is there a {name}?",
    "Is the {name} in the first or the second picture?", "Where is the {name}: in the first or the second picture?",
    "Which of the two pictures shows a {name}?", "Find the picture with a {name}.", "Which one contains a {name}?",
]  # fmt: skip
WHICH_SAYS = [
    'Which picture says "{text}"?', 'In which picture is "{text}" written?', 'Which of the two says "{text}"?',
    'Where do you read "{text}": in the first or the second picture?', 'Find the picture that says "{text}".',
    'Which picture has the text "{text}"?',
]  # fmt: skip
WHICH_MORE = [
    "Which picture has more shapes?", "Which picture shows more shapes?", "Where are more shapes?",
    "Which of the two has more shapes?", "In which picture do you see more shapes?",
    "Does the first or the second picture have more shapes?",
]  # fmt: skip
NTH_PICTURE = [
    "What is in the {nth} picture?", "Describe the {nth} picture.", "What does the {nth} picture show?",
    "What do you see in the {nth} picture?", "Tell me what is in the {nth} picture.", "What is shown in picture {n}?",
]  # fmt: skip
SAME = [
    "Are the two pictures the same?", "Are these pictures the same?", "Do both pictures show the same?",
    "Are they the same?", "Is the first picture the same as the second?", "Do the two pictures show the same thing?",
    "Are both pictures equal?", "Same or not?",
]  # fmt: skip
DIRECTION = [
    "In which direction does the {what} move?", "Which way does the {what} move?", "Where is the {what} going?",
    "Which way is the {what} moving?", "In which direction is the {what} going?", "Where does the {what} move?",
    "These are frames of a video. Which way does the {what} move?", "What is the direction of the {what}?",
    "How does the {what} move?", "Tell me the direction of the {what}.",
]  # fmt: skip
MOVES_YES_NO = [
    "Does the {what} move {direction}?", "Is the {what} moving {direction}?", "Is the {what} going {direction}?",
    "Tell me: does the {what} move {direction}?", "Do you see the {what} moving {direction}?",
]  # fmt: skip
HAPPENS = [
    "What happens here?", "What happens in this video?", "Describe the video.", "Describe what happens.",
    "What do these frames show?", "What happens in these pictures?", "What do you see in these frames?",
]  # fmt: skip

SYSTEM_PROMPTS = [
    "Answer briefly.", "You are a careful assistant.", "You answer questions about pictures.", "Be short and exact.",
    "You are a vision model. Look at the picture, then answer.", "You are Fovea.", "Answer in English.",
    "You are a helpful assistant that looks at pictures.", "Be polite and helpful.", "Only say what you see.",
]  # fmt: skip
_OPENERS = ("Please tell me: ", "Look at the picture. ", "Hi! ", "Hello, ", "Question: ", "Quick question: ")
_CLOSERS = (" Answer briefly.", " Thanks!", " Answer in one word.", " Be exact.", " Please.")
_PICTURE_WORDS = ("image", "image", "photo", "drawing")


def ask(rng: Random, phrases: list[str], **values: str) -> str:
    """One of the paraphrases, filled in, and varied in spelling, case and punctuation."""
    text = rng.choice(phrases).format(**values).replace(" a orange", " an orange")
    if rng.random() < 0.4:
        text = text.replace("colour", "color")
    if rng.random() < 0.4:
        text = text.replace("picture", rng.choice(_PICTURE_WORDS)).replace("a image", "an image")
    chance = rng.random()
    if chance < 0.2:
        text = text if '"' in text else text[0].lower() + text[1:]
        text = text.rstrip("?.")
    elif chance < 0.3:
        text = text if '"' in text else text.lower()
    elif chance < 0.4:
        text = rng.choice(_OPENERS) + text
    elif chance < 0.48:
        text = text + rng.choice(_CLOSERS)
    return text
