"""CoIN's released scoring rules once more, written naively from their descriptions: what the scorers are compared with.

Nothing here imports the scorers, and nothing is shared with them. Replies and references are scored one at a time by
`item`, whole files by `file`. Where a released script stops with an error, `file` raises `ScriptStops`.
"""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


class ScriptStops(Exception):
    """The released script has no result for these files."""


def item(task: str, reply: str, record: Record) -> float:
    return {
        "scienceqa": science,
        "textvqa": people,
        "imagenet": either_within,
        "gqa": question_answer,
        "vizwiz": upper,
        "grounding": box,
        "vqav2": upper,
        "ocrvqa": lower,
    }[task](reply, record)


def file(task: str, records: Any, lines: list[Record]) -> tuple[int, float]:
    """Number of samples and sum of scores. `records`: the JSON of the annotations; ScienceQA's is (problems, ids)."""
    if task == "scienceqa":
        problems, ids = records
        last = {line["question_id"]: line["text"] for line in lines}
        scores = [item(task, last.get(one, "FAILED"), problems[one]) for one in dict.fromkeys(ids)]
    elif task == "imagenet":
        if len(lines) > len(records):
            raise ScriptStops
        scores = [item(task, lines[at]["text"], records[at]) for at in range(len(lines))]
    elif task == "gqa":
        last = {line["question_id"]: line["text"] for line in lines}
        if not last.keys() <= records.keys():
            raise ScriptStops
        scores = [item(task, text, records[one]) for one, text in last.items() if records[one]["isBalanced"]]
    else:
        scores = []
        for line in lines:
            found = [record for record in records if same_id(task, record["question_id"], line["question_id"])]
            if not found:
                raise ScriptStops
            scores.append(item(task, line["text"], found[-1]))
    if not scores:
        raise ScriptStops
    return len(scores), sum(scores)


def same_id(task: str, one: object, other: object) -> bool:
    return str(one) == str(other) if task in ("textvqa", "vqav2") else one == other


def science(reply: str, problem: Record) -> float:
    if reply in list("ABCDE"):
        letter = reply
    elif len(reply) > 2 and reply[0] in "ABCDE" and reply[1] + reply[2] == ". ":
        letter = reply[0]
    else:
        words = "".join(sign if sign.isalnum() or sign == "_" else " " for sign in reply).split(" ")
        letter = ([word for word in words if len(word) == 1] or ["FAILED"])[0].upper()
    return 1.0 if letter == "ABCDE"[problem["answer"]] else 0.0


def either_within(reply: str, record: Record) -> float:
    label = record["answer"]
    return 1.0 if reply.find(label) >= 0 or label.find(reply) >= 0 else 0.0


def question_answer(reply: str, record: Record) -> float:
    while reply.endswith("."):
        reply = reply[:-1]
    reply = reply.lower()
    return 1.0 if (reply[1:] if reply.startswith(" ") else reply) == record["answer"] else 0.0


def upper(reply: str, record: Record) -> float:
    return 1.0 if reply.upper() == record["answer"].upper() else 0.0


def lower(reply: str, record: Record) -> float:
    if len(reply.split("Unanswerable")) > 1:
        return 0.0
    return 1.0 if reply.lower() == record["answer"].lower() else 0.0


def box(reply: str, record: Record) -> float:
    if reply.startswith(" "):
        reply = reply[1:]
    signs = [sign for sign in reply if sign not in "[]"]
    parts = "".join(signs[1:-1]).split(",")
    target = [float(part) for part in record["answer_bbox"].strip("[]").split(",")]
    try:
        given = [float(part) for part in parts]
    except ValueError:
        return 0.0
    if len(given) != 4 or any(value != value or abs(value) == float("inf") for value in given):
        return 0.0  # nan and inf leave no overlap, or an endless union
    longest = max(record["size"])
    (a, b, c, d), (e, f, g, h) = [value * longest for value in given], [value * longest for value in target]
    left, right, top, bottom = (e if e > a else a), (g if g < c else c), (f if f > b else b), (h if h < d else d)
    common = (right - left) * (bottom - top) if right > left and bottom > top else 0.0
    whole = (c - a) * (d - b) + (g - e) * (h - f) - common
    return 1.0 if whole > 0 and common / whole > 0.5 else 0.0


def people(reply: str, record: Record) -> float:
    """Leave each of ten people out; a third for each of the other nine who say the same, at most one; the mean."""
    said = [plain(answer) for answer in record["answers"]]
    mine, shares = plain(reply), []
    for absent in range(10):
        same = 0
        for person in range(10):
            if person != absent and said[person] == mine:
                same += 1
        shares.append(1 if same >= 3 else same / 3)
    return sum(shares) / 10


def plain(answer: str) -> str:
    text = answer.lower()
    for old, new in ((",", ""), ("?", ""), ("'s", " 's")):
        text = text.replace(old, new)
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    padded, out = f"x{text}x", text
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        beside_space = any(
            {padded[at - 1], padded[at + 1]} & {" "} for at in range(1, len(text) + 1) if padded[at] == mark
        )
        out = ("" if beside_space else " ").join(out.split(mark))
    kept, removed = "", 0
    for at, sign in enumerate(out):
        if sign == "." and removed < 32 and not out[at + 1 : at + 2].isdecimal():
            removed += 1
        else:
            kept += sign
    words = [str(NUMBERS.index(word)) if word in NUMBERS else word for word in kept.lower().split()]
    words = ["0" if word == "none" else word for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
# The contraction list of the public VQA evaluation, as LLaVA's and CoIN's answer processor holds it: written > meant.
# Left out: entries that cannot apply, since text is in lower case (Im, Ive, Id've) or meant == written (let's, she's).
CONTRACTIONS = dict(
    pair.split(">")
    for pair in """
aint>ain't arent>aren't cant>can't couldve>could've couldnt>couldn't couldn'tve>couldn't've couldnt've>couldn't've
didnt>didn't doesnt>doesn't dont>don't hadnt>hadn't hadnt've>hadn't've hadn'tve>hadn't've hasnt>hasn't havent>haven't
hed>he'd hed've>he'd've he'dve>he'd've hes>he's howd>how'd howll>how'll hows>how's isnt>isn't itd>it'd itd've>it'd've
it'dve>it'd've itll>it'll maam>ma'am mightnt>mightn't mightnt've>mightn't've mightn'tve>mightn't've mightve>might've
mustnt>mustn't mustve>must've neednt>needn't notve>not've oclock>o'clock oughtnt>oughtn't ow's'at>'ow's'at
'ows'at>'ow's'at 'ow'sat>'ow's'at shant>shan't shed've>she'd've she'dve>she'd've shouldve>should've shouldnt>shouldn't
shouldnt've>shouldn't've shouldn'tve>shouldn't've somebody'd>somebodyd somebodyd've>somebody'd've
somebody'dve>somebody'd've somebodyll>somebody'll somebodys>somebody's someoned>someone'd someoned've>someone'd've
someone'dve>someone'd've someonell>someone'll someones>someone's somethingd>something'd somethingd've>something'd've
something'dve>something'd've somethingll>something'll thats>that's thered>there'd thered've>there'd've
there'dve>there'd've therere>there're theres>there's theyd>they'd theyd've>they'd've they'dve>they'd've theyll>they'll
theyre>they're theyve>they've twas>'twas wasnt>wasn't wed've>we'd've we'dve>we'd've weve>we've werent>weren't
whatll>what'll whatre>what're whats>what's whatve>what've whens>when's whered>where'd wheres>where's whereve>where've
whod>who'd whod've>who'd've who'dve>who'd've wholl>who'll whos>who's whove>who've whyll>why'll whyre>why're whys>why's
wont>won't wouldve>would've wouldnt>wouldn't wouldnt've>wouldn't've wouldn'tve>wouldn't've yall>y'all yall'll>y'all'll
y'allll>y'all'll yall'd've>y'all'd've y'alld've>y'all'd've y'all'dve>y'all'd've youd>you'd youd've>you'd've
you'dve>you'd've youll>you'll youre>you're youve>you've
""".split()  # noqa: SIM905  (a table)
)
