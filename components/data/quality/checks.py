"""What every kind of problem means and what to do about it, for a preparation's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """One kind of problem."""

    meaning: str
    advice: str
    own_advice: str = ""
    """For a user's own files, where the advice speaks of a release."""


UNEXPLAINED = Explanation("This kind of problem has no explanation yet.", "Read what the problems below say of it.")

DONE: dict[str, str] = {  # to pictures before they are learned
    "turned": "turned upright as EXIF says",
    "left": "left as stored, against EXIF",
    "first frame": "first of several frames taken",
    "grey assumed": "grey of more than 8 bits whose range is assumed",
}


EXPLANATIONS: dict[str, Explanation] = {
    "answer does not fit": Explanation(
        "No reply could score on this answer with the task's metric: yes_no needs yes or no, iou needs a box.",
        "Correct the answer, or give the task another metric.",
    ),
    "box outside": Explanation(
        "A box in the texts leaves the picture or is turned over.",
        "Check whether boxes are relative to the picture or to the padded square; a few are the release's own errors.",
    ),
    "broken JSON": Explanation(
        "The line is not JSON, or the list is not from there on; what follows in a list cannot be read.",
        "Download the file again; if it is the same, repair it at the named place.",
        "Repair the file at the named place.",
    ),
    "broken image": Explanation(
        "The picture cannot be decoded: truncated, empty, no picture at all, or so large that decoding is unsafe.",
        "Download or unpack the picture archive again and compare its checksum.",
        "Replace the picture with a whole one, or remove the row.",
    ),
    "count": Explanation(
        "The source does not have its published or specified size, or selected rows are missing.",
        "Check that the release is complete and the version meant; results are not comparable with published ones.",
    ),
    "duplicate id": Explanation(
        "An id occurs twice in a file whose ids must be unique.",
        "Keep one of the rows; predictions are joined by id.",
        'Keep one of the rows, or write ids = "renew" into the stream file; predictions are joined by id.',
    ),
    "duplicate picture": Explanation(
        "The same picture is stored under several names within one split; every surplus file is counted once.",
        "Harmless for training; check whether the questions are repeated too, which would count them twice.",
    ),
    "no instruction": Explanation(
        "A sample of an archive has an answer and does not say what was asked.",
        'Say it in the field "instruction" of the task, or pack a .json with each sample.',
    ),
    "no plain file": Explanation(
        "A member of an archive is a link or a device, which is never followed.",
        "Pack the file itself.",
    ),
    "paired by place": Explanation(
        "Reference captions name other pictures than the list, so rows and references were paired by position.",
        "Compare a few rows with their references; the released scripts pair them this way too.",
    ),
    "path outside": Explanation(
        "A member of an archive has a name that leads outside it.",
        "Do not trust the archive before you know why; pack it again with relative names.",
    ),
    "repeated member": Explanation(
        "An archive holds two members of one name, and only one can be meant.",
        "Pack it again with a unique name for every file.",
    ),
    "too large": Explanation(
        "A member of an archive is larger than any sample should be.",
        "Check what it is; pack pictures and texts one by one.",
    ),
    "empty answer": Explanation(
        "There is no accepted answer, or an empty one.",
        "Look the answer up in the release's references; a row without one cannot be learned or scored.",
        "Write the answer, or remove the row; one without an answer cannot be learned or scored.",
    ),
    "empty question": Explanation(
        "A human turn says nothing.",
        "Look the question up in the release, or leave the row out.",
        "Write the question, or remove the row.",
    ),
    "image outside folder": Explanation(
        "A picture's path leads out of the picture folder; it was not opened.",
        "Do not trust the file: correct the path, or leave the row out.",
    ),
    "leaked": Explanation(
        "A training row asks a question of the test part about the same picture: its score is partly memory.",
        "Leave these training rows out, or say how many there were beside the scores.",
    ),
    "missing field": Explanation(
        "A field that every row needs is not there.",
        "Compare the file's layout with the page of its benchmark.",
        "Compare the file with the layouts in components/data/formats/layouts.py.",
    ),
    "missing image": Explanation(
        "The picture that a row names is not there.",
        "Download the picture archive that is missing, or unpack it where the benchmark's page says.",
        "Put the picture where the row says, below the task's images folder, or correct the row or the folder.",
    ),
    "no image folder": Explanation(
        "A row names a picture, but its task names no folder of pictures.",
        'Add images = "FOLDER" to the task in the stream file.',
    ),
    "no rows": Explanation("The file is empty.", "Download it again, or correct the path in the stream file."),
    "not UTF-8": Explanation(
        "The row's text cannot be read as UTF-8: it was saved in another encoding or cut inside a character.",
        "Convert the file to UTF-8 from the encoding in which it was saved.",
    ),
    "not an object": Explanation(
        "An item is not a JSON object.", "Compare the file's layout with those in components/data/formats/layouts.py."
    ),
    "size differs": Explanation(
        "The picture is larger or smaller than its annotation says, so boxes in pixels would be wrong.",
        "Check that the pictures are of the version that was annotated, neither scaled nor rotated.",
    ),
    "system text": Explanation(
        "A row has a system text, as a field or a turn; the model's own is used, and rows here cannot carry another.",
        "Move it into the first question, or remove it.",
    ),
    "too many images": Explanation(
        "A row shows several pictures where one is taken: a suite that is scored with one picture a question, or a tar "
        "whose pictures have no numbers.",
        "Number the pictures of a tar (KEY.0.jpg, KEY.1.jpg); of a suite, leave the row out.",
    ),
    "placeholders": Explanation(
        "A row's questions hold more or fewer <image> than it has pictures.",
        "Write <image> once for each picture, in their order; or nowhere, and they are put before the first question.",
    ),
    "video or audio": Explanation(
        "A row has a video or a sound, or a tag for one, and only pictures are read.",
        'List the frames of the video as pictures in "images", with <image> for each, or leave the row out.',
    ),
    "tools": Explanation(
        "A row lists tools or functions to call, which rows here cannot carry.",
        "Write what is needed of them into the question, or leave the row out.",
    ),
    "preferences": Explanation(
        "A row compares answers (chosen, rejected), which instruction tuning does not learn from.",
        "Keep the better answer as the last turn and remove the other fields.",
    ),
    "objects": Explanation(
        "A row has its boxes outside its texts.",
        "Write the boxes into the texts, as the metric iou reads them: [x1,y1,x2,y2].",
    ),
    "several layouts": Explanation(
        "A row has fields of two layouts that say different things, so one would have to be dropped.",
        "Remove the fields that are not meant.",
    ),
    "several lists": Explanation(
        "An object has several lists of rows, and none of them is named by the stream file.",
        "Write each list to its own file, and name those that are meant.",
    ),
    "other picture": Explanation(
        "A row names its picture in a field that is not read, so it would be learned without.",
        'Call the field "image", or "images" where there are several.',
    ),
    "other placeholder": Explanation(
        "A question marks its picture's position as another model does, which would be learned as text.",
        "Write <image> there.",
    ),
    "picture in an answer": Explanation(
        "An answer contains a picture or its placeholder; a model that writes text cannot produce one.",
        "Move it into the question, or correct the answer.",
    ),
    "turn weight": Explanation(
        "A turn states in an unreadable way whether it is learned.",
        'Write "weight": 0 or "loss": false at each answer that is only context, and nothing at questions.',
    ),
    "turn content": Explanation(
        "A turn carries more than a text, such as calls of tools or thoughts, which rows here cannot hold.",
        "Write what is to be learned into the text of the turn, or leave the row out.",
    ),
    "nothing to learn": Explanation(
        "Every answer of a training row has the weight 0.",
        "Give the answer that is to be learned its weight, or leave the row out.",
    ),
    "grey assumed": Explanation(
        "A grey picture of more than 8 bits does not say which values are black and white; both were assumed.",
        "Look at the picture in the report; where it is too dark or too bright, save it in 8 bits.",
    ),
    "doubled field": Explanation(
        "An object names a field twice, and JSON keeps only the last.", "Remove the one that is not meant."
    ),
    "lists joined": Explanation(
        "A file has several JSON values where one list is usual: lists written one after the other, or one a line.",
        "Nothing was lost; check that the file was put together as you meant.",
    ),
    "wrong field": Explanation(
        "A field has the wrong kind of value.",
        "Compare the file's layout with the page of its benchmark.",
        "Compare the file with the layouts in components/data/formats/layouts.py.",
    ),
    "wrong speaker order": Explanation(
        "Turns must alternate between human and gpt, human first and gpt last.", "Correct the order of the turns."
    ),
}
