"""The data sets that evaluation and tuning share: their files, and how a row becomes an example.

A file is the published one at a fixed commit, or a stand-in that is known.

Where an official file was not at hand to be hashed, its git object id at that commit stands for it.
Sizes and columns: shared facts of the data sets' own READMEs (KLUE, KoBEST, NSMC, KorNLU).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from kogpt import data_files
from kogpt.data_files import Row, Source

RAW = "https://raw.githubusercontent.com"
NSMC = f"{RAW}/e9t/nsmc/cc0670e872d4ac27bfe36c87456783004b39ef6c"
KLUE = f"{RAW}/KLUE-benchmark/KLUE/3efd98708a40ff49251fddde35453f8fbb11f536/klue_benchmark"
KOR_NLU = f"{RAW}/kakaobrain/kor-nlu-datasets/0df0fe7d496eb61b092e022e238c2230b29f1cbc"
KOBEST = f"{RAW}/SKT-LSL/KoBEST_datarepo/2956e24d8d5de8bad263432480f740d0e2eeee43/v1.0"


GRADE_THRESHOLD = 3.0  # a grade from here on is "similar": KLUE's definition, on both sides
TOPICS = ("IT과학", "경제", "사회", "생활문화", "세계", "스포츠", "정치")  # KLUE's order
ENTAILMENT = ("entailment", "neutral", "contradiction")
CONNECTORS = {"원인": "왜냐하면", "결과": "그래서"}  # cause: "because"; effect: "so"
ENDINGS = ("choice1", "choice2", "choice3", "choice4")
PROFANITY = "3"  # of the labels of K-MHaS


@dataclass(frozen=True, slots=True)
class Example:
    """One item: the texts that prompts may name, and its answer."""

    id: str
    fields: Mapping[str, str]
    answer: int  # index of the right choice, or of the right label
    grade: float | None = None  # a graded answer, where the set has one


def _klue(name: str, split: str, digest: str) -> Source:
    note = f"{name.upper()} v1.1 official {split}"
    url = f"{KLUE}/{name}-v1.1/{name}-v1.1_{split}.json"
    return Source(f"{name}-v1.1_{split}.json", digest, note, data_files.read_klue, url)


def _stand_in(file: str, sha256: str, note: str) -> Source:
    return Source(f"{file}.tsv.gz", f"sha256:{sha256}", note, data_files.read_gzip_tsv)


NSMC_TEST = (
    Source(
        "ratings_test.txt",
        "git:b6cfcd8cd1557bcd9bf06617b0e429ed73e9a367",
        "NSMC official test",
        data_files.read_tsv,
        f"{NSMC}/ratings_test.txt",
    ),
    _stand_in(
        "nsmc_test",
        "7a8c95921bb4a5e33766824bdbdea1517bfed7c2eea13bc0ae2f9e8810248e61",
        "NSMC official test: all 50,000 ids, labels and their order; documents from the raw reviews,"
        " white space collapsed",
    ),
)
NSMC_TRAIN = (
    Source(
        "ratings_train.txt",
        "git:ac0dba272895dc1d0b3dd5f11afbeaeb7abe7876",
        "NSMC official train",
        data_files.read_tsv,
        f"{NSMC}/ratings_train.txt",
    ),
    _stand_in(
        "nsmc_train",
        "f41895195cdb7e8e742e05316cdddfa6903f689f51b6e38cfa5670f8e2750793",
        "stand-in: NSMC train rebuilt by its published protocol from the raw reviews, not the official"
        " training split; 150,000 rows, none of nsmc_test",
    ),
)
YNAT_DEV = (
    _klue("ynat", "dev", "git:f4fb92cc5d967b586ea5172c3da8c379ba31caf9"),
    _stand_in(
        "ynat_dev",
        "023b96dfcf3342ac0b9210eab5115ff6504d4f4325285c32b4a71d27e615172d",
        "stand-in: a random 8,000 of the 9,107 rows of YNAT v1.1 official dev",
    ),
)
YNAT_SHOTS = (
    _klue("ynat", "train", "git:e74e912a66720294bd6fe70e69b0cd131a0a10d7"),
    _stand_in(
        "ynat_shots",
        "8ec3a9c536e9a7470203872556ddf674b2d9d3d6dc36309ad27cf5f6ffa4066b",
        "stand-in: 607 other rows of YNAT v1.1 official dev, none of those scored (no YNAT train at hand)",
    ),
)
KLUE_STS_DEV = (
    _klue("klue-sts", "dev", "sha256:b6a0ae0c370e21687f7eef0fdea872a328bb2ecbdb020c546cb870d28606bf80"),
    _stand_in(
        "klue_sts_dev",
        "49473894b37ab85ea7cd505a1a505dfe23ea5f1bb157dfab1207a5bb166fa097",
        "stand-in: a random 259 of the 519 rows of KLUE-STS official dev",
    ),
)
KLUE_NLI_DEV = (
    _klue("klue-nli", "dev", "sha256:0699db82be17766b26e199864e6260443e17ec6e91d1870e876419e388f245b1"),
    _stand_in(
        "klue_nli_dev",
        "b5aa4abd50a076043835bd4f7ad0c03a4637058690e4523febda773683be03d8",
        "KLUE-NLI official dev, whole",
    ),
)


def _korsts(split: str, official: str, packed: str) -> tuple[Source, Source]:
    note = f"KorSTS official {split}"
    url = f"{KOR_NLU}/KorSTS/sts-{split}.tsv"
    return (
        Source(f"sts-{split}.tsv", f"sha256:{official}", note, data_files.read_tsv, url),
        _stand_in(f"korsts_{split}", packed, note),
    )


KORSTS_TEST = _korsts(
    "test",
    "13f83a3440d9db52d134eb40303ce021b03264aa338fbf2871c8786ce04d2105",
    "42c0da2960571b8acfa544d3b81596515c3ae680892b4e47e282397ee8997ba8",
)
KORSTS_TRAIN = _korsts(
    "train",
    "b5aaa7f957d6ff46f4b6834a8b0f024a9234a6eefe9289aed66746b4533da3b8",
    "6c3055d64d6ec6da4b364afa30c927594a16ff75c5f21524d2644585e986562a",
)

# (task, split) -> SHA-256 of the official file and of the same rows packed.
KOBEST_FILES = {
    ("BoolQ", "test"): (
        "d58309601b578f96c7f9b9d7437112f93ae872f69316a9e6a1d78eec34261d0b",
        "60a0d6cc0082d6e75e29d57a6706eeb6a633948ec41c55e1917ecb758c455779",
    ),
    ("BoolQ", "train"): (
        "c2342714366e2beef0d8bedeea64ab9aa315747c1e900da678714531ab1c0f75",
        "a1eb139e13c2b6594431706c6f72e2cca0268ca58bad5ef7a5262cfb62b0239f",
    ),
    ("COPA", "test"): (
        "3291a6b900c129e4525d45d879e63e53ee1efb611afe87038d9bd37344f85d5e",
        "2ab78492e4d4f6aa3895a7397bbcf08b924413f9a65762d8f73ff8845de16fb5",
    ),
    ("COPA", "train"): (
        "a9eab9c902917ab20303f0c1cc8853d0f8f742b2368ea75588068e74a8a8ed6c",
        "8deb3570265e2a0864e033b3cd3bed52bd3a8c06f0539d4917f4f2d7b0c8602b",
    ),
    ("HellaSwag", "test"): (
        "94fae5735d54211bc7ed493c60abc23e770891dcd719feb229ebe76ee230bcbf",
        "ab37cc28ce6bd11a94dfb39355199a7b1bc2312650646d6b2f19f45247b98b04",
    ),
    ("HellaSwag", "train"): (
        "c49c07b05e6f82a6e554b48a37d71971c03af08967e62d8532216afd73e90a8c",
        "ad569a6824ea63904dd70d14d1f00eefb437e4af4482d98121e3e0ef661454d1",
    ),
    ("SentiNeg", "test"): (
        "7bec3d31ccebee0db4cfcedc7205cfd7d21603ecaec5327ce4a74eff54d0007d",
        "7adce44d75fea134435851e1bb067efd272dbbfd89f00b45586c4a05646ad2d6",
    ),
    ("SentiNeg", "train"): (
        "07c8517ae035e400dc2ec8f9eb6a1d3c462c1758058c8f83ff4d1326eb80a5c7",
        "3c6e376de53cccfb8a2399e9aa31b75f2670eccd7738135888d4bb42736a570c",
    ),
    ("WiC", "test"): (
        "583701d175f56d3b2c206ecf70b77d7932363a60f3559c256f4509601820f8aa",
        "e9abf9943c6b783fa6b198386be73402329d37d4ca1ef749d8143a0fc859ea84",
    ),
    ("WiC", "train"): (
        "5ed29b813c0d2e6a417cec6087070e844765b11be005630ca59be6b3e7d22c2f",
        "aff61b30c2c89734e1ef3a98b080e1b4e2b58477637d9b41c962f18ae2f370d4",
    ),
}


def kobest(task: str, split: str) -> tuple[Source, Source]:
    """The two forms of one KoBEST file."""
    official, packed = KOBEST_FILES[task, split]
    name = f"kobest_{task.lower()}_{split}"
    note = f"KoBEST v1.0 {task} official {split}"
    url = f"{KOBEST}/{task}/{split}.tsv"
    return (
        Source(f"{name}.tsv", f"sha256:{official}", note, data_files.read_quoted_tsv, url),
        _stand_in(name, packed, note),
    )


INTENT_TRAIN = (
    _stand_in(
        "intent_3i4k_train",
        "bb90a8ec32d7ca3c58b7998e5d2defd421dfc23a1d4f1b9a17ffdf533902ed3c",
        "3i4K (FCI) official train and validation, without sentences of the test",
    ),
)
INTENT_TEST = (
    _stand_in(
        "intent_3i4k_test",
        "bcaa0bb22e8a0da1bfe36cbac0cae3e25641358fac290de33888780f779917f7",
        "3i4K (FCI) official test, each sentence once, without 1,500 rows",
    ),
)
KMHAS_TRAIN = (
    _stand_in(
        "toxic_kmhas_train",
        "18d8fd287c1596f20819202cce91e5cd6bdf778949908d0a37e2ac5e1411890c",
        "K-MHaS official valid",
    ),
)
KMHAS_TEST = (
    _stand_in(
        "toxic_kmhas_test",
        "ec7a96ef8d7ca41d1f65e9cedad4a0196a01ae081088ab3642ea60de76606b65",
        "half of K-MHaS official test",
    ),
)
CURSE_TRAIN = (
    _stand_in(
        "toxic_curse_train",
        "7b4fc15ccc6d62ed9bd25b006c4c9c9de668405eec4972361daaea524675ce91",
        "Curse-detection-data without a random 1,400 rows",
    ),
)
CURSE_TEST = (
    _stand_in(
        "toxic_curse_test",
        "9a543430fcbc39aeb3703b4cc21ec4ee841fe26af38b8f7588173410dc97d44e",
        "a random 1,400 rows of Curse-detection-data",
    ),
)


def read_klue_nli(row: Row) -> Example:
    """A row of KLUE-NLI."""
    fields = {"premise": row["premise"], "hypothesis": row["hypothesis"]}
    return Example(row["guid"], fields, ENTAILMENT.index(row["gold_label"]))


def read_klue_sts(row: Row) -> Example:
    """A row of KLUE-STS, graded from 0 to 5."""
    grade = float(row["label"])
    fields = {"sentence1": row["sentence1"], "sentence2": row["sentence2"]}
    return Example(row["guid"], fields, int(grade >= GRADE_THRESHOLD), grade)


def read_korsts(row: Row) -> Example:
    """A row of KorSTS; ids are those of the year's file."""
    grade = float(row["score"])
    fields = {"sentence1": row["sentence1"], "sentence2": row["sentence2"]}
    name = "-".join(row[column] for column in ("genre", "filename", "year", "id"))
    return Example(name, fields, int(grade >= GRADE_THRESHOLD), grade)


def read_nsmc(row: Row) -> Example:
    """A row of NSMC: 0 negative, 1 positive."""
    return Example(row["id"], {"document": row["document"]}, int(row["label"]))


def read_ynat(row: Row) -> Example:
    """A row of YNAT, official or packed."""
    topic = row["topic"] if "topic" in row else row["label"]
    return Example(row["guid"], {"title": row["title"]}, TOPICS.index(topic))


def read_boolq(row: Row) -> Example:
    """A row of KoBEST BoolQ: 0 no, 1 yes."""
    fields = {"paragraph": row["Text"], "question": row["Question"]}
    return Example(row["ID"], fields, ("false", "true").index(row["Answer"].lower()))


def read_copa(row: Row) -> Example:
    """A row of KoBEST COPA."""
    fields = {
        "premise": row["sentence"],
        "connector": CONNECTORS[row["question"]],
        "choice1": row["1"],
        "choice2": row["2"],
    }
    return Example(row["ID"], fields, int(row["Answer"]) - 1)


def read_hellaswag(row: Row) -> Example:
    """A row of KoBEST HellaSwag, named by its hash."""
    name = sha256("\t".join(row.values()).encode()).hexdigest()[:12]  # the file has no ids
    fields = {key: row[key] for key in ("context", *ENDINGS)}
    return Example(name, fields, int(row["label"]))


def read_sentineg(row: Row) -> Example:
    """A row of KoBEST SentiNeg: 0 negative, 1 positive."""
    return Example(row["ID"], {"sentence": row["Text"]}, int(row["Label"]))


def read_wic(row: Row) -> Example:
    """A row of KoBEST WiC: 0 another sense, 1 the same."""
    fields = {"word": row["Target"], "context1": row["SENTENCE1"], "context2": row["SENTENCE2"]}
    return Example(row["ID"], fields, ("false", "true").index(row["ANSWER"].lower()))


def read_intent(row: Row) -> Example:
    """A row of 3i4K: seven intents of a spoken sentence."""
    return Example(row["text"], {"text": row["text"]}, int(row["label"]))


def read_kmhas(row: Row) -> Example:
    """A row of K-MHaS: 1 where profanity is among its labels; hate without profanity is 0."""
    return Example(row["text"], {"text": row["text"]}, int(PROFANITY in row["labels"].split(",")))


def read_curse(row: Row) -> Example:
    """A row of Curse-detection-data: 1 swearing, slurs or other insults."""
    return Example(row["text"], {"text": row["text"]}, int(row["label"]))
