"""How the tasks of mini-CoIN ask for an answer: one line, always the last of the prompt, as in CoIN.

textvqa, gqa, vizwiz, vqav2 and ocrvqa share a line (`mini_coast.prompts.SHORT`), as theirs do, so that only their
questions tell these five apart; vizwiz first says what to reply when the picture shows too little. The wording is
our own.
"""

from __future__ import annotations

LETTER = "Reply with the letter of the right choice."  # scienceqa
OBJECT = "Reply with the name of the object."  # imagenet
VISIBLE = "If the picture shows too little, reply Unanswerable."  # vizwiz, the line before the last
BOX = "Give the box [x1,y1,x2,y2] around this: "  # grounding; the description follows on the same line

LETTERS = "ABCD"
